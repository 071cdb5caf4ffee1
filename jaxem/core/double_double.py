"""Numbers as an unevaluated sum of two floats (words), for likelihoods whose large parts cancel.

Of x log(rate) - rate - log x! nothing is left at x = rate = 1000 but the digits that rounding takes: the parts are
thousands and the whole is four. So each part is a multiple of a grid, coarse enough that sums of products of it with
counts are exact in whatever order they are taken, and a small rest. In a loop that costs as much as a second
multiplication; it serves counts up to `MOST`.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Bool, Float

from jaxem.core.special import binet

GRID = {4: 2.0**-10, 8: 2.0**-26}
"""Spacing of the grid, by bytes of a float."""

MOST = {4: 2048, 8: 1 << 23}
"""Largest count, by bytes of a float: up to it x log x is less than a float's digits times the grid."""

HALF = {4: 11, 8: 25}
"""Bits after the first, by bytes of a float, with which two numbers have an exact product."""

_FEW = 4
"""Sums over so many inputs are written out."""

_PLACES = 64
"""Number of parts of [0, 1] from the nearest of which logarithms are computed."""


def on_grid(value: Array) -> Array:
    """`value` rounded to the nearest multiple of the grid; its size is at most that of counts up to `MOST`."""
    grid = GRID[value.dtype.itemsize]
    limit = grid / float(jnp.finfo(value.dtype).eps)
    return jnp.round(jnp.clip(value, -limit, limit) / grid) * grid


def kept(low: Any, x: Array) -> Array:
    """`low`, hidden from XLA's rewriting of (a - x) + low to (a + low) - x for constant a and low."""
    return jnp.where(x == x, jnp.asarray(low, x.dtype), 0)


def whole_sum(*terms: Array) -> Array:
    """Sum of the terms, rounded only once (Neumaier 1974)."""
    high, low = terms[0], jnp.zeros_like(terms[0])
    for term in terms[1:]:
        new = high + term
        back = new - high
        low = low + ((high - (new - back)) + (term - back))
        high = new
    return high + low


def products(a: Array, b: Array) -> list[Array]:
    """Four exactly representable numbers whose sum is a b."""
    # None needs rounding, so it makes no difference whether XLA fuses a product with a sum.
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return [a_high * b_high, a_high * b_low, a_low * b_high, a_low * b_low]


def _halves(value: Array) -> tuple[Array, Array]:
    info = jnp.finfo(value.dtype)
    high = jax.lax.reduce_precision(value, exponent_bits=info.nexp, mantissa_bits=HALF[value.dtype.itemsize])
    return high, value - high


def log_words(x: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """log x as two floats, x > 0; their sum is right to some 2^-44 in float32, and 2^-74 in float64.

    >>> import jax.numpy as jnp
    >>> high, low = log_words(jnp.asarray(3.0))
    >>> bool(abs(low) < 1e-6)
    True
    """
    mantissa, exponent = jnp.frexp(x)  # in [1/2, 1)
    place = jnp.round(mantissa * _PLACES)
    near = place / _PLACES
    difference, total = mantissa - near, mantissa + near
    lost = mantissa - (total - near)
    z = difference / total
    short = (whole_sum(difference, *(-each for each in products(z, total))) - z * lost) / total
    # log(mantissa / near) = 2 artanh z, and |z| is less than 1/128.
    w = z * z
    tail = z * w * (2 / 3 + w * (2 / 5 + w * (2 / 7 + w * (2 / 9))))
    coarse, fine, of_two = _log_table(x.dtype)
    index = place.astype(jnp.int32) - _PLACES // 2
    power = exponent.astype(x.dtype)
    start = power * of_two[0] + coarse[index]  # exact
    high = start + 2 * z
    back = high - start
    low = (start - (high - back)) + (2 * z - back)
    return high, low + (power * of_two[1] + fine[index] + 2 * short + tail)


@jax.custom_jvp
def log_pair(x: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """log x, x > 0, rounded, and its rounding error; only the first has a derivative."""
    high, low = log_words(x)
    log = high + low
    return log, low - (log - high)


@log_pair.defjvp
def _log_pair_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    log, rest = log_pair(*primals)
    return (log, rest), (tangents[0] / primals[0], jnp.zeros_like(rest))


def _log_table(dtype: Any) -> tuple[Array, Array, np.ndarray]:
    """Table of logarithms of the parts of [1, 2), and log 2: multiples of a power of two, and remainders."""
    digits = {4: 16, 8: 42}[jnp.dtype(dtype).itemsize]
    context = Context(prec=50)
    exact = [context.ln(Decimal(n) / _PLACES) for n in range(_PLACES // 2, _PLACES + 1)] + [context.ln(Decimal(2))]
    nearest = [round(each * 2**digits) for each in exact]
    rests = [context.subtract(each, Decimal(n) / 2**digits) for each, n in zip(exact, nearest, strict=True)]
    high = np.array([n / 2**digits for n in nearest], dtype)
    low = np.array([float(rest) for rest in rests], dtype)
    return jnp.asarray(high[:-1]), jnp.asarray(low[:-1]), np.stack([high[-1], low[-1]])


def log_parts(x: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """log x, x > 0, as a multiple of the grid and a remainder."""
    return parts(*log_words(x))


def parts(high: Array, low: Array) -> tuple[Array, Array]:
    """A sum of two floats as a multiple of the grid and a remainder."""
    coarse = on_grid(high)
    return coarse, (high - coarse) + low


@jax.custom_jvp
def log_factorial_parts(x: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """log x! of whole numbers up to `MOST`, as a multiple of the grid and a remainder (Stirling's series)."""
    coarse, fine = _large_part(x)
    return coarse, fine + factorial_rest(x)


@log_factorial_parts.defjvp
def _log_factorial_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    coarse, fine = log_factorial_parts(*primals)
    return (coarse, fine), (jnp.zeros_like(coarse), digamma(primals[0] + 1) * tangents[0])


def _large_part(x: Array) -> tuple[Array, Array]:
    """x log x - x, as a multiple of the grid and a remainder; zero at zero."""
    coarse, fine = log_parts(jnp.maximum(x, 1))
    return x * coarse - x, x * fine


def factorial_rest(x: Float[Array, ...]) -> Float[Array, ...]:
    """log x! - x log x + x, about log(2 pi x) / 2; zero at zero."""
    some = jnp.maximum(x, 1)
    return jnp.where(x > 0, 0.5 * jnp.log(2 * math.pi * some) + binet(some), 0)


@jax.custom_jvp
def orders(
    total: Float[Array, "n"], counts: Float[Array, "c n"], large: Bool[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """log(total! / product of counts!), total = sum of counts, as a multiple of the grid and a remainder.

    For rows that are `large` only the remainder, without total log total - sum of count log count.
    """
    # The largest count may be nearly the total: then their parts cancel.
    most, largest = jnp.max(counts, axis=0), jnp.argmax(counts, axis=0)
    others = jnp.arange(len(counts), dtype=largest.dtype)[:, None] != largest[None]
    some = jnp.maximum(most, 1)
    rest = 0.5 * jnp.log(jnp.maximum(total, 1) / some) + binet(jnp.maximum(total, 1)) - binet(some)
    rest = rest - sum_words(jnp.where(others, factorial_rest(counts), 0).T)[0]
    coarse, fine = _large_part(jnp.where(large, 0, total))
    each_coarse, each_fine = _large_part(jnp.where(large[None], 0, counts))
    return coarse - jnp.sum(each_coarse, axis=0), (fine - jnp.sum(each_fine, axis=0)) + rest


@orders.defjvp
def _orders_jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    total, counts, _ = primals
    value = orders(*primals)
    slope = digamma(total + 1) * tangents[0] - jnp.sum(digamma(counts + 1) * tangents[1], axis=0)
    return value, (jnp.zeros_like(slope), slope)


@jax.custom_jvp
def product_words(a: Array, b: Array) -> tuple[Array, Array]:
    """a b as two floats."""
    terms = products(a, b)
    high = whole_sum(*terms)
    return high, whole_sum(-high, *terms)


@product_words.defjvp
def _product_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Any, Any]:
    high, low = product_words(*primals)
    return (high, low), (primals[0] * tangents[1] + primals[1] * tangents[0], jnp.zeros_like(low))


@jax.custom_jvp
def quotient_words(a: Array, b: Array, b_low: Array) -> tuple[Array, Array]:
    """a / (b + b_low) as two floats."""
    high = a / b
    return high, (whole_sum(a, *(-each for each in products(high, b))) - high * b_low) / b


@quotient_words.defjvp
def _quotient_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    high, low = quotient_words(*primals)
    slope = (tangents[0] - high * (tangents[1] + tangents[2])) / primals[1]
    return (high, low), (slope, jnp.zeros_like(slope))


@jax.custom_jvp
def sum_words(values: Float[Array, "*batch c"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Sum over the last axis as two floats."""

    def add(carry: tuple[Array, Array], term: Array) -> tuple[tuple[Array, Array], None]:
        high, low = carry
        new = high + term
        back = new - high
        return (new, low + ((high - (new - back)) + (term - back))), None

    zero = jnp.zeros_like(values[..., 0])
    (high, low), _ = jax.lax.scan(add, (zero, zero), jnp.moveaxis(values, -1, 0))
    total = high + low
    return total, low - (total - high)


@sum_words.defjvp
def _sum_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    high, low = sum_words(*primals)
    return (high, low), (jnp.sum(tangents[0], axis=-1), jnp.zeros_like(low))


@jax.custom_jvp
def line(level: Array, slopes: Float[Array, "*batch p"], change: Float[Array, "... p"]) -> Array:
    """level + slopes . change, rounded once: a line's height far from where it is known."""
    inputs = range(slopes.shape[-1])
    terms = [level, *(term[..., p] for term in products(slopes, change) for p in inputs)]
    return whole_sum(*terms) if len(inputs) <= _FEW else sum_words(jnp.stack(jnp.broadcast_arrays(*terms), axis=-1))[0]


@line.defjvp
def _line_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (_, slopes, change), (level, *two) = primals, tangents
    return line(*primals), level + jnp.sum(two[0] * change + slopes * two[1], axis=-1)


@jax.custom_batching.custom_vmap
def anywhere(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """The flag; under `vmap` whether any flag of the batch is set, so that `lax.cond` stays a branch."""
    return flag


@anywhere.def_vmap
def _(size: int, batched: Any, flag: Array) -> tuple[Array, bool]:
    return anywhere(jnp.any(flag, axis=0) if batched[0] else flag), False
