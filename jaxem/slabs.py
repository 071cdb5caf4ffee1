"""Which groups are fitted together, and in which shapes: every shape is a compilation, all padding is work in vain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxem.fitting.ragged import padded_lengths
from jaxem.tables import Grouped

SLAB = 512
"""Groups in a slab at most."""
ENTRIES = 1 << 23
"""Numbers in the stacked rows of a slab at most (64 MiB): a few large groups make a small slab."""
LENGTHS = 4
"""Padded lengths at most."""
SHAPE = 6_000_000
"""What one more compiled shape costs, in rows x components (of all fits, through all their steps)."""


@dataclasses.dataclass(frozen=True)
class Slab:
    """Groups that are fitted together: their numbers, the rows and groups that they are padded to."""

    index: int
    groups: np.ndarray
    length: int
    size: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a job.

    Attributes:
        slabs: in the order of working: first one of each length, so that workers do not wait for one compilation.
        capacities: `(components in a shape, numbers of components that use it)`; what a number does not use of its
            shape has weight zero.
    """

    slabs: list[Slab]
    capacities: list[tuple[int, tuple[int, ...]]]


def plan(grouped: Grouped, fittable: np.ndarray, components: Sequence[int], restarts: int) -> Plan:
    """The slabs of the groups that are `fittable` (`[G]` bool), and the shapes that cost least in all."""
    groups = np.flatnonzero(fittable)
    if not len(groups):
        return Plan([], [])
    n, options = grouped.n[groups], []
    for lengths in (padded_lengths(n, shapes) for shapes in range(1, LENGTHS + 1)):
        rows = int(lengths[np.searchsorted(lengths, n)].sum())
        for together in range(1, len(components) + 1):
            shared = capacities(components, together)
            work = rows * restarts * sum(capacity * len(counts) for capacity, counts in shared)
            options.append((work + SHAPE * len(lengths) * (1 + len(shared)), len(options), lengths, shared))
    _, _, lengths, shared = min(options, key=lambda option: option[:2])
    return Plan(_slabs(grouped, groups, lengths), shared)


def capacities(components: Sequence[int], together: int) -> list[tuple[int, tuple[int, ...]]]:
    """Numbers of components, `together` to a shape.

    >>> capacities([1, 2, 3, 4, 5, 6], together=2)
    [(2, (1, 2)), (4, (3, 4)), (6, (5, 6))]
    """
    ordered = sorted(components)
    sets = [tuple(ordered[max(end - together, 0) : end]) for end in range(len(ordered), 0, -together)]
    return [(counts[-1], counts) for counts in reversed(sets)]


def _slabs(grouped: Grouped, groups: np.ndarray, lengths: np.ndarray) -> list[Slab]:
    n, columns, turns = grouped.n[groups], grouped.x.shape[1], []
    for length in lengths.tolist():
        mine = groups[lengths[np.searchsorted(lengths, n)] == length]
        most = int(np.clip(ENTRIES // (length * columns), 1, SLAB))
        pieces = np.array_split(mine[np.argsort(-grouped.n[mine], kind="stable")], -(-len(mine) // most))
        turns += [(turn, -length, piece, _padded_size(len(pieces[0]))) for turn, piece in enumerate(pieces)]
    turns.sort(key=lambda item: item[:2])
    return [Slab(index, piece, -length, size) for index, (_, length, piece, size) in enumerate(turns)]


def _padded_size(groups: int) -> int:
    return 1 << (groups - 1).bit_length() if groups <= 16 else -(-groups // 16) * 16


def stack(grouped: Grouped, slab: Slab, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[size, length, D]` and weights `[size, length]`; a group that only pads has a single row."""
    groups = np.resize(slab.groups, slab.size)
    row = np.arange(slab.length)
    n = np.where(np.arange(slab.size) < len(slab.groups), grouped.n[groups], 1)
    present = row < n[:, None]
    x = grouped.x[np.where(present, grouped.start[groups][:, None] + row, grouped.start[groups][:, None])]
    return x.astype(dtype), present.astype(dtype)
