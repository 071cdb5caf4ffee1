"""Proportions: Beta, a number between 0 and 1, and Dirichlet, several that sum to one."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive, positive_vector
from jaxem.core.double_double import log_words, products, quotient_words, sum_words, whole_sum
from jaxem.core.pytree import module, replace
from jaxem.core.special import binet, log_minus_digamma, stirling
from jaxem.core.summation import totals
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family
from jaxem.distributions.gaussian import FLOOR
from jaxem.distributions.members import ScalarParameters
from jaxem.distributions.registry import family
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.log_ratios import PositiveColumns
from jaxem.distributions.statistics.moments import has_weight
from jaxem.distributions.support import ABOVE_ZERO, BETWEEN, SHARES, Support

STEPS = 100
"""Of Newton's method, at most; it needs about eight."""

NEAR = 1 / 16
"""Of its mean: so near to it a share is read by its distance, and farther away by its logarithm."""


@module
class Shares(Referenced):
    """Sums over weighted rows on a simplex, about a point m of it.

    How concentrated rows are is how far the mean of log x lies from the log of the mean: a difference that loses all
    digits when rows are nearly equal. So the divergence from m is a sum of its own.

    Attributes:
        rows: `[...]`, sum of w.
        logs: `[..., C]`, sum of w log(x / m).
        divergence: `[...]`, sum of w KL(m | x), which is - sum over c of m logs, to all digits.
        log_reference: `[..., C]`, log m.
    """

    sums = ("rows", "logs", "divergence")

    rows: Array
    logs: Array
    divergence: Array
    log_reference: Array

    def about(self, log_reference: Float[Array, "*batch c"]) -> Self:
        """The statistics of the same rows about another point."""
        shift = self.log_reference - log_reference
        old, new = jnp.exp(self.log_reference), jnp.exp(log_reference)
        moved = jnp.sum(new * (jnp.expm1(shift) - shift), axis=-1)  # KL(new | old)
        crossed = jnp.sum((new - old) * self.logs, axis=-1)
        logs = self.logs + self.rows[..., None] * shift
        divergence = self.divergence + self.rows * moved - crossed
        return replace(self, logs=logs, divergence=divergence, log_reference=log_reference)


@module
class Share(PositiveColumns):
    """Proportions as two floats, and their logarithms.

    Attributes:
        low: `[n]`, what is left of them beside `values`.
    """

    low: Float[Array, "n"]

    @staticmethod
    def words(high: Float[Array, "n"], low: Float[Array, "n"]) -> Share:
        """The proportions as sums of two floats."""
        row = PositiveColumns.of(high)
        low = jax.lax.stop_gradient(jnp.where(row.inside, low, 0))
        return Share(row.values, row.logs, row.inside, row.fine + low / jax.lax.stop_gradient(row.values), low)

    def less_one(self, reference: Float[Array, "*batch"], short: Any = 0) -> Float[Array, "*batch n"]:
        """The relative deviation x / reference - 1."""
        low = linalg.lead(self.low, reference.ndim + 1)
        return super().less_one(reference, short) + low / reference[..., None]


class _Proportions(Family):
    """Beta and Dirichlet: rows as one positive number for each column, and a concentration for each."""

    @property
    def _concentrations(self) -> Float[Array, "*batch c"]:
        raise NotImplementedError

    def _with(self, concentrations: Float[Array, "*batch c"]) -> Self:
        raise NotImplementedError

    def _divergence(self, columns: tuple[Share, ...]) -> tuple[list[Array], Array]:
        """log(x / m) of each column, and KL(m | x), for m the mean of each member."""
        means = jnp.exp(_log_shares(self._concentrations)[0])
        ratios = [column.log_ratio(means[..., c]) for c, column in enumerate(columns)]
        return [log for log, _ in ratios], sum(means[..., c, None] * gap for c, (_, gap) in enumerate(ratios))  # type: ignore[return-value]

    def contains(self, columns: tuple[Share, ...]) -> Array:
        return jnp.stack([column.inside for column in columns]).all(0)

    def log_density(self, columns: tuple[Share, ...]) -> Float[Array, "*batch n"]:
        log_prob = _log_density(columns, self._concentrations)
        return jnp.where(linalg.lead(self.contains(columns), log_prob.ndim), log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Shares:
        """Rows, their logarithms and their divergence about each member's mean."""
        logs, divergence = self._divergence(self.observe(x).columns)
        rows, divergence, *logs = totals(weight, weight * divergence, *(weight * log for log in logs))
        return Shares(rows, jnp.stack(logs, axis=-1), divergence, _log_shares(self._concentrations)[0])

    def expected_statistics(self) -> Shares:
        log_means, log_total = _log_shares(self._concentrations)
        logs = log_minus_digamma(jnp.exp(log_total)) - log_minus_digamma(self._concentrations)
        divergence = -jnp.sum(jnp.exp(log_means) * logs, axis=-1)
        return Shares(jnp.ones_like(divergence), logs, divergence, log_means)

    def expected_log_prob(self, statistics: Shares) -> Float[Array, "*batch"]:
        """Q: rows (log of the normaliser) - concentration x divergence from the mean, in Stirling's form."""
        log_means, log_total = _log_shares(self._concentrations)
        volume = stirling(jnp.exp(log_total[..., 0])) - jnp.sum(stirling(self._concentrations), axis=-1)
        return statistics.rows * volume - jnp.exp(log_total[..., 0]) * statistics.about(log_means).divergence

    def m_step(self, statistics: Shares) -> Self:
        """The concentrations with digamma(each) - digamma(total) = mean log x; without rows a member keeps its own."""
        some = has_weight(statistics.rows)
        rows = jnp.where(some, statistics.rows, 1)
        mean_logs, divergence = statistics.logs / rows[..., None], statistics.divergence / rows
        log_centre = statistics.log_reference + mean_logs
        # By how much the geometric means fall short of a sum of one: to all digits where that is little.
        excess = jnp.sum(jnp.exp(statistics.log_reference) * (jnp.expm1(mean_logs) - mean_logs), axis=-1) - divergence
        far = excess < -0.5
        short = jnp.where(far, -logsumexp(log_centre, axis=-1), -jnp.log1p(jnp.where(far, 0, excess)))
        short = jnp.maximum(short, float(jnp.finfo(rows.dtype).eps) ** 2)[..., None]
        new = _solved(log_centre + short, short)
        return self._with(jnp.where(some[..., None], new, self._concentrations))

    def floor(self, x: Any, weight: Array) -> Shares:
        """A floor without rows: `FLOOR` times the divergence of all the data, one at most."""
        rows = self.observe(x)
        weight = jnp.where(self.contains(rows.columns), rows.mask_weight(weight), 0)
        total = jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
        mean_logs = jnp.stack([jnp.sum(weight * column.logs) / total for column in rows.columns])
        spread = FLOOR[weight.dtype.itemsize] * jnp.clip(-logsumexp(mean_logs), 1e-6, 1)
        divergence = jnp.broadcast_to(spread, self.batch_shape)
        logs = jnp.broadcast_to(-spread, self._concentrations.shape)
        return Shares(jnp.zeros_like(divergence), logs, divergence, _log_shares(self._concentrations)[0])

    def is_degenerate(self, floor: Shares) -> Array:
        """Whether the spread is within three times the floor's."""
        return jnp.sum(self._concentrations, axis=-1) * floor.divergence > 0.05


def _log_shares(concentrations: Float[Array, "*batch c"]) -> tuple[Array, Array]:
    """log of each share, and log of the total `[..., 1]`."""
    log_total = jnp.log(jnp.sum(concentrations, axis=-1, keepdims=True))
    return jnp.log(concentrations) - log_total, log_total


def _solved(log_centre: Float[Array, "*batch c"], short: Float[Array, "*batch 1"]) -> Array:
    """a with digamma(a) - digamma(sum a) = log_centre - short, where the centre sums to one and `short` > 0.

    Newton's method for s = sum a and t = log(a / (s centre)), which solve

        t - behind(a) + behind(s) + short = 0 for each column,    sum over columns of centre (e^t - 1) = 0

    Its matrix is a diagonal with a border (Minka 2000). All terms are small where s is large: nothing cancels.
    """

    def newton(log_total: Array, t: Array) -> tuple[Array, Array]:
        of_each, falls = _behind_and_slope(log_total + log_centre + t)
        of_total, total_falls = _behind_and_slope(log_total)
        off = t - of_each + of_total + short
        diagonal, border = 1 - falls, total_falls - falls
        centre, shares = jnp.exp(log_centre), jnp.exp(log_centre + t)
        over = jnp.where(t > 1, shares - centre, centre * jnp.expm1(jnp.minimum(t, 1)))
        change = jnp.sum(over - shares * off / diagonal, axis=-1, keepdims=True)
        change = jnp.clip(change / jnp.sum(shares * border / diagonal, axis=-1, keepdims=True), -2, 2)
        return log_total + change, t + jnp.clip(-(off + border * change) / diagonal, -4, 4)

    def going(state: tuple[Array, ...]) -> Array:
        _, _, moved, step = state
        return (step < STEPS) & (moved > float(jnp.finfo(moved.dtype).eps) ** 0.5)

    def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
        log_total, t, _, step = state
        new_total, new_t = newton(log_total, t)
        moved = jnp.maximum(jnp.abs(new_total - log_total), jnp.abs(new_t - t) / (1 + jnp.abs(t)))
        return new_total, new_t, jnp.max(moved), step + 1

    log_total = jnp.log((log_centre.shape[-1] - 1) / (2 * short))
    # digamma(a) = y has a near exp(y) + 1/2, or near -1 / (y - digamma(1)) where that is small (Minka 2000).
    below = short + log_minus_digamma(jnp.exp(log_total))
    y = log_total + log_centre - below
    large = y > -2.22
    at_large = jnp.log1p(0.5 * jnp.exp(-jnp.where(large, y, 0))) - below
    at_small = -jnp.log(-jnp.where(large, -3, y) - np.euler_gamma) - log_total - log_centre
    state = (log_total, jnp.where(large, at_large, at_small), jnp.full((), jnp.inf, short.dtype), jnp.zeros((), int))
    # Of the steps none is differentiated but the last, whose derivative is that of the solution.
    log_total, t, _, _ = jax.lax.stop_gradient(jax.lax.while_loop(going, advance, jax.lax.stop_gradient(state)))
    log_total, t = newton(log_total, t)
    # Not the exponential of their sum: what that loses by being large would be lost for each by itself.
    return jnp.exp(log_total) * jnp.exp(log_centre + t)


def _behind_and_slope(log_z: Array) -> tuple[Array, Array]:
    """`log_minus_digamma`, and its slope by log z: 1 - z trigamma(z)."""
    return jax.jvp(lambda log_z: log_minus_digamma(jnp.exp(log_z)), (log_z,), (jnp.ones_like(log_z),))


@jax.custom_jvp
def _log_density(shares: tuple[Share, ...], each: Float[Array, "*batch c"]) -> Float[Array, "*batch n"]:
    """log p of proportions, by their distance from the mean (as Loader 2000): every part as two floats.

    What the logarithms say for a narrow density its distance takes away again.
    """
    total, short = sum_words(each)
    terms, rest = [], jnp.zeros_like(total)[..., None]
    for count, sign in [(total, 1), *((each[..., c], -1) for c in range(len(shares)))]:
        high, low = _stirling_words(count)
        terms, rest = [*terms, sign * high[..., None]], rest + sign * low[..., None]
    for c, share in enumerate(shares):
        place = _placed(share, each[..., c], total, short)
        apart, less = _apart(place, each[..., c, None])
        terms += [-linalg.lead(share.logs, each.ndim), *(-part for part in apart)]
        rest = rest - less - linalg.lead(share.fine, each.ndim)
    return whole_sum(*terms, rest)


@_log_density.defjvp
def _log_density_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (shares, each), (moved, change) = primals, tangents
    of_total, slope = log_minus_digamma(jnp.sum(each, axis=-1)), jnp.zeros((), each.dtype)
    for c, share in enumerate(shares):
        by_concentration = (log_minus_digamma(each[..., c]) - of_total)[..., None] + _log_ratio(c, share, each)
        # But for what is the same for all shares: their sum does not change.
        by_share = -(_above(c, share, each) + 1) / linalg.lead(share.values, each.ndim)
        slope = slope + by_concentration * change[..., c, None] + by_share * linalg.lead(moved[c].values, each.ndim)
    return _log_density(shares, each), slope


def _stirling_words(z: Array) -> tuple[Array, Array]:
    """`stirling` as a sum, of which the first part has no rounding: log Gamma(1 + z) - log z is less than log z."""
    high, low = log_words(z)
    small = z < 1
    power = jnp.where(small, 1, jnp.asarray(0.5, z.dtype))
    more = jnp.where(small, z, 0)
    shift = (0.5 + more) * jnp.log1p(more) - more * (high + low) - small.astype(z.dtype)
    return -power * high, (0.5 * math.log(2 * math.pi) + binet(z + small.astype(z.dtype)) + shift) - power * low


class _Placed(NamedTuple):
    """A share x beside its mean m = a / total, each as two floats.

    `above` is total x - a, by how many of the total it is above; where that is `near`, `ratio` is x / m - 1; and `log`
    is log(x / m).
    """

    above: tuple[Array, Array]
    near: Array
    ratio: tuple[Array, Array]
    log: tuple[Array, Array]


def _placed(share: Share, a: Array, total: Array, short: Array) -> _Placed:
    (total_log, total_fine), (log, fine) = log_words(total), log_words(a)
    mean_log, mean_fine = _two_sum(log, -total_log)
    mean_fine = mean_fine + (fine - (total_fine + short / total))
    a, total, short, mean_log, mean_fine = (part[..., None] for part in (a, total, short, mean_log, mean_fine))
    x, low, logs, fine = (linalg.lead(part, a.ndim) for part in (share.values, share.low, share.logs, share.fine))
    terms = [*products(x, total), -a, x * short + low * total]
    above = whole_sum(*terms)
    lost = whole_sum(-above, *terms)
    near = jnp.abs(above) < a * NEAR
    ratio, less = quotient_words(jnp.where(near, above, 0), a, jnp.zeros_like(a))
    high, rest = _two_sum(logs, -mean_log)
    return _Placed((above, lost), near, (ratio, less + jnp.where(near, lost, 0) / a), (high, rest + (fine - mean_fine)))


def _apart(place: _Placed, a: Array) -> tuple[list[Array], Array]:
    """a gap(x / m - 1), as a sum, of which the last is small."""
    (above, lost), near, (ratio, less), (log, fine) = place
    # a (t - log(1 + t)), or with t a = above: above t (1/2 - t/3 + t^2/4 - ...)
    parts = products(jnp.where(near, above, -a), jnp.where(near, ratio / 2, log))
    tail = above * ratio * _tail(jnp.where(near, ratio, 0)) + 0.5 * (above * less + lost * ratio)
    return [*parts, jnp.where(near, 0, above)], jnp.where(near, tail, lost - a * fine)


def _tail(t: Array) -> Array:
    """gap(t) / t^2 - 1/2, for |t| < `NEAR`."""
    total = jnp.zeros_like(t)
    for power in range({4: 8, 8: 14}[t.dtype.itemsize], 2, -1):
        total = (1 / power - total) * t
    return -total


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    high = a + b
    back = high - a
    return high, (a - (high - back)) + (b - back)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_ratio(c: int, share: Share, each: Float[Array, "*batch c"]) -> Float[Array, "*batch n"]:
    """log(x / m) of a share x, whose mean m is the c-th."""
    place = _placed(share, each[..., c], *sum_words(each))
    return jnp.where(place.near, jnp.log1p(place.ratio[0]), sum(place.log))


@_log_ratio.defjvp
def _log_ratio_jvp(c: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (share, each), (moved, change) = primals, tangents
    by_each = jnp.sum(change, axis=-1) / jnp.sum(each, axis=-1) - change[..., c] / each[..., c]
    return _log_ratio(c, share, each), by_each[..., None] + linalg.lead(moved.values / share.values, each.ndim)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _above(c: int, share: Share, each: Float[Array, "*batch c"]) -> Float[Array, "*batch n"]:
    """How far a share is above its mean, the c-th, in units of the total concentration."""
    return _placed(share, each[..., c], *sum_words(each)).above[0]


@_above.defjvp
def _above_jvp(c: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (share, each), (moved, change) = primals, tangents
    x, by_x = (linalg.lead(part, each.ndim) for part in (share.values, moved.values))
    totals = [jnp.sum(part, axis=-1)[..., None] for part in (each, change)]
    return _above(c, share, each), totals[0] * by_x + totals[1] * x - change[..., c, None]


@family("beta", "beta proportions")
class Beta(_Proportions, ScalarParameters):
    """The beta family: a proportion between 0 and 1.

    log p(x) = (successes - 1) log x + (failures - 1) log(1 - x) - log B(successes, failures), 0 < x < 1

    The mean is successes / (successes + failures); the larger both are, the narrower it is. (`jaxem.priors.Beta` is a
    prior of a probability; this is a family of observed proportions.)

    Args:
        successes, failures: each `[...]`, above zero.

    Raises:
        ValueError: a parameter that is not above zero.

    >>> import jaxem as jem
    >>> jem.Beta([1.0, 2.0], [1.0, 2.0]).log_prob([0.5, 1.0]).round(4).tolist()
    [[0.0, -inf], [0.4055, -inf]]
    """

    support = BETWEEN
    successes: Float[Array, "*batch"] = parameter(positive)
    failures: Float[Array, "*batch"] = parameter(positive)

    @property
    def _concentrations(self) -> Float[Array, "*batch 2"]:
        return jnp.stack([self.successes, self.failures], axis=-1)

    def _with(self, concentrations: Float[Array, "*batch 2"]) -> Self:
        return replace(self, successes=concentrations[..., 0], failures=concentrations[..., 1])

    def columns(self, x: Float[Array, "n"]) -> tuple[Share, ...]:
        """Each proportion, and one minus it to all digits."""
        rest = 1 - x
        return Share.words(x, jnp.zeros_like(x)), Share.words(rest, (1 - rest) - x)

    def centre(self) -> Array:
        return self.successes / (self.successes + self.failures)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.ones(members, row.dtype), jnp.ones(members, row.dtype))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        x = linalg.lead(x, self.successes.ndim + 1)
        return cumulative.beta(self.successes[..., None], self.failures[..., None], x, 1 - x)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` proportions from each member, `[*batch_shape, n]`; those that round to 0 or 1 are put next to it."""
        a, b = self.successes[..., None], self.failures[..., None]
        draws = jax.random.beta(key, a, b, (*self.batch_shape, n), a.dtype)
        limits = jnp.finfo(draws.dtype)
        return jnp.clip(draws, limits.tiny, 1 - limits.epsneg)


@family("dirichlet", "Dirichlet proportions", reads="all", column=ABOVE_ZERO, total=SHARES)
class Dirichlet(_Proportions):
    """The Dirichlet family: C proportions that sum to one.

    log p(x) = sum_c (concentration_c - 1) log x_c + log Gamma(sum_c concentration_c) - sum_c log Gamma(concentration_c)

    The mean is concentration / sum of them. Rows that sum to one within 1e-5 are taken as rounded: what counts is the
    share of each number in their sum, to all digits. (`jaxem.priors.Dirichlet` is a prior of probabilities; this is a
    family of observed proportions.)

    Args:
        concentration: `[..., C]`, above zero.

    Raises:
        ValueError: a concentration that is not above zero.

    >>> import jaxem as jem
    >>> jem.Dirichlet([1.0, 1.0, 2.0]).log_prob([[0.2, 0.3, 0.5], [0.2, 0.3, 0.4]]).round(4).tolist()
    [1.0986, -inf]
    """

    scalar = False
    concentration: Float[Array, "*batch c"] = parameter(positive_vector)

    @property
    def _concentrations(self) -> Float[Array, "*batch c"]:
        return self.concentration

    def _with(self, concentrations: Float[Array, "*batch c"]) -> Self:
        return replace(self, concentration=concentrations)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.concentration.shape[-1:]

    @property
    def support(self) -> Support:  # type: ignore[override]
        even = 1 / self.event_shape[0]
        return dataclasses.replace(ABOVE_ZERO, name="numbers above 0 that sum to one", example=even)

    def columns(self, x: Float[Array, "n c"]) -> tuple[Share, ...]:
        """Each entry over the sum of its row, to twice the digits: a narrow density tells them apart."""
        total, short = (part[:, None] for part in sum_words(x))
        high, low = quotient_words(x, jnp.where(total > 0, total, 1), short)
        high = jnp.where(jnp.abs(total - 1) <= 1e-5, high, -1)
        return tuple(Share.words(high[:, c], low[:, c]) for c in range(x.shape[-1]))

    def centre(self) -> Array:
        return self.concentration / jnp.sum(self.concentration, axis=-1, keepdims=True)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.ones((*members, *row.shape), row.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n c"]:
        """`n` rows from each member, `[*batch_shape, n, C]`; a share that rounds to 0 is put above it."""
        draws = jax.random.dirichlet(
            key, self.concentration[..., None, :], (*self.batch_shape, n), self.concentration.dtype
        )
        return jnp.maximum(draws, jnp.finfo(draws.dtype).tiny)
