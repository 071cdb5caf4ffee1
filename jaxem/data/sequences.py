"""Sequences of any lengths, padded into one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from jaxem.core.pytree import module, replace, static
from jaxem.data.arrays import as_dtype, float_type, numbers
from jaxem.data.missing import Incomplete, as_numpy_if_local, has_nan, incomplete, known_locally
from jaxem.data.prepare import as_floats, presence, stack


@module
class Sequences:
    """S sequences of at most T steps. `Sequences.from_list` makes one from arrays of any lengths.

    Attributes:
        values: `[S, T, ...]`; padding and steps where the mask is False may hold anything. A cell that
            is NaN (or masked, in a masked array) is missing, and a step of missing cells only is not observed.
        length: `[S]` steps of each sequence, from 1 to T.
        mask: `[S, T]` bool, False where a step is not observed; None if all are.
        patterns: upper bound of the number of distinct sets of observed columns; zero if no single cell is missing.
        axis: inside `jax.shard_map`, the mesh axis over which steps are sharded; set by `fit`.

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
        values, length = as_floats(self.values, name="Sequences: values"), jnp.asarray(self.length, jnp.int32)
        if values.ndim < 2:
            raise ValueError(f"Sequences: values has shape {values.shape}; it must be [sequences, steps, ...]")
        if length.shape != values.shape[:1]:
            raise ValueError(f"Sequences: length has shape {length.shape}; it must be ({len(values)},)")
        if not isinstance(length, Tracer) and length.size:
            shortest, longest = int(as_numpy_if_local(length).min()), int(as_numpy_if_local(length).max())
            if shortest < 1 or longest > values.shape[1]:
                raise ValueError(
                    f"Sequences: length goes from {shortest} to {longest}; with {values.shape[1]} steps in values it "
                    f"must be from 1 to {values.shape[1]}"
                )
        mask, patterns = None if self.mask is None else jnp.asarray(self.mask, bool), self.patterns
        if mask is not None and mask.shape != values.shape[:2]:
            raise ValueError(f"Sequences: mask has shape {mask.shape}; it must be {values.shape[:2]}")
        known = not any(isinstance(array, Tracer) for array in (values, length, mask))
        if known and not patterns and has_nan(values) and isinstance(as_numpy_if_local(values), np.ndarray):
            values, mask, patterns = _gaps(np.asarray(values), np.asarray(length), mask)
        for name, value in {"values": values, "length": length, "mask": mask, "patterns": patterns}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_list(cls, sequences: Sequence[Any], mask: Sequence[Any] | None = None) -> Sequences:
        """Sequences from arrays `[T_s]` or `[T_s, D]` of any lengths.

        Args:
            sequences: the arrays. A NaN cell is missing, and a step of missing cells only is not observed.
            mask: for each sequence an array `[T_s]` of booleans, False where a step is not observed.

        Raises:
            TypeError: a sequence does not hold numbers.
            ValueError: no sequences, an empty one, or shapes that do not fit; the sequence is named by its index.
        """
        if not len(sequences):
            raise ValueError("sequences is empty; there must be at least one")
        arrays = [numbers(sequence, f"sequences[{i}]") for i, sequence in enumerate(sequences)]
        for index, array in enumerate(arrays):
            if array.ndim == 0 or not len(array):
                raise ValueError(f"sequences[{index}] has no steps; leave it out")
            if array.shape[1:] != arrays[0].shape[1:]:
                raise ValueError(
                    f"sequences[{index}] has steps of shape {array.shape[1:]} and sequences[0] of {arrays[0].shape[1:]}"
                )
            if mask is not None and np.shape(mask[index]) != array.shape[:1]:
                raise ValueError(f"mask[{index}] has shape {np.shape(mask[index])}; it must be {array.shape[:1]}")
        lengths = [len(array) for array in arrays]
        seen = None if mask is None else stack([np.asarray(each, bool) for each in mask], max(lengths))
        return cls(_together(arrays, max(lengths)), as_dtype(lengths, np.int32), seen)  # type: ignore[arg-type]

    @classmethod
    def batch(cls, values: Any, length: Any, mask: Any, patterns: int = 0) -> Sequences:
        """B sets of sequences as one, every array with a leading axis B; nothing is checked or converted."""
        one = cls(jnp.zeros((1, 1)), jnp.ones(1, jnp.int32), jnp.ones((1, 1), bool))
        return replace(one, values=values, length=length, mask=mask, patterns=patterns)

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def steps(self) -> int:
        """T, the number of steps of the longest sequence."""
        return self.values.shape[1]

    @property
    def there(self) -> Bool[Array | np.ndarray, "s t"]:
        """`[S, T]` bool: steps within their sequence."""
        lib = np if isinstance(self.length, np.ndarray) else jnp
        return lib.arange(self.steps, dtype=np.int32)[None] < self.length[:, None]

    @property
    def seen(self) -> Any:
        """`[S, T]` bool: observed steps."""
        return self.there if self.mask is None else self.there & self.mask

    def weight_of_steps(self, weight: Any) -> Any:
        """The weight of each step, sequence by sequence (as in `alone`): zero where nothing was observed."""
        return (self.seen.astype(weight.dtype) * weight[:, None]).ravel()

    def rows(self) -> Any:
        """All steps, time first: `[T x S, ...]`."""
        rows = self.values.swapaxes(0, 1).reshape(self.steps * len(self), *self.values.shape[2:])
        return Incomplete(rows, self.patterns) if self.patterns else rows

    def alone(self) -> Sequences:
        """Each step as a sequence of its own, `[S x T, 1, ...]`, for computations that ignore their order.

        No step leaves its device if sequences are sharded.
        """
        many = len(self) * self.steps
        values, mask = self.values.reshape(many, 1, *self.values.shape[2:]), self.seen.reshape(many, 1)
        lib = np if isinstance(mask, np.ndarray) else jnp
        return replace(self, values=values, length=lib.ones(many, np.int32), mask=mask)

    def local(self) -> Sequences:
        """The same as NumPy arrays, which compile nothing, if they are known and lie here."""
        return jax.tree.map(known_locally, self)

    def padded(self, count: int, steps: int, masked: bool) -> Sequences:
        """The same sequences padded to `count` sequences of `steps` steps; of NumPy arrays."""
        short = count - len(self), steps - self.steps
        values = np.asarray(self.values)
        # Filled with existing rows, because zero may be outside a family's support.
        values = np.pad(values, [(0, short[0]), (0, short[1]), *[(0, 0)] * (values.ndim - 2)], mode="edge")
        mask = None
        if masked:
            mask = np.ones(self.values.shape[:2], bool) if self.mask is None else np.asarray(self.mask)
            mask = np.pad(mask, [(0, short[0]), (0, short[1])])
        return replace(
            self, values=values, length=np.pad(np.asarray(self.length), (0, short[0]), constant_values=1), mask=mask
        )

    def split(self, array: Any) -> list[Any]:
        """Array `[S, T, ...]` as a list of arrays without padding."""
        return [row[:length] for row, length in zip(array, np.asarray(self.length), strict=True)]


def _together(arrays: Sequence[Any], longest: int) -> Any:
    """Arrays of different lengths as one padded array; traced ones included."""
    if not any(isinstance(array, Tracer) for array in arrays):
        return stack(arrays, longest)
    dtype = np.result_type(*(float_type(array.dtype) for array in arrays))
    padding = [[(0, longest - len(array)), *[(0, 0)] * (array.ndim - 1)] for array in arrays]
    padded = [jnp.pad(array, pad, mode="edge") for array, pad in zip(arrays, padding, strict=True)]
    return jnp.stack([array.astype(dtype) for array in padded])


def _gaps(values: np.ndarray, length: np.ndarray, mask: Any) -> tuple[Array, Array | None, int]:
    """Values, mask and number of patterns; missing cells of unobserved steps are replaced."""
    there = presence(length, values.shape[1], bool)
    seen = there & ~np.isnan(values).reshape(*there.shape, -1).all(-1)
    seen = seen if mask is None else seen & np.asarray(mask)
    if seen.any():
        # An observed step is valid in any family.
        values = np.where(seen.reshape(*seen.shape, *(1 for _ in values.shape[2:])), values, values[seen][0])
    gaps = incomplete(values.reshape(-1, *values.shape[2:]))
    patterns = gaps.patterns if isinstance(gaps, Incomplete) else 0
    seen = None if (seen == there).all() else jax.device_put(seen, may_alias=False)
    return jax.device_put(values, may_alias=False), seen, patterns


def stacked(
    xs: Sequence[Sequences], steps: int, weight: Sequence[Any] | None, labels: Sequence[Any] | None
) -> tuple[Sequences, np.ndarray, np.ndarray | None]:
    """Sets of sequences as one batch, padded to `steps` steps and, with sequences of weight zero, to one size.

    Args:
        xs: the sets.
        steps: at least the number of steps of each set.
        weight: for each set the weights of its sequences; one each if None.
        labels: for each set the known states of its sequences; None if none are known.
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


def as_sequences(x: Any, event_shape: tuple[int, ...] | None = None, dtype: Any = None) -> Sequences:
    """`Sequences` from what a person passes: `Sequences`, a list of arrays, or an array.

    An array is one sequence `[T, ...]`, or with an axis more S of them, all of one length: `[S, T, ...]`.

    Args:
        x: the argument.
        event_shape: shape of a step, if known.
        dtype: of the model's floats, if known.

    Raises:
        TypeError: x does not hold numbers.
        ValueError: an array that cannot be sequences.
    """
    sequences = x if isinstance(x, Sequences) else _read_sequences(x, event_shape)
    if dtype is None or sequences.values.dtype == dtype:
        return sequences
    return replace(sequences, values=as_floats(sequences.values, dtype))


def _read_sequences(x: Any, event_shape: tuple[int, ...] | None) -> Sequences:
    if isinstance(x, Incomplete):
        x = x.values
    if isinstance(x, np.ndarray) and x.dtype.kind == "O" and x.ndim == 1:
        x = x.tolist()
    if isinstance(x, (list, tuple)) and len(x) and any(np.ndim(each) for each in x):
        return Sequences.from_list(x)
    values = numbers(x)
    if event_shape == (1,) and values.ndim == 1:
        values = values[:, None]
    if event_shape == () and values.ndim > 1 and values.shape[-1] == 1 and values.size > 1:
        if values.ndim == 2:
            raise ValueError(
                f"x has shape {values.shape}, which may be one sequence or {len(values)} of one step; pass x[:, 0] for "
                "the former, and jem.Sequences.from_list(x) for the latter"
            )
        values = values[..., 0]
    # Without a model to define a step, two axes are steps and columns.
    step = min(values.ndim, 2) - 1 if event_shape is None else len(event_shape)
    more = values.ndim - 1 - step
    if values.ndim == 0 or more not in (0, 1):
        raise ValueError(
            f"x has shape {values.shape}; pass one sequence [T, ...], several of one length [S, T, ...], a list of "
            "sequences of any lengths, or jem.Sequences"
        )
    several = values if more else values[None]
    length = jnp.full(len(several), several.shape[1], jnp.int32)
    if isinstance(values, Tracer):
        return Sequences(several, length)
    if isinstance(values, jax.Array) and len(values.devices()) > 1:  # stays on its devices
        gaps = incomplete(values.reshape(-1, *several.shape[2:]) if more else values)
        seen = ~jnp.isnan(several).reshape(*several.shape[:2], -1).all(axis=-1)
        known = (seen, gaps.patterns) if isinstance(gaps, Incomplete) else (None, 0)
        return Sequences(several, length, *known)
    return Sequences.from_list(list(np.asarray(several)))
