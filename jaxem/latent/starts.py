"""Starts of many models, each on its own data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxem.core.arguments import as_key, optional, whole
from jaxem.core.compilation import program
from jaxem.data.missing import incomplete
from jaxem.data.prepare import as_floats, stacked
from jaxem.data.problems import as_problems
from jaxem.data.sequences import Sequences
from jaxem.data.sequences import stacked as stacked_sequences
from jaxem.distributions.product import told
from jaxem.distributions.words import as_family
from jaxem.latent.hmm import HMM
from jaxem.latent.mixture import Mixture, Plan, start_work


def start_many(
    key: Any,
    family: Any,
    xs: Any,
    components: int,
    *,
    weight: Any = None,
    labels: Any = None,
    restarts: int | None = None,
    method: str = "mixed",
    active: Any = None,
) -> Any:
    """`Mixture.start` for B problems, or `HMM.start` for B sets of sequences: leading axis B, or B, R with restarts.

    Args:
        key: a JAX random key or a seed; each problem takes one of its own from it.
        family, components, restarts, method: as in `Mixture.start`; sizes are the largest that any problem tells.
        xs: `[B, n, ...]`, an array or `Incomplete`, or a list of B arrays of any lengths, or a list of B `Sequences`.
        weight, labels: shaped like the rows of xs.
        active: `[B]` how many of the components each problem uses, or None for all. Mixtures only.

    Raises:
        ValueError: as `Mixture.start`.

    >>> import jax, jaxem as jem
    >>> xs = jax.numpy.array([[[0.0], [0.1], [5.0], [5.1]], [[1.0], [1.1], [7.0], [7.1]]])
    >>> jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2).weights.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    key, family = as_key(key), as_family(family)
    components, restarts = whole(components, "components"), optional(restarts, "restarts")
    xs, weight, labels = as_problems(xs, weight, labels)
    chains = isinstance(xs, Sequences) or (isinstance(xs, list) and isinstance(xs[0], Sequences))
    if chains and active is not None:
        raise ValueError("active is for mixtures; a hidden Markov model uses all of its states")
    if isinstance(xs, list):
        longest = max(x.steps if chains else len(x) for x in xs)
        xs, weight, labels = (stacked_sequences if chains else stacked)(xs, longest, weight, labels)
    given = tuple(None if value is None else jnp.asarray(value) for value in (weight, labels, active))
    xs = xs if chains else incomplete(as_floats(xs))
    family = told(family, *_together(xs, given[0]))
    return _start_many(key, xs, *given, Plan(HMM if chains else Mixture, family, components, restarts, method))


def _together(xs: Any, weight: Any) -> tuple[Any, Any]:
    """The rows of all problems, or the steps of all their sequences, and weights: zero for what is not there."""
    values = getattr(xs, "values", xs)
    there = jnp.ones(values.shape[:2], bool) if weight is None else weight > 0
    if isinstance(xs, Sequences):
        steps = jnp.arange(values.shape[2], dtype=jnp.int32)[None, None] < jnp.asarray(xs.length)[..., None]
        there = there[..., None] & (steps if xs.mask is None else steps & xs.mask)
    return values.reshape(-1, *values.shape[there.ndim :]), there.reshape(-1)


@program(start_work, static_argnums=5)
def _start_many(key: Array, xs: Any, weight: Any, labels: Any, active: Any, plan: Plan) -> Any:
    model, family, components, restarts, method = plan

    def one(key: Array, x: Any, weight: Any, labels: Any, active: Any) -> Any:
        shared = {"weight": weight, "labels": labels, "restarts": restarts, "method": method}
        shared |= {} if active is None else {"active": active}
        return model.start(key, family, x, components, **shared)

    given = weight, labels, active
    axes = (0, 0, *(None if value is None else 0 for value in given))
    return jax.vmap(one, in_axes=axes)(jax.random.split(key, len(jax.tree.leaves(xs)[0])), xs, *given)
