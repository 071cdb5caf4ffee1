"""More counts (Geometric, NegativeBinomial, Multinomial), and PointMass: one number and no other."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import held, non_negative, parameter, positive, simplex, unit_interval
from jaxem.core.double_double import (
    MOST,
    anywhere,
    factorial_rest,
    log_parts,
    orders,
    quotient_words,
    sum_words,
)
from jaxem.core.pytree import module, replace, static
from jaxem.core.root_finding import root
from jaxem.core.special import behind_less, binet, gap, gap_by_square, tables
from jaxem.core.summation import totals, two_sum
from jaxem.distributions.base import Family
from jaxem.distributions.discrete import (
    Counted,
    OfCategories,
    OfTrials,
    Trials,
    times_log,
    times_log_rest,
    weighted,
    whole,
)
from jaxem.distributions.members import Numbers
from jaxem.distributions.statistics.moments import enough


class _Counts(Family):
    """Whole numbers from zero upward."""

    support = "whole numbers from 0 upward"

    @classmethod
    def points(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n d"]:
        """By their logarithms: tails are long."""
        return super().points(jnp.log1p(jnp.maximum(x, 0)), weight)


@module
class Geometric(_Counts, OfTrials):
    """Failures before the first success.

    log p(x) = log probs + x log(1 - probs), x = 0, 1, 2, ...

    Args:
        probs: `[...]`, the probability of a success. The mean is (1 - probs) / probs.

    Raises:
        ValueError: a probability outside [0, 1].

    >>> import jaxem as jem
    >>> jem.Geometric([0.5, 1.0]).log_prob([0, 1]).round(4).tolist()
    [[-0.6931, -1.3863], [0.0, -inf]]
    """

    probs: Float[Array, "*batch"] = parameter(unit_interval)

    def contains(self, columns: Array) -> Array:
        return whole(columns)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        probs = self.probs[..., None]
        columns = linalg.lead(columns, probs.ndim)
        inside = whole(columns)
        log_prob = times_log(jnp.ones_like(columns), probs) + times_log_rest(jnp.where(inside, columns, 0), probs)
        return jnp.where(inside, log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Trials:
        """A success in each row, and the weighted number of failures."""
        columns = self.observe(x).columns
        return Trials(jnp.sum(weight, axis=-1), weighted(weight, jnp.where(whole(columns), columns, 0)))

    def expected_statistics(self) -> Trials:
        return Trials(jnp.ones_like(self.probs), 1 / jnp.maximum(self.probs, jnp.finfo(self.probs.dtype).tiny) - 1)

    def centre(self) -> Array:
        return self.expected_statistics().failures

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.full(members, 0.5, row.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` counts from each member, `[*batch_shape, n]`."""
        waiting = jax.random.exponential(key, (*self.batch_shape, n), self.probs.dtype)
        return jnp.floor(waiting / -jnp.log1p(-self.probs[..., None]))


@module
class Tables:
    """What a negative binomial counts, and a bound on its shape.

    A row x is worth log(shape + k) for each k < x. As a function of s = log shape that is convex, and its third
    derivative is at most its second; so the sum over all rows, with slope T and curvature C at s0, lies above

        T (s - s0) + C (e^-d - 1 + d),    d = |s - s0|                         (Bach 2010, proposition 1)

    and touches it. T alone is the expected number of tables (Quenouille 1949; Antoniak 1974). Its EM takes 180 steps
    on 2,000 counts of mean 5 and shape 20, where this one takes 12.

    Attributes:
        rows: `[...]`, sum of w.
        total: `[...]`, sum of w x.
        tabled: `[...]`, T: of large counts and a small shape a small part.
        untabled: `[...]`, total - T: nothing in the limit of a Poisson.
        curvature: `[...]`, C.
        log_shape: `[...]`, s0.
    """

    rows: Array
    total: Array
    tabled: Array
    untabled: Array
    curvature: Array
    log_shape: Array

    def about(self, log_shape: Float[Array, "*batch"]) -> Tables:
        """The same rows, bounded at another shape: that bound lies below this one."""
        change = log_shape - self.log_shape
        near = jnp.exp(-jnp.abs(change))
        more = self.curvature * jnp.sign(change) * (1 - near)
        return replace(
            self,
            tabled=self.tabled + more,
            untabled=self.untabled - more,
            curvature=self.curvature * near,
            log_shape=log_shape,
        )

    def bound(self, log_shape: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The bound, less total s: that of the sum over all rows and k < x of log(1 + k / shape)."""
        return self._curved(log_shape) - self.untabled * (log_shape - self.log_shape)

    def whole_bound(self, log_shape: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The bound, less total s0: that of the sum over all rows and k < x of log(shape + k)."""
        return self._curved(log_shape) + self.tabled * (log_shape - self.log_shape)

    def _curved(self, log_shape: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        distance = jnp.abs(log_shape - self.log_shape)
        return self.curvature * (jnp.expm1(-distance) + distance)

    def __add__(self, other: Tables) -> Tables:
        other = other.about(self.log_shape)
        return Tables(
            self.rows + other.rows,
            self.total + other.total,
            self.tabled + other.tabled,
            self.untabled + other.untabled,
            self.curvature + other.curvature,
            self.log_shape,
        )

    def __mul__(self, factor: Array | float) -> Tables:
        """`factor` (a number) times as many of the same rows."""
        return replace(jax.tree.map(lambda each: each * factor, self), log_shape=self.log_shape)


@module
class NegativeBinomial(_Counts, Numbers):
    """Counts with more spread than a Poisson's: the variance is mean + mean^2 / shape.

    log p(x) = log Gamma(shape + x) - log Gamma(shape) - log x! + shape log(1 - p) + x log p, p = mean / (mean + shape)

    A Poisson whose rate is gamma distributed. M-steps keep `shape` below max(mean, 1)^2 / eps, where it is a Poisson
    to rounding: data without more spread than that take it there.

    Args:
        mean: `[...]`, zero or above.
        shape: `[...]`, above zero; the smaller, the more spread.

    Raises:
        ValueError: a negative mean, or a shape that is not above zero.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> jnp.exp(jem.NegativeBinomial(3.0, [1.0, 1e9]).log_prob([0])).round(2).tolist()
    [[0.25], [0.05]]
    """

    mean: Float[Array, "*batch"] = parameter(non_negative)
    shape: Float[Array, "*batch"] = parameter(positive)

    def columns(self, x: Array) -> tuple[Array, Array]:
        """The counts, NaN where they are none; and log x! - x log x + x."""
        inside = whole(x)
        return jnp.where(inside, x, jnp.nan), factorial_rest(jnp.where(inside, x, 0))

    def contains(self, columns: tuple[Array, Array]) -> Array:
        return jnp.isfinite(columns[0])

    def log_density(self, columns: tuple[Array, Array]) -> Float[Array, "*batch n"]:
        """As the distance of x from the mean (Loader 2000): no large terms cancel, whatever the size of a count."""
        x, rest = (linalg.lead(column, self.mean.ndim + 1) for column in columns)
        possible = jnp.isfinite(x) & ((self.mean[..., None] > 0) | (x == 0))
        x, mean, shape = jnp.where(possible, x, 0), self.mean[..., None], self.shape[..., None]
        return jnp.where(possible, _negative_binomial(mean, shape, x, rest), -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Tables:
        """Rows, their sum, and the bound at the present shape."""
        counts, _ = self.observe(x).columns
        counts = linalg.lead(jnp.where(jnp.isfinite(counts), counts, 0), weight.ndim)
        shape = jnp.broadcast_to(self.shape[..., None], weight.shape)
        (tabled, above), (_, falls) = jax.jvp(
            lambda r: tables(r, jnp.broadcast_to(counts, r.shape)), (shape,), (shape,)
        )
        parts = (weight * counts, weight * tabled, weight * above, -weight * falls)
        rows, total, tabled, lacking, curvature = totals(weight, *parts)
        return Tables(rows, total, tabled, lacking, curvature, jnp.log(self.shape))

    def expected_statistics(self) -> Tables:
        """As tables: a prior is then the same function wherever the shape goes."""
        odds = self.mean / self.shape
        above = self.mean * odds * gap_by_square(odds)
        tabled = self.shape * jnp.log1p(odds)
        return Tables(jnp.ones_like(above), self.mean, tabled, above, jnp.zeros_like(above), jnp.log(self.shape))

    def floor(self, x: Any, weight: Array) -> Tables:
        """Nothing, bounded at the present shape."""
        return self.expected_statistics() * 0

    def expected_log_prob(self, statistics: Tables) -> Float[Array, "*batch"]:
        """The bound, rows shape log(1 - p) and total log(p shape)."""
        rows, total = statistics.rows, statistics.total
        odds, log_shape = self.mean / self.shape, jnp.log(self.shape)
        near = times_log(total, self.mean) + statistics.bound(log_shape) - (rows * self.shape + total) * jnp.log1p(odds)
        # Where a shape is small beside the mean, total log(shape) would hide all that depends on it.
        spread = odds > 1
        rest = rows * self.shape * jnp.log1p(odds) + total * jnp.log1p(1 / jnp.where(spread, odds, 1))
        far = (statistics.whole_bound(log_shape) - rest) + total * statistics.log_shape
        return jnp.where(spread, far, near)

    def m_step(self, statistics: Tables) -> Self:
        """The mean of the rows, and the shape at which the slope is zero; without counts the shape stays.

        In odds = mean / shape: rows mean odds gap(odds) / odds^2 = total - slope of the bound.
        """
        some = enough(statistics.rows)
        mean = statistics.total / jnp.where(some, statistics.rows, 1)
        counted = some & enough(mean)
        mean, rows = jnp.where(some, mean, self.mean), jnp.where(counted, statistics.rows, 1)
        of_counts = jnp.where(counted, mean, 1)

        def excess(log_shape: Array) -> Array:
            odds, here = of_counts * jnp.exp(-log_shape), statistics.about(log_shape)
            spread = odds > 1
            near = jnp.maximum(here.untabled, 0) / (rows * of_counts * odds * gap_by_square(odds)) - 1
            some = jnp.where(spread, odds, 1)
            far = 1 - jnp.maximum(here.tabled, 0) / (rows * of_counts * (jnp.log1p(some) / some))
            return jnp.where(spread, far, near)

        log_eps, log_mean = jnp.log(jnp.finfo(mean.dtype).eps), jnp.log(of_counts)
        low, high = log_mean + 2 * log_eps, 2 * jnp.maximum(log_mean, 0) - log_eps
        shape = jnp.exp(root(excess, low, high, jnp.log(self.shape)))
        return replace(self, mean=mean, shape=jnp.where(counted, shape, self.shape))

    def centre(self) -> Array:
        return self.mean

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.ones(members, row.dtype), jnp.ones(members, row.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` counts from each member, `[*batch_shape, n]`."""
        of_rate, of_count = jax.random.split(key)
        shape = jnp.broadcast_to(self.shape[..., None], (*self.batch_shape, n))
        rate = jax.random.gamma(of_rate, shape, dtype=shape.dtype) * (self.mean / self.shape)[..., None]
        return jax.random.poisson(of_count, rate).astype(rate.dtype)


@jax.custom_jvp
def _negative_binomial(mean: Array, shape: Array, x: Array, rest: Array) -> Array:
    """log p of x, of which `rest` is `factorial_rest`."""
    some = jnp.where(x > 0, x, 1)
    short, grown = (mean - x) / (shape + mean), (shape + x) / (shape + mean)
    # As a binomial of shape + x trials, whose mean is off by shape short; of large shapes nothing is left but x.
    of_x = jnp.where(x > 0, x * gap(shape * short / some, mean * (grown / some)), mean / (1 + mean / shape))
    of_shape = 0.5 * jnp.log1p(x / shape) + binet(shape) - binet(shape + x) + shape * gap(-short, grown)
    return -of_shape - rest - of_x


@_negative_binomial.defjvp
def _negative_binomial_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    mean, shape, x, _ = primals
    some, there = jnp.where(mean > 0, mean, 1), mean > 0
    by_mean = jnp.where(there, (x - mean) / some, -1) / (1 + mean / shape)
    by_shape = behind_less(shape, x) - gap((x - mean) / (shape + mean), (shape + x) / (shape + mean))
    by_x = jnp.where(there, digamma(shape + x) - jnp.log(jnp.maximum(x, 1)) - jnp.log1p(shape / some), 0)
    change = by_mean * tangents[0] + by_shape * tangents[1] + by_x * tangents[2]
    return _negative_binomial(*primals), change - tangents[3]


@module
class Multinomial(OfCategories):
    """How many of the trials of a row fell to each of C categories. How many trials a row has is up to the row.

    log p(x) = log T! - sum_c log x_c! + sum_c x_c log probs_c,    T = sum_c x_c

    Args:
        probs: `[..., C]`, the probability of each category; each row sums to one.
        total_count: how many trials a row has that is drawn.

    Raises:
        ValueError: probabilities that are negative or do not sum to one, or a total below one.

    >>> import jaxem as jem
    >>> jem.Multinomial([0.5, 0.25, 0.25]).log_prob([[1, 1, 0], [0, 0, 0]]).round(4).tolist()
    [-1.3863, 0.0]
    """

    scalar = False
    support = "whole numbers from 0 upward in each column"
    probs: Float[Array, "*batch c"] = parameter(simplex)
    total_count: int = static(default=1)

    def __post_init__(self) -> None:
        if int(self.total_count) != self.total_count or self.total_count < 1:
            raise ValueError(f"Multinomial: total_count is {self.total_count}; it must be a whole number above zero")
        object.__setattr__(self, "total_count", int(self.total_count))
        super().__post_init__()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.probs.shape[-1:]

    @classmethod
    def points(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n c"]:
        """The roots of the shares: their noise is the same everywhere."""
        return jnp.sqrt(jnp.maximum(x, 0) / jnp.maximum(jnp.sum(x, axis=-1, keepdims=True), 1))

    def columns(self, x: Float[Array, "n c"]) -> Counted:
        """The counts, `[C, n]`, and the logarithm of how many orders of the trials have them."""
        inside = whole(x).all(-1)
        counts = jnp.where(inside[:, None], x, 0)
        total = jnp.sum(counts, axis=-1)
        coarse, fine = orders(total, counts.T, total > MOST[x.dtype.itemsize])
        return Counted(counts.T, coarse, jnp.where(inside, fine, jnp.nan))

    def contains(self, columns: Counted) -> Array:
        return columns.inside

    def log_density(self, columns: Counted) -> Float[Array, "*batch n"]:
        inside = linalg.lead(columns.inside, self.probs.ndim)
        fine = jnp.where(columns.inside, columns.fine, 0)
        return jnp.where(inside, _multinomial(self.probs, columns.values, columns.coarse, fine), -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Float[Array, "*batch c"]:
        """The weighted count of each category."""
        return linalg.matmul(weight, self.observe(x).columns.values.T)

    def expected_statistics(self) -> Array:
        return self.total_count * self.probs

    def centre(self) -> Array:
        return self.expected_statistics()

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.full((*members, len(row)), 1 / len(row), row.dtype), sizes.get("total_count", 1))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n c"]:
        """`n` rows of `total_count` trials from each member, `[*batch_shape, n, C]`."""
        shape = (*self.batch_shape, n, *self.event_shape)
        probs = jnp.broadcast_to(self.probs[..., None, :], shape)
        trials = jnp.full(shape[:-1], self.total_count, probs.dtype)
        return jax.random.multinomial(key, trials, probs, dtype=probs.dtype)


IMPOSSIBLE = -1e30
"""In place of the logarithm of zero, which times a count of zero is nothing."""


@jax.custom_jvp
def _multinomial(probs: Array, counts: Array, coarse: Array, fine: Array) -> Array:
    """log p of counts `[C, n]`: by words, or, if some rows have many, by their distance from the mean."""
    some = probs > 0
    p = jnp.where(some, probs, 1)
    coarse, fine = (linalg.lead(each, probs.ndim) for each in (coarse, fine))
    total = jnp.sum(counts, axis=0)

    def by_words() -> Array:
        coarse_log, fine_log = log_parts(p)
        logs = jnp.stack([jnp.where(some, coarse_log, IMPOSSIBLE), fine_log], axis=-2)
        sums = linalg.matmul(logs, counts)
        value = (sums[..., 0, :] + coarse) + (sums[..., 1, :] + fine)
        return jnp.where(sums[..., 0, :] < IMPOSSIBLE / 2, -jnp.inf, value)

    def by_distance() -> Array:
        # What was made of rows with few is for words.
        rest = orders(total, counts, jnp.ones_like(total, bool))[1]
        high, low = (linalg.lead(each, probs.ndim) for each in sum_words(counts.T))
        one, excess = sum_words(probs)
        value = linalg.lead(rest, probs.ndim) + high * ((one - 1) + excess)[..., None]

        def less(value: tuple[Array, Array], category: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            p, count = category[0][..., None], linalg.lead(category[1], probs.ndim)
            share, short = quotient_words(count, jnp.maximum(high, 1), low)
            share = jnp.where(count > 0, share, 1)
            apart = count * gap(((p - share) - short) / share, p / share)
            return two_sum(*value, -jnp.where(count > 0, apart, high * p)), None

        value, lost = jax.lax.scan(less, (value, jnp.zeros_like(value)), (jnp.moveaxis(probs, -1, 0), counts))[0]
        return value + lost

    return jax.lax.cond(anywhere(jnp.any(total > MOST[counts.dtype.itemsize])), by_distance, by_words)


@_multinomial.defjvp
def _multinomial_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    probs, counts, _, _ = primals
    some = probs > 0
    p = jnp.where(some, probs, 1)
    change = linalg.matmul(jnp.where(some, tangents[0] / p, 0), counts) + linalg.matmul(jnp.log(p), tangents[1])
    coarse, fine = (linalg.lead(each, probs.ndim) for each in tangents[2:])
    return _multinomial(*primals), change + coarse + fine


@module
class PointMass(Family):
    """One value and no other. Fits never move it: with `Either` it makes inflated zeros, or a known outlier.

    p(x) = 1 if x = location, else 0

    Args:
        location: `[...]`, in the units of x.

    Raises:
        ValueError: a location that is not finite.

    >>> import jaxem as jem
    >>> jem.PointMass([0.0, 2.0]).log_prob([0, 1, 2]).tolist()
    [[0.0, -inf, -inf], [-inf, -inf, 0.0]]
    """

    support = "the locations"
    location: Float[Array, "*batch"] = parameter(held)

    def _equal(self, columns: Float[Array, "n"]) -> Array:
        return linalg.lead(columns, self.location.ndim + 1) == self.location[..., None]

    def contains(self, columns: Float[Array, "n"]) -> Array:
        return self._equal(columns).reshape(-1, len(columns)).any(0)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        return jnp.where(self._equal(columns), 0, -jnp.inf).astype(columns.dtype)

    def harmless(self) -> Any:
        return self.location.reshape(-1)[0]

    def statistics(self, x: Any, weight: Array) -> Float[Array, "*batch"]:
        """The weighted number of rows."""
        return jnp.sum(weight, axis=-1)

    def expected_statistics(self) -> Array:
        return jnp.ones_like(self.location)

    def expected_log_prob(self, statistics: Array) -> Float[Array, "*batch"]:
        """Nothing depends on a parameter."""
        return jnp.zeros_like(statistics)

    def m_step(self, statistics: Array) -> Self:
        """As it is."""
        return self

    def centre(self) -> Array:
        return self.location

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        """At `location`, zero unless it is said."""
        return cls(jnp.full(members, sizes.get("location", 0), row.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """The location, `n` times."""
        return jnp.broadcast_to(self.location[..., None], (*self.batch_shape, n))
