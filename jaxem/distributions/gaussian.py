"""Gaussians: full, diagonal, spherical and tied covariance.

One `_Normal` says what they share; a subclass says only what its covariance is and how scatter becomes one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.constraints import is_held, parameter, positive, positive_definite, positive_vector, vector
from jaxem.core.pytree import replace
from jaxem.data.missing import Incomplete
from jaxem.distributions import cumulative
from jaxem.distributions.base import Pullback, Rows
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import mahalanobis, quantiles
from jaxem.distributions.statistics.incomplete_gaussian import LOG_2_PI, AnyCell, Cells, Columns, Gaps, weighted_cells
from jaxem.distributions.statistics.moments import Moments, has_weight, resolution

FLOOR = {4: 1e-6, 8: 1e-8}
"""By bytes of a float: the share of a spread, or of a row, below which there is nothing to speak of, where a fit would
lose more than rounding: a column that factors explain wholly, responses that inputs separate, a state space."""


class _Normal(AnyCell):
    """Common parts of all Gaussians: a `mean` of shape `[..., D]`, and moments about it as statistics."""

    mean: Array
    given_held: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("variance", "covariance"):
            value = getattr(self, name, None)
            wanted = getattr(self, f"_{name}_shape", None)
            if value is not None and wanted is not None and value.shape != wanted:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {value.shape}; with a mean of shape "
                    f"{self.mean.shape} it must be {wanted}"
                )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.mean.shape[-1:]

    def _white(self, columns: Columns | None = None) -> Array:
        """The whitening of each member, computed once for a whole step because it takes a factorisation."""
        raise NotImplementedError

    def _log_det(self, white: Array) -> Float[Array, "*batch"]:
        """The log-determinant of the covariance of each member."""
        raise NotImplementedError

    def _distance(
        self, columns: Float[Array, "d n"] | mahalanobis.FeatureExpansion, white: Array
    ) -> Float[Array, "*batch n"]:
        """The squared Mahalanobis distance of each row from each member, if all of it was seen."""
        raise NotImplementedError

    def _log_density(self, columns: Columns, white: Array) -> Float[Array, "*batch n"]:
        log_volume = self.event_shape[0] * LOG_2_PI + self._log_det(white)
        return -0.5 * (self._distance(columns, white) + log_volume[..., None])

    def _moments(self, columns: Columns, weight: Array, white: Array) -> Moments:
        """Weight, mean and scatter of the rows about each member's mean."""
        raise NotImplementedError

    def _spread(self, second: Array, white: Array) -> Float[Array, "*batch"]:
        """The trace of covariance^-1 second, for second moments of the kind this family keeps."""
        raise NotImplementedError

    def _with(self, mean: Array, second: Array, rows: Array, least: Array) -> Self:
        """The members with this mean and this scatter (about that mean) over `rows`, no variance below `least`."""
        raise NotImplementedError

    def log_density(self, columns: Columns) -> Float[Array, "*batch n"]:
        return self.within(columns, self._log_density(columns, self._white(columns)))

    def statistics(self, x: Any, weight: Array) -> Moments:
        """Weight, mean and scatter of the rows about each member's mean; expected, where cells are missing."""
        columns = self.observe(x).columns
        return self._moments(columns, weight, self._white(columns))

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        columns = self.expand(self.observe(x)).columns
        white = self._white(columns)
        log_prob = self.within(columns, self._log_density(columns, white))
        return log_prob, lambda weight: self._moments(columns, weight, white)

    def expected_log_prob(self, statistics: Moments) -> Float[Array, "*batch"]:
        """Q: -1/2 [rows (D log 2 pi + log det covariance) + trace(covariance^-1 scatter about the mean)]."""
        moved = statistics.about(self.mean)
        white = self._white()
        log_volume = self.event_shape[0] * LOG_2_PI + self._log_det(white)
        return -0.5 * (statistics.spread_rows * log_volume + self._spread(moved.second, white))

    def m_step(self, statistics: Moments) -> Self:
        """The weighted mean and scatter; a member without rows keeps its parameters.

        mean = sum w x / sum w, unless it is held; covariance = sum w (x - mean)(x - mean)^T / sum w.
        """
        mean = self.mean if is_held(self, "mean") else statistics.mean(otherwise=self.mean)
        moved = statistics.about(mean)
        return self._with(mean, moved.second, statistics.spread_rows, statistics.least(mean))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Moments:
        """A row about the spread, narrower the more members share the data, and a hundredth of one about the mean."""
        one = self.expected_statistics()
        share = jnp.asarray(members, self.mean.dtype) ** (-2 / self.event_shape[0])
        return replace(one, rows=one.rows / 100, second=one.second * share)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls._unit(jnp.broadcast_to(row, (*members, *row.shape)))

    @classmethod
    def _unit(cls, mean: Array) -> Self:
        """Members with this mean and unit covariance."""
        raise NotImplementedError

    def centre(self) -> Array:
        return self.mean

    def columnwise(self, x: Float[Array, "n d"]) -> cumulative.Columnwise:
        """Of each column the normal distribution given those before it: whitening takes them away."""
        z, white = self._scores(x)
        at = cumulative.normal(z)
        return cumulative.Columnwise(at, at, jnp.log(white)[..., None] - 0.5 * (z * z + LOG_2_PI))

    def _scores(self, x: Float[Array, "n d"]) -> tuple[Array, Array]:
        """`[..., D, n]` each column's deviation from its mean given those before it; one over that of one unit."""
        raise NotImplementedError

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` draws from each member, `[*batch_shape, n, D]`."""
        noise = jax.random.normal(key, (*self.batch_shape, n, *self.event_shape), self.mean.dtype)
        return self.mean[..., None, :] + self._color(noise)

    def _color(self, noise: Float[Array, "*batch n d"]) -> Float[Array, "*batch n d"]:
        """Unit noise with the covariance of each member."""
        raise NotImplementedError

    def _at_zero(self, x: Any, weight: Array) -> Float[Array, "*batch d"]:
        return jnp.broadcast_to(quantiles.at_zero(*weighted_cells(self.observe(x).columns, weight)), self.mean.shape)


class _Elliptic(_Normal):
    """Gaussians with a covariance matrix."""

    covariance: Array

    def _white(self, columns: Columns | None = None) -> Array:
        return columns.whitening(self._covariances()) if isinstance(columns, Gaps) else self._whole()

    def _whole(self) -> Float[Array, "*batch d d"]:
        """The whitening of all columns."""
        return linalg.whitening(self._covariances())

    def _covariances(self) -> Float[Array, "*batch d d"]:
        return self.covariance

    def expand(self, x: Rows) -> Rows:
        """Observed data with the products of the columns, where there are many and all were seen."""
        return x if isinstance(x.columns, Gaps) else Rows(mahalanobis.widened(x.columns))

    def _log_det(self, white: Array) -> Array:
        return 2 * linalg.half_log_det(white)

    def _distance(self, columns: Array | mahalanobis.FeatureExpansion, white: Array) -> Array:
        return mahalanobis.distance(columns, self.mean, white)

    def _log_density(self, columns: Columns, white: Array) -> Array:
        return (
            columns.log_density(self.mean, white) if isinstance(columns, Gaps) else super()._log_density(columns, white)
        )

    def _moments(self, columns: Columns, weight: Array, white: Array) -> Moments:
        if isinstance(columns, Gaps):
            return columns.moments(weight, self.mean, self._covariances(), white)
        return mahalanobis.moments(columns, weight, self.mean, white)

    def completed(self, columns: Gaps, base: Array) -> Array:
        return columns.completed(base, self._covariances(), self._white(columns))

    def _spread(self, second: Array, white: Array) -> Array:
        return jnp.sum(linalg.matmul(white, second) * white, axis=(-1, -2))

    def expected_statistics(self) -> Moments:
        ones = jnp.ones_like(self.mean[..., 0])
        return Moments(ones, ones, jnp.zeros_like(self.mean), jnp.asarray(self._covariances()), self.mean)

    def floor(self, x: Any, weight: Array) -> Moments:
        """A floor without rows, which holds up ties at zero; elsewhere the M-step knows what its type resolves."""
        zero = jnp.zeros_like(self.mean[..., 0])
        scatter = linalg.diagonal_matrix(self._at_zero(x, weight))
        return Moments(zero, zero, jnp.zeros_like(self.mean), scatter, self.mean)

    def is_degenerate(self, floor: Moments) -> Array:
        """Whether the spread of some column, given those before it, is no more than rounding."""
        return lifted(self._least(), self._covariances(), self._white(), floor)

    def _least(self) -> Float[Array, "*batch d"]:
        return resolution(self.mean)

    def _scores(self, x: Float[Array, "n d"]) -> tuple[Array, Array]:
        white = linalg.lead(self._whole(), self.mean.ndim + 1)
        deviation = linalg.lead(x.T, self.mean.ndim + 1) - self.mean[..., None]
        return linalg.matmul(white, deviation), linalg.diagonal(white)

    def _color(self, noise: Array) -> Array:
        return linalg.matmul(noise, linalg.transpose(linalg.cholesky(self._covariances())))


def lifted(
    least: Float[Array, "*batch d"], covariance: Float[Array, "*batch d d"], white: Array, floor: Moments
) -> Bool[Array, "*batch"]:
    """Whether some pivot of the covariance that `white` whitens is no higher than where an M-step lifts it to."""
    pivots = linalg.diagonal(white) ** -2
    held = pivots < 2 * (least + linalg.rounding(covariance))
    return jnp.any(held | (pivots < 10 * linalg.diagonal(floor.second)), axis=-1)


@family("gaussian", "Gaussians with full covariance", reads="any", gaps=True, units="each")
class Gaussian(_Elliptic):
    """Gaussians with a covariance matrix each.

    log p(x) = -1/2 [(x - mean)^T covariance^-1 (x - mean) + log det covariance + D log 2 pi]

    Args:
        mean: `[..., D]`, in the units of x.
        covariance: `[..., D, D]`, symmetric positive definite, in squared units of x.

    Raises:
        ValueError: shapes that do not match, or a covariance that is not symmetric positive definite.

    >>> import jaxem as jem
    >>> jem.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).log_prob([[0.0, 0.0]]).round(4).tolist()
    [-1.8379]
    """

    mean: Float[Array, "*batch d"] = parameter(vector)
    covariance: Float[Array, "*batch d d"] = parameter(positive_definite)

    @property
    def _covariance_shape(self) -> tuple[int, ...]:
        return (*self.mean.shape, self.mean.shape[-1])

    @classmethod
    def _unit(cls, mean: Array) -> Self:
        eye = jnp.eye(mean.shape[-1], dtype=mean.dtype)
        return cls(mean, jnp.broadcast_to(eye, (*mean.shape, mean.shape[-1])))

    def _with(self, mean: Array, second: Array, rows: Array, least: Array) -> Self:
        some = has_weight(rows)[..., None, None]
        covariance = linalg.lifted(second / jnp.where(some, rows[..., None, None], 1), least)
        return replace(self, mean=mean, covariance=jnp.where(some, covariance, self.covariance))


@family("tied", "Gaussians that share one covariance", reads="any", gaps=True, units="each")
class TiedGaussian(_Elliptic):
    """Gaussians with means of their own and one covariance matrix, shared over the last axis of members.

    Args:
        mean: `[..., K, D]`.
        covariance: `[..., D, D]`: the mean's shape without its second-to-last axis, with D once more.

    Raises:
        ValueError: shapes that do not match, or a covariance that is not symmetric positive definite.

    >>> import jaxem as jem
    >>> jem.TiedGaussian([[0.0], [3.0]], [[1.0]]).log_prob([[3.0]]).round(4).tolist()
    [[-5.4189], [-0.9189]]
    """

    mean: Float[Array, "*batch k d"] = parameter(vector)
    covariance: Float[Array, "*batch d d"] = parameter(positive_definite)

    @property
    def _covariance_shape(self) -> tuple[int, ...]:
        return (*self.mean.shape[:-2], self.mean.shape[-1], self.mean.shape[-1])

    def _covariances(self) -> Array:
        return jnp.broadcast_to(self.covariance[..., None, :, :], (*self.mean.shape, self.mean.shape[-1]))

    def _whole(self) -> Array:
        white = linalg.whitening(self.covariance)[..., None, :, :]
        return jnp.broadcast_to(white, (*self.mean.shape, self.mean.shape[-1]))

    def _least(self) -> Array:
        # The M-step weighs the members by their rows, which are not known here.
        return jnp.broadcast_to(jnp.mean(resolution(self.mean), axis=-2, keepdims=True), self.mean.shape)

    @classmethod
    def _unit(cls, mean: Array) -> Self:
        eye = jnp.eye(mean.shape[-1], dtype=mean.dtype)
        return cls(mean, jnp.broadcast_to(eye, (*mean.shape[:-2], *eye.shape)))

    def _with(self, mean: Array, second: Array, rows: Array, least: Array) -> Self:
        total = rows.sum(-1)[..., None]
        some = has_weight(total)
        least = (rows[..., None] * least).sum(-2) / jnp.where(some, total, 1)
        covariance = linalg.lifted(second.sum(-3) / jnp.where(some, total, 1)[..., None], least)
        return replace(self, mean=mean, covariance=jnp.where(some[..., None], covariance, self.covariance))


class _Axial(_Normal):
    """Gaussians whose columns are independent: moments keep the diagonal only.

    `spherical` ones need no more of it than its sum.
    """

    spherical: ClassVar[bool] = False
    variance: Array

    def _variances(self) -> Float[Array, "*batch d"]:
        return self.variance

    def observe_incomplete(self, x: Incomplete) -> Rows:
        """Columns, and which of their cells were seen."""
        seen = ~jnp.isnan(x.values.T)
        return Rows(Cells(jnp.where(seen, x.values.T, 0), seen))

    def _white(self, columns: Columns | None = None) -> Float[Array, "*batch d"]:
        return 1 / jnp.sqrt(self._variances())

    def expand(self, x: Rows) -> Rows:
        """Observed data with the squares of the columns, where there are many and all were seen."""
        return Rows(self._widened(x.columns))

    def _widened(self, columns: Columns) -> Columns:
        if isinstance(columns, Cells):
            return columns
        return mahalanobis.axially_widened(columns, math.prod(self.batch_shape), self.spherical)

    def _log_det(self, white: Array) -> Array:
        return jnp.sum(jnp.log(self._variances()), axis=-1)

    def _distance(self, columns: Any, white: Array) -> Array:
        return mahalanobis.axial_distance(self._widened(columns), self.mean, white)

    def _log_density(self, columns: Columns, white: Array) -> Array:
        if isinstance(columns, Cells):
            return columns.log_density(self.mean, self._variances())
        return super()._log_density(columns, white)

    def _moments(self, columns: Columns, weight: Array, white: Array) -> Moments:
        if isinstance(columns, Cells):
            return columns.moments(weight, self.mean, self._variances())
        return mahalanobis.axial_moments(self._widened(columns), weight, self.mean, white)

    def completed(self, columns: Cells, base: Array) -> Array:
        return columns.completed(base)

    def _spread(self, second: Array, white: Array) -> Array:
        return jnp.sum(second / self._variances(), axis=-1)

    def expected_statistics(self) -> Moments:
        ones = jnp.ones_like(self.mean[..., 0])
        return Moments(ones, ones, jnp.zeros_like(self.mean), jnp.asarray(self._variances()), self.mean)

    def floor(self, x: Any, weight: Array) -> Moments:
        """A floor without rows, which holds up ties at zero."""
        zero = jnp.zeros_like(self.mean[..., 0])
        return Moments(zero, zero, jnp.zeros_like(self.mean), self._at_zero(x, weight), self.mean)

    def is_degenerate(self, floor: Moments) -> Array:
        """Whether the spread of some column is no more than rounding."""
        variance = self._variances()
        return jnp.any((variance < 2 * self._least(resolution(self.mean))) | (variance < 10 * floor.second), axis=-1)

    def _least(self, least: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The least variance of each column, by what would be that of each by itself."""
        return least

    def _scores(self, x: Float[Array, "n d"]) -> tuple[Array, Array]:
        white = self._white()
        return white[..., None] * (linalg.lead(x.T, self.mean.ndim + 1) - self.mean[..., None]), white

    def _color(self, noise: Array) -> Array:
        return noise * jnp.sqrt(self._variances())[..., None, :]


@family("diagonal", "Gaussians with diagonal covariance", reads="any", gaps=True, units="each")
class DiagonalGaussian(_Axial):
    """Gaussians with independent columns, each with a variance of its own.

    Args:
        mean: `[..., D]`, in the units of x.
        variance: `[..., D]`, positive, in squared units of x.

    Raises:
        ValueError: shapes that do not match, or a variance that is not positive.

    >>> import jaxem as jem
    >>> jem.DiagonalGaussian([0.0, 1.0], [1.0, 4.0]).log_prob([[0.0, 1.0]]).round(4).tolist()
    [-2.531]
    """

    mean: Float[Array, "*batch d"] = parameter(vector)
    variance: Float[Array, "*batch d"] = parameter(positive_vector)

    @property
    def _variance_shape(self) -> tuple[int, ...]:
        return self.mean.shape

    @classmethod
    def _unit(cls, mean: Array) -> Self:
        return cls(mean, jnp.ones_like(mean))

    def _with(self, mean: Array, second: Array, rows: Array, least: Array) -> Self:
        some = has_weight(rows)[..., None]
        variance = jnp.maximum(second / jnp.where(some, rows[..., None], 1), least)
        return replace(self, mean=mean, variance=jnp.where(some, variance, self.variance))


@family("spherical", "Gaussians with one variance for all columns", reads="any", gaps=True, units="one")
class SphericalGaussian(_Axial):
    """Gaussians with one variance for all columns.

    Args:
        mean: `[..., D]`, in the units of x.
        variance: `[...]`, positive, in squared units of x.

    Raises:
        ValueError: shapes that do not match, or a variance that is not positive.

    >>> import jaxem as jem
    >>> jem.SphericalGaussian([0.0, 0.0], 1.0).log_prob([[0.0, 0.0]]).round(4).tolist()
    [-1.8379]
    """

    spherical: ClassVar[bool] = True
    mean: Float[Array, "*batch d"] = parameter(vector)
    variance: Float[Array, "*batch"] = parameter(positive)

    @property
    def _variance_shape(self) -> tuple[int, ...]:
        return self.mean.shape[:-1]

    def _variances(self) -> Array:
        return jnp.broadcast_to(self.variance[..., None], self.mean.shape)

    @classmethod
    def _unit(cls, mean: Array) -> Self:
        return cls(mean, jnp.ones_like(mean[..., 0]))

    def _least(self, least: Array) -> Array:
        return jnp.mean(least, axis=-1, keepdims=True)

    def _with(self, mean: Array, second: Array, rows: Array, least: Array) -> Self:
        some = has_weight(rows)
        variance = jnp.mean(second, axis=-1) / jnp.where(some, rows, 1)
        variance = jnp.maximum(variance, self._least(least)[..., 0])
        return replace(self, mean=mean, variance=jnp.where(some, variance, self.variance))
