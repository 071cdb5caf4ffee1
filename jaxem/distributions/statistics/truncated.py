"""Truncated distributions: mass and moments within an interval, without cancellation in the tails.

Two standard shapes are enough. A waiting time is, on the scale of its hazard, a unit exponential; a Gaussian, or the
logarithm of a log-normal, is a unit Gaussian.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.pytree import module
from jaxem.core.summation import totals
from jaxem.distributions.statistics.moments import Moments

NODES = [(float(t), float(w) / 2) for t, w in zip(*np.polynomial.legendre.leggauss(7), strict=True)]
"""Gauss-Legendre on [-1, 1], with weights that add up to one: exact to rounding where an interval is narrow."""
FARTHEST = 1e9
"""In standard deviations: an end beyond it is infinity."""


def log_mass_below(width: Array) -> Array:
    """log(1 - exp(-width)): the chance that a unit exponential stays below `width`, which is finite."""
    some, small = width > 0, width < math.log(2)
    near = jnp.log(-jnp.expm1(-jnp.where(some & small, width, 1)))
    return jnp.where(some, jnp.where(small, near, jnp.log1p(-jnp.exp(-jnp.where(small, 1, width)))), -jnp.inf)


def mean_below(width: Array) -> Array:
    """1 - width / (exp(width) - 1): the mean of a unit exponential that stayed below `width`.

    >>> import jax.numpy as jnp
    >>> mean_below(jnp.array([1e-9, 1.0, jnp.inf])).round(12).tolist()
    [5e-10, 0.418023293131, 1.0]
    """
    small = width < 0.5
    w = jnp.where(small, width, 0)
    series = w * (1 / 2 - w * (1 / 12 - w**2 * (1 / 720 - w**2 * (1 / 30240 - w**2 * (1 / 1209600 - w**2 / 47900160)))))
    wide = jnp.clip(width, 0.5, 80)
    return jnp.where(small, series, 1 - wide / jnp.expm1(wide))


def log_growth(width: Array) -> Array:
    """log(exp(width) - 1), for a width of zero or above."""
    return width + log_mass_below(width)


def log_quotient(lower: Array, upper: Array) -> Array:
    """log(upper / lower) of positive numbers, to all digits where they are near each other."""
    return jnp.log1p((upper - lower) / lower)


@module
class Interval:
    """Intervals of a Gaussian, each `[n]`: their ends, which may be infinite, and the distance between those."""

    lower: Float[Array, "n"]
    upper: Float[Array, "n"]
    width: Float[Array, "n"]


def log_normal_mass(
    interval: Interval, location: Float[Array, "*batch"], scale: Float[Array, "*batch"]
) -> Float[Array, "*batch n"]:
    """log(Phi(b) - Phi(a)), a and b the ends in standard deviations from the location."""
    return _mass_and_moments(*_standard(interval, location, scale))[0]


def normal_moments(
    interval: Interval,
    location: Float[Array, "*batch"],
    scale: Float[Array, "*batch"],
    weight: Float[Array, "*batch n"],
) -> Moments:
    """The moments about the location that are expected within each interval; for one of no width, those of a point."""
    _, mean, square = _mass_and_moments(*_standard(interval, location, scale))
    rows, first, second = totals(weight, weight * mean, weight * square)
    return Moments(rows, rows, (first * scale)[..., None], (second * scale**2)[..., None], location[..., None])


def _standard(interval: Interval, location: Array, scale: Array) -> tuple[Array, Array, Array]:
    location, scale = location[..., None], scale[..., None]
    lower, upper, width = (linalg.lead(each, scale.ndim) for each in (interval.lower, interval.upper, interval.width))

    def deviations(end: Array) -> Array:
        """The ends in standard deviations; one at infinity has no slope by location and scale."""
        finite = jnp.isfinite(end)
        z = (jnp.where(finite, end, 0) - location) / scale
        return jnp.where(finite, jnp.clip(z, -FARTHEST, FARTHEST), jnp.sign(end) * FARTHEST)

    finite = jnp.isfinite(width)
    return deviations(lower), deviations(upper), jnp.where(finite, jnp.where(finite, width, 0) / scale, jnp.inf)


def _mass_and_moments(a: Array, b: Array, width: Array) -> tuple[Array, Array, Array]:
    """log mass, mean and mean square of a unit Gaussian between `a` and `b`."""
    # On the left of zero masses are differences of small numbers, on the right they would be of numbers near one.
    right = a > 0
    low, high = jnp.where(right, -b, a), jnp.where(right, -a, b)
    middle = (low + high) / 2
    narrow = width * jnp.maximum(1, jnp.abs(middle)) <= 1
    near = _narrow(jnp.where(narrow, middle, 0), jnp.where(narrow, width / 2, 0.5))
    far = _wide(jnp.where(narrow, -1, low), jnp.where(narrow, 1, high))
    log_mass, mean, square = (jnp.where(narrow, n, f) for n, f in zip(near, far, strict=True))
    return log_mass, jnp.where(right, -mean, mean), square


def _narrow(middle: Array, half: Array) -> tuple[Array, Array, Array]:
    """Mass and moments by quadrature, where the ends are too near each other for a difference."""
    mass = first = second = jnp.zeros_like(middle)
    for node, share in NODES:
        t = half * node
        density = share * jnp.exp(-t * (middle + t / 2))
        mass, first, second = mass + density, first + density * t, second + density * t**2
    mean, some = first / mass, half > 0
    log_width = jnp.where(some, jnp.log(jnp.where(some, 2 * half, 1)), -jnp.inf)
    log_mass = _log_unit(middle) + log_width + jnp.log(mass)
    return log_mass, middle + mean, middle**2 + 2 * middle * mean + second / mass


def _wide(low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Mass and moments by the distribution function, where the lower end is not above zero."""
    log_low, log_high, log_above = log_ndtr(low), log_ndtr(high), log_ndtr(-high)
    left = high <= 0
    tail = log_high + log_mass_below(jnp.where(left, log_high - log_low, 1))
    outside = jnp.where(left, 0.5, jnp.exp(log_low) + jnp.exp(log_above))
    log_mass = jnp.where(left, tail, jnp.log1p(-outside))
    at_low, at_high = jnp.exp(_log_unit(low) - log_mass), jnp.exp(_log_unit(high) - log_mass)
    return log_mass, at_low - at_high, 1 + low * at_low - high * at_high


def _log_unit(z: Array) -> Array:
    return -0.5 * (z * z + math.log(2 * math.pi))
