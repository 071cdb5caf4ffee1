"""Linear Gaussian state-space models as plain functions: usable without any model, in any JAX program.

A state of H numbers moves, and D numbers are seen of it at each step:

    z_1 ~ N(initial_mean, initial_covariance)
    z_t = transition z_t-1 + N(0, transition_noise)
    x_t = emission z_t + emission_bias + N(0, emission_noise)

Forwards, square roots of covariances are carried, made by orthogonal transformations (Kaminski, Bryson and Schmidt
1971): in float32 they are what covariances are in float64. Backwards, what later steps say of a state is carried: a
slope and a root of its information (de Jong 1989). Neither divides by a noise or by a covariance of the state, so both
may be singular, and together they are the derivative of the log-likelihood: the expected complete-data score (Fisher's
identity). A cell that was not seen is a row of zeros in the emission, with a unit noise of its own.

Time leads, sequences are the innermost axis. Covariances do not depend on what was seen, only on whether it was: where
that is the same for all sequences they have an axis of one in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from jaxem import linalg
from jaxem.chains.chain import LONG
from jaxem.linalg import product, root_inverse, triangular_root
from jaxem.pytree import module, replace
from jaxem.sums import two_sum


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
    """

    initial_mean: Float[Array, "h"]
    initial_covariance: Float[Array, "h h"]
    transition: Float[Array, "h h"]
    transition_noise: Float[Array, "h h"]
    emission: Float[Array, "d h"]
    emission_bias: Float[Array, "d"]
    emission_noise: Float[Array, "d d"]


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
        covariance: `[T, H, H]`; zero beyond the length.
    """

    log_likelihood: Float[Array, ""]
    mean: Float[Array, "t h"]
    covariance: Float[Array, "t h h"]


class Filtered(NamedTuple):
    """What the forward pass keeps of each step.

    Attributes:
        mean: `[T, H, S]` of the state, given what was seen up to that step.
        root: `[T, H, H, S]`: root root^T is its covariance.
        white: `[T, D, D, S]`: turns an innovation into unit noise.
        gain: `[T, H, D, S]`: what unit noise adds to the state.
        innovation: `[T, D, S]`, as unit noise.
    """

    mean: Array
    root: Array
    white: Array
    gain: Array
    innovation: Array


class Expected(NamedTuple):
    """Expectations of each sequence, given all of it.

    Attributes:
        score: a `System` whose leaves end with an axis of sequences: the derivative of the log-likelihood.
        noise: `[T, D, S]`: minus its derivative by the values.
        first: `[H, H, S]` E (z_1 - initial_mean)(z_1 - initial_mean)^T.
        left: `[H, H, S]` sum of E z z^T over the steps that another follows.
        present: `[H, H, S]` the same over the steps of which something was seen.
        level: `[H, S]` sum of E z over those.
    """

    score: System
    noise: Array
    first: Array
    left: Array
    present: Array
    level: Array


def _apply(matrix: Float[Array, "d k *s1"], vector: Float[Array, "k s"]) -> Float[Array, "d s"]:
    return product(matrix, vector[:, None])[:, 0]


def _swap(matrix: Float[Array, "d e s"]) -> Float[Array, "e d s"]:
    return jnp.swapaxes(matrix, 0, 1)


def _square(matrix: Float[Array, "d e s"]) -> Float[Array, "d d s"]:
    """M M^T."""
    return product(matrix, _swap(matrix))


def _outer(a: Float[Array, "d s"], b: Float[Array, "e s"]) -> Float[Array, "d e s"]:
    return a[:, None] * b[None]


def _root(covariance: Float[Array, "h h"]) -> Float[Array, "h h 1"]:
    return linalg.cholesky(covariance)[..., None]


def _root_last(covariance: Float[Array, "h h s"]) -> Float[Array, "h h s"]:
    return jnp.moveaxis(linalg.cholesky(jnp.moveaxis(covariance, -1, 0)), 0, -1)


def forward(system: System, x: Observed) -> tuple[Float[Array, "s"], Filtered]:
    """The Kalman filter: the log-likelihood of each sequence, and its filtered states."""
    steps, size, sequences = x.values.shape
    patterns = x.seen.shape[-1]
    transition, emission, bias = system.transition[..., None], system.emission[..., None], system.emission_bias[:, None]
    noise, moved = _root(system.emission_noise), _root(system.transition_noise)
    moved = jnp.broadcast_to(moved, (*moved.shape[:2], patterns))
    apart = jnp.eye(size, dtype=noise.dtype)[..., None]

    def step(carry: Any, now: tuple[Array, Array, Array]) -> tuple[Any, Filtered]:
        mean, root, (high, low) = carry
        t, values, seen = now
        seen_row = seen[:, None]
        # A root of the joint covariance of what is seen and the state: [noise, emission root; 0, root].
        upper = [jnp.where(seen_row, noise, 0), jnp.where(seen_row, 0, apart)]
        upper.append(jnp.where(seen_row, product(emission, root), 0))
        lower = [jnp.zeros((len(mean), 2 * size, patterns), root.dtype), root]
        joint = triangular_root(jnp.concatenate([jnp.concatenate(upper, 1), jnp.concatenate(lower, 1)]))
        spread, gain, filtered = joint[:size, :size], joint[size:, :size], joint[size:, size:]
        white = root_inverse(spread)
        innovation = _apply(white, jnp.where(seen, values - bias - _apply(emission, mean), 0))
        after = mean + _apply(gain, innovation)
        log_volume = jnp.sum(jnp.log(jnp.diagonal(spread)), axis=-1)
        count = jnp.sum(seen, axis=0).astype(values.dtype)
        gained = -0.5 * jnp.sum(innovation**2, axis=0) - log_volume - 0.5 * math.log(2 * math.pi) * count
        ahead = triangular_root(jnp.concatenate([product(transition, filtered), moved], 1))
        # Beyond the length nothing moves, lest it overflow.
        over = t >= x.length
        ahead, root = jnp.where(over, root, ahead), jnp.where(over, root, filtered)
        total = two_sum(high, low, gained)
        return (jnp.where(over, mean, _apply(transition, after)), ahead, total), Filtered(
            jnp.where(over, mean, after), root, white, gain, innovation
        )

    mean = jnp.broadcast_to(system.initial_mean[:, None], (len(system.initial_mean), sequences))
    root = jnp.broadcast_to(_root(system.initial_covariance), (len(mean), len(mean), patterns))
    nothing = jnp.zeros(sequences, mean.dtype)
    times = jnp.arange(steps, dtype=jnp.int32)
    (_, _, (high, low)), filtered = jax.lax.scan(step, (mean, root, (nothing, nothing)), (times, x.values, x.seen))
    return high + low, filtered


def backward(system: System, x: Observed, filtered: Filtered) -> tuple[Expected, Array, Array]:
    """The smoother, as the derivative of the log-likelihood (de Jong 1989; Koopman 1993).

    Returns:
        `(expected, mean [T, H, S], covariance [T, H, H, S])`, the latter of the states.
    """
    steps, size, sequences = x.values.shape
    transition, emission = system.transition[..., None], system.emission[..., None]
    hidden = len(transition)
    apart = jnp.eye(hidden, dtype=transition.dtype)[..., None]

    def step(carry: Any, now: Any) -> tuple[Any, tuple[Array, Array, Array]]:
        # What the steps after t say of the state that t predicts for the next: slope, and a root of information.
        slope, known, sums, _ = carry
        t, seen, (mean, root, white, gain, innovation) = now
        ends = t + 1 >= x.length
        slope_now, known_now = _apply(_swap(transition), slope), product(_swap(transition), known)
        narrowed = product(_swap(root), known_now)
        later = product(root, narrowed)
        mean = mean + _apply(root, _apply(_swap(root), slope_now))
        # What is left of the filtered covariance; never below zero, whatever a diffuse start has cost in digits.
        covariance = _square(product(root, _root_last(apart - _square(narrowed))))
        second = _outer(mean, mean) + covariance
        # By the noise of what was seen, in units of its covariance.
        weight = jnp.where(seen[:, None], _swap(white), 0)
        surprise = innovation - _apply(_swap(gain), slope_now)
        noise = _apply(weight, surprise)
        shared = product(_swap(gain), known_now)
        share = product(weight, shared)
        some = jnp.any(seen, axis=0)
        terms = {
            "transition": _outer(slope, mean) - product(known, _swap(later)),
            "transition_noise": (_outer(slope, slope) - _square(known)) / 2,
            "emission": _outer(noise, mean) - product(weight, _swap(gain)) + product(share, _swap(later)),
            "emission_bias": noise,
            "emission_noise": (_outer(noise, noise) - _square(weight) - _square(share)) / 2,
            "left": jnp.where(ends, 0, second),
            "present": jnp.where(some, second, 0),
            "level": jnp.where(some, mean, 0),
        }
        sums = jax.tree.map(lambda s, term: _more(s, term, steps), sums, terms, is_leaf=lambda s: isinstance(s, tuple))
        slope = slope_now + _apply(_swap(emission), noise)
        by_seen = product(_swap(emission), weight)
        known = triangular_root(jnp.concatenate([known_now - product(by_seen, shared), by_seen], 1))
        return (slope, known, sums, covariance), (noise, mean, covariance)

    def none(*shape: int) -> Array:
        return jnp.zeros((*shape, sequences), x.values.dtype)

    square = none(hidden, hidden)
    nothing = square[..., : x.seen.shape[-1]]
    sums = {
        "transition": square,
        "transition_noise": square,
        "emission": none(size, hidden),
        "emission_bias": none(size),
        "emission_noise": none(size, size),
        "left": square,
        "present": square,
        "level": none(hidden),
    }
    sums = jax.tree.map(lambda s: (s, s), sums)
    times = jnp.arange(steps, dtype=jnp.int32)
    (slope, known, sums, covariance), (noise, mean, covariances) = jax.lax.scan(
        step, (none(hidden), nothing, sums, nothing), (times, x.seen, filtered), reverse=True
    )
    found = {name: high + low for name, (high, low) in sums.items()}
    off = _apply(system.initial_covariance[..., None], slope)
    left, present, level = (found.pop(name) for name in ("left", "present", "level"))
    score = System(initial_mean=slope, initial_covariance=(_outer(slope, slope) - _square(known)) / 2, **found)
    there = times[:, None] < x.length[None]
    mean, covariances = jnp.where(there[:, None], mean, 0), jnp.where(there[:, None, None], covariances, 0)
    return Expected(score, noise, covariance + _outer(off, off), left, present, level), mean, covariances


def _more(total: tuple[Array, Array], term: Array, steps: int) -> tuple[Array, Array]:
    """A sum and what its rounding lost: over many steps that is needed."""
    return two_sum(*total, term) if steps > LONG else (total[0] + term, total[1])


def _same(seen: Bool[Array, "t d s"], length: Int[Array, "s"]) -> Bool[Array, ""]:
    """Is the same seen of all sequences?"""
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


def expectations(system: System, x: Observed) -> tuple[Float[Array, "s"], Expected]:
    """The log-likelihood of each sequence, and what its derivative is made of."""

    def both(x: Observed) -> tuple[Array, Expected]:
        value, states = forward(system, x)
        return value, backward(system, x, states)[0]

    return _by_patterns(both, x)


def filtered(system: System, x: Observed) -> tuple[Float[Array, "s"], Float[Array, "t h s"], Float[Array, "t h h s1"]]:
    """The log-likelihoods, and mean and covariance of the states given what was seen up to each step."""

    def moments(x: Observed) -> tuple[Array, Array, Array]:
        value, states = forward(system, x)
        there = jnp.arange(len(x.values), dtype=jnp.int32)[:, None] < x.length[None]
        covariance = jax.vmap(_square)(states.root)
        return value, jnp.where(there[:, None], states.mean, 0), jnp.where(there[:, None, None], covariance, 0)

    return _by_patterns(moments, x)


def smoothed(system: System, x: Observed) -> tuple[Float[Array, "s"], Float[Array, "t h s"], Float[Array, "t h h s1"]]:
    """The log-likelihoods, and mean and covariance of the states given all of each sequence."""

    def moments(x: Observed) -> tuple[Array, Array, Array]:
        value, states = forward(system, x)
        return value, *backward(system, x, states)[1:]

    return _by_patterns(moments, x)


@jax.custom_jvp
def log_normalizer(system: System, x: Observed) -> Float[Array, "s"]:
    """The log-likelihood of each sequence; its derivative is the expected complete-data score (Fisher's identity)."""
    return _by_patterns(lambda x: forward(system, x)[0], x)


@log_normalizer.defjvp
def _log_normalizer_jvp(primals: tuple[System, Observed], tangents: tuple[System, Observed]) -> tuple[Array, Array]:
    value, expected = expectations(*primals)
    system, x = tangents

    def along(score: Array, change: Array) -> Array:
        return jnp.sum(score * change[..., None], axis=tuple(range(change.ndim)))

    own = sum(jax.tree.leaves(jax.tree.map(along, expected.score, system)))
    return value, own - jnp.sum(expected.noise * x.values, axis=(0, 1))


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
    value, mean, covariance = smoothed(system, _one(system, x, length, mask))
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
    seen = _one(system, x, length, mask)
    states, drawn = draws(key, system, n, len(seen.values))
    # Of the means of the model only the difference is left.
    centred = replace(
        system,
        initial_mean=jnp.zeros_like(system.initial_mean),
        emission_bias=jnp.zeros_like(system.emission_bias),
    )
    moved = smoothed(centred, replace(seen, values=jnp.where(seen.seen, seen.values - drawn, 0)))[1]
    there = jnp.arange(len(moved), dtype=jnp.int32) < seen.length
    return jnp.moveaxis(jnp.where(there[:, None, None], states + moved, 0), -1, 0)


def draws(key: Array, system: System, n: int, steps: int) -> tuple[Float[Array, "t h n"], Float[Array, "t d n"]]:
    """States of `n` sequences, and what is seen of them."""
    first, then, what = jax.random.split(key, 3)
    dtype = system.transition.dtype

    def noise(key: Array, covariance: Array, *shape: int) -> Array:
        unit = jax.random.normal(key, (*shape[:-1], len(covariance), shape[-1]), dtype)
        return linalg.matmul(linalg.cholesky(covariance), unit)

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
