"""Common parts of the families of whole numbers: counts times logarithms, checks, starts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.pytree import module
from jaxem.core.special import log_rest
from jaxem.distributions.base import Family
from jaxem.distributions.support import COUNT


def weighted(weight: Float[Array, "*batch n"], values: Float[Array, "n"]) -> Float[Array, "*batch"]:
    """The weighted sum over rows."""
    return jnp.sum(weight * linalg.lead(values, weight.ndim), axis=-1)


def times_log(count: Array, p: Array) -> Array:
    """`count log p`: zero, with zero slope, where the count is zero; -inf where only p is. One logarithm for each p."""
    some = p > 0
    log = jnp.log(jnp.where(some, p, 1))
    return jnp.where(some, count * log, jnp.where(count == 0, 0, -jnp.inf))


def times_log_rest(count: Array, p: Array) -> Array:
    """`count log(1 - p)`: zero, with zero slope, where the count is zero."""
    some = p < 1
    log = log_rest(jnp.where(some, p, 0))
    return jnp.where(some, count * log, jnp.where(count == 0, 0, -jnp.inf))


def whole(values: Array) -> Array:
    """Whether each is a whole number from zero upward."""
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


class _Counts(Family):
    """Families of whole numbers from zero upward."""

    discrete = True
    support = COUNT

    @classmethod
    def seeding_features(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n d"]:
        """Rows by their logarithms, as their tails are long."""
        return super().seeding_features(jnp.log1p(jnp.maximum(x, 0)), weight)
