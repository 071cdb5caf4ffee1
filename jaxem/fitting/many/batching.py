"""Problems of any lengths in batches of few shapes, because every shape is a compilation."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.pytree import replace
from jaxem.data.missing import Incomplete, cells, has_nan, incomplete
from jaxem.data.padding import SHAPE, padded
from jaxem.data.prepare import as_floats, as_weight, check_labels, prepare, stacked
from jaxem.data.sequences import Sequences
from jaxem.data.sequences import stacked as stacked_sequences
from jaxem.distributions.base import type_of
from jaxem.fitting.checks import hidden_states


class Batch(NamedTuple):
    """Problems of one length: their indices `[p]`, rows `[p, n, ...]`, weights and labels `[p, n]`.

    Problems that share their rows have one set of rows and of labels, `[1, n, ...]`. Arrays are on the device, or on
    the host if the device cannot hold all of them.
    """

    index: np.ndarray  # type: ignore[reportIncompatibleMethodOverride]
    x: Any
    weight: Any
    labels: Any


def batched(model: Any, xs: Any, weight: Any, labels: Any, restarts: int, room: int | None = None) -> list[Batch]:
    """Problems of similar length in batches, padded with rows of weight zero; they come from `as_problems`.

    `room` is the memory of the device in bytes: larger data stay on the host, and so do their batches.
    """
    states, everything = hidden_states(model), np.arange(len(xs))
    as_batches = partial(_padded, states=states, room=room, dtype=type_of(model))
    if not isinstance(xs, list):
        shape = xs.length.shape if isinstance(xs, Sequences) else cells(xs).shape[:2]
        return as_batches(everything, xs, np.ones(shape) if weight is None else weight, labels)
    of_sequences = isinstance(xs[0], Sequences)
    # Work of a row.
    work = restarts * (states or 1) * (max(len(x) for x in xs) if of_sequences else 1)
    batches = []
    lengths = padded([x.steps if of_sequences else len(x) for x in xs], price=SHAPE / work)
    for length in np.unique(lengths).tolist():
        index = np.flatnonzero(lengths == length)
        together = stacked_sequences if of_sequences else stacked
        batches += as_batches(
            index, *together(_entries(index, xs), length, _entries(index, weight), _entries(index, labels))
        )
    return batches


def _entries(index: np.ndarray, values: Any) -> Any:
    """Entries of some problems; None if there are none."""
    return None if values is None else [values[i] for i in index]


def _padded(
    index: np.ndarray, x: Any, weight: Any, labels: Any, *, states: int | None, room: int | None, dtype: Any
) -> list[Batch]:
    """Batches of one shape; problems with missing cells are apart, because the others are computed in a simpler way."""
    if labels is not None:
        check_labels(labels, states)
    batch = Batch(index, x, np.asarray(weight), None if labels is None else np.asarray(labels))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(x))
    if room is None or size <= room:
        batch = _made_ready(batch, dtype)
    else:
        pieces = np.array_split(np.arange(len(index)), min(len(index), -(-size // room)))
        prepare = [jax.device_get(_made_ready(some(batch, piece), dtype)) for piece in pieces]
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *prepare)
    if not has_nan(batch.x):
        return [batch]
    gaps = np.isnan(np.asarray(batch.x)).reshape(len(index), -1).any(axis=1)
    parts = [some(batch, which) for which in (~gaps, gaps) if which.any()]
    return [part._replace(x=incomplete(part.x)) for part in parts]


def shared_batch(model: Any, x: Any, weight: Any, labels: Any) -> Batch:
    """Problems that are weights `[p, n]` of the same rows, as a model reads them.

    Raises:
        ValueError: weights that do not fit.
    """
    n = len(x)
    weight = as_weight(weight, (np.shape(weight)[0], n), f"these {n} rows, one line for each model,")
    # Rows that any problem counts; what was not seen counts nowhere.
    x, pooled, labels = prepare(x, np.max(np.asarray(weight), axis=0), labels, hidden_states(model))
    there = (np.asarray(pooled) > 0)[None]
    weight = jnp.asarray(np.where(there, np.asarray(weight), 0), type_of(model))
    x, labels = jax.tree.map(lambda leaf: leaf[None], (x, labels))
    return Batch(np.arange(len(weight)), x, weight, labels)


def some(batch: Batch, which: Any) -> Batch:
    """Some of the problems; cells that were not seen are no error under `jax_debug_nans`."""
    with jax.debug_nans(False):
        own = jax.tree.map(lambda leaf: leaf[which], (batch.index, batch.weight))
        shared = jax.tree.leaves(batch.x)[0].shape[0] < len(batch.index)
        x, labels = jax.tree.map(lambda leaf: leaf if shared else leaf[which], (batch.x, batch.labels))
        return Batch(own[0], x, own[1], labels)


def _made_ready(batch: Batch, dtype: Any) -> Batch:
    values = as_floats(getattr(batch.x, "values", batch.x), dtype, "xs")
    x = replace(batch.x, values=values) if isinstance(batch.x, (Sequences, Incomplete)) else values
    weight = np.asarray(batch.weight, dtype)
    with jax.debug_nans(False):  # as in `some`
        return Batch(batch.index, *_ready(x, weight, batch.labels))


@jax.jit
def _ready(x: Any, weight: Any, labels: Any) -> Any:
    return jax.vmap(prepare, in_axes=(0, 0, None if labels is None else 0))(x, weight, labels)
