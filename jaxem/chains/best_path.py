"""The best path of a chain, and its score, whose derivative marks that path."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.chains.batching import folded
from jaxem.chains.chain import Chain, Expected, where
from jaxem.core.extended_float import finite_or_zero
from jaxem.core.summation import two_sum


@folded
def best_path(chain: Chain) -> tuple[Float[Array, "s"], Int[Array, "t s"]]:
    """The largest sum of potentials on any path, and that path; of equal ones the first (Viterbi 1967).

    Padding repeats the last state.
    """
    initial = chain.initial
    shape = initial.shape
    here = jnp.broadcast_to(jnp.arange(shape[0], dtype=jnp.int32)[:, None], shape)

    def led(states: Array) -> tuple[Array, Array]:
        top = finite_or_zero(jnp.max(states, axis=0))
        return states - top[None], top

    def step(carry: Any, t: Array) -> tuple[Any, Array]:
        states, (high, low) = carry
        scores = states[:, None] + chain.log_move(t)
        best, origin = jnp.max(scores, axis=0), jnp.argmax(scores, axis=0).astype(jnp.int32)
        starts, evidence = chain.starts(t), chain.evidence(t)
        fresh = jnp.max(states, axis=0)[None] + initial
        before = jnp.broadcast_to(jnp.argmax(states, axis=0).astype(jnp.int32)[None], shape)
        best, origin = where(starts, (fresh, before), (best, origin))
        new, top = led(best + evidence)
        return where(chain.over(t), ((states, (high, low)), here), ((new, two_sum(high, low, top)), origin))

    first, top = led(initial + chain.evidence(0))
    times = jnp.arange(1, chain.steps, dtype=jnp.int32)
    (last, (high, low)), origins = jax.lax.scan(step, (first, (top, jnp.zeros_like(top))), times)
    state = jnp.argmax(last, axis=0).astype(jnp.int32)

    def back(state: Array, origin: Array) -> tuple[Array, Array]:
        came = jnp.take_along_axis(origin, state[None], axis=0)[0]
        return came, came

    _, path = jax.lax.scan(back, state, origins, reverse=True)
    return high + (low + jnp.max(last, axis=0)), jnp.concatenate([path, state[None]])


@jax.custom_jvp
def best_score(chain: Chain) -> Float[Array, "s"]:
    """Score of the best path; its derivative is one for each potential on that path."""
    return best_path(chain)[0]


@best_score.defjvp
def _best_score_jvp(primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    score, path = best_path(*primals)
    return score, used(primals[0], path).along(tangents[0])


def used(chain: Chain, path: Int[Array, "t s"]) -> Expected:
    """Use of each potential by a path, shaped as expected uses."""
    dtype = chain.log_likelihood.dtype
    states = jnp.arange(chain.states, dtype=path.dtype)
    times = jnp.arange(chain.steps, dtype=jnp.int32)[:, None]
    there = jnp.ones(path.shape, bool) if chain.there is None else chain.there
    begins = times == 0 if chain.start is None else (times == 0) | chain.start
    marginals = ((path[:, None] == states[None, :, None]) & there[:, None]).astype(dtype)
    goes_on = (there & ~begins)[1:].astype(dtype)
    pairs = (marginals[:-1, :, None] * marginals[1:, None]) * goes_on[:, None, None]
    transition = jnp.sum(pairs, axis=0) if chain.log_transition.ndim == 3 else pairs
    return Expected(jnp.sum(marginals * begins[:, None].astype(dtype), axis=0), transition, marginals)
