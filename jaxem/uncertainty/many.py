"""Standard errors of thousands of fits: problems of few shapes, in batches of constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.core.arguments import whole
from jaxem.core.coordinates import flat
from jaxem.data.problems import as_problems
from jaxem.data.sequences import Sequences
from jaxem.distributions.base import Labelled, check_model
from jaxem.fitting.checks import check_labelled, check_prior
from jaxem.fitting.many.batching import Batch, batched, some
from jaxem.fitting.many.device import member
from jaxem.fitting.result import Fit
from jaxem.io.progress import reported
from jaxem.uncertainty.compute import check_count, checked_kind, clusters, compute
from jaxem.uncertainty.information import WIDTH, Plan
from jaxem.uncertainty.value import Uncertainty

BYTES = 1 << 27
"""Bytes of the derivatives of one batch, about: what is held at a time does not grow with the number of problems."""


def uncertainty_many(
    models_or_fits: Any,
    xs: Any,
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    kind: str | None = None,
    cluster: Any = None,
    weights: str = "frequency",
    polish: int = 2,
    progress: bool | Callable[[int, int], None] = False,
    devices: Sequence[Any] | None = None,
) -> Uncertainty:
    """Standard errors of B fitted models, each on its own rows.

    Args:
        models_or_fits: what `fit_many` returned, or models of `batch_shape` (B,).
        xs, weight, prior, labels: exactly what `fit_many` was given.
        kind, weights, polish: as in `uncertainty`.
        cluster: for each problem as in `uncertainty`.
        progress: as in `fit_many`.
        devices: one device on which to work; the default device if left out.

    Returns:
        An `Uncertainty` whose fields have a leading axis B, in the order given. A problem without a regular maximum
        changes no other.

    Raises:
        TypeError, ValueError: as `uncertainty` and `fit_many`; a problem with fewer rows than parameters for a sandwich
            is named by its index.

    >>> import jax, jaxem as jem
    >>> xs = [jax.numpy.array([0.0, 1.0, 3.0, 4.0]), jax.numpy.array([2.0, 4.0])]
    >>> errors = jem.uncertainty_many(jem.fit_many(jem.Poisson([1.0, 1.0]), xs), xs)
    >>> errors.model.rate.tolist(), errors.standard_error.rate.round(3).tolist()
    ([2.0, 3.0], [0.707, 1.225])
    """
    models = models_or_fits.model if isinstance(models_or_fits, Fit) else models_or_fits
    check_model(models, xs, "models")
    if len(models.batch_shape) != 1:
        raise ValueError(f"models has batch shape {models.batch_shape}; it must be (problems,)")
    kind, polish = checked_kind(kind, weights, cluster), whole(polish, "polish", 0)
    problems = models.batch_shape[0]
    first = member(models, 0)
    check_labelled(first, labels)
    check_prior(prior)
    xs, weight, labels = as_problems(xs, weight, labels, problems, first.read)
    device = (devices or [None])[0]
    parts, order, done = [], [], set[int]()
    with reported(progress, "standard errors") as tell, jax.default_device(device):
        for batch in batched(first, xs, weight, labels, 1):
            groups, codes = _clusters(cluster, batch)
            plan = Plan(kind, weights == "sampling", groups, polish)
            size = _together(first, batch, len(batch.index))
            for start in range(0, len(batch.index), size):
                # The last one reaches back, so that all have one shape.
                start = max(0, min(start, len(batch.index) - size))
                which = np.arange(start, start + size)
                rows = some(batch, which)
                mine = None if codes is None else jnp.asarray(codes[which])
                found = _each(member(models, rows.index), rows.x, rows.weight, rows.labels, prior, mine, plan)
                _check_counts(found, rows, mine)
                parts.append(jax.device_get(found))
                order.append(rows.index)
                done.update(rows.index.tolist())
                if tell is not None:
                    tell(len(done), problems)
    place = np.unique(np.concatenate(order), return_index=True)[1]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[place]), *parts)


@partial(jax.jit, static_argnames="plan")
def _each(
    models: Any, x: Any, weight: Array, labels: Array | None, prior: Any, cluster: Array | None, plan: Plan
) -> Uncertainty:
    def one(model: Any, x: Any, weight: Array, labels: Array | None, cluster: Array | None) -> Uncertainty:
        data = x if labels is None else Labelled(x, labels)
        return compute(model, data, weight, prior, cluster, plan)

    axes = (0, 0, 0, None if labels is None else 0, None if cluster is None else 0)
    return jax.vmap(one, in_axes=axes)(models, x, weight, labels, cluster)


def _together(model: Any, batch: Batch, problems: int) -> int:
    """How many problems are worked on at a time."""
    tangents = min(WIDTH, jax.eval_shape(lambda model: flat(model)[0], model).size) + 1
    rows = batch.weight.shape[1] * (batch.x.values.shape[2] if isinstance(batch.x, Sequences) else 1)
    bytes_each = 4 * tangents * rows * model.work_per_row * np.dtype(batch.weight.dtype).itemsize
    return max(1, min(problems, BYTES // max(1, bytes_each)))


def _clusters(cluster: Any, batch: Batch) -> tuple[int, np.ndarray | None]:
    """The largest number of clusters of a problem, and clusters of each; rows of padding are in the first."""
    if cluster is None:
        return 0, None
    codes = np.zeros(batch.weight.shape, np.int32)
    most = 1
    for k, problem in enumerate(batch.index):
        mine = np.asarray(cluster[problem])
        found, groups = clusters(mine, len(mine))
        codes[k, : len(mine)] = np.asarray(found)
        most = max(most, groups)
    return most, codes


def _check_counts(errors: Uncertainty, batch: Batch, cluster: Array | None) -> None:
    if errors.kind == "observed":
        return
    for k, problem in enumerate(batch.index):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], errors)
        try:
            check_count(one, batch.weight[k], None if cluster is None else cluster[k])
        except ValueError as error:
            raise ValueError(f"xs[{int(problem)}]: {error}") from None
