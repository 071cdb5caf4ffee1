"""Few hidden factors behind many columns: a covariance of low rank and a diagonal, never formed.

With M = 1 + loadings^T noise^-1 loadings (F x F), the factors of a row are expected at f = M^-1 loadings^T noise^-1
(x - mean), its distance is that of x from mean + loadings f, and of f from zero (a sum of squares, of which nothing
cancels), and the log-determinant of the covariance is log det noise + log det M (Woodbury). Columns that were not seen
are left out of every sum over columns, so there is an M for each pattern of seen columns.
"""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import loadings, parameter, positive, positive_vector, vector
from jaxem.core.linalg import HIGHEST, matmul, transpose
from jaxem.core.pytree import module, replace
from jaxem.distributions import cumulative
from jaxem.distributions.base import Rows, add, as_rows, scale
from jaxem.distributions.gaussian import FLOOR, Gaussian
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import mahalanobis, quantiles
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.incomplete_gaussian import (
    LOG_2_PI,
    AnyCell,
    Columns,
    Gaps,
    in_patterns,
    weighted_cells,
)
from jaxem.distributions.statistics.moments import has_weight, resolution

WARM = 5
"""Steps of EM in which a start finds where its factors point: on all rows together, and on those of each member."""


@module
class Regressions(Referenced):
    """Sums for the regression of every column on g = (factors, 1), about the coefficients `reference`.

    With the residuals e = x - reference g; expected, as the factors are hidden.

    Attributes:
        rows: `[...]` sum of w.
        gram: `[..., F + 1, F + 1]` sum of w E[g g^T]. A prior may set its last entry, the rows that speak about the
            mean, apart from `rows`.
        cross: `[..., D, F + 1]` sum of w E[e g^T].
        second: `[..., D]` sum of w E[e^2].
        reference: `[..., D, F + 1]`, loadings and mean.
    """

    sums = ("rows", "gram", "cross", "second")

    rows: Array
    gram: Array
    cross: Array
    second: Array
    reference: Array

    def about(self, reference: Float[Array, "*batch d g"]) -> Self:
        """The statistics of the same rows about other coefficients."""
        shift = reference - self.reference
        moved = matmul(shift, self.gram)
        second = self.second - jnp.sum(shift * (2 * self.cross - moved), axis=-1)
        return replace(self, cross=self.cross - moved, second=second, reference=reference)

    def best(self, otherwise: Float[Array, "*batch d g"]) -> tuple[Array, Array]:
        """The coefficients of least squares (`otherwise` without rows), and what they leave of each column."""
        some = has_weight(self.rows)[..., None, None]
        rows = jnp.where(some, self.rows[..., None, None], 1)
        identity = linalg.lead(jnp.eye(self.gram.shape[-1], dtype=self.gram.dtype), self.gram.ndim)
        white = linalg.whitening(jnp.where(some, self.gram / rows, identity))
        shift = matmul(matmul(self.cross / rows, transpose(white)), white)
        reference = jnp.where(some, self.reference + shift, otherwise)
        second = self.about(reference).second
        # What is less than moving may have lost is not known to be above zero.
        lost = 8 * float(jnp.finfo(second.dtype).eps) * jnp.sum(shift * matmul(shift, self.gram), axis=-1)
        return reference, jnp.maximum(second, lost)


class _Factors(AnyCell):
    """Common parts of both families: all but the noise."""

    mean: Array
    loadings: Array
    noise: Array

    def __post_init__(self) -> None:
        super().__post_init__()
        shape, noise = self.mean.shape, self._pooled(self.mean).shape
        if self.loadings.shape[:-1] != shape or self.noise.shape != noise:
            raise ValueError(
                f"{type(self).__name__}: loadings has shape {self.loadings.shape} and noise {self.noise.shape}; with a "
                f"mean of shape {shape} they must be {(*shape, 'F')} and {noise}"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.mean.shape[-1:]

    def coincides(self) -> Array:
        """Whether a factor moves nothing: from loadings of zero EM finds none, whatever the data."""
        least = 64 * float(jnp.finfo(self.noise.dtype).eps) * jnp.sqrt(self._variances())
        return jnp.any(jnp.all(jnp.abs(self.loadings) <= least[..., None], axis=-2), axis=-1)

    @property
    def factors(self) -> int:
        """The number of factors."""
        return self.loadings.shape[-1]

    @property
    def covariance(self) -> Float[Array, "*batch d d"]:
        """The covariance loadings loadings^T + noise, `[..., D, D]`. No fit forms it."""
        return matmul(self.loadings, transpose(self.loadings)) + linalg.diagonal_matrix(self._variances())

    @staticmethod
    def _pooled(columns: Float[Array, "*batch d"]) -> Array:
        """One number for each column, as the noise has them."""
        raise NotImplementedError

    @staticmethod
    def _per_column(noise: Array, shape: tuple[int, ...]) -> Float[Array, "*batch d"]:
        """An array shaped like the noise, spread over the columns."""
        raise NotImplementedError

    def _variances(self) -> Float[Array, "*batch d"]:
        """The noise of each column."""
        return self._per_column(self.noise, self.mean.shape)

    def _coefficients(self) -> Float[Array, "*batch d g"]:
        return jnp.concatenate([self.loadings, self.mean[..., None]], axis=-1)

    def _posterior(self, gaps: Gaps) -> tuple[Array, Array]:
        """`[..., P, F, F]`, what whitens M for each pattern, and M^-1, the covariance of the factors given a row."""
        seen, scaled = gaps.blocks.seen.astype(self.mean.dtype), self.loadings / self._variances()[..., None]
        gram = jnp.einsum("pd,...df,...dg->...pfg", seen, self.loadings, scaled, precision=HIGHEST)
        identity = linalg.lead(jnp.eye(self.factors, dtype=self.mean.dtype), gram.ndim)
        white = linalg.whitening(identity + gram)
        return white, matmul(transpose(white), white)

    def _each(self, function: Any, gaps: Gaps, base: Array, inverse: Array, *others: Array) -> Any:
        """`function(residuals [D, m], factors [F, m], ...)` of each member, for all places in blocks.

        Args:
            function: what to make of each member.
            gaps: the rows.
            base: `[..., D]`, or `[..., D, n]` for each row: what they deviate from.
            inverse: `[..., P, F, F]`, M^-1.
            others: more arguments of `function`, members first.
        """

        def member(own: tuple[Array, ...]) -> Any:
            base, weights, noise, inverse, *rest = own
            difference, scaled = gaps.deviation(base), transpose(weights / noise[:, None])
            factors = gaps.projected(inverse, scaled, difference)
            return function(gaps.masked(difference - matmul(weights, factors)), factors, *rest)

        batch = self.batch_shape
        arrays = (base, self.loadings, self._variances(), inverse, *others)
        flat = tuple(array.reshape(-1, *array.shape[len(batch) :]) for array in arrays)
        # One after the other: all at once would be members x columns x rows, and was no faster where that is little.
        return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), jax.lax.map(member, flat))

    def log_density(self, columns: Columns) -> Float[Array, "*batch n"]:
        def distance(residuals: Array, factors: Array, noise: Array) -> Array:
            return jnp.sum(residuals**2 / noise[:, None], axis=0) + jnp.sum(factors**2, axis=0)

        gaps, noise = in_patterns(columns), self._variances()
        white, inverse = self._posterior(gaps)
        distances = gaps.of_places(self._each(distance, gaps, self.mean, inverse, noise))
        seen = gaps.blocks.seen.astype(noise.dtype)
        log_volume = matmul(LOG_2_PI + jnp.log(noise), seen.T) + 2 * linalg.half_log_det(white)
        return self.within(columns, -0.5 * (distances + gaps.of_row(log_volume)))

    def statistics(self, x: Any, weight: Array) -> Regressions:
        """The sums of a regression on the expected factors, and what their uncertainty, and that of gaps, adds."""

        def sums(residuals: Array, factors: Array, weight: Array) -> tuple[Array, ...]:
            known = jnp.concatenate([factors, jnp.ones_like(factors[:1])])
            weighted = weight.reshape(1, -1) * known
            second = jnp.sum(weight.reshape(1, -1) * residuals**2, axis=-1)
            return matmul(weighted, known.T), matmul(residuals, weighted.T), second

        gaps = in_patterns(self.observe(x).columns)
        _, inverse = self._posterior(gaps)
        gram, cross, second = self._each(sums, gaps, self.mean, inverse, gaps.mask_weight(weight))
        rows, seen = gaps.rows(weight), gaps.blocks.seen.astype(weight.dtype)
        open_ = rows[..., None, None] * inverse
        spread = jnp.einsum("...df,pd,...pfg->...dg", self.loadings, seen, open_, precision=HIGHEST)
        unseen = matmul(rows, 1 - seen) * self._variances()
        return Regressions(
            rows=jnp.sum(rows, axis=-1),
            gram=gram.at[..., :-1, :-1].add(jnp.sum(open_, axis=-3)),
            cross=cross.at[..., :-1].add(-spread),
            second=second + jnp.sum(spread * self.loadings, axis=-1) + unseen,
            reference=self._coefficients(),
        )

    def centre(self) -> Array:
        return self.mean

    def completed(self, columns: Gaps, base: Array) -> Array:
        return base + matmul(self.loadings, self._factors(columns, base))

    def _factors(self, columns: Columns, base: Array) -> Float[Array, "*batch f n"]:
        """The expected factors of each row, from its deviation from `base`."""
        gaps = in_patterns(columns)
        _, inverse = self._posterior(gaps)
        return gaps.of_places(self._each(lambda residuals, factors: factors, gaps, base, inverse))

    def expected_statistics(self) -> Regressions:
        ones, reference = jnp.ones_like(self.mean[..., 0]), self._coefficients()
        gram = linalg.diagonal_matrix(jnp.ones_like(reference[..., 0, :]))
        return Regressions(ones, gram, jnp.zeros_like(reference), self._variances(), reference)

    def expected_log_prob(self, statistics: Regressions) -> Float[Array, "*batch"]:
        """Q: -1/2 [rows (D log 2 pi + log det noise) + sum of squared residuals / noise]."""
        noise = self._variances()
        log_volume = self.event_shape[0] * LOG_2_PI + jnp.sum(jnp.log(noise), axis=-1)
        squares = jnp.sum(statistics.about(self._coefficients()).second / noise, axis=-1)
        return -0.5 * (statistics.rows * log_volume + squares)

    def m_step(self, statistics: Regressions) -> Self:
        """Loadings and mean by one regression, the noise from what it leaves; a member without rows keeps its own."""
        reference, second = statistics.best(otherwise=self._coefficients())
        some = has_weight(statistics.rows)
        noise = second / jnp.where(some, statistics.rows, 1)[..., None]
        mean, loadings = reference[..., -1], reference[..., :-1]
        noise = jnp.maximum(self._pooled(noise), self._pooled(_least(mean, loadings, noise)))
        noise = jnp.where(some.reshape(*some.shape, *(1,) * (noise.ndim - some.ndim)), noise, self.noise)
        return replace(self, mean=mean, loadings=loadings, noise=noise)

    def transform(self, x: Any) -> Float[Array, "*batch n f"]:
        """The expected factors of each row, `[*batch_shape, n, F]`.

        Args:
            x: `[n, D]` rows.
        """
        return _transform(self, self.observe(x))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Regressions:
        """A row about the spread, narrower the more members share the data, and a hundredth of one about the mean."""
        one = self.expected_statistics()
        share = jnp.asarray(members, self.mean.dtype) ** (-2 / self.event_shape[0])
        reference = one.reference.at[..., :-1].multiply(jnp.sqrt(share))
        gram = one.gram.at[..., -1, -1].divide(100)
        return replace(one, gram=gram, second=one.second * share, reference=reference)

    def floor(self, x: Any, weight: Array) -> Regressions:
        """A floor without rows, which holds up ties at zero."""
        nothing, rows = self.expected_statistics() * 0, self.observe(x)
        variance = quantiles.at_zero(*weighted_cells(rows.columns, weight))
        return replace(nothing, second=jnp.broadcast_to(variance, self.mean.shape))

    def is_degenerate(self, floor: Regressions) -> Array:
        """Whether the noise of some column is where only the floor holds it (a Heywood case)."""
        noise = self._variances()
        least = self._per_column(self._pooled(_least(self.mean, self.loadings, noise)), noise.shape)
        return jnp.any((noise < 10 * least) | (noise < 10 * floor.second), axis=-1)

    @classmethod
    def start(cls, x: Any, weight: Float[Array, "*batch n"], **sizes: int) -> Self:
        """Members fitted to weighted rows, from what fits all rows together.

        Args:
            x: `[n, D]` rows.
            weight: `[..., n]`: a member for each leading index. Each sees a tenth of a row more, typical of all rows
                together; a member without rows is just that.
            sizes: `factors`, how many.
        """
        x = as_rows(x, np.shape(x)[1:] or (1,), weight.dtype)
        everything = weight.reshape(-1, weight.shape[-1]).sum(0)
        row = x[jnp.argmax(everything)]
        moments = mahalanobis.axial_moments(x.T, everything, row, jnp.ones_like(row))
        mean = moments.mean(otherwise=row)
        directions = jax.random.normal(jax.random.key(0), (len(row), sizes["factors"]), weight.dtype)
        model = cls(mean, directions, cls._pooled(jnp.ones_like(row)))  # type: ignore[call-arg]
        rows, floor = model.observe(x), model.floor(x, everything)
        # Half of each variance is common, in directions that have nothing to do with each other: EM turns them.
        variance = moments.about(mean).second / jnp.where(has_weight(moments.rows), moments.rows, 1)
        half = cls._pooled(variance + floor.second) / 2
        spread = jnp.sqrt(cls._per_column(half, row.shape) / jnp.sum(directions**2, axis=-1))
        model = replace(model, loadings=directions * spread[:, None], noise=half)

        def warm(model: Self, weight: Array, pseudo: Regressions) -> Self:
            def step(_: Array, model: Self) -> Self:
                statistics = add(model.e_step(rows)[1](weight), pseudo)
                return model.m_step(statistics)._standardized(statistics)

            return jax.lax.fori_loop(0, WARM, step, model)

        model = warm(model, everything, floor)
        typical = add(scale(model.unit_prior(1, rows, everything), 0.1), floor)
        members = weight.shape[:-1]
        model, typical = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*members, *leaf.shape)), (model, typical))
        return warm(model, weight, typical)

    def _standardized(self, statistics: Regressions) -> Self:
        """The members with the factors standardised: their mean and spread moved to the mean and the loadings.

        Far from a maximum they are not zero and one, as the model says; EM takes many steps to see it (Liu, Rubin and
        Wu 1998: parameter expansion).
        """
        some = has_weight(statistics.rows)[..., None]
        rows, told = (jnp.where(some, n[..., None], 1) for n in (statistics.rows, statistics.gram[..., -1, -1]))
        first, second = statistics.gram[..., :-1, -1], statistics.gram[..., :-1, :-1]
        mean = first / told
        spread = linalg.cholesky((second - linalg.outer(first, mean)) / rows[..., None])
        moved = self.mean + matmul(self.loadings, mean[..., None])[..., 0]
        return replace(self, mean=moved, loadings=matmul(self.loadings, spread))

    def columnwise(self, x: Float[Array, "n d"]) -> cumulative.Columnwise:
        """Those of the Gaussian with this covariance."""
        return Gaussian(self.mean, self.covariance).columnwise(x)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` draws from each member, `[*batch_shape, n, D]`."""
        hidden, own = jax.random.split(key)
        factors = jax.random.normal(hidden, (*self.batch_shape, n, self.factors), self.mean.dtype)
        noise = jax.random.normal(own, (*self.batch_shape, n, *self.event_shape), self.mean.dtype)
        common = self.mean[..., None, :] + matmul(factors, transpose(self.loadings))
        return common + noise * jnp.sqrt(self._variances())[..., None, :]


def _least(mean: Array, loadings: Array, noise: Array) -> Float[Array, "*batch d"]:
    """The noise of each column below which there is none to speak of: `FLOOR` of its variance.

    A column without noise would be the factors themselves, and drown what the other columns say of them.
    """
    return resolution(mean) + FLOOR[mean.dtype.itemsize] * (jnp.sum(loadings**2, axis=-1) + noise)


@jax.jit
def _transform(model: _Factors, rows: Rows) -> Array:
    return transpose(model._factors(rows.columns, model.mean))


@family("factor_analysis", "factor analysis", reads="all", gaps=True, units="each")
class FactorAnalysis(_Factors):
    """Factor analysis: columns that share a few hidden factors, each with noise of its own.

    x = mean + loadings f + e, f ~ Normal(0, 1), e ~ Normal(0, diag(noise)): a Gaussian of covariance
    loadings loadings^T + diag(noise). Data tell the loadings up to a rotation of the factors.

    Args:
        mean: `[..., D]`, in the units of x.
        loadings: `[..., D, F]`, in the units of x.
        noise: `[..., D]`, positive variances, in squared units of x.

    Raises:
        ValueError: shapes that do not match, or a noise that is not above zero.

    Rubin and Thayer 1982, Psychometrika 47:69; as components of a mixture: Ghahramani and Hinton 1996. EM is slow here:
    `jem.SQUAREM(jem.EM())` takes far fewer steps.

    >>> import jaxem as jem
    >>> model = jem.FactorAnalysis([0.0, 0.0], [[1.0], [1.0]], [1.0, 1.0])
    >>> model.log_prob([[0.0, 0.0]]).round(4).tolist(), model.transform([[3.0, 3.0]]).round(4).tolist()
    ([-2.3872], [[2.0]])
    """

    mean: Float[Array, "*batch d"] = parameter(vector)
    loadings: Float[Array, "*batch d f"] = parameter(loadings)
    noise: Float[Array, "*batch d"] = parameter(positive_vector)

    @staticmethod
    def _pooled(columns: Array) -> Array:
        return columns

    @staticmethod
    def _per_column(noise: Array, shape: tuple[int, ...]) -> Array:
        return noise


@family("ppca", "probabilistic principal components", reads="all", gaps=True, units="one")
class PPCA(_Factors):
    """Probabilistic principal components: factor analysis with the same noise in all columns.

    x = mean + loadings f + e, f ~ Normal(0, 1), e ~ Normal(0, noise). At the maximum the loadings span the leading
    principal components, and the noise is the mean of the variances of the others.

    Args:
        mean: `[..., D]`, in the units of x.
        loadings: `[..., D, F]`, in the units of x.
        noise: `[...]`, one positive variance, in squared units of x.

    Raises:
        ValueError: shapes that do not match, or a noise that is not above zero.

    Tipping and Bishop 1999, JRSS B 61:611.

    >>> import jaxem as jem
    >>> jem.PPCA([0.0, 0.0], [[1.0], [1.0]], 1.0).log_prob([[0.0, 0.0]]).round(4).tolist()
    [-2.3872]
    """

    mean: Float[Array, "*batch d"] = parameter(vector)
    loadings: Float[Array, "*batch d f"] = parameter(loadings)
    noise: Float[Array, "*batch"] = parameter(positive)

    @staticmethod
    def _pooled(columns: Array) -> Array:
        return jnp.mean(columns, axis=-1)

    @staticmethod
    def _per_column(noise: Array, shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(noise[..., None], shape)
