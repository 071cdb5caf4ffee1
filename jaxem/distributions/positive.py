"""Positive numbers: Exponential, Gamma, LogNormal, InverseGaussian. A row is one number."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive, real
from jaxem.core.double_double import quotient_words
from jaxem.core.pytree import module, replace
from jaxem.core.root_finding import root
from jaxem.core.special import behind, stirling
from jaxem.core.summation import totals
from jaxem.distributions.base import Family, Rows
from jaxem.distributions.discrete import Arrivals
from jaxem.distributions.gaussian import DiagonalGaussian
from jaxem.distributions.statistics import truncated
from jaxem.distributions.statistics.log_ratios import InverseRatios, Logged, LogRatios, Ratios
from jaxem.distributions.statistics.moments import Moments, enough, resolution


class Positive(Family):
    """Numbers above zero, of which the logarithm is taken once."""

    support = "numbers above 0"
    infimum: ClassVar[float] = 0.0

    def columns(self, x: Float[Array, "n"]) -> Any:
        return Logged.of(x)

    def contains(self, columns: Any) -> Array:
        return columns.inside

    def harmless(self) -> float:
        return 1.0

    @classmethod
    def points(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n 1"]:
        """Logarithms in units of their spread: a factor is a distance, whatever the size."""
        rows = Logged.of(x)
        smallest = jnp.min(jnp.where(rows.inside, rows.logs, jnp.inf))
        logs = jnp.where(rows.inside, rows.logs, jnp.where(jnp.isfinite(smallest), smallest, 0))
        return super().points(logs, weight)


@module
class Exponential(Positive):
    """Waiting times that do not depend on how long one has waited.

    log p(x) = log rate - rate x

    Args:
        rate: `[...]`, events in one unit of x.

    Raises:
        ValueError: a rate that is not above zero.

    >>> import jaxem as jem
    >>> jem.Exponential(0.5).log_prob([0.0, 2.0]).round(4).tolist()
    [-0.6931, -1.6931]
    """

    support = "numbers from 0 upward"
    rate: Float[Array, "*batch"] = parameter(positive)

    def columns(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    def contains(self, columns: Array) -> Array:
        return jnp.isfinite(columns) & (columns >= 0)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        rate = self.rate[..., None]
        x = linalg.lead(columns, rate.ndim)
        inside = self.contains(x)
        return jnp.where(inside, jnp.log(rate) - rate * jnp.where(inside, x, 0), -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Arrivals:
        """The weighted number of events, and the time in which they came."""
        columns = self.observe(x).columns
        inside = self.contains(columns)
        return _arrivals(jnp.where(linalg.lead(inside, weight.ndim), weight, 0), jnp.where(inside, columns, 0))

    def expected_statistics(self) -> Arrivals:
        return Arrivals(jnp.ones_like(self.rate), 1 / self.rate)

    def expected_log_prob(self, statistics: Arrivals) -> Float[Array, "*batch"]:
        """total log(rate) - exposure rate."""
        return statistics.total * jnp.log(self.rate) - statistics.exposure * self.rate

    def m_step(self, statistics: Arrivals) -> Self:
        """total / exposure; a member without rows, or whose rows are all zero, keeps its rate."""
        some = enough(statistics.total) & (statistics.exposure > 0)
        rate = statistics.total / jnp.where(some, statistics.exposure, 1)
        return replace(self, rate=jnp.where(some, jnp.minimum(rate, jnp.finfo(rate.dtype).max), self.rate))

    def floor(self, x: Any, weight: Array) -> Arrivals:
        """No events, in next to nothing of the mean of the rows; of one, if they are all zero."""
        columns = self.observe(x).columns
        inside = self.contains(columns) & (weight > 0)
        share = jnp.where(inside, weight, 0) / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
        mean = jnp.sum(share * jnp.where(inside, columns, 0))
        exposure = resolution(jnp.ones_like(mean)) * jnp.where(mean > 0, mean, 1)
        return Arrivals(jnp.zeros_like(self.rate), jnp.broadcast_to(exposure, self.rate.shape))

    def centre(self) -> Array:
        return 1 / self.rate

    def collapsed(self, floor: Arrivals) -> Array:
        """Is the mean within ten times the floor's exposure?"""
        return 1 / self.rate < 10 * floor.exposure

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.broadcast_to(1 / jnp.where(row > 0, row, 1), members))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` waiting times from each member, `[*batch_shape, n]`."""
        draws = jax.random.exponential(key, (*self.batch_shape, n), self.rate.dtype)
        return draws / self.rate[..., None]

    def intervals(self, lower: Float[Array, "n"], upper: Float[Array, "n"]) -> tuple[Array, Array]:
        """Where intervals begin, and how wide they are."""
        return lower, upper - lower

    def log_interval(self, intervals: tuple[Array, Array]) -> Float[Array, "*batch n"]:
        """log(exp(-rate lower) - exp(-rate upper))."""
        rate, lower, width, ends = self._between(intervals)
        return jnp.where(ends, truncated.log_mass_below(width), 0) - rate * lower

    def interval_statistics(self, intervals: tuple[Array, Array], weight: Array) -> Arrivals:
        """Events that came somewhere within their intervals, and the time that is expected of them."""
        rate, lower, width, ends = self._between(intervals)
        return _arrivals(weight, lower + jnp.where(ends, truncated.mean_below(width), 1) / rate)

    def _between(self, intervals: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        """Rate, lower end, and the hazard between the ends, if the upper one is finite."""
        rate = self.rate[..., None]
        lower, width = (linalg.lead(each, rate.ndim) for each in intervals)
        ends = jnp.isfinite(width)
        return rate, lower, rate * jnp.where(ends, width, 1), ends


def _arrivals(weight: Float[Array, "*batch n"], time: Array) -> Arrivals:
    return Arrivals(jnp.sum(weight, axis=-1), jnp.sum(weight * linalg.lead(time, weight.ndim), axis=-1))


class _Dispersed(Positive):
    """What the gamma and the inverse Gaussian share: a mean, and one number for the spread in units of it."""

    shape: Array

    def _divergence(self, columns: Logged) -> tuple[Array, Array]:
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
        new, some = self._with(mean, statistics.spread(mean)), enough(statistics.rows)
        return jax.tree.map(lambda a, b: jnp.where(some, a, b), new, self)

    def floor(self, x: Any, weight: Array) -> Ratios:
        """No rows, and the divergence of numbers that differ by rounding."""
        zero = jnp.zeros_like(self.shape)
        return self._ratios(zero, zero, resolution(jnp.ones_like(zero)))

    def collapsed(self, floor: Any) -> Array:
        """Is the spread no more than rounding?"""
        return self.expected_statistics().second < 10 * floor.second


@module
class Gamma(_Dispersed):
    """Sums of waiting times; whatever is positive and has a coefficient of variation of its own.

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

    def _divergence(self, columns: Logged) -> tuple[Array, Array]:
        mean = self.centre()
        return columns.less_one(mean), columns.log_ratio(mean)[1]

    def _ratios(self, rows: Array, first: Array, second: Array) -> LogRatios:
        return LogRatios(rows, first, second, self.centre())

    def log_density(self, columns: Logged) -> Float[Array, "*batch n"]:
        log_prob = _log_gamma(columns, self.shape, self.rate)
        return jnp.where(linalg.lead(columns.inside, log_prob.ndim), log_prob, -jnp.inf)

    def expected_statistics(self) -> LogRatios:
        ones = jnp.ones_like(self.shape)
        return self._ratios(ones, jnp.zeros_like(ones), behind(self.shape))

    def expected_log_prob(self, statistics: LogRatios) -> Float[Array, "*batch"]:
        """rows (shape log shape - shape - log Gamma(shape)) - shape divergence, about the mean."""
        return -statistics.rows * stirling(self.shape) - self.shape * statistics.about(self.centre()).second

    def _with(self, mean: Array, spread: Array) -> Self:
        """log(shape) - digamma(shape) = log(mean of x) - mean of log x, by Newton's method (Minka 2002)."""
        log_spread = jnp.log(spread)
        guess = (3 - spread + jnp.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread)
        # 1 / (2 a) < log a - digamma(a) < 1 / a, and its logarithm is nearly a straight line in log a.
        log_shape = root(
            lambda log_a: log_spread - jnp.log(behind(jnp.exp(log_a))),
            -math.log(2) - log_spread,
            -log_spread,
            jnp.log(guess),
        )
        shape = jnp.exp(log_shape)
        return replace(self, shape=shape, rate=shape / mean)

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        mean = jnp.broadcast_to(jnp.where(row > 0, row, 1), members)
        return cls(jnp.ones_like(mean), 1 / mean)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]`."""
        draws = jax.random.gamma(key, self.shape[..., None], (*self.batch_shape, n), self.shape.dtype)
        return jnp.maximum(draws / self.rate[..., None], jnp.finfo(draws.dtype).tiny)


@jax.custom_jvp
def _log_gamma(row: Logged, shape: Array, rate: Array) -> Float[Array, "*batch n"]:
    """By the divergence from the mean: for a large shape every term of the formula is enormous."""
    divergence = row.log_ratio(*quotient_words(shape, rate, jnp.zeros_like(rate)))[1]
    return (-stirling(shape)[..., None] - linalg.lead(row.logs, divergence.ndim)) - shape[..., None] * divergence


@_log_gamma.defjvp
def _log_gamma_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (row, shape, rate), (moved, by_shape, by_rate) = primals, tangents
    mean, short = quotient_words(shape, rate, jnp.zeros_like(rate))
    above, log = row.less_one(mean, short), row.log_ratio(mean, short)[0]
    change = (log + behind(shape)[..., None]) * by_shape[..., None] - above * (mean * by_rate)[..., None]
    by_row = linalg.lead(moved.values / row.values, above.ndim)
    return _log_gamma(row, shape, rate), change - (1 + shape[..., None] * above) * by_row


@module
class LogNormal(Positive):
    """A Gaussian of log x.

    log p(x) = -log x - 1/2 [((log x - location) / scale)^2 + 2 log scale + log 2 pi]

    Args:
        location: `[...]`, the mean of log x.
        scale: `[...]`, positive, its standard deviation.

    Raises:
        ValueError: a scale that is not above zero.

    >>> import jaxem as jem
    >>> jem.LogNormal(0.0, 1.0).log_prob([1.0, 2.0]).round(4).tolist()
    [-0.9189, -1.8523]
    """

    location: Float[Array, "*batch"] = parameter(real)
    scale: Float[Array, "*batch"] = parameter(positive)

    @property
    def gaussian(self) -> DiagonalGaussian:
        """The Gaussian of log x, with one column."""
        return DiagonalGaussian(self.location[..., None], self.scale[..., None] ** 2)

    def _with(self, gaussian: DiagonalGaussian) -> Self:
        return replace(self, location=gaussian.mean[..., 0], scale=jnp.sqrt(gaussian.variance[..., 0]))

    def centre(self) -> Array:
        return jnp.exp(self.location + self.scale**2 / 2)

    def log_density(self, columns: Logged) -> Float[Array, "*batch n"]:
        location, scale = self.location[..., None], self.scale[..., None]
        logs, fine = (linalg.lead(part, scale.ndim) for part in (columns.logs, columns.fine))
        # What is left of a logarithm is much if the scale is small.
        deviation = ((logs - location) + fine) / scale
        log_prob = -0.5 * (deviation * deviation) - jnp.log(scale) - (logs + 0.5 * math.log(2 * math.pi))
        return jnp.where(linalg.lead(columns.inside, log_prob.ndim), log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Moments:
        """Weight, mean and scatter of log x about each member's location."""
        columns = self.observe(x).columns
        weight = jnp.where(linalg.lead(columns.inside, weight.ndim), weight, 0)
        return self.gaussian.statistics(Rows(columns.logs[None]), weight)

    def expected_statistics(self) -> Moments:
        return self.gaussian.expected_statistics()

    def expected_log_prob(self, statistics: Moments) -> Float[Array, "*batch"]:
        """That of the Gaussian of log x."""
        return self.gaussian.expected_log_prob(statistics)

    def m_step(self, statistics: Moments) -> Self:
        """The weighted mean and standard deviation of log x; a member without rows keeps its parameters."""
        some = enough(statistics.spread_rows)
        new = self._with(self.gaussian.m_step(statistics))
        return replace(new, scale=jnp.where(some, new.scale, self.scale))

    def weak(self, members: Array | int, x: Any, weight: Array) -> Moments:
        """That of the Gaussian of log x."""
        return self.gaussian.weak(members, x, weight)

    def floor(self, x: Any, weight: Array) -> Moments:
        """No rows, and the scatter of numbers that differ by rounding."""
        zero = jnp.zeros_like(self.location)
        scatter = resolution(jnp.ones_like(zero))
        return Moments(zero, zero, zero[..., None], scatter[..., None], self.location[..., None])

    def collapsed(self, floor: Moments) -> Array:
        """Is the scale no more than rounding?"""
        return self.gaussian.collapsed(floor)

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        location = jnp.broadcast_to(jnp.log(jnp.where(row > 0, row, 1)), members)
        return cls(location, jnp.ones_like(location))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]`."""
        return jnp.exp(self.gaussian.sample(key, n)[..., 0])

    def intervals(self, lower: Float[Array, "n"], upper: Float[Array, "n"]) -> truncated.Interval:
        """The same intervals, of log x."""
        return truncated.Interval(jnp.log(lower), jnp.log(upper), truncated.log_quotient(lower, upper))

    def log_interval(self, intervals: truncated.Interval) -> Float[Array, "*batch n"]:
        """log(Phi((log upper - location) / scale) - Phi((log lower - location) / scale))."""
        return truncated.log_normal_mass(intervals, self.location, self.scale)

    def interval_statistics(self, intervals: truncated.Interval, weight: Array) -> Moments:
        """The moments of log x that are expected within each interval."""
        return truncated.normal_moments(intervals, self.location, self.scale, weight)


@module
class InverseGaussian(_Dispersed):
    """The first time at which a drifting Brownian motion reaches a level; also called Wald.

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

    def _divergence(self, columns: Logged) -> tuple[Array, Array]:
        return _inverse_divergence(columns, self.mean)[1:]

    def _ratios(self, rows: Array, first: Array, second: Array) -> InverseRatios:
        return InverseRatios(rows, first, second, self.mean)

    def log_density(self, columns: Logged) -> Float[Array, "*batch n"]:
        log_prob = _log_inverse_gaussian(columns, self.mean, self.shape)
        return jnp.where(linalg.lead(columns.inside, log_prob.ndim), log_prob, -jnp.inf)

    def expected_statistics(self) -> InverseRatios:
        ones = jnp.ones_like(self.shape)
        return self._ratios(ones, jnp.zeros_like(ones), self.mean / self.shape)

    def expected_log_prob(self, statistics: InverseRatios) -> Float[Array, "*batch"]:
        """1/2 rows log(shape) - shape / (2 mean) divergence, about the mean."""
        divergence = statistics.about(self.mean).second
        return 0.5 * (statistics.rows * jnp.log(self.shape) - self.shape / self.mean * divergence)

    def _with(self, mean: Array, spread: Array) -> Self:
        """1 / shape = mean of 1/x - 1 / (mean of x)."""
        limits = jnp.finfo(spread.dtype)
        return replace(self, mean=mean, shape=jnp.clip(mean / spread, limits.tiny, limits.max))

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        mean = jnp.broadcast_to(jnp.where(row > 0, row, 1), members)
        return cls(mean, mean)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]` (Michael, Schucany and Haas 1976)."""
        which, what = jax.random.split(key)
        shape, mean = (*self.batch_shape, n), self.mean[..., None]
        half = jax.random.normal(what, shape, mean.dtype) ** 2 * mean / (2 * self.shape[..., None])
        # The smaller root of a quadratic equation, whose roots have the product one.
        ratio = 1 / (1 + half + jnp.sqrt(half * (2 + half)))
        small = jax.random.uniform(which, shape, mean.dtype) * (1 + ratio) < 1
        return mean * jnp.where(small, ratio, 1 / ratio)


def _inverse_divergence(row: Logged, mean: Array) -> tuple[Array, Array, Array]:
    """r = x / mean, r - 1, and (r - 1)^2 / r."""
    less_one = row.less_one(mean)
    ratio = linalg.lead(row.values, less_one.ndim) / mean[..., None]
    return ratio, less_one, less_one * (less_one / ratio)


@jax.custom_jvp
def _log_inverse_gaussian(row: Logged, mean: Array, shape: Array) -> Float[Array, "*batch n"]:
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
