"""Tables from CSV, Parquet and Arrow files, as frames."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import polars as pl

from jaxem import datasets
from jaxem.cli.errors import InputError
from jaxem.cli.table import dialect

PARQUET = (".parquet", ".pq")


ARROW = (".arrow", ".ipc", ".feather")


def read(
    source: str | Path, columns: Sequence[str], others: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> pl.DataFrame:
    """Columns of a CSV, Parquet or Arrow IPC file, or of a shipped table (`"flights"`).

    Columns of a CSV are text; `group` converts them to numbers, so that it can name a row without one.

    Args:
        source: the file, or the name of a shipped table.
        columns: to be fitted.
        others: other columns, by the name of the option that names them.

    Raises:
        InputError: no such file, not a table of a known kind, a missing column, no rows.
    """
    named = {"--columns": columns, **others}
    wanted = list(dict.fromkeys(name for names in named.values() for name in names))
    path, scan = opened(source, named)
    with readable(path):
        frame = scan(path).select(wanted).collect()
    points = style(path, wanted).with_points
    names = {*columns, *others.get("--order", ())}  # columns of groups and sequences need not be numeric
    frame = frame.with_columns(points(frame[name]) for name in wanted if name in names)
    if not frame.height:
        raise InputError(f"{path}: the table has no rows; there is nothing to fit")
    return frame


def opened(source: str | Path, named: Mapping[str, Sequence[str]]) -> tuple[Path, Callable[[Path], pl.LazyFrame]]:
    """Path of a table, and its reader.

    Args:
        source: as for `read`.
        named: columns that it must have, by the name of the option that names them.

    Raises:
        InputError: no such file, not a table of a known kind, a missing column.
    """
    path = datasets.path(str(source)) if str(source) in datasets.NAMES and not Path(source).exists() else Path(source)
    with readable(path):
        scan = _scanner(path, [name for names in named.values() for name in names])
        present = scan(path).collect_schema().names()
    for option, names in named.items():
        _require(path, present, names, option)
    return path, scan


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into InputErrors."""
    import pyarrow as pa

    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: the file is empty; it needs a line of column names and rows") from error
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: cannot be read as {_describe(path)} ({reason}); check or rewrite the file"
        ) from error


def _describe(path: Path) -> str:
    return "Parquet" if suffix(path) in PARQUET else "Arrow IPC" if suffix(path) in ARROW else "CSV"


def _scanner(path: Path, wanted: Sequence[str]) -> Callable[[Path], pl.LazyFrame]:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if not path.exists():
        shipped = f"; shipped tables are: {', '.join(datasets.NAMES)}" if not path.suffix else ""
        raise InputError(f"{path}: there is no such file; check the path{shipped}")
    kind = suffix(path)
    if kind in dialect.SEPARATORS:
        return style(path, wanted).scan
    if kind in PARQUET:
        return pl.scan_parquet
    if kind in ARROW:
        return _scan_arrow
    known = ", ".join([*dialect.SEPARATORS, *PARQUET, *ARROW])
    raise InputError(f"{path}: {kind or 'a name without an ending'} is not a known kind of table; use one of {known}")


def suffix(path: Path) -> str:
    """Ending of a name that determines the kind of table, in lower case."""
    endings = [ending.lower() for ending in path.suffixes] or [""]
    return endings[-2] if endings[-1] == ".gz" and len(endings) > 1 else endings[-1]


def style(path: Path, wanted: Sequence[str]) -> dialect.Dialect:
    """Dialect of a text table that should have the `wanted` columns; other files have no decimal commas."""
    usual = dialect.SEPARATORS.get(suffix(path))
    return dialect.read_off(path, usual, wanted) if usual else dialect.Dialect(",")


def _scan_arrow(path: Path) -> pl.LazyFrame:
    with path.open("rb") as file:
        stream = file.read(6) != b"ARROW1"
    return pl.read_ipc_stream(path).lazy() if stream else pl.scan_ipc(path)


def _require(path: Path, present: Sequence[str], wanted: Sequence[str], argument: str) -> None:
    for name in wanted:
        if name not in present:
            near = difflib.get_close_matches(name, present, 1)
            columns = ", ".join(present[:12]) + (", ..." if len(present) > 12 else "")
            written = f"'\"{near[0]}\"'" if near and "," in near[0] else "".join(near)
            hint = f"did you mean {written}?" if near else f"the columns are {columns}"
            raise InputError(f"{argument} {name}: {path} has no such column; {hint}")
