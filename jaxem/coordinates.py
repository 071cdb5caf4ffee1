"""Unconstrained coordinates of a model: one real number for each free number that it holds.

Each constraint has a pair of functions for it; a model's coordinates are those of its parameters. What sits on the edge
of its set for good (a weight of zero, a probability of one) stays out: its coordinate is zero and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem import constraints, linalg
from jaxem.constraints import Constraint

Coordinates = list[Array]


class Chart(NamedTuple):
    """`free(values, like)` are coordinates of values, and `values(free, like)` the way back.

    `like` tells what is fixed. Where it is not, a value on the edge has the coordinate of the closest number inside.
    """

    free: Callable[[Array, Array], Array]
    values: Callable[[Array, Array], Array]


def _undecided(probability: Array) -> Array:
    return (probability > 0) & (probability < 1)


def _log(values: Array, like: Array) -> Array:
    values = jnp.maximum(values, jnp.finfo(values.dtype).tiny)
    return jnp.where(like > 0, jnp.log(jnp.where(like > 0, values, 1)), 0)


def _exp(free: Array, like: Array) -> Array:
    return jnp.where(like > 0, jnp.exp(free), like)


def _logit(values: Array, like: Array) -> Array:
    type_ = jnp.finfo(values.dtype)
    values = jnp.minimum(jnp.maximum(values, type_.tiny), 1 - type_.epsneg)
    values = jnp.where(_undecided(like), values, 0.5)
    return jnp.where(_undecided(like), jnp.log(values) - jnp.log1p(-values), 0)


def _expit(free: Array, like: Array) -> Array:
    return jnp.where(_undecided(like), jax.nn.sigmoid(free), like)


def _reference(values: Array) -> tuple[Array, Array]:
    """The last entry above zero, against which the others are measured; and where those stand, `[..., K - 1]`."""
    places = linalg.lead(jnp.arange(values.shape[-1], dtype=jnp.int32), values.ndim)
    last = jnp.max(jnp.where(values > 0, places, 0), axis=-1, keepdims=True)
    others = places[..., :-1]
    return last, others + (others >= last).astype(jnp.int32)


def _log_ratios(values: Float[Array, "*batch k"], like: Float[Array, "*batch k"]) -> Array:
    last, others = _reference(like)
    logs = _log(values, like)
    ratio = jnp.take_along_axis(logs, others, axis=-1) - jnp.take_along_axis(logs, last, axis=-1)
    return jnp.where(jnp.take_along_axis(like, others, axis=-1) > 0, ratio, 0)


def _shares(free: Array, like: Float[Array, "*batch k"]) -> Array:
    last, _ = _reference(like)
    places = linalg.lead(jnp.arange(like.shape[-1], dtype=jnp.int32), like.ndim)
    padded = jnp.concatenate([free, jnp.zeros_like(free[..., :1])], axis=-1)
    index = jnp.broadcast_to(places - (places > last).astype(jnp.int32), like.shape)
    logits = jnp.where(places == last, 0, jnp.take_along_axis(padded, index, axis=-1))
    return jax.nn.softmax(jnp.where(like > 0, logits, -jnp.inf), axis=-1)


def _triangle(matrix: Float[Array, "*batch d d"], like: Array) -> Array:
    factor = linalg.cholesky(matrix)
    logs = jnp.log(linalg.diagonal(factor))
    rows, columns = jnp.tril_indices(matrix.shape[-1], -1)
    return jnp.concatenate([logs, factor[..., rows, columns]], axis=-1)


def _squared(free: Array, like: Float[Array, "*batch d d"]) -> Array:
    size = like.shape[-1]
    rows, columns = jnp.tril_indices(size, -1)
    factor = linalg.diagonal_matrix(jnp.exp(free[..., :size])).at[..., rows, columns].set(free[..., size:])
    return linalg.matmul(factor, linalg.transpose(factor))


REAL = Chart(lambda values, like: values, lambda free, like: free)
POSITIVE = Chart(_log, _exp)
CHARTS: dict[Constraint, Chart] = {
    constraints.real: REAL,
    constraints.vector: REAL,
    constraints.matrix: REAL,
    constraints.loadings: REAL,
    constraints.positive: POSITIVE,
    constraints.positive_vector: POSITIVE,
    constraints.non_negative: POSITIVE,
    constraints.unit_interval: Chart(_logit, _expit),
    constraints.simplex: Chart(_log_ratios, _shares),
    constraints.positive_definite: Chart(_triangle, _squared),
    constraints.held: Chart(lambda values, like: jnp.zeros(0, values.dtype), lambda free, like: like),
}


def coordinates(model: Any, like: Any = None) -> Coordinates:
    """Coordinates of every parameter of a model, in the order of its leaves.

    Logarithms of what is positive, log-ratios to the last entry of a simplex, the Cholesky factor of a covariance with
    the logarithm of its diagonal.

    Args:
        model: any.
        like: a model of the same structure that tells what is fixed; the model itself if left out.

    >>> import jaxem as jem
    >>> [c.shape for c in coordinates(jem.Mixture([0.2, 0.8], jem.Gaussian([[0.0], [1.0]], [[[1.0]], [[2.0]]])))]
    [(1,), (2, 1), (2, 1)]
    """
    fixing = constraints.leaves(model if like is None else like)
    each = zip(constraints.leaves(model), fixing, strict=True)
    return [CHARTS[limit].free(values, old) for (_, limit, values), (_, _, old) in each]


def from_coordinates(free: Coordinates, like: Any) -> Any:
    """The model with these coordinates: the inverse of `coordinates`.

    Args:
        free: coordinates.
        like: a model of that structure; what is fixed in it stays as it is.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.2, 0.8], jem.Poisson([1.0, 2.0]))
    >>> bool(abs(from_coordinates(coordinates(model), model).components.rate - model.components.rate).max() < 1e-6)
    True
    """
    leaves = constraints.leaves(like)
    values = [CHARTS[limit].values(one, old) for one, (_, limit, old) in zip(free, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), values)
