"""Forward-backward by a scan, where every state can be reached from every other: one scale for all states is exact.

What a common scale flushes to zero is less than 2^-126 (float32) of the largest state. If the transitions lie within
`SPREAD` of each other, every predicted state is at least that share of the largest, so that what was flushed is nothing
beside it: no digit is lost, whatever the evidence. A transition of zero, or close to it, takes `scan_exact.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxem.chains.chain import LONG, Chain, backward_pass, where
from jaxem.core.extended_float import finite_or_zero
from jaxem.core.linalg import HIGHEST
from jaxem.core.summation import two_sum

UNROLLED = 8
"""Number of states up to which the sums over them are unrolled."""

SPREAD = {4: 40.0, 8: 600.0}
"""Largest range of transitions in nats, by bytes of a float: far enough from underflow to keep all digits."""

PRODUCT = 16
"""Number of sequences from which a matrix product is worth its call."""


class Filtered(NamedTuple):
    """Filtered probabilities at each step but the last, at the last, and the log-normaliser in two parts."""

    before: Array
    last: Array
    scale: tuple[Array, Array]


def is_dense(chain: Chain) -> Bool[Array, ""]:
    """Whether all transitions lie within `SPREAD` of each other, so that no state is lost."""
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


def _predicted_backwards(share: Float[Array, "k s"], transition: Float[Array, "k k s2"]) -> Float[Array, "k s"]:
    """sum_j transition_ij share_j."""
    return _predicted(share, jnp.swapaxes(transition, 0, 1))


def _scaled(log_weight: Float[Array, "k s"]) -> tuple[Float[Array, "k s"], Float[Array, "s"]]:
    """Weights divided by the largest, and the log of that."""
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


def first(chain: Chain) -> tuple[Array, Array]:
    """The states at the first step, and the log of their mass."""
    return _normalized(*_scaled(chain.initial + chain.evidence(0)))


def from_logs(log_states: Float[Array, "k s"]) -> Float[Array, "k s"]:
    """States from the logarithms of their probabilities."""
    return jnp.exp(log_states)


def log_probabilities(states: Float[Array, "k s"]) -> Float[Array, "k s"]:
    """Log-probabilities of the states."""
    return jnp.log(states)


def forward(chain: Chain, begin: tuple[Array, Array] | None = None) -> Filtered:
    """Filtered states at every step, starting from those at the first."""
    moves = _moves(chain)

    def step(carry: Any, t: Array) -> tuple[Any, Array]:
        states, (high, low) = carry
        evidence, starts = chain.evidence(t), chain.starts(t)
        likelihood, top = _scaled(evidence)
        new = _normalized(_predicted(states, moves(t)) * likelihood, top)
        if starts is not None:
            new = where(starts, _normalized(*_scaled(chain.initial + evidence)), new)
        return where(chain.over(t), (states, (high, low)), (new[0], two_sum(high, low, new[1]))), states

    states, scale = first(chain) if begin is None else begin
    times = jnp.arange(1, chain.steps, dtype=jnp.int32)
    (last, total), before = jax.lax.scan(step, (states, (scale, jnp.zeros_like(scale))), times)
    return Filtered(before, last, total)


def log_mass(filtered: Filtered, less: Any = 0) -> Float[Array, "s"]:
    """The log-normaliser, in nats; `less` is subtracted from the scale."""
    return (filtered.scale[0] - less) + filtered.scale[1]


def probabilities(states: Float[Array, "k s"]) -> Float[Array, "k s"]:
    """Probabilities of the states: `states` itself."""
    return states


def smoothed(chain: Chain, filtered: Any, end: Array | None = None, count: str | None = "pairs") -> tuple[Array, Any]:
    """Posterior marginals and pairs by `chain.backward_pass`; `end`: marginals of the last step."""
    moves = _moves(chain)
    always_same = chain.log_transition.ndim == 3

    def moved(states: Array, t: Array) -> Any:
        move = moves(t)

        def pull(share: Array) -> tuple[Array, Array]:
            pairs = states[:, None] * share[None]
            return states * _predicted_backwards(share, move), pairs if always_same else pairs * move

        return _predicted(states, move), pull

    end = probabilities(filtered.last) if end is None else end
    # A constant transition is multiplied in once, at the end.
    if count == "pairs" and always_same and end.shape[-1] == 1:
        # For a single sequence counting pairs step by step would take longer than everything else.
        marginals, shares = backward_pass(chain, filtered.before, end, probabilities, moved, "shares")
        return marginals, _summed_pairs(filtered.before[..., 0], shares[..., 0])[..., None] * moves(1)
    marginals, pairs = backward_pass(chain, filtered.before, end, probabilities, moved, count)
    return marginals, pairs * moves(1) if count == "pairs" and always_same else pairs


def _summed_pairs(states: Float[Array, "t k"], shares: Float[Array, "t k"]) -> Float[Array, "k k"]:
    """sum_t states_ti shares_tj, by blocks of steps, so that the sum of a million loses no digits."""
    size = max(min(LONG, len(states)), 1)
    short = -len(states) % size
    parts = (jnp.pad(part, ((0, short), (0, 0))).reshape(-1, size, part.shape[1]) for part in (states, shares))
    return jnp.sum(jnp.einsum("cti,ctj->cij", *parts, precision=HIGHEST), axis=0)


def filtered(chain: Chain, filtered: Filtered) -> Float[Array, "t k s"]:
    """Probabilities of the filtered states."""
    return jnp.concatenate([filtered.before, filtered.last[None]])
