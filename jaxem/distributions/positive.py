"""Common parts of the families of positive numbers: the support, and a row that all of them can produce."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.distributions.base import Family
from jaxem.distributions.statistics.log_ratios import PositiveColumns
from jaxem.distributions.support import ABOVE_ZERO


class Positive(Family):
    """Families of numbers above zero, whose logarithm is taken once."""

    support = ABOVE_ZERO
    infimum: ClassVar[float] = 0.0

    def columns(self, x: Float[Array, "n"]) -> Any:
        return PositiveColumns.of(x)

    def contains(self, columns: Any) -> Array:
        return columns.inside

    @classmethod
    def seeding_features(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n 1"]:
        """Rows by their logarithms in units of spread: a factor is a distance, whatever the size."""
        rows = PositiveColumns.of(x)
        smallest = jnp.min(jnp.where(rows.inside, rows.logs, jnp.inf))
        logs = jnp.where(rows.inside, rows.logs, jnp.where(jnp.isfinite(smallest), smallest, 0))
        return super().seeding_features(logs, weight)
