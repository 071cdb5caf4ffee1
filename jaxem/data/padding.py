"""Padded lengths for problems of different lengths: few shapes, because each is a compilation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MULTIPLE = 8
"""Padded lengths are multiples of this: whole vector registers, and shapes that recur from one data set to the next."""

SHAPE = 6_000_000
"""Cost of one more compiled shape, in rows x hidden states (of all fits, through all their steps)."""


def padded_lengths(
    lengths: Sequence[int] | np.ndarray, shapes: int = 4, price: float = 0, multiple: int = MULTIPLE
) -> np.ndarray:
    """At most `shapes` padded lengths, chosen to minimise padding; ascending.

    Args:
        lengths: of the problems.
        shapes: largest number of lengths.
        price: rows of padding that each further shape has to save.
        multiple: of which the padded lengths are.

    >>> padded_lengths([10, 12, 200, 210], shapes=2).tolist()
    [16, 216]
    >>> padded_lengths([10, 12, 200, 210], shapes=2, price=1000).tolist()
    [216]
    """
    rounded = -(-np.maximum(np.asarray(lengths, int), 1) // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    # cost[j]: rows when the j shortest sizes are covered; each round allows one more shape.
    problems = np.concatenate([[0], np.cumsum(counts)])
    cost = np.full(len(sizes) + 1, np.inf)
    cost[0] = 0
    choices, totals = [], []
    for _ in range(min(shapes, len(sizes))):
        # All sizes from i up to j - 1 are padded to size j - 1.
        rows = cost[:, None] + (problems[None, 1:] - problems[:, None]) * sizes
        allowed = np.arange(len(sizes) + 1)[:, None] <= np.arange(len(sizes))
        rows = np.where(allowed, rows, np.inf)
        choices.append(rows.argmin(0))
        cost = np.concatenate([[0], rows.min(0)])
        totals.append(cost[-1] + price * len(choices))
    chosen, end = [], len(sizes)
    for choice in reversed(choices[: int(np.argmin(totals)) + 1]):
        if end == 0:
            break
        chosen.append(sizes[end - 1])
        end = choice[end - 1]
    return np.unique(chosen)


def padded(lengths: Sequence[int] | np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    """Padded length of each problem; arguments as for `padded_lengths`.

    >>> padded([10, 200, 12, 210], shapes=2).tolist()
    [16, 216, 16, 216]
    """
    shapes = padded_lengths(lengths, *args, **kwargs)
    return shapes[np.searchsorted(shapes, lengths)]


def bucket(n: int, ratio: float = 2, multiple: int = 1) -> int:
    """The next length of a geometric series from `multiple`, the same whatever other lengths there are.

    >>> [bucket(n) for n in (1, 5, 100, 128)], bucket(100, ratio=1.5, multiple=8)
    ([1, 8, 128, 128], 144)
    """
    length, power = multiple, 0
    while length < n:
        power += 1
        length = multiple * math.ceil(ratio**power)
    return length
