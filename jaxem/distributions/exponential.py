"""The exponential family of waiting times."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive
from jaxem.core.pytree import replace
from jaxem.distributions import cumulative
from jaxem.distributions.poisson import Arrivals
from jaxem.distributions.positive import Positive
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import truncated
from jaxem.distributions.statistics.moments import has_weight, resolution
from jaxem.distributions.support import FROM_ZERO


@family("exponential", "exponential numbers")
class Exponential(Positive):
    """The exponential family: waiting times without memory.

    log p(x) = log rate - rate x

    Args:
        rate: `[...]`, events in one unit of x.

    Raises:
        ValueError: a rate that is not above zero.

    >>> import jaxem as jem
    >>> jem.Exponential(0.5).log_prob([0.0, 2.0]).round(4).tolist()
    [-0.6931, -1.6931]
    """

    support = FROM_ZERO
    rate: Float[Array, "*batch"] = parameter(positive)

    def columns(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    def contains(self, columns: Array) -> Array:
        return self.support.holds(columns)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        rate = self.rate[..., None]
        x = linalg.lead(columns, rate.ndim)
        inside = self.contains(x)
        return jnp.where(inside, jnp.log(rate) - rate * jnp.where(inside, x, 0), -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Arrivals:
        """The weighted number of events, and the total time in which they came."""
        columns = self.observe(x).columns
        inside = self.contains(columns)
        return _arrivals(jnp.where(linalg.lead(inside, weight.ndim), weight, 0), jnp.where(inside, columns, 0))

    def expected_statistics(self) -> Arrivals:
        return Arrivals(jnp.ones_like(self.rate), 1 / self.rate)

    def expected_log_prob(self, statistics: Arrivals) -> Float[Array, "*batch"]:
        """Q: total log(rate) - exposure rate."""
        return statistics.total * jnp.log(self.rate) - statistics.exposure * self.rate

    def m_step(self, statistics: Arrivals) -> Self:
        """The rate total / exposure; a member without rows, or whose rows are all zero, keeps its own."""
        some = has_weight(statistics.total) & (statistics.exposure > 0)
        rate = statistics.total / jnp.where(some, statistics.exposure, 1)
        return replace(self, rate=jnp.where(some, jnp.minimum(rate, jnp.finfo(rate.dtype).max), self.rate))

    def floor(self, x: Any, weight: Array) -> Arrivals:
        """A floor without events: an exposure next to nothing beside the mean of the rows."""
        columns = self.observe(x).columns
        inside = self.contains(columns) & (weight > 0)
        share = jnp.where(inside, weight, 0) / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
        mean = jnp.sum(share * jnp.where(inside, columns, 0))
        exposure = resolution(jnp.ones_like(mean)) * jnp.where(mean > 0, mean, 1)
        return Arrivals(jnp.zeros_like(self.rate), jnp.broadcast_to(exposure, self.rate.shape))

    def centre(self) -> Array:
        return 1 / self.rate

    def is_degenerate(self, floor: Arrivals) -> Array:
        """Whether the mean is within ten times the floor's exposure."""
        return 1 / self.rate < 10 * floor.exposure

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.broadcast_to(1 / jnp.where(row > 0, row, 1), members))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        x = linalg.lead(x, self.rate.ndim + 1)
        return cumulative.outlasting(self.rate[..., None] * jnp.maximum(x, 0))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` waiting times from each member, `[*batch_shape, n]`."""
        draws = jax.random.exponential(key, (*self.batch_shape, n), self.rate.dtype)
        return draws / self.rate[..., None]

    def intervals(self, lower: Float[Array, "n"], upper: Float[Array, "n"]) -> tuple[Array, Array]:
        """The lower ends of intervals, and their widths."""
        return lower, upper - lower

    def log_interval(self, intervals: tuple[Array, Array]) -> Float[Array, "*batch n"]:
        """The log-probability of each interval, log(exp(-rate lower) - exp(-rate upper))."""
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
