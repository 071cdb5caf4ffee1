"""The Weibull family: lifetimes whose hazard is a power of time. A row is one number.

The Weibull is no exponential family: the sum of x^shape is not a statistic of a shape that is still to be found. EM
needs only a lower bound of the log-likelihood that touches it, and there is one whose statistics are sums. With
s = shape log(x / scale) under the parameters of the E-step, a row's hazard under a shape (1 + change) times as large is

    exp((1 + change) s) <= exp(s) (1 + change s + change^2 curvature(s)),    |change| <= TRUST,

where curvature(s) = (exp(d s) - 1 - d s) / d^2 with d = TRUST (-TRUST for a smaller shape) if d s > 0, else s^2 / 2:
(exp(t) - 1 - t) / t^2 grows with t. The scale enters exactly.

A row that is known to lie in an interval has such a bound too. With h and h + w the hazards at its ends,

    log(exp(-h) - exp(-h - w)) = -h + log integral_0^1 w exp(-w t) dt >= -h + log w - w t' + constant,

t' = 1 / w - 1 / (exp(w) - 1) under the parameters of the E-step (Jensen): a hazard at either end. And log w is, up to
what is linear, log sinh of half of shape log(upper / lower), whose excess over the logarithm of the shape is convex, so
a tangent is below it: an event at some time between the two.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive
from jaxem.core.pytree import module, replace
from jaxem.core.root_finding import root
from jaxem.core.semirings import log_sum, responsibilities
from jaxem.core.summation import totals
from jaxem.distributions import cumulative
from jaxem.distributions.lognormal import LogNormal
from jaxem.distributions.positive import Positive
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import truncated
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.log_ratios import PositiveColumns
from jaxem.distributions.statistics.moments import has_weight, resolution

TRUST = 0.5
"""By which share of itself a shape may change in one M-step."""
SAFE = {4: 40.0, 8: 300.0}
"""By bytes of a float: the largest logarithm of a hazard that is told apart from larger ones."""
WIDE = 30.0
"""The logarithm of a hazard above which nobody outlasts it."""
APART = 1e6
"""log(upper / lower) of an interval that begins at zero."""


@module
class WeibullStatistics(Referenced):
    """Sums over weighted rows under the parameters `shape` and `scale`, with s = shape log(x / scale); each `[...]`.

    A row that ended at x is an event; one that lasted at least until x has a hazard only.

    Attributes:
        events: sum of w over events.
        log_times: sum of w s over events.
        hazard: sum of w exp(s).
        slope: sum of w exp(s) s.
        above, below: sum of w exp(s) curvature(s), for larger and for smaller shapes.
        shape, scale: those of the E-step.
        stiffness: what is taken from the log-likelihood for half of the squared shape: a floor of the spread.
        pseudo_rows: rows as a prior sees them, drawn from the Weibull with these parameters:
        pseudo_shape, pseudo_scale.
    """

    sums = ("events", "log_times", "hazard", "slope", "above", "below", "stiffness", "pseudo_rows")

    events: Array
    log_times: Array
    hazard: Array
    slope: Array
    above: Array
    below: Array
    shape: Array
    scale: Array
    stiffness: Array
    pseudo_rows: Array
    pseudo_shape: Array
    pseudo_scale: Array

    @property
    def seen(self) -> Bool[Array, "*batch"]:
        """Whether there are rows, not pseudo-rows only."""
        return self.events + self.hazard > 0

    @property
    def rows(self) -> Array:
        """Events, those of pseudo-rows among them."""
        return self.events + self.pseudo_rows

    def anchored(self, shape: Float[Array, "*batch"], scale: Float[Array, "*batch"]) -> WeibullStatistics:
        """The statistics with parameters: sums of nothing take those of the pseudo-rows, or these."""
        imagined = self.pseudo_rows > 0
        shape, scale = jnp.where(imagined, self.pseudo_shape, shape), jnp.where(imagined, self.pseudo_scale, scale)
        return replace(
            self, shape=jnp.where(self.seen, self.shape, shape), scale=jnp.where(self.seen, self.scale, scale)
        )

    def gain(self, change: Array) -> tuple[Array, Array]:
        """The gain of a shape `1 + change` times as large, without the hazards; and its slope."""
        shape = self.shape * (1 + change)
        a, quotient = self._pseudo()
        log_times = self.log_times + self.pseudo_rows * self.shape * (quotient - np.euler_gamma / a)
        value = self.rows * jnp.log(shape) + log_times * (1 + change) - 0.5 * self.stiffness * shape**2
        return value, self.rows / (1 + change) + log_times - self.stiffness * shape * self.shape

    def log_hazard(self, change: Array) -> tuple[Array, Array]:
        """The logarithm of the sum of w exp((1 + change) s), or a little more: a convex function; and its slope."""
        seen, rises = self._parabola(change)
        shape = self.shape * (1 + change)
        a, quotient = self._pseudo()
        drawn = shape * quotient + gammaln(1 + shape / a)
        terms = jnp.stack([_log(self.hazard) + seen, _log(self.pseudo_rows) + drawn])
        slopes = jnp.stack([rises, self.shape * (quotient + digamma(1 + shape / a) / a)])
        return log_sum(terms, 0), jnp.sum(responsibilities(terms, 0) * slopes, axis=0)

    def _pseudo(self) -> tuple[Array, Array]:
        """The shape of the pseudo-rows, and log(their scale / scale); finite where there are none."""
        some = self.pseudo_rows > 0
        quotient = truncated.log_quotient(self.scale, jnp.where(some, self.pseudo_scale, self.scale))
        return jnp.where(some, self.pseudo_shape, 1), quotient

    def _parabola(self, change: Array) -> tuple[Array, Array]:
        """The bound on the rise of the log of the hazards of rows, and its slope."""
        # log(1 + z) <= z: with a parabola, instead of its logarithm, the M-step has one maximum.
        hazard = jnp.where(self.hazard > 0, self.hazard, 1)
        curved = jnp.where(change > 0, self.above, self.below) * change
        return (self.slope + curved) * change / hazard, (self.slope + 2 * curved) / hazard

    def about(self, shape: Float[Array, "*batch"], scale: Float[Array, "*batch"]) -> Self:
        """The statistics of the same rows under other parameters: exact in the scale, bounded in the shape."""
        here = self.anchored(shape, scale)
        change = jnp.clip(shape / here.shape - 1, -TRUST, TRUST)
        shift = shape * truncated.log_quotient(scale, here.scale)
        rise, slope = self._parabola(change)
        growth = jnp.exp(_safe(rise + shift))
        curvature = growth * (1 + change) ** 2
        return replace(
            self,
            log_times=self.log_times * (1 + change) + self.events * shift,
            hazard=self.hazard * growth,
            slope=self.hazard * growth * (slope * (1 + change) + shift),
            above=self.above * curvature,
            below=self.below * curvature,
            shape=shape,
            scale=scale,
        )

    def aligned(self, other: Self) -> tuple[Self, Self]:
        """Both under the parameters of the first that has rows, and pseudo-rows of both under their mean parameters."""
        shape, scale = jnp.where(self.seen, self.shape, other.shape), jnp.where(self.seen, self.scale, other.scale)
        rows = self.pseudo_rows + other.pseudo_rows
        share = jnp.where(rows > 0, other.pseudo_rows / jnp.where(rows > 0, rows, 1), 0)
        a = replace(
            self.about(shape, scale),
            pseudo_shape=(1 - share) * self.pseudo_shape + share * other.pseudo_shape,
            pseudo_scale=(1 - share) * self.pseudo_scale + share * other.pseudo_scale,
        )
        return a, other.about(shape, scale)


def _finite_hazard(row: PositiveColumns, shape: Array, scale: Array) -> tuple[Array, Array, Array]:
    """log(x / scale), shape times that, and whether the hazard is a finite number; zeros where it is not."""
    ratio = row.log_ratio(scale)[0]
    s = shape[..., None] * ratio
    finite = s < math.log(float(jnp.finfo(s.dtype).max))
    return jnp.where(finite, ratio, 0), jnp.where(finite, s, 0), finite


@jax.custom_jvp
def _log_weibull(row: PositiveColumns, shape: Array, scale: Array) -> Float[Array, "*batch n"]:
    """The log-density; -inf, and without a slope, where the hazard overflows."""
    _, s, finite = _finite_hazard(row, shape, scale)
    log_prob = jnp.log(shape)[..., None] - linalg.lead(row.logs, s.ndim) + s - jnp.exp(s)
    return jnp.where(finite, log_prob, -jnp.inf)


@_log_weibull.defjvp
def _log_weibull_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (row, shape, scale), (moved, by_shape, by_scale) = primals, tangents
    ratio, s, finite = _finite_hazard(row, shape, scale)
    steep = jnp.expm1(s)  # which 1 - exp(s) would lose near the scale
    change = (1 / shape[..., None] - ratio * steep) * by_shape[..., None]
    change = change + steep * (shape * by_scale / scale)[..., None]
    change = change - (1 + shape[..., None] * steep) * linalg.lead(moved.values / row.values, s.ndim)
    return _log_weibull(row, shape, scale), jnp.where(finite, change, 0)


def _log(sum_of_weights: Array) -> Array:
    some = sum_of_weights > 0
    return jnp.where(some, jnp.log(jnp.where(some, sum_of_weights, 1)), -jnp.inf)


def _safe(log_hazard: Array, power: float = 1.0) -> Array:
    return jnp.minimum(log_hazard, power * SAFE[log_hazard.dtype.itemsize])


class Between(NamedTuple):
    """Intervals of lifetimes; an end at zero or infinity is no positive number, and so not `inside`."""

    lower: PositiveColumns
    upper: PositiveColumns
    quotient: Array


@family("weibull", "Weibull numbers")
class Weibull(Positive):
    """The Weibull family: lifetimes whose hazard rises (shape above one) or falls (below one) with time.

    log p(x) = log(shape / scale) + (shape - 1) log(x / scale) - (x / scale)^shape

    Its M-step maximises an exact lower bound of the log-likelihood: EM climbs, and a shape changes by half at most.

    Args:
        shape: `[...]`, positive.
        scale: `[...]`, positive, in the units of x: 63 % have ended by then.

    Raises:
        ValueError: a shape or a scale that is not above zero.

    >>> import jaxem as jem
    >>> jem.Weibull(2.0, 3.0).log_prob([1.0, 3.0]).round(4).tolist()
    [-1.6152, -1.4055]
    """

    shape: Float[Array, "*batch"] = parameter(positive)
    scale: Float[Array, "*batch"] = parameter(positive)

    def centre(self) -> Array:
        return self.scale * jnp.exp(gammaln(1 + 1 / self.shape))

    def _log_hazard(self, columns: PositiveColumns) -> Float[Array, "*batch n"]:
        return self.shape[..., None] * columns.log_ratio(self.scale)[0]

    def log_density(self, columns: PositiveColumns) -> Float[Array, "*batch n"]:
        log_prob = _log_weibull(columns, self.shape, self.scale)
        return jnp.where(linalg.lead(columns.inside, log_prob.ndim), log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> WeibullStatistics:
        """Events, and the hazards that each member has met until then."""
        columns = self.observe(x).columns
        s = self._log_hazard(columns)
        weight = jnp.where(linalg.lead(columns.inside, s.ndim), weight, 0)
        return self._hazards(*totals(weight, weight * s, *_curved(s, weight)))

    def _hazards(self, *sums: Array) -> WeibullStatistics:
        """Six sums over rows under this member's parameters, and no pseudo-rows."""
        zero, here = jnp.zeros_like(self.shape), (self.shape, self.scale)
        events, log_times, hazard, slope, above, below = sums
        return WeibullStatistics(events, log_times, hazard, slope, above, below, *here, zero, zero, *here)

    def expected_statistics(self) -> WeibullStatistics:
        nothing = self._hazards(*[jnp.zeros_like(self.shape)] * 6)
        return replace(nothing, pseudo_rows=jnp.ones_like(self.shape))

    def expected_log_prob(self, statistics: WeibullStatistics) -> Float[Array, "*batch"]:
        """Q: the lower bound; -inf where the shape is too far from that of the E-step for it to be one."""
        here = statistics.anchored(self.shape, self.scale)
        change = self.shape / here.shape - 1
        rounding = 8 * float(jnp.finfo(change.dtype).eps)
        trusted = ~here.seen | (jnp.abs(change) <= TRUST + rounding)
        change = jnp.where(trusted, change, 0)
        shift = self.shape * truncated.log_quotient(here.scale, self.scale)
        hazard = jnp.exp(_safe(here.log_hazard(change)[0] - shift))
        return jnp.where(trusted, here.gain(change)[0] - here.rows * shift - hazard, -jnp.inf)

    def m_step(self, statistics: WeibullStatistics) -> Self:
        """The shape by Newton's method, the scale in closed form; a member without events keeps its parameters."""
        here = statistics.anchored(self.shape, self.scale)
        some = has_weight(here.rows)
        rows = jnp.where(some, here.rows, 1)

        def fall(change: Array) -> Array:
            """The slope of the value of a row under the best scale for that shape."""
            return here.log_hazard(change)[1] - here.gain(change)[1] / rows

        bound = jnp.where(here.seen, TRUST, jnp.full_like(rows, 0.999))
        change = root(fall, -bound, bound)
        # It is found to rounding of one. Less than that is none: a steep bound would blow it up.
        eps = float(jnp.finfo(rows.dtype).eps)
        change = change - jax.lax.stop_gradient(jnp.where(jnp.abs(change) > eps, 0, change))
        # Above that, rows of one member differ by rounding.
        shape = jnp.minimum(here.shape * (1 + change), 1 / jnp.sqrt(resolution(jnp.ones_like(rows))))
        log_mean = here.log_hazard(change)[0] - jnp.log(rows)
        limits = jnp.finfo(rows.dtype)
        farthest = 0.4 * math.log(float(limits.max))
        scale = here.scale * jnp.exp(jnp.clip(log_mean / shape, -farthest, farthest))
        scale = jnp.clip(scale, limits.tiny, limits.max)
        return replace(self, shape=jnp.where(some, shape, self.shape), scale=jnp.where(some, scale, self.scale))

    def floor(self, x: Any, weight: Array) -> WeibullStatistics:
        """A floor without rows: a stiffness of the squared spread of numbers that differ by rounding."""
        zero = jnp.zeros_like(self.shape)
        return replace(self._hazards(*[zero] * 6), stiffness=resolution(jnp.ones_like(zero)))

    def is_degenerate(self, floor: WeibullStatistics) -> Array:
        """Whether the spread is no more than rounding."""
        return self.shape**-2 < 10 * floor.stiffness

    @classmethod
    def start(cls, x: Any, weight: Float[Array, "*batch n"], **sizes: int) -> Self:
        """Members whose logarithms have the mean and the spread of those of weighted rows."""
        logs = LogNormal.start(x, weight, **sizes)
        shape = math.pi / math.sqrt(6) / logs.scale
        return cls(shape, jnp.exp(logs.location + np.euler_gamma / shape))

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        scale = jnp.broadcast_to(jnp.where(row > 0, row, 1), members)
        return cls(jnp.ones_like(scale), scale)

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        log_time = linalg.lead(jnp.log(jnp.maximum(x, 0)), self.scale.ndim + 1) - jnp.log(self.scale)[..., None]
        return cumulative.outlasting(jnp.exp(self.shape[..., None] * log_time))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]`."""
        draws = jax.random.exponential(key, (*self.batch_shape, n), self.shape.dtype)
        return self.scale[..., None] * draws ** (1 / self.shape[..., None])

    def intervals(self, lower: Float[Array, "n"], upper: Float[Array, "n"]) -> Between:
        """The ends of intervals, and the distance of their logarithms."""
        quotient = truncated.log_quotient(lower, upper)
        return Between(PositiveColumns.of(lower), PositiveColumns.of(upper), jnp.minimum(quotient, APART))

    def _met(self, intervals: Between) -> tuple[Array, Array, Array, Array]:
        """The log-hazards at both ends, their distance, and the hazard between."""
        low, high = self._log_hazard(intervals.lower), self._log_hazard(intervals.upper)
        begun, ends = (linalg.lead(end.inside, low.ndim) for end in intervals[:2])
        span = self.shape[..., None] * linalg.lead(intervals.quotient, low.ndim)
        before = jnp.where(begun, jnp.exp(_safe(low)), 0)
        near = span < 1
        width = jnp.where(near, before * jnp.expm1(jnp.where(near, span, 0)), jnp.exp(_safe(high)) - before)
        return low, high, span, jnp.where(ends, width, 1)

    def log_interval(self, intervals: Between) -> Float[Array, "*batch n"]:
        """The log-probability of each interval, log(exp(-(lower / scale)^shape) - exp(-(upper / scale)^shape))."""
        low, _, _, width = self._met(intervals)
        begun, ends = (linalg.lead(end.inside, low.ndim) for end in intervals[:2])
        inside = jnp.where(ends, truncated.log_mass_below(width), 0)
        return inside - jnp.where(begun, jnp.exp(_safe(low)), 0)

    def interval_statistics(self, intervals: Between, weight: Array) -> WeibullStatistics:
        """Events somewhere within their intervals, or none yet if those are open, and hazards at both ends."""
        low, high, span, width = self._met(intervals)
        begun, ends = (linalg.lead(end.inside, low.ndim) for end in intervals[:2])
        some = width > 0
        late = jnp.where(some, truncated.mean_below(width) / jnp.where(some, width, 1), 0.5)
        # Of hazards out of range, what counts is their quotient: 1 / w of the hazard at the upper end.
        log_width = jnp.where(begun, low + truncated.log_growth(span), high)
        log_late = jnp.where(log_width > WIDE, -log_width, jnp.log(late))
        events = jnp.where(ends, weight, 0)
        log_times = events * (high - truncated.mean_below(span))
        early = jnp.where(ends & (log_width <= WIDE), 1 - late, 1)
        at_low = _curved(low, jnp.where(begun, weight * early, 0))
        at_high = _curved(high, jnp.where(ends, weight, 0), log_late)
        met = [a + b for a, b in zip(at_low, at_high, strict=True)]
        return self._hazards(*totals(events, log_times, *met))


def _curved(s: Array, weight: Array, log_share: Array | float = 0.0) -> tuple[Array, Array, Array, Array]:
    """Hazards of each row, of each a share, and what says how they change with the shape, for `TRUST` of one half."""
    hazard, grown, shrunk = (jnp.exp(_safe(power * s + log_share, max(power, 1))) for power in (1.0, 1.5, 0.5))
    flat, straight = hazard * s**2 / 2, hazard * (1 - s / 2)
    above = jnp.maximum(flat, 4 * (grown - 2 * hazard + straight))
    below = jnp.maximum(flat, 4 * (shrunk - straight))
    return weight * hazard, weight * hazard * s, weight * above, weight * below
