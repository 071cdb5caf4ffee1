"""Special functions without their large parts: the remainders where logarithms of gamma functions cancel.

    log Gamma(z) = z log z - z + stirling(z)
    digamma(z) = log z - log_minus_digamma(z)
    log(1 + t) = t - x_minus_log1p(t)

A Poisson as the limit of a negative binomial, or a beta distribution on a narrow interval, needs only these remainders.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, Float

LARGE = 16.0
"""Argument from which six terms of an asymptotic series are exact to rounding."""


BINET = {
    4: (
        *(0.08333333336312651, -7.595156729585363e-09, -0.002777465652420044, -4.765289935472527e-06),
        *(0.0008276876666960571, -0.00011680516897202605, -0.000463202855202476, 0.00027925481631912665),
    ),
    8: (
        *(0.08333333333333333, -1.425115747376085e-16, -0.002777777777742732, -3.483424770275313e-12),
        *(0.0007936509798462469, -6.173041122716526e-09, -0.0005951000408703127, -2.197109908892738e-06),
        *(0.000867522818333695, -0.000227845335324232, -0.00038117217095505766, -0.007910913553204484),
        *(0.03711246788583511, -0.0864155661478659, 0.12985495112573686, -0.13285932350217342),
        *(0.09058867757972694, -0.03744418560481303, 0.007134316077591125),
    ),
}
"""Coefficients, by bytes of a float: z times Binet's function as a polynomial in 1 / z, z >= 2, to 3e-11 and 5e-18.

Chebyshev's interpolation on [1e-7, 1/2] at 60 digits (`mpmath.chebyfit`)."""


ARTANH = {
    4: (0.3333333366026371, 0.19999853165964843, 0.14296178997151943, 0.1085328790043387, 0.11612164612037014),
    8: (
        *(0.3333333333333333, 0.19999999999999762, 0.1428571428580005, 0.11111111099118386, 0.09090909948981357),
        *(0.07692271982430271, 0.066675893157247, 0.0586713953065077, 0.05422589197445937, 0.03746071897751629),
        *(0.078152889005022,),
    ),
}
"""Coefficients likewise: (artanh(z) / z - 1) / z^2 as a polynomial in z^2, up to 1/9, to 4e-9 and 2e-17."""


def _split(z: Array) -> tuple[Array, Array, Array]:
    """Whether z is large; z where it is not; 1 / z where it is. Either branch is safe to evaluate everywhere."""
    large = z > LARGE
    return large, jnp.where(large, LARGE, z), 1 / jnp.where(large, z, LARGE)


def _series(v: Array, *coefficients: float) -> Array:
    """Polynomial c0 + c1 v + c2 v^2 + ..."""
    total = jnp.full_like(v, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * v + coefficient
    return total


def x_minus_log1p(t: Float[Array, ...], more: Float[Array, ...] | None = None) -> Float[Array, ...]:
    """t - log(1 + t), t > -1: zero at zero, positive elsewhere.

    Args:
        t: as precise where it is small as the result should be.
        more: 1 + t, as precise where that is small; computed from t if left out.

    >>> import jax.numpy as jnp
    >>> bool(abs(x_minus_log1p(jnp.asarray(1e-9)) / 0.5e-18 - 1) < 1e-6)
    True
    """
    return _x_minus_log1p(t, 1 + t if more is None else more)


@jax.custom_jvp
def _x_minus_log1p(t: Array, more: Array) -> Array:
    near, small, far = _near(t)
    z, rest = _artanh(small)
    return jnp.where(near, z * (small - 2 * z * z * rest), far - jnp.log(jnp.where(near, 2, more)))


@_x_minus_log1p.defjvp
def _x_minus_log1p_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    t, more = primals
    return _x_minus_log1p(t, more), t / more * tangents[0]


def log_and_gap(t: Float[Array, ...], log: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """log(1 + t) and t - log(1 + t), given a `log` of 1 + t that may be imprecise where t is small."""
    near, small, far = _near(t)
    z, rest = _artanh(small)
    tail = 2 * z * z * rest
    return jnp.where(near, z * (2 + tail), log), jnp.where(near, z * (small - tail), far - log)


def log_rest(p: Float[Array, ...]) -> Float[Array, ...]:
    """log(1 - p), 0 <= p < 1; XLA's own float64 log1p is off by a hundred units of rounding near p = 0.4."""
    small = p < 0.25
    return jnp.where(small, jnp.log1p(-jnp.where(small, p, 0)), jnp.log(jnp.where(small, 1, 1 - p)))


def x_minus_log1p_over_square(t: Float[Array, ...]) -> Float[Array, ...]:
    """(t - log(1 + t)) / t^2: one half at zero, and decreasing.

    >>> import jax.numpy as jnp
    >>> x_minus_log1p_over_square(jnp.array([0.0, 1e-30, 1.0])).round(4).tolist()
    [0.5, 0.5, 0.3069]
    """
    near, small, far = _near(t)
    z, rest = _artanh(small)
    return jnp.where(near, (1 - 2 * z * rest / (2 + small)) / (2 + small), (1 - jnp.log1p(far) / far) / far)


def _near(t: Array) -> tuple[Array, Array, Array]:
    """Whether 1 + t is in [1/2, 2]; t where it is; t where it is not."""
    near = (t < 1) & (t > -0.5)
    return near, jnp.where(near, t, 0), jnp.where(near, 1, t)


def _artanh(t: Array) -> tuple[Array, Array]:
    """z = t / (2 + t), for which log(1 + t) = 2 artanh z; and (artanh(z) / z - 1) / z^2."""
    z = t / (2 + t)
    return z, _series(z * z, *ARTANH[t.dtype.itemsize])


@jax.custom_jvp
def binet(z: Float[Array, ...]) -> Float[Array, ...]:
    """Binet's function log Gamma(z) - (z - 1/2) log z + z - 1/2 log(2 pi), about 1 / (12 z) where z is large.

    >>> import jax.numpy as jnp
    >>> [f"{value:.4g}" for value in binet(jnp.array([1.0, 1e3]))]
    ['0.08106', '8.333e-05']
    """
    far = z >= 2
    near = jnp.where(far, 1, z)
    small = near < 1
    raised = near + small.astype(z.dtype)
    v = 1 / jnp.where(far, z, raised + 1)
    # With w = 1 / (2 z + 1): binet(z) - binet(z + 1) = (z + 1/2) log(1 + 1 / z) - 1 = artanh(w) / w - 1.
    w = 1 / (2 * raised + 1)
    more = w * w * _series(w * w, *ARTANH[z.dtype.itemsize])
    least = jnp.maximum(near, 8 * float(jnp.finfo(z.dtype).tiny))
    first = jnp.where(small, (near + 0.5) * (jnp.log1p(near) - jnp.log(least)) - 1, 0)
    return v * _series(v, *BINET[z.dtype.itemsize]) + jnp.where(far, 0, more + first)


@binet.defjvp
def _binet_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,) = primals
    return binet(z), (0.5 / z - log_minus_digamma(z)) * tangents[0]


def _shifted(z: Array) -> tuple[Array, Array, Array]:
    """Whether z is at least 2; z where it is not; and 1 / z where it is, 1 / (z + 2) elsewhere."""
    far = z >= 2
    return far, jnp.where(far, 1, z), 1 / jnp.where(far, z, z + 2)


@jax.custom_jvp
def stirling(z: Float[Array, ...]) -> Float[Array, ...]:
    """log Gamma(z) - z log z + z, about 1/2 log(2 pi / z) where z is large.

    >>> import jax.numpy as jnp
    >>> stirling(jnp.array([1.0, 1e30])).round(3).tolist()
    [1.0, -33.62]
    """
    return 0.5 * (math.log(2 * math.pi) - jnp.log(z)) + binet(z)


@stirling.defjvp
def _stirling_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,) = primals
    return stirling(z), -log_minus_digamma(z) * tangents[0]


def log_minus_digamma(z: Float[Array, ...]) -> Float[Array, ...]:
    """log z - digamma(z), about 1 / (2 z) where z is large: positive and decreasing.

    >>> import jax.numpy as jnp
    >>> log_minus_digamma(jnp.array([1.0, 1e30])).round(4).tolist()
    [0.5772, 0.0]
    """
    half, rest = _log_minus_digamma_parts(z)
    return half + rest


def _log_minus_digamma_parts(z: Array) -> tuple[Array, Array]:
    """1 / (2 z), and the remainder of `log_minus_digamma`."""
    far, near, v = _shifted(z)
    slope = _series(v, *((power + 1) * each for power, each in enumerate(BINET[z.dtype.itemsize])))
    # Each step down adds 1 / z - log(1 + 1 / z).
    more = 0.5 / near + 1 / (near + 1) - (jnp.log(near + 2) - jnp.log(near)) + 0.5 / (near + 2)
    return 0.5 / z, v * v * slope + jnp.where(far, 0, more)


def log_minus_digamma_difference(z: Float[Array, ...], x: Float[Array, ...]) -> Float[Array, ...]:
    """log_minus_digamma(z) - log_minus_digamma(z + x), x >= 0: zero at x = 0, to all digits where z is large.

    >>> import jax.numpy as jnp
    >>> (log_minus_digamma_difference(jnp.array([1.0, 1e9]), 1.0) * jnp.array([1.0, 1e18])).round(4).tolist()
    [0.3069, 0.5]
    """
    return 0.5 * x / z / (z + x) + (_log_minus_digamma_parts(z)[1] - _log_minus_digamma_parts(z + x)[1])


def _log_minus_digamma_rest(v: Array) -> Array:
    square = v * v
    return square * _series(square, 1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760)


def tables(r: Float[Array, ...], x: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """sum over k < x of r / (r + k) = r (digamma(r + x) - digamma(r)), and x minus that sum: each to all digits.

    The latter is the sum of k / (r + k): zero for x of 0 and 1, and x where r is zero.

    >>> import jax.numpy as jnp
    >>> tables(jnp.array([1.0, 1e10]), jnp.array([3.0, 3.0]))[1].round(12).tolist()
    [1.166666666667, 3e-10]
    """
    large, small, v = _split(r)
    big = jnp.where(large, r, LARGE)
    u = x * v
    # In units of u, to avoid underflow.
    rest = _log_minus_digamma_rest(v) - _log_minus_digamma_rest(1 / (big + x))
    half = u / (2 * (1 + u))
    series = jnp.where(x == 0, 0, u * (x_minus_log1p_over_square(u) * x) - half) - big * rest
    direct = small * (digamma(small + x) - digamma(small))
    tabled = jnp.where(large, big * (jnp.log1p(u) + rest) + half, direct)
    return jnp.maximum(tabled, 0), jnp.maximum(jnp.where(large, series, x - direct), 0)


def sum_k_over_r_plus_k(r: Float[Array, ...], x: Float[Array, ...]) -> Float[Array, ...]:
    """sum over k < x of k / (r + k): the second of `tables`."""
    return tables(r, x)[1]
