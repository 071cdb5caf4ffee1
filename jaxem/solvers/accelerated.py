"""Acceleration of any monotone solver: fewer steps to the same place, and never downhill."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.coordinates import coordinates, from_coordinates
from jaxem.distributions.base import Statistics
from jaxem.pytree import module, select
from jaxem.solvers.base import Solver

GROWTH = 4.0
"""By which the longest extrapolation grows when it was of use, and shrinks when it was not."""


@module
class SQUAREM(Solver):
    """Squared extrapolation (Varadhan and Roland 2008, scheme S3) of another solver, EM as a rule.

    Two steps from z0 give r = z1 - z0 and v = (z2 - z1) - r; the next point is z0 - 2 a r + a^2 v with
    a = -|r| / |v|, and one step more from there. It is taken if the objective there is not below that at z1; else z2
    is. Either way a step costs three of the other solver.

    Args:
        solver: what is accelerated; without state.

    >>> import jax, jaxem as jem
    >>> x = jax.numpy.array([[-1.1], [-0.9], [-1.0], [1.9], [2.0], [2.1]])
    >>> start = jem.Mixture([0.5, 0.5], jem.Gaussian([[-1.0], [1.0]], [[[1.0]], [[1.0]]]))
    >>> jem.fit(start, x, jem.SQUAREM(jem.EM())).words
    'converged'
    """

    solver: Any
    passes: ClassVar[float] = 3
    window: ClassVar[int] = 5  # gains come in bursts: one by one they would look like the end

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Array:
        """How far it may extrapolate: so many times the plain step."""
        return jnp.ones((), weight.dtype)

    def step(self, model: Any, state: Array, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """Two plain steps, one from the extrapolated point."""

        def plain(model: Any) -> tuple[Any, Array, Array]:
            new, _, log_likelihood = self.solver.step(model, None, x, weight, prior)
            return new, log_likelihood, log_likelihood + model.expected_log_prob(prior)

        first, log_likelihood, _ = plain(model)
        second, _, reached = plain(first)
        z0, z1, z2 = (coordinates(m) for m in (model, first, second))
        r = jax.tree.map(lambda a, b: b - a, z0, z1)
        v = jax.tree.map(lambda a, b, c: (c - b) - (b - a), z0, z1, z2)
        length, bend = (jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))) for tree in (r, v))
        far = jnp.where(bend > 0, length / jnp.where(bend > 0, bend, 1), state)
        stretch = jnp.clip(far, 1, state)
        beyond = jax.tree.map(lambda z, r, v: z + 2 * stretch * r + stretch**2 * v, z0, r, v)
        third, _, found = plain(from_coordinates(beyond, model))
        # NaN is not at least anything.
        useful = found >= reached
        longest = jnp.where(
            useful,
            jnp.where(stretch >= state, GROWTH * state, state),
            jnp.maximum(state / GROWTH, 1),
        )
        return select(useful, third, second), longest, log_likelihood
