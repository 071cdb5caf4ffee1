"""Schedule of groups in slabs of few shapes: every shape is a compilation, all padding is wasted work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxem.cli.table.groups import Grouped
from jaxem.data.missing import Incomplete
from jaxem.data.padding import SHAPE, bucket, padded
from jaxem.data.sequences import Sequences

SLAB = 512
"""Largest number of groups in a slab."""
ENTRIES = 1 << 23
"""Numbers in the stacked rows of a slab at most (64 MiB): a few large groups make a small slab."""
LENGTHS = 4
"""Largest number of padded lengths."""
GAPS = 2
"""Cost of a step over incomplete rows, in steps over complete rows."""


@dataclasses.dataclass(frozen=True)
class Slab:
    """Groups that are fitted together: their indices, and the rows, sequences and groups that they are padded to.

    `patterns` is an upper bound of the number of patterns in any of them; 0 if all rows are complete.
    """

    index: int
    groups: np.ndarray
    length: int
    sequences: int
    size: int
    patterns: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Schedule of a job.

    Attributes:
        slabs: in working order: first one of each length, so that workers do not wait for one compilation.
        capacities: `(components in a shape, numbers of components that use it)`; unused components have weight zero.
    """

    slabs: list[Slab]
    capacities: list[tuple[int, tuple[int, ...]]]


def plan(grouped: Grouped, fittable: np.ndarray, components: Sequence[int], restarts: int) -> Plan:
    """Slabs of the groups that are `fittable` (`[G]` bool), and the shapes that cost least in all."""
    groups = np.flatnonzero(fittable)
    if not len(groups):
        return Plan([], [])
    n, options = grouped.longest[groups], []
    # A chain with unused states would have structural zeros.
    most = len(components) if grouped.first is None else 1
    for lengths in (padded(n, shapes) for shapes in range(1, LENGTHS + 1)):
        rows, shapes = int(lengths.sum()), len(np.unique(lengths))
        for together in range(1, most + 1):
            shared = capacities(components, together)
            work = rows * restarts * sum(capacity * len(counts) for capacity, counts in shared)
            compiling = SHAPE * shapes * (1 + len(shared))
            options.append((work + compiling, len(options), compiling, lengths, shared))
    work, _, compiling, lengths, shared = min(options, key=lambda option: option[:2])
    price = SHAPE * (1 + len(shared)) / (restarts * sum(components) * float(n.mean()))
    widths = padded(grouped.sequences[groups], price=price, multiple=1)
    # Complete groups are apart, if that saves more than as many shapes again.
    gaps = grouped.has_gaps[groups]
    apart = GAPS * (work - compiling) * n[~gaps].sum() > compiling * n.sum()
    patterns = np.where(gaps | (not apart), grouped.patterns, 0)
    return Plan(_slabs(grouped, groups, lengths, widths, patterns), shared)


def capacities(components: Sequence[int], together: int) -> list[tuple[int, tuple[int, ...]]]:
    """Numbers of components, `together` to a shape.

    >>> capacities([1, 2, 3, 4, 5, 6], together=2)
    [(2, (1, 2)), (4, (3, 4)), (6, (5, 6))]
    """
    ordered = sorted(components)
    sets = [tuple(ordered[max(end - together, 0) : end]) for end in range(len(ordered), 0, -together)]
    return [(counts[-1], counts) for counts in reversed(sets)]


def _slabs(
    grouped: Grouped, groups: np.ndarray, lengths: np.ndarray, widths: np.ndarray, patterns: np.ndarray
) -> list[Slab]:
    n, columns, turns = grouped.longest, grouped.x.shape[1], []
    shapes = np.stack([lengths, widths, patterns], axis=1)
    for length, sequences, sets in np.unique(shapes, axis=0).tolist():
        mine = groups[(shapes == (length, sequences, sets)).all(axis=1)]
        most = int(np.clip(ENTRIES // (length * sequences * columns), 1, SLAB))
        pieces = np.array_split(mine[np.argsort(-n[mine], kind="stable")], -(-len(mine) // most))
        size = _padded_size(len(pieces[0]))
        turns += [(turn, -length, sequences, sets, piece, size) for turn, piece in enumerate(pieces)]
    turns.sort(key=lambda item: item[:4])
    return [
        Slab(i, piece, -length, sequences, size, sets)
        for i, (_, length, sequences, sets, piece, size) in enumerate(turns)
    ]


def _padded_size(groups: int) -> int:
    return bucket(groups) if groups <= 16 else -(-groups // 16) * 16


def stack(grouped: Grouped, slab: Slab, dtype: str) -> tuple[Any, np.ndarray]:
    """Data and weights of a slab: rows `[size, length, D]`, or `Sequences` of `[size, sequences, length, D]`.

    Rows are `Incomplete` if the slab has patterns. A padding group has a single row.
    """
    rows, index = places(grouped, slab)
    shape = slab.size, slab.sequences, slab.length
    there, seen = np.zeros((2, *shape), bool)
    there[index], seen[index] = True, grouped.seen[rows]
    there[len(slab.groups) :, 0, 0] = seen[len(slab.groups) :, 0, 0] = True
    # Padding and unobserved steps hold an observed row of the group.
    some = grouped.some[np.resize(slab.groups, slab.size)]
    x = np.broadcast_to(grouped.x[some][:, None, None], (*shape, grouped.x.shape[1])).astype(dtype)
    known = grouped.seen[rows]
    x[tuple(part[known] for part in index)] = grouped.x[rows[known]]
    x: Any = grouped.kind.rows(x)
    if grouped.first is None:
        return Incomplete(x[:, 0], slab.patterns) if slab.patterns else x[:, 0], there[:, 0].astype(dtype)
    length = np.maximum(there.sum(axis=2), 1).astype(np.int32)
    return Sequences.batch(x, length, seen, slab.patterns), there.any(axis=2).astype(dtype)


def places(grouped: Grouped, slab: Slab) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All rows of a slab's groups, and the place of each in `[size, sequences, length]`."""
    size = grouped.size[slab.groups]
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    rows = np.repeat(grouped.start[slab.groups], size) + within
    sequence, step = grouped.place
    return rows, (np.repeat(np.arange(len(size)), size), sequence[rows], step[rows])
