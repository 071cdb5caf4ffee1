"""Forward-backward in two levels: blocks of steps side by side, then from block to block.

The effect of a block on the state is a matrix: run it once from each state, all blocks at once; go from block to block
with these matrices; then run every block again, from the now known states at its first step. It takes K + 1 times the
work in far fewer turns, so it is for few sequences on wide machines.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains.chain import Chain
from jaxem.core.extended_float import finite_or_zero
from jaxem.core.pytree import replace
from jaxem.core.semirings import log_sum
from jaxem.core.summation import two_sum


class Filtered(NamedTuple):
    """The chain in blocks, their filtered states, those at the chain's last step, and the log-normaliser in parts."""

    pieces: Chain
    inside: Any
    last: Any
    scale: tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Blocked:
    """Forward-backward of so many blocks, each by one method (`scan_scaled` or `scan_exact`)."""

    way: Any
    blocks: int

    def forward(self, chain: Chain) -> Filtered:
        """Filtered states at every step."""
        way, pieces = self.way, self._pieces(chain)
        nothing = jnp.zeros(pieces.log_likelihood.shape[-1], pieces.log_likelihood.dtype)
        from_each = jax.vmap(lambda corner: way.forward(pieces, (way.from_logs(corner), nothing)))
        through = from_each(jnp.log(self._one_hot(pieces)))
        moves = from_corners(way, through)

        def to_next(log_states: Array, move: Array) -> tuple[Array, Array]:
            new = log_sum(log_states[:, None] + move, 0)
            return new - finite_or_zero(log_sum(new, 0))[None], log_states

        states, scale = way.first(chain)
        begin = way.Filtered(None, states, (scale, jnp.zeros_like(scale)))
        _, entered = jax.lax.scan(to_next, way.log_probabilities(states), self._split_blocks(moves))
        inside = way.forward(pieces, (way.from_logs(self._side_by_side(entered)), nothing))
        zero = jnp.zeros_like(scale)
        masses = jnp.concatenate([way.log_mass(begin)[None], way.log_mass(inside).reshape(self.blocks, -1)])
        (high, low), _ = jax.lax.scan(lambda sums, more: (two_sum(*sums, more), None), (zero, zero), masses)
        last = jax.tree.map(lambda leaf: self._split_blocks(leaf)[-1], inside.last)
        return Filtered(pieces, inside, last, (high, low))

    def log_mass(self, filtered: Filtered, less: Any = 0) -> Float[Array, "s"]:
        """The log-normaliser, in nats; `less` is subtracted from the scale."""
        return (filtered.scale[0] - less) + filtered.scale[1]

    def log_probabilities(self, states: Any) -> Float[Array, "k s"]:
        """Log-probabilities of the states."""
        return self.way.log_probabilities(states)

    def smoothed(self, chain: Chain, filtered: Filtered) -> tuple[Array, Array]:
        """Posterior marginals and expected transitions."""
        way, pieces, inside = self.way, filtered.pieces, filtered.inside
        from_each = jax.vmap(lambda corner: way.smoothed(pieces, inside, corner, count=None)[0][0])
        moves = self._split_blocks(from_each(self._one_hot(pieces)))

        def to_previous(after: Array, move: Array) -> tuple[Array, Array]:
            return jnp.sum(after[:, None] * move, axis=0), after

        end = way.probabilities(filtered.last)
        _, left = jax.lax.scan(to_previous, end, moves, reverse=True)
        marginals, pairs = way.smoothed(pieces, inside, self._side_by_side(left))
        marginals = self._join_blocks(marginals[:-1], end)[: chain.steps]
        if chain.log_transition.ndim == 4:
            return marginals, self._join_blocks(pairs)[: chain.steps - 1]
        return marginals, jnp.sum(self._split_blocks(pairs), axis=0)

    def filtered(self, chain: Chain, filtered: Filtered) -> Float[Array, "t k s"]:
        """Probabilities of the filtered states."""
        before = jax.vmap(self.way.probabilities)(filtered.inside.before)
        return self._join_blocks(before, self.way.probabilities(filtered.last))[: chain.steps]

    def _pieces(self, chain: Chain) -> Chain:
        """The blocks as sequences: each begins with the last step of the one before."""
        steps, blocks = chain.steps, self.blocks
        long = -(-(steps - 1) // blocks)
        begins = long * jnp.arange(blocks, dtype=jnp.int32)

        def window(leaf: Array, axis: int, size: int) -> Array:
            index = jnp.minimum(jnp.arange(size, dtype=jnp.int32)[:, None] + begins[None], leaf.shape[axis] - 1)
            cut = jnp.moveaxis(jnp.take(leaf, index, axis=axis), axis + 1, -2)
            return cut.reshape(*cut.shape[:-2], -1)

        def shared(leaf: Array) -> Array:
            return leaf if leaf.shape[-1] == 1 else jnp.tile(leaf, (1,) * (leaf.ndim - 1) + (blocks,))

        moves, length = chain.log_transition, chain.length
        if length is None:
            length = jnp.full(chain.log_likelihood.shape[-1], steps, jnp.int32)
        if moves.shape[-1] == 1 and moves.ndim == 4:
            moves = jnp.broadcast_to(moves, (*moves.shape[:-1], len(length)))
        return replace(
            chain,
            log_initial=shared(chain.log_initial),
            log_transition=shared(moves) if moves.ndim == 3 else window(moves, 0, long),
            log_likelihood=window(chain.log_likelihood, 0, long + 1),
            length=jnp.clip(length[None] - begins[:, None], 1, long + 1).ravel(),
            start=None if chain.start is None else window(chain.start, 0, long + 1),
        )

    def _one_hot(self, pieces: Chain) -> Float[Array, "k k bs"]:
        """One-hot probabilities for each state and all blocks."""
        _, k, s = pieces.log_likelihood.shape
        return jnp.broadcast_to(jnp.eye(k, dtype=pieces.log_likelihood.dtype)[..., None], (k, k, s))

    def _split_blocks(self, leaf: Array) -> Array:
        """Reshape `[..., B x S]` to `[B, ..., S]`."""
        return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], self.blocks, -1), -2, 0)

    def _side_by_side(self, leaf: Array) -> Array:
        """Reshape `[B, ..., S]` to `[..., B x S]`."""
        leaf = jnp.moveaxis(leaf, 0, -2)
        return leaf.reshape(*leaf.shape[:-2], -1)

    def _join_blocks(self, leaf: Array, end: Array | None = None) -> Array:
        """Reshape `[L, ..., B x S]` to `[B x L, ..., S]`, with `end` appended."""
        joined = self._split_blocks(leaf)
        joined = joined.reshape(-1, *joined.shape[2:])
        return joined if end is None else jnp.concatenate([joined, end[None]])


def from_corners(way: Any, through: Any) -> Float[Array, "k k s"]:
    """Log-potentials, up to a constant, of the move through some steps, from a forward pass from each state.

    Only their differences matter; with the scale of a long sequence they would lose digits.
    """
    common = finite_or_zero(jnp.max(through.scale[0], axis=0))
    masses = jax.vmap(way.log_mass, (0, None))(through, common)
    return jax.vmap(way.log_probabilities)(through.last) + masses[:, None]
