"""Tables in: reading files, checking columns, putting rows into groups.

Row numbers in messages and results count the rows of data from 1, as a person does who looks at the file.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from jaxem import datasets
from jaxem.errors import InputError
from jaxem.kinds import Kind

MOST_CATEGORIES = 256
CSV = {".csv": ",", ".tsv": "\t", ".txt": ","}
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".ipc", ".feather")


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Complete rows, group after group.

    Attributes:
        kind: what the columns are.
        keys: `[G]` one row for each group, with the by-columns (or `group`).
        x: `[N, D]` float64, the rows without nulls.
        n: `[G]` how many of them each group has.
        dropped: `[G]` rows left out for nulls.
        row: `[N]` their numbers in the table, from 1.
        group_of: `[total]` the group of every row of the table, in the table's order.
    """

    kind: Kind
    keys: pl.DataFrame
    x: np.ndarray
    n: np.ndarray
    dropped: np.ndarray
    row: np.ndarray
    group_of: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """`[G]` where the rows of each group begin."""
        return np.cumsum(self.n) - self.n

    @property
    def varies(self) -> np.ndarray:
        """`[G]` bool: are there two rows that differ?"""
        some = self.n > 0
        result = np.zeros(len(self.n), bool)
        if some.any():
            at = self.start[some]
            low, high = (f.reduceat(self.x, at, axis=0) for f in (np.minimum, np.maximum))
            result[some] = (low < high).any(axis=1)
        return result

    def rows_of(self, group: int) -> np.ndarray:
        """`[n, D]` the complete rows of one group."""
        return self.x[self.start[group] : self.start[group] + self.n[group]]

    def label(self, group: int) -> str:
        """The group's key, as text."""
        return ", ".join("(none)" if value is None else str(value) for value in self.keys.row(group))


def read(source: str | Path, columns: Sequence[str], by: Sequence[str] = ()) -> pl.DataFrame:
    """The named columns of a CSV, Parquet or Arrow IPC file, or of a shipped table (`"flights"`).

    Columns of a CSV come as text; `group` makes numbers of them, and can so name the row that holds none.

    Raises:
        InputError: no such file, not a table of a known kind, a missing column, no rows.
    """
    path = datasets.path(str(source)) if str(source) in datasets.NAMES and not Path(source).exists() else Path(source)
    wanted = list(dict.fromkeys([*by, *columns]))
    scan = _scanner(path)
    try:
        present = scan(path).collect_schema().names()
        _require(path, present, columns, "--columns")
        _require(path, present, by, "--by")
        frame = scan(path).select(wanted).collect()
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: the file is empty; it needs a line of column names and rows") from error
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: cannot be read as {_describe(path)} ({reason}); check or rewrite the file"
        ) from error
    if not frame.height:
        raise InputError(f"{path}: the table has no rows; there is nothing to fit")
    return frame


def _describe(path: Path) -> str:
    return "Parquet" if path.suffix in PARQUET else "Arrow IPC" if path.suffix in ARROW else "CSV"


def _scanner(path: Path) -> Callable[[Path], pl.LazyFrame]:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if not path.exists():
        shipped = f"; shipped tables are: {', '.join(datasets.NAMES)}" if not path.suffix else ""
        raise InputError(f"{path}: there is no such file; check the path{shipped}")
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind in CSV:
        return lambda path: pl.scan_csv(path, separator=CSV[kind], infer_schema=False)
    if kind in PARQUET:
        return pl.scan_parquet
    if kind in ARROW:
        return _scan_arrow
    known = ", ".join([*CSV, *PARQUET, *ARROW])
    raise InputError(f"{path}: {kind or 'a name without an ending'} is not a known kind of table; use one of {known}")


def _scan_arrow(path: Path) -> pl.LazyFrame:
    with path.open("rb") as file:
        stream = file.read(6) != b"ARROW1"
    return pl.read_ipc_stream(path).lazy() if stream else pl.scan_ipc(path)


def _require(path: Path, present: Sequence[str], wanted: Sequence[str], argument: str) -> None:
    for name in wanted:
        if name not in present:
            near = difflib.get_close_matches(name, present, 1)
            columns = ", ".join(present[:12]) + (", ..." if len(present) > 12 else "")
            hint = f"did you mean {near[0]}?" if near else f"the columns are {columns}"
            raise InputError(f"{argument} {name}: {path} has no such column; {hint}")


def group(frame: pl.DataFrame, kind: Kind, by: Sequence[str] = (), missing: Sequence[str] = ("NA",)) -> Grouped:
    """The rows of a table as numbers, in groups; rows with a null in any of the columns are left out and counted.

    Args:
        frame: holds `kind.columns` and `by`.
        kind: which family reads which columns.
        by: columns that name the group; none makes the whole table one group. A null is a group of its own.
        missing: texts that stand for a null in columns of numbers, as an empty field does.

    Raises:
        InputError: a value that the column's family cannot hold, with the first row that has it.
    """
    each = zip(kind.columns, kind.words, kind.trials, strict=True)
    read = [_column(frame[name], word, trials, missing) for name, word, trials in each]
    table = np.stack([values for values, _ in read], axis=1)
    complete: np.ndarray = np.isfinite(table).all(axis=1)  # type: ignore[assignment]
    if not complete.any():
        empty = [name for name, column in zip(kind.columns, table.T, strict=True) if np.isnan(column).all()]
        where = f"column {empty[0]} is null throughout" if empty else "every row has a null in one of the columns"
        raise InputError(f"--columns {','.join(kind.columns)}: {where}; choose others")
    keys, order, size = _groups(frame, by)
    group_of = np.repeat(np.arange(len(size)), size)
    kept = complete[order]
    n = np.bincount(group_of[kept], minlength=len(size))
    back = np.empty_like(group_of)
    back[order] = group_of
    rows = order[kept]
    kind = kind.with_levels([levels for _, levels in read])
    return Grouped(kind, keys, table[rows], n, size - n, rows + 1, back)


def _groups(frame: pl.DataFrame, by: Sequence[str]) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """The keys, sorted; the rows of the first group, of the second, ...; and how many each has."""
    if not by:
        return pl.DataFrame({"group": ["all"]}), np.arange(frame.height), np.array([frame.height])
    named = pl.DataFrame([_key(frame[name]) for name in by])
    row = next(name for name in ("row", "row_", "row__", "row___", "row____") if name not in by)
    groups = named.with_row_index(row).group_by(by).agg(pl.col(row)).sort(by, nulls_last=True)
    order = groups[row].explode().to_numpy().astype(np.int64)
    return groups.select(by), order, groups[row].list.len().to_numpy().astype(np.int64)


def _key(column: pl.Series) -> pl.Series:
    """A by-column; text that holds whole numbers throughout, as it comes from a CSV, becomes numbers."""
    if column.dtype.is_nested():
        raise InputError(f"--by {column.name}: the column holds {column.dtype}; group by text, numbers or dates")
    if column.dtype == pl.String:
        whole = column.cast(pl.Int64, strict=False)
        if whole.null_count() == column.null_count() and (whole.cast(pl.String) == column).all():
            return whole
    return column


def _column(column: pl.Series, word: str, trials: int, missing: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """`[n]` float64 with NaN for nulls, and the categories if it has any."""
    if word == "categorical":
        return _encode(column, missing)
    numbers = _numbers(column, word, missing)
    _refuse(column, numbers.is_nan(), "is not a number", "mark missing values as null, or give --missing NaN")
    _refuse(column, numbers.is_infinite(), "is infinite", "mend or remove that row")
    whole = (numbers >= 0) & (numbers == numbers.floor())
    if word == "poisson":
        _refuse(column, ~whole, "is not a count (0, 1, 2, ...)", "mend it, or choose another --family")
    if word == "binomial":
        _refuse(column, ~whole, "is not a count (0, 1, 2, ...)", "mend it, or choose another --family")
        _refuse(column, numbers > trials, f"is above the {trials} of --trials", "mend it, or raise --trials")
    if word == "bernoulli":
        _refuse(column, (numbers != 0) & (numbers != 1), "is neither 0 nor 1", "mend it, or choose another --family")
    return numbers.fill_null(float("nan")).to_numpy().copy(), []


def _numbers(column: pl.Series, word: str, missing: Sequence[str]) -> pl.Series:
    """float64, with nulls; NaN only where the table itself says so."""
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        text = column.cast(pl.String).str.strip_chars()
        text = text.set(text.is_in(["", *missing]), None)
        if word == "bernoulli":
            text = text.str.to_lowercase().replace({"true": "1", "false": "0"})
        numbers = text.cast(pl.Float64, strict=False)
        hint = "mend it, give --missing with the text that stands for a missing value, or use --family categorical"
        _refuse(column, numbers.is_null() & text.is_not_null(), "is not a number", hint)
    elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        numbers = column.cast(pl.Float64)
    else:
        raise InputError(f"--columns {column.name}: the column holds {column.dtype}; it must hold numbers")
    return numbers.fill_nan(None) if any(text.lower() == "nan" for text in missing) else numbers


def _refuse(column: pl.Series, bad: pl.Series, wrong: str, advice: str) -> None:
    row = bad.fill_null(False).arg_max()
    if row is not None and bad[row]:
        value = column[row]
        shown = repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else value
        raise InputError(f"column {column.name}, row {row + 1}: {shown} {wrong}; {advice}")


def _encode(column: pl.Series, missing: Sequence[str]) -> tuple[np.ndarray, list[str]]:
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
