"""Batches of rows from arrays and files, read ahead in a thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.arguments import said_of, whole
from jaxem.data.arrays import numbers

ROWS = 65_536
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".ipc", ".feather")


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches that can be iterated over repeatedly. `batches` makes one.

    Attributes:
        open: a function that begins to read and returns an iterator.
    """

    open: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.open()


def batches(source: Any, columns: Sequence[str] | None = None, *, weight: Any = None, rows: int = ROWS) -> Batches:
    """Rows in batches that are read again for each pass: the input of `fit_stream`.

    Args:
        source: an array `[n]` or `[n, D]` (a NumPy memmap stays on disk), or a frame; or the path of a Parquet, Arrow
            IPC or `.npy` file, or a list of such paths, which are read one after the other.
        columns: of Parquet and Arrow files, in the order of the model; all if left out. A null becomes NaN: missing.
        weight: `[n]` weights of the rows of an array; the name of the column that holds them in Parquet and Arrow.
        rows: of a batch; the last may have fewer.

    Returns:
        Something to iterate over, as often as you like: arrays `[rows, D]`, or pairs of these and `[rows]` weights.
        From Parquet and Arrow they are float32 if all columns are (or float16), else float64.

    Raises:
        TypeError: a source of another kind.
        ValueError: a file of another kind, a missing or non-numeric column, no rows in a batch.

    >>> import numpy as np, jaxem as jem
    >>> [batch.shape for batch in jem.batches(np.zeros((5, 2)), rows=2)]
    [(2, 2), (2, 2), (1, 2)]
    """
    rows = whole(rows, "rows")
    paths = _paths(source)
    if paths and all(path.suffix in PARQUET + ARROW for path in paths):
        names = _columns(paths[0], columns, weight)
        return Batches(lambda: _table_batches(paths, names, weight, rows))
    if not all(path.suffix == ".npy" for path in paths):
        known = ", ".join([*PARQUET, *ARROW, ".npy"])
        raise ValueError(f"source {', '.join(map(str, paths))}: files must all be of one kind, of {known}")
    arrays: list[Any] = [np.load(path, mmap_mode="r") for path in paths] or [source]
    if not all(hasattr(array, "shape") and len(array.shape) for array in arrays):
        raise TypeError(
            f"source is {said_of(source)}; it must be an array of rows, a frame, a path, or a list of paths"
        )
    if not isinstance(arrays[0], (np.ndarray, jax.Array)):
        arrays = [numbers(arrays[0], "source")]
    if columns is not None:
        raise ValueError("columns is for Parquet and Arrow files; cut the columns out of an array")
    n, weight = sum(len(array) for array in arrays), None if weight is None else numbers(weight, "weight")
    if weight is not None and np.shape(weight) != (n,):
        raise ValueError(f"weight has shape {np.shape(weight)}; with {n} rows it must be ({n},)")
    return Batches(lambda: _array_batches(arrays, weight, rows))


def _paths(source: Any) -> list[Path]:
    """The paths, if the source is one path or several; else None."""
    some = [source] if isinstance(source, (str, Path)) else source
    named = isinstance(some, (list, tuple)) and all(isinstance(path, (str, Path)) for path in some)
    return [Path(path) for path in some] if named else []


def _array_batches(arrays: Sequence[Any], weight: Any, rows: int) -> Iterator[Any]:
    at = 0
    for array in arrays:
        for start in range(0, len(array), rows):
            x = np.asarray(numbers(array[start : start + rows], "source"))
            yield x if weight is None else (x, np.asarray(weight[at : at + len(x)]))
            at += len(x)


def _columns(path: Path, columns: Sequence[str] | None, weight: str | None) -> list[str]:
    """Names of the columns to fit: those given, or all but that of the weights."""
    present = _schema(path).names
    for name in columns or ():
        if name not in present:
            raise ValueError(f"columns: {path} has no column {name}; it has {', '.join(present)}")
    return list(columns or [name for name in present if name != weight])


def _table_batches(paths: Sequence[Path], names: list[str], weight: str | None, rows: int) -> Iterator[Any]:
    """Batches of exactly `rows` rows, whatever the sizes of the row groups, filled column by column."""
    wanted = [*names, weight] if weight is not None else names
    dtype = _float_type(paths, wanted)
    table, filled = np.empty((rows, len(wanted)), dtype), 0
    for path in paths:
        for piece in record_batches(path, wanted, rows):
            at = 0
            while at < piece.num_rows:
                some = piece.slice(at, rows - filled)
                for i in range(len(wanted)):
                    table[filled : filled + some.num_rows, i] = _numbers(some.column(i), dtype)
                at, filled = at + some.num_rows, filled + some.num_rows
                if filled == rows:
                    yield _with_weight(table, weight)
                    table, filled = np.empty_like(table), 0
    if filled:
        yield _with_weight(table[:filled], weight)


def _with_weight(table: np.ndarray, weight: str | None) -> Any:
    return table if weight is None else (table[:, :-1], table[:, -1])


def _float_type(paths: Sequence[Path], names: Sequence[str]) -> np.dtype:
    """float32 if all columns are, else float64; ValueError for a column that is missing or not numeric."""
    import pyarrow as pa

    narrow = True
    for path in paths:
        schema = _schema(path)
        for name in names:
            if name not in schema.names:
                raise ValueError(f"{path} has no column {name}; it has {', '.join(schema.names)}")
            kind = schema.field(name).type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
                raise ValueError(f"column {name} of {path} holds {kind}; it must hold numbers")
            narrow &= kind in (pa.float16(), pa.float32())
    return np.dtype(np.float32 if narrow else np.float64)


def _numbers(column: Any, dtype: np.dtype) -> np.ndarray:
    import pyarrow as pa

    wanted = pa.from_numpy_dtype(dtype)
    return (column if column.type == wanted else column.cast(wanted, safe=False)).to_numpy(zero_copy_only=False)


def _schema(path: Path) -> Any:
    if path.suffix.lower() in PARQUET:
        parquet = _arrow("pyarrow.parquet")
        return parquet.read_schema(path)
    with _arrow_file(path) as file:
        return file.schema


def record_batches(path: Path, names: Sequence[str], rows: int) -> Iterator[Any]:
    """Record batches of some columns of a Parquet or Arrow file; from Parquet they have at most `rows` rows."""
    names = list(names)
    if path.suffix.lower() in PARQUET:
        # Read through a small buffer: otherwise pyarrow holds the whole file before it ends.
        with _arrow("pyarrow.parquet").ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for piece in file.iter_batches(batch_size=rows, columns=names, use_threads=False):
                yield piece.select(names)
        return
    with _arrow_file(path) as file:
        if hasattr(file, "get_batch"):
            for i in range(file.num_record_batches):
                yield file.get_batch(i).select(names)
        else:
            for piece in file:
                yield piece.select(names)


def _arrow_file(path: Path) -> Any:
    """Reader of an Arrow IPC file or stream, memory-mapped."""
    arrow = _arrow("pyarrow.ipc")
    import pyarrow as pa

    with path.open("rb") as file:
        stream = file.read(6) != b"ARROW1"
    source = pa.memory_map(str(path))
    return arrow.open_stream(source) if stream else arrow.open_file(source)


def _arrow(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError("Parquet and Arrow files need the package pyarrow: pip install 'jaxem[cli]'") from None


def read_ahead(source: Iterable[Any], prepare: Callable[[Any], Any]) -> Iterator[Any]:
    """`prepare(batch)` for each batch; the next one is read and prepared while the current one is worked on.

    Exceptions of the reader are raised here unchanged. The reading thread ends with the iteration.
    """
    # `jax_enable_x64` and the default device are thread-local in JAX: pass on the caller's.
    wide, device = jnp.result_type(float) == jnp.float64, jax.config.jax_default_device  # type: ignore
    end, iterator = object(), iter(source)

    def following() -> Any:
        with jax.enable_x64(bool(wide)), jax.default_device(device):
            batch = next(iterator, end)
            return end if batch is end else prepare(batch)

    with ThreadPoolExecutor(1, thread_name_prefix="jaxem-reading") as pool:
        coming = pool.submit(following)
        while (batch := coming.result()) is not end:
            coming = pool.submit(following)
            yield batch
