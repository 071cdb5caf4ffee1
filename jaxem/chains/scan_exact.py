"""Forward-backward by a scan, for any chain, exact whatever underflows: each state has its own exponent (`Scaled`).

With one scale for all states an improbable state underflows, and with it the path that later evidence may favour.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.chains.chain import Chain, backward_pass, where
from jaxem.core.extended_float import Scaled, finite_or_zero, normalized, power, split
from jaxem.core.summation import two_sum


class Filtered(NamedTuple):
    """Filtered states at each step but the last, those at the last, and log2 of the scale removed, as two words."""

    before: Scaled
    last: Scaled
    scale: tuple[Array, Array]


def _moves(chain: Chain) -> Any:
    """`t -> the transition into step t`; split only once if it is constant."""
    if chain.log_transition.ndim == 3:
        fixed = split(chain.log_transition)
        return lambda t: fixed
    return lambda t: split(chain.log_move(t))


def flows(states: Scaled, transition: Scaled) -> tuple[Float[Array, "k k s"], Float[Array, "k s"]]:
    """Flow from each state i into each state j: mantissas, and the exponent of each j."""
    exponents = states.exponent[:, None] + transition.exponent
    largest = jnp.max(exponents, axis=0)
    return states.mantissa[:, None] * transition.mantissa * power(exponents - finite_or_zero(largest)[None]), largest


def seen(mantissa: Array, exponent: Array, evidence: Array) -> Scaled:
    """Predicted states, times the likelihood of the observation."""
    likelihood = split(evidence)
    return normalized(mantissa * likelihood.mantissa, exponent + likelihood.exponent)


def probabilities(states: Scaled) -> Float[Array, "k s"]:
    """Probabilities of states whose largest exponent is zero; all zero if none is possible."""
    mass = states.mantissa * power(states.exponent)
    total = jnp.sum(mass, axis=0, keepdims=True)
    return mass / jnp.where(total > 0, total, 1)


def _log2_mass(states: Scaled) -> Float[Array, "s"]:
    return jnp.log2(jnp.sum(states.mantissa * power(states.exponent), axis=0))


def first(chain: Chain) -> tuple[Scaled, Array]:
    """The states at the first step, and log2 of the scale removed."""
    initial = split(chain.initial)
    return _rescaled(seen(initial.mantissa, initial.exponent, chain.evidence(0)))


def from_logs(log_states: Float[Array, "k s"]) -> Scaled:
    """States from the logarithms of their probabilities."""
    return split(log_states)


def log_probabilities(states: Scaled) -> Float[Array, "k s"]:
    """Log-probabilities of the states."""
    mass = jnp.log2(states.mantissa) + states.exponent
    return (mass - finite_or_zero(_log2_mass(states))[None]) * math.log(2)


def _rescaled(states: Scaled) -> tuple[Scaled, Array]:
    """The states scaled so that the largest exponent is zero, and the exponent removed."""
    top = finite_or_zero(jnp.max(states.exponent, axis=0))
    return Scaled(states.mantissa, states.exponent - top[None]), top


def forward(chain: Chain, begin: tuple[Scaled, Array] | None = None) -> Filtered:
    """Filtered states at every step, starting from those at the first.

    The scale is summed separately, with compensation, so a million steps lose no digits.
    """
    transition, initial = _moves(chain), split(chain.initial)

    def step(carry: Any, t: Array) -> tuple[Any, Scaled]:
        states, (high, low) = carry
        mass, exponent = flows(states, transition(t))
        evidence, starts = chain.evidence(t), chain.starts(t)
        mass, exponent = where(starts, tuple(initial), (jnp.sum(mass, axis=0), exponent))
        new, top = _rescaled(seen(mass, exponent, evidence))
        if starts is not None:
            top = top + jnp.where(starts, _log2_mass(states), 0)
        after = where(chain.over(t), (states, (high, low)), (new, two_sum(high, low, top)))
        return after, states

    states, top = first(chain) if begin is None else begin
    times = jnp.arange(1, chain.steps, dtype=jnp.int32)
    (last, scale), before = jax.lax.scan(step, (states, (top, jnp.zeros_like(top))), times)
    return Filtered(before, last, scale)


def log_mass(filtered: Filtered, less: Any = 0) -> Float[Array, "s"]:
    """The log-normaliser, in nats; `less` is subtracted from the scale."""
    high, low = filtered.scale
    return ((high - less) + (low + _log2_mass(filtered.last))) * math.log(2)


def smoothed(chain: Chain, filtered: Any, end: Array | None = None, count: str | None = "pairs") -> tuple[Array, Any]:
    """Posterior marginals and pairs by `chain.backward_pass`; `end`: marginals of the last step."""
    transition = _moves(chain)

    def moved(states: Scaled, t: Array) -> Any:
        mass, _ = flows(states, transition(t))

        def pull(share: Array) -> tuple[Array, Array]:
            pairs = mass * share[None]
            return jnp.sum(pairs, axis=1), pairs

        return jnp.sum(mass, axis=0), pull

    end = probabilities(filtered.last) if end is None else end
    return backward_pass(chain, filtered.before, end, probabilities, moved, count)


def filtered(chain: Chain, filtered: Filtered) -> Float[Array, "t k s"]:
    """Probabilities of the filtered states."""
    return jnp.concatenate([jax.vmap(probabilities)(filtered.before), probabilities(filtered.last)[None]])


def draws(key: Array, chain: Chain, filtered: Filtered, n: int) -> Int[Array, "t s n"]:
    """`n` posterior paths for each sequence, drawn from the last step backwards."""
    transition = _moves(chain)
    states = jnp.arange(chain.states, dtype=jnp.int32)

    def choose(key: Array, mass: Float[Array, "k s n"]) -> Int[Array, "s n"]:
        reached = jnp.cumsum(mass, axis=0)
        level = jax.random.uniform(key, mass.shape[1:], mass.dtype) * reached[-1]
        return jnp.argmax(reached > level[None], axis=0).astype(jnp.int32)

    def step(after: Array, before: tuple[Array, Array, Scaled]) -> tuple[Array, Array]:
        t, key, now = before
        mass, _ = flows(now, transition(t + 1))
        into = jnp.sum(jnp.where(states[None, :, None, None] == after[None, None], mass[..., None], 0), axis=1)
        alone = jnp.broadcast_to(probabilities(now)[..., None], into.shape)
        ends = chain.ends(t)
        drawn = choose(key, into if ends is None else jnp.where(ends[None, :, None], alone, into))
        return drawn, drawn

    keys = jax.random.split(key, chain.steps)
    last = probabilities(filtered.last)[..., None]
    end = choose(keys[-1], jnp.broadcast_to(last, (*last.shape[:-1], n)))
    times = jnp.arange(chain.steps - 1, dtype=jnp.int32)
    _, path = jax.lax.scan(step, end, (times, keys[:-1], filtered.before), reverse=True)
    return jnp.concatenate([path, end[None]])
