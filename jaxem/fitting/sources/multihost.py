"""One model, rows on several processes: each reads its own batches, and statistics are summed over all.

Every process makes the same calls in the same order, as JAX's multi-controller runtime requires. After a pass each
sends one buffer of the size of the statistics; they are added everywhere in the order of the
processes, so that all continue with the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from jaxem.fitting.regularisation import SCALE_ROWS
from jaxem.fitting.sources.summary import DatasetSummary


def joined(part: Any, join: Callable[[Any, Any], Any]) -> Any:
    """The parts of all processes, combined by `join`."""
    return _joined(_gathered(_packed(part)), part, join)


def _gathered(local: Any) -> Any:
    """The array (or pytree of arrays) of each process, stacked along a leading axis of processes."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(local)


@jax.jit
def _packed(part: Any) -> Array:
    return ravel_pytree(part)[0]


@partial(jax.jit, static_argnums=2)
def _joined(buffers: Array, like: Any, join: Callable[[Any, Any], Any]) -> Any:
    unpacked = ravel_pytree(like)[1]
    return functools.reduce(join, [unpacked(buffer) for buffer in buffers])


def surveyed(summary: DatasetSummary) -> None:
    """Combine the summaries of all processes, on each of them.

    Raises:
        ValueError: on every process, if one of them has no rows that count, or rows unlike those of the others.
    """
    shape, dtype = summary.like or ((), np.dtype(float))
    columns = shape[0] if shape else 0
    sizes = [len(shape), columns, dtype.itemsize]
    seen = [summary.most, summary.steps, summary.masked, summary.patterns, summary.sample.stride]
    facts = _numbers([summary.counted, *sizes, summary.sample.rows, summary.total, summary.observations, *seen])
    for process, (counted, *theirs) in enumerate(facts[:, :4]):
        if not counted:
            raise ValueError(f"process {process} has no rows that count; every process needs batches of its own")
        if theirs != list(facts[0, 1:4]):
            raise ValueError(f"process {process} has rows unlike those of process 0; all must be of one shape and type")
    rows, summary.total, summary.observations = facts[:, 4:7].sum(axis=0).tolist()
    summary.sample.rows = int(rows)
    summary.most, summary.steps, masked, summary.patterns, stride = (int(most) for most in facts[:, 7:].max(axis=0))
    summary.masked = bool(masked)
    hidden = _numbers([column in summary.hidden for column in range(columns)]).any(axis=0)
    summary.hidden = tuple(np.flatnonzero(hidden).tolist())
    while summary.sample.stride < stride:
        summary.sample.thin()
    _share_sample(summary)


def _share_sample(summary: DatasetSummary) -> None:
    """Concatenate the samples of all processes."""
    held = _numbers([summary.sample.held])[:, 0].astype(int)
    mine = jax.tree.map(
        lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], held.max() - len(leaf), axis=0)]), summary.pooled()
    )
    shared = _gathered(mine)
    summary.sample.pieces = [
        jax.tree.map(lambda leaf, process=process, n=n: np.asarray(leaf[process, :n]), shared)
        for process, n in enumerate(held)
    ]
    summary.sample.held = int(held.sum())
    while summary.sample.held > SCALE_ROWS:
        summary.sample.thin()


def _numbers(local: list[Any]) -> np.ndarray:
    """`[processes, ...]` numbers, bit by bit: they are sent as bytes, whatever floats JAX may use."""
    gathered = _gathered(np.array(local, np.float64).view(np.uint8))
    return np.ascontiguousarray(gathered).view(np.float64)
