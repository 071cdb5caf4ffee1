"""Conversion of keys, seeds and whole numbers that a person passes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def as_key(key: Any, name: str = "key") -> Array:
    """A JAX random key, from a key or from a whole number (a seed).

    Args:
        key: a key of either kind that JAX has, or a whole number.
        name: of the argument, for messages.

    Raises:
        TypeError: something else.
        ValueError: several keys, or a seed that JAX cannot take.

    >>> bool((as_key(3) == jax.random.key(3)).all())
    True
    """
    advice = "pass jax.random.key(0), or a whole number as its seed"
    dtype, shape = getattr(key, "dtype", np.dtype(object)), np.shape(key) if hasattr(key, "shape") else ()
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape:
            raise ValueError(f"{name} holds keys of shape {shape}; pass one of them, or use jax.vmap")
        return key
    if dtype == np.uint32 and len(shape) == 1:
        # Of the older kind: a vector of 32-bit words.
        return jnp.asarray(key)
    if isinstance(key, int) or (jnp.issubdtype(dtype, jnp.integer) and shape == ()):
        try:
            return jax.random.key(key)
        except OverflowError:
            raise ValueError(f"{name} is {key}; as a seed it must lie between -2^63 and 2^63 - 1") from None
    shown = f"an array of shape {shape} and type {dtype}" if hasattr(key, "dtype") else said_of(key)
    raise TypeError(f"{name} is {shown}; {advice}")


def whole(value: Any, name: str, least: int = 1) -> int:
    """`value` as an int that is at least `least`.

    Args:
        value: what was passed: an integer of any kind, or a float that is whole.
        name: of the argument, for messages.
        least: the smallest value allowed.

    Raises:
        TypeError: no number.
        ValueError: a number that is not whole, or below `least`.

    >>> whole(3.0, "components")
    3
    """
    kind = {0: "zero or above", 1: "at least one"}.get(least, f"at least {least}")
    try:
        number = float(value)
        if number == int(number) and number >= least and not isinstance(value, str):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    error = ValueError if isinstance(value, (int, float, np.generic)) else TypeError
    raise error(f"{name} is {value if error is ValueError else said_of(value)}; it must be a whole number, {kind}")


def optional(value: Any, name: str, least: int = 1) -> int | None:
    """`value` as an int that is at least `least`, or None."""
    return None if value is None else whole(value, name, least)


def said_of(value: Any) -> str:
    """Description of a value of the wrong type, for an error message."""
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"
