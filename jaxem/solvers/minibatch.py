"""A shuffled pass over the rows, some at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def epoch(
    key: Array, x: Any, weight: Float[Array, "n"], size: int, learn: Callable[[Any, Any, Array], Any], carry: Any
) -> Any:
    """`carry = learn(carry, rows, weight)` for one batch after the other; every row comes once.

    Args:
        key: decides the order.
        x: an array, or a pytree of arrays, with rows first.
        weight: `[n]`.
        size: rows of a batch. Those that are missing from the last are spread over all, with weight zero.
        learn: what to do with a batch. Its weights stand for all rows, on the average: they are multiplied by the
            number of batches.
        carry: what it begins with.
    """
    n = len(weight)
    batches = -(-n // size)
    order = jax.random.permutation(key, jnp.arange(batches * size, dtype=jnp.int32)).reshape(batches, size)

    def one(carry: Any, places: Array) -> tuple[Any, None]:
        rows = jnp.minimum(places, n - 1)
        batch = jax.tree.map(lambda leaf: leaf[rows], x)
        return learn(carry, batch, jnp.where(places < n, batches * weight[rows], 0)), None

    return jax.lax.scan(one, carry, order)[0]


def check_size(name: str, size: Any, otherwise: str) -> None:
    """Raise ValueError unless `size` is a number of rows; `otherwise` is what to use instead."""
    if size is None or int(size) != size or size < 1:
        raise ValueError(f"{name}: batch_size is {size}; it must be a whole number above zero, or use {otherwise}")
