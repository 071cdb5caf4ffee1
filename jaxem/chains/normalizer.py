"""The log-normaliser of a chain, with forward-backward as its derivative rule."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains import associative, methods, scan_exact, scan_scaled
from jaxem.chains.batching import folded, in_blocks
from jaxem.chains.blocked import Blocked
from jaxem.chains.chain import Chain, Expected, expected, there_or_zero, where
from jaxem.core import semirings
from jaxem.core.pytree import replace


def _value_by(way: Any, chain: Chain) -> Array:
    return way.log_mass(way.forward(chain))


def _filtered_by(way: Any, chain: Chain) -> tuple[Array, Array]:
    filtered = way.forward(chain)
    return way.log_mass(filtered), there_or_zero(chain, way.filtered(chain, filtered))


def _posterior_by(way: Any, chain: Chain) -> tuple[Array, Expected]:
    filtered = way.forward(chain)
    log_mass = way.log_mass(filtered)
    return log_mass, expected(chain, log_mass, *way.smoothed(chain, filtered))


def run(function: Any, chain: Chain) -> Any:
    """`function(way, chain)`, with the recursion (`way`) of the chain's method that is exact for its transitions."""
    method = methods.choose(chain)
    if method == "associative":
        return function(associative, chain)
    if method == "kernel":
        from jaxem.chains import kernel  # Pallas takes most of a second to import.

        return function(kernel, chain)
    ways = scan_scaled, scan_exact
    if method == "blocked":
        ways = (Blocked(way, methods.blocks(chain)) for way in ways)
    quick, sure = (partial(function, way) for way in ways)
    # The batch has been folded into sequences, so this stays a branch: vmapped it would compute both sides.
    return in_blocks(lambda chain: jax.lax.cond(scan_scaled.is_dense(chain), quick, sure, chain), chain)


@folded
def _value(chain: Chain) -> Array:
    return run(_value_by, chain)


@folded
def filtered(chain: Chain) -> tuple[Float[Array, "s"], Float[Array, "t k s"]]:
    """The log-normaliser, and the probability of each state given the observations up to each step."""
    return run(_filtered_by, chain)


@folded
def _posterior(chain: Chain) -> tuple[Array, Expected]:
    return run(_posterior_by, chain)


@jax.custom_jvp
def log_normalizer(chain: Chain) -> Float[Array, "s"]:
    """log of the sum, over all paths, of the exponential of the potentials on the path; -inf if none is possible."""
    return _value(chain)


@jax.custom_jvp
def expectations(chain: Chain) -> tuple[Float[Array, "s"], Expected]:
    """The log-normaliser, and its derivative: expected uses of each potential (Baum et al. 1970)."""
    return _posterior(chain)


@log_normalizer.defjvp
def _log_normalizer_jvp(primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    value, used = expectations(*primals)
    return value, used.along(tangents[0])


@expectations.defjvp
def _expectations_jvp(primals: tuple[Chain], tangents: tuple[Chain]) -> Any:
    # Second derivatives are rare: the recursion in log space, differentiated twice, is good enough for them.
    return jax.jvp(_by_autodiff, primals, tangents)


def plain(chain: Chain, add: Any) -> Float[Array, "s"]:
    """The log-normaliser by the plain recursion, with any semiring sum `add(terms, axis)` over states."""
    return add(states(chain, add), 0)


def states(chain: Chain, add: Any) -> Float[Array, "k s"]:
    """The plain recursion before its last sum: the total of all paths to each last state."""
    initial = chain.initial

    def step(states: Array, t: Array) -> tuple[Array, None]:
        evidence = chain.evidence(t)
        new = add(states[:, None] + chain.log_move(t), 0) + evidence
        new = where(chain.starts(t), add(states, 0)[None] + initial + evidence, new)
        return where(chain.over(t), states, new), None

    times = jnp.arange(1, chain.steps, dtype=jnp.int32)
    return jax.lax.scan(step, initial + chain.evidence(0), times)[0]


def _by_autodiff(chain: Chain) -> tuple[Array, Expected]:
    sequences = chain.log_likelihood.shape[-1]
    each = [jnp.broadcast_to(p, (*p.shape[:-1], sequences)) for p in (chain.log_initial, chain.log_transition)]

    def value(initial: Array, transition: Array, evidence: Array) -> Array:
        changed = replace(chain, log_initial=initial, log_transition=transition, log_likelihood=evidence)
        return plain(changed, semirings.log_sum)

    result, pullback = jax.vjp(value, *each, chain.log_likelihood)
    return result, Expected(*pullback(jnp.ones_like(result)))
