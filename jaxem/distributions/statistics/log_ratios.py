"""Positive numbers by their ratio to a reference: the sufficient statistics of the gamma and the inverse Gaussian.

What such a family knows of its spread is how far the mean of log x (or of 1/x) lies from that of x: a difference that
loses all digits when rows are nearly equal. So sums are kept of a ratio less one, and of a divergence that is zero
where the ratio is one, about a reference near the data; moving the reference is exact algebra.
"""

from __future__ import annotations

from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.double_double import log_pair
from jaxem.core.pytree import module, replace
from jaxem.core.special import log_and_gap, x_minus_log1p
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.moments import has_weight, resolution


@module
class PositiveColumns:
    """Rows of positive numbers, with what is computed of them once. A row that is none reads as 1.

    Attributes:
        values: `[n]`.
        logs: `[n]`, their logarithms.
        inside: `[n]`, is it a positive number?
        fine: `[n]`, what rounding took from `logs`.
    """

    values: Float[Array, "n"]
    logs: Float[Array, "n"]
    inside: Bool[Array, "n"]
    fine: Float[Array, "n"]

    @staticmethod
    def of(x: Float[Array, "n"]) -> PositiveColumns:
        """Rows as they were passed."""
        # The CPU takes the smallest (subnormal) floats for zero.
        inside = jnp.isfinite(x) & (x >= jnp.finfo(x.dtype).tiny)
        values = jnp.where(inside, x, 1)
        logs, fine = log_pair(values)
        return PositiveColumns(values, logs, inside, fine)

    def less_one(self, reference: Float[Array, "*batch"], short: Any = 0) -> Float[Array, "*batch n"]:
        """The deviation x / reference - 1, of a reference that may have a second float, `short`."""
        reference, short = reference[..., None], jnp.broadcast_to(short, reference.shape)[..., None]
        return ((linalg.lead(self.values, reference.ndim) - reference) - short) / reference

    def log_ratio(self, reference: Float[Array, "*batch"], short: Any = 0) -> tuple[Array, Array]:
        """log(x / reference), and by how much x / reference - 1 is above it: each `[..., n]`, to all digits."""
        high, low = log_pair(reference)
        logs, fine = (linalg.lead(part, reference.ndim + 1) for part in (self.logs, self.fine))
        coarse = (logs - high[..., None]) + (fine - (low + short / reference)[..., None])
        return log_and_gap(self.less_one(reference, short), coarse)


@module
class Ratios(Referenced):
    """Sums over weighted rows, about `reference`.

    Attributes:
        rows: `[...]` sum of w.
        first: `[...]` sum of w (x / reference - 1).
        second: `[...]` sum of w divergence(x / reference), which a subclass names.
        reference: `[...]`, in units of x.
    """

    sums = ("rows", "first", "second")

    rows: Array
    first: Array
    second: Array
    reference: Array

    def _second(self, change: Array, ratio: Array) -> Array:
        """The second statistic about a reference of which the present one is `ratio` = 1 + `change` times as much."""
        raise NotImplementedError

    def about(self, reference: Float[Array, "*batch"]) -> Self:
        """The statistics of the same rows about another reference."""
        # Sums of nothing may have a reference of zero.
        here = jnp.where(self.reference > 0, self.reference, reference)
        change, ratio = (here - reference) / reference, here / reference
        first = self.first * ratio + self.rows * change
        return replace(self, first=first, second=self._second(change, ratio), reference=reference)

    def aligned(self, other: Self) -> tuple[Self, Self]:
        """Both statistics about the reference of the first that has any."""
        reference = jnp.where(self.reference > 0, self.reference, other.reference)
        return self.about(reference), other.about(reference)

    def mean(self, otherwise: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The mean of the rows; `otherwise` for a member that has none."""
        some = has_weight(self.rows)
        # A mean that rounding has taken to zero is smaller than the reference by about as much as can be told.
        least = 8 * float(jnp.finfo(self.rows.dtype).eps)
        ratio = jnp.maximum(1 + self.first / jnp.where(some, self.rows, 1), least)
        return jnp.where(some, self.reference * ratio, otherwise)

    def spread(self, mean: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The mean divergence of the rows from `mean`, not below rounding; one for a member without rows."""
        some = has_weight(self.rows)
        # What moving may have lost is nothing where the mean has stopped, and much if it comes from far.
        change = 1 - self.reference / mean
        least = resolution(jnp.ones_like(mean)) + 8 * float(jnp.finfo(mean.dtype).eps) * change * change
        spread = self.about(mean).second / jnp.where(some, self.rows, 1)
        return jnp.where(some, jnp.maximum(spread, least), 1)


@module
class LogRatios(Ratios):
    """Ratios with the gamma's divergence r - 1 - log r."""

    def _second(self, change: Array, ratio: Array) -> Array:
        return self.second + change * self.first + self.rows * x_minus_log1p(change, ratio)


@module
class InverseRatios(Ratios):
    """Ratios with the inverse Gaussian's divergence r - 2 + 1/r = (r - 1)^2 / r."""

    def _second(self, change: Array, ratio: Array) -> Array:
        return (self.second + self.rows * change**2 + self.first * change * (2 + change)) / ratio
