"""Forward-backward, once and for everybody: states lead, then time, and sequences last.

Forward keeps a mantissa and an exponent for each state, so no state that is possible is ever lost. Backward needs
neither the evidence nor a scale: given the filtered states, the state at t follows from that at t + 1 by conditional
probabilities, so what it carries sums to one at every step (the backward-smoothing form of Rauch, Tung and Striebel
1965; Kim 1994), and what is flushed to zero is zero to all digits of the answer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxem.chains.scaled import Scaled, finite_or_zero, normalized, power, split
from jaxem.pytree import module

UNROLLED = 8
"""Up to this many states the sums over them are written out."""


LONG = 2_048
"""Above so many steps expected transitions are summed with compensation."""


@module
class Chain:
    """Log-potentials of S chains of K states over T steps.

    Attributes:
        log_initial: `[K, S]`, or `[K, 1]` for one that all sequences share.
        log_transition: `[K, K, S]` or `[K, K, 1]`, from the first axis to the second; with a leading axis of T - 1,
            one for each step.
        log_likelihood: `[K, T, S]`: of what is seen at each step, zero if nothing is.
        length: `[S]` steps that are there; the others are padding and may hold anything.
        start: `[T, S]` bool: a new sequence starts at this step. The first step always does.
    """

    log_initial: Float[Array, "k s1"]
    log_transition: Float[Array, "*t k k s2"]
    log_likelihood: Float[Array, "k t s"]
    length: Int[Array, "s"] | None = None
    start: Bool[Array, "t s"] | None = None

    @property
    def steps(self) -> int:
        """T."""
        return self.log_likelihood.shape[1]

    def evidence(self, t: Any) -> Float[Array, "k s"]:
        """Log-likelihoods at step t."""
        return jax.lax.dynamic_index_in_dim(self.log_likelihood, t, 1, keepdims=False)

    def starts(self, t: Any) -> Bool[Array, "s"] | None:
        """Which sequences start at step t, if any can."""
        return None if self.start is None else jax.lax.dynamic_index_in_dim(self.start, t, 0, keepdims=False)

    def ends(self, t: Any) -> Bool[Array, "s"] | None:
        """Which sequences do not go on after step t, if any may not."""
        padded = None if self.length is None else t + 1 >= self.length
        starts = self.starts(t + 1)
        return starts if padded is None else padded if starts is None else padded | starts

    def log_move(self, t: Any) -> Float[Array, "k k s2"]:
        """Potentials of the transition into step t."""
        if self.log_transition.ndim == 3:
            return self.log_transition
        if self.steps == 1:  # no transition at all; loops look at one before they turn no times
            return jnp.zeros(self.log_transition.shape[1:], self.log_transition.dtype)
        return jax.lax.dynamic_index_in_dim(self.log_transition, t - 1, 0, keepdims=False)

    def transition(self) -> Any:
        """`t -> the transition into step t` as `Scaled`; split once if it is always the same."""
        if self.log_transition.ndim == 3:
            fixed = split(self.log_transition)
            return lambda t: fixed
        return lambda t: split(self.log_move(t))


class Expected(NamedTuple):
    """How often each potential is used, in expectation: the derivative of the log-normaliser, shaped like the chain.

    Attributes:
        initial: `[K, S]`.
        transition: `[K, K, S]`, or `[T - 1, K, K, S]` if every step has its own.
        marginals: `[K, T, S]`; zero at padding.
    """

    initial: Array
    transition: Array
    marginals: Array


class _Filtered(NamedTuple):
    """The forward pass: the states at each step but the last, those at the last, and log2 of the scale taken off."""

    before: Scaled
    last: Scaled
    scale: tuple[Array, Array]


def two_sum(high: Array, low: Array, term: Array) -> tuple[Array, Array]:
    """`high + low + term` as a rounded sum and what the rounding lost (Neumaier 1974)."""
    raised = high + term
    lost = jnp.where(jnp.abs(high) >= jnp.abs(term), (high - raised) + term, (term - raised) + high)
    return raised, low + jnp.where(jnp.isfinite(raised), lost, 0)


def where(condition: Bool[Array, "s"] | None, yes: Any, no: Any) -> Any:
    """`yes` for the sequences where it holds; `no` if there is no condition at all."""
    if condition is None:
        return no
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape((1,) * (b.ndim - 1) + condition.shape), a, b), yes, no)


def flows(states: Scaled, transition: Scaled) -> tuple[list[Array], Array]:
    """What flows from each state i into every state j: a list over i of mantissas `[K, S]`, and their exponent."""
    count = len(states.mantissa)
    exponents = [states.exponent[i][None] + transition.exponent[i] for i in range(count)]
    largest = exponents[0]
    for exponent in exponents[1:]:
        largest = jnp.maximum(largest, exponent)
    common = finite_or_zero(largest)
    mass = [states.mantissa[i][None] * transition.mantissa[i] * power(exponents[i] - common) for i in range(count)]
    return mass, largest


def _added(terms: Any) -> Array:
    if not isinstance(terms, list):
        return jnp.sum(terms, axis=0)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _flows_wide(states: Scaled, transition: Scaled) -> tuple[Array, Array]:
    exponents = states.exponent[:, None] + transition.exponent
    largest = jnp.max(exponents, axis=0)
    common = finite_or_zero(largest)
    return states.mantissa[:, None] * transition.mantissa * power(exponents - common[None]), largest


def _flows(states: Scaled, transition: Scaled) -> tuple[Any, Array]:
    return (flows if len(states.mantissa) <= UNROLLED else _flows_wide)(states, transition)


def _seen(mantissa: Array, exponent: Array, evidence: Array) -> Scaled:
    """Predicted states, times the likelihood of what is seen."""
    likelihood = split(evidence)
    return normalized(mantissa * likelihood.mantissa, exponent + likelihood.exponent)


def probabilities(states: Scaled) -> Float[Array, "k s"]:
    """States, led by one of exponent zero, as probabilities; all zero where none is possible."""
    mass = states.mantissa * power(states.exponent)
    total = jnp.sum(mass, axis=0, keepdims=True)
    return mass / jnp.where(total > 0, total, 1)


def _log2_mass(states: Scaled) -> Float[Array, "s"]:
    return jnp.log2(jnp.sum(states.mantissa * power(states.exponent), axis=0))


def forward(chain: Chain) -> _Filtered:
    """Filtered states at every step. Their scale is summed apart, so a million steps lose no digits."""
    transition = chain.transition()
    shape = chain.log_likelihood[:, 0].shape
    initial = jax.tree.map(lambda part: jnp.broadcast_to(part, shape), split(chain.log_initial))

    def led(states: Scaled) -> tuple[Scaled, Array]:
        top = finite_or_zero(jnp.max(states.exponent, axis=0))
        return Scaled(states.mantissa, states.exponent - top[None]), top

    def step(carry: Any, t: Array) -> tuple[Any, Scaled]:
        states, (high, low) = carry
        mass, exponent = _flows(states, transition(t))
        evidence, starts = chain.evidence(t), chain.starts(t)
        new, top = led(
            where(starts, _seen(initial.mantissa, initial.exponent, evidence), _seen(_added(mass), exponent, evidence))
        )
        if starts is not None:
            top = top + jnp.where(starts, _log2_mass(states), 0)
        ended = None if chain.length is None else t >= chain.length
        after = where(ended, (states, (high, low)), (new, two_sum(high, low, top)))
        return after, states

    first, top = led(_seen(initial.mantissa, initial.exponent, chain.evidence(0)))
    times = jnp.arange(1, chain.steps, dtype=jnp.int32)
    (last, scale), before = jax.lax.scan(step, (first, (top, jnp.zeros_like(top))), times)
    return _Filtered(before, last, scale)


def log_mass(filtered: _Filtered) -> Float[Array, "s"]:
    """The log-normaliser, in nats."""
    high, low = filtered.scale
    return (high + (low + _log2_mass(filtered.last))) * math.log(2)


def backward(chain: Chain, filtered: _Filtered) -> Expected:
    """Posterior expectations, from the filtered states."""
    transition = chain.transition()
    steps = chain.steps

    def there(t: Any, marginal: Array) -> Array:
        return marginal if chain.length is None else jnp.where((t < chain.length)[None], marginal, 0)

    def step(carry: Any, before: tuple[Array, Scaled]) -> tuple[Any, Any]:
        after, marginals, (used, lost) = carry
        t, states = before
        mass, _ = _flows(states, transition(t + 1))
        predicted = _added(mass)
        # Summing to one, within rounding, at every step: a million of them do not add up.
        total = jnp.sum(after, axis=0)
        share = after / (jnp.where(predicted > 0, predicted, 1) * jnp.where(total > 0, total, 1)[None])
        flow = jnp.stack([m * share for m in mass]) if isinstance(mass, list) else mass * share[None]
        # The last step of a sequence knows no later one.
        ends = chain.ends(t)
        flow = where(ends, jnp.zeros_like(flow), flow)
        now = where(ends, probabilities(states), jnp.sum(flow, axis=1))
        marginals = jax.lax.dynamic_update_index_in_dim(marginals, there(t, now), t, 1)
        if chain.log_transition.ndim == 4:
            return (now, marginals, (used, lost)), flow
        counted = two_sum(used, lost, flow) if steps > LONG else (used + flow, lost)
        return (now, marginals, counted), None

    last = probabilities(filtered.last)
    marginals = jnp.zeros_like(chain.log_likelihood)
    marginals = jax.lax.dynamic_update_index_in_dim(marginals, there(steps - 1, last), steps - 1, 1)
    k, _, s = chain.log_likelihood.shape
    used = jnp.zeros((k, k, s), chain.log_likelihood.dtype)
    times = jnp.arange(steps - 1, dtype=jnp.int32)
    carry = last, marginals, (used, jnp.zeros_like(used))
    (_, marginals, (used, lost)), each = jax.lax.scan(step, carry, (times, filtered.before), reverse=True)
    initial = marginals[:, 0]
    if chain.start is not None:
        initial = initial + jnp.sum(jnp.where(chain.start[1:], marginals[:, 1:], 0), axis=1)
    return Expected(initial, used + lost if each is None else each, marginals)


def marginals(chain: Chain, filtered: _Filtered) -> Float[Array, "k t s"]:
    """The filtered states as probabilities; zero at padding."""
    before = jax.vmap(probabilities, out_axes=1)(filtered.before)
    every = jnp.concatenate([before, probabilities(filtered.last)[:, None]], axis=1)
    if chain.length is None:
        return every
    return jnp.where((jnp.arange(chain.steps, dtype=jnp.int32)[:, None] < chain.length[None])[None], every, 0)


def draws(key: Array, chain: Chain, filtered: _Filtered, n: int) -> Int[Array, "t s n"]:
    """`n` paths for each sequence from their posterior, drawn from the last step backwards."""
    transition = chain.transition()
    states = jnp.arange(len(chain.log_likelihood), dtype=jnp.int32)

    def choose(key: Array, mass: Float[Array, "k s n"]) -> Int[Array, "s n"]:
        reached = jnp.cumsum(mass, axis=0)
        level = jax.random.uniform(key, mass.shape[1:], mass.dtype) * reached[-1]
        return jnp.argmax(reached > level[None], axis=0).astype(jnp.int32)

    def step(after: Array, before: tuple[Array, Array, Scaled]) -> tuple[Array, Array]:
        t, key, now = before
        mass, _ = _flows(now, transition(t + 1))
        mass = jnp.stack(mass) if isinstance(mass, list) else mass
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
