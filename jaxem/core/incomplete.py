"""Incomplete gamma and beta functions, both tails to all digits of the float type.

JAX's own take x^a e^-x / Gamma(a) from logarithms that are large and cancel: in float32 a twelfth of P(X <= a) is lost
at a = 1e5. Here that factor is `sqrt(a / 2 pi) exp(-a (t - log(1 + t)) - binet(a))`, t = x / a - 1, in which nothing
large is left (Loader 2000). What multiplies it is a series or a continued fraction (Abramowitz and Stegun 6.5.29 and
31, 26.5.8); where those are slow, for large parameters, the density is integrated by Gauss and Legendre's rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core.special import binet, x_minus_log1p

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
LARGE = 200.0
"""Parameter from which densities are integrated."""
TERMS = 200
"""Of a series, enough below that."""
MOST = 10_000
"""Terms of a continued fraction; some dozens are the rule, but a shape of 0.01 beside one of 200 takes a thousand."""


def incomplete_gamma(a: Float[Array, ...], x: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """P(X <= x) and P(X > x) of a gamma variable of shape `a`, rate one; x of any sign, NaN for NaN.

    >>> import jax.numpy as jnp
    >>> [round(float(tail), 6) for tail in incomplete_gamma(jnp.array(2.0), jnp.array(3.0))]
    [0.800852, 0.199148]
    """
    a, given = jnp.broadcast_arrays(a, x)
    inside = (given > 0) & (given < jnp.inf)
    x = jnp.where(inside, given, a)
    small = jnp.minimum(a, LARGE)
    below, at = x < a, jnp.where(a > LARGE, small, x)  # harmless where the other way is taken
    series = _gamma_density(small, at) * _series(small, jnp.minimum(at, small + 1)) / small
    fraction = _gamma_density(small, at) * _gamma_fraction(small, jnp.maximum(at, small + 1))
    low = at < small + 1
    few = jnp.where(low, series, 1 - fraction), jnp.where(low, 1 - series, fraction)
    large = jnp.maximum(a, LARGE)
    slope, spread = jnp.abs((large - 1) / x - 1), jnp.sqrt(large)
    room = jnp.where(below, x, jnp.inf)
    sign = jnp.where(below, -1, 1).astype(x.dtype)
    tail = _integral(lambda s: _gamma_density(large, x + sign * s) / (x + sign * s), slope, spread, room)
    many = jnp.where(below, tail, 1 - tail), jnp.where(below, 1 - tail, tail)
    return _at_ends(inside, given, given <= 0, *(jnp.where(a > LARGE, m, f) for m, f in zip(many, few, strict=True)))


def incomplete_beta(
    a: Float[Array, ...], b: Float[Array, ...], x: Float[Array, ...], rest: Float[Array, ...]
) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """P(X <= x) and P(X > x) of a beta variable, given x and `rest`, 1 - x to all of its digits.

    >>> import jax.numpy as jnp
    >>> [round(float(tail), 6) for tail in incomplete_beta(*jnp.array([2.0, 3.0, 0.25, 0.75]))]
    [0.261719, 0.738281]
    """
    a, b, given, rest = jnp.broadcast_arrays(a, b, x, rest)
    inside = (given > 0) & (rest > 0)
    x, y = jnp.where(inside, given, a / (a + b)), jnp.where(inside, rest, b / (a + b))
    below = x * b < y * a
    # The tail on whose side x lies, as a lower tail.
    p, q, u, v = (jnp.where(below, one, other) for one, other in ((a, b), (b, a), (x, y), (y, x)))
    fraction = _beta_density(p, q, u, v) * _beta_fraction(p, q, u, v)
    slope = jnp.abs((p - 1) / u - (q - 1) / v)
    spread = jnp.sqrt(p / (p + q) * (q / (p + q)) / (p + q + 1))
    integral = _integral(lambda s: _beta_density(p, q, u - s, v + s) / ((u - s) * (v + s)), slope, spread, u)
    tail = jnp.where(jnp.minimum(a, b) > LARGE, integral, fraction)
    return _at_ends(inside, given, given <= 0, jnp.where(below, tail, 1 - tail), jnp.where(below, 1 - tail, tail))


def _at_ends(inside: Array, x: Array, low: Array, below: Array, above: Array) -> tuple[Array, Array]:
    """Zero and one outside the support; NaN for NaN."""
    ends = jnp.where(low, 0, 1).astype(below.dtype)
    unknown = jnp.isnan(x)
    return tuple(
        jnp.where(unknown, x, jnp.where(inside, tail, end)) for tail, end in ((below, ends), (above, 1 - ends))
    )  # type: ignore[return-value]


def _gamma_density(a: Array, x: Array) -> Array:
    """x^a e^-x / Gamma(a)."""
    return jnp.sqrt(a / (2 * math.pi)) * jnp.exp(-a * x_minus_log1p((x - a) / a, x / a) - binet(a))


def _beta_density(a: Array, b: Array, x: Array, y: Array) -> Array:
    """x^a y^b / B(a, b), y = 1 - x."""
    total, off = a + b, x * b - y * a
    ways = a * x_minus_log1p(off / a, x * (total / a)) + b * x_minus_log1p(-off / b, y * (total / b))
    return jnp.sqrt(a / total * b / (2 * math.pi)) * jnp.exp(binet(total) - binet(a) - binet(b) - ways)


def _series(a: Array, x: Array) -> Array:
    """sum over n >= 0 of x^n / ((a + 1) ... (a + n)), x <= a + 1."""

    def add(n: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        term = carry[0] * x / (a + n.astype(a.dtype))
        return term, carry[1] + term

    return jax.lax.fori_loop(1, TERMS, add, (jnp.ones_like(a), jnp.ones_like(a)))[1]


def _gamma_fraction(a: Array, x: Array) -> Array:
    """1 / (x + 1 - a - 1 (1 - a) / (x + 3 - a - ...)), x >= a + 1."""

    def numerator(n: Array) -> Array:
        return -n * (n - a)

    def denominator(n: Array) -> Array:
        return x + 2 * n + 1 - a

    return 1 / _lentz(numerator, denominator, denominator(jnp.zeros((), a.dtype)))


def _beta_fraction(a: Array, b: Array, x: Array, y: Array) -> Array:
    """What x^a y^b / B(a, b) is multiplied by, x below the mean (DiDonato and Morris 1992, equation 9)."""
    short = a * y - b * x

    def numerator(n: Array) -> Array:
        return (a + n - 1) / (a + 2 * n - 1) * ((a + b + n - 1) / (a + 2 * n - 1)) * n * (b - n) * x * x

    def denominator(n: Array) -> Array:
        return n + n * (b - n) * x / (a + 2 * n - 1) + (a + n) / (a + 2 * n + 1) * (short + 1 + n * (1 + y))

    return 1 / _lentz(numerator, denominator, a / (a + 1) * (short + 1))


def _lentz(numerator: Callable[[Array], Array], denominator: Callable[[Array], Array], first: Array) -> Array:
    """first + numerator(1) / (denominator(1) + numerator(2) / (denominator(2) + ...)) (Lentz 1976)."""
    limits = jnp.finfo(first.dtype)
    tiny, eps = float(limits.tiny) * 1e10, float(limits.eps)

    def away(value: Array) -> Array:
        return jnp.where(jnp.abs(value) < tiny, tiny, value)

    def going(carry: tuple[Array, ...]) -> Array:
        return (carry[0] < MOST) & ~jnp.all(carry[4])

    def add(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        i, value, c, d, done = carry
        n = i.astype(first.dtype)
        d = 1 / away(denominator(n) + numerator(n) * d)
        c = away(denominator(n) + numerator(n) / c)
        # Written so that a NaN is no reason to go on.
        return i + 1, jnp.where(done, value, value * c * d), c, d, done | ~(jnp.abs(c * d - 1) > 4 * eps)

    start = away(first)
    carry = jnp.ones((), jnp.int32), start, start, jnp.zeros_like(first), jnp.zeros(first.shape, bool)
    return jax.lax.while_loop(going, add, carry)[1]


def _integral(density: Callable[[Array], Array], slope: Array, spread: Array, room: Array) -> Array:
    """The integral over s >= 0, up to `room`, of a log-concave density that falls from s = 0 at the rate `slope`.

    Beyond twelve of its standard deviations, and where it has fallen by exp(-40), nothing is left.
    """
    width = jnp.minimum(40 / (slope + 40 / (12 * spread)), room)
    nodes, weights = (jnp.asarray(each, spread.dtype) for each in ((NODES + 1) / 2, WEIGHTS / 2))

    def add(i: Array, total: Array) -> Array:
        return total + weights[i] * density(width * nodes[i])

    return width * jax.lax.fori_loop(0, len(NODES), add, jnp.zeros_like(spread))
