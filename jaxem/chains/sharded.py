"""A chain whose steps are spread over the devices of a mesh, in order; for inside `jax.shard_map`.

What the steps of a device do to the state is a matrix. One sum over the devices (each fills its own place in an array
of zeros) tells all of these matrices to all of them. So each knows what its first step comes from, and what those after
its last will say of that: the one is an initial potential, the other evidence, and with them its own steps are a chain
like any other.
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
    """The share of this device in the log-normaliser: those of all devices add up to it.

    Args:
        axis: of the mesh.
        chain: the steps of this device, with one transition for all of them; `length` may be zero.
    """
    met = _meet(axis, chain)
    return met.share(normalizer.log_normalizer(met.closed))


@log_normalizer.defjvp
def _log_normalizer_jvp(axis: Any, primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    chain = primals[0]
    met = _meet(axis, chain)
    value, used = normalizer.expectations(met.closed)
    initial, transition, marginals = (jnp.where(met.there, part, 0) for part in used)
    # Into the first step the state comes from another device, or from nowhere.
    before = responsibilities(met.before[:, None] + chain.log_transition, 0) * marginals[0][None]
    initial, before = jnp.where(met.begins, initial, 0), jnp.where(met.begins, 0, before)
    return met.share(value), Expected(initial, transition + before, marginals).along(tangents[0])


class _Met(NamedTuple):
    """What a device knows once it has heard of the others.

    Attributes:
        begins: is it the first?
        there: `[S]` bool: which sequences have steps here?
        before: `[K, S]` log-probabilities of the state before the first step.
        closed: the steps as a chain of their own.
        log_rest: `[S]` what those after the last step add to the log-normaliser of that.
    """

    begins: Array
    there: Array
    before: Array
    closed: Chain
    log_rest: Array

    def share(self, log_mass: Float[Array, "s"]) -> Float[Array, "s"]:
        """Of the log-normaliser, from that of the closed chain; -inf if no path is possible."""
        own = jnp.where(self.log_rest == -jnp.inf, -jnp.inf, log_mass - finite_or_zero(self.log_rest))
        return jnp.where(self.there, own, 0)


def _meet(axis: Any, chain: Chain) -> _Met:
    here = jax.lax.axis_index(axis)
    begins = here == 0
    move = _through(axis, chain)
    moves = jax.lax.psum(placed(move, axis), axis)

    def forwards(states: Array, move: Array) -> tuple[Array, Array]:
        return _led(log_sum(states[:, None] + move, 0)), states

    def backwards(after: Array, move: Array) -> tuple[Array, Array]:
        return _led(log_sum(move + after[None], 1)), after

    # The first device makes the same of every state: there a sequence begins.
    anything = jnp.zeros_like(move[0])
    before = jax.lax.scan(forwards, _led(anything), moves)[1][here]
    after = jax.lax.scan(backwards, anything, moves, reverse=True)[1][here]
    length = jnp.full(anything.shape[-1], chain.steps, jnp.int32) if chain.length is None else chain.length
    is_last = jnp.arange(chain.steps, dtype=jnp.int32)[:, None] == length[None] - 1
    closed = replace(
        chain,
        log_initial=jnp.where(begins, chain.initial, log_sum(before[:, None] + chain.log_transition, 0)),
        log_likelihood=chain.log_likelihood + jnp.where(is_last[:, None], after[None], 0),
        length=jnp.maximum(length, 1),
    )
    return _Met(begins, length > 0, before, closed, log_sum(forwards(before, move)[0] + after, 0))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _through(axis: Any, chain: Chain) -> Float[Array, "k k s"]:
    """What the steps of this device do to the state before them, as log-potentials up to a common one."""
    if methods.choose(chain) == "associative":  # which has no forward pass from a state
        chain = replace(chain, method="blocked")

    def by(way: Any, chain: Chain) -> Array:
        from_each = jax.vmap(lambda first: way.forward(replace(chain, log_initial=first)))
        return from_corners(way, from_each(_firsts(axis, chain)))

    return _relative(chain, folded(lambda chain: normalizer.run(by, chain))(chain))


@_through.defjvp
def _through_jvp(axis: Any, primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    # Second derivatives are rare: in log space, as those of one device.
    def plain(chain: Chain) -> Array:
        from_each = jax.vmap(lambda first: normalizer.states(replace(chain, log_initial=first), log_sum))
        return _relative(chain, from_each(_firsts(axis, chain)))

    return jax.jvp(plain, primals, tangents)


def _firsts(axis: Any, chain: Chain) -> Float[Array, "k k s"]:
    """Potentials of the first state, from each state before it."""
    moves = jnp.broadcast_to(chain.log_transition, (chain.states, *chain.initial.shape))
    return jnp.where(jax.lax.axis_index(axis) == 0, chain.initial[None], moves)


def _relative(chain: Chain, move: Float[Array, "k k s"]) -> Float[Array, "k k s"]:
    """A move up to a common potential; where there are no steps it stays where it is."""
    stay = jnp.where(jnp.eye(len(move), dtype=bool), 0, -jnp.inf).astype(move.dtype)
    top = finite_or_zero(jnp.max(move, axis=(0, 1), keepdims=True))
    nothing = None if chain.length is None else chain.length == 0
    return where(nothing, jnp.broadcast_to(stay[..., None], move.shape), move - top)


def _led(log_states: Float[Array, "k s"]) -> Float[Array, "k s"]:
    return log_states - finite_or_zero(log_sum(log_states, 0))[None]
