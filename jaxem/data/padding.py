"""Problems of different lengths in few shapes, because every shape is a compilation: which lengths to pad to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MULTIPLE = 8
"""Padded lengths are multiples of this: whole vector registers, and fewer shapes from one day's data to the next."""

SHAPE = 6_000_000
"""What one more compiled shape costs, in rows x hidden states (of all fits, through all their steps)."""


def padded_lengths(
    lengths: Sequence[int] | np.ndarray, shapes: int = 4, price: float = 0, multiple: int = MULTIPLE
) -> np.ndarray:
    """At most `shapes` lengths to pad to, chosen so that the fewest rows are padding; ascending.

    Args:
        lengths: of the problems.
        shapes: so many at most.
        price: of each shape, in rows: what one more has to save.
        multiple: of what the padded lengths are.

    >>> padded_lengths([10, 12, 200, 210], shapes=2).tolist()
    [16, 216]
    >>> padded_lengths([10, 12, 200, 210], shapes=2, price=1000).tolist()
    [216]
    """
    rounded = -(-np.maximum(np.asarray(lengths, int), 1) // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    # cost[j]: rows when the j shortest sizes are covered; each further round allows one more shape.
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
