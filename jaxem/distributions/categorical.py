"""One of several categories, or counts of each."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, simplex
from jaxem.core.double_double import (
    MOST,
    anywhere,
    log_parts,
    orders,
    quotient_words,
    sum_words,
)
from jaxem.core.pytree import replace, static
from jaxem.core.special import x_minus_log1p
from jaxem.core.summation import two_sum
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family, flat_members
from jaxem.distributions.discrete import Counted, _largest, times_log, weighted, whole
from jaxem.distributions.registry import family
from jaxem.distributions.statistics.moments import shares
from jaxem.distributions.support import COUNT, FINITE


class OfCategories(Family):
    """Families whose statistics are counts of categories."""

    probs: Array

    def expected_log_prob(self, statistics: Array) -> Float[Array, "*batch"]:
        """Q: sum over categories of count log(probs)."""
        return jnp.sum(times_log(statistics, self.probs), axis=-1)

    def m_step(self, statistics: Array) -> Self:
        """The shares of the counts; a member that counted nothing keeps its probabilities."""
        return replace(self, probs=shares(statistics, self.probs))


@family("categorical", "categories", column=FINITE)
class Categorical(OfCategories):
    """The categorical family: one of C categories, numbered from zero.

    log p(x) = log probs[x]

    Args:
        probs: `[..., C]`, the probability of each category; each row sums to one.

    Raises:
        ValueError: probabilities that are negative or do not sum to one.

    >>> import jaxem as jem
    >>> jem.Categorical([0.5, 0.25, 0.25]).log_prob([0, 2]).round(4).tolist()
    [-0.6931, -1.3863]
    """

    discrete = True
    support = dataclasses.replace(COUNT, name="whole numbers from 0 to the number of categories less one")
    probs: Float[Array, "*batch c"] = parameter(simplex)

    @property
    def categories(self) -> int:
        """The number of categories."""
        return self.probs.shape[-1]

    @classmethod
    def seeding_features(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n c"]:
        """Rows as corners of a simplex: any two categories are equally far apart."""
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
        """The most probable category, for rows that are missing."""
        votes = jnp.einsum("kn,kc->nc", *flat_members(weight, self.probs), precision=linalg.HIGHEST)
        return jnp.argmax(votes, axis=-1).astype(weight.dtype)

    @classmethod
    def told(cls, values: np.ndarray) -> dict[str, int]:
        """The number of categories: the largest, and one more for zero."""
        return {"categories": _largest(values) + 1}

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        categories = sizes["categories"]
        return cls(jnp.full((*members, categories), 1 / categories, row.dtype))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        """Tails in the order of the numbers of the categories."""
        x = linalg.lead(x, self.probs.ndim)
        below = jnp.stack([x >= c for c in range(self.categories)])
        probs = jnp.moveaxis(self.probs, -1, 0)[..., None]
        return cumulative.Tails(jnp.sum(jnp.where(below, probs, 0), 0), jnp.sum(jnp.where(below, 0, probs), 0))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` categories from each member, `[*batch_shape, n]`."""
        logits = jnp.log(self.probs)[..., None, :]
        draws = jax.random.categorical(key, logits, shape=(*self.batch_shape, n))
        return draws.astype(self.probs.dtype)


@family("multinomial", "multinomial counts", reads="all")
class Multinomial(OfCategories):
    """The multinomial family: how many trials of a row fell to each of C categories, given their number in that row.

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
    support = dataclasses.replace(COUNT, name="whole numbers from 0 upward in each column")
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
    def seeding_features(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n c"]:
        """Rows as square roots of their shares, whose noise is the same everywhere."""
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
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
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
            apart = count * x_minus_log1p(((p - share) - short) / share, p / share)
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
