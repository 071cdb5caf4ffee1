"""Covariances depend on what was observed alone: computed once where that is the same for all sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Int

from jaxem.chains.kalman.system import Observed
from jaxem.core.pytree import replace


def _same(seen: Bool[Array, "t d s"], length: Int[Array, "s"]) -> Bool[Array, ""]:
    """Whether the same steps of all sequences were observed."""
    return jnp.all(seen == seen[..., :1]) & jnp.all(length == length[:1])


_alike = custom_vmap(_same)


@_alike.def_vmap
def _alike_everywhere(size: int, batched: list[bool], seen: Array, length: Array) -> tuple[Array, bool]:
    # One answer for a whole batch: a branch, and not both ways and a selection.
    axes = [0 if is_batched else None for is_batched in batched]
    return jnp.all(jax.vmap(_same, in_axes=axes)(seen, length)), False


def by_patterns(function: Callable[[Observed], Any], x: Observed) -> Any:
    """`function` of x, by covariances that are shared if they can be."""
    sequences = x.values.shape[-1]
    if x.seen.shape[-1] == 1:
        return function(x)

    def shared(x: Observed) -> Any:
        out = function(replace(x, seen=x.seen[..., :1], length=x.length[:1]))
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*leaf.shape[:-1], sequences)), out)

    return jax.lax.cond(_alike(x.seen, x.length), shared, function, x)
