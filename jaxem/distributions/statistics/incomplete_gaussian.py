"""Gaussian rows with missing cells: the exact marginal density, and the moments that are expected given what was seen.

A set of seen columns is a pattern. With M the projection on it, M S M + (1 - M) is a covariance whose factor gives the
density of what was seen, and A = S M (M S M + 1 - M)^-1 M turns a deviation that was seen into the one that is expected
of all columns (Little and Rubin 2002, section 11.2). So a member is factored once for each pattern, not for each row.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxem.core import linalg
from jaxem.core.linalg import HIGHEST, lead, matmul, transpose
from jaxem.core.pytree import module
from jaxem.core.summation import totals
from jaxem.data.missing import Blocks, Incomplete, in_blocks
from jaxem.distributions.base import Family, Rows, flat_members
from jaxem.distributions.statistics import mahalanobis
from jaxem.distributions.statistics.moments import Moments

Columns = Any
"""Rows last: `[D, n]` or `mahalanobis.FeatureExpansion` if all was seen, else `Gaps` (for matrices) or `Cells`."""

LOG_2_PI = math.log(2 * math.pi)

UNROLLED = 8
"""Up to this many columns the algebra of a row is written out."""


@module
class Gaps:
    """Columns with gaps, for members with covariance matrices: rows in blocks of one pattern.

    Attributes:
        values: `[D, blocks, size]`, zero where nothing was seen.
        blocks: which row stands where, and the patterns.
    """

    values: Float[Array, "d b s"]
    blocks: Blocks

    @classmethod
    def of(cls, x: Incomplete) -> Gaps:
        """Rows `[n, D]` in blocks of the same columns seen."""
        columns = x.values.T
        seen = ~jnp.isnan(columns)
        blocks = in_blocks(seen, x.patterns)
        return cls(blocks.spread(jnp.where(seen, columns, 0)), blocks)

    @classmethod
    def none(cls, columns: Float[Array, "d n"]) -> Gaps:
        """Rows without gaps: one block of one pattern."""
        return cls(columns[:, None], Blocks(jnp.ones((1, len(columns)), bool), jnp.zeros(1, jnp.int32)))

    def whitening(self, covariance: Float[Array, "*batch d d"]) -> Float[Array, "*batch p d d"]:
        """The whitening of the observed columns of each pattern; the identity for the others."""
        seen, size = self.blocks.seen, covariance.shape[-1]
        both = seen[:, :, None] & seen[:, None, :]
        identity = jnp.eye(size, dtype=covariance.dtype)
        within = jnp.where(
            lead(both, covariance.ndim + 1), covariance[..., None, :, :], lead(identity, covariance.ndim + 1)
        )
        return linalg.whitening(within)

    def log_density(
        self, mean: Float[Array, "*batch d"], white: Float[Array, "*batch p d d"]
    ) -> Float[Array, "*batch n"]:
        """log p(what was seen of x_i | member)."""
        mean, white, batch = self._flat(mean, white)
        log_volume = self.columns().astype(mean.dtype)[None] * LOG_2_PI + 2 * linalg.half_log_det(white)
        distance = self._distance(mean, white[:, self.blocks.pattern])
        log_prob = -0.5 * (distance + log_volume[:, self.blocks.pattern][..., None])
        return self.blocks.gathered(log_prob).reshape(*batch, -1)

    def distance(self, mean: Float[Array, "*batch d"], white: Float[Array, "*batch p d d"]) -> Float[Array, "*batch n"]:
        """The squared distance |white (x - mean)|^2 of what was seen of each row."""
        mean, white, batch = self._flat(mean, white)
        return self.blocks.gathered(self._distance(mean, white[:, self.blocks.pattern])).reshape(*batch, -1)

    def columns(self) -> Int[Array, "p"]:
        """The number of observed columns in each pattern."""
        return jnp.sum(self.blocks.seen, axis=-1, dtype=jnp.int32)

    def of_row(self, values: Shaped[Array, "*batch p"]) -> Shaped[Array, "*batch n"]:
        """Values of patterns, for the rows that have them (one for all, if there is one pattern)."""
        if self.blocks.place is None:
            return values
        return values[..., self.blocks.pattern[self.blocks.place // self.values.shape[-1]]]

    def mask_weight(self, weight: Float[Array, "*batch n"]) -> Float[Array, "*batch b s"]:
        """Weights where the rows stand; zero for a row of which nothing was seen."""
        some = self.columns() > 0
        return jnp.where(lead(some[self.blocks.pattern][:, None], weight.ndim + 1), self.blocks.spread(weight), 0)

    def rows(self, weight: Float[Array, "*batch n"]) -> Float[Array, "*batch p"]:
        """The weight of each pattern."""
        rows = jnp.sum(self.mask_weight(weight), axis=-1)
        return self.blocks.by_pattern(rows.reshape(-1, rows.shape[-1])).reshape(*weight.shape[:-1], -1)

    def moments(
        self,
        weight: Float[Array, "*batch n"],
        mean: Float[Array, "*batch d"],
        covariance: Float[Array, "*batch d d"],
        white: Float[Array, "*batch p d d"],
        precision: Float[Array, "*batch n"] | None = None,
    ) -> Moments:
        """The expected moments of whole rows, about each member's mean; a row of which nothing was seen has none.

        With the `precision` of each row, of which `covariance` is that at one: weighted by that as well.
        """
        flat, white, batch = self._flat(mean, white)
        counted = self.mask_weight(weight if precision is None else weight * precision)
        rows, *sums = self._sums(counted.reshape(-1, *counted.shape[-2:]), flat)
        rows, first, second = (self.blocks.by_pattern(part) for part in (rows, *sums))
        open_ = rows if precision is None else self.rows(weight).reshape(rows.shape)
        covariance = covariance.reshape(-1, 1, *covariance.shape[-2:])
        expected = self._expected(covariance, white)
        rest = lead(jnp.eye(flat.shape[-1], dtype=flat.dtype), 4) - expected
        # What stays open is the covariance of x less what is expected of it: never a difference of two matrices.
        spread = matmul(matmul(rest, covariance), transpose(rest)) * open_[..., None, None]
        second = jnp.sum(matmul(matmul(expected, second), transpose(expected)) + spread, axis=1)
        first = jnp.sum(matmul(expected, first[..., None])[..., 0], axis=1)
        total, spread_rows = (jnp.sum(part, axis=1).reshape(batch) for part in (rows, open_))
        return Moments(total, spread_rows, first.reshape(mean.shape), second.reshape(*batch, *second.shape[1:]), mean)

    def completed(
        self, base: Float[Array, "*batch d n"], covariance: Float[Array, "*batch d d"], white: Array
    ) -> Float[Array, "*batch d n"]:
        """Rows with their gaps filled as `base` (the mean, or draws from a member) says, given what was seen."""
        white = white.reshape(-1, *white.shape[-3:])
        expected = self._expected(covariance.reshape(-1, 1, *covariance.shape[-2:]), white)[:, self.blocks.pattern]
        start = self.blocks.spread(base.reshape(-1, *base.shape[-2:]))
        seen = self._seen()[None]
        deviation = jnp.where(seen, self.values[None] - start, 0)
        filled = start + jnp.einsum("kbij,kjbs->kibs", expected, deviation, precision=HIGHEST)
        return self.blocks.gathered(jnp.where(seen, self.values[None], filled)).reshape(base.shape)

    def deviation(self, base: Float[Array, "d *n"]) -> Float[Array, "d m"]:
        """Observed cells less `base` (a number for each column, or one for each cell); zero elsewhere."""
        start = base[:, None, None] if base.ndim == 1 else self.blocks.spread(base)
        return self.masked((self.values - start).reshape(len(base), -1))

    def masked(self, values: Float[Array, "d m"]) -> Float[Array, "d m"]:
        """The observed cells; zero for the others."""
        return values if self.blocks.row is None else jnp.where(self._seen().reshape(values.shape), values, 0)

    def projected(
        self, own: Float[Array, "p f g"], shared: Float[Array, "g d"], values: Float[Array, "d m"]
    ) -> Float[Array, "f m"]:
        """The product with `shared`, and then with the matrix of each pattern."""
        if len(own) == 1:
            return matmul(matmul(own[0], shared), values)
        blocks = matmul(shared, values).reshape(len(shared), *self.values.shape[1:])
        return jnp.einsum("bij,jbs->ibs", own[self.blocks.pattern], blocks, precision=HIGHEST).reshape(len(shared), -1)

    def of_places(self, values: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """Values of places, in the order of the rows."""
        return self.blocks.gathered(values[..., None, :])

    def weighted_cells(self, weight: Float[Array, "n"]) -> tuple[Float[Array, "d m"], Float[Array, "d m"]]:
        """The columns, and a weight for each of their cells."""
        spread = jnp.where(self._seen(), self.blocks.spread(weight)[None], 0)
        return self.values.reshape(len(self.values), -1), spread.reshape(len(self.values), -1)

    def finite(self) -> Bool[Array, "n"]:
        """Whether the observed cells are finite."""
        return self.blocks.gathered(jnp.all(jnp.isfinite(self.values), axis=0))

    def _seen(self) -> Bool[Array, "d b s"]:
        seen = self.blocks.seen[self.blocks.pattern].T
        return jnp.broadcast_to(seen[..., None], self.values.shape)

    def _flat(self, mean: Array, white: Array) -> tuple[Array, Array, tuple[int, ...]]:
        batch = mean.shape[:-1]
        return mean.reshape(-1, mean.shape[-1]), white.reshape(-1, *white.shape[-3:]), batch

    def _expected(self, covariance: Array, white: Array) -> Float[Array, "k p d d"]:
        """The matrix A of each member and pattern: exactly the identity on what was seen."""
        seen = self.blocks.seen[None]
        inverse = matmul(transpose(white), white)
        within = jnp.where(seen[..., None] & seen[..., None, :], inverse, 0)
        identity = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
        return jnp.where(seen[..., None], lead(identity, 4), matmul(covariance, within))

    def _deviations(self, mean: Float[Array, "k d"]) -> list[Float[Array, "k b s"]]:
        seen = self._seen()
        return [
            jnp.where(seen[j][None], self.values[j][None] - mean[:, j, None, None], 0) for j in range(mean.shape[-1])
        ]

    def _distance(self, mean: Float[Array, "k d"], white: Float[Array, "k b d d"]) -> Float[Array, "k b s"]:
        if mean.shape[-1] <= UNROLLED:
            deviation = self._deviations(mean)
            z = [sum(white[:, :, i, j, None] * deviation[j] for j in range(i + 1)) for i in range(mean.shape[-1])]
            return sum(z_i * z_i for z_i in z)  # type: ignore[return-value]

        def member(carry: None, parameters: tuple[Array, Array]) -> tuple[None, Array]:
            z = jnp.einsum("bij,jbs->ibs", parameters[1], self._deviation(parameters[0]), precision=HIGHEST)
            return carry, jnp.sum(z * z, axis=0)

        return jax.lax.scan(member, None, (mean, white))[1]

    def _deviation(self, mean: Float[Array, "d"]) -> Float[Array, "d b s"]:
        return self.deviation(mean).reshape(self.values.shape)

    def _sums(self, weight: Float[Array, "k b s"], mean: Float[Array, "k d"]) -> tuple[Array, Array, Array]:
        """Weight, first and second moments of the seen deviations in each block."""
        size = mean.shape[-1]
        if size <= UNROLLED:
            deviation = self._deviations(mean)
            weighted = [weight * d for d in deviation]
            pairs = [(i, j) for i in range(size) for j in range(i + 1)]
            rows, *sums = totals(weight, *weighted, *(weighted[i] * deviation[j] for i, j in pairs))
            lower = dict(zip(pairs, sums[size:], strict=True))
            second = [jnp.stack([lower[max(i, j), min(i, j)] for j in range(size)], axis=-1) for i in range(size)]
            return rows, jnp.stack(sums[:size], axis=-1), jnp.stack(second, axis=-2)

        def member(carry: None, given: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
            deviation = self._deviation(given[0])
            weighted = deviation * given[1][None]
            second = jnp.einsum("ibs,jbs->bij", weighted, deviation, precision=HIGHEST)
            return carry, (jnp.sum(weighted, axis=-1).T, second)

        return jnp.sum(weight, axis=-1), *jax.lax.scan(member, None, (mean, weight))[1]


@module
class Cells:
    """Columns with gaps, for members whose columns are independent.

    Attributes:
        values: `[D, n]`, zero where nothing was seen.
        seen: `[D, n]`.
    """

    values: Float[Array, "d n"]
    seen: Bool[Array, "d n"]

    def log_density(
        self, mean: Float[Array, "*batch d"], variance: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch n"]:
        """log p(what was seen of x_i | member)."""
        scaled = self._deviation(mean) ** 2 / variance[..., None]
        log_volume = jnp.where(self._led(self.seen, mean), LOG_2_PI + jnp.log(variance)[..., None], 0)
        return -0.5 * jnp.sum(scaled + log_volume, axis=-2)

    def moments(
        self, weight: Float[Array, "*batch n"], mean: Float[Array, "*batch d"], variance: Float[Array, "*batch d"]
    ) -> Moments:
        """The expected moments of whole rows, about each member's mean; a row of which nothing was seen has none."""
        weight = jnp.where(lead(jnp.any(self.seen, axis=0), weight.ndim), weight, 0)
        deviation = self._deviation(mean)
        weighted = weight[..., None, :] * deviation
        unseen = jnp.where(self._led(self.seen, mean), 0, weight[..., None, :] * variance[..., None])
        rows = jnp.sum(weight, axis=-1)
        second = jnp.sum(weighted * deviation + unseen, axis=-1)
        return Moments(rows, rows, jnp.sum(weighted, axis=-1), second, mean)

    def completed(self, base: Float[Array, "*batch d n"]) -> Float[Array, "*batch d n"]:
        """Rows with their gaps filled by `base`."""
        return jnp.where(lead(self.seen, base.ndim), lead(self.values, base.ndim), base)

    def weighted_cells(self, weight: Float[Array, "n"]) -> tuple[Float[Array, "d n"], Float[Array, "d n"]]:
        """The columns, and a weight for each of their cells."""
        return self.values, jnp.where(self.seen, weight[None], 0)

    def finite(self) -> Bool[Array, "n"]:
        """Whether the observed cells are finite."""
        return jnp.all(jnp.isfinite(self.values), axis=0)

    def _deviation(self, mean: Float[Array, "*batch d"]) -> Float[Array, "*batch d n"]:
        return jnp.where(self._led(self.seen, mean), self._led(self.values, mean) - mean[..., None], 0)

    def _led(self, array: Array, mean: Array) -> Array:
        return lead(array, mean.ndim + 1)


class AnyCell(Family):
    """A family of vectors with known marginals, so that any cell of a row may be missing.

    What you write beside: `completed`, and densities and statistics of `Gaps` (or of what `gaps` makes) too.
    """

    scalar = False

    def observe_incomplete(self, x: Incomplete) -> Rows:
        """Rows in blocks of the same columns seen."""
        return Rows(Gaps.of(x))

    def contains(self, columns: Columns) -> Array:
        gaps = isinstance(columns, (Gaps, Cells))
        return columns.finite() if gaps else super().contains(mahalanobis.plain(columns))

    def within(self, columns: Columns, log_density: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Log-densities; -inf for a row with an infinite cell, whose distance need not be a number."""
        return jnp.where(lead(self.contains(columns), log_density.ndim), log_density, -jnp.inf)

    def completed(self, columns: Any, base: Float[Array, "*batch d n"]) -> Float[Array, "*batch d n"]:
        """Rows with their gaps filled as `base` (means, or draws of whole rows) says, given what was seen."""
        raise NotImplementedError

    def expected_rows(self, x: Any, weight: Array) -> Float[Array, "n d"]:
        base = jnp.broadcast_to(self.centre()[..., None], (*self.batch_shape, *self.event_shape, weight.shape[-1]))
        filled = self.completed(self.observe(x).columns, base)
        return jnp.einsum("kn,kdn->nd", *flat_members(weight, filled), precision=HIGHEST)

    def drawn_rows(self, key: Array, x: Any, n: int) -> Float[Array, "*batch n d"]:
        return transpose(self.completed(self.observe(x).columns, transpose(self.sample(key, n))))


def in_patterns(columns: Columns) -> Gaps:
    """Columns as rows with (perhaps no) gaps."""
    return columns if isinstance(columns, Gaps) else Gaps.none(columns)


def weighted_cells(columns: Columns, weight: Float[Array, "n"]) -> tuple[Array, Array]:
    """The columns, and a weight for each row, or for each cell where some were not seen."""
    gaps = isinstance(columns, (Gaps, Cells))
    return columns.weighted_cells(weight) if gaps else (mahalanobis.plain(columns), weight)
