"""Anderson acceleration: the next model from the last several EM steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.core import linalg
from jaxem.core.linalg import HIGHEST
from jaxem.core.pytree import module, replace, select, static
from jaxem.solvers.accelerated import Accelerated, Proposal

EASIEST, HARDEST = 1e-12, 1e6


HARDER, EASIER = 1e3, 10.0
"""Factors by which the damping rises after a lost step and falls after a good one, between its bounds."""


@module
class _Mixing:
    """Memory of Anderson acceleration.

    Attributes:
        count: number of accepted models.
        before, image: the last accepted model, and the unaccelerated step from there.
        moves, residuals: `[memory, p]` last differences of models, and of their residuals.
        damping: relative to the largest squared residual difference.
    """

    count: Int[Array, ""]
    before: Float[Array, "p"]
    image: Float[Array, "p"]
    moves: Float[Array, "m p"]
    residuals: Float[Array, "m p"]
    damping: Float[Array, ""]


@module
class Anderson(Accelerated):
    """Anderson acceleration (Walker and Ni 2011), damped and safeguarded, of another solver, usually EM.

    With residuals f = G(z) - z of the last models z, the next on trial is z + f - (Z + F) c, where F and Z hold
    differences of residuals and of models and c minimises |f - F c|^2 + damping |c|^2. Damping rises after a lost step
    and eases while all goes well; the memory is emptied each time that it is full (Henderson and Varadhan 2019).

    Args:
        solver: the solver to accelerate; without state.
        memory: largest number of differences kept.

    Raises:
        ValueError: a memory below one.

    >>> import jax, jaxem as jem
    >>> x = jax.numpy.array([[-1.1], [-0.9], [-1.0], [1.9], [2.0], [2.1]])
    >>> start = jem.Mixture([0.5, 0.5], jem.Gaussian([[-1.0], [1.0]], [[[1.0]], [[1.0]]]))
    >>> jem.fit(start, x, jem.Anderson(jem.EM())).status_name
    'converged'
    """

    solver: Any
    memory: int = static(default=5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ValueError(f"Anderson: memory is {self.memory}; it must be at least one")

    @property
    def check_every(self) -> int:
        """A little more than `memory`."""
        return self.memory + 2

    def remember(self, at: Float[Array, "p"]) -> _Mixing:
        """An empty memory."""
        none = jnp.zeros((self.memory, at.size), at.dtype)
        return _Mixing(jnp.zeros((), jnp.int32), at, at, none, none, jnp.full((), EASIEST, at.dtype))

    def propose(self, memory: _Mixing, taken: Array, tried: Array, image: Array) -> Proposal:
        """The mixture of the last models that would leave the least residual, if residuals were linear."""
        harder = jnp.minimum(memory.damping * HARDER, HARDEST)
        again = replace(memory, count=jnp.ones_like(memory.count), damping=harder)
        moves, residuals = self._with(memory, tried, image)
        gram = jnp.matmul(residuals, residuals.T, precision=HIGHEST)
        size = linalg.diagonal(gram)
        damped = gram + jnp.diag(memory.damping * jnp.max(size) + jnp.where(size > 0, 0, 1))
        share, _ = linalg.solve(damped, jnp.matmul(residuals, image - tried, precision=HIGHEST))
        ahead = image - jnp.matmul(share, moves + residuals, precision=HIGHEST)
        # The unaccelerated step after a lost one is no reason for less damping.
        damping = jnp.where(memory.count == 1, memory.damping, jnp.maximum(memory.damping / EASIER, EASIEST))
        mixed = _Mixing(memory.count + 1, tried, image, moves, residuals, damping)
        return select(taken, Proposal.candidate(ahead, mixed), Proposal.fallback(memory.image, again))

    def _with(self, memory: _Mixing, tried: Array, image: Array) -> tuple[Array, Array]:
        """The differences, with those to the model just accepted."""
        slot = jnp.maximum(memory.count - 1, 0) % self.memory
        residual = (image - tried) - (memory.image - memory.before)

        def put(kept: Array, new: Array) -> Array:
            kept = jnp.where(slot == 0, 0, kept)
            return kept.at[slot].set(jnp.where(memory.count == 0, 0, new))

        return put(memory.moves, tried - memory.before), put(memory.residuals, residual)
