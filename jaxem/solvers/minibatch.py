"""A shuffled pass over the rows, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def epoch(
    key: Array, x: Any, weight: Float[Array, "n"], size: int, learn: Callable[[Any, Any, Array], Any], carry: Any
) -> Any:
    """Fold `carry = learn(carry, rows, weight)` over batches of rows in random order, each row once.

    Args:
        key: random key of the order.
        x: an array, or a pytree of arrays, with rows first.
        weight: `[n]`.
        size: rows of a batch. Rows of weight zero fill up the last one; they are spread over all batches.
        learn: update by one batch. Its weights are multiplied by the number of batches, so that on average they stand
            for all rows.
        carry: initial value.
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
    """Raise ValueError unless `size` is a number of rows; `otherwise` names the alternative."""
    if size is None or int(size) != size or size < 1:
        raise ValueError(f"{name}: batch_size is {size}; it must be a whole number above zero, or use {otherwise}")
