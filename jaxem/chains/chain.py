"""Input and output of every recursion over a chain: time is the first axis, then states, and sequences last.

Sequences are the innermost axis because the loops go over time, and each step should handle many numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxem.core.pytree import apart_as, module, static
from jaxem.core.summation import two_sum

LONG = 2_048
"""Number of steps above which expected transitions are summed with compensation."""


@module
class Chain:
    """Log-potentials of S chains of K states over T steps.

    Attributes:
        log_initial: `[K, S]`, or `[K, 1]` if all sequences share it.
        log_transition: `[K, K, S]` or `[K, K, 1]`, from the first axis to the second; with a leading axis of T - 1,
            one for each step.
        log_likelihood: `[T, K, S]` of the observation at each step, zero where there is none.
        length: `[S]` steps of each sequence; the others are padding and may hold anything.
        start: `[T, S]` bool: a new sequence starts at this step. The first step always does.
        method: of `chains.methods`.
    """

    log_initial: Float[Array, "k s1"]
    log_transition: Float[Array, "*t k k s2"]
    log_likelihood: Float[Array, "t k s"]
    length: Int[Array, "s"] | None = None
    start: Bool[Array, "t s"] | None = None
    method: str = static(default="auto")

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return self.log_likelihood.shape[0]

    @property
    def states(self) -> int:
        """K, the number of states."""
        return self.log_likelihood.shape[1]

    @property
    def initial(self) -> Float[Array, "k s"]:
        """Log-potentials of the first state, for every sequence."""
        return jnp.broadcast_to(self.log_initial, self.log_likelihood.shape[1:])

    def evidence(self, t: Any) -> Float[Array, "k s"]:
        """Log-likelihoods at step t."""
        return jax.lax.dynamic_index_in_dim(self.log_likelihood, t, 0, keepdims=False)

    def starts(self, t: Any) -> Bool[Array, "s"] | None:
        """`[S]` whether a sequence starts at step t; None if none can."""
        return None if self.start is None else jax.lax.dynamic_index_in_dim(self.start, t, 0, keepdims=False)

    def over(self, t: Any) -> Bool[Array, "s"] | None:
        """`[S]` whether a sequence has ended before step t; None if none can."""
        return None if self.length is None else t >= self.length

    def ends(self, t: Any) -> Bool[Array, "s"] | None:
        """`[S]` whether step t is the last of its sequence; None if none can be."""
        return either(self.over(t + 1), self.starts(t + 1))

    @property
    def there(self) -> Bool[Array, "t s"] | None:
        """`[T, S]` steps within their sequence; None if all are."""
        return None if self.length is None else jnp.arange(self.steps, dtype=jnp.int32)[:, None] < self.length[None]

    def log_move(self, t: Any) -> Float[Array, "k k s2"]:
        """Log-potentials of the transition into step t."""
        if self.log_transition.ndim == 3:
            return self.log_transition
        if self.steps == 1:  # one step has no transition; loops of zero turns are traced with one all the same
            return jnp.zeros(self.log_transition.shape[1:], self.log_transition.dtype)
        return jax.lax.dynamic_index_in_dim(self.log_transition, t - 1, 0, keepdims=False)


class Expected(NamedTuple):
    """Expected uses of each potential: the derivative of the log-normaliser, shaped like the chain.

    Attributes:
        initial: `[K, S]`.
        transition: `[K, K, S]`, or `[T - 1, K, K, S]` if every step has its own.
        marginals: `[T, K, S]`; zero at padding.
    """

    initial: Array
    transition: Array
    marginals: Array

    def along(self, change: Chain) -> Float[Array, "s"]:
        """Directional derivative of the log-normaliser along a change of the potentials."""

        def used(count: Array, potential: Array) -> Array:
            return jnp.sum(count * potential, axis=tuple(range(count.ndim - 1)))

        own = used(self.initial, change.log_initial) + used(self.transition, change.log_transition)
        return own + used(self.marginals, change.log_likelihood)


def either(a: Array | None, b: Array | None) -> Array | None:
    """Disjunction of two conditions, where None stands for False."""
    return b if a is None else a if b is None else a | b


def where(condition: Bool[Array, "s"] | None, yes: Any, no: Any) -> Any:
    """`yes` for the sequences where `condition` holds, else `no`; None stands for False."""
    if condition is None:
        return no
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape((1,) * (b.ndim - 1) + condition.shape), a, b), yes, no)


def backward_pass(
    chain: Chain, before: Any, end: Array, alone: Any, moved: Any, count: str | None
) -> tuple[Array, Any]:
    """Posterior marginals by the backward pass, from filtered states.

    Given the state at t + 1, that at t does not depend on what comes later, so conditional probabilities lead back, and
    the marginals sum to one at every step (Rauch, Tung and Striebel 1965; Kim 1994): neither evidence nor a scale is
    needed, and what is flushed to zero is zero to all digits of the answer.

    Args:
        chain: the chain.
        before: filtered states at the steps before the last.
        end: `[K, S]` marginals of the last step.
        alone: `states -> [K, S]`, their probabilities.
        moved: `(states at t, t + 1) -> (predicted, pull)`: predicted states of the next step, and
            `pull(share [K, S]) -> (now [K, S], pairs [K, K, S])`, the part of a share that comes from each state.
        count: pairs (`"pairs"`), their factors (`"shares"`), or neither (None).

    Returns:
        `(marginals [T, K, S], pairs)`, the sum of the pairs, or, if every step has its own transition, each of them; or
        the share of the filtered states at each step but the last, `[T - 1, K, S]`. Padding holds copies.
    """
    steps = chain.steps
    _, k, s = chain.log_likelihood.shape
    each = chain.log_transition.ndim == 4

    def step(carry: Any, now: tuple[Array, Any]) -> tuple[Any, Any]:
        after, counted = carry
        t, states = now
        predicted, pull = moved(states, t + 1)
        # Renormalised at every step, so that the rounding of a million steps does not accumulate.
        total, ends = jnp.sum(after, axis=0), chain.ends(t)
        share = after / (jnp.where(predicted > 0, predicted, 1) * jnp.where(total > 0, total, 1)[None])
        share = where(ends, jnp.zeros_like(share), share)
        marginal, pairs = pull(share)
        # The last step of a sequence has no later one.
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
    """Values `[T, K, S]` with zeros at padding."""
    return states if chain.there is None else jnp.where(chain.there[:, None], states, 0)


def expected(
    chain: Chain, log_mass: Float[Array, "s"], marginals: Float[Array, "t k s"], transition: Array
) -> Expected:
    """Result of a backward pass as the derivative of the log-normaliser: zero at padding, and where that is -inf."""
    marginals = there_or_zero(chain, marginals)
    if chain.start is None:
        return Expected(marginals[0], transition, marginals)
    # One of several concatenated sequences may be impossible.
    marginals, transition = (jnp.where(log_mass > -jnp.inf, part, 0) for part in (marginals, transition))
    begun = jnp.sum(jnp.where(chain.start[1:][:, None], marginals[1:], 0), axis=0)
    return Expected(marginals[0] + begun, transition, marginals)
