"""The same family, written for one member and one row."""

from __future__ import annotations

import math
from typing import Self

import jax
import jax.numpy as jnp
from half_normal import Squares
from jaxtyping import Array, Float

import jaxem as jem
from jaxem.core.constraints import parameter, positive
from jaxem.core.pytree import replace


@jem.family(
    "half_normal_by_row",
    "half-normal numbers",
    example=lambda rng, k: HalfNormalByRow(rng.permutation(k) + rng.uniform(0.5, 1, k)),
)
class HalfNormalByRow(jem.ScalarFamily):
    """The size of a normal number whose mean is zero."""

    support = jem.Support("numbers from 0 upward", lambda x: x >= 0)
    scale: Float[Array, "*batch"] = parameter(positive)

    def log_density(self, x: Array) -> Array:
        return math.log(2 / math.pi) / 2 - jnp.log(self.scale) - (x / self.scale) ** 2 / 2

    def row_statistics(self, x: Array) -> Squares:
        return Squares(jnp.ones_like(x), x**2)

    def expected_statistics(self) -> Squares:
        return Squares(jnp.ones_like(self.scale), self.scale**2)

    def expected_log_prob(self, statistics: Squares) -> Array:
        return -statistics.total * jnp.log(self.scale) - statistics.squares / (2 * self.scale**2)

    def m_step(self, statistics: Squares) -> Self:
        some = (statistics.total > 0) & (statistics.squares > 0)
        square = statistics.squares / jnp.where(some, statistics.total, 1)
        return replace(self, scale=jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), self.scale))

    def centre(self) -> Array:
        return self.scale * math.sqrt(2 / math.pi)

    def draw(self, key: Array) -> Array:
        return self.scale * jnp.abs(jax.random.normal(key, (), self.scale.dtype))
