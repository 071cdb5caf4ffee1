"""Rows of categories as a Bayesian network reads them: cells, texts, sizes and counts."""

from __future__ import annotations

import math
import numbers as numbers_of
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from jaxem.core.pytree import module, static
from jaxem.data import missing
from jaxem.data.prepare import as_floats
from jaxem.latent.bayesnet.graph import Graph

UNSEEN = 0.1
"""Rows that stand for a category that was never seen."""


@module
class Cells(missing.ByRow):
    """Rows of categories, and which variables are hidden anywhere in them: the others need no sum.

    Attributes:
        values: `[n, V]`, NaN where a cell is hidden.
        variables: `(name, number of categories)` of each column.
        hidden: the columns with hidden cells.
    """

    values: Array
    variables: tuple[tuple[str, int], ...] = static()
    hidden: tuple[int, ...] = static()

    def __len__(self) -> int:
        return self.values.shape[0]

    def check(self, weight: Any = None) -> None:
        """Raise ValueError for a cell that holds no category, in a row that has a weight. Traced values pass."""
        if isinstance(self.values, Tracer) or isinstance(weight, Tracer):
            return
        values = np.asarray(self.values)
        sizes = np.array([size for _, size in self.variables])
        outside = ~(np.isnan(values) | ((values == np.floor(values)) & (values >= 0) & (values < sizes)))
        if weight is not None:
            outside &= np.asarray(weight)[:, None] > 0
        if outside.any():
            v = int(np.argmax(outside.any(axis=0)))
            row, (name, size) = int(np.argmax(outside[:, v])), self.variables[v]
            raise ValueError(
                f"x: {name} holds {values[row, v]:g} in row {row}; its categories are the whole numbers from 0 to "
                f"{size - 1} (NaN if hidden)"
            )


@module
class Seen:
    """Rows as the network reads them.

    Attributes:
        codes: `[V, n]`, the category of each cell, -1 where it is hidden.
        possible: `[n]`, False where a variable that is never hidden has a category that it has not.
        place: for each variable, which entry of its table (over those of the table's variables that are never
            hidden) a row takes, `[n]`; None if all may be hidden.
        corner: the same as ones in `[entries, n]`; None where that is too much.
        indicators: `[C, n]` for each variable that may be hidden: zero for the categories that it may have, else -inf.
        hidden: which those are.
    """

    codes: Int[Array, "v n"]
    possible: Bool[Array, "n"]
    place: tuple[Array | None, ...]
    corner: tuple[Array | None, ...]
    indicators: tuple[Array, ...]
    hidden: tuple[int, ...] = static()


def columns_of(x: Any, names: Any, outcomes: Mapping[str, Sequence[str]]) -> Array:
    """Rows `[n, V]` as floats, from an array, a dict of columns or a frame.

    Raises:
        TypeError: a cell that is neither a number nor a text.
        ValueError: the wrong number of columns, a name that is no variable, or a text that is no category.
    """
    if isinstance(x, Cells):
        return x.values
    if (named := _by_name(x)) is not None:
        for name in named:
            if name not in names:
                raise ValueError(f"BayesNet: {name!r} is no variable; they are {', '.join(names)}")
        columns = {name: _numbers(name, column, outcomes.get(name)) for name, column in named.items()}
        n = max((len(column) for column in columns.values()), default=1)
        if any(column.shape not in ((n,), (1,)) for column in columns.values()):
            shapes = {name: column.shape for name, column in columns.items()}
            raise ValueError(f"x: the columns have shapes {shapes}; they must be as long as each other")
        x = np.full((n, len(names)), np.nan)
        for name, column in columns.items():
            x[:, list(names).index(name)] = column
    x = as_floats(missing.cells(x))
    if x.ndim != 2 or x.shape[1] != len(names):
        raise ValueError(f"x has shape {x.shape}; this network reads rows of shape [n, {len(names)}]")
    return x


def _by_name(x: Any) -> dict[str, np.ndarray] | None:
    """The columns of a dict or of a frame; None if it is neither."""
    if not isinstance(x, Mapping):
        names = getattr(x, "column_names", getattr(x, "columns", None))  # of pyarrow; of pandas and polars
        if names is None:
            return None
        x = {name: x[name] for name in names}
    return {str(name): np.atleast_1d(np.asarray(column)) for name, column in x.items()}


def _numbers(name: str, column: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
    """The numbers of the categories in a column, NaN where a cell is hidden."""
    if column.dtype.kind in "biuf":
        return column.astype(float)
    numbers = {text: float(i) for i, text in enumerate(texts or ())}
    found = np.full(column.shape, np.nan)
    for row, cell in enumerate(column.tolist()):
        if isinstance(cell, str):
            if cell not in numbers:
                known = (
                    f"they are {', '.join(numbers)}" if texts else "the network has no texts for it: give `outcomes`"
                )
                raise ValueError(f"x: {name} holds {cell!r} in row {row}, which is none of its categories; {known}")
            found[row] = numbers[cell]
        elif not _is_missing(cell):
            if not isinstance(cell, numbers_of.Real):
                raise TypeError(f"x: {name} holds a {type(cell).__name__} in row {row}; a cell is a number or a text")
            found[row] = float(cell)
    return found


def _is_missing(cell: Any) -> bool:
    """Whether a cell is None, NaN, or the NA of pandas, whose comparison is neither true nor false."""
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell


def texts_of(x: Any, names: Any, tied: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The texts in columns that hold any, in the order of the alphabet; of those that share a table all together."""
    columns, found = _by_name(x) or {}, dict[str, set[str]]()
    for name, column in columns.items():
        texts = (
            {cell for cell in column.tolist() if isinstance(cell, str)} if column.dtype.kind not in "biuf" else set()
        )
        found.setdefault(tied.get(name, name), set()).update(texts)
    each = {name: tuple(sorted(found.get(tied.get(name, name), ()))) for name in names}
    return {name: texts for name, texts in each.items() if texts}


def sizes_promised(
    categories: Mapping[str, Any], outcomes: dict[str, tuple[str, ...]]
) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """The promised numbers of categories, and the texts of all variables that have any."""
    sizes = {}
    for name, said in categories.items():
        if not isinstance(said, numbers_of.Integral):
            outcomes = {**outcomes, name: tuple(str(text) for text in said)}
            sizes[name] = len(outcomes[name])
        elif len(outcomes.get(name, range(int(said)))) != said:
            raise ValueError(
                f"BayesNet: categories says that {name!r} has {said}, and its column holds the texts "
                f"{list(outcomes[name])}; give all texts in place of the number"
            )
        else:
            sizes[name] = int(said)
    return sizes, outcomes


def sizes_of(names: list[str], values: np.ndarray, given: dict[str, int], tied: dict[str, str]) -> dict[str, int]:
    """The number of categories of each variable, the largest among those that share a table."""
    sizes = {}
    for v, name in enumerate(names):
        seen = values[:, v][np.isfinite(values[:, v])]
        if name not in given and not len(seen):
            raise ValueError(f"BayesNet: {name!r} is never seen; say in `categories` how many it has")
        sizes[name] = int(given[name]) if name in given else int(seen.max()) + 1
    most: dict[str, int] = {}
    for name in names:
        owner = tied.get(name, name)
        most[owner] = max(most.get(owner, 0), sizes[name])
    return {name: most[tied.get(name, name)] for name in names}


def counted(
    graph: Graph, names: list[str], sizes: dict[str, int], values: np.ndarray, rows: np.ndarray, users: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of a table in the rows that show all of its variables, and the shares of the categories in all rows."""
    counts, seen = 0.0, 0.0
    parents_of = dict(graph)
    for user in users:
        family = [*parents_of[user], user]
        shape = tuple(sizes[name] for name in family)
        columns = values[:, [names.index(name) for name in family]]
        complete = ~np.isnan(columns).any(axis=1)
        place = np.ravel_multi_index(columns[complete].astype(int).T, shape)  # type: ignore[arg-type]
        counts = counts + np.bincount(place, rows[complete], math.prod(shape)).reshape(shape)
        there = ~np.isnan(columns[:, -1])
        # A little for each category: one that was never seen may be there all the same.
        seen = seen + UNSEEN + np.bincount(columns[there, -1].astype(int), rows[there], shape[-1])
    return np.asarray(counts), np.asarray(seen)
