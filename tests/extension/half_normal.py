"""Half-normal numbers: distances from zero, whose signs nobody wrote down. A family of a user's own, in one file."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import jaxem as jem
from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive
from jaxem.core.pytree import replace


class Squares(NamedTuple):
    """How many rows, and the sum of their squares."""

    total: Float[Array, "*batch"]
    squares: Float[Array, "*batch"]


@jem.family(
    "half_normal", "half-normal numbers", example=lambda rng, k: HalfNormal(rng.permutation(k) + rng.uniform(0.5, 1, k))
)
class HalfNormal(jem.Family):
    """The size of a normal number whose mean is zero.

    log p(x) = log(2 / pi) / 2 - log scale - x^2 / (2 scale^2)

    Args:
        scale: `[...]`, the standard deviation before the sign was lost, in the units of x.

    >>> HalfNormal(1.0).log_prob([0.0, 2.0, -1.0]).round(4).tolist()
    [-0.2258, -2.2258, -inf]
    """

    support = jem.Support("numbers from 0 upward", lambda x: x >= 0, outside="is below zero")
    scale: Float[Array, "*batch"] = parameter(positive)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        scale = self.scale[..., None]
        inside = self.contains(x := linalg.lead(columns, scale.ndim))
        x = jnp.where(inside, x, 0)
        return jnp.where(inside, math.log(2 / math.pi) / 2 - jnp.log(scale) - (x / scale) ** 2 / 2, -jnp.inf)

    def statistics(self, x: Any, weight: Float[Array, "*batch n"]) -> Squares:
        inside = self.contains(x := linalg.lead(self.observe(x).columns, weight.ndim))
        weight = jnp.where(inside, weight, 0)
        return Squares(weight.sum(-1), (weight * jnp.where(inside, x, 0) ** 2).sum(-1))

    def expected_statistics(self) -> Squares:
        return Squares(jnp.ones_like(self.scale), self.scale**2)

    def expected_log_prob(self, statistics: Squares) -> Float[Array, "*batch"]:
        return -statistics.total * jnp.log(self.scale) - statistics.squares / (2 * self.scale**2)

    def m_step(self, statistics: Squares) -> Self:
        some = (statistics.total > 0) & (statistics.squares > 0)
        square = statistics.squares / jnp.where(some, statistics.total, 1)
        return replace(self, scale=jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), self.scale))

    def centre(self) -> Array:
        return self.scale * math.sqrt(2 / math.pi)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        return self.scale[..., None] * jnp.abs(jax.random.normal(key, (*self.batch_shape, n), self.scale.dtype))
