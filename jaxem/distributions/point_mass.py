"""A point mass: one value, always."""

from __future__ import annotations

from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import held, parameter
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family
from jaxem.distributions.registry import structure
from jaxem.distributions.support import Support


@structure
class PointMass(Family):
    """A point mass at one value, which no fit moves: with `Either` it makes inflated zeros, or a known outlier.

    p(x) = 1 if x = location, else 0

    Args:
        location: `[...]`, in the units of x.

    Raises:
        ValueError: a location that is not finite.

    >>> import jaxem as jem
    >>> jem.PointMass([0.0, 2.0]).log_prob([0, 1, 2]).tolist()
    [[0.0, -inf, -inf], [-inf, -inf, 0.0]]
    """

    location: Float[Array, "*batch"] = parameter(held)

    def _equal(self, columns: Float[Array, "n"]) -> Array:
        return linalg.lead(columns, self.location.ndim + 1) == self.location[..., None]

    def contains(self, columns: Float[Array, "n"]) -> Array:
        return self._equal(columns).reshape(-1, len(columns)).any(0)

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        return jnp.where(self._equal(columns), 0, -jnp.inf).astype(columns.dtype)

    @property
    def support(self) -> Support:  # type: ignore[override]
        return Support("the locations", self.contains, self.location.reshape(-1)[0])

    def statistics(self, x: Any, weight: Array) -> Float[Array, "*batch"]:
        """The weighted number of rows."""
        return jnp.sum(weight, axis=-1)

    def expected_statistics(self) -> Array:
        return jnp.ones_like(self.location)

    def expected_log_prob(self, statistics: Array) -> Float[Array, "*batch"]:
        """Q: zero, since nothing depends on a parameter."""
        return jnp.zeros_like(statistics)

    def m_step(self, statistics: Array) -> Self:
        """The members unchanged."""
        return self

    def centre(self) -> Array:
        return self.location

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        """Members at `location`, zero by default."""
        return cls(jnp.full(members, sizes.get("location", 0), row.dtype))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        at = linalg.lead(x, self.location.ndim + 1) >= self.location[..., None]
        return cumulative.Tails(at.astype(x.dtype), (~at).astype(x.dtype))

    def tails_before(self, x: Float[Array, "n"]) -> cumulative.Tails:
        after = linalg.lead(x, self.location.ndim + 1) > self.location[..., None]
        return cumulative.Tails(after.astype(x.dtype), (~after).astype(x.dtype))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """The location `n` times."""
        return jnp.broadcast_to(self.location[..., None], (*self.batch_shape, n))
