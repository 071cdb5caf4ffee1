"""Batches of chains: under `vmap` a batch becomes more sequences, and a CPU takes them in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from jaxem.chains.chain import Chain
from jaxem.core.pytree import replace

BLOCK = 256
"""Sequences in a block, on a CPU."""


def in_blocks(function: Callable[[Chain], Any], chain: Chain) -> Any:
    """`function` of a chain; on a CPU by blocks of sequences, so that the working set of a step stays in the cache."""
    sequences = chain.log_likelihood.shape[-1]
    if jax.default_backend() != "cpu" or sequences <= 2 * BLOCK:
        return function(chain)
    blocks = -(-sequences // BLOCK)
    short = blocks * BLOCK - sequences

    def pad(leaf: Array) -> Array:
        shared = leaf.shape[-1] == 1
        return leaf if shared or not short else jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, short)], mode="edge")

    def cut(leaf: Array, block: Array) -> Array:
        return leaf if leaf.shape[-1] == 1 else jax.lax.dynamic_slice_in_dim(leaf, block * BLOCK, BLOCK, leaf.ndim - 1)

    padded = jax.tree.map(pad, chain)
    numbers = jnp.arange(blocks, dtype=jnp.int32)
    out = jax.lax.map(lambda block: function(jax.tree.map(lambda leaf: cut(leaf, block), padded)), numbers)

    def join(leaf: Array) -> Array:
        leaf = jnp.moveaxis(leaf, 0, -2)
        return leaf.reshape(*leaf.shape[:-2], blocks * BLOCK)[..., :sequences]

    return jax.tree.map(join, out)


def folded(function: Callable[[Chain], Any]) -> Callable[[Chain], Any]:
    """`function` with a `vmap` rule that takes the batch as more sequences.

    Sequences are the innermost axis: with a batch axis in front each step would handle a few numbers at a time.
    """
    run = custom_vmap(function)

    def fold(size: int, leaf: Array, is_batched: bool, sequences: int) -> Array:
        leaf = leaf if is_batched else jnp.broadcast_to(leaf[None], (size, *leaf.shape))
        leaf = jnp.moveaxis(leaf, 0, -2)
        return jnp.broadcast_to(leaf, (*leaf.shape[:-1], sequences)).reshape(*leaf.shape[:-2], size * sequences)

    @run.def_vmap
    def rule(size: int, batched: Any, chain: Chain) -> Any:
        sequences = chain.log_likelihood.shape[-1]
        changes = {}
        for name in ("log_initial", "log_transition", "log_likelihood", "length", "start"):
            leaf, is_batched = getattr(chain, name), getattr(batched[0], name)
            shared = name.startswith(("log_initial", "log_transition")) and leaf.shape[-1] == 1 and not is_batched
            changes[name] = leaf if leaf is None or shared else fold(size, leaf, is_batched, sequences)
        out = run(replace(chain, **changes))

        def unfold(leaf: Array) -> Array:
            return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], size, sequences), -2, 0)

        return jax.tree.map(unfold, out), jax.tree.map(lambda _: True, out)

    return run
