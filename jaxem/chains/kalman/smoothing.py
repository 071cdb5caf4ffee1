"""The smoother, and the expectations of an E-step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains.kalman.filtering import Filtered, forward
from jaxem.chains.kalman.paths import added, eye_of, gram, noise_root, swap
from jaxem.chains.kalman.patterns import by_patterns
from jaxem.chains.kalman.start import Told, without_end
from jaxem.chains.kalman.system import Observed, System
from jaxem.core.linalg import product, reflected, triangular_root


class States(NamedTuple):
    """Each step given the whole sequence.

    Attributes:
        mean: `[T, H, S]` of the state.
        covariance: `[T, H, H, P]` of the state.
        noise: `[T, D, S]`, the mean of what the emission adds to the state's.
    """

    mean: Array
    covariance: Array
    noise: Array


class Expected(NamedTuple):
    """Expectations of each sequence, given all of it; e is the emission's noise of a step, w that of a move.

    Attributes:
        first: `[H, H, S]` E (z_1 - initial_mean)(z_1 - initial_mean)^T.
        shift: `[H, S]` E z_1 - initial_mean.
        moved: `[2 H, 2 H, S]` sum of E (w, z)(w, z)^T over the moves, z being the state that moves.
        seen: `[D + H + 1, D + H + 1, S]` sum of E (e, z, 1)(e, z, 1)^T over the steps of which something was seen.
    """

    first: Array
    shift: Array
    moved: Array
    seen: Array


def backward(system: System, x: Observed, filtered: Filtered, told: Told | None) -> tuple[Expected, States]:
    """The smoother: what is known of the unit noises of each step, turned back (see `Filtered`).

    Of a step's noises, turned, some are innovations, which are known; of some, those of the next state, later steps
    tell a mean and a root of their covariance; and of the others nothing is known.
    """
    steps, size, sequences = x.values.shape
    patterns, hidden = x.seen.shape[-1], len(system.transition)
    noise, moves, dtype = noise_root(system.emission_noise), noise_root(system.transition_noise), x.values.dtype
    others, flat = size + hidden, sum(path.shape[2] for path in filtered.mean[1:])

    def zeros(*shape: int) -> Array:
        return jnp.zeros((*shape, patterns), dtype)

    alone = jnp.concatenate([zeros(others, others), zeros(others, others) + eye_of(others, dtype)], 1)

    def parts(rows: Array, root: Array) -> tuple[Array, Array, Array]:
        """Of rows of unit noises: what the emission adds to the state, what the state is, what the move adds to it."""
        return (
            product(noise, swap(rows[:, :size])),
            product(root, swap(rows[:, size:others])),
            product(moves, swap(rows[:, others : others + hidden])),
        )

    def step(carry: Any, now: Any) -> tuple[Any, States]:
        known, loose, sums = carry
        t, seen, kept = now
        over, ends, some = t >= x.length, t + 1 >= x.length, jnp.any(seen, axis=0)
        first = swap(kept.innovation[0])
        rows = jnp.concatenate([first, known, jnp.zeros((1, others, sequences), dtype)], 1)
        rows = reflected(rows, kept.mirrors, reverse=True)
        # One row for each direction in which the next state is not known; of those of a diffuse start, innovations.
        after = jnp.concatenate([zeros(hidden, size), *(swap(path) for path in kept.innovation[1:])])
        spread = jnp.concatenate([after, loose, zeros(hidden + flat, others)], 1)
        spread = reflected(jnp.concatenate([spread, alone]), kept.mirrors, reverse=True)
        e, z, w = parts(rows, kept.root)
        e_spread, z_spread, w_spread = parts(spread, kept.root)
        z = z + kept.mean[0]
        if flat:
            z_spread = z_spread.at[:, hidden : hidden + flat].add(kept.mean[1])
        terms = {
            "moved": jnp.where(ends, 0, gram(jnp.concatenate([w, z]))),
            "moved_spread": jnp.where(ends, 0, gram(jnp.concatenate([w_spread, z_spread]))),
            "seen": jnp.where(some, gram(jnp.concatenate([e, z, jnp.ones_like(z[:1])])), 0),
            "seen_spread": jnp.where(some, gram(jnp.concatenate([e_spread, z_spread])), 0),
        }
        own = spread[:, size:others]
        root = triangular_root(swap(jnp.concatenate([own[:hidden], own[hidden + flat :]])))
        new = jnp.concatenate([swap(root), own[hidden : hidden + flat]])
        known = jnp.where(over, known, rows[:, size:others])
        return (known, jnp.where(over, loose, new), added(sums, terms, steps)), States(z[:, 0], gram(z_spread), e[:, 0])

    sums = {
        "moved": jnp.zeros((2 * hidden, 2 * hidden, sequences), dtype),
        "moved_spread": zeros(2 * hidden, 2 * hidden),
        "seen": jnp.zeros((others + 1, others + 1, sequences), dtype),
        "seen_spread": zeros(others, others),
    }
    nothing = (
        jnp.zeros((1, hidden, sequences), dtype),
        jnp.concatenate([zeros(hidden, hidden) + eye_of(hidden, dtype), zeros(flat, hidden)]),
    )
    times = jnp.arange(steps, dtype=jnp.int32)
    (known, loose, sums), states = jax.lax.scan(
        step, (*nothing, jax.tree.map(lambda s: (s, s), sums)), (times, x.seen, filtered), reverse=True
    )
    sums = {name: high + low for name, (high, low) in sums.items()}
    seen_spread = jnp.pad(sums["seen_spread"], ((0, 1), (0, 1), (0, 0)))
    # The first mean is that of the initial state and of what the whole sequence says of the directions beside its root.
    shift = filtered.mean[0][0] - system.initial_mean[:, None, None] + product(filtered.root[0], swap(known))
    apart = product(filtered.root[0], swap(loose))
    if flat:
        apart = apart.at[:, hidden : hidden + flat].add(filtered.mean[1][0])
    first = gram(shift) + gram(apart)
    expected = Expected(first, shift[:, 0], sums["moved"] + sums["moved_spread"], sums["seen"] + seen_spread)
    there = (times[:, None] < x.length[None])[:, None]
    covariance = states.covariance if told is None else without_end(states.covariance, told.lost)
    return expected, States(
        jnp.where(there, states.mean, 0), jnp.where(there[:, None], covariance, 0), jnp.where(there, states.noise, 0)
    )


def expectations(system: System, x: Observed) -> tuple[Float[Array, "s"], Expected]:
    """The log-likelihood of each sequence, and what the E-step needs."""

    def both(x: Observed) -> tuple[Array, Expected]:
        value, kept, told = forward(system, x)
        return value, backward(system, x, kept, told)[0]

    return by_patterns(both, x)


def smoothed(system: System, x: Observed) -> tuple[Float[Array, "s"], Array, Array, Array]:
    """The log-likelihoods, and `States` given all of each sequence."""

    def states(x: Observed) -> tuple[Array, Array, Array, Array]:
        value, kept, told = forward(system, x)
        found = backward(system, x, kept, told)[1]
        return value, found.mean, found.covariance, found.noise

    return by_patterns(states, x)


def completed(system: System, x: Observed) -> Float[Array, "t d s"]:
    """The mean of every cell given all that was seen; at one that was seen, its value."""
    _, mean, _, noise = smoothed(system, x)
    by_state = jax.vmap(product, (None, 0))(system.emission[..., None], mean[:, :, None])[:, :, 0]
    return jnp.where(x.seen, x.values, by_state + noise + system.emission_bias[None, :, None])
