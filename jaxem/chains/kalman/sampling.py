"""Draws of states and data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains.kalman.system import Observed, System
from jaxem.core import linalg
from jaxem.core.linalg import semidefinite_root
from jaxem.core.pytree import replace


def centred(system: System) -> System:
    """The system about zero: the means cancel in the difference of two of its sequences."""
    nothing = jnp.zeros_like(system.initial_mean), jnp.zeros_like(system.emission_bias)
    return replace(system, initial_mean=nothing[0], emission_bias=nothing[1])


def without(x: Observed, drawn: Float[Array, "t d s"]) -> Observed:
    """The observed data less a draw of them."""
    return replace(x, values=jnp.where(x.seen, x.values - drawn, 0))


def draws(key: Array, system: System, n: int, steps: int) -> tuple[Float[Array, "t h n"], Float[Array, "t d n"]]:
    """States of `n` sequences, and what is seen of them."""
    first, then, what = jax.random.split(key, 3)
    dtype = system.transition.dtype

    def noise(key: Array, covariance: Array, *shape: int) -> Array:
        unit = jax.random.normal(key, (*shape[:-1], len(covariance), shape[-1]), dtype)
        return linalg.matmul(semidefinite_root(covariance), unit)

    state = system.initial_mean[:, None] + noise(first, system.initial_covariance, n)

    def step(state: Array, change: Array) -> tuple[Array, Array]:
        return linalg.matmul(system.transition, state) + change, state

    _, states = jax.lax.scan(step, state, noise(then, system.transition_noise, steps, n))
    seen = linalg.matmul(system.emission, states) + noise(what, system.emission_noise, steps, n)
    return states, seen + system.emission_bias[None, :, None]
