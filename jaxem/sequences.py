"""Sequences of any lengths, as one array that the loops can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from jaxem.data import as_floats, presence, stack
from jaxem.missing import Incomplete, incomplete, unseen_rows
from jaxem.pytree import module, replace, static


@module
class Sequences:
    """S sequences of at most T steps. `Sequences.from_list` makes one from arrays of any lengths.

    Attributes:
        values: `[S, T, ...]`; what stands beyond a length, or where the mask is False, is never looked at.
        length: `[S]` steps of each sequence, from 1 to T.
        mask: `[S, T]` bool, False where nothing was observed; None if everything was.
        patterns: not below the number of different sets of seen columns, if single cells are NaN; zero if none is.
        axis: inside `jax.shard_map`, the axis of the mesh over whose devices the steps go on; `fit` sees to it.

    Raises:
        ValueError: lengths or a mask that do not fit the values.

    >>> import jaxem as jem
    >>> sequences = jem.Sequences.from_list([[1.0, 2.0, 3.0], [4.0]])
    >>> sequences.values.shape, sequences.length.tolist()
    ((2, 3), [3, 1])
    """

    values: Array
    length: Int[Array, "s"]
    mask: Bool[Array, "s t"] | None = None
    patterns: int = static(default=0)
    axis: Any = static(default=None)

    def __post_init__(self) -> None:
        values, length = as_floats(self.values), jnp.asarray(self.length, jnp.int32)
        if values.ndim < 2:
            raise ValueError(f"Sequences: values has shape {values.shape}; it must be [sequences, steps, ...]")
        if length.shape != values.shape[:1]:
            raise ValueError(f"Sequences: length has shape {length.shape}; it must be ({len(values)},)")
        if not isinstance(length, Tracer) and length.size:
            shortest, longest = int(jnp.min(length)), int(jnp.max(length))
            if shortest < 1 or longest > values.shape[1]:
                raise ValueError(
                    f"Sequences: length goes from {shortest} to {longest}; with {values.shape[1]} steps in values it "
                    f"must be from 1 to {values.shape[1]}"
                )
        if self.mask is not None and np.shape(self.mask) != values.shape[:2]:
            raise ValueError(f"Sequences: mask has shape {np.shape(self.mask)}; it must be {values.shape[:2]}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "length", length)
        object.__setattr__(self, "mask", None if self.mask is None else jnp.asarray(self.mask, bool))

    @classmethod
    def from_list(cls, sequences: Sequence[Any], mask: Sequence[Any] | None = None) -> Sequences:
        """Sequences from arrays `[T_s]` or `[T_s, D]` of any lengths.

        Args:
            sequences: the arrays. A cell that is NaN was not seen, and a step of nothing else not observed.
            mask: for each sequence an array `[T_s]` of booleans, False where nothing was observed.

        Raises:
            TypeError: a sequence does not hold numbers.
            ValueError: no sequences, an empty one, or shapes that do not fit; the sequence is named by its index.
        """
        if not len(sequences):
            raise ValueError("sequences is empty; there must be at least one")
        arrays = [np.asarray(sequence) for sequence in sequences]
        for index, array in enumerate(arrays):
            if array.dtype.kind not in "biuf":
                raise TypeError(f"sequences[{index}] holds values of type {array.dtype}; it must hold numbers")
            if array.ndim == 0 or not len(array):
                raise ValueError(f"sequences[{index}] has no steps; leave it out")
            if array.shape[1:] != arrays[0].shape[1:]:
                raise ValueError(
                    f"sequences[{index}] has steps of shape {array.shape[1:]} and sequences[0] of {arrays[0].shape[1:]}"
                )
            if mask is not None and np.shape(mask[index]) != array.shape[:1]:
                raise ValueError(f"mask[{index}] has shape {np.shape(mask[index])}; it must be {array.shape[:1]}")
        lengths = [len(array) for array in arrays]
        longest = max(lengths)
        values = stack([array.astype(np.result_type(*arrays)) for array in arrays], longest)
        there = presence(lengths, longest, bool)
        seen = there.copy()
        if mask is not None:
            seen &= stack([np.asarray(m, bool) for m in mask], longest)
        if values.dtype.kind == "f":
            seen &= ~np.isnan(values).reshape(*values.shape[:2], -1).all(-1)
        if seen.any():
            # Harmless there, whatever the family: a step that was observed.
            values = np.where(seen.reshape(*seen.shape, *(1 for _ in values.shape[2:])), values, values[seen][0])
        gaps = incomplete(values.reshape(-1, *values.shape[2:]))
        return cls(
            jnp.asarray(values),
            jnp.asarray(lengths, jnp.int32),
            None if (seen == there).all() else jnp.asarray(seen),
            gaps.patterns if isinstance(gaps, Incomplete) else 0,
        )

    @classmethod
    def batch(cls, values: Any, length: Any, mask: Any, patterns: int = 0) -> Sequences:
        """B sets of sequences as one, every array with a leading axis B; nothing is checked or converted."""
        one = cls(jnp.zeros((1, 1)), jnp.ones(1, jnp.int32), jnp.ones((1, 1), bool))
        return replace(one, values=values, length=length, mask=mask, patterns=patterns)

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def steps(self) -> int:
        """T: how many steps the longest has."""
        return self.values.shape[1]

    @property
    def there(self) -> Bool[Array, "s t"]:
        """Which steps are within their sequence."""
        return jnp.arange(self.steps, dtype=jnp.int32)[None] < self.length[:, None]

    @property
    def seen(self) -> Bool[Array, "s t"]:
        """Which of them were observed."""
        return self.there if self.mask is None else self.there & self.mask

    def rows(self) -> Any:
        """All steps one after the other, time first: `[T x S, ...]`."""
        rows = jnp.swapaxes(self.values, 0, 1).reshape(self.steps * len(self), *self.values.shape[2:])
        return Incomplete(rows, self.patterns) if self.patterns else rows

    def alone(self) -> Sequences:
        """Each step as a sequence of its own: `[S x T, 1, ...]`, for whom it does not matter which follow each other.

        No step leaves its device, if sequences are spread over several.
        """
        many = len(self) * self.steps
        values, mask = self.values.reshape(many, 1, *self.values.shape[2:]), self.seen.reshape(many, 1)
        return replace(self, values=values, length=jnp.ones(many, jnp.int32), mask=mask)

    def padded(self, count: int, steps: int, masked: bool) -> Sequences:
        """The same sequences in a larger array, and others of one step beside them; of NumPy arrays."""
        short = count - len(self), steps - self.steps
        values = np.asarray(self.values)
        # Filled with what is there: a family need not be able to read a zero.
        values = np.pad(values, [(0, short[0]), (0, short[1]), *[(0, 0)] * (values.ndim - 2)], mode="edge")
        mask = None
        if masked:
            mask = np.ones(self.values.shape[:2], bool) if self.mask is None else np.asarray(self.mask)
            mask = np.pad(mask, [(0, short[0]), (0, short[1])])
        return replace(
            self, values=values, length=np.pad(np.asarray(self.length), (0, short[0]), constant_values=1), mask=mask
        )

    def split(self, array: Any) -> list[Any]:
        """An array `[S, T, ...]` of something for each step, as a list without padding."""
        return [row[:length] for row, length in zip(array, np.asarray(self.length), strict=True)]


def stacked(
    xs: Sequence[Sequences], steps: int, weight: Sequence[Any] | None, labels: Sequence[Any] | None
) -> tuple[Sequences, np.ndarray, np.ndarray | None]:
    """Sets of sequences as one batch, padded to so many steps, and with sequences of weight zero.

    Args:
        xs: the sets.
        steps: not below those of any.
        weight: for each set the weights of its sequences, or None for one each.
        labels: for each set the known states of its sequences, or None.
    """
    counts = [len(x) for x in xs]
    most = max(counts)
    there = presence(counts, most, float)
    if weight is not None:
        there = there * stack([np.asarray(w, float) for w in weight], most)
    known = None
    if labels is not None:
        known = stack([stack([np.asarray(one) for one in each], steps, fill=-1) for each in labels], most, fill=-1)
    masked = any(x.mask is not None for x in xs)
    patterns = max(x.patterns for x in xs)
    padded = [replace(x.padded(most, steps, masked), patterns=patterns) for x in xs]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded), there, known


def as_sequences(x: Any, event_shape: tuple[int, ...] | None = None) -> Sequences:
    """What a person passes as sequences: `Sequences`, a list of arrays, or one array, which is one sequence.

    Args:
        x: as said.
        event_shape: that of a step, if it is known.

    Raises:
        ValueError: an array that cannot be one sequence.
    """
    if isinstance(x, Sequences):
        return x
    if isinstance(x, (list, tuple)) and len(x) and np.ndim(x[0]):
        return Sequences.from_list(x)
    values = x if isinstance(x, jax.Array) else np.asarray(x)
    if event_shape == (1,) and values.ndim == 1:
        values = values[:, None]
    if values.ndim == 0 or (event_shape is not None and values.ndim != 1 + len(event_shape)):
        raise ValueError(f"x has shape {values.shape}; pass one sequence [T, ...], a list of them, or jem.Sequences")
    length = jnp.full(1, len(values), jnp.int32)
    if isinstance(values, Tracer):
        return Sequences(values[None], length)
    if isinstance(values, jax.Array) and len(values.devices()) > 1:  # it stays where it is
        gaps = incomplete(values)
        known = (None, 0) if gaps is values else (~unseen_rows(values)[None], gaps.patterns)
        return Sequences(values[None], length, *known)
    return Sequences.from_list([values])
