"""Numbers as mantissa x 2^exponent: the range of logarithms, with additions where those need exponentials.

Forward-backward multiplies and adds probabilities that may differ by any factor. With one scale for all states, what
is small beside the largest is lost, although later evidence may turn to it; with logarithms every addition costs an
exponential. Here each number has an exponent of its own. Both parts are floats: exponents are whole numbers, -inf
for zero, NaN for NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BITS = {4: (jnp.int32, 23, 127), 8: (jnp.int64, 52, 1023)}
"""By bytes of a float: integer type of that size, bits of the fraction, bias of the exponent."""


class Scaled(NamedTuple):
    """The number mantissa x 2^exponent."""

    mantissa: Array
    exponent: Array


def split(logarithm: Float[Array, ...]) -> Scaled:
    """exp(logarithm) as `Scaled`, without overflow or underflow.

    >>> import jax.numpy as jnp
    >>> split(jnp.array([0.0, -jnp.inf])).exponent.tolist()
    [0.0, -inf]
    >>> bool(jnp.isfinite(split(jnp.array([-1e36, 3e35])).mantissa).all())
    True
    """
    # log 2 in two parts, the first so short that a whole number times it is exact (Cody and Waite 1980).
    short = {4: 12, 8: 32}[logarithm.dtype.itemsize]
    high = round(math.log(2) * 2**short) / 2**short
    finite = jnp.abs(logarithm) < jnp.inf  # Pallas kernels have no `isfinite`
    whole = jnp.where(finite, jnp.round(logarithm * (1 / math.log(2))), 0)
    rest = jnp.where(finite, (logarithm - whole * high) - whole * (math.log(2) - high), 0)
    # Beyond what a logarithm resolves there is no rest, but rounding, whose exponential may overflow.
    rest = jnp.minimum(jnp.maximum(rest, -1), 1)
    exponent = jnp.where(logarithm == -jnp.inf, -jnp.inf, jnp.where(finite, whole, jnp.nan))
    return Scaled(jnp.exp(rest), exponent)


def power(exponent: Float[Array, ...]) -> Float[Array, ...]:
    """2^exponent for whole exponents up to zero; zero where it underflows.

    Added to 2^(bits of the fraction), a whole number stands in the lowest bits of a float: shifted into the place of
    the exponent, it is one.
    """
    integer, bits, bias = BITS[exponent.dtype.itemsize]
    placed = jnp.maximum(exponent, -bias) + (bias + 2.0**bits)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(placed, integer) << bits, exponent.dtype)


def normalized(mantissa: Float[Array, ...], exponent: Float[Array, ...]) -> Scaled:
    """The same number with its mantissa in [1, 2); `mantissa` > 0, whose own exponent moves into `exponent`."""
    integer, bits, bias = BITS[mantissa.dtype.itemsize]
    raw = jax.lax.bitcast_convert_type(mantissa, integer)
    one = raw & ((1 << bits) - 1) | (bias << bits)
    field = (raw >> bits) | ((bias + bits) << bits)
    moved = jax.lax.bitcast_convert_type(field, mantissa.dtype) - (bias + 2.0**bits)
    return Scaled(jax.lax.bitcast_convert_type(one, mantissa.dtype), exponent + moved)


def finite_or_zero(largest: Float[Array, ...]) -> Float[Array, ...]:
    """`largest` of some exponents or logarithms, zero where that is -inf: safe to subtract from all of them."""
    return jnp.where(largest == -jnp.inf, 0, largest)
