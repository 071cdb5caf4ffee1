"""A chain whose steps are sharded over the devices of a mesh, in order; for use inside `jax.shard_map`.

The effect of a device's steps on the state is a matrix. One sum over the devices (each fills its own place in an array
of zeros) gives all of them all these matrices. From them each computes the state before its first step, an initial
potential, and the evidence after its last step; with both its own steps are a chain like any other.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains import methods, normalizer
from jaxem.chains.batching import folded
from jaxem.chains.blocked import from_corners
from jaxem.chains.chain import Chain, Expected, where
from jaxem.core.extended_float import finite_or_zero
from jaxem.core.pytree import replace
from jaxem.core.semirings import log_sum, responsibilities
from jaxem.core.summation import placed


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_normalizer(axis: Any, chain: Chain) -> Float[Array, "s"]:
    """This device's share of the log-normaliser: the shares of all devices add up to it.

    Args:
        axis: of the mesh.
        chain: the steps of this device, with a constant transition; `length` may be zero.
    """
    boundary = _exchange(axis, chain)
    return boundary.share(normalizer.log_normalizer(boundary.closed))


@log_normalizer.defjvp
def _log_normalizer_jvp(axis: Any, primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    chain = primals[0]
    boundary = _exchange(axis, chain)
    value, used = normalizer.expectations(boundary.closed)
    initial, transition, marginals = (jnp.where(boundary.there, part, 0) for part in used)
    # The first step's state comes from another device, or from the initial potentials.
    before = responsibilities(boundary.before[:, None] + chain.log_transition, 0) * marginals[0][None]
    initial, before = jnp.where(boundary.begins, initial, 0), jnp.where(boundary.begins, 0, before)
    return boundary.share(value), Expected(initial, transition + before, marginals).along(tangents[0])


class _Boundary(NamedTuple):
    """A device's part of the chain, and its boundary conditions from the other devices.

    Attributes:
        begins: whether it is the first device.
        there: `[S]` bool: sequences with steps on this device.
        before: `[K, S]` log-probabilities of the state before the first step.
        closed: its steps as a chain of their own.
        log_rest: `[S]` contribution of later steps to the log-normaliser of `closed`.
    """

    begins: Array
    there: Array
    before: Array
    closed: Chain
    log_rest: Array

    def share(self, log_mass: Float[Array, "s"]) -> Float[Array, "s"]:
        """This device's share of the log-normaliser, from that of `closed`; -inf if no path is possible."""
        own = jnp.where(self.log_rest == -jnp.inf, -jnp.inf, log_mass - finite_or_zero(self.log_rest))
        return jnp.where(self.there, own, 0)


def _exchange(axis: Any, chain: Chain) -> _Boundary:
    here = jax.lax.axis_index(axis)
    begins = here == 0
    move = _device_move(axis, chain)
    moves = jax.lax.psum(placed(move, axis), axis)

    def forwards(states: Array, move: Array) -> tuple[Array, Array]:
        return _rescaled(log_sum(states[:, None] + move, 0)), states

    def backwards(after: Array, move: Array) -> tuple[Array, Array]:
        return _rescaled(log_sum(move + after[None], 1)), after

    # On the first device a sequence begins: its result does not depend on the state before.
    anything = jnp.zeros_like(move[0])
    before = jax.lax.scan(forwards, _rescaled(anything), moves)[1][here]
    after = jax.lax.scan(backwards, anything, moves, reverse=True)[1][here]
    length = jnp.full(anything.shape[-1], chain.steps, jnp.int32) if chain.length is None else chain.length
    is_last = jnp.arange(chain.steps, dtype=jnp.int32)[:, None] == length[None] - 1
    closed = replace(
        chain,
        log_initial=jnp.where(begins, chain.initial, log_sum(before[:, None] + chain.log_transition, 0)),
        log_likelihood=chain.log_likelihood + jnp.where(is_last[:, None], after[None], 0),
        length=jnp.maximum(length, 1),
    )
    return _Boundary(begins, length > 0, before, closed, log_sum(forwards(before, move)[0] + after, 0))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _device_move(axis: Any, chain: Chain) -> Float[Array, "k k s"]:
    """Log-potentials, up to a constant, of the move through this device's steps."""
    if methods.choose(chain) == "associative":  # has no forward pass from a given state
        chain = replace(chain, method="blocked")

    def by(way: Any, chain: Chain) -> Array:
        from_each = jax.vmap(lambda first: way.forward(replace(chain, log_initial=first)))
        return from_corners(way, from_each(_first_potentials(axis, chain)))

    return _relative(chain, folded(lambda chain: normalizer.run(by, chain))(chain))


@_device_move.defjvp
def _device_move_jvp(axis: Any, primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    # Second derivatives are rare: in log space, as on one device.
    def plain(chain: Chain) -> Array:
        from_each = jax.vmap(lambda first: normalizer.states(replace(chain, log_initial=first), log_sum))
        return _relative(chain, from_each(_first_potentials(axis, chain)))

    return jax.jvp(plain, primals, tangents)


def _first_potentials(axis: Any, chain: Chain) -> Float[Array, "k k s"]:
    """Log-potentials of the first state, from each state before it."""
    moves = jnp.broadcast_to(chain.log_transition, (chain.states, *chain.initial.shape))
    return jnp.where(jax.lax.axis_index(axis) == 0, chain.initial[None], moves)


def _relative(chain: Chain, move: Float[Array, "k k s"]) -> Float[Array, "k k s"]:
    """A move up to a constant; the identity where there are no steps."""
    stay = jnp.where(jnp.eye(len(move), dtype=bool), 0, -jnp.inf).astype(move.dtype)
    top = finite_or_zero(jnp.max(move, axis=(0, 1), keepdims=True))
    nothing = None if chain.length is None else chain.length == 0
    return where(nothing, jnp.broadcast_to(stay[..., None], move.shape), move - top)


def _rescaled(log_states: Float[Array, "k s"]) -> Float[Array, "k s"]:
    return log_states - finite_or_zero(log_sum(log_states, 0))[None]
