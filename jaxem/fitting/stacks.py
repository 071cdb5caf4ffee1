"""Problems of any lengths as batches of few shapes, because every shape is a compilation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxem.data import as_floats, check_labels, check_weight, ready, stacked
from jaxem.fitting.fit import hidden_states
from jaxem.fitting.ragged import SHAPE, padded_lengths
from jaxem.missing import Incomplete, cells, has_nan, incomplete
from jaxem.sequences import Sequences
from jaxem.sequences import stacked as stacked_sequences


class Batch(NamedTuple):
    """Problems of one length: their numbers `[p]`, rows `[p, n, ...]`, weights and labels `[p, n]`.

    Arrays are on the device, or on the host where the device cannot take them all.
    """

    index: np.ndarray  # type: ignore[reportIncompatibleMethodOverride]
    x: Any
    weight: Any
    labels: Any


def batched(
    model: Any, xs: Any, weight: Any, labels: Any, problems: int, restarts: int, room: int | None = None
) -> list[Batch]:
    """Problems of like length together, padded with rows of weight zero.

    `room` is how many bytes the device takes at once: what is larger stays on the host, and so does its batch.
    """
    if len(xs) != problems:
        raise ValueError(f"xs holds {len(xs)} problems and models {problems}; they must be as many")
    states = hidden_states(model)
    if isinstance(xs, Sequences):
        row_weight = np.ones(xs.length.shape) if weight is None else _shaped(weight, xs.length.shape, "weight")
        return _padded(np.arange(problems), xs, row_weight, labels, states, room)
    if not isinstance(xs, Incomplete) and isinstance(first := model.read(xs[0]), Sequences):
        return _sequence_batches([first, *(model.read(x) for x in xs[1:])], weight, labels, states, restarts, room)
    if not isinstance(xs, (list, tuple)):
        x = xs if isinstance(xs, (jax.Array, Incomplete)) else np.asarray(xs)
        shape = cells(x).shape
        if len(shape) < 2:
            raise ValueError(f"xs has shape {shape}; it must be [problems, rows, ...] or a list of arrays")
        row_weight = np.ones(shape[:2]) if weight is None else _shaped(weight, shape[:2], "weight")
        known = None if labels is None else _shaped(labels, shape[:2], "labels")
        return _padded(np.arange(problems), x, row_weight, known, states, room)

    arrays = [np.asarray(x) for x in xs]
    lengths = np.array([len(array) for array in arrays])
    if not lengths.all():
        raise ValueError(f"xs[{int(np.argmin(lengths))}] has no rows; leave that problem out")
    batches = []
    for length, index in _by_length(lengths, restarts * (states or 1)):
        x, row_weight, known = stacked(_of(index, arrays), length, _of(index, weight), _of(index, labels))
        batches += _padded(index, x, row_weight, known, states, room)
    return batches


def _of(index: np.ndarray, values: Any) -> Any:
    """What belongs to some problems, if it is there at all."""
    return None if values is None else [values[i] for i in index]


def _by_length(lengths: np.ndarray, work: int) -> Iterator[tuple[int, np.ndarray]]:
    """Few lengths to pad to, each with the problems that it is for; `work` is what a row stands for."""
    shapes = padded_lengths(lengths, price=SHAPE / work)
    for length, shorter in zip(shapes, [0, *shapes[:-1]], strict=True):
        yield int(length), np.flatnonzero((lengths <= length) & (lengths > shorter))


def _sequence_batches(
    xs: list[Sequences], weight: Any, labels: Any, states: int | None, restarts: int, room: int | None
) -> list[Batch]:
    """Problems whose longest sequences are of like length together, padded with steps and with sequences."""
    batches = []
    work = restarts * (states or 1) * max(len(x) for x in xs)
    for steps, index in _by_length(np.array([x.steps for x in xs]), work):
        padded = stacked_sequences(_of(index, xs), steps, _of(index, weight), _of(index, labels))
        batches += _padded(index, *padded, states, room)
    return batches


def _padded(index: np.ndarray, x: Any, weight: Any, labels: Any, states: int | None, room: int | None) -> list[Batch]:
    """Problems of one shape; those with missing cells apart, because the others are done in a simpler way."""
    check_weight(weight)
    if labels is not None:
        check_labels(labels, states)
    batch = Batch(index, x, np.asarray(weight), None if labels is None else np.asarray(labels))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(x))
    if room is None or size <= room:
        batch = _made_ready(batch)
    else:
        pieces = np.array_split(np.arange(len(index)), min(len(index), -(-size // room)))
        ready = [jax.device_get(_made_ready(some(batch, piece))) for piece in pieces]
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *ready)
    if not has_nan(batch.x):
        return [batch]
    gaps = np.isnan(np.asarray(batch.x)).reshape(len(index), -1).any(axis=1)
    parts = [some(batch, which) for which in (~gaps, gaps) if which.any()]
    return [part._replace(x=incomplete(part.x)) for part in parts]


def some(batch: Batch, which: Any) -> Batch:
    """Some of the problems."""
    return jax.tree.map(lambda leaf: leaf[which], batch)


def _made_ready(batch: Batch) -> Batch:
    x = batch.x if isinstance(batch.x, Sequences) else as_floats(batch.x)
    weight = np.asarray(batch.weight, jax.tree.leaves(x)[0].dtype)
    return Batch(batch.index, *_ready(x, weight, batch.labels))


@jax.jit
def _ready(x: Any, weight: Any, labels: Any) -> Any:
    return jax.vmap(ready, in_axes=(0, 0, None if labels is None else 0))(x, weight, labels)


def _shaped(value: Any, shape: tuple[int, ...], name: str) -> Any:
    if np.shape(value) != shape:
        raise ValueError(f"{name} has shape {np.shape(value)}; with these xs it must be {shape}")
    return value
