"""The log-likelihood of a state space, and its derivative."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains.kalman.filtering import Filtered, forward
from jaxem.chains.kalman.paths import added, apply, gram, outer, plus, swap
from jaxem.chains.kalman.patterns import by_patterns
from jaxem.chains.kalman.start import Told, information_on_start, score_of_start
from jaxem.chains.kalman.system import Observed, System
from jaxem.core.linalg import product, reflected, triangular_root
from jaxem.core.pytree import replace


class Score(NamedTuple):
    """The derivative of the log-likelihood of each sequence.

    Attributes:
        system: a `System` whose leaves end with an axis of sequences.
        values: `[T, D, S]`, by the values.
    """

    system: System
    values: Array


def score(system: System, x: Observed, filtered: Filtered, told: Told | None) -> Score:
    """The derivative of the log-likelihood: what later steps say of a state is a slope and a root of information."""
    steps, size, sequences = x.values.shape
    transition, emission = system.transition[..., None], system.emission[..., None]
    hidden, patterns, dtype = len(transition), x.seen.shape[-1], x.values.dtype

    def step(carry: Any, now: tuple[Array, Filtered]) -> tuple[Any, Array]:
        slope, known, root, sums = carry
        seen, kept = now
        # By the noise of what was seen, in units of its covariance.
        weight = jnp.where(seen[:, None], swap(kept.white), 0)
        by_gain = apply(swap(kept.gain), slope)
        noise = apply(weight, tuple(new - old for new, old in zip(kept.innovation, by_gain, strict=True)))
        share = product(weight, product(swap(kept.gain), known))
        before = plus(apply(swap(transition), slope), apply(swap(emission), noise))
        mean = plus(kept.mean, apply(kept.root, apply(swap(kept.root), before)))
        # What a state has in common with the innovations of its step, and with the next state.
        blank = jnp.zeros((hidden, size + hidden, patterns), dtype)
        own = reflected(jnp.concatenate([blank[:, :size], kept.root, blank], 1), kept.mirrors)
        later = product(own[:, size : size + hidden], product(swap(root), known))
        terms = {
            "transition": outer(slope, mean) - product(known, swap(later)),
            "transition_noise": (outer(slope, slope) - gram(known)) / 2,
            "emission": outer(noise, mean) - product(weight, swap(own[:, :size])) + product(share, swap(later)),
            "emission_bias": noise[0][:, 0],
            "emission_noise": (outer(noise, noise) - gram(weight) - gram(share)) / 2,
        }
        left = product(swap(transition), known) - product(swap(emission), share)
        known = triangular_root(jnp.concatenate([left, product(swap(emission), weight)], 1))
        return (before, known, kept.root, added(sums, terms, steps)), noise[0][:, 0]

    def none(*shape: int) -> Array:
        return jnp.zeros((*shape, sequences), dtype)

    square = none(hidden, hidden)
    sums = {
        "transition": square,
        "transition_noise": square,
        "emission": none(size, hidden),
        "emission_bias": none(size),
        "emission_noise": none(size, size),
    }
    nothing = jax.tree.map(lambda path: jnp.zeros_like(path[0]), filtered.mean), jnp.zeros_like(filtered.root[0])
    (slope, known, _, sums), noise = jax.lax.scan(
        step, (*nothing, nothing[1], jax.tree.map(lambda s: (s, s), sums)), (x.seen, filtered), reverse=True
    )
    found = {name: high + low for name, (high, low) in sums.items()}
    by_mean, by_covariance = score_of_start(system, slope[0], information_on_start(system, known), told)
    if any(system.diffuse):
        given = ~jnp.array(system.diffuse)[:, None]
        by_mean = jnp.where(given, by_mean, 0)
        by_covariance = jnp.where(given[:, None] & given[None], by_covariance, 0)
    own = replace(system, initial_mean=by_mean, initial_covariance=by_covariance, **found)
    return Score(own, -noise)


@jax.custom_jvp
def log_normalizer(system: System, x: Observed) -> Float[Array, "s"]:
    """The log-likelihood of each sequence; its derivative is the expected complete-data score (Fisher's identity)."""
    return by_patterns(lambda x: forward(system, x)[0], x)


@log_normalizer.defjvp
def _log_normalizer_jvp(primals: tuple[System, Observed], tangents: tuple[System, Observed]) -> tuple[Array, Array]:
    system, x = primals

    def both(x: Observed) -> tuple[Array, Score]:
        value, kept, told = forward(system, x)
        return value, score(system, x, kept, told)

    value, slope = by_patterns(both, x)

    def along(score: Array, change: Array) -> Array:
        return jnp.sum(score * change[..., None], axis=tuple(range(change.ndim)))

    own = sum(jax.tree.leaves(jax.tree.map(along, slope.system, tangents[0])))
    return value, own + jnp.sum(slope.values * tangents[1].values, axis=(0, 1))
