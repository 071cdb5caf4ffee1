"""The gain of probabilities that grow away from zero or one, which EM multiplies there.

A share p of r rows that an EM step multiplies by g gains r p (g - 1) or so in that step, which is nothing while p is
next to nothing, whatever there is to gain. The slope of Q in the share itself does not vanish with it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core.constraints import simplex, unit_interval, walk
from jaxem.distributions.base import Statistics

NEAR = 1e-3
"""Probabilities closer than this to zero or one are next to the edge."""
NOTABLE = 0.1
"""What grows by less than this share in an EM step is left to grow so."""


def growth(shares: Float[Array, "... k"], new: Float[Array, "... k"]) -> Float[Array, "... k"]:
    """The relative growth of shares next to zero in an EM step; zero of all others."""
    grows = (shares > 0) & (shares < NEAR) & (new > shares)
    return jnp.where(grows, new / jnp.where(grows, shares, 1), 1) - 1


def lift(model: Any, new: Any, counted: Statistics) -> Array:
    """The remaining gain, in nats, of shares next to an edge that the step from `model` to `new` makes grow.

    It is the slope of Q towards half of each such share's growth, or half of the whole if it more than doubles; zero
    if none grows notably. Models without probabilities of their own have no edges.
    """
    leaves, structure = jax.tree.flatten(model)
    found = (
        _towards(leaf.constraint, leaf.values, to) for leaf, to in zip(walk(model), jax.tree.leaves(new), strict=True)
    )
    ways = {i: way for i, way in enumerate(found) if way is not None}
    if not ways:
        return jnp.zeros((), leaves[0].dtype)

    def q(moved: dict[int, Array]) -> Array:
        whole = jax.tree.unflatten(structure, [moved.get(i, leaf) for i, leaf in enumerate(leaves)])
        return whole.expected_log_prob(counted)

    worth = jax.jvp(q, ({i: leaves[i] for i in ways},), (ways,))[1]
    return jnp.where(worth > 0, worth, 0)


def _towards(constraint: Any, shares: Array, new: Array) -> Array | None:
    """The direction in which a parameter leaves its edges, by as much as that counts; None if it has none."""
    if constraint is simplex:
        more = _notable(growth(shares, new))
        return more - shares * jnp.sum(more, axis=-1, keepdims=True)
    if constraint is unit_interval:
        # So near to one a number says little about its distance from there.
        apart = jnp.abs(new - shares) > 16 * float(jnp.finfo(shares.dtype).eps)
        up = _notable(growth(shares, new)) * (1 - shares)
        return up - jnp.where(apart, _notable(growth(1 - shares, 1 - new)), 0) * shares
    return None


def _notable(more: Array) -> Array:
    return jnp.where(more > NOTABLE, jnp.minimum(more, 1) / 2, 0)
