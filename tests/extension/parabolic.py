"""Parabolic EM (Berlinet and Roland 2009), as a user writes it: a search along the parabola through three iterates."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.core.pytree import module, replace, select
from jaxem.solvers.accelerated import Accelerated, Proposal

STRIDE = 2.0
"""By what the way beyond the last iterate grows while the objective rises, and shrinks when it has fallen."""


@module
class _Search:
    parabola: Float[Array, "3 p"]  # three models, each a plain step from the last
    beyond: Float[Array, ""]  # how far beyond the third the next trial is
    image: Float[Array, "p"]  # a plain step from the model that is carried
    steps: Int[Array, ""]  # plain ones since the last search: it needs two


@module
class Parabolic(Accelerated):
    """z0 + 2 t (z1 - z0) + t^2 (z2 - 2 z1 + z0) for t = 1 + s, s growing for as long as the objective does not fall."""

    solver: Any

    def remember(self, at: Float[Array, "p"]) -> _Search:
        return _Search(jnp.stack([at, at, at]), jnp.ones((), at.dtype), at, jnp.zeros((), jnp.int32))

    def propose(self, memory: _Search, taken: Array, tried: Array, image: Array) -> Proposal:
        searched = memory.steps == 2
        follows = jnp.stack([memory.parabola[1], tried, image])
        further = replace(memory, beyond=STRIDE * memory.beyond, image=image)
        on = select(searched, further, replace(memory, parabola=follows, image=image, steps=memory.steps + 1))
        back = replace(memory, beyond=memory.beyond / STRIDE, steps=jnp.zeros_like(memory.steps))
        refused = Proposal.fallback(memory.image, back)
        return select(
            searched & ~taken,
            refused,
            select(on.steps == 2, Proposal.candidate(_point(on), on), Proposal.fallback(image, on)),
        )


def _point(search: _Search) -> Float[Array, "p"]:
    (z0, z1, z2), t = search.parabola, 1 + search.beyond
    return z0 + 2 * t * (z1 - z0) + t**2 * (z2 - 2 * z1 + z0)
