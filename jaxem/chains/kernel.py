"""The exact recursion as one GPU kernel: a sequence to a thread, its states in registers, the loop over steps inside.

On a GPU a turn of `lax.scan` costs 8 to 14 microseconds whatever it does, because the host launches it; in a
kernel it costs its arithmetic and a wait for memory. So it is for many sequences of few states. By reckoning,
forward-backward on 10,000 of 1,000 steps and 4 states moves a gigabyte (0.2 milliseconds on an H200) and waits 2,000
times for memory (1 to 2 milliseconds), where the scan takes 16 to 28.

**It has never run on a GPU.** It is interpreted in the tests, on any other machine, and was lowered for CUDA there
(Mosaic, for Hopper and newer). Until it is measured, `auto` does not choose it.

It uses only what Mosaic supports: numbers, vectors of `LANES`, loads, stores, a loop that counts upward. So sums over
states are unrolled, and carries start as values read from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxem.chains import scan_exact
from jaxem.chains.chain import LONG, Chain, either
from jaxem.chains.scan_exact import filtered as filtered
from jaxem.chains.scan_exact import log_mass as log_mass
from jaxem.core.extended_float import Scaled, finite_or_zero, power, split
from jaxem.core.pytree import replace
from jaxem.core.summation import two_sum

LANES = 128
"""Sequences in a program, one to a thread: the four warps that Mosaic takes for one vector."""

STATES = 8
"""Largest number of states: they, K^2 transitions and their counts fit into the registers of a thread."""


def forward(chain: Chain) -> scan_exact.Filtered:
    """Filtered states at every step.

    Raises:
        ValueError: more states than registers hold.
    """
    steps, states, _ = chain.log_likelihood.shape
    if states > STATES:
        raise ValueError(f"method is 'kernel'; it takes up to {STATES} states, and these are {states}: use 'auto'")
    first, top = scan_exact.first(chain)
    each, one = _like(chain, steps - 1, states), _like(chain, states)
    scale = _like(chain), _like(chain)
    return _over_lanes(
        _forward,
        chain,
        (first, (top, jnp.zeros_like(top))),
        scan_exact.Filtered(Scaled(each, each), Scaled(one, one), scale),
    )


def smoothed(chain: Chain, filtered: scan_exact.Filtered) -> tuple[Array, Array]:
    """Posterior marginals and pairs, as by `chain.backward_pass`."""
    steps, states, _ = chain.log_likelihood.shape
    times = (steps - 1,) if chain.log_transition.ndim == 4 else ()
    like = _like(chain, steps, states), _like(chain, *times, states, states)
    end = scan_exact.probabilities(filtered.last)
    return _over_lanes(_backward, chain, (filtered.before, end, jnp.zeros_like(end[0])), like)


def _like(chain: Chain, *shape: int) -> Any:
    """Shape and type of an array for all sequences."""
    return jax.ShapeDtypeStruct((*shape, chain.log_likelihood.shape[-1]), chain.log_likelihood.dtype)


def _over_lanes(kernel: Callable[..., None], chain: Chain, given: Any, like: Any) -> Any:
    """Results like `like` of a kernel that reads a chain and other arrays, `LANES` sequences to a program."""
    sequences = chain.log_likelihood.shape[-1]
    short = max(LANES - sequences, 0)

    def pad(leaf: Array) -> Array:
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, short)], mode="edge") if short else leaf

    changes = {
        name: pad(leaf)
        for name in ("log_initial", "log_transition", "log_likelihood", "length")
        if (leaf := getattr(chain, name)) is not None and leaf.shape[-1] == sequences
    }
    if chain.start is not None:
        changes["start"] = pad(chain.start.astype(jnp.int32))
    given = replace(chain, **changes), jax.tree.map(pad, given)
    wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], leaf.shape[-1] + short), leaf.dtype), like)
    results = _launch(kernel, -(-sequences // LANES), given, wide)
    return jax.tree.map(lambda leaf: leaf[..., :sequences], results) if short else results


def _launch(kernel: Callable[..., None], programs: int, given: Any, like: Any) -> Any:
    """Run a kernel by so many programs; interpreted on a machine without a GPU."""
    if jax.default_backend() == "gpu":
        from jax.experimental.pallas import mosaic_gpu

        def on_gpu(*refs: Any) -> None:
            kernel(jax.lax.axis_index("program"), *refs)

        # References into global memory: every thread reads one number of each step.
        return mosaic_gpu.kernel(on_gpu, out_type=like, grid=(programs,), grid_names=("program",))(*given)

    def interpreted(*refs: Any) -> None:
        kernel(pl.program_id(0), *refs)

    return pl.pallas_call(interpreted, out_shape=like, grid=(programs,), interpret=True)(*given)


class _Lanes:
    """The part of a chain that one program reads, from references into memory."""

    def __init__(self, program: Array, chain: Chain) -> None:
        """Choose the sequences of a program: the last one overlaps the one before."""
        self.chain = chain
        self.lanes = pl.ds(jnp.minimum(program * LANES, chain.log_likelihood.shape[-1] - LANES), LANES)

    def read(self, ref: Any, *index: Any) -> Array:
        """A vector, or a number where all sequences share it."""
        return ref[(*index, 0 if ref.shape[-1] == 1 else self.lanes)]

    def write(self, ref: Any, value: Array, *index: Any) -> None:
        ref[(*index, self.lanes)] = value

    def scaled(self, ref: Scaled, *index: Any) -> list[Scaled]:
        """States, from references to their mantissas and exponents."""
        return [Scaled(*(self.read(part, *index, k) for part in ref)) for k in range(self.chain.states)]

    def write_scaled(self, ref: Scaled, states: list[Scaled], *index: Any) -> None:
        for k, state in enumerate(states):
            for part, value in zip(ref, state, strict=True):
                self.write(part, value, *index, k)

    def moves(self) -> Callable[[Any], list[list[Scaled]]]:
        """`t -> the transition into step t`; split only once if it is constant."""
        states, transition = range(self.chain.states), self.chain.log_transition

        def into(*index: Any) -> list[list[Scaled]]:
            return [[split(self.read(transition, *index, i, j)) for j in states] for i in states]

        if len(transition.shape) == 4:
            return lambda t: into(t - 1)
        fixed = into()
        return lambda _: fixed

    def starts(self, t: Any) -> Array | None:
        return None if self.chain.start is None else self.read(self.chain.start, t) != 0

    def over(self, t: Any) -> Array | None:
        return None if self.chain.length is None else t >= self.read(self.chain.length)


def _where(condition: Array | None, yes: Any, no: Any) -> Any:
    """`yes` where `condition` holds, else `no`; None stands for False."""
    return no if condition is None else jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _flow(states: list[Scaled], move: list[list[Scaled]], j: int) -> tuple[list[Array], Array]:
    """Flow from each state into state j: mantissas, and their exponent, as in `scan_exact.flows`."""
    exponents = [state.exponent + row[j].exponent for state, row in zip(states, move, strict=True)]
    largest = _largest(exponents)
    shift = finite_or_zero(largest)
    masses = [state.mantissa * row[j].mantissa for state, row in zip(states, move, strict=True)]
    return [mass * power(exponent - shift) for mass, exponent in zip(masses, exponents, strict=True)], largest


def _largest(values: list[Array]) -> Array:
    largest = values[0]
    for value in values[1:]:
        largest = jnp.maximum(largest, value)
    return largest


def _sum(values: list[Array]) -> Array:
    return sum(values[1:], values[0])


def _forward(program: Array, chain: Chain, first: Any, before: Scaled, last: Scaled, total: tuple[Any, Any]) -> None:
    """Forward pass of `scan_exact.forward`."""
    here = _Lanes(program, chain)
    move = here.moves()
    initial = [split(here.read(chain.log_initial, k)) for k in range(chain.states)]

    def step(t: Array, carry: Any) -> Any:
        states, (high, low) = carry
        here.write_scaled(before, states, t - 1)
        transition, starts = move(t), here.starts(t)
        new = []
        for j in range(chain.states):
            masses, exponent = _flow(states, transition, j)
            mass, exponent = _where(starts, tuple(initial[j]), (_sum(masses), exponent))
            new.append(scan_exact.seen(mass, exponent, here.read(chain.log_likelihood, t, j)))
        top = finite_or_zero(_largest([state.exponent for state in new]))
        new = [Scaled(state.mantissa, state.exponent - top) for state in new]
        if starts is not None:
            ended = _sum([state.mantissa * power(state.exponent) for state in states])
            top = top + jnp.where(starts, jnp.log2(ended), 0)
        return _where(here.over(t), carry, (new, two_sum(high, low, top)))

    states, scale = first
    begin = here.scaled(states), tuple(here.read(part) for part in scale)
    states, scale = jax.lax.fori_loop(1, chain.steps, step, begin)
    here.write_scaled(last, states)
    for ref, value in zip(total, scale, strict=True):
        here.write(ref, value)


def _backward(program: Array, chain: Chain, filtered: Any, marginals: Any, counts: Any) -> None:
    """Backward pass of `chain.backward_pass`."""
    here = _Lanes(program, chain)
    before, end, zero = filtered
    move, states = here.moves(), range(chain.states)
    each = len(chain.log_transition.shape) == 4

    def plus(so_far: tuple[Array, Array], term: Array) -> tuple[Array, Array]:
        return two_sum(*so_far, term) if chain.steps > LONG else (so_far[0] + term, so_far[1])

    def step(turn: Array, carry: Any) -> Any:
        after, counted = carry
        t = chain.steps - 2 - turn
        now, transition = here.scaled(before, t), move(t + 1)
        ends = either(here.over(t + 1), here.starts(t + 1))
        total = _sum(after)
        pairs = []
        for j in states:
            masses, _ = _flow(now, transition, j)
            predicted = _sum(masses)
            share = after[j] / (jnp.where(predicted > 0, predicted, 1) * jnp.where(total > 0, total, 1))
            share = _where(ends, jnp.zeros_like(share), share)
            pairs.append([mass * share for mass in masses])
        marginal = [_sum([into[i] for into in pairs]) for i in states]
        if ends is not None:
            alone = [state.mantissa * power(state.exponent) for state in now]
            mass = _sum(alone)
            marginal = _where(ends, [part / jnp.where(mass > 0, mass, 1) for part in alone], marginal)
        for i in states:
            here.write(marginals, marginal[i], t, i)
            for j in states if each else ():
                here.write(counts, pairs[j][i], t, i, j)
        if counted:
            counted = [[plus(counted[i][j], pairs[j][i]) for j in states] for i in states]
        return marginal, counted

    last = [here.read(end, k) for k in states]
    for k in states:
        here.write(marginals, last[k], chain.steps - 1, k)
    zero = here.read(zero)
    nothing = [] if each else [[(zero, zero) for _ in states] for _ in states]
    _, counted = jax.lax.fori_loop(0, chain.steps - 1, step, (last, nothing))
    for i in states if counted else ():
        for j in states:
            here.write(counts, counted[i][j][0] + counted[i][j][1], i, j)
