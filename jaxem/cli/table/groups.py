"""Rows of a table by group, checked and converted to numbers.

Row numbers in messages and results count the rows of data from 1, as a person does who looks at the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from jaxem.cli.columns import ColumnModel, ColumnUse
from jaxem.cli.errors import InputError, RowError
from jaxem.cli.table import dialect, steps
from jaxem.distributions.support import Support

MOST_CATEGORIES = 256


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Rows, group after group: those that count; of sequences all, because an unobserved step is a step.

    Attributes:
        kind: families of the columns.
        keys: `[G]` one row for each group, with the by-columns (or `group`).
        x: `[N, D]` float64, NaN where a cell is missing.
        size: `[G]` number of these rows in each group.
        n: `[G]` number of them that count.
        dropped: `[G]` number of rows of the table that do not: left out, or, in a sequence, unobserved.
        row: `[N]` their numbers in the table, from 1; 0 for a step that the table lacks altogether.
        group_of: `[total]` the group of every row of the table, in the table's order.
        first: `[N]` bool, where a sequence starts; None if the rows have no order.
        whole: whether a row counts only if it is complete, instead of with any observed cell.
        partly: number of rows of the table with some cells observed and others missing.
        notes: messages about how the table was read.
    """

    kind: ColumnModel
    keys: pl.DataFrame
    x: np.ndarray
    size: np.ndarray
    n: np.ndarray
    dropped: np.ndarray
    row: np.ndarray
    group_of: np.ndarray
    first: np.ndarray | None = None
    whole: bool = False
    partly: int = 0
    notes: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        """Noun for one value of the hidden variable: component or state."""
        return "component" if self.first is None else "state"

    @property
    def undivided(self) -> bool:
        """Whether the whole table is one group."""
        return self.keys.columns == ["group"] and len(self.n) == 1

    @cached_property
    def start(self) -> np.ndarray:
        """`[G]` index of the first row of each group."""
        return np.cumsum(self.size) - self.size

    @cached_property
    def seen(self) -> np.ndarray:
        """`[N]` bool: rows that count."""
        return counting(self.x, self.whole)

    @property
    def some(self) -> np.ndarray:
        """`[G]` index of a row of each group that counts; in a group without any, one of another."""
        there = np.flatnonzero(self.seen)
        return there[np.minimum(np.searchsorted(there, self.start), len(there) - 1)]

    @property
    def missing_cells(self) -> int:
        """Number of missing cells in rows that count."""
        return int(np.isnan(self.x[self.seen]).sum())

    @property
    def gaps_in_words(self) -> str:
        """Message on rows that are complete in part only; empty if there are none."""
        if not self.partly:
            return ""
        if not self.whole:
            lack = "lacks one of its cells" if self.missing_cells == 1 else "lack some of their cells"
            return (
                f"{self.partly:,} of the rows {lack}, {self.missing_cells:,} in all. EM took what was seen of them: "
                "the likelihood is that of the cells that are there (--missing em)."
            )
        fate = "left out" if self.first is None else "taken for steps that were not seen"
        why = f"{self.kind.words[0]} reads whole rows" if self.kind.whole_rows else "--missing drop"
        rows = (
            "1 row that lacks some of its cells was"
            if self.partly == 1
            else (f"{self.partly:,} rows that lack some of their cells were")
        )
        return f"{rows} {fate} ({why})."

    @cached_property
    def patterns(self) -> int:
        """Upper bound of the number of patterns in a group; 0 if all rows that count are complete.

        A power of two, so that like tables share a compilation.
        """
        if self.missing_cells == 0:
            return 0
        group = np.repeat(np.arange(len(self.n)), self.size)[self.seen]
        bits = np.packbits(np.isnan(self.x[self.seen]), axis=1)
        found = np.unique(np.column_stack([group, bits]), axis=0)[:, 0]
        return 1 << int(np.bincount(found).max() - 1).bit_length()

    @cached_property
    def has_gaps(self) -> np.ndarray:
        """`[G]` bool: groups with a missing cell in a row that counts."""
        gaps = np.isnan(self.x).any(axis=1) & self.seen
        return np.bincount(np.repeat(np.arange(len(self.n)), self.size)[gaps], minlength=len(self.n)) > 0

    @cached_property
    def lacks(self) -> np.ndarray:
        """`[G]` bool: groups with a column without any value."""
        result = np.ones(len(self.n), bool)
        some = self.size > 0
        if some.any():
            there = ~np.isnan(self.x) & self.seen[:, None]
            result[some] = ~np.logical_or.reduceat(there, self.start[some], axis=0).all(axis=1)
        return result

    def rows_in_words(self, n: int) -> str:
        """Number of rows that count, in words.

        >>> group(pl.DataFrame({"x": [1.0]}), ColumnModel.parse(["gaussian"], ["x"])).rows_in_words(1)
        '1 row with values'
        """
        row = "row" if n == 1 else "rows"
        return f"{n:,} complete {row}" if self.whole else f"{n:,} {row} with values"

    @cached_property
    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """`[N]` sequence of each row within its group (always 0 for rows without order), and its step."""
        count = np.arange(len(self.x))
        if self.first is None:
            return np.zeros_like(count), count - np.repeat(self.start, self.size)
        number = np.cumsum(self.first) - 1
        return number - np.repeat(number[self.start], self.size), count - np.flatnonzero(self.first)[number]

    @cached_property
    def sequences(self) -> np.ndarray:
        """`[G]` number of sequences."""
        return np.maximum.reduceat(self.place[0], self.start) + 1 if self.first is not None else np.ones_like(self.n)

    @cached_property
    def longest(self) -> np.ndarray:
        """`[G]` steps of the longest sequence; number of rows, if they have no order."""
        return np.maximum.reduceat(self.place[1], self.start) + 1 if self.first is not None else self.size

    @property
    def varies(self) -> np.ndarray:
        """`[G]` bool: groups with two different rows that count."""
        some = self.size > 0
        result = np.zeros(len(self.n), bool)
        if some.any():
            rows, at = np.where(self.seen[:, None], self.x, np.nan), self.start[some]
            # In a group without observed rows both are NaN, and NaN < NaN is False.
            low, high = (f.reduceat(rows, at, axis=0) for f in (np.fmin, np.fmax))
            result[some] = (low < high).any(axis=1)
        return result

    def rows_of(self, group: int) -> np.ndarray:
        """`[size, D]` rows of one group."""
        return self.x[self.start[group] : self.start[group] + self.size[group]]

    def label(self, group: int) -> str:
        """Key of a group, as text."""
        return ", ".join("(none)" if value is None else str(value) for value in self.keys.row(group))


def group(
    frame: pl.DataFrame,
    kind: ColumnModel,
    by: Sequence[str] = (),
    null: Sequence[str] = ("NA",),
    order: str | None = None,
    sequence: Sequence[str] = (),
    missing: str = "em",
    frequency: str = "",
) -> Grouped:
    """Rows of a table as numbers, in groups; rows with a null in any of the columns are left out and counted.

    Args:
        frame: holds `kind.columns`, `by`, `order` and `sequence`.
        kind: families of the columns.
        by: columns that name the group; none makes the whole table one group. A null is a group of its own.
        null: texts that stand for a null, in any column, as an empty field does.
        order: None for rows without order. Else each group is sequences, in the order of this column (`""`: in that of
            the table); a row that does not count is an unobserved step.
        sequence: columns that tell the sequences of a group apart.
        missing: `em`, and a row counts if it has any value (of families that read whole rows: if it is complete); or
            `drop`, and it counts if it is complete.
        frequency: distance of two steps, as `1d` or `1`: steps that the table lacks become unobserved steps.
            Without it the steps on both sides of a gap are neighbours.

    Raises:
        InputError: a value that the column's family cannot hold, with the first row that has it; an order that is
            missing for a row, or the same for two.
    """
    frame = with_nulls(frame, null)
    table, levels = numbers(frame, kind)
    whole = missing == "drop" or kind.whole_rows
    counts, any_cell, complete = (counting(table, rule) for rule in (whole, False, True))
    check_some(kind, np.asarray(~np.isnan(table).all(axis=0)), bool(counts.any()))
    keys, rows, total = groups(frame, by)
    group_of = np.repeat(np.arange(len(total)), total)
    back = np.empty_like(group_of)
    back[rows] = group_of
    kind, n = kind.with_levels(levels), np.bincount(back[counts], minlength=len(total))
    partly = int((any_cell & ~complete).sum())
    if order is None:
        rows = rows[counts[rows]]
        return Grouped(kind, keys, table[rows], n, n, total - n, rows + 1, back, None, whole, partly)
    part = np.zeros(len(back), int)
    if sequence:
        _, ordered, each = groups(frame, [*by, *(name for name in sequence if name not in by)])
        part[ordered] = np.repeat(np.arange(len(each)), each)
    found = steps.arranged(frame[order] if order else None, frequency, back, part)
    x = np.where(found.rows[:, None] < 0, np.nan, table[found.rows])
    size = np.bincount(found.group, minlength=len(total))
    return Grouped(kind, keys, x, size, n, size - n, found.rows + 1, back, found.first, whole, partly, found.notes)


def with_nulls(frame: pl.DataFrame, null: Sequence[str]) -> pl.DataFrame:
    """The table with nulls in place of the texts that stand for one, and of NaN if that is one of them."""
    nan = any(text.lower() == "nan" for text in null)

    def cells(column: pl.Series) -> pl.Series:
        if column.dtype.is_float():
            return column.fill_nan(None) if nan else column
        if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
            return column
        column = column.cast(pl.String)
        text = column.str.strip_chars()
        stands = text.is_in(["", *null])
        return column.set(stands | (text.str.to_lowercase() == "nan") if nan else stands, None)

    return frame.with_columns(cells(column) for column in frame)


def numbers(frame: pl.DataFrame, kind: ColumnModel) -> tuple[np.ndarray, list[list[str]]]:
    """`[n, D]` rows as numbers, NaN where a cell is missing, and the categories of each column, if it has any.

    Raises:
        RowError: a row that the column's family cannot hold.
    """
    read = [_column(frame[name], kind, i) for i, name in enumerate(kind.columns)]
    table = np.stack([values for values, _ in read], axis=1)
    if kind.reads is ColumnUse.ends:
        table = _ends(frame, kind, table)
    if kind.total:
        _check_total(kind.total, table)
    return table, [levels for _, levels in read]


def check_some(kind: ColumnModel, known: np.ndarray, counts: bool) -> None:
    """Raise InputError unless every column has a value (`[D]` bool) and some row counts."""
    if known.all() and counts:
        return
    where = "every row has a null in one of the columns"
    if not known.all():
        where = f"column {kind.columns[int(np.argmin(known))]} is null throughout"
    raise InputError(f"--columns {','.join(kind.columns)}: {where}; choose others")


def check_range(x: np.ndarray, row: np.ndarray, kind: ColumnModel, dtype: str) -> None:
    """Raise InputError for a number that the float type cannot hold; `row` `[n]` are the numbers of the rows."""
    # A missing cell is NaN, which is above nothing; an unknown end is infinite.
    beyond = (np.abs(x) > np.finfo(dtype).max) & ~np.isinf(x)
    if beyond.any():
        at, column = np.argwhere(beyond)[0]
        value, name = x[at, column], kind.columns[column]
        raise InputError(f"column {name}, row {row[at]}: {value:g} is beyond {dtype}; use --dtype float64, or rescale")


def counting(x: np.ndarray, whole: bool) -> np.ndarray:
    """`[N]` bool: rows that are complete, or, unless `whole`, have any value."""
    there = ~np.isnan(x)
    return np.asarray(there.all(axis=1) if whole else there.any(axis=1))


def _check_total(support: Support, table: np.ndarray) -> None:
    """Raise InputError unless the complete rows have an allowed sum."""
    total = table.sum(axis=1)
    wrong = ~np.isnan(total) & ~support.contains(total)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RowError("", row + 1, f": its sum of {total[row]:g} {support.outside}; {support.advice}")


def _ends(frame: pl.DataFrame, kind: ColumnModel, table: np.ndarray) -> np.ndarray:
    """Rows of a lower and an upper end, infinite where null."""
    lower, upper = np.isnan(table).T
    table = np.where(np.stack([lower & ~upper, upper & ~lower], axis=1), [-np.inf, np.inf], table)
    wrong = table[:, 0] > table[:, 1]
    if wrong.any():
        row, (low, high) = int(np.argmax(wrong)), kind.columns
        raise RowError(
            f"column {high}, ",
            row + 1,
            f": {frame[high][row]} is below the {frame[low][row]} of {low}; mend it, or leave it empty if the end is "
            "not known",
        )
    return table


def groups(frame: pl.DataFrame, by: Sequence[str]) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Sorted keys; indices of the rows of the first group, of the second, ...; and sizes of the groups."""
    if not by:
        return pl.DataFrame({"group": ["all"]}), np.arange(frame.height), np.array([frame.height])
    named = pl.DataFrame([_key(frame[name]) for name in by])
    row = next(name for name in ("row", "row_", "row__", "row___", "row____") if name not in by)
    groups = named.with_row_index(row).group_by(by).agg(pl.col(row)).sort(by, nulls_last=True)
    order = groups[row].explode().to_numpy().astype(np.int64)
    return groups.select(by), order, groups[row].list.len().to_numpy().astype(np.int64)


def _key(column: pl.Series) -> pl.Series:
    """A by-column; if it is text of whole numbers only, as from a CSV, as numbers."""
    if column.dtype.is_nested():
        raise InputError(f"--by {column.name}: the column holds {column.dtype}; group by text, numbers or dates")
    if column.dtype == pl.String:
        whole = column.cast(pl.Int64, strict=False)
        if whole.null_count() == column.null_count() and (whole.cast(pl.String) == column).all():
            return whole
    return column


def _column(column: pl.Series, kind: ColumnModel, i: int) -> tuple[np.ndarray, list[str]]:
    """`[n]` float64 with NaN for nulls, and the categories if there are any."""
    if kind.words[i] == "categorical":
        return _encode(column)
    supports = kind.supports(i)
    numbers = _numbers(column, any(support.words for support in supports))
    _refuse(column, numbers.is_nan(), "is not a number", "mark missing values as null, or give --null NaN")
    if not all(support.infinite for support in supports):
        _refuse(column, numbers.is_infinite(), "is infinite", "mend or remove that row")
    for support in supports:
        _refuse(column, ~support.contains(numbers), support.outside, support.advice)
    return numbers.fill_null(float("nan")).to_numpy().copy(), []


def _numbers(column: pl.Series, words: bool) -> pl.Series:
    """A column as float64 with nulls; NaN only where the table itself has it."""
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        text = column.cast(pl.String).str.strip_chars()
        if words:
            text = text.str.to_lowercase().replace({"true": "1", "false": "0"})
        numbers = text.cast(pl.Float64, strict=False)
        hint = "mend it, give --null with the text that stands for a missing value, or use --family categorical"
        if text.str.contains(dialect.COMMA_NUMBER).any():
            hint = "write decimals with a point, and no separators of thousands"
        _refuse(column, numbers.is_null() & text.is_not_null(), "is not a number", hint)
    elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        numbers = column.cast(pl.Float64)
    else:
        raise InputError(f"--columns {column.name}: the column holds {column.dtype}; it must hold numbers")
    return numbers


def _refuse(column: pl.Series, bad: pl.Series, wrong: str, advice: str) -> None:
    row = bad.fill_null(False).arg_max()
    if row is not None and bad[row]:
        value = column[row]
        shown = repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else value
        raise RowError(f"column {column.name}, ", row + 1, f": {shown} {wrong}; {advice}")


def _encode(column: pl.Series) -> tuple[np.ndarray, list[str]]:
    """Categories as numbers from zero, in the order of their names (of their values, if they are numbers)."""
    if column.dtype.is_nested():
        raise InputError(f"--columns {column.name}: the column holds {column.dtype}; it must hold text or numbers")
    text = column.dtype in (pl.String, pl.Categorical, pl.Enum)
    column = _key(column.cast(pl.String)) if text else column
    levels = column.drop_nulls().unique().sort()
    if len(levels) > MOST_CATEGORIES:
        raise InputError(
            f"--columns {column.name}: it holds {len(levels):,} different values, too many for categories "
            f"(at most {MOST_CATEGORIES}); is it the right column?"
        )
    codes = column.replace_strict(levels, pl.Series(range(len(levels)), dtype=pl.Float64), default=None)
    names = levels.cast(pl.String).to_list()
    return codes.cast(pl.Float64).fill_null(float("nan")).to_numpy().copy(), names
