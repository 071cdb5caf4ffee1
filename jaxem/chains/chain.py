"""What every recursion over a chain reads and returns: time leads, then states, and sequences last.

Sequences are the innermost axis because the loops go over time, and a step must have something to do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxem.core.pytree import apart_as, module, static
from jaxem.core.summation import two_sum

LONG = 2_048
"""Above so many steps expected transitions are summed with compensation."""


@module
class Chain:
    """Log-potentials of S chains of K states over T steps.

    Attributes:
        log_initial: `[K, S]`, or `[K, 1]` for one that all sequences share.
        log_transition: `[K, K, S]` or `[K, K, 1]`, from the first axis to the second; with a leading axis of T - 1,
            one for each step.
        log_likelihood: `[T, K, S]`: of what is seen at each step, zero if nothing is.
        length: `[S]` steps that are there; the others are padding and may hold anything.
        start: `[T, S]` bool: a new sequence starts at this step. The first step always does.
        method: how to go through the steps, see `chains.methods`.
    """

    log_initial: Float[Array, "k s1"]
    log_transition: Float[Array, "*t k k s2"]
    log_likelihood: Float[Array, "t k s"]
    length: Int[Array, "s"] | None = None
    start: Bool[Array, "t s"] | None = None
    method: str = static(default="auto")

    @property
    def steps(self) -> int:
        """T."""
        return self.log_likelihood.shape[0]

    @property
    def states(self) -> int:
        """K."""
        return self.log_likelihood.shape[1]

    @property
    def initial(self) -> Float[Array, "k s"]:
        """Potentials of the first state, for every sequence."""
        return jnp.broadcast_to(self.log_initial, self.log_likelihood.shape[1:])

    def evidence(self, t: Any) -> Float[Array, "k s"]:
        """Log-likelihoods at step t."""
        return jax.lax.dynamic_index_in_dim(self.log_likelihood, t, 0, keepdims=False)

    def starts(self, t: Any) -> Bool[Array, "s"] | None:
        """Which sequences start at step t, if any can."""
        return None if self.start is None else jax.lax.dynamic_index_in_dim(self.start, t, 0, keepdims=False)

    def over(self, t: Any) -> Bool[Array, "s"] | None:
        """Which sequences have ended before step t, if any may."""
        return None if self.length is None else t >= self.length

    def ends(self, t: Any) -> Bool[Array, "s"] | None:
        """Which sequences do not go on after step t, if any may not."""
        return either(self.over(t + 1), self.starts(t + 1))

    @property
    def there(self) -> Bool[Array, "t s"] | None:
        """Which steps are within their sequence, if any may not be."""
        return None if self.length is None else jnp.arange(self.steps, dtype=jnp.int32)[:, None] < self.length[None]

    def log_move(self, t: Any) -> Float[Array, "k k s2"]:
        """Potentials of the transition into step t."""
        if self.log_transition.ndim == 3:
            return self.log_transition
        if self.steps == 1:  # no transition at all; loops look at one before they turn no times
            return jnp.zeros(self.log_transition.shape[1:], self.log_transition.dtype)
        return jax.lax.dynamic_index_in_dim(self.log_transition, t - 1, 0, keepdims=False)


class Expected(NamedTuple):
    """How often each potential is used, in expectation: the derivative of the log-normaliser, shaped like the chain.

    Attributes:
        initial: `[K, S]`.
        transition: `[K, K, S]`, or `[T - 1, K, K, S]` if every step has its own.
        marginals: `[T, K, S]`; zero at padding.
    """

    initial: Array
    transition: Array
    marginals: Array

    def along(self, change: Chain) -> Float[Array, "s"]:
        """The directional derivative: what a change of the potentials adds to the log-normaliser."""

        def used(count: Array, potential: Array) -> Array:
            return jnp.sum(count * potential, axis=tuple(range(count.ndim - 1)))

        own = used(self.initial, change.log_initial) + used(self.transition, change.log_transition)
        return own + used(self.marginals, change.log_likelihood)


def either(a: Array | None, b: Array | None) -> Array | None:
    """Where one of two conditions holds, of which each may not be there at all."""
    return b if a is None else a if b is None else a | b


def where(condition: Bool[Array, "s"] | None, yes: Any, no: Any) -> Any:
    """`yes` for the sequences where it holds; `no` if there is no condition at all."""
    if condition is None:
        return no
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape((1,) * (b.ndim - 1) + condition.shape), a, b), yes, no)


def backward_pass(
    chain: Chain, before: Any, end: Array, alone: Any, moved: Any, count: str | None
) -> tuple[Array, Any]:
    """The backward pass: posterior marginals, from filtered states.

    Given the state at t + 1, that at t does not depend on what comes later, so conditional probabilities lead back, and
    what is carried sums to one at every step (Rauch, Tung and Striebel 1965; Kim 1994): neither evidence nor a scale is
    needed, and what is flushed to zero is zero to all digits of the answer.

    Args:
        chain: the chain.
        before: filtered states at the steps before the last.
        end: `[K, S]` what is known of the last step.
        alone: `states -> [K, S]`, them as probabilities.
        moved: `(states at t, t + 1) -> (predicted, pull)`: what they predict for the next step, and
            `pull(share [K, S]) -> (now [K, S], pairs [K, K, S])`, how much of a share of it comes from each state.
        count: are pairs wanted (`"pairs"`), or what they are made of (`"shares"`), or neither?

    Returns:
        `(marginals [T, K, S], pairs)`, the sum of the pairs, or, if every step has its own transition, each of them; or
        the share of what was filtered at each step but the last, `[T - 1, K, S]`. Padding holds copies.
    """
    steps = chain.steps
    _, k, s = chain.log_likelihood.shape
    each = chain.log_transition.ndim == 4

    def step(carry: Any, now: tuple[Array, Any]) -> tuple[Any, Any]:
        after, counted = carry
        t, states = now
        predicted, pull = moved(states, t + 1)
        # Summing to one, within rounding, at every step: a million of them do not add up.
        total, ends = jnp.sum(after, axis=0), chain.ends(t)
        share = after / (jnp.where(predicted > 0, predicted, 1) * jnp.where(total > 0, total, 1)[None])
        share = where(ends, jnp.zeros_like(share), share)
        marginal, pairs = pull(share)
        # The last step of a sequence knows no later one.
        marginal = where(ends, alone(states), marginal)
        if counted is not None:
            used, lost = counted
            counted = two_sum(used, lost, pairs) if steps > LONG else (used + pairs, lost)
        kept = {"shares": share, "pairs": pairs if each else None, None: None}[count]
        return (marginal, counted), (marginal, kept)

    none = apart_as(end, jnp.zeros((k, k, s), chain.log_likelihood.dtype))
    counted = (none, none) if count == "pairs" and not each else None
    times = jnp.arange(steps - 1, dtype=jnp.int32)
    (_, counted), (marginals, kept) = jax.lax.scan(step, (end, counted), (times, before), reverse=True)
    return jnp.concatenate([marginals, end[None]]), kept if counted is None else counted[0] + counted[1]


def there_or_zero(chain: Chain, states: Float[Array, "t k s"]) -> Float[Array, "t k s"]:
    """Something of every step and state; zero at padding."""
    return states if chain.there is None else jnp.where(chain.there[:, None], states, 0)


def expected(
    chain: Chain, log_mass: Float[Array, "s"], marginals: Float[Array, "t k s"], transition: Array
) -> Expected:
    """What a backward pass found, as the derivative of the log-normaliser: zero at padding, and where that is -inf."""
    marginals = there_or_zero(chain, marginals)
    if chain.start is None:
        return Expected(marginals[0], transition, marginals)
    # One of several sequences in a row may be impossible.
    marginals, transition = (jnp.where(log_mass > -jnp.inf, part, 0) for part in (marginals, transition))
    begun = jnp.sum(jnp.where(chain.start[1:][:, None], marginals[1:], 0), axis=0)
    return Expected(marginals[0] + begun, transition, marginals)
