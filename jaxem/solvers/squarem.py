"""SQUAREM: squared extrapolation of EM steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.core.pytree import module, replace, select
from jaxem.solvers.accelerated import Accelerated, Proposal

GROWTH, SHRINKAGE = 4.0, 2.0
"""Factors by which the longest extrapolation grows when it succeeded and shrinks when it failed."""


@module
class _Cycle:
    """Position of SQUAREM in its cycle of three steps.

    Attributes:
        phase: 0 from z0, 1 from z1, 2 from the extrapolated point.
        z0: first model of the cycle.
        z2: the model to fall back on.
        stretch: length of the extrapolation, in unaccelerated steps.
        longest: upper limit of `stretch`.
    """

    phase: Int[Array, ""]
    z0: Float[Array, "p"]
    z2: Float[Array, "p"]
    stretch: Float[Array, ""]
    longest: Float[Array, ""]


@module
class SQUAREM(Accelerated):
    """Squared extrapolation (Varadhan and Roland 2008, scheme S3) of another solver, usually EM.

    Two steps from z0 give r = z1 - z0 and v = (z2 - z1) - r; the next point is z0 - 2 a r + a^2 v with
    a = -|r| / |v|, and one step more from there begins the next cycle, unless the objective has fallen below that at
    z0: then z2 does, and a step was lost. The upper limit of |a| adapts.

    Args:
        solver: the solver to accelerate; without state.

    >>> import jax, jaxem as jem
    >>> x = jax.numpy.array([[-1.1], [-0.9], [-1.0], [1.9], [2.0], [2.1]])
    >>> start = jem.Mixture([0.5, 0.5], jem.Gaussian([[-1.0], [1.0]], [[[1.0]], [[1.0]]]))
    >>> jem.fit(start, x, jem.SQUAREM(jem.EM())).status_name
    'converged'
    """

    solver: Any

    def remember(self, at: Float[Array, "p"]) -> _Cycle:
        """The beginning of a cycle."""
        one = jnp.ones((), at.dtype)
        return _Cycle(jnp.zeros((), jnp.int32), at, at, one, one)

    def propose(self, memory: _Cycle, taken: Array, tried: Array, image: Array) -> Proposal:
        """What follows z0, z1 and the extrapolated point."""
        now = memory
        at_most = now.stretch >= now.longest
        grown = jnp.where(at_most, GROWTH * now.longest, now.longest)
        begun = Proposal.exploratory(image, replace(now, phase=now.phase + 1, z0=tried, longest=grown))
        shrunk = jnp.where(at_most, jnp.maximum(now.longest / SHRINKAGE, 1), now.longest)
        refused = Proposal.fallback(now.z2, replace(now, stretch=jnp.zeros_like(now.stretch), longest=shrunk))
        first = select(taken, begun, refused)

        r, v = tried - now.z0, image - 2 * tried + now.z0
        length, bend = jnp.sqrt(jnp.sum(r**2)), jnp.sqrt(jnp.sum(v**2))
        far = jnp.where(bend > 0, length / jnp.where(bend > 0, bend, 1), now.longest)
        stretch = jnp.clip(far, 1, now.longest)
        beyond = now.z0 + 2 * stretch * r + stretch**2 * v
        second = Proposal.exploratory(beyond, replace(now, phase=now.phase + 1, z2=image, stretch=stretch))

        good, ended = jnp.all(jnp.isfinite(image)), replace(now, phase=jnp.zeros_like(now.phase))
        third = select(good, Proposal.candidate(image, ended), Proposal.fallback(now.z2, ended))
        return select(now.phase == 0, first, select(now.phase == 1, second, third))
