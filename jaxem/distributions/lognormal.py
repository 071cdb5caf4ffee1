"""The log-normal family."""

from __future__ import annotations

import math
from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive, real
from jaxem.core.pytree import replace
from jaxem.distributions import cumulative
from jaxem.distributions.base import Rows
from jaxem.distributions.gaussian import DiagonalGaussian
from jaxem.distributions.positive import Positive
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import truncated
from jaxem.distributions.statistics.log_ratios import PositiveColumns
from jaxem.distributions.statistics.moments import Moments, has_weight, resolution


@family("lognormal", "log-normal numbers")
class LogNormal(Positive):
    """The log-normal family: a Gaussian of log x.

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

    def log_density(self, columns: PositiveColumns) -> Float[Array, "*batch n"]:
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
        """The one of the Gaussian of log x."""
        return self.gaussian.expected_log_prob(statistics)

    def m_step(self, statistics: Moments) -> Self:
        """The weighted mean and standard deviation of log x; a member without rows keeps its parameters."""
        some = has_weight(statistics.spread_rows)
        new = self._with(self.gaussian.m_step(statistics))
        return replace(new, scale=jnp.where(some, new.scale, self.scale))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Moments:
        """The one of the Gaussian of log x."""
        return self.gaussian.unit_prior(members, x, weight)

    def floor(self, x: Any, weight: Array) -> Moments:
        """A floor without rows: the scatter of numbers that differ by rounding."""
        zero = jnp.zeros_like(self.location)
        scatter = resolution(jnp.ones_like(zero))
        return Moments(zero, zero, zero[..., None], scatter[..., None], self.location[..., None])

    def is_degenerate(self, floor: Moments) -> Array:
        """Whether the scale is no more than rounding."""
        return self.gaussian.is_degenerate(floor)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        location = jnp.broadcast_to(jnp.log(jnp.where(row > 0, row, 1)), members)
        return cls(location, jnp.ones_like(location))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        x = linalg.lead(jnp.log(jnp.maximum(x, 0)), self.location.ndim + 1)
        return cumulative.normal((x - self.location[..., None]) / self.scale[..., None])

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]`."""
        return jnp.exp(self.gaussian.sample(key, n)[..., 0])

    def intervals(self, lower: Float[Array, "n"], upper: Float[Array, "n"]) -> truncated.Interval:
        """The intervals of log x."""
        return truncated.Interval(jnp.log(lower), jnp.log(upper), truncated.log_quotient(lower, upper))

    def log_interval(self, intervals: truncated.Interval) -> Float[Array, "*batch n"]:
        """The log-probability of each interval of log x, a difference of Phi."""
        return truncated.log_normal_mass(intervals, self.location, self.scale)

    def interval_statistics(self, intervals: truncated.Interval, weight: Array) -> Moments:
        """The moments of log x that are expected within each interval."""
        return truncated.normal_moments(intervals, self.location, self.scale, weight)
