"""The Kalman filter."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains.kalman.paths import (
    Paths,
    apply,
    as_rows,
    diagonal,
    eye_of,
    gram,
    lower_triangle,
    noise_root,
    plus,
    summed,
    swap,
    total,
)
from jaxem.chains.kalman.patterns import by_patterns
from jaxem.chains.kalman.start import Told, least_squares, prior_rows, start_of, visible, without_end
from jaxem.chains.kalman.system import Observed, System
from jaxem.core.linalg import product, reflected, reflections, root_inverse


class Filtered(NamedTuple):
    """The record of the forward pass at each step. P is S, or 1 where the same is seen of all sequences.

    The unit noises of a step are those of what is seen (D), of its state (H) and of the move to the next (H), and one
    for each cell that was not seen (D). Turned, they are innovations (D), the noises of the next state (H), and others.

    Attributes:
        mean: `[T, H, ., .]` of the state given earlier steps.
        root: `[T, H, H, P]`: root root^T is its covariance.
        innovation: `[T, D, ., .]`, as unit noise.
        white: `[T, D, D, P]`: turns what is not as expected into unit noise.
        gain: `[T, H, D, P]`: what unit noise adds to the next state.
        mirrors: `[T, D + H, 2 D + 2 H, P]`, the reflections that turn the noises.
        volume: `[T, S]`, what else each step adds to the log-likelihood.
    """

    mean: Paths
    root: Array
    innovation: Paths
    white: Array
    gain: Array
    mirrors: Array
    volume: Array


def unsettled(system: System, x: Observed) -> Filtered:
    """The Kalman filter; of a diffuse start, one path for each unit of it."""
    steps, size, sequences = x.values.shape
    hidden, patterns = len(system.transition), x.seen.shape[-1]
    root, beside, flat = start_of(system)[:3]
    transition, emission, dtype = system.transition[..., None], system.emission[..., None], x.values.dtype
    noise, moves = noise_root(system.emission_noise), noise_root(system.transition_noise)
    resolved = 8 * (size + hidden) * float(jnp.finfo(dtype).eps)

    def wide(*blocks: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(block, (*block.shape[:2], patterns)) for block in blocks], axis=1)

    def zeros(*shape: int) -> Array:
        return jnp.zeros((*shape, 1), dtype)

    def step(carry: tuple[Paths, Array, Array], now: tuple[Array, Array, Array]) -> tuple[Any, Filtered]:
        mean, root, largest = carry
        t, values, seen = now
        row = seen[:, None]
        told = product(emission, root)
        upper = wide(
            jnp.where(row, noise, 0),
            jnp.where(row, told, 0),
            zeros(size, hidden),
            jnp.where(row, 0, eye_of(size, dtype)),
        )
        lower = wide(zeros(hidden, size), product(transition, root), moves, zeros(hidden, size))
        turned, mirrors = reflections(jnp.concatenate([upper, lower]), size + hidden)
        spread, gain = lower_triangle(turned[:size, :size]), turned[size:, :size]
        # A cell that those before it tell without any noise has no density of its own: those of the same step, or of
        # earlier ones, which have left of the states' noises what is rounding beside the largest that there were.
        pivot = diagonal(spread)
        dust = jnp.where(seen, product(jnp.abs(emission), largest[:, None])[:, 0], 0)
        certain = jnp.abs(pivot) <= resolved * jnp.sqrt(jnp.sum(spread**2, axis=1)) + resolved / 4 * dust
        white = root_inverse(jnp.where(eye_of(size, bool) & certain[:, None], 1, spread))
        expected = apply(emission, mean)
        off = [jnp.where(row, value - e, 0) for value, e in zip((values, 0), expected, strict=False)]
        off = apply(white, tuple(off))
        innovation = tuple(jnp.where(certain[:, None], 0, each) for each in off)
        scale = jnp.sum(jnp.abs(values) + jnp.abs(expected[0]), axis=0, keepdims=True)
        agrees = jnp.abs(off[0]) <= resolved * scale
        cells = -jnp.log(jnp.abs(jnp.where(certain, 1, pivot))) - jnp.where(seen, 0.5 * math.log(2 * math.pi), 0)
        cells = jnp.where(certain, jnp.where(agrees[:, 0], jnp.inf, -jnp.inf), cells)
        kept = Filtered(mean, root, innovation, white, gain, mirrors, total(cells, partial(jnp.sum, axis=0)))
        # Beyond the length nothing moves, lest it overflow.
        over = t >= x.length
        after = plus(apply(transition, mean), apply(gain, innovation))
        mean = tuple(jnp.where(over, old, new) for old, new in zip(mean, after, strict=True))
        largest = jnp.maximum(largest, jax.lax.stop_gradient(jnp.sqrt(jnp.sum(lower**2, axis=1))))
        return (mean, jnp.where(over, root, lower_triangle(turned[size:, size : size + hidden])), largest), kept

    mean = (jnp.broadcast_to(system.initial_mean[:, None, None], (hidden, 1, sequences)),)
    if len(flat):
        mean = (*mean, jnp.broadcast_to(beside[..., None], (*beside.shape, patterns)))
    root = jnp.broadcast_to(root[..., None], (hidden, hidden, patterns))
    centred = jnp.where(x.seen, x.values - system.emission_bias[None, :, None], 0)[:, :, None]
    return jax.lax.scan(
        step, (mean, root, jnp.zeros_like(root[0])), (jnp.arange(steps, dtype=jnp.int32), centred, x.seen)
    )[1]


def forward(system: System, x: Observed) -> tuple[Float[Array, "s"], Filtered, Told | None]:
    """The Kalman filter: the log-likelihood of each sequence, and what it keeps.

    The paths of a diffuse start are those of its mean given the whole sequence, and of the directions of a root of its
    covariance.
    """
    return settled(system, unsettled(system, x))


def settled(system: System, kept: Filtered) -> tuple[Float[Array, "s"], Filtered, Told | None]:
    """The log-likelihoods, and what is kept, once the data have told what they can of a diffuse start."""
    start, told = jnp.zeros((), kept.root.dtype), None
    if len(kept.mean) > 1:
        flat, rows = start_of(system).flat, as_rows(kept.innovation[::-1], kept.root.shape[-1])
        prior = prior_rows(flat, len(rows) - len(flat), rows)
        _, directions, share, untold, volume = least_squares(jnp.concatenate([prior, rows], 1), flat)
        by_step = jax.vmap(product, (0, None))
        innovation, path = (by_step(each[1], swap(directions)) for each in (kept.innovation, kept.mean))
        lost = visible(jnp.where(untold[None, None], path, 0), kept.mean[1])
        innovation, path = (jnp.where(untold[None, None], 0, each) for each in (innovation, path))
        kept = kept._replace(
            innovation=(kept.innovation[0] + by_step(innovation, share), innovation),
            mean=(kept.mean[0] + by_step(path, share), path),
        )
        count = jnp.sum(~untold & flat[:, None], axis=0, dtype=rows.dtype)
        away = product(swap(product(directions, prior[: len(flat)])), share)
        told = Told(product(swap(directions), share), swap(jnp.where(untold[:, None], 0, directions)), lost)
        start = volume + 0.5 * math.log(2 * math.pi) * count - 0.5 * jnp.sum(away**2, axis=(0, 1))
    steps = kept.volume - 0.5 * jnp.sum(kept.innovation[0] ** 2, axis=(1, 2))
    return summed(steps) + start, kept, told


def filtered(system: System, x: Observed) -> tuple[Float[Array, "s"], Float[Array, "t h s"], Float[Array, "t h h s1"]]:
    """The log-likelihoods, and mean and covariance of the states given what was seen up to each step."""

    def moments(x: Observed) -> tuple[Array, Array, Array]:
        kept = unsettled(system, x)
        there = (jnp.arange(len(x.values), dtype=jnp.int32)[:, None] < x.length[None])[:, None]
        mean, covariance = _up_to_now(system, kept)
        return settled(system, kept)[0], jnp.where(there, mean, 0), jnp.where(there[:, None], covariance, 0)

    return by_patterns(moments, x)


def _up_to_now(system: System, kept: Filtered) -> tuple[Float[Array, "t h s"], Float[Array, "t h h p"]]:
    """Mean and covariance of each state given its own step, too."""
    (_, hidden, _, patterns), size, flat = kept.root.shape, kept.gain.shape[2], start_of(system).flat

    def own(root: Array, mirrors: Array) -> Array:
        blank = jnp.zeros((hidden, size + hidden, patterns), root.dtype)
        return reflected(jnp.concatenate([blank[:, :size], root, blank], 1), mirrors)

    rows = jax.vmap(own)(kept.root, kept.mirrors)
    by_step = jax.vmap(product)
    mean = tuple(m + by_step(rows[:, :, :size], i) for m, i in zip(kept.mean, kept.innovation, strict=True))
    covariance = by_step(rows[:, :, size:], jnp.swapaxes(rows[:, :, size:], 1, 2))
    if not len(flat):
        return mean[0][:, :, 0], covariance

    def told(factor: Array, now: Paths) -> tuple[Array, tuple[Array, Array, Array]]:
        factor, directions, share, untold, _ = least_squares(jnp.concatenate([factor, as_rows(now, patterns)], 1), flat)
        return factor, (directions, share, untold)

    prior = prior_rows(flat, kept.innovation[0].shape[-1] // patterns, kept.root[0])
    directions, share, untold = jax.lax.scan(told, prior, tuple(path[:, None] for path in kept.innovation[::-1]))[1]
    path = by_step(mean[1], jnp.swapaxes(directions, 1, 2))
    lost = visible(jnp.where(untold[:, None], path, 0), mean[1])
    path = jnp.where(untold[:, None], 0, path)
    covariance = covariance + jax.vmap(gram)(path)
    return (mean[0] + by_step(path, share))[:, :, 0], without_end(covariance, lost)
