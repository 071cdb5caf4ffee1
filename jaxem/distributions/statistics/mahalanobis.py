"""Squared distances and moments of rows under many Gaussians: the two loops in which Gaussian EM spends its time.

Three ways through them, one answer:
- few columns: the algebra is written out, rows innermost, differences from each member's own mean (exact in float32);
- many columns: matrix products of the features 1, x, x x^T with their coefficients, half the arithmetic, used when
  every member is near enough to the common centre that nothing cancels;
- otherwise one member after the other, by matrix products of differences from its mean.
Where the columns are independent (`axial_`), the features are 1, x, x^2, and little work is not worth a matrix product.
No array of shape members x columns x rows is ever made, except a small one.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.pytree import module
from jaxem.core.summation import totals
from jaxem.distributions.statistics.moments import Moments

UNROLLED = 4
"""Up to this many columns the algebra is written out (benchmarks/RESULTS.md has the crossover)."""

AXIAL_UNROLLED = 8

SMALL = 1 << 17
"""Up to so many members x columns x rows, sums over independent columns are taken as they are."""

CANCELLATION = {4: 1e-4, 8: 1e-11}
"""By bytes of a float: the features are used while their rounding error stays below this many nats a row.

More would pass for the steps that EM takes near its end: on a collapsing component the objective was seen to fall."""


@module
class FeatureExpansion:
    """Many columns, with their features about a common centre: made once for several steps.

    Attributes:
        columns: `[D, n]`.
        centre: `[D]`, the mean of the rows.
        variance: `[D]`, their variance.
        features: `[D + D (D + 1) / 2, n]`: the columns less the centre, and their products; of independent columns
            `[D + D, n]`, them and their squares, or `[D + 1, n]`, the sum of those.
    """

    columns: Float[Array, "d n"]
    centre: Float[Array, "d"]
    variance: Float[Array, "d"]
    features: Float[Array, "f n"]


def widened(columns: Float[Array, "d n"] | FeatureExpansion) -> Float[Array, "d n"] | FeatureExpansion:
    """`columns` with their features, if they are too many to write the algebra out."""
    if isinstance(columns, FeatureExpansion) or len(columns) <= UNROLLED:
        return columns
    near, centre, variance = _centred(columns)
    return FeatureExpansion(columns, centre, variance, _features(near))


def _centred(columns: Float[Array, "d n"]) -> tuple[Array, Array, Array]:
    """Columns less their mean, the mean, and the variance, of finite cells alone."""
    finite = jnp.isfinite(columns)
    centre = jnp.mean(jnp.where(finite, columns, 0), axis=-1)
    near = columns - centre[:, None]
    return near, centre, jnp.mean(jnp.where(finite, near, 0) ** 2, axis=-1)


def plain(columns: Float[Array, "d n"] | FeatureExpansion) -> Float[Array, "d n"]:
    """The columns themselves."""
    return columns.columns if isinstance(columns, FeatureExpansion) else columns


def _rows_sum(values: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    return jnp.sum(values, axis=-1)


def _differences(columns: Array, mean: Array) -> list[Array]:
    return [linalg.lead(columns[d], mean.ndim) - mean[..., d, None] for d in range(len(columns))]


def distance(
    columns: Float[Array, "d n"] | FeatureExpansion, mean: Float[Array, "*batch d"], white: Float[Array, "*batch d d"]
) -> Float[Array, "*batch n"]:
    """The squared distance |white (x - mean)|^2 of each row from each member."""
    columns = widened(columns)
    if isinstance(columns, FeatureExpansion):
        return _products(_distance_by_features, _distance_by_member, columns, mean, white)
    size = len(columns)
    difference = _differences(columns, mean)
    z = [sum(white[..., i, j, None] * difference[j] for j in range(i + 1)) for i in range(size)]
    return sum(z_i * z_i for z_i in z)  # type: ignore[return-value]


def moments(
    columns: Float[Array, "d n"] | FeatureExpansion,
    weight: Float[Array, "*batch n"],
    mean: Float[Array, "*batch d"],
    white: Float[Array, "*batch d d"],
) -> Moments:
    """Weighted moments of the rows about each member's mean. `white` only says how wide the members are."""
    columns = widened(columns)
    if isinstance(columns, FeatureExpansion):
        rows = _rows_sum(weight)
        flat = weight.reshape(-1, weight.shape[-1])
        by_features, by_member = partial(_moments_by_features, weight=flat), partial(_moments_by_member, weight=flat)
        first, second = _products(by_features, by_member, columns, mean, white)
        return Moments(rows, rows, first, second, mean)
    size = len(columns)
    difference = _differences(columns, mean)
    weighted = [weight * d for d in difference]
    pairs = list(zip(*_pairs(size), strict=True))
    rows, *sums = totals(weight, *weighted, *(weighted[i] * difference[j] for i, j in pairs))
    lower = dict(zip(pairs, sums[size:], strict=True))
    second = [jnp.stack([lower[max(i, j), min(i, j)] for j in range(size)], axis=-1) for i in range(size)]
    return Moments(rows, rows, jnp.stack(sums[:size], axis=-1), jnp.stack(second, axis=-2), mean)


def _products(by_features, by_member, wide: FeatureExpansion, mean: Array, white: Array):
    """Run the feature form where it is accurate, else the form that is always accurate, on flat members."""
    batch, size = mean.shape[:-1], mean.shape[-1]
    mean, white = mean.reshape(-1, size), white.reshape(-1, *white.shape[len(batch) :])
    near = mean - wide.centre[None]
    if white.ndim == 2:
        farthest = jnp.max(jnp.sum((white * near) ** 2, axis=-1))
    else:
        offset = jnp.einsum("kij,kj->ki", white, near, precision=linalg.HIGHEST)
        # Where columns nearly determine each other, the terms of a distance are far larger than it.
        terms = jnp.max(jnp.sum(white * white, axis=-2) * wide.variance[None], axis=-1)
        farthest = jnp.max(jnp.sum(offset * offset, axis=-1) + terms)
    accurate = farthest * float(jnp.finfo(mean.dtype).eps) < CANCELLATION[mean.dtype.itemsize]
    result = jax.lax.cond(
        accurate,
        lambda: by_features(wide.features, near, white),
        lambda: by_member(wide.columns, mean, white),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), result)


def _pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tril_indices(size)


def _features(columns: Float[Array, "d n"]) -> Float[Array, "f n"]:
    """The features of each row: x and the products x_i x_j, j <= i."""
    i, j = _pairs(len(columns))
    return jnp.concatenate([columns, columns[i] * columns[j]])


def _distance_by_features(features: Array, mean: Array, white: Array) -> Array:
    i, j = _pairs(mean.shape[-1])
    precision = linalg.matmul(linalg.transpose(white), white)
    linear = jnp.einsum("kij,kj->ki", precision, mean, precision=linalg.HIGHEST)
    twice = np.where(i == j, 1, 2).astype(mean.dtype)[None]
    coefficients = jnp.concatenate([-2 * linear, precision[:, i, j] * twice], axis=-1)
    constant = jnp.sum(linear * mean, axis=-1)
    return linalg.matmul(coefficients, features) + constant[:, None]


def _moments_by_features(features: Array, mean: Array, white: Array, weight: Array) -> tuple[Array, Array]:
    size = mean.shape[-1]
    sums = jnp.einsum("kn,fn->kf", weight, features, precision=linalg.HIGHEST)
    i, j = _pairs(size)
    full = np.zeros((size, size), int)
    full[i, j] = full[j, i] = np.arange(len(i))
    rows = _rows_sum(weight)
    about_centre = Moments(rows, rows, sums[:, :size], sums[:, size:][:, full], jnp.zeros_like(mean))
    moved = about_centre.about(mean)
    return moved.first, moved.second


def _distance_by_member(columns: Array, mean: Array, white: Array) -> Array:
    def member(carry: None, parameters: tuple[Array, Array]) -> tuple[None, Array]:
        centre, factor = parameters
        z = linalg.matmul(factor, columns - centre[:, None])
        return carry, jnp.sum(z * z, axis=0)

    return jax.lax.scan(member, None, (mean, white))[1]


def _moments_by_member(columns: Array, mean: Array, white: Array, weight: Array) -> tuple[Array, Array]:
    def member(carry: None, parameters: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        centre, row_weight = parameters
        difference = columns - centre[:, None]
        weighted = difference * row_weight[None]
        return carry, (_rows_sum(weighted), linalg.matmul(weighted, difference.T))

    return jax.lax.scan(member, None, (mean, weight))[1]


def axially_widened(
    columns: Float[Array, "d n"] | FeatureExpansion, members: int, spherical: bool = False
) -> Array | FeatureExpansion:
    """Independent columns with their features, if matrix products pay; `spherical`: all have one variance."""
    if isinstance(columns, FeatureExpansion) or len(columns) <= AXIAL_UNROLLED or members * columns.size <= SMALL:
        return columns
    near, centre, variance = _centred(columns)
    squares = jnp.sum(near * near, axis=0, keepdims=True) if spherical else near * near
    return FeatureExpansion(columns, centre, variance, jnp.concatenate([near, squares]))


def axial_distance(
    columns: Float[Array, "d n"] | FeatureExpansion,
    mean: Float[Array, "*batch d"],
    inverse_scale: Float[Array, "*batch d"],
) -> Float[Array, "*batch n"]:
    """The squared distance sum_d ((x_d - mean_d) inverse_scale_d)^2 of each row from each member."""
    if isinstance(columns, FeatureExpansion):
        return _products(_axial_distance_by_features, _axial_distance_by_member, columns, mean, inverse_scale)
    if len(columns) <= AXIAL_UNROLLED:
        z = [d * inverse_scale[..., i, None] for i, d in enumerate(_differences(columns, mean))]
        return sum(z_i * z_i for z_i in z)  # type: ignore[return-value]
    difference = linalg.lead(columns, mean.ndim + 1) - mean[..., None]
    return jnp.sum((difference * inverse_scale[..., None]) ** 2, axis=-2)


def axial_moments(
    columns: Float[Array, "d n"] | FeatureExpansion,
    weight: Float[Array, "*batch n"],
    mean: Float[Array, "*batch d"],
    inverse_scale: Float[Array, "*batch d"],
) -> Moments:
    """Weighted moments of the rows about each member's mean, second moments on the diagonal only.

    If the features know only the sum of the squares, the second moments are its even shares. `inverse_scale` only says
    how wide the members are.
    """
    rows = _rows_sum(weight)
    if isinstance(columns, FeatureExpansion):
        flat = weight.reshape(-1, weight.shape[-1])
        by_features = partial(_axial_moments_by_features, weight=flat)
        by_member = partial(_axial_moments_by_member, weight=flat)
        first, second = _products(by_features, by_member, columns, mean, inverse_scale)
        return Moments(rows, rows, first, second, mean)
    if len(columns) <= AXIAL_UNROLLED:
        difference = _differences(columns, mean)
        weighted = [weight * d for d in difference]
        squares = [wd * d for wd, d in zip(weighted, difference, strict=True)]
        rows, *sums = totals(weight, *weighted, *squares)
        first, second = sums[: len(columns)], sums[len(columns) :]
        return Moments(rows, rows, jnp.stack(first, axis=-1), jnp.stack(second, axis=-1), mean)
    difference = linalg.lead(columns, mean.ndim + 1) - mean[..., None]
    weighted = weight[..., None, :] * difference
    return Moments(rows, rows, _rows_sum(weighted), _rows_sum(weighted * difference), mean)


def _axial_distance_by_features(features: Array, mean: Array, inverse_scale: Array) -> Array:
    precision = inverse_scale * inverse_scale
    squares = len(features) - mean.shape[-1]
    coefficients = jnp.concatenate([-2 * precision * mean, precision[:, :squares]], axis=-1)
    return linalg.matmul(coefficients, features) + jnp.sum(precision * mean * mean, axis=-1, keepdims=True)


def _axial_moments_by_features(features: Array, mean: Array, _: Array, weight: Array) -> tuple[Array, Array]:
    size = mean.shape[-1]
    sums = jnp.einsum("kn,fn->kf", weight, features, precision=linalg.HIGHEST)
    squares = sums[:, size:]
    second = jnp.broadcast_to(squares * (squares.shape[-1] / size), mean.shape)
    rows = _rows_sum(weight)
    moved = Moments(rows, rows, sums[:, :size], second, jnp.zeros_like(mean)).about(mean)
    return moved.first, moved.second


def _axial_distance_by_member(columns: Array, mean: Array, inverse_scale: Array) -> Array:
    def member(carry: None, parameters: tuple[Array, Array]) -> tuple[None, Array]:
        centre, factor = parameters
        return carry, jnp.sum(((columns - centre[:, None]) * factor[:, None]) ** 2, axis=0)

    return jax.lax.scan(member, None, (mean, inverse_scale))[1]


def _axial_moments_by_member(columns: Array, mean: Array, _: Array, weight: Array) -> tuple[Array, Array]:
    def member(carry: None, parameters: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        centre, row_weight = parameters
        difference = columns - centre[:, None]
        weighted = difference * row_weight[None]
        return carry, (_rows_sum(weighted), _rows_sum(weighted * difference))

    return jax.lax.scan(member, None, (mean, weight))[1]
