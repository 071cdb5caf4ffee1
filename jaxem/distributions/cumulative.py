"""Both tails of distribution functions, each to all of its digits: 1 - P(X <= x) would lose the upper one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float

from jaxem.core.incomplete import NODES, WEIGHTS, incomplete_beta, incomplete_gamma
from jaxem.core.linalg import lead

MANY = {4: 1e2, 8: 1e3}
"""By bytes of a float: degrees of freedom from which a series in one over them is exact to rounding (Hill 1970)."""


class Tails(NamedTuple):
    """P(X <= x) and P(X > x), each `[..., n]`."""

    below: Array
    above: Array


class Columnwise(NamedTuple):
    """What a model says of each column of a row, given the columns before it; each `[..., D, n]`.

    Attributes:
        before: of P(X < x) and P(X >= x): other than `at` where single values have a probability.
        at: of P(X <= x) and P(X > x).
        log_prob: log p(x).
    """

    before: Tails
    at: Tails
    log_prob: Array


def one_column(family: Any, x: Array) -> Columnwise:
    """Those of a family whose rows say one thing only: a number, or a response given its inputs."""
    unknown = jnp.isnan(x) if x.ndim == 1 else jnp.isnan(x).any(axis=1)

    def tails(of: Any) -> Tails:
        if x.ndim > 1:
            return of(x)
        # The ends of the line are no numbers to compute with.
        finite = jnp.isfinite(x)
        inside, end = of(jnp.where(finite, x, 0)), (x > 0).astype(x.dtype)
        ends = Tails(end, 1 - end)
        return jax.tree.map(
            lambda leaf, at: jnp.where(lead(finite, leaf.ndim), leaf, lead(at, leaf.ndim)), inside, ends
        )

    def known(leaf: Array) -> Array:
        return jnp.where(lead(unknown, leaf.ndim), jnp.nan, leaf)[..., None, :]

    return Columnwise(*jax.tree.map(known, (tails(family.tails_before), tails(family.tails), family.log_prob(x))))


def concatenated(parts: list[Columnwise], axis: int) -> Columnwise:
    """Columns (axis -2) or members (axis -3) side by side."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=axis), *parts)


def flipped(tails: Tails) -> Tails:
    """Those of -X at -x."""
    return Tails(tails.above, tails.below)


def normal(z: Array) -> Tails:
    """Standard normal."""
    return Tails(special.ndtr(z), special.ndtr(-z))


def outlasting(hazard: Array) -> Tails:
    """A lifetime that has met this cumulative hazard."""
    return Tails(-jnp.expm1(-hazard), jnp.exp(-hazard))


def gamma(shape: Array, x: Array) -> Tails:
    """Gamma of rate one."""
    return Tails(*incomplete_gamma(shape, x))


def beta(a: Array, b: Array, x: Array, rest: Array) -> Tails:
    """Beta, of x and 1 - x."""
    return Tails(*incomplete_beta(a, b, x, rest))


def at_least(some: Array, tails: Tails) -> Tails:
    """Nothing lies below, except where `some`."""
    return Tails(jnp.where(some, tails.below, 0), jnp.where(some, tails.above, 1))


def poisson(rate: Array, count: Array) -> Tails:
    """Poisson, at whole numbers: of `count` events or fewer, one more takes longer than a unit of time."""
    k = jnp.maximum(count, 0)
    return at_least(~(count < 0), flipped(gamma(k + 1, rate)))


def binomial(total: int, p: Array, rest: Array, count: Array) -> Tails:
    """Binomial of `total` trials, at whole numbers: `count` or fewer successes of probability p = 1 - rest."""
    k = jnp.clip(count, 0, total - 1)
    tails = at_least(~(count < 0), flipped(beta(k + 1, total - k, p, rest)))
    return flipped(at_least(~(count >= total), flipped(tails)))


def negative_binomial(mean: Array, shape: Array, count: Array) -> Tails:
    """Negative binomial, at whole numbers."""
    k = jnp.maximum(count, 0)
    # mean + shape may not hold a small mean: neither share is one less the other.
    tails = beta(shape, k + 1, 1 / (1 + mean / shape), mean / (mean + shape))
    return at_least(~(count < 0), tails)


def student(t: Array, dof: Array) -> Tails:
    """Student's t: by a beta integral, or of many degrees of freedom by the normal deviate with the same tail."""
    t, dof = jnp.broadcast_arrays(t, dof)
    most = MANY[t.dtype.itemsize]
    few = jnp.minimum(dof, most)
    square = t * t
    tail = beta(jnp.full_like(few, 0.5), few / 2, square / (few + square), few / (few + square)).above / 2
    a = dof - 0.5
    b = 48 * a * a
    z = jnp.sqrt(a * jnp.log1p(square / dof))
    cubic = z * (z * z + 3)
    z7 = z * (855 + z * z * (240 + z * z * (33 + 4 * z * z)))
    deviate = z + cubic / b - z7 / (10 * b * (b + 0.8 * z**4 + 100))
    tail = jnp.where(dof > most, special.ndtr(-deviate), tail)
    return Tails(jnp.where(t < 0, tail, 1 - tail), jnp.where(t < 0, 1 - tail, tail))


def inverse_gaussian(mean: Array, shape: Array, x: Array) -> Tails:
    """Inverse Gaussian, at numbers from zero (Shuster 1968; in logarithms: Giner and Smyth 2016)."""
    some = x > 0
    x = jnp.where(some, x, mean)
    root = jnp.sqrt(shape / x)
    near, far = root * (x / mean - 1), root * (x / mean + 1)
    mirrored = 2 * shape / mean + special.log_ndtr(-far)
    log_above = special.log_ndtr(-near)
    above = jnp.exp(log_above) * -jnp.expm1(jnp.minimum(mirrored - log_above, 0))
    return at_least(some, Tails(special.ndtr(near) + jnp.exp(mirrored), above))


def von_mises(angle: Float[Array, "..."], concentration: Array) -> Tails:
    """Von Mises about zero, at angles from -pi to pi, counted from -pi: by Gauss and Legendre's rule."""
    angle, concentration = jnp.broadcast_arrays(angle, concentration)
    # Beyond twelve standard deviations from its beginning nothing is left of an integral that falls.
    reach = jnp.minimum(math.pi, 12 / jnp.sqrt(jnp.maximum(concentration, 0.1)))

    def falling(start: Array) -> Array:
        """The integral of exp(concentration (cos - 1)) from an angle to the half turn."""
        width = jnp.minimum(reach, math.pi - start)
        nodes, weights = (jnp.asarray(each, start.dtype) for each in ((NODES + 1) / 2, WEIGHTS / 2))

        def add(i: Array, total: Array) -> Array:
            sine = jnp.sin((start + width * nodes[i]) / 2)
            return total + weights[i] * jnp.exp(-2 * concentration * sine * sine)

        return width * jax.lax.fori_loop(0, len(NODES), add, jnp.zeros_like(start))

    tail = falling(jnp.abs(angle)) / (2 * falling(jnp.zeros_like(angle)))
    return Tails(jnp.where(angle < 0, tail, 1 - tail), jnp.where(angle < 0, 1 - tail, tail))
