"""Special functions without their large parts: what is left where logarithms of gamma functions cancel.

    log Gamma(z) = z log z - z + stirling(z)        digamma(z) = log z - behind(z)        log(1 + t) = t - gap(t)

A Poisson as the limit of a negative binomial, or a beta distribution on a narrow interval, lives on these rests alone.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float

LARGE = 16.0
"""From here on six terms of an asymptotic series are exact to rounding."""


def _split(z: Array) -> tuple[Array, Array, Array]:
    """Is z large; z where it is not; 1 / z where it is. Neither branch of a choice ever sees what it cannot take."""
    large = z > LARGE
    return large, jnp.where(large, LARGE, z), 1 / jnp.where(large, z, LARGE)


def _series(v: Array, *coefficients: float) -> Array:
    """c0 + c1 v + c2 v^2 + ..."""
    total = jnp.full_like(v, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * v + coefficient
    return total


def gap(t: Float[Array, ...], more: Float[Array, ...] | None = None) -> Float[Array, ...]:
    """t - log(1 + t), t > -1: zero at zero, and above it elsewhere.

    Args:
        t: as exact where it is small as the answer is to be.
        more: 1 + t, as exact where that is small; left out, it is the sum.

    >>> import jax.numpy as jnp
    >>> bool(abs(gap(jnp.asarray(1e-9)) / 0.5e-18 - 1) < 1e-6)
    True
    """
    near, small, far = _near(t)
    log = jnp.log1p(far) if more is None else jnp.log(jnp.where(near, 2, more))
    return jnp.where(near, small * (small * _halved(small)), far - log)


def gap_by_square(t: Float[Array, ...]) -> Float[Array, ...]:
    """gap(t) / t^2: one half at zero, and falling.

    >>> import jax.numpy as jnp
    >>> gap_by_square(jnp.array([0.0, 1e-30, 1.0])).round(4).tolist()
    [0.5, 0.5, 0.3069]
    """
    near, small, far = _near(t)
    return jnp.where(near, _halved(small), (far - jnp.log1p(far)) / far / far)


def _near(t: Array) -> tuple[Array, Array, Array]:
    near = jnp.abs(t) < 0.2
    return near, jnp.where(near, t, 0), jnp.where(near, 1, t)


def _halved(t: Array) -> Array:
    z = t / (2 + t)  # log(1 + t) = 2 artanh(z)
    rest = _series(z * z, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11, 1 / 13, 1 / 15, 1 / 17)
    return (1 - 2 * z * rest / (2 + t)) / (2 + t)


def stirling(z: Float[Array, ...]) -> Float[Array, ...]:
    """log Gamma(z) - z log z + z, about 1/2 log(2 pi / z) where z is large.

    >>> import jax.numpy as jnp
    >>> stirling(jnp.array([1.0, 1e30])).round(3).tolist()
    [1.0, -33.62]
    """
    large, small, v = _split(z)
    series = v * _series(v * v, 1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
    direct = gammaln(small) - small * jnp.log(small) + small
    return jnp.where(large, series + 0.5 * (math.log(2 * math.pi) + jnp.log(v)), direct)


def behind(z: Float[Array, ...]) -> Float[Array, ...]:
    """log z - digamma(z), about 1 / (2 z) where z is large: above zero, and falling.

    >>> import jax.numpy as jnp
    >>> behind(jnp.array([1.0, 1e30])).round(4).tolist()
    [0.5772, 0.0]
    """
    large, small, v = _split(z)
    return jnp.where(large, v / 2 + _behind_rest(v), jnp.log(small) - digamma(small))


def _behind_rest(v: Array) -> Array:
    square = v * v
    return square * _series(square, 1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760)


def untabled(r: Float[Array, ...], x: Float[Array, ...]) -> Float[Array, ...]:
    """x - r (digamma(r + x) - digamma(r)) = sum over k < x of k / (r + k): zero for x of 0 and 1, x where r is zero.

    >>> import jax.numpy as jnp
    >>> untabled(jnp.array([1.0, 1e10]), jnp.array([3.0, 3.0])).round(12).tolist()
    [1.166666666667, 3e-10]
    """
    large, small, v = _split(r)
    big = jnp.where(large, r, LARGE)
    u = x * v
    # In units of u, which underflows less.
    rest = _behind_rest(v) - _behind_rest(1 / (big + x))
    series = jnp.where(x == 0, 0, u * (gap_by_square(u) * x - 1 / (2 * (1 + u)))) - big * rest
    direct = x - small * (digamma(small + x) - digamma(small))
    return jnp.maximum(jnp.where(large, series, direct), 0)
