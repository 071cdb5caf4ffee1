"""The log-normaliser of a chain, with forward-backward as its derivative rule; the best path, with itself as rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from jaxem import sums
from jaxem.chains import dense, exact
from jaxem.chains.chain import Chain, Expected, where
from jaxem.pytree import replace
from jaxem.sums import two_sum

BLOCK = 256
"""Sequences at a time, on a CPU."""


def in_blocks(function: Callable[[Chain], Any], chain: Chain) -> Any:
    """`function` of a chain; on a CPU of some sequences at a time, so that what a step touches stays in the cache."""
    sequences = chain.log_likelihood.shape[-1]
    if jax.default_backend() != "cpu" or sequences <= 2 * BLOCK:
        return function(chain)
    blocks = -(-sequences // BLOCK)
    short = blocks * BLOCK - sequences

    def pad(leaf: Array) -> Array:
        shared = leaf.ndim > 1 and leaf.shape[-1] == 1
        return leaf if shared or not short else jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, short)], mode="edge")

    def cut(leaf: Array, block: Array) -> Array:
        return leaf if leaf.shape[-1] == 1 else jax.lax.dynamic_slice_in_dim(leaf, block * BLOCK, BLOCK, leaf.ndim - 1)

    padded = jax.tree.map(pad, chain)
    numbers = jnp.arange(blocks, dtype=jnp.int32)
    out = jax.lax.map(lambda block: function(jax.tree.map(lambda leaf: cut(leaf, block), padded)), numbers)

    def join(leaf: Array) -> Array:
        leaf = jnp.moveaxis(leaf, 0, -2)
        return leaf.reshape(*leaf.shape[:-2], blocks * BLOCK)[..., :sequences]

    return jax.tree.map(join, out)


def folded(function: Callable[[Chain], Any]) -> Callable[[Chain], Any]:
    """`function`, which under `vmap` takes the batch as more sequences.

    Sequences are the innermost axis: a batch in front would leave the loops with a few numbers at a time.
    """
    run = custom_vmap(function)

    def fold(size: int, leaf: Array, is_batched: bool, sequences: int) -> Array:
        leaf = leaf if is_batched else jnp.broadcast_to(leaf[None], (size, *leaf.shape))
        leaf = jnp.moveaxis(leaf, 0, -2)
        return jnp.broadcast_to(leaf, (*leaf.shape[:-1], sequences)).reshape(*leaf.shape[:-2], size * sequences)

    @run.def_vmap
    def rule(size: int, batched: Any, chain: Chain) -> Any:
        sequences = chain.log_likelihood.shape[-1]
        changes = {}
        for name in ("log_initial", "log_transition", "log_likelihood", "length", "start"):
            leaf, is_batched = getattr(chain, name), getattr(batched[0], name)
            shared = name.startswith(("log_initial", "log_transition")) and leaf.shape[-1] == 1 and not is_batched
            changes[name] = leaf if leaf is None or shared else fold(size, leaf, is_batched, sequences)
        out = run(replace(chain, **changes))

        def unfold(leaf: Array) -> Array:
            return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], size, sequences), -2, 0)

        return jax.tree.map(unfold, out), jax.tree.map(lambda _: True, out)

    return run


def _value_by(way: Any, chain: Chain) -> Array:
    return way.log_mass(way.forward(chain))


def _posterior_by(way: Any, chain: Chain) -> tuple[Array, Expected]:
    filtered = way.forward(chain)
    return way.log_mass(filtered), way.backward(chain, filtered)


def _by_either(function: Any, chain: Chain) -> Any:
    # Sequences have been folded, so this is a branch, and not both ways and a selection.
    def run(chain: Chain) -> Any:
        return jax.lax.cond(dense.is_dense(chain), partial(function, dense), partial(function, exact), chain)

    return in_blocks(run, chain)


@folded
def _value(chain: Chain) -> Array:
    return _by_either(_value_by, chain)


@folded
def _posterior(chain: Chain) -> tuple[Array, Expected]:
    return _by_either(_posterior_by, chain)


@jax.custom_jvp
def log_normalizer(chain: Chain) -> Float[Array, "s"]:
    """log of the sum, over all paths, of the exponential of the potentials on the path; -inf if none is possible."""
    return _value(chain)


@jax.custom_jvp
def expectations(chain: Chain) -> tuple[Float[Array, "s"], Expected]:
    """The log-normaliser, and its derivative: how often each potential is used (Baum et al. 1970)."""
    return _posterior(chain)


@log_normalizer.defjvp
def _log_normalizer_jvp(primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    value, expected = expectations(*primals)
    return value, _along(expected, tangents[0])


@expectations.defjvp
def _expectations_jvp(primals: tuple[Chain], tangents: tuple[Chain]) -> Any:
    # Second derivatives are rare: the recursion in log space, differentiated twice, is good enough for them.
    return jax.jvp(_by_autodiff, primals, tangents)


def _along(expected: Expected, change: Chain) -> Float[Array, "s"]:
    """The directional derivative."""

    def used(count: Array, potential: Array) -> Array:
        return jnp.sum(count * potential, axis=tuple(range(count.ndim - 1)))

    initial, transition = used(expected.initial, change.log_initial), used(expected.transition, change.log_transition)
    return initial + transition + used(expected.marginals, change.log_likelihood)


def plain(chain: Chain, add: Any) -> Float[Array, "s"]:
    """The recursion itself, with any sum `add(terms, axis)` over states: log-sum, max, or one in between."""
    initial = jnp.broadcast_to(chain.log_initial, chain.log_likelihood[:, 0].shape)

    def step(states: Array, t: Array) -> tuple[Array, None]:
        evidence = chain.evidence(t)
        new = add(states[:, None] + chain.log_move(t), 0) + evidence
        new = where(chain.starts(t), add(states, 0)[None] + initial + evidence, new)
        return where(None if chain.length is None else t >= chain.length, states, new), None

    times = jnp.arange(1, chain.steps, dtype=jnp.int32)
    return add(jax.lax.scan(step, initial + chain.evidence(0), times)[0], 0)


def _by_autodiff(chain: Chain) -> tuple[Array, Expected]:
    sequences = chain.log_likelihood.shape[-1]
    each = [jnp.broadcast_to(p, (*p.shape[:-1], sequences)) for p in (chain.log_initial, chain.log_transition)]

    def value(initial: Array, transition: Array, evidence: Array) -> Array:
        changed = replace(chain, log_initial=initial, log_transition=transition, log_likelihood=evidence)
        return plain(changed, sums.log_sum)

    result, pullback = jax.vjp(value, *each, chain.log_likelihood)
    return result, Expected(*pullback(jnp.ones_like(result)))


@folded
def best_path(chain: Chain) -> tuple[Float[Array, "s"], Int[Array, "t s"]]:
    """The largest sum of potentials on any path, and that path; of equal ones the first (Viterbi 1967).

    At padding the path stays where it was.
    """
    shape = chain.log_likelihood[:, 0].shape
    initial = jnp.broadcast_to(chain.log_initial, shape)
    here = jnp.broadcast_to(jnp.arange(shape[0], dtype=jnp.int32)[:, None], shape)

    def led(states: Array) -> tuple[Array, Array]:
        top = jnp.max(states, axis=0)
        top = jnp.where(top == -jnp.inf, 0, top)
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
        ended = None if chain.length is None else t >= chain.length
        return where(ended, ((states, (high, low)), here), ((new, two_sum(high, low, top)), origin))

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
    """The score of the best path; its derivative says which potentials that path uses."""
    return best_path(chain)[0]


@best_score.defjvp
def _best_score_jvp(primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[Array, Array]:
    score, path = best_path(*primals)
    return score, _along(_used(primals[0], path), tangents[0])


def _used(chain: Chain, path: Int[Array, "t s"]) -> Expected:
    """One for every potential that a path uses."""
    dtype = chain.log_likelihood.dtype
    states = jnp.arange(len(chain.log_likelihood), dtype=path.dtype)
    times = jnp.arange(chain.steps, dtype=jnp.int32)[:, None]
    there = jnp.ones(path.shape, bool) if chain.length is None else times < chain.length[None]
    begins = times == 0 if chain.start is None else (times == 0) | chain.start
    marginals = ((path[None] == states[:, None, None]) & there[None]).astype(dtype)
    goes_on = (there & ~begins)[1:].astype(dtype)
    pairs = (marginals[:, None, :-1] * marginals[None, :, 1:]) * goes_on[None, None]
    transition = jnp.sum(pairs, axis=2) if chain.log_transition.ndim == 3 else jnp.moveaxis(pairs, 2, 0)
    return Expected(jnp.sum(marginals * begins[None].astype(dtype), axis=1), transition, marginals)
