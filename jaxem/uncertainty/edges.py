"""What of a fitted model is at an edge of what it may be, and what its data determine.

A probability within `EDGE` of zero or one that did not begin there is converging to it: it is put there and held, and
standard errors of the others are given that. A component that is as narrow as its floor is held as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxem.core.constraints import at_edges, loadings, name_of, walk
from jaxem.core.coordinates import moving
from jaxem.core.pytree import select
from jaxem.distributions.base import Statistics
from jaxem.latent.base import Latent

EDGE = 1e-6
"""Distance from zero or one below which a probability is at the edge."""


def put_at_edges(model: Any, objective: Callable[[Any], Array], rows: Array) -> tuple[Any, Bool[Array, ""]]:
    """The model with probabilities next to an edge put there, and whether any was.

    Where the objective falls by that, the model stays as it is: for one of a million rows, or under a prior.
    """
    edged = at_edges(model, EDGE)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, edged)
    before, after = jax.lax.map(objective, both)  # one after the other, as one program
    sound = after >= before - 256 * float(jnp.finfo(before.dtype).eps) * (jnp.abs(before) + rows)
    each = zip(walk(model), walk(edged), strict=True)
    # Others of a simplex change too, by what the sum to one takes.
    moved = [jnp.any((old.values != new.values) & _extreme(new)) for old, new in each if not old.still]
    return select(sound, edged, model), sound & jnp.any(jnp.stack(moved)) if moved else jnp.zeros((), bool)


def _extreme(leaf: Any) -> Array:
    return (leaf.values == 0) | (leaf.values == 1)


def determined(model: Any, floor: Statistics) -> tuple[Bool[Array, "p"], Bool[Array, ""]]:
    """Coordinates that a fit can move and no floor holds up; and whether a floor holds up any member."""
    collapsed = model.is_degenerate(floor)
    every = list(walk(model, jnp.ones(model.batch_shape, bool)))
    used: list[Any] = [leaf.used for leaf in every]
    if not isinstance(model, Latent):
        used = [each & ~jnp.any(collapsed) for each in used]
    elif not isinstance(model.children, dict):
        members = model.child.is_degenerate(floor.child)
        collapsed = jnp.any(collapsed) | jnp.any(members)
        of_child: dict[int, Any] = {id(leaf.values): leaf.used for leaf in walk(model.child, ~members)}
        used = [now & of_child.get(id(leaf.values), True) for leaf, now in zip(every, used, strict=True)]
    return moving(model, used), jnp.any(collapsed)


def rotations(model: Any) -> list[str]:
    """Names of loadings of two factors or more, which data know up to a rotation."""
    return [
        name_of(leaf.path)
        for leaf in walk(model)
        if leaf.declared is loadings and not leaf.still and leaf.values.shape[-1] > 1
    ]
