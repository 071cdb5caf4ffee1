"""Counts and categories: Bernoulli, Binomial, Categorical, Poisson. A row is one number."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from jaxem import linalg
from jaxem.constraints import non_negative, parameter, simplex, unit_interval
from jaxem.distributions.base import Family, flat_members
from jaxem.distributions.moments import enough, shares
from jaxem.pytree import module, replace, static


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
    log = jnp.log1p(-jnp.where(some, p, 0))
    return jnp.where(some, count * log, jnp.where(count == 0, 0, -jnp.inf))


def whole(values: Array) -> Array:
    """Is each a whole number from zero upward?"""
    return jnp.isfinite(values) & (values >= 0) & (values == jnp.floor(values))


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

    def contains(self, columns: Array) -> Array:
        return whole(columns) & (columns <= self._trials)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        probs, total = self.probs[..., None], self._trials
        columns = linalg.lead(columns, probs.ndim)
        inside = self.contains(columns)
        successes = jnp.where(inside, columns, 0)
        ways = gammaln(total + 1.0) - gammaln(successes + 1) - gammaln(total - successes + 1) if total > 1 else 0.0
        log_prob = times_log(successes, probs) + times_log_rest(total - successes, probs) + ways
        return jnp.where(inside, log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Trials:
        """The weighted number of successes and of failures."""
        successes = self.observe(x).columns
        return Trials(weighted(weight, successes), weighted(weight, self._trials - successes))

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

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(sizes["total_count"], jnp.full(members, 0.5, row.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` counts from each member, `[*batch_shape, n]`."""
        draws = jax.random.uniform(key, (self.total_count, *self.batch_shape, n), self.probs.dtype)
        return jnp.sum(draws < self.probs[None, ..., None], axis=0).astype(self.probs.dtype)


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

    def columns(self, x: Array) -> tuple[Array, Array]:
        inside = whole(x)
        return jnp.where(inside, x, jnp.nan), gammaln(jnp.where(inside, x, 0) + 1)

    def contains(self, columns: tuple[Array, Array]) -> Array:
        return jnp.isfinite(columns[0])

    def log_density(self, columns: tuple[Array, Array]) -> Float[Array, "*batch n"]:
        rate = self.rate[..., None]
        counts, log_factorial = (linalg.lead(column, rate.ndim) for column in columns)
        inside = jnp.isfinite(counts)
        log_prob = times_log(jnp.where(inside, counts, 0), rate) - rate - log_factorial
        return jnp.where(inside, log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Arrivals:
        """The weighted sum of the counts, and the weighted number of rows."""
        return Arrivals(weighted(weight, self.observe(x).columns[0]), jnp.sum(weight, axis=-1))

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
