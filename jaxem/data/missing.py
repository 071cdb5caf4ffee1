"""Rows with missing cells (NaN), and their order by pattern of observed columns."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxem.core.pytree import module, replace, static
from jaxem.data.arrays import numbers

WORD = 31
"""Bits of a pattern in one integer."""

BLOCK = 256
"""Rows of one pattern in a block, at most."""


class ByRow:
    """Base class of data whose arrays all have rows first, so that a selection of rows is data again."""


@module
class Incomplete(ByRow):
    """Rows with missing cells. `incomplete` makes one; a model takes it wherever it takes rows.

    Attributes:
        values: `[n]` or `[n, D]`, NaN where a cell is missing.
        patterns: upper bound of the number of distinct sets of observed columns.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> x = jem.incomplete(jnp.array([[1.0, jnp.nan], [2.0, 3.0]]))
    >>> jem.DiagonalGaussian([0.0, 0.0], [1.0, 1.0]).log_prob(x).round(2).tolist()
    [-1.42, -8.34]
    """

    values: Array
    patterns: int = static()

    def __len__(self) -> int:
        return self.values.shape[0]


def incomplete(x: Any) -> Any:
    """`x` as `Incomplete` if it is an array with missing cells (NaN, masked or None), else `x` itself.

    Models look for NaN by themselves, but cannot inside `jit`, where values are unknown: call this outside.

    Args:
        x: rows `[n]` or `[n, D]`, or `[B, n, D]` for B problems.

    >>> import jax.numpy as jnp
    >>> incomplete(jnp.array([[1.0, jnp.nan], [2.0, 3.0], [jnp.nan, jnp.nan]])).patterns
    4
    >>> incomplete([1.0, 2.0])
    [1.0, 2.0]
    """
    if isinstance(x, (Tracer, Incomplete)):
        return x
    read = numbers(x)
    return Incomplete(jnp.asarray(read), _patterns(read)) if has_nan(read) else x


def has_nan(x: Any) -> bool:
    """Whether a cell of these rows is NaN; False for traced values and for anything but arrays."""
    if isinstance(x, Tracer) or not isinstance(x, (jax.Array, np.ndarray)):
        return False
    x = as_numpy_if_local(x)
    if x.dtype.kind != "f":
        return False
    # The minimum is NaN if any cell is; but XLA may lose it in a minimum over several devices.
    return bool(np.isnan(x.min(initial=0)) if isinstance(x, np.ndarray) else jnp.isnan(x).any())


def as_numpy_if_local(x: Any) -> Any:
    """`x` as NumPy; unchanged if it lies on other devices or with other processes, from which only a number is fetched.

    >>> type(as_numpy_if_local([1.0])).__name__
    'ndarray'
    """
    far = isinstance(x, jax.Array) and (len(x.devices()) > 1 or next(iter(x.devices())).platform != "cpu")
    return x if far else np.asarray(x)


def known_locally(x: Any) -> Any:
    """`x` as NumPy if it lies here and its values are known; unchanged if it is traced."""
    return x if isinstance(x, Tracer) else as_numpy_if_local(x)


def _patterns(x: Any) -> int:
    """Smallest power of two that is at least the number of patterns of any problem: like data share a compilation."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        own = sum(_count(np.isnan(np.asarray(shard.data))) for shard in x.addressable_shards)
        most = min(int(multihost_utils.process_allgather(np.int32(own)).sum()), 2 ** min(x[0].size, WORD))
    else:
        most = _count(np.isnan(np.asarray(x)))
    return 1 << (most - 1).bit_length()


def _count(missing: np.ndarray) -> int:
    """Largest number of patterns of any problem."""
    if missing.ndim < 3:
        missing = missing.reshape(1, len(missing), -1)
    return max(len(np.unique(np.packbits(rows, axis=1), axis=0)) for rows in missing)


def cells(x: Any) -> Any:
    """Array of the rows, with or without missing cells."""
    return x.values if isinstance(x, Incomplete) else x


def some_columns(x: Any, at: Any) -> Any:
    """The rows with only some of their columns."""
    return replace(x, values=x.values[:, at]) if isinstance(x, Incomplete) else x[:, at]


def unseen_rows(x: Any) -> Any:
    """`[n]` bool: rows without any observed cell; NumPy for NumPy."""
    values = cells(x)
    lib = np if isinstance(values, np.ndarray) else jnp
    return lib.all(lib.isnan(values.reshape(values.shape[0], -1)), axis=1)


@module
class Blocks:
    """Rows sorted by pattern into blocks of one pattern each, the last of which are padded.

    Attributes:
        seen: `[P, D]` bool, observed columns of each pattern.
        pattern: `[blocks]` pattern of each block.
        row: `[blocks, size]` row in each slot; n for padding. None if all rows are one block in their original order.
        place: `[n]` flat index `block * size + slot` of each row; None if there is one block in the original order.
    """

    seen: Bool[Array, "p d"]
    pattern: Int[Array, "b"]
    row: Int[Array, "b s"] | None = None
    place: Int[Array, "n"] | None = None

    def spread(self, rows: Float[Array, "*batch n"]) -> Float[Array, "*batch b s"]:
        """Gather values of rows into the blocks; zero for padding."""
        if self.row is None:
            return rows[..., None, :]
        padded = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 1)])
        return padded[..., self.row]

    def gathered(self, blocks: Shaped[Array, "*batch b s"]) -> Shaped[Array, "*batch n"]:
        """Values in blocks, put back into the order of the rows."""
        values = blocks.reshape(*blocks.shape[:-2], -1)
        return values if self.place is None else values[..., self.place]

    def by_pattern(self, blocks: Float[Array, "k b *rest"]) -> Float[Array, "k p *rest"]:
        """Sums of blocks, added up by pattern."""
        zero = jnp.zeros((blocks.shape[0], len(self.seen), *blocks.shape[2:]), blocks.dtype)
        return zero.at[:, self.pattern].add(blocks)


@partial(jax.jit, static_argnames="patterns", inline=True)
def in_blocks(seen: Bool[Array, "d n"], patterns: int) -> Blocks:
    """Sort rows into blocks by pattern, of which there are at most `patterns`; shapes depend on that number only."""
    columns, n = seen.shape
    size = min(BLOCK, 1 << max(0, (n // (2 * patterns)).bit_length() - 1))
    blocks = -(-n // size) + patterns
    rows = jnp.arange(n, dtype=jnp.int32)
    *words, order = jax.lax.sort((*_words(seen), rows), num_keys=-(-columns // WORD))
    new = jnp.stack([word[1:] != word[:-1] for word in words]).any(0)
    pattern = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new.astype(jnp.int32), dtype=jnp.int32)])
    table = jnp.zeros((patterns, columns), bool).at[pattern].set(seen[:, order].T)
    count = jnp.zeros(patterns, jnp.int32).at[pattern].add(1)
    first_row, first_block = _exclusive_cumsum(count), _exclusive_cumsum(-(-count // size))
    within = rows - first_row[pattern]
    block = first_block[pattern] + within // size
    place = block * size + within % size
    return Blocks(
        seen=table,
        pattern=jnp.zeros(blocks, jnp.int32).at[block].set(pattern),
        row=jnp.full(blocks * size, n, jnp.int32).at[place].set(order).reshape(blocks, size),
        place=jnp.zeros(n, jnp.int32).at[order].set(place),
    )


def _words(seen: Bool[Array, "d n"]) -> list[Array]:
    """Observed columns of each row, as bits of integers."""
    parts = [seen[at : at + WORD].astype(jnp.int32) for at in range(0, len(seen), WORD)]
    return [sum(bit << place for place, bit in enumerate(part)) for part in parts]  # type: ignore[misc]


def _exclusive_cumsum(count: Int[Array, "p"]) -> Int[Array, "p"]:
    """Exclusive cumulative sum."""
    return jnp.cumsum(count, dtype=jnp.int32) - count


@jax.jit
def hot_deck(key: Array, x: Float[Array, "n *d"], weight: Float[Array, "n"]) -> Float[Array, "n *d"]:
    """Complete rows to start from: each missing cell is drawn from the observed cells of its column."""
    columns = x.reshape(len(x), -1).T

    def filled(key: Array, column: Array) -> Array:
        there = ~jnp.isnan(column)
        cumulated = jnp.cumsum(jnp.where(there, weight, 0))
        wanted = jax.random.uniform(key, column.shape, weight.dtype) * cumulated[-1]
        drawn = column[jnp.searchsorted(cumulated, wanted, side="right")]
        return jnp.where(there, column, drawn)

    return jax.vmap(filled)(jax.random.split(key, len(columns)), columns).T.reshape(x.shape)
