"""Linear Gaussian state-space models as plain functions: usable without any model, in any JAX program.

A state of H numbers moves, and D numbers are seen of it at each step:

    z_1 ~ N(initial_mean, initial_covariance)
    z_t = transition z_t-1 + N(0, transition_noise)
    x_t = emission z_t + emission_bias + N(0, emission_noise)

Everything is a sum of independent unit noises, and is conditioned on what was seen by turning them: by orthogonal
transformations, which lose no digits (Kaminski, Bryson and Schmidt 1971). Forwards they are turned into those that the
data of a step tell and those that its next state is made of; backwards, what later steps tell of the latter is turned
back. Covariances are sums of squares; none is ever a difference, or divided by, so noises and covariances may be
singular. The derivative of the log-likelihood is the expected complete-data score (Fisher's identity), by the slope and
a root of the information that later steps have of a state (de Jong 1989; Koopman 1993), which are sums, too.

States of which nothing is known at the start, not even roughly, are `diffuse`: their first values are coefficients of a
regression, over which the density is flat (Rosenberg 1973; de Jong 1991; Durbin and Koopman 2012, sections 5.2 and
5.7). All is linear in them, so they are a few more paths beside those of the data.

Time leads, sequences are the innermost axis. Covariances do not depend on what was seen, only on whether it was: where
that is the same for all sequences they have an axis of one in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from jaxem.chains.chain import LONG
from jaxem.core import linalg
from jaxem.core.linalg import product, reflected, reflections, root_inverse, semidefinite_root, triangular_root
from jaxem.core.pytree import module, replace, static
from jaxem.core.summation import two_sum


@module
class System:
    """The parameters of a linear Gaussian state-space model.

    Attributes:
        initial_mean: `[H]`.
        initial_covariance: `[H, H]`.
        transition: `[H, H]`: the new state is this times the old.
        transition_noise: `[H, H]`, a covariance.
        emission: `[D, H]`.
        emission_bias: `[D]`.
        emission_noise: `[D, D]`, a covariance.
        diffuse: for each state, is nothing known of it at the start? Its mean and covariance then play no part. `()` if
            something is known of all.
    """

    initial_mean: Float[Array, "h"]
    initial_covariance: Float[Array, "h h"]
    transition: Float[Array, "h h"]
    transition_noise: Float[Array, "h h"]
    emission: Float[Array, "d h"]
    emission_bias: Float[Array, "d"]
    emission_noise: Float[Array, "d d"]
    diffuse: tuple[bool, ...] = static(default=())


@module
class Observed:
    """S sequences as the recursions read them.

    Attributes:
        values: `[T, D, S]`; a cell that was not seen holds zero.
        seen: `[T, D, S]` bool; nothing is seen beyond a length. `[T, D, 1]` if it is the same for all.
        length: `[S]`, or `[1]`.
    """

    values: Float[Array, "t d s"]
    seen: Bool[Array, "t d s1"]
    length: Int[Array, "s1"]


@module
class Smoothed:
    """What is known of the states.

    Attributes:
        log_likelihood: in nats.
        mean: `[T, H]`; zero beyond the length.
        covariance: `[T, H, H]`; zero beyond the length, infinite where a diffuse start is not told by the data.
    """

    log_likelihood: Float[Array, ""]
    mean: Float[Array, "t h"]
    covariance: Float[Array, "t h h"]


Paths = tuple[Array, ...]
"""What is linear in the data: `[H, 1, S]` of the data; and of a diffuse start `[H, Q, P]`, one for each direction."""


class Filtered(NamedTuple):
    """What the forward pass keeps of each step. P is S, or 1 where the same is seen of all sequences.

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


class Start(NamedTuple):
    """The first state: what a root of its covariance says, and beside it directions, of which some are flat.

    A direction of which something is known is a column of `whole` times `share`, and has a unit noise.

    Attributes:
        root: `[H, H]` of the rest of the covariance.
        beside: `[H, Q]`.
        flat: `[Q]`, is nothing known of it?
        whole: `[H, H]`, a root of the whole covariance.
        share: `[H]`, of each of its columns; squared, it and what is left are one.
    """

    root: Array
    beside: Array
    flat: np.ndarray
    whole: Array
    share: Array


class Told(NamedTuple):
    """What the data tell of the directions beside the root of a start.

    Attributes:
        mean: `[Q, 1, S]`.
        root: `[Q, Q, P]`: root root^T is their covariance.
        lost: `[T, H, Q, P]`, the paths of those of which they tell nothing.
    """

    mean: Array
    root: Array
    lost: Array


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


class Score(NamedTuple):
    """The derivative of the log-likelihood of each sequence.

    Attributes:
        system: a `System` whose leaves end with an axis of sequences.
        values: `[T, D, S]`, by the values.
    """

    system: System
    values: Array


def _swap(matrix: Float[Array, "d e s"]) -> Float[Array, "e d s"]:
    return jnp.swapaxes(matrix, 0, 1)


def _square(matrix: Float[Array, "d e s"]) -> Float[Array, "d d s"]:
    """M M^T."""
    return product(matrix, _swap(matrix))


def _apply(matrix: Float[Array, "d k s1"], vectors: Paths) -> Paths:
    return tuple(product(matrix, vector) for vector in vectors)


def _plus(*terms: Paths) -> Paths:
    return jax.tree.map(lambda *each: sum(each[1:], each[0]), *terms)


def _outer(a: Paths, b: Paths) -> Float[Array, "d e s"]:
    """Sums of products over the paths: of the data, and of what is not known of a diffuse start."""
    return sum(product(left, _swap(right)) for left, right in zip(a, b, strict=True))  # type: ignore[return-value]


def _lower(matrix: Float[Array, "h h s"]) -> Float[Array, "h h s"]:
    return jnp.where(jnp.tril(jnp.ones(matrix.shape[:2], bool))[..., None], matrix, 0)


def _root(covariance: Float[Array, "h h"]) -> Float[Array, "h h 1"]:
    return semidefinite_root(covariance)[..., None]


def _diagonal(matrix: Float[Array, "d d s"]) -> Float[Array, "d s"]:
    return jnp.stack([matrix[i, i] for i in range(len(matrix))])


def started(system: System) -> System:
    """The same, with a spread of diffuse states to set out from.

    The density over them being flat, any will do: that of what a few steps' noises add to the data.
    """
    if not any(system.diffuse):
        return system
    diffuse = jnp.array(system.diffuse)
    known = ~(diffuse[:, None] | diffuse[None])
    told = jax.lax.stop_gradient(_told_by_steps(system, jnp.eye(len(diffuse), dtype=system.transition.dtype)))
    spread = jnp.diag(jnp.where(diffuse, 1 / jnp.where(told > 0, told, 1), 0))
    return replace(system, initial_covariance=jnp.where(known, system.initial_covariance, 0) + spread)


def _told_by_steps(system: System, columns: Float[Array, "h q"]) -> Float[Array, "q"]:
    """How much larger than the noises what is seen of each of these first states is, squared, in as many steps as H."""

    def look(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        rows, noise, told = carry
        noise = noise + jnp.sum(linalg.matmul(rows, system.transition_noise) * rows, axis=1)
        now = linalg.matmul(rows, columns) ** 2 / jnp.where(noise > 0, noise, jnp.inf)[:, None]
        return (linalg.matmul(rows, system.transition), noise, jnp.maximum(told, jnp.max(now, axis=0))), None

    first = system.emission, linalg.diagonal(system.emission_noise), jnp.zeros_like(columns[0])
    return jax.lax.scan(look, first, None, length=len(columns))[0][2]


def _start(system: System) -> Start:
    """How the first state is made. Directions beside the root of which something is known are for float32.

    There an initial covariance that is large beside the noises would drown them. At least half of each is beside: what
    the data tell of that is what they tell of the whole.
    """
    system, flat = started(system), np.array(system.diffuse or (False,) * len(system.transition))
    root = semidefinite_root(system.initial_covariance)
    eye = jnp.eye(len(root), dtype=root.dtype)
    if root.dtype.itemsize >= 8:
        return Start(root, eye[:, np.flatnonzero(flat)], flat[flat], root, jnp.zeros_like(root[0]))
    part = 1 / (1 + jnp.maximum(jax.lax.stop_gradient(_told_by_steps(system, root)), 1))
    inside, share = jnp.where(flat, 1, jnp.sqrt(part)), jnp.where(flat, 0, jnp.sqrt(1 - part))
    return Start(root * inside[None], jnp.where(flat[None], eye, root * share[None]), flat, root, share)


def _pass(system: System, x: Observed) -> Filtered:
    """The Kalman filter; of a diffuse start, one path for each unit of it."""
    steps, size, sequences = x.values.shape
    hidden, patterns = len(system.transition), x.seen.shape[-1]
    root, beside, flat = _start(system)[:3]
    transition, emission, dtype = system.transition[..., None], system.emission[..., None], x.values.dtype
    noise, moves = _root(system.emission_noise), _root(system.transition_noise)
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
            jnp.where(row, noise, 0), jnp.where(row, told, 0), zeros(size, hidden), jnp.where(row, 0, _eye(size, dtype))
        )
        lower = wide(zeros(hidden, size), product(transition, root), moves, zeros(hidden, size))
        turned, mirrors = reflections(jnp.concatenate([upper, lower]), size + hidden)
        spread, gain = _lower(turned[:size, :size]), turned[size:, :size]
        # A cell that those before it tell without any noise has no density of its own: those of the same step, or of
        # earlier ones, which have left of the states' noises what is rounding beside the largest that there were.
        pivot = _diagonal(spread)
        dust = jnp.where(seen, product(jnp.abs(emission), largest[:, None])[:, 0], 0)
        certain = jnp.abs(pivot) <= resolved * jnp.sqrt(jnp.sum(spread**2, axis=1)) + resolved / 4 * dust
        white = root_inverse(jnp.where(_eye(size, bool) & certain[:, None], 1, spread))
        expected = _apply(emission, mean)
        off = [jnp.where(row, value - e, 0) for value, e in zip((values, 0), expected, strict=False)]
        off = _apply(white, tuple(off))
        innovation = tuple(jnp.where(certain[:, None], 0, each) for each in off)
        scale = jnp.sum(jnp.abs(values) + jnp.abs(expected[0]), axis=0, keepdims=True)
        agrees = jnp.abs(off[0]) <= resolved * scale
        cells = -jnp.log(jnp.abs(jnp.where(certain, 1, pivot))) - jnp.where(seen, 0.5 * math.log(2 * math.pi), 0)
        cells = jnp.where(certain, jnp.where(agrees[:, 0], jnp.inf, -jnp.inf), cells)
        kept = Filtered(mean, root, innovation, white, gain, mirrors, _total(cells, partial(jnp.sum, axis=0)))
        # Beyond the length nothing moves, lest it overflow.
        over = t >= x.length
        after = _plus(_apply(transition, mean), _apply(gain, innovation))
        mean = tuple(jnp.where(over, old, new) for old, new in zip(mean, after, strict=True))
        largest = jnp.maximum(largest, jax.lax.stop_gradient(jnp.sqrt(jnp.sum(lower**2, axis=1))))
        return (mean, jnp.where(over, root, _lower(turned[size:, size : size + hidden])), largest), kept

    mean = (jnp.broadcast_to(system.initial_mean[:, None, None], (hidden, 1, sequences)),)
    if len(flat):
        mean = (*mean, jnp.broadcast_to(beside[..., None], (*beside.shape, patterns)))
    root = jnp.broadcast_to(root[..., None], (hidden, hidden, patterns))
    centred = jnp.where(x.seen, x.values - system.emission_bias[None, :, None], 0)[:, :, None]
    return jax.lax.scan(
        step, (mean, root, jnp.zeros_like(root[0])), (jnp.arange(steps, dtype=jnp.int32), centred, x.seen)
    )[1]


def _eye(size: int, dtype: Any) -> Array:
    return jnp.eye(size, dtype=dtype)[..., None]


UNTOLD = 256
"""The data tell nothing of a direction of a diffuse start if no more than so many units of rounding are left of it."""


def _told(rows: Float[Array, "r n p"], flat: np.ndarray) -> tuple[Array, Array, Array, Array, Array]:
    """Least squares of rows on the first Q of them, by orthogonal transformation.

    Returns:
        `(factor, directions, share, untold, volume)`: in place of the rows others of the same products, as far as they
        go along the first; `[Q, Q, P]`, which times the first rows are orthonormal, or zero where they are
        `untold [Q, P]`; `[Q, 1, S]`, minus how far the others go along them; and `[P]`, minus the logarithm of the
        volume that the first rows span.
    """
    count = len(flat)
    factor = triangular_root(rows, count, np.where(flat, UNTOLD * jnp.finfo(rows.dtype).eps, 0).astype(rows.dtype))
    untold = _diagonal(factor[:count]) == 0
    whole = jnp.where(_eye(count, bool) & untold[:, None], 1, factor[:count])
    directions = root_inverse(whole)
    # What is told, is told at right angles to what is not.
    lost = jnp.where(untold[:, None], directions, 0)
    angles = triangular_root(lost)
    angles = jnp.where(_eye(count, bool) & ~untold[:, None], 1, angles)
    lost = product(root_inverse(angles), lost)
    apart = directions - product(product(directions, _swap(lost)), lost)
    volume = -jnp.sum(jnp.log(jnp.abs(_diagonal(whole))) + jnp.log(_diagonal(angles)), axis=0)
    directions = jnp.where(untold[:, None], directions, apart)
    return factor, directions, -_swap(factor[count:]).reshape(count, 1, -1), untold, volume


def _prior(flat: np.ndarray, others: int, like: Array) -> Float[Array, "r q p"]:
    """What is known of the directions of a start before any data, as rows: of those that are not flat, a unit noise."""
    alone = jnp.diag(jnp.asarray(~flat, like.dtype))[..., None]
    return jnp.broadcast_to(
        jnp.pad(alone, ((0, others), (0, 0), (0, 0))), (len(flat) + others, len(flat), like.shape[-1])
    )


def _rows(paths: tuple[Array, ...], patterns: int) -> Float[Array, "r n p"]:
    """Paths of several steps as rows, all that share covariances one under the other."""

    def each(path: Float[Array, "t d q s"]) -> Array:
        steps, size, count, sequences = path.shape
        return _swap(path.reshape(steps * size, count * sequences // patterns, patterns))

    return jnp.concatenate([each(path) for path in paths])


def forward(system: System, x: Observed) -> tuple[Float[Array, "s"], Filtered, Told | None]:
    """The Kalman filter: the log-likelihood of each sequence, and what it keeps.

    The paths of a diffuse start are those of its mean given the whole sequence, and of the directions of a root of its
    covariance.
    """
    return _settled(system, _pass(system, x))


def _settled(system: System, kept: Filtered) -> tuple[Float[Array, "s"], Filtered, Told | None]:
    start, told = jnp.zeros((), kept.root.dtype), None
    if len(kept.mean) > 1:
        flat, rows = _start(system).flat, _rows(kept.innovation[::-1], kept.root.shape[-1])
        prior = _prior(flat, len(rows) - len(flat), rows)
        _, directions, share, untold, volume = _told(jnp.concatenate([prior, rows], 1), flat)
        by_step = jax.vmap(product, (0, None))
        innovation, path = (by_step(each[1], _swap(directions)) for each in (kept.innovation, kept.mean))
        lost = _visible(jnp.where(untold[None, None], path, 0), kept.mean[1])
        innovation, path = (jnp.where(untold[None, None], 0, each) for each in (innovation, path))
        kept = kept._replace(
            innovation=(kept.innovation[0] + by_step(innovation, share), innovation),
            mean=(kept.mean[0] + by_step(path, share), path),
        )
        count = jnp.sum(~untold & flat[:, None], axis=0, dtype=rows.dtype)
        away = product(_swap(product(directions, prior[: len(flat)])), share)
        told = Told(product(_swap(directions), share), _swap(jnp.where(untold[:, None], 0, directions)), lost)
        start = volume + 0.5 * math.log(2 * math.pi) * count - 0.5 * jnp.sum(away**2, axis=(0, 1))
    steps = kept.volume - 0.5 * jnp.sum(kept.innovation[0] ** 2, axis=(1, 2))
    return _summed(steps) + start, kept, told


def _without_end(covariance: Float[Array, "t h h p"], lost: Array) -> Float[Array, "t h h p"]:
    """Covariances, infinite along what the data tell nothing of."""
    unknown = jax.vmap(_square)(lost)
    return jnp.where(unknown == 0, covariance, jnp.sign(unknown) * jnp.inf)


def _visible(paths: Float[Array, "t h q p"], among: Float[Array, "t h q p"]) -> Float[Array, "t h q p"]:
    """Zero where a path is no more than rounding of all."""
    scale = jnp.finfo(paths.dtype).eps * jnp.sum(among**2, axis=2, keepdims=True)
    return jnp.where(paths**2 > scale, paths, 0)


def _summed(terms: Float[Array, "t s"]) -> Float[Array, "s"]:
    def compensated(terms: Array) -> Array:
        nothing = jnp.zeros_like(terms[0])
        (high, low), _ = jax.lax.scan(lambda sums, term: (two_sum(*sums, term), None), (nothing, nothing), terms)
        return high + low

    return _total(terms, compensated)


def _total(terms: Float[Array, "n s"], add: Callable[[Array], Array]) -> Float[Array, "s"]:
    """A sum of log-densities: where one is of the impossible so is all, however certain others may be."""
    endless = jnp.isinf(terms)
    extreme = jnp.where(jnp.any(terms == -jnp.inf, axis=0), -jnp.inf, jnp.inf)
    return jnp.where(jnp.any(endless, axis=0), extreme, add(jnp.where(endless, 0, terms)))


def _more(total: tuple[Array, Array], term: Array, steps: int) -> tuple[Array, Array]:
    """A sum and what its rounding lost: over many steps that is needed."""
    return two_sum(*total, term) if steps > LONG else (total[0] + term, total[1])


def _added(sums: Any, terms: Any, steps: int) -> Any:
    return jax.tree.map(lambda s, term: _more(s, term, steps), sums, terms, is_leaf=lambda s: isinstance(s, tuple))


def backward(system: System, x: Observed, filtered: Filtered, told: Told | None) -> tuple[Expected, States]:
    """The smoother: what is known of the unit noises of each step, turned back (see `Filtered`).

    Of a step's noises, turned, some are innovations, which are known; of some, those of the next state, later steps
    tell a mean and a root of their covariance; and of the others nothing is known.
    """
    steps, size, sequences = x.values.shape
    patterns, hidden = x.seen.shape[-1], len(system.transition)
    noise, moves, dtype = _root(system.emission_noise), _root(system.transition_noise), x.values.dtype
    others, flat = size + hidden, sum(path.shape[2] for path in filtered.mean[1:])

    def zeros(*shape: int) -> Array:
        return jnp.zeros((*shape, patterns), dtype)

    alone = jnp.concatenate([zeros(others, others), zeros(others, others) + _eye(others, dtype)], 1)

    def parts(rows: Array, root: Array) -> tuple[Array, Array, Array]:
        """Of rows of unit noises: what the emission adds to the state, what the state is, what the move adds to it."""
        return (
            product(noise, _swap(rows[:, :size])),
            product(root, _swap(rows[:, size:others])),
            product(moves, _swap(rows[:, others : others + hidden])),
        )

    def step(carry: Any, now: Any) -> tuple[Any, States]:
        known, loose, sums = carry
        t, seen, kept = now
        over, ends, some = t >= x.length, t + 1 >= x.length, jnp.any(seen, axis=0)
        first = _swap(kept.innovation[0])
        rows = jnp.concatenate([first, known, jnp.zeros((1, others, sequences), dtype)], 1)
        rows = reflected(rows, kept.mirrors, reverse=True)
        # One row for each direction in which the next state is not known; of those of a diffuse start, innovations.
        after = jnp.concatenate([zeros(hidden, size), *(_swap(path) for path in kept.innovation[1:])])
        spread = jnp.concatenate([after, loose, zeros(hidden + flat, others)], 1)
        spread = reflected(jnp.concatenate([spread, alone]), kept.mirrors, reverse=True)
        e, z, w = parts(rows, kept.root)
        e_spread, z_spread, w_spread = parts(spread, kept.root)
        z = z + kept.mean[0]
        if flat:
            z_spread = z_spread.at[:, hidden : hidden + flat].add(kept.mean[1])
        terms = {
            "moved": jnp.where(ends, 0, _square(jnp.concatenate([w, z]))),
            "moved_spread": jnp.where(ends, 0, _square(jnp.concatenate([w_spread, z_spread]))),
            "seen": jnp.where(some, _square(jnp.concatenate([e, z, jnp.ones_like(z[:1])])), 0),
            "seen_spread": jnp.where(some, _square(jnp.concatenate([e_spread, z_spread])), 0),
        }
        own = spread[:, size:others]
        root = triangular_root(_swap(jnp.concatenate([own[:hidden], own[hidden + flat :]])))
        new = jnp.concatenate([_swap(root), own[hidden : hidden + flat]])
        known = jnp.where(over, known, rows[:, size:others])
        return (known, jnp.where(over, loose, new), _added(sums, terms, steps)), States(
            z[:, 0], _square(z_spread), e[:, 0]
        )

    sums = {
        "moved": jnp.zeros((2 * hidden, 2 * hidden, sequences), dtype),
        "moved_spread": zeros(2 * hidden, 2 * hidden),
        "seen": jnp.zeros((others + 1, others + 1, sequences), dtype),
        "seen_spread": zeros(others, others),
    }
    nothing = (
        jnp.zeros((1, hidden, sequences), dtype),
        jnp.concatenate([zeros(hidden, hidden) + _eye(hidden, dtype), zeros(flat, hidden)]),
    )
    times = jnp.arange(steps, dtype=jnp.int32)
    (known, loose, sums), states = jax.lax.scan(
        step, (*nothing, jax.tree.map(lambda s: (s, s), sums)), (times, x.seen, filtered), reverse=True
    )
    sums = {name: high + low for name, (high, low) in sums.items()}
    seen_spread = jnp.pad(sums["seen_spread"], ((0, 1), (0, 1), (0, 0)))
    # The first mean is that of the initial state and of what the whole sequence says of the directions beside its root.
    shift = filtered.mean[0][0] - system.initial_mean[:, None, None] + product(filtered.root[0], _swap(known))
    apart = product(filtered.root[0], _swap(loose))
    if flat:
        apart = apart.at[:, hidden : hidden + flat].add(filtered.mean[1][0])
    first = _square(shift) + _square(apart)
    expected = Expected(first, shift[:, 0], sums["moved"] + sums["moved_spread"], sums["seen"] + seen_spread)
    there = (times[:, None] < x.length[None])[:, None]
    covariance = states.covariance if told is None else _without_end(states.covariance, told.lost)
    return expected, States(
        jnp.where(there, states.mean, 0), jnp.where(there[:, None], covariance, 0), jnp.where(there, states.noise, 0)
    )


def score(system: System, x: Observed, filtered: Filtered, told: Told | None) -> Score:
    """The derivative of the log-likelihood: what later steps say of a state is a slope and a root of information."""
    steps, size, sequences = x.values.shape
    transition, emission = system.transition[..., None], system.emission[..., None]
    hidden, patterns, dtype = len(transition), x.seen.shape[-1], x.values.dtype

    def step(carry: Any, now: tuple[Array, Filtered]) -> tuple[Any, Array]:
        slope, known, root, sums = carry
        seen, kept = now
        # By the noise of what was seen, in units of its covariance.
        weight = jnp.where(seen[:, None], _swap(kept.white), 0)
        by_gain = _apply(_swap(kept.gain), slope)
        noise = _apply(weight, tuple(new - old for new, old in zip(kept.innovation, by_gain, strict=True)))
        share = product(weight, product(_swap(kept.gain), known))
        before = _plus(_apply(_swap(transition), slope), _apply(_swap(emission), noise))
        mean = _plus(kept.mean, _apply(kept.root, _apply(_swap(kept.root), before)))
        # What a state has in common with the innovations of its step, and with the next state.
        blank = jnp.zeros((hidden, size + hidden, patterns), dtype)
        own = reflected(jnp.concatenate([blank[:, :size], kept.root, blank], 1), kept.mirrors)
        later = product(own[:, size : size + hidden], product(_swap(root), known))
        terms = {
            "transition": _outer(slope, mean) - product(known, _swap(later)),
            "transition_noise": (_outer(slope, slope) - _square(known)) / 2,
            "emission": _outer(noise, mean) - product(weight, _swap(own[:, :size])) + product(share, _swap(later)),
            "emission_bias": noise[0][:, 0],
            "emission_noise": (_outer(noise, noise) - _square(weight) - _square(share)) / 2,
        }
        left = product(_swap(transition), known) - product(_swap(emission), share)
        known = triangular_root(jnp.concatenate([left, product(_swap(emission), weight)], 1))
        return (before, known, kept.root, _added(sums, terms, steps)), noise[0][:, 0]

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
    by_mean, by_covariance = _by_the_start(system, slope[0], _of_the_start(system, known), told)
    if any(system.diffuse):
        given = ~jnp.array(system.diffuse)[:, None]
        by_mean = jnp.where(given, by_mean, 0)
        by_covariance = jnp.where(given[:, None] & given[None], by_covariance, 0)
    own = replace(system, initial_mean=by_mean, initial_covariance=by_covariance, **found)
    return Score(own, -noise)


def _by_the_start(system: System, slope: Array, known: Array, told: Told | None) -> tuple[Array, Array]:
    """The derivatives by mean and covariance of the first state, from a slope and a root of the information on it.

    Of a start that is all but unknown both are nothing beside what they are sums of. In units of its covariance L L^T
    they are what the data tell of it: L^T slope is the mean of its unit noises, and L^T information L is how much less
    than one their covariance is. Of a direction beside, which is a share of a unit noise, that is both over the share.
    """
    start = _start(system)
    if told is None or slope.dtype.itemsize >= 8:
        return slope[:, 0], (_square(slope) - _square(known)) / 2
    used = ~jnp.asarray(start.flat) & (linalg.diagonal(start.whole) > 0)
    whole = jnp.where(used[None], start.whole, jnp.eye(len(used), dtype=slope.dtype))[..., None]
    share = jnp.where(used, start.share, 1)[:, None, None]
    mean, root = product(_swap(whole), slope), product(_swap(whole), known)
    mean = jnp.where(used[:, None, None], told.mean / share, mean)
    lack = (_eye(len(used), slope.dtype) - _square(told.root)) / (share * _swap(share))
    # Of what the data hardly tell, the sum has the digits.
    clear = used[:, None] & (_diagonal(lack) > CLEAR)
    information = jnp.where(
        used[:, None, None] & used[None, :, None] & (clear[:, None] | clear[None]), lack, _square(root)
    )
    back = _swap(root_inverse(whole))
    both = product(product(back, _square(mean) - information), _swap(back))
    return product(back, mean)[:, 0], both / 2


def _same(seen: Bool[Array, "t d s"], length: Int[Array, "s"]) -> Bool[Array, ""]:
    """Whether the same steps of all sequences were observed."""
    return jnp.all(seen == seen[..., :1]) & jnp.all(length == length[:1])


_alike = custom_vmap(_same)


@_alike.def_vmap
def _alike_everywhere(size: int, batched: list[bool], seen: Array, length: Array) -> tuple[Array, bool]:
    # One answer for a whole batch: a branch, and not both ways and a selection.
    axes = [0 if is_batched else None for is_batched in batched]
    return jnp.all(jax.vmap(_same, in_axes=axes)(seen, length)), False


def _by_patterns(function: Callable[[Observed], Any], x: Observed) -> Any:
    """`function` of x, by covariances that are shared if they can be."""
    sequences = x.values.shape[-1]
    if x.seen.shape[-1] == 1:
        return function(x)

    def shared(x: Observed) -> Any:
        out = function(replace(x, seen=x.seen[..., :1], length=x.length[:1]))
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*leaf.shape[:-1], sequences)), out)

    return jax.lax.cond(_alike(x.seen, x.length), shared, function, x)


CLEAR = 0.01
"""Of a direction of a start the data tell so much, if its variance is less by this part."""


def _of_the_start(system: System, known: Float[Array, "h k p"]) -> Float[Array, "h k p"]:
    """A root of the information on the first state, once the directions of the start are not given, but unknown."""
    _, beside, flat = _start(system)[:3]
    if not len(flat):
        return known
    # What tells of a flat direction tells of it alone.
    along, count = product(beside.T[..., None], known), int(flat.sum())
    if count:
        rows = jnp.concatenate([along[np.flatnonzero(flat)], along[np.flatnonzero(~flat)], known])
        turned, _ = reflections(rows, count)
        pivot = _diagonal(turned[:count, :count]) ** 2
        spent = pivot > (UNTOLD * jnp.finfo(rows.dtype).eps) ** 2 * jnp.sum(rows[:count] ** 2, axis=1)
        rest = jnp.concatenate([jnp.where(spent[None], 0, turned[count:, :count]), turned[count:, count:]], 1)
        along, known = rest[: len(flat) - count], rest[len(flat) - count :]
    if count < len(flat):
        unit = jnp.broadcast_to(_eye(known.shape[1], known.dtype), (known.shape[1], *known.shape[1:]))
        factor = triangular_root(jnp.concatenate([unit, _swap(along)], 1))
        known = _swap(product(root_inverse(factor), _swap(known)))
    return known


def expectations(system: System, x: Observed) -> tuple[Float[Array, "s"], Expected]:
    """The log-likelihood of each sequence, and what the E-step needs."""

    def both(x: Observed) -> tuple[Array, Expected]:
        value, kept, told = forward(system, x)
        return value, backward(system, x, kept, told)[0]

    return _by_patterns(both, x)


def filtered(system: System, x: Observed) -> tuple[Float[Array, "s"], Float[Array, "t h s"], Float[Array, "t h h s1"]]:
    """The log-likelihoods, and mean and covariance of the states given what was seen up to each step."""

    def moments(x: Observed) -> tuple[Array, Array, Array]:
        kept = _pass(system, x)
        there = (jnp.arange(len(x.values), dtype=jnp.int32)[:, None] < x.length[None])[:, None]
        mean, covariance = _up_to_now(system, kept)
        return _settled(system, kept)[0], jnp.where(there, mean, 0), jnp.where(there[:, None], covariance, 0)

    return _by_patterns(moments, x)


def _up_to_now(system: System, kept: Filtered) -> tuple[Float[Array, "t h s"], Float[Array, "t h h p"]]:
    """Mean and covariance of each state given its own step, too."""
    (_, hidden, _, patterns), size, flat = kept.root.shape, kept.gain.shape[2], _start(system).flat

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
        factor, directions, share, untold, _ = _told(jnp.concatenate([factor, _rows(now, patterns)], 1), flat)
        return factor, (directions, share, untold)

    prior = _prior(flat, kept.innovation[0].shape[-1] // patterns, kept.root[0])
    directions, share, untold = jax.lax.scan(told, prior, tuple(path[:, None] for path in kept.innovation[::-1]))[1]
    path = by_step(mean[1], jnp.swapaxes(directions, 1, 2))
    lost = _visible(jnp.where(untold[:, None], path, 0), mean[1])
    path = jnp.where(untold[:, None], 0, path)
    covariance = covariance + jax.vmap(_square)(path)
    return (mean[0] + by_step(path, share))[:, :, 0], _without_end(covariance, lost)


def smoothed(system: System, x: Observed) -> tuple[Float[Array, "s"], Array, Array, Array]:
    """The log-likelihoods, and `States` given all of each sequence."""

    def states(x: Observed) -> tuple[Array, Array, Array, Array]:
        value, kept, told = forward(system, x)
        found = backward(system, x, kept, told)[1]
        return value, found.mean, found.covariance, found.noise

    return _by_patterns(states, x)


@jax.custom_jvp
def log_normalizer(system: System, x: Observed) -> Float[Array, "s"]:
    """The log-likelihood of each sequence; its derivative is the expected complete-data score (Fisher's identity)."""
    return _by_patterns(lambda x: forward(system, x)[0], x)


@log_normalizer.defjvp
def _log_normalizer_jvp(primals: tuple[System, Observed], tangents: tuple[System, Observed]) -> tuple[Array, Array]:
    system, x = primals

    def both(x: Observed) -> tuple[Array, Score]:
        value, kept, told = forward(system, x)
        return value, score(system, x, kept, told)

    value, slope = _by_patterns(both, x)

    def along(score: Array, change: Array) -> Array:
        return jnp.sum(score * change[..., None], axis=tuple(range(change.ndim)))

    own = sum(jax.tree.leaves(jax.tree.map(along, slope.system, tangents[0])))
    return value, own + jnp.sum(slope.values * tangents[1].values, axis=(0, 1))


def observed(values: Float[Array, "s t d"], seen: Bool[Array, "s t"], length: Int[Array, "s"]) -> Observed:
    """Sequences in the layout of the recursions; a cell that is NaN was not seen.

    Args:
        values: of every step.
        seen: which steps were observed.
        length: how many steps are there.
    """
    values, seen, length = jnp.moveaxis(values, 0, -1), seen.T, jnp.asarray(length, jnp.int32)
    there = jnp.arange(len(values), dtype=jnp.int32)[:, None] < length[None]
    cells = (seen & there)[:, None] & ~jnp.isnan(values)
    return Observed(jnp.where(cells, values, 0), cells, length)


def log_likelihood(system: System, x: Any, length: Any = None, *, mask: Any = None) -> Float[Array, ""]:
    """log p(x_1 .. x_T), by the Kalman filter (Kalman 1960), in nats.

    Its gradient, by the parameters and by x, is the smoother, as a derivative rule: forward and reverse mode, and
    Hessians.

    Args:
        system: the parameters.
        x: `[T, D]`, or `[T]` if D is one; a cell that is NaN was not seen.
        length: how many steps are there; the others are ignored, whatever they hold.
        mask: `[T]` bool, False where nothing was observed.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> level = System(jnp.zeros(1), one, one, one, one, jnp.zeros(1), one)
    >>> log_likelihood(level, [0.0, 1.0]).round(4).item()
    -2.8426
    """
    return log_normalizer(system, _one(system, x, length, mask))[0]


def filter(system: System, x: Any, length: Any = None, *, mask: Any = None) -> Smoothed:
    """The state at each step given what was seen up to that step.

    Args:
        system, x, length, mask: as in `log_likelihood`.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> level = System(jnp.zeros(1), one, one, one, one, jnp.zeros(1), one)
    >>> filter(level, [0.0, 1.0]).mean.round(4).tolist()
    [[0.0], [0.6]]
    """
    value, mean, covariance = filtered(system, _one(system, x, length, mask))
    return Smoothed(value[0], mean[..., 0], covariance[..., 0])


def smoother(system: System, x: Any, length: Any = None, *, mask: Any = None) -> Smoothed:
    """The state at each step given the whole sequence (Rauch, Tung and Striebel 1965; de Jong 1989).

    Args:
        system, x, length, mask: as in `log_likelihood`.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> level = System(jnp.zeros(1), one, one, one, one, jnp.zeros(1), one)
    >>> smoother(level, [0.0, 1.0]).mean.round(4).tolist()
    [[0.2], [0.6]]
    """
    value, mean, covariance, _ = smoothed(system, _one(system, x, length, mask))
    return Smoothed(value[0], mean[..., 0], covariance[..., 0])


def sample_posterior(
    key: Array, system: System, x: Any, n: int = 1, length: Any = None, *, mask: Any = None
) -> Float[Array, "n t h"]:
    """`n` paths of the state drawn given the whole sequence (Durbin and Koopman 2002).

    A path and data drawn from the model, moved by what the smoother says of the difference of the data.

    Args:
        key: a JAX random key.
        system, x, length, mask: as in `log_likelihood`.
        n: how many paths.

    Returns:
        `[n, T, H]`; zero beyond the length.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax, jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> still = System(jnp.zeros(1), one, one, 0 * one, one, jnp.zeros(1), 1e-12 * one)
    >>> sample_posterior(jax.random.key(0), still, [1.0, jnp.nan]).round(4).tolist()
    [[[1.0], [1.0]]]
    """
    seen, system = _one(system, x, length, mask), started(system)
    states, drawn = draws(key, system, n, len(seen.values))
    moved = smoothed(centred(system), without(seen, drawn))[1]
    there = jnp.arange(len(moved), dtype=jnp.int32) < seen.length
    return jnp.moveaxis(jnp.where(there[:, None, None], states + moved, 0), -1, 0)


def centred(system: System) -> System:
    """The same about zero: what is left of the means in the difference of two of its sequences."""
    nothing = jnp.zeros_like(system.initial_mean), jnp.zeros_like(system.emission_bias)
    return replace(system, initial_mean=nothing[0], emission_bias=nothing[1])


def without(x: Observed, drawn: Float[Array, "t d s"]) -> Observed:
    """What was seen, less a draw of it."""
    return replace(x, values=jnp.where(x.seen, x.values - drawn, 0))


def completed(system: System, x: Observed) -> Float[Array, "t d s"]:
    """The mean of every cell given all that was seen; at one that was seen, its value."""
    _, mean, _, noise = smoothed(system, x)
    by_state = jax.vmap(product, (None, 0))(system.emission[..., None], mean[:, :, None])[:, :, 0]
    return jnp.where(x.seen, x.values, by_state + noise + system.emission_bias[None, :, None])


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


def _one(system: System, x: Any, length: Any, mask: Any) -> Observed:
    """What a person passed, as one sequence.

    Raises:
        ValueError: shapes that do not match.
    """
    size = system.emission.shape[-2]
    x = jnp.asarray(x if isinstance(x, jax.Array) else np.asarray(x), system.emission.dtype)
    x = x[:, None] if x.ndim == 1 and size == 1 else x
    if x.ndim != 2 or x.shape[1] != size or not len(x):
        raise ValueError(f"x has shape {x.shape}; with this emission it must be [steps, {size}]")
    steps = len(x)
    if mask is not None and np.shape(mask) != (steps,):
        raise ValueError(f"mask has shape {np.shape(mask)}; with {steps} steps it must be ({steps},)")
    if length is not None:
        if np.shape(length) != ():
            raise ValueError(f"length has shape {np.shape(length)}; it must be one number (use vmap for more)")
        if not isinstance(length, Tracer) and not 1 <= int(length) <= steps:
            raise ValueError(f"length is {length}; with {steps} steps in x it must be from 1 to {steps}")
    seen = jnp.ones(steps, bool) if mask is None else jnp.asarray(mask, bool)
    return observed(x[None], seen[None], jnp.asarray(steps if length is None else length, jnp.int32)[None])
