"""Forward-backward where every state can be reached from every other: one scale for all states is exact there.

What a common scale flushes to zero is less than 2^-126 (float32) of the largest state. If the transitions lie within
`SPREAD` of each other, every predicted state is at least that share of the largest, so that what was flushed is nothing
beside it: no digit is lost, whatever the evidence. A transition of zero, or close to it, takes `exact.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxem.chains.chain import Chain, Expected, smoothed, where
from jaxem.chains.scaled import finite_or_zero
from jaxem.linalg import HIGHEST
from jaxem.sums import two_sum

UNROLLED = 8
"""Up to so many states the sums over them are written out."""

SPREAD = {4: 40.0, 8: 600.0}
"""By bytes of a float, in nats: far enough from the end of the type's range to spare all its digits."""

PRODUCT = 16
"""From so many sequences on, a matrix product is worth its call."""


class Filtered(NamedTuple):
    """Filtered probabilities at each step but the last, at the last, and the log-normaliser in two parts."""

    before: Array
    last: Array
    scale: tuple[Array, Array]


def is_dense(chain: Chain) -> Bool[Array, ""]:
    """Is no transition so much less probable than another that a state might be lost?"""
    spread = SPREAD[chain.log_transition.dtype.itemsize]
    # A chain of one step has none.
    largest = jnp.max(chain.log_transition, initial=-jnp.inf)
    smallest = jnp.min(chain.log_transition, initial=jnp.inf)
    return (largest - smallest < spread) & (jnp.abs(largest) < spread)


def _predicted(states: Float[Array, "k s"], transition: Float[Array, "k k s2"]) -> Float[Array, "k s"]:
    """sum_i states_i transition_ij."""
    if len(states) <= UNROLLED:
        total = states[0][None] * transition[0]
        for i in range(1, len(states)):
            total = total + states[i][None] * transition[i]
        return total
    if transition.shape[-1] == 1 and states.shape[-1] >= PRODUCT:
        return jnp.matmul(transition[..., 0].T, states, precision=HIGHEST)
    return jnp.sum(states[:, None] * transition, axis=0)


def _backed(share: Float[Array, "k s"], transition: Float[Array, "k k s2"]) -> Float[Array, "k s"]:
    """sum_j transition_ij share_j."""
    return _predicted(share, jnp.swapaxes(transition, 0, 1))


def _scaled(log_weight: Float[Array, "k s"]) -> tuple[Float[Array, "k s"], Float[Array, "s"]]:
    """Weights whose largest is one, and the log of what they were divided by."""
    top = finite_or_zero(jnp.max(log_weight, axis=0))
    return jnp.exp(log_weight - top[None]), top


def _normalized(weight: Float[Array, "k s"], log_scale: Float[Array, "s"]) -> tuple[Array, Array]:
    total = jnp.sum(weight, axis=0)
    return weight / jnp.where(total == 0, 1, total)[None], jnp.log(total) + log_scale


def _moves(chain: Chain) -> Any:
    """`t -> probabilities of the transition into step t`."""
    if chain.log_transition.ndim == 3:
        fixed = jnp.exp(chain.log_transition)
        return lambda t: fixed
    return lambda t: jnp.exp(chain.log_move(t))


def forward(chain: Chain) -> Filtered:
    """Filtered states at every step."""
    moves = _moves(chain)
    initial = jnp.broadcast_to(chain.log_initial, chain.log_likelihood[:, 0].shape)

    def step(carry: Any, t: Array) -> tuple[Any, Array]:
        states, (high, low) = carry
        evidence, starts = chain.evidence(t), chain.starts(t)
        likelihood, top = _scaled(evidence)
        new = _normalized(_predicted(states, moves(t)) * likelihood, top)
        if starts is not None:
            new = where(starts, _normalized(*_scaled(initial + evidence)), new)
        return where(chain.over(t), (states, (high, low)), (new[0], two_sum(high, low, new[1]))), states

    first, scale = _normalized(*_scaled(initial + chain.evidence(0)))
    times = jnp.arange(1, chain.steps, dtype=jnp.int32)
    (last, total), before = jax.lax.scan(step, (first, (scale, jnp.zeros_like(scale))), times)
    return Filtered(before, last, total)


def log_mass(filtered: Filtered) -> Float[Array, "s"]:
    """The log-normaliser, in nats."""
    return filtered.scale[0] + filtered.scale[1]


def backward(chain: Chain, filtered: Filtered) -> Expected:
    """Posterior expectations, from the filtered states."""
    moves = _moves(chain)
    always_same = chain.log_transition.ndim == 3

    def moved(states: Array, t: Array) -> Any:
        move = moves(t)

        def pull(share: Array) -> tuple[Array, Array]:
            pairs = states[:, None] * share[None]
            return states * _backed(share, move), pairs if always_same else pairs * move

        return _predicted(states, move), pull

    # A transition that is always the same is multiplied in once, at the end.
    factor = moves(1) if always_same else 1
    return smoothed(chain, filtered.before, filtered.last, lambda states: states, moved, factor)
