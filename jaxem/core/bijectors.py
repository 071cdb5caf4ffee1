"""Maps between the values of a parameter and real numbers that may be anything: array in, array out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg


class Bijector(NamedTuple):
    """`free(values, like)` are coordinates of values, and `values(free, like)` the way back.

    `like` tells what is fixed: `moves(like)`, shaped as the coordinates, says which of them move anything (None if all
    do). The others are zero. Where nothing is fixed, a value on the edge has the coordinate of the closest number
    inside. `logarithms(like)` is one for coordinates that are logarithms (of values, odds or ratios) and zero for
    others, or one number for all of them.
    """

    free: Callable[[Array, Array], Array]
    values: Callable[[Array, Array], Array]
    moves: Callable[[Array], Bool[Array, "..."] | None]
    logarithms: Callable[[Array], Array | float] = lambda like: 0.0

    def moving(self, like: Array) -> Bool[Array, "..."]:
        """Which coordinates move anything, shaped as the coordinates."""
        free = jax.eval_shape(self.free, like, like)
        inside = self.moves(like) if free.size else None
        return jnp.ones(free.shape, bool) if inside is None else inside


def _all(values: Array) -> None:
    return None


def _every(like: Array) -> float:
    return 1.0


def _undecided(probability: Array) -> Array:
    return (probability > 0) & (probability < 1)


def _inside(values: Array) -> Array:
    """What underflows is not on the edge: the closest number inside."""
    return jnp.maximum(values, jnp.finfo(values.dtype).tiny)


def _log(values: Array, like: Array) -> Array:
    values = _inside(values)
    return jnp.where(like > 0, jnp.log(jnp.where(like > 0, values, 1)), 0)


def _exp(free: Array, like: Array) -> Array:
    return jnp.where(like > 0, _inside(jnp.exp(free)), like)


def _logit(values: Array, like: Array) -> Array:
    type_ = jnp.finfo(values.dtype)
    values = jnp.minimum(jnp.maximum(values, type_.tiny), 1 - type_.epsneg)
    values = jnp.where(_undecided(like), values, 0.5)
    return jnp.where(_undecided(like), jnp.log(values) - jnp.log1p(-values), 0)


def _expit(free: Array, like: Array) -> Array:
    values = jnp.minimum(_inside(jax.nn.sigmoid(free)), 1 - jnp.finfo(free.dtype).epsneg)
    return jnp.where(_undecided(like), values, like)


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
    return jnp.where(_shared(like), ratio, 0)


def _shares(free: Array, like: Float[Array, "*batch k"]) -> Array:
    last, _ = _reference(like)
    places = linalg.lead(jnp.arange(like.shape[-1], dtype=jnp.int32), like.ndim)
    padded = jnp.concatenate([free, jnp.zeros_like(free[..., :1])], axis=-1)
    index = jnp.broadcast_to(places - (places > last).astype(jnp.int32), like.shape)
    logits = jnp.where(places == last, 0, jnp.take_along_axis(padded, index, axis=-1))
    return jnp.where(like > 0, _inside(jax.nn.softmax(jnp.where(like > 0, logits, -jnp.inf), axis=-1)), 0)


def _shared(values: Float[Array, "*batch k"]) -> Bool[Array, "*batch k-1"]:
    return jnp.take_along_axis(values, _reference(values)[1], axis=-1) > 0


def _triangle(matrix: Float[Array, "*batch d d"], like: Array) -> Array:
    factor = linalg.cholesky(matrix)
    logs = jnp.log(linalg.diagonal(factor))
    rows, columns = jnp.tril_indices(matrix.shape[-1], -1)
    return jnp.where(_spread(like), jnp.concatenate([logs, factor[..., rows, columns]], axis=-1), 0)


def _squared(free: Array, like: Float[Array, "*batch d d"]) -> Array:
    size = like.shape[-1]
    rows, columns = jnp.tril_indices(size, -1)
    free = jnp.where(_spread(like), free, 0)
    logs = jnp.where(linalg.diagonal(like) > 0, jnp.exp(free[..., :size]), 0)
    factor = linalg.diagonal_matrix(logs).at[..., rows, columns].set(free[..., size:])
    return linalg.matmul(factor, linalg.transpose(factor))


def _spread(matrix: Float[Array, "*batch d d"]) -> Array:
    """What has no variance has no covariance either."""
    some = linalg.diagonal(matrix) > 0
    rows, columns = jnp.tril_indices(matrix.shape[-1], -1)
    return jnp.concatenate([some, some[..., rows] & some[..., columns]], axis=-1)


def _of_diagonal(matrix: Float[Array, "*batch d d"]) -> Array:
    size = matrix.shape[-1]
    return (jnp.arange(size * (size + 1) // 2, dtype=jnp.int32) < size).astype(matrix.dtype)


def _turned(loadings: Float[Array, "*batch d k"]) -> tuple[Float[Array, "*batch d k"], Float[Array, "*batch k k"]]:
    """T and Q of loadings = T Q^T: a rotation Q of the factors that leaves nothing of T above its diagonal."""
    size, factors = loadings.shape[-2:]
    identity = jnp.broadcast_to(jnp.eye(factors, dtype=loadings.dtype), (*loadings.shape[:-2], factors, factors))
    both = jnp.concatenate([loadings, identity], axis=-2)
    columns = [both[..., k] for k in range(factors)]
    for i in range(min(factors, size)):
        for j in range(i + 1, factors):
            here, there = columns[i][..., i, None], columns[j][..., i, None]
            squared = here**2 + there**2
            some = squared > 0
            length = jnp.sqrt(jnp.where(some, squared, 1))
            cosine, sine = jnp.where(some, here / length, 1), jnp.where(some, there / length, 0)
            columns[i], columns[j] = (
                cosine * columns[i] + sine * columns[j],
                cosine * columns[j] - sine * columns[i],
            )
    turned = jnp.stack(columns, axis=-1)
    return turned[..., :size, :], turned[..., size:, :]


def _below(loadings: Float[Array, "*batch d k"], like: Array) -> Array:
    rows, columns = np.tril_indices(loadings.shape[-2], 0, loadings.shape[-1])
    return _turned(loadings)[0][..., rows, columns]


def _turned_back(free: Array, like: Float[Array, "*batch d k"]) -> Array:
    """In the rotation of `like`."""
    rows, columns = np.tril_indices(like.shape[-2], 0, like.shape[-1])
    lower = jnp.zeros_like(like).at[..., rows, columns].set(free)
    return linalg.matmul(lower, linalg.transpose(_turned(like)[1]))


REAL = Bijector(lambda values, like: values, lambda free, like: free, _all)
"""As it is."""
POSITIVE = Bijector(_log, _exp, lambda values: values > 0, _every)
"""Logarithms. A zero stays."""
FROM_ZERO = Bijector(
    lambda values, like: jnp.log(_inside(values)), lambda free, like: _inside(jnp.exp(free)), _all, _every
)
"""Logarithms. A zero is the smallest number above, and moves."""
UNIT_INTERVAL = Bijector(_logit, _expit, _undecided, _every)
"""Log-odds. Zero and one stay."""
SIMPLEX = Bijector(_log_ratios, _shares, _shared, _every)
"""Log-ratios to the last entry above zero. Zeros stay."""
POSITIVE_DEFINITE = Bijector(_triangle, _squared, _spread, _of_diagonal)
"""The Cholesky factor: the logarithms of its diagonal, and what is below. A variance of zero stays."""
LOADINGS = Bijector(_below, _turned_back, _all)
"""The lower triangle after a rotation of the factors, which no data can tell."""
HELD = Bijector(lambda values, like: jnp.zeros(0, values.dtype), lambda free, like: like, _all)
"""Nothing moves."""


def entries_held(base: Bijector, mask: Bool[Array, "*shape"]) -> Bijector:
    """The bijector of what is left of a parameter, of which the entries in `mask` are held.

    Of a simplex the others share what the held ones leave; a matrix that is more than its entries (a covariance) is
    held altogether or not at all.
    """
    if base is SIMPLEX:
        return _shares_left(mask)
    alike = base in (REAL, POSITIVE, FROM_ZERO, UNIT_INTERVAL)
    still = mask if alike else jnp.any(mask, axis=(-1, -2))[..., None]
    return base._replace(
        free=lambda values, like: jnp.where(still, 0, base.free(values, like)),
        values=lambda free, like: jnp.where(mask, like, base.values(free, like)),
        moves=lambda like: base.moving(like) & ~still,
    )


def _shares_left(mask: Bool[Array, "*batch k"]) -> Bijector:
    def opened(values: Array) -> tuple[Array, Array]:
        """What is not held, as shares of its sum; and that sum."""
        some = jnp.where(mask, 0, values)
        rest = jnp.sum(some, axis=-1, keepdims=True)
        return jnp.where(rest > 0, some / jnp.where(rest > 0, rest, 1), some), rest

    def values(free: Array, like: Array) -> Array:
        inside, rest = opened(like)
        return jnp.where(mask, like, rest * _shares(free, inside))

    return SIMPLEX._replace(
        free=lambda values, like: _log_ratios(opened(values)[0], opened(like)[0]),
        values=values,
        moves=lambda like: _shared(opened(like)[0]),
    )


def members_tied(base: Bijector, first: tuple[int, ...], axis: int) -> Bijector:
    """The bijector of a parameter that members share: each along `axis` has the value of the member `first` of it."""

    def own(free: Array) -> Array:
        places = np.arange(len(first)) == np.asarray(first)
        return jnp.asarray(places).reshape(-1, *(1 for _ in range(free.ndim - axis - 1)))

    def spread(array: Array) -> Array:
        return jnp.take(array, np.asarray(first, np.int32), axis=axis)

    def free(values: Array, like: Array) -> Array:
        found = base.free(values, like)
        return jnp.where(own(found), found, 0)

    def moves(like: Array) -> Array:
        inside = base.moving(like)
        return inside & own(inside)

    return base._replace(
        free=free, values=lambda free, like: spread(base.values(spread(free), spread(like))), moves=moves
    )
