"""Gamma and inverse Gaussian: a mean and a dispersion."""

from __future__ import annotations

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive
from jaxem.core.double_double import quotient_words
from jaxem.core.pytree import replace
from jaxem.core.root_finding import root
from jaxem.core.special import log_minus_digamma, stirling
from jaxem.core.summation import totals
from jaxem.distributions import cumulative
from jaxem.distributions.positive import Positive
from jaxem.distributions.registry import family
from jaxem.distributions.statistics.log_ratios import InverseRatios, LogRatios, PositiveColumns, Ratios
from jaxem.distributions.statistics.moments import has_weight, resolution


class _Dispersed(Positive):
    """Common parts of gamma and inverse Gaussian: a mean, and the spread in units of it."""

    shape: Array

    def _divergence(self, columns: PositiveColumns) -> tuple[Array, Array]:
        """x / mean - 1, and the divergence of that ratio: each `[..., n]`."""
        raise NotImplementedError

    def _ratios(self, rows: Array, first: Array, second: Array) -> Ratios:
        """Statistics about the mean."""
        raise NotImplementedError

    def _with(self, mean: Array, spread: Array) -> Self:
        """Members with this mean and this mean divergence from it."""
        raise NotImplementedError

    def statistics(self, x: Any, weight: Array) -> Ratios:
        """The rows, their ratio to each member's mean, and their divergence from it."""
        columns = self.observe(x).columns
        weight = jnp.where(linalg.lead(columns.inside, weight.ndim), weight, 0)
        first, second = self._divergence(columns)
        return self._ratios(*totals(weight, weight * first, weight * second))

    def m_step(self, statistics: Ratios) -> Self:
        """The weighted mean and the spread about it; a member without rows keeps its parameters."""
        mean = statistics.mean(otherwise=self.centre())
        new, some = self._with(mean, statistics.spread(mean)), has_weight(statistics.rows)
        return jax.tree.map(lambda a, b: jnp.where(some, a, b), new, self)

    def floor(self, x: Any, weight: Array) -> Ratios:
        """A floor without rows: the divergence of numbers that differ by rounding."""
        zero = jnp.zeros_like(self.shape)
        return self._ratios(zero, zero, resolution(jnp.ones_like(zero)))

    def is_degenerate(self, floor: Any) -> Array:
        """Whether the spread is no more than rounding."""
        return self.expected_statistics().second < 10 * floor.second


@family("gamma", "gamma numbers")
class Gamma(_Dispersed):
    """The gamma family: positive numbers with a mean and a coefficient of variation.

    log p(x) = shape log rate - log Gamma(shape) + (shape - 1) log x - rate x; the mean is shape / rate.

    Args:
        shape: `[...]`, positive: one over the squared coefficient of variation.
        rate: `[...]`, positive, in one over the units of x.

    Raises:
        ValueError: a shape or a rate that is not above zero.

    >>> import jaxem as jem
    >>> jem.Gamma(2.0, 0.5).log_prob([1.0, 4.0]).round(4).tolist()
    [-1.8863, -2.0]
    """

    shape: Float[Array, "*batch"] = parameter(positive)
    rate: Float[Array, "*batch"] = parameter(positive)

    def centre(self) -> Array:
        return self.shape / self.rate

    def _divergence(self, columns: PositiveColumns) -> tuple[Array, Array]:
        mean = self.centre()
        return columns.less_one(mean), columns.log_ratio(mean)[1]

    def _ratios(self, rows: Array, first: Array, second: Array) -> LogRatios:
        return LogRatios(rows, first, second, self.centre())

    def log_density(self, columns: PositiveColumns) -> Float[Array, "*batch n"]:
        log_prob = _log_gamma(columns, self.shape, self.rate)
        return jnp.where(linalg.lead(columns.inside, log_prob.ndim), log_prob, -jnp.inf)

    def expected_statistics(self) -> LogRatios:
        ones = jnp.ones_like(self.shape)
        return self._ratios(ones, jnp.zeros_like(ones), log_minus_digamma(self.shape))

    def expected_log_prob(self, statistics: LogRatios) -> Float[Array, "*batch"]:
        """Q: rows (shape log shape - shape - log Gamma(shape)) - shape divergence, about the mean."""
        return -statistics.rows * stirling(self.shape) - self.shape * statistics.about(self.centre()).second

    def _with(self, mean: Array, spread: Array) -> Self:
        """Members with log(shape) - digamma(shape) = log(mean of x) - mean of log x, by Newton steps (Minka 2002)."""
        log_spread = jnp.log(spread)
        guess = (3 - spread + jnp.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread)
        # 1 / (2 a) < log a - digamma(a) < 1 / a, and its logarithm is nearly a straight line in log a.
        log_shape = root(
            lambda log_a: log_spread - jnp.log(log_minus_digamma(jnp.exp(log_a))),
            -math.log(2) - log_spread,
            -log_spread,
            jnp.log(guess),
        )
        shape = jnp.exp(log_shape)
        return replace(self, shape=shape, rate=shape / mean)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        mean = jnp.broadcast_to(jnp.where(row > 0, row, 1), members)
        return cls(jnp.ones_like(mean), 1 / mean)

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        x = linalg.lead(x, self.rate.ndim + 1)
        return cumulative.gamma(self.shape[..., None], self.rate[..., None] * x)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]`."""
        draws = jax.random.gamma(key, self.shape[..., None], (*self.batch_shape, n), self.shape.dtype)
        return jnp.maximum(draws / self.rate[..., None], jnp.finfo(draws.dtype).tiny)


@jax.custom_jvp
def _log_gamma(row: PositiveColumns, shape: Array, rate: Array) -> Float[Array, "*batch n"]:
    """The log-density by the divergence from the mean: for a large shape every term of the formula is enormous."""
    divergence = row.log_ratio(*quotient_words(shape, rate, jnp.zeros_like(rate)))[1]
    return (-stirling(shape)[..., None] - linalg.lead(row.logs, divergence.ndim)) - shape[..., None] * divergence


@_log_gamma.defjvp
def _log_gamma_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (row, shape, rate), (moved, by_shape, by_rate) = primals, tangents
    mean, short = quotient_words(shape, rate, jnp.zeros_like(rate))
    above, log = row.less_one(mean, short), row.log_ratio(mean, short)[0]
    change = (log + log_minus_digamma(shape)[..., None]) * by_shape[..., None] - above * (mean * by_rate)[..., None]
    by_row = linalg.lead(moved.values / row.values, above.ndim)
    return _log_gamma(row, shape, rate), change - (1 + shape[..., None] * above) * by_row


@family("inverse_gaussian", "inverse Gaussian numbers")
class InverseGaussian(_Dispersed):
    """The inverse Gaussian (Wald) family: the time at which a drifting Brownian motion first reaches a level.

    log p(x) = 1/2 log(shape / (2 pi x^3)) - shape (x - mean)^2 / (2 mean^2 x); the variance is mean^3 / shape.

    Args:
        mean: `[...]`, positive, in the units of x.
        shape: `[...]`, positive, in the units of x.

    Raises:
        ValueError: a mean or a shape that is not above zero.

    >>> import jaxem as jem
    >>> jem.InverseGaussian(1.0, 2.0).log_prob([2.0]).round(3).tolist()
    [-2.112]
    """

    mean: Float[Array, "*batch"] = parameter(positive)
    shape: Float[Array, "*batch"] = parameter(positive)

    def centre(self) -> Array:
        return self.mean

    def _divergence(self, columns: PositiveColumns) -> tuple[Array, Array]:
        return _inverse_divergence(columns, self.mean)[1:]

    def _ratios(self, rows: Array, first: Array, second: Array) -> InverseRatios:
        return InverseRatios(rows, first, second, self.mean)

    def log_density(self, columns: PositiveColumns) -> Float[Array, "*batch n"]:
        log_prob = _log_inverse_gaussian(columns, self.mean, self.shape)
        return jnp.where(linalg.lead(columns.inside, log_prob.ndim), log_prob, -jnp.inf)

    def expected_statistics(self) -> InverseRatios:
        ones = jnp.ones_like(self.shape)
        return self._ratios(ones, jnp.zeros_like(ones), self.mean / self.shape)

    def expected_log_prob(self, statistics: InverseRatios) -> Float[Array, "*batch"]:
        """Q: 1/2 rows log(shape) - shape / (2 mean) divergence, about the mean."""
        divergence = statistics.about(self.mean).second
        return 0.5 * (statistics.rows * jnp.log(self.shape) - self.shape / self.mean * divergence)

    def _with(self, mean: Array, spread: Array) -> Self:
        """Members with 1 / shape = mean of 1/x - 1 / (mean of x)."""
        limits = jnp.finfo(spread.dtype)
        return replace(self, mean=mean, shape=jnp.clip(mean / spread, limits.tiny, limits.max))

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        mean = jnp.broadcast_to(jnp.where(row > 0, row, 1), members)
        return cls(mean, mean)

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        x = linalg.lead(x, self.mean.ndim + 1)
        return cumulative.inverse_gaussian(self.mean[..., None], self.shape[..., None], x)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]` (Michael, Schucany and Haas 1976)."""
        which, what = jax.random.split(key)
        shape, mean = (*self.batch_shape, n), self.mean[..., None]
        half = jax.random.normal(what, shape, mean.dtype) ** 2 * mean / (2 * self.shape[..., None])
        # The smaller root of a quadratic equation, whose roots have the product one.
        ratio = 1 / (1 + half + jnp.sqrt(half * (2 + half)))
        small = jax.random.uniform(which, shape, mean.dtype) * (1 + ratio) < 1
        return mean * jnp.where(small, ratio, 1 / ratio)


def _inverse_divergence(row: PositiveColumns, mean: Array) -> tuple[Array, Array, Array]:
    """The ratio r = x / mean, r - 1, and (r - 1)^2 / r."""
    less_one = row.less_one(mean)
    ratio = linalg.lead(row.values, less_one.ndim) / mean[..., None]
    return ratio, less_one, less_one * (less_one / ratio)


@jax.custom_jvp
def _log_inverse_gaussian(row: PositiveColumns, mean: Array, shape: Array) -> Float[Array, "*batch n"]:
    _, _, divergence = _inverse_divergence(row, mean)
    constant = 0.5 * jnp.log(shape / (2 * math.pi))[..., None] - 1.5 * linalg.lead(row.logs, divergence.ndim)
    return constant - (0.5 * shape / mean)[..., None] * divergence


@_log_inverse_gaussian.defjvp
def _log_inverse_gaussian_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (row, mean, shape), (moved, by_mean, by_shape) = primals, tangents
    ratio, less_one, divergence = _inverse_divergence(row, mean)
    narrow = (shape / mean)[..., None]
    change = narrow * less_one * (by_mean / mean)[..., None]
    change = change + (0.5 - 0.5 * narrow * divergence) * (by_shape / shape)[..., None]
    by_row = linalg.lead(moved.values / row.values, ratio.ndim)
    value = _log_inverse_gaussian(row, mean, shape)
    return value, change - (1.5 + 0.5 * narrow * less_one * (1 + 1 / ratio)) * by_row
