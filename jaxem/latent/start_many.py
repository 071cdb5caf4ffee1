"""Where many models set out from, each on its own data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.data import as_floats, presence, stack
from jaxem.latent.hmm import HMM
from jaxem.latent.mixture import Mixture
from jaxem.sequences import Sequences


def start_many(
    key: Array,
    family: Any,
    xs: Any,
    components: int,
    *,
    weight: Any = None,
    labels: Any = None,
    restarts: int | None = None,
    method: str = "kmeans++",
    active: Any = None,
) -> Any:
    """`Mixture.start` for B problems, or `HMM.start` for B sets of sequences: leading axis B, or B, R with restarts.

    Args:
        key: a JAX random key; each problem takes one of its own from it.
        family, components, restarts, method: as in `Mixture.start`.
        xs: `[B, n, ...]`, or a list of B arrays of any lengths, or a list of B `Sequences`.
        weight, labels: shaped like the rows of xs.
        active: `[B]` how many of the components each problem uses, or None for all. Mixtures only.

    Raises:
        ValueError: as `Mixture.start`.

    >>> import jax, jaxem as jem
    >>> xs = jax.numpy.array([[[0.0], [0.1], [5.0], [5.1]], [[1.0], [1.1], [7.0], [7.1]]])
    >>> jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2).weights.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    chains = isinstance(xs, Sequences) or (isinstance(xs, (list, tuple)) and isinstance(xs[0], Sequences))
    if chains and active is not None:
        raise ValueError("active is for mixtures; a hidden Markov model uses all of its states")
    if isinstance(xs, (list, tuple)):
        xs, weight, labels = _stacked_sequences(xs, weight, labels) if chains else _stacked_rows(xs, weight, labels)
    given = tuple(None if value is None else jnp.asarray(value) for value in (weight, labels, active))
    xs = xs if chains else as_floats(xs)
    return _start_many(key, xs, *given, (family, components, restarts, method))


@partial(jax.jit, static_argnums=5)
def _start_many(key: Array, xs: Any, weight: Any, labels: Any, active: Any, how: tuple[Any, ...]) -> Any:
    family, components, restarts, method = how

    def one(key: Array, x: Any, weight: Any, labels: Any, active: Any) -> Any:
        shared = {"weight": weight, "labels": labels, "restarts": restarts, "method": method}
        if isinstance(x, Sequences):
            return HMM.start(key, family, x, components, **shared)
        return Mixture.start(key, family, x, components, active=active, **shared)

    given = weight, labels, active
    axes = (0, 0, *(None if value is None else 0 for value in given))
    return jax.vmap(one, in_axes=axes)(jax.random.split(key, len(jax.tree.leaves(xs)[0])), xs, *given)


def _stacked_rows(xs: Sequence[Any], weight: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Arrays of any lengths as one, padded with rows of weight zero."""
    lengths = [len(x) for x in xs]
    there = presence(lengths, max(lengths), as_floats(xs[0]).dtype)
    weight = there if weight is None else there * stack([np.asarray(w) for w in weight], max(lengths))
    labels = None if labels is None else stack([np.asarray(known) for known in labels], max(lengths), fill=-1)
    return stack([np.asarray(x) for x in xs], max(lengths)), weight, labels


def _stacked_sequences(xs: Sequence[Sequences], weight: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Sets of sequences as one, padded with steps and with sequences of weight zero."""
    counts, steps = [len(x) for x in xs], max(x.steps for x in xs)
    most = max(counts)
    there = presence(counts, most, xs[0].values.dtype)
    weight = there if weight is None else there * stack([np.asarray(w) for w in weight], most)
    if labels is not None:
        each = [stack([np.asarray(known) for known in one], steps, fill=-1) for one in labels]
        labels = stack(each, most, fill=-1)
    padded = [x.padded(most, steps, masked=True) for x in xs]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded), weight, labels
