"""Successes among trials: Bernoulli, binomial, geometric."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, unit_interval
from jaxem.core.double_double import (
    MOST,
    kept,
    log_parts,
    log_words,
    orders,
    parts,
    product_words,
)
from jaxem.core.pytree import module, replace, static
from jaxem.core.special import log_rest, x_minus_log1p
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family
from jaxem.distributions.discrete import Counted, _Counts, _largest, times_log, times_log_rest, weighted, whole
from jaxem.distributions.registry import family
from jaxem.distributions.statistics.moments import has_weight
from jaxem.distributions.support import COUNT, YES_NO


@module
class Trials:
    """Weighted successes and failures, each `[...]`."""

    successes: Array
    failures: Array


class OfTrials(Family):
    """Families of successes among a number of trials that is known for each row."""

    discrete = True
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
        """Q: successes log(probs) + failures log(1 - probs)."""
        return times_log(statistics.successes, self.probs) + times_log_rest(statistics.failures, self.probs)

    def m_step(self, statistics: Trials) -> Self:
        """The share of successes; a member without rows keeps its probability."""
        total = statistics.successes + statistics.failures
        some = has_weight(total)
        probs = statistics.successes / jnp.where(some, total, 1)
        return replace(self, probs=jnp.where(some, probs, self.probs))


@family("bernoulli", "Bernoulli (yes or no)")
class Bernoulli(OfTrials):
    """The Bernoulli family: a row is 0 or 1.

    log p(x) = x log probs + (1 - x) log(1 - probs), x in {0, 1}

    Args:
        probs: `[...]`, the probability of a one.

    Raises:
        ValueError: a probability outside [0, 1].

    >>> import jaxem as jem
    >>> jem.Bernoulli([0.25, 0.5]).log_prob([1.0]).round(4).tolist()
    [[-1.3863], [-0.6931]]
    """

    support = YES_NO
    probs: Float[Array, "*batch"] = parameter(unit_interval)

    @property
    def _trials(self) -> int:
        return 1

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        probs = self.probs[..., None]
        x = linalg.lead(columns, probs.ndim)
        log_prob = times_log((x == 1).astype(probs.dtype), probs) + times_log_rest((x == 0).astype(probs.dtype), probs)
        return jnp.where(self.contains(x), log_prob, -jnp.inf)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.full(members, 0.5, row.dtype))

    def expected_rows(self, x: Any, weight: Array) -> Float[Array, "n"]:
        """The more probable of 0 and 1, for rows that are missing."""
        return (super().expected_rows(x, weight) > 0.5).astype(weight.dtype)

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        x, probs = linalg.lead(x, self.probs.ndim + 1), self.probs[..., None]
        no, yes = cumulative.at_least(~(x < 0), cumulative.Tails(1 - probs, probs))
        return cumulative.flipped(cumulative.at_least(~(x >= 1), cumulative.Tails(yes, no)))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws of 0 or 1 from each member, `[*batch_shape, n]`."""
        draws = jax.random.uniform(key, (*self.batch_shape, n), self.probs.dtype)
        return (draws < self.probs[..., None]).astype(self.probs.dtype)


@family("binomial", "binomial counts")
class Binomial(OfTrials):
    """The binomial family: successes in a known number of independent trials.

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

    support = dataclasses.replace(COUNT, name="whole numbers from 0 to the total count")
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
        """Whether the trials are too many for words."""
        return self.total_count > MOST[jnp.dtype(dtype).itemsize]

    def _failures(self, successes: Array) -> Array:
        """The failures to all digits, even where the type does not hold the total."""
        high, low = _float_words(self.total_count, successes.dtype)
        return jnp.subtract(high, successes) + kept(low, successes)

    def log_density(self, columns: Counted) -> Float[Array, "*batch n"]:
        probs = self.probs[..., None]
        x = columns.counts(probs.ndim)
        coarse, fine, inside = (linalg.lead(a, probs.ndim) for a in (columns.coarse, columns.fine, columns.inside))
        log_prob = _binomial(self.total_count, probs, x, self._failures(x), coarse, jnp.where(inside, fine, 0))
        return jnp.where(inside, log_prob, -jnp.inf)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(sizes["total_count"], jnp.full(members, 0.5, row.dtype))

    @classmethod
    def told(cls, values: np.ndarray) -> dict[str, int]:
        """The number of trials: the largest count."""
        return {"total_count": max(1, _largest(values))}

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        x = linalg.lead(x, self.probs.ndim + 1)
        return cumulative.binomial(self.total_count, self.probs[..., None], 1 - self.probs[..., None], jnp.floor(x))

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
        of_x = jnp.where(x > 0, x * x_minus_log1p(off / some, high / some), high)
        of_rest = jnp.where(rest > 0, rest * x_minus_log1p(-off / left, low / left), low)
        value = fine - of_x - of_rest
    else:
        coarse_log, fine_log = log_parts(p)
        less = 1 - p
        high, low = log_words(less)
        coarse_rest, fine_rest = parts(high, low + ((1 - less) - p) / less)
        value = (x * coarse_log + rest * coarse_rest + coarse) + (x * fine_log + rest * fine_rest + fine)
    return jnp.where(inner, value, jnp.where(jnp.where(probs > 0, rest, x) == 0, 0, -jnp.inf))


def _from_mean(total: int, p: Array, x: Array) -> Array:
    """The deviation total p - x."""
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


@family("geometric", "geometric counts")
class Geometric(_Counts, OfTrials):
    """The geometric family: failures before the first success.

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
        """Weighted successes (one a row) and failures."""
        columns = self.observe(x).columns
        return Trials(jnp.sum(weight, axis=-1), weighted(weight, jnp.where(whole(columns), columns, 0)))

    def expected_statistics(self) -> Trials:
        return Trials(jnp.ones_like(self.probs), 1 / jnp.maximum(self.probs, jnp.finfo(self.probs.dtype).tiny) - 1)

    def centre(self) -> Array:
        return self.expected_statistics().failures

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.full(members, 0.5, row.dtype))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        count = jnp.floor(linalg.lead(x, self.probs.ndim + 1))
        hazard = -times_log_rest(jnp.maximum(count + 1, 0), self.probs[..., None])
        return cumulative.outlasting(hazard)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` counts from each member, `[*batch_shape, n]`."""
        waiting = jax.random.exponential(key, (*self.batch_shape, n), self.probs.dtype)
        return jnp.floor(waiting / -jnp.log1p(-self.probs[..., None]))
