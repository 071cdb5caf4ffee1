"""Counts and categories: Bernoulli, Binomial, Categorical, Poisson. A row is one number."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import non_negative, parameter, simplex, unit_interval
from jaxem.core.double_double import (
    MOST,
    anywhere,
    factorial_rest,
    kept,
    log_factorial_parts,
    log_parts,
    log_words,
    on_grid,
    orders,
    parts,
    product_words,
)
from jaxem.core.pytree import module, replace, static
from jaxem.core.special import gap, log_rest
from jaxem.distributions.base import Family, flat_members
from jaxem.distributions.statistics.moments import enough, shares


def weighted(weight: Float[Array, "*batch n"], values: Float[Array, "n"]) -> Float[Array, "*batch"]:
    """The weighted sum over rows."""
    return jnp.sum(weight * linalg.lead(values, weight.ndim), axis=-1)


def times_log(count: Array, p: Array) -> Array:
    """`count log p`: zero, with zero slope, where the count is zero; -inf where only p is. One logarithm for each p."""
    some = p > 0
    log = jnp.log(jnp.where(some, p, 1))
    return jnp.where(some, count * log, jnp.where(count == 0, 0, -jnp.inf))


def times_log_rest(count: Array, p: Array) -> Array:
    """`count log(1 - p)`, in the same way."""
    some = p < 1
    log = log_rest(jnp.where(some, p, 0))
    return jnp.where(some, count * log, jnp.where(count == 0, 0, -jnp.inf))


def whole(values: Array) -> Array:
    """Is each a whole number from zero upward?"""
    return jnp.isfinite(values) & (values >= 0) & (values == jnp.floor(values))


def _largest(values: np.ndarray) -> int:
    """The largest whole number from zero upward."""
    counted = values[(values >= 0) & (values == np.floor(values)) & (values < 2**53)]
    return int(counted.max(initial=0))


@module
class Counted:
    """Counts, and what the likelihood says of them whatever the parameters, as two floats (`words`).

    Attributes:
        values: `[n]`, or `[C, n]`; NaN where a row holds no counts.
        coarse: `[n]`, a multiple of the grid.
        fine: `[n]`, the rest.
    """

    values: Array
    coarse: Array
    fine: Array

    @property
    def inside(self) -> Array:
        return jnp.isfinite(self.fine)

    def counts(self, ndim: int) -> Array:
        """The counts, zero where there are none, with as many axes."""
        return linalg.lead(jnp.where(jnp.isfinite(self.values), self.values, 0), ndim)


@module
class Trials:
    """Weighted successes and failures, each `[...]`."""

    successes: Array
    failures: Array


class OfTrials(Family):
    """Successes among a number of trials that is known for each row."""

    probs: Array

    @property
    def _trials(self) -> int:
        raise NotImplementedError

    def _successes(self, columns: Any) -> Array:
        """`[n]`, zero for a row that the family cannot produce."""
        return jnp.where(self.contains(columns), columns, 0)

    def statistics(self, x: Any, weight: Array) -> Trials:
        """The weighted number of successes and of failures."""
        columns = self.observe(x).columns
        successes = self._successes(columns)
        failures = jnp.where(self.contains(columns), self._trials - successes, 0)
        return Trials(weighted(weight, successes), weighted(weight, failures))

    def centre(self) -> Array:
        return self._trials * self.probs

    def expected_statistics(self) -> Trials:
        return Trials(self._trials * self.probs, self._trials * (1 - self.probs))

    def expected_log_prob(self, statistics: Trials) -> Float[Array, "*batch"]:
        """successes log(probs) + failures log(1 - probs)."""
        return times_log(statistics.successes, self.probs) + times_log_rest(statistics.failures, self.probs)

    def m_step(self, statistics: Trials) -> Self:
        """successes / (successes + failures); a member without rows keeps its probability."""
        total = statistics.successes + statistics.failures
        some = enough(total)
        probs = statistics.successes / jnp.where(some, total, 1)
        return replace(self, probs=jnp.where(some, probs, self.probs))


@module
class Bernoulli(OfTrials):
    """Yes or no.

    log p(x) = x log probs + (1 - x) log(1 - probs), x in {0, 1}

    Args:
        probs: `[...]`, the probability of a one.

    Raises:
        ValueError: a probability outside [0, 1].

    >>> import jaxem as jem
    >>> jem.Bernoulli([0.25, 0.5]).log_prob([1.0]).round(4).tolist()
    [[-1.3863], [-0.6931]]
    """

    support = "0 or 1"
    probs: Float[Array, "*batch"] = parameter(unit_interval)

    @property
    def _trials(self) -> int:
        return 1

    def contains(self, columns: Array) -> Array:
        return (columns == 0) | (columns == 1)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        probs = self.probs[..., None]
        x = linalg.lead(columns, probs.ndim)
        log_prob = times_log((x == 1).astype(probs.dtype), probs) + times_log_rest((x == 0).astype(probs.dtype), probs)
        return jnp.where(self.contains(x), log_prob, -jnp.inf)

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.full(members, 0.5, row.dtype))

    def expected_rows(self, x: Any, weight: Array) -> Float[Array, "n"]:
        """The more probable of the two."""
        return (super().expected_rows(x, weight) > 0.5).astype(weight.dtype)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws of 0 or 1 from each member, `[*batch_shape, n]`."""
        draws = jax.random.uniform(key, (*self.batch_shape, n), self.probs.dtype)
        return (draws < self.probs[..., None]).astype(self.probs.dtype)


@module
class Binomial(OfTrials):
    """Successes in a known number of independent trials.

    log p(x) = log (total_count choose x) + x log probs + (total_count - x) log(1 - probs)

    Args:
        total_count: the number of trials, a whole number, the same for every row.
        probs: `[...]`, the probability of a success.

    Raises:
        ValueError: a probability outside [0, 1], or a total below one.

    >>> import jaxem as jem
    >>> jem.Binomial(5, [0.2, 0.7]).log_prob([3]).round(4).tolist()
    [[-2.972], [-1.1754]]
    """

    support = "whole numbers from 0 to the total count"
    total_count: int = static()
    probs: Float[Array, "*batch"] = parameter(unit_interval)

    def __post_init__(self) -> None:
        if int(self.total_count) != self.total_count or self.total_count < 1:
            raise ValueError(f"Binomial: total_count is {self.total_count}; it must be a whole number above zero")
        object.__setattr__(self, "total_count", int(self.total_count))
        super().__post_init__()

    @property
    def _trials(self) -> int:
        return self.total_count

    def columns(self, x: Array) -> Counted:
        """The counts, and the logarithm of how many orders of the trials have them."""
        inside = whole(x) & (x <= self.total_count)
        successes = jnp.where(inside, x, 0)
        total = jnp.full_like(successes, self.total_count)
        counts = jnp.stack([successes, self._failures(successes)])
        coarse, fine = orders(total, counts, jnp.broadcast_to(self._many(x.dtype), total.shape))
        return Counted(jnp.where(inside, x, jnp.nan), coarse, jnp.where(inside, fine, jnp.nan))

    def contains(self, columns: Counted) -> Array:
        return columns.inside

    def _successes(self, columns: Counted) -> Array:
        return columns.counts(1)

    def _many(self, dtype: Any) -> bool:
        """Are the trials too many for words?"""
        return self.total_count > MOST[jnp.dtype(dtype).itemsize]

    def _failures(self, successes: Array) -> Array:
        """To all digits, though the type may not hold the total."""
        high, low = _float_words(self.total_count, successes.dtype)
        return jnp.subtract(high, successes) + kept(low, successes)

    def log_density(self, columns: Counted) -> Float[Array, "*batch n"]:
        probs = self.probs[..., None]
        x = columns.counts(probs.ndim)
        coarse, fine, inside = (linalg.lead(a, probs.ndim) for a in (columns.coarse, columns.fine, columns.inside))
        log_prob = _binomial(self.total_count, probs, x, self._failures(x), coarse, jnp.where(inside, fine, 0))
        return jnp.where(inside, log_prob, -jnp.inf)

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(sizes["total_count"], jnp.full(members, 0.5, row.dtype))

    @classmethod
    def told(cls, values: np.ndarray) -> dict[str, int]:
        """As many trials as the largest count."""
        return {"total_count": max(1, _largest(values))}

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` counts from each member, `[*batch_shape, n]`."""
        draws = jax.random.uniform(key, (self.total_count, *self.batch_shape, n), self.probs.dtype)
        return jnp.sum(draws < self.probs[None, ..., None], axis=0).astype(self.probs.dtype)


def _float_words(number: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A whole number as two floats."""
    high = np.asarray(number, dtype)
    return high, np.asarray(number - int(high), dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _binomial(total: int, probs: Array, x: Array, rest: Array, coarse: Array, fine: Array) -> Array:
    """log p of x successes and `rest` failures: by words, or, of many trials, by the distance from the mean."""
    inner = (probs > 0) & (probs < 1)
    p = jnp.where(inner, probs, 0.5)
    if total > MOST[p.dtype.itemsize]:
        off = _from_mean(total, p, x)
        some, left = jnp.where(x > 0, x, 1), jnp.where(rest > 0, rest, 1)
        high, low = (total * p, total * (1 - p))
        of_x = jnp.where(x > 0, x * gap(off / some, high / some), high)
        of_rest = jnp.where(rest > 0, rest * gap(-off / left, low / left), low)
        value = fine - of_x - of_rest
    else:
        coarse_log, fine_log = log_parts(p)
        less = 1 - p
        high, low = log_words(less)
        coarse_rest, fine_rest = parts(high, low + ((1 - less) - p) / less)
        value = (x * coarse_log + rest * coarse_rest + coarse) + (x * fine_log + rest * fine_rest + fine)
    return jnp.where(inner, value, jnp.where(jnp.where(probs > 0, rest, x) == 0, 0, -jnp.inf))


def _from_mean(total: int, p: Array, x: Array) -> Array:
    """total p - x."""
    whole_part, rest = _float_words(total, p.dtype)
    high, low = product_words(jnp.full_like(p, whole_part), p)
    return (high - x) + kept(low + rest * p, x)


@_binomial.defjvp
def _binomial_jvp(total: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    probs, x, rest, _, _ = primals
    inner = (probs > 0) & (probs < 1)
    p = jnp.where(inner, probs, 0.5)
    slope = jnp.where(inner, -_from_mean(total, p, x) / p / (1 - p), jnp.where(probs > 0, x, -rest))
    by_x, by_rest = (jnp.where(inner, log, 0) for log in (jnp.log(p), log_rest(p)))
    change = slope * tangents[0] + by_x * tangents[1] + by_rest * tangents[2]
    return _binomial(total, *primals), change + tangents[3] + tangents[4]


class OfCategories(Family):
    """Counts of categories, whose probabilities sum to one."""

    probs: Array

    def expected_log_prob(self, statistics: Array) -> Float[Array, "*batch"]:
        """sum over categories of count log(probs)."""
        return jnp.sum(times_log(statistics, self.probs), axis=-1)

    def m_step(self, statistics: Array) -> Self:
        """count / sum of counts; a member that counted nothing keeps its probabilities."""
        return replace(self, probs=shares(statistics, self.probs))


@module
class Categorical(OfCategories):
    """One of C categories, numbered from zero.

    log p(x) = log probs[x]

    Args:
        probs: `[..., C]`, the probability of each category; each row sums to one.

    Raises:
        ValueError: probabilities that are negative or do not sum to one.

    >>> import jaxem as jem
    >>> jem.Categorical([0.5, 0.25, 0.25]).log_prob([0, 2]).round(4).tolist()
    [-0.6931, -1.3863]
    """

    support = "whole numbers from 0 to the number of categories less one"
    probs: Float[Array, "*batch c"] = parameter(simplex)

    @property
    def categories(self) -> int:
        """How many categories there are."""
        return self.probs.shape[-1]

    @classmethod
    def points(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n c"]:
        """A corner of a simplex for each category: any two are equally far apart."""
        return (x[:, None] == jnp.arange(sizes["categories"], dtype=x.dtype)[None]).astype(x.dtype)

    def columns(self, x: Array) -> Float[Array, "c n"]:
        return (x[None] == jnp.arange(self.categories, dtype=x.dtype)[:, None]).astype(x.dtype)

    def contains(self, columns: Array) -> Array:
        return jnp.sum(columns, axis=-2) > 0

    def log_density(self, columns: Float[Array, "c n"]) -> Float[Array, "*batch n"]:
        ndim = self.probs.ndim
        terms = [times_log(linalg.lead(columns[c], ndim), self.probs[..., c, None]) for c in range(self.categories)]
        return jnp.where(linalg.lead(self.contains(columns), ndim), sum(terms), -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Float[Array, "*batch c"]:
        """The weighted count of each category."""
        columns = self.observe(x).columns
        return jnp.stack([weighted(weight, columns[c]) for c in range(self.categories)], axis=-1)

    def expected_statistics(self) -> Array:
        return self.probs

    def expected_rows(self, x: Any, weight: Array) -> Float[Array, "n"]:
        """The most probable category."""
        votes = jnp.einsum("kn,kc->nc", *flat_members(weight, self.probs), precision=linalg.HIGHEST)
        return jnp.argmax(votes, axis=-1).astype(weight.dtype)

    @classmethod
    def told(cls, values: np.ndarray) -> dict[str, int]:
        """As many categories as the largest says, and one for zero."""
        return {"categories": _largest(values) + 1}

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        categories = sizes["categories"]
        return cls(jnp.full((*members, categories), 1 / categories, row.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` categories from each member, `[*batch_shape, n]`."""
        logits = jnp.log(self.probs)[..., None, :]
        draws = jax.random.categorical(key, logits, shape=(*self.batch_shape, n))
        return draws.astype(self.probs.dtype)


@module
class Arrivals:
    """Weighted counts and the rows they were counted in, each `[...]`."""

    total: Array
    exposure: Array


@module
class Poisson(Family):
    """Counts without an upper limit.

    log p(x) = x log rate - rate - log x!

    Args:
        rate: `[...]`, counts per row.

    Raises:
        ValueError: a negative rate.

    >>> import jaxem as jem
    >>> jem.Poisson(2.0).log_prob([0, 3]).round(3).tolist()
    [-2.0, -1.712]
    """

    support = "whole numbers from 0 upward"
    rate: Float[Array, "*batch"] = parameter(non_negative)

    def columns(self, x: Array) -> Counted:
        """The counts, and log x!."""
        inside = whole(x)
        most = float(MOST[x.dtype.itemsize])
        coarse, fine = log_factorial_parts(jnp.where(inside, jnp.minimum(x, most), 0))
        return Counted(jnp.where(inside, x, jnp.nan), coarse, jnp.where(inside, fine, jnp.nan))

    def contains(self, columns: Counted) -> Array:
        return columns.inside

    def log_density(self, columns: Counted) -> Float[Array, "*batch n"]:
        rate = self.rate[..., None]
        x = columns.counts(rate.ndim)
        coarse, fine, inside = (linalg.lead(a, rate.ndim) for a in (columns.coarse, columns.fine, columns.inside))
        return jnp.where(inside, _poisson(rate, x, coarse, jnp.where(inside, fine, 0)), -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Arrivals:
        """The weighted sum of the counts, and the weighted number of rows."""
        columns = self.observe(x).columns
        return Arrivals(weighted(weight, columns.counts(1)), weighted(weight, columns.inside.astype(weight.dtype)))

    def centre(self) -> Array:
        return self.rate

    def expected_statistics(self) -> Arrivals:
        return Arrivals(self.rate, jnp.ones_like(self.rate))

    def expected_log_prob(self, statistics: Arrivals) -> Float[Array, "*batch"]:
        """total log(rate) - exposure rate."""
        return times_log(statistics.total, self.rate) - statistics.exposure * self.rate

    def m_step(self, statistics: Arrivals) -> Self:
        """total / exposure; a member without rows keeps its rate."""
        some = enough(statistics.exposure)
        rate = statistics.total / jnp.where(some, statistics.exposure, 1)
        return replace(self, rate=jnp.where(some, rate, self.rate))

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.ones(members, row.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` counts from each member, `[*batch_shape, n]`."""
        draws = jax.random.poisson(key, self.rate[..., None], (*self.batch_shape, n))
        return draws.astype(self.rate.dtype)


@jax.custom_jvp
def _poisson(rate: Array, x: Array, coarse: Array, fine: Array) -> Array:
    """log p of counts: by words, or, if some are many, by their distance from the rate (Loader 2000)."""
    some = rate > 0
    mean = jnp.where(some, rate, 1)

    def by_words() -> Array:
        (coarse_log, fine_log), level = log_parts(mean), on_grid(mean)
        return (x * coarse_log - level - coarse) + (x * fine_log - (mean - level) - fine)

    def by_distance() -> Array:
        count = jnp.where(x > 0, x, 1)
        # A share of the count may be too small for a float.
        tiny = mean < float(jnp.finfo(x.dtype).eps) * count
        share = jnp.where(tiny, 1, mean / count)
        far = (jnp.log(count) - jnp.log(mean)) - 1
        apart = count * jnp.where(tiny, far, gap(jnp.where(tiny, 0, (mean - count) / count), share))
        apart = jnp.where(x > 0, apart, mean)
        return -factorial_rest(x) - apart

    many = anywhere(jnp.any(x > MOST[x.dtype.itemsize]))
    value = jax.lax.cond(many, by_distance, by_words)
    return jnp.where(some, value, jnp.where(x == 0, 0, -jnp.inf))


@_poisson.defjvp
def _poisson_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    rate, x, _, _ = primals
    some = rate > 0
    mean = jnp.where(some, rate, 1)
    slope = jnp.where(some, (x - mean) / mean, -1)
    change = slope * tangents[0] + jnp.where(some, jnp.log(mean), 0) * tangents[1]
    return _poisson(*primals), change - tangents[2] - tangents[3]
