"""Weighted moments about a reference: the sufficient statistics of every Gaussian.

Never about zero: `E[xx] - mean^2` loses all digits when the data lie far from the origin. The reference is a point
near the data (a member's current mean), the type knows it, and moving it is exact algebra.
"""

from __future__ import annotations

from typing import Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.pytree import module, replace
from jaxem.distributions.statistics.base import Referenced


@module
class Moments(Referenced):
    """Sums over weighted rows, about `reference`.

    Attributes:
        rows: `[...]` sum of w: the rows that speak about the mean.
        spread_rows: `[...]` the rows that speak about the covariance; equal to `rows` for data. A prior may set
            them apart, as a normal-inverse-Wishart does.
        first: `[..., D]` sum of w (x - reference).
        second: `[..., D, D]` sum of w (x - reference)(x - reference)^T, or `[..., D]`, its diagonal.
        reference: `[..., D]`.
    """

    sums = ("rows", "spread_rows", "first", "second")

    rows: Array
    spread_rows: Array
    first: Array
    second: Array
    reference: Array

    def _square(self, a: Array, b: Array) -> Array:
        return a * b if self.second.ndim == self.first.ndim else linalg.outer(a, b)

    def about(self, reference: Float[Array, "*batch d"]) -> Self:
        """The moments of the same rows about another reference."""
        shift = self.reference - reference
        rows = self.rows[..., None]
        cross = self._square(self.first, shift)
        crossed = cross + (cross if cross.ndim == self.first.ndim else linalg.transpose(cross))
        second = self.second + crossed + self._square(rows * shift, shift)
        return replace(self, first=self.first + rows * shift, second=second, reference=reference)

    def mean(self, otherwise: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The mean of the rows; `otherwise` for a member that has none."""
        rows = self.rows[..., None]
        some = has_weight(rows)
        return jnp.where(some, self.reference + self.first / jnp.where(some, rows, 1), otherwise)

    def least(self, mean: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The variance of each column below which there is rounding only.

        It is that of numbers of the size of the mean; and what moving to the mean may have lost, which is nothing
        where the mean has stopped, and much where a member comes from very far away.
        """
        shift = self.reference - mean
        return resolution(mean) + 8 * float(jnp.finfo(shift.dtype).eps) * shift * shift


def resolution(size: Array) -> Array:
    """The variance of numbers of this size that differ by rounding only: a deviation of half their unit of rounding.

    It is the floor of every spread, and a bound: it enters nowhere but where a spread would fall below it. So it never
    moves an estimate that the float type can hold, however far other data are away.
    """
    limits = jnp.finfo(size.dtype)
    return jnp.maximum((float(limits.eps) / 2 * size) ** 2, 16 * float(limits.tiny))


def has_weight(rows: Array) -> Array:
    """Whether there are rows, of a weight that can be divided by."""
    return rows > jnp.sqrt(jnp.finfo(rows.dtype).tiny)


def shares(counts: Float[Array, "*batch k"], otherwise: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """Counts as shares of their sum; `otherwise` where there are none."""
    total = jnp.sum(counts, axis=-1, keepdims=True)
    some = has_weight(total)
    return jnp.where(some, counts / jnp.where(some, total, 1), otherwise)
