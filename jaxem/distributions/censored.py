"""Censored numbers, of which only an interval is known. A row is (lower, upper)."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxem.core.constraints import is_held, parameters
from jaxem.core.linalg import lead
from jaxem.core.pytree import module, replace
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family, Rows, Statistics
from jaxem.distributions.gaussian import DiagonalGaussian, Gaussian, SphericalGaussian, TiedGaussian
from jaxem.distributions.product import sized
from jaxem.distributions.registry import structure
from jaxem.distributions.statistics import truncated
from jaxem.distributions.statistics.moments import Moments
from jaxem.distributions.support import Support

GAUSSIANS = (Gaussian, DiagonalGaussian, SphericalGaussian, TiedGaussian)
HOOKS = ("intervals", "log_interval", "interval_statistics")


@module
class Ends:
    """Rows of (lower, upper) as a base family reads them.

    Attributes:
        points: the base's columns of one number for each row, which is the row itself where it was seen exactly.
        intervals: what the base makes of the ends; both are that number where the row was seen exactly.
        exact: `[n]`, was it?
        inside: `[n]`, is it possible?
        lower, upper: `[n]`, the ends themselves, as far as the base can reach.
    """

    points: Any
    intervals: Any
    exact: Bool[Array, "n"]
    inside: Bool[Array, "n"]
    lower: Float[Array, "n"]
    upper: Float[Array, "n"]


@structure
class Censored(Family):
    """A family of numbers seen exactly, or known to lie in an interval.

    log p(lower, upper) = log p(x | base) if lower = upper = x, else log P(lower < X < upper | base)

    `upper = inf` is censored on the right (it lasted at least until `lower`), `lower = -inf`, or 0 for positive
    numbers, on the left. The E-step takes what is expected of the unseen number under the member's own parameters.

    Args:
        base: an `Exponential`, `Weibull` or `LogNormal`, a Gaussian of one column, or any family of numbers with
            `intervals(lower, upper)` (what does not depend on parameters), `log_interval(intervals)` and
            `interval_statistics(intervals, weight)`.

    Raises:
        TypeError: a base that does not know intervals.

    >>> import jaxem as jem, jax.numpy as jnp
    >>> model = jem.Censored(jem.Exponential(0.5))
    >>> model.log_prob([[2.0, 2.0], [2.0, jnp.inf], [0.0, 2.0]]).round(4).tolist()
    [-1.6931, -1.0, -0.4587]
    """

    scalar = False
    censored = True
    base: Family

    def __post_init__(self) -> None:
        known = isinstance(self.base, GAUSSIANS) and self.base.event_shape == (1,)
        if not known and (self.base.event_shape or not all(hasattr(self.base, hook) for hook in HOOKS)):
            raise TypeError(
                f"Censored: base is a {type(self.base).__name__} with event shape {self.base.event_shape}; it must be "
                "a Gaussian of one column or a family of numbers that knows intervals (Exponential, LogNormal, Weibull)"
            )

    @property
    def support(self) -> Support:  # type: ignore[override]
        name = f"pairs (lower, upper) with lower not above upper, in {self.base.support.name}"
        return dataclasses.replace(self.base.support, name=name)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.base.batch_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    def centre(self) -> Float[Array, "*batch 2"]:
        mean = self.base.centre().reshape(*self.batch_shape, 1)
        return jnp.concatenate([mean, mean], axis=-1)

    @property
    def _known(self) -> Any:
        """The base family; for a Gaussian, its counterpart of one column that knows intervals."""
        return _OneColumn(self.base) if isinstance(self.base, GAUSSIANS) else self.base

    def columns(self, x: Float[Array, "n 2"]) -> Ends:
        lower, upper = x.T
        exact = lower == upper
        reach = jnp.maximum(lower, getattr(self.base, "infimum", -jnp.inf))
        points = self._points(jnp.where(exact, lower, representatives(reach, upper)))
        inside = jnp.where(exact, self.base.contains(points), reach < upper)
        example, settled = jnp.asarray(self.base.support.example, x.dtype), exact | ~inside
        low, high = (
            jnp.where(inside, jnp.where(exact, own, end), example) for own, end in ((lower, reach), (upper, upper))
        )
        return Ends(points, self._known.intervals(low, high), settled, inside, reach, upper)

    def _points(self, values: Float[Array, "n"]) -> Any:
        return self.base.columns(values[:, None] if self.base.event_shape else values)

    def observations(self, x: Any, weight: Array) -> Array:
        """The weight of the rows with a finite upper end: one that outlasted its observation says little by itself.

        So survival analysis counts (Volinsky and Raftery 2000).
        """
        rows = self.observe(x)
        ended = rows.columns.inside & (rows.columns.upper < jnp.inf)
        return jnp.sum(jnp.where(ended, rows.mask_weight(weight), 0))

    def bounded(self, x: Any, weight: Array) -> Array:
        """Whether the likelihood has a maximum: some row must have ended, and some begun inside the support.

        Nor, of a location and a scale, if rows would be likeliest with no width at all, for all intervals have a number
        in common; or with any, for all that ended did so before all that did not.
        """
        rows = self.observe(x)
        columns = rows.columns
        used, exact = columns.inside & (rows.mask_weight(weight) > 0), columns.lower == columns.upper
        begun, ended = columns.lower > getattr(self.base, "infimum", -jnp.inf), columns.upper < jnp.inf

        def last(numbers: Array, among: Array) -> Array:
            return jnp.max(numbers, where=used & among, initial=-jnp.inf)

        nowhere = ~jnp.any(used & ended) | ~jnp.any(used & begun)
        free = [name for name in parameters(self.base) if not is_held(self.base, name)]
        if len(free) > 1 and len(free) == len(parameters(self.base)):
            shared = last(columns.lower, begun) < -last(-columns.upper, ended)
            apart = last(columns.upper, ended) <= -last(-columns.lower, begun)
            nowhere |= shared | (apart & ~jnp.any(used & begun & ended))
        return ~nowhere | jnp.any(used & exact)

    def contains(self, columns: Ends) -> Array:
        return columns.inside

    def log_density(self, columns: Ends) -> Float[Array, "*batch n"]:
        between = self._known.log_interval(columns.intervals)
        exact, inside = lead(columns.exact, between.ndim), lead(columns.inside, between.ndim)
        return jnp.where(inside, jnp.where(exact, self.base.log_density(columns.points), between), -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Statistics:
        """Statistics of the base: exact, or expected within each interval."""
        columns = self.observe(x).columns
        return self._known.interval_statistics(
            columns.intervals, jnp.where(lead(columns.inside, weight.ndim), weight, 0)
        )

    def expected_statistics(self) -> Statistics:
        return self.base.expected_statistics()

    def expected_log_prob(self, statistics: Statistics) -> Float[Array, "*batch"]:
        """The base's own."""
        return self.base.expected_log_prob(statistics)

    def m_step(self, statistics: Statistics) -> Self:
        """The base's own."""
        return replace(self, base=self.base.m_step(statistics))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Statistics:
        """The base's own, for one number of each row."""
        return self.base.unit_prior(members, *self._ones(x, weight))

    def floor(self, x: Any, weight: Array) -> Statistics:
        """The base's own, for one number of each row."""
        return self.base.floor(*self._ones(x, weight))

    def _ones(self, x: Any, weight: Array) -> tuple[Rows, Array]:
        columns = self.observe(x).columns
        return Rows(columns.points), jnp.where(columns.inside, weight, 0)

    def is_degenerate(self, floor: Statistics) -> Array:
        """Whether the base has collapsed."""
        return self.base.is_degenerate(floor)

    def tails(self, x: Float[Array, "n 2"]) -> cumulative.Tails:
        return self._base_tails(x[:, 1])

    def tails_before(self, x: Float[Array, "n 2"]) -> cumulative.Tails:
        return self._base_tails(x[:, 0])

    def _base_tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        each = self.base.columnwise(x[:, None] if self.base.event_shape else x).at
        return jax.tree.map(lambda leaf: leaf[..., 0, :], each)

    def columnwise(self, x: Float[Array, "n 2"]) -> cumulative.Columnwise:
        """P(X <= lower) and P(X <= upper) of the base: what was not seen has a residual between two."""
        return cumulative.one_column(self, x)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n 2"]:
        """`n` rows from each member, all seen exactly: `[*batch_shape, n, 2]`."""
        draws = self.base.sample(key, n)
        draws = draws if self.base.event_shape else draws[..., None]
        return jnp.concatenate([draws, draws], axis=-1)

    def rows_like(self, key: Array, x: Float[Array, "n 2"]) -> Float[Array, "*batch n 2"]:
        """Draws that are watched until some time: that of x where a row was censored on the right.

        Elsewhere it is drawn from the distribution of those times, given that it is later than the row (Davison and
        Hinkley 1997, algorithm 3.1). Rows of which both ends, or only the upper one, are known are drawn exactly.
        """
        what, when = jax.random.split(key)
        draws, end = self.base.sample(what, len(x)), _ends_of_watch(when, x)
        draws = draws[..., 0] if self.base.event_shape else draws
        end = lead(end, draws.ndim)
        return jnp.stack([jnp.minimum(draws, end), jnp.where(draws <= end, draws, jnp.inf)], axis=-1)

    @staticmethod
    def of(family: Any) -> CensoredFamily:
        """The censored `family`, as `Mixture.start` takes it: `Censored.of(jem.Weibull)`."""
        return CensoredFamily(sized(family))


def _ends_of_watch(key: Array, x: Float[Array, "n 2"]) -> Float[Array, "n"]:
    """When each row stopped being watched, or infinity: by Kaplan and Meier's estimate, with the parts exchanged."""
    lower, censored = x[:, 0], x[:, 1] == jnp.inf
    order = jnp.lexsort((censored, lower))
    times, ends = lower[order], censored[order]
    at_risk = jnp.arange(len(lower), 0, -1).astype(lower.dtype)
    log_left = jnp.cumsum(jnp.where(ends, jnp.log1p(-1 / jnp.maximum(at_risk, 1)), 0))
    # Of those that are watched beyond the row's own time, the share that is watched beyond the time drawn.
    rank = jnp.searchsorted(times, lower, side="right")
    own = jnp.where(rank > 0, log_left[jnp.maximum(rank - 1, 0)], 0)
    wanted = own - jax.random.exponential(key, lower.shape, lower.dtype)
    later = jnp.searchsorted(-log_left, -wanted, side="left")
    drawn = jnp.where(later < len(times), times[jnp.minimum(later, len(times) - 1)], jnp.inf)
    return jnp.where(censored, lower, drawn)


def representatives(lower: Float[Array, "n"], upper: Float[Array, "n"]) -> Float[Array, "n"]:
    """One number for each row: the middle of an interval, or its finite end; zero if it has none."""
    below, above = jnp.isfinite(lower), jnp.isfinite(upper)
    low, high = jnp.where(below, lower, upper), jnp.where(above, upper, lower)
    return jnp.where(below | above, low + (high - low) / 2, 0)


@dataclasses.dataclass(frozen=True)
class CensoredFamily:
    """A censored family that is still to be fitted: something that can `start`."""

    base: Any
    scalar = False

    def start(self, x: Any, weight: Array, **sizes: int) -> Censored:
        """Members fitted to one number of each row."""
        # Half a row at either end: an interval is as wide as it is, also where all are the same.
        one, infimum = self._rows(x), getattr(self.base.family, "infimum", -jnp.inf)
        low, high = (end.reshape(one.shape) for end in (x[:, 0], x[:, 1]))
        low, high = jnp.where(low > infimum, low, one), jnp.where(jnp.isfinite(high), high, one)
        both, halves = jnp.concatenate([low, high]), jnp.concatenate([weight, weight], axis=-1) / 2
        return Censored(self.base.start(both, halves))

    def seeding_features(self, x: Array, weight: Array, **sizes: int) -> Array:
        """Rows as points between which a distance means something."""
        return self.base.seeding_features(self._rows(x), weight)

    def _rows(self, x: Array) -> Array:
        lower = jnp.maximum(x[:, 0], getattr(self.base.family, "infimum", -jnp.inf))
        one = jnp.where(lower == x[:, 1], lower, representatives(lower, x[:, 1]))
        return one if self.base.family.scalar else one[:, None]


@dataclasses.dataclass(frozen=True)
class _OneColumn:
    """A Gaussian of one column, as a family that knows intervals."""

    gaussian: Any

    @property
    def _location_and_scale(self) -> tuple[Array, Array]:
        variance = self.gaussian.expected_statistics().second
        return self.gaussian.mean[..., 0], jnp.sqrt(variance.reshape(self.gaussian.batch_shape))

    def intervals(self, lower: Float[Array, "n"], upper: Float[Array, "n"]) -> truncated.Interval:
        return truncated.Interval(lower, upper, upper - lower)

    def log_interval(self, intervals: truncated.Interval) -> Float[Array, "*batch n"]:
        return truncated.log_normal_mass(intervals, *self._location_and_scale)

    def interval_statistics(self, intervals: truncated.Interval, weight: Array) -> Moments:
        moments = truncated.normal_moments(intervals, *self._location_and_scale, weight)
        return replace(moments, second=moments.second.reshape(self.gaussian.expected_statistics().second.shape))
