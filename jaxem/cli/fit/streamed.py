"""The main job for one table that exceeds memory: mixtures of all its rows, streamed.

The table is read once, piece by piece: its cells are checked, and the rows that count are written as numbers into a
file in the folder of the results, which every step of EM then reads. Some rows, evenly spaced, are kept (`Sample`):
fits start from them, and the report draws them. A table of fewer rows than those is its own sample, and its
results are those of `jaxem.cli.fit.run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

import jaxem as jem
from jaxem import priors
from jaxem.cli.columns import ColumnModel
from jaxem.cli.errors import InputError, RowError
from jaxem.cli.fit import frames
from jaxem.cli.fit.result import Outcome, belonging, free_numbers, scored
from jaxem.cli.fit.run import compilation_seconds, starting_models
from jaxem.cli.fit.schedule import plan, stack
from jaxem.cli.fit.settings import Settings
from jaxem.cli.table import dialect, files, groups
from jaxem.cli.table.groups import Grouped
from jaxem.data.batches import ROWS, Batches, read_ahead, record_batches
from jaxem.evaluation import criteria
from jaxem.fitting.finish import best_of
from jaxem.fitting.sources import multihost
from jaxem.fitting.sources.streamed import fit_starts, surveyed
from jaxem.fitting.sources.summary import DatasetSummary, Spaced
from jaxem.latent.components import narrow

COPIES = 6
"""Copies of the cells of one large group in the ordinary job: as a table, as numbers, in slabs, in fits."""

PIECE = 1 << 23
"""Bytes in a piece of a CSV."""


def needed(source: str | Path, columns: Sequence[str]) -> float:
    """Bytes of memory that a table would take in the ordinary job.

    Parquet and Arrow files store their number of rows; that of a CSV is estimated from the length of its first lines.

    Raises:
        InputError: as `files.opened`.
    """
    path, _ = files.opened(source, {"--columns": columns})
    with files.readable(path):
        return COPIES * 8.0 * len(columns) * _rows(path, columns)


def _rows(path: Path, columns: Sequence[str]) -> float:
    kind = files.suffix(path)
    if kind in files.PARQUET:
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    if kind in files.ARROW:
        return sum(piece.num_rows for piece in record_batches(path, columns, ROWS))
    with dialect.unpacked(path) as file:
        start = file.read(1 << 20)
    # Text is usually compressed to a quarter.
    size = path.stat().st_size * (4 if path.suffix.lower() == ".gz" else 1)
    return size / max(len(start), 1) * start.count(b"\n")


@dataclasses.dataclass(frozen=True)
class Sample(Grouped):
    """Some rows of a table that count, as one group, with counts over the whole table.

    Attributes:
        cells: number of missing cells in all rows that count.
    """

    cells: int = 0

    @property
    def missing_cells(self) -> int:
        """Number of missing cells in the whole table."""
        return self.cells


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose rows are in files.

    Attributes:
        grouped: a sample of them.
        rows: `[n, D]` those that count, as numbers of the type `dtype`, one after the other.
        counts: a byte for each row of the table: whether it counts.
        share: index of this process, and number of processes. Batches are dealt out in turn; a process
            keeps only its own, and process 0 all, because it assigns the rows at the end.
    """

    grouped: Sample
    rows: Path
    counts: Path
    dtype: np.dtype
    share: tuple[int, int]

    @property
    def batches(self) -> Batches:
        """The rows that count, as a family reads them."""
        return Batches(self._batches)

    def _batches(self) -> Iterator[np.ndarray]:
        index, processes = self.share
        others = ROWS * (processes - 1) if index == 0 else 0
        with self.rows.open("rb") as file:
            while len(batch := self.some(file, ROWS)):
                yield batch
                file.seek(others * len(self.grouped.kind.columns) * self.dtype.itemsize, os.SEEK_CUR)

    def some(self, file: BinaryIO, rows: int) -> np.ndarray:
        """The next rows of an open file, as a family reads them."""
        columns = len(self.grouped.kind.columns)
        return self.grouped.kind.rows(np.fromfile(file, self.dtype, rows * columns).reshape(-1, columns))


@contextlib.contextmanager
def read(
    source: str | Path,
    kind: ColumnModel,
    null: Sequence[str],
    missing: str,
    dtype: str,
    out: Path,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Table]:
    """Rows of a table, checked as by `groups.group`, in temporary files in the folder `out`.

    Of several processes each reads the whole table, and keeps its `share`.

    Raises:
        InputError: as of `files.read` and `groups.group`, and `parsing.check_range`.
    """
    with tempfile.TemporaryDirectory(prefix=".rows.", dir=out) as folder:
        try:
            table = _read(source, kind, null, missing, np.dtype(dtype), Path(folder), share)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--out {out}: the rows cannot be kept there ({reason}); name another folder") from error
        yield table


def _read(
    source: str | Path,
    kind: ColumnModel,
    null: Sequence[str],
    missing: str,
    dtype: np.dtype,
    folder: Path,
    share: tuple[int, int],
) -> Table:
    path, _ = files.opened(source, {"--columns": kind.columns})
    whole, before = missing == "drop" or kind.whole_rows, _categories(path, kind, null)
    sample, known, levels = Spaced(), np.zeros(len(kind.columns), bool), []
    total = n = partly = cells = 0
    with (folder / "rows").open("wb") as rows, (folder / "counts").open("wb") as counts:
        for frame in _frames(path, kind.columns):
            try:
                frame = groups.with_nulls(pl.concat([before, frame], how="diagonal"), null)
                x, levels = groups.numbers(frame, kind)
            except RowError as error:
                raise error.further_down(total - before.height) from None
            x = x[before.height :]
            number = np.arange(total, total + len(x)) + 1
            groups.check_range(x, number, kind, dtype.name)
            count = groups.counting(x, whole)
            known |= ~np.isnan(x).all(axis=0)
            partly += int((groups.counting(x, False) & ~groups.counting(x, True)).sum())
            kept = x[count]
            cells += int(np.isnan(kept).sum())
            sample.add((kept, number[count]))
            total, n = total + len(x), n + len(kept)
            if share[0] > 0:
                kept = kept[np.arange(n - len(kept), n) // ROWS % share[1] == share[0]]
            rows.write(np.ascontiguousarray(kept, dtype).data)
            counts.write(count.data)
    if not total:
        raise InputError(f"{path}: the table has no rows; there is nothing to fit")
    groups.check_some(kind, known, n > 0)
    x, number = (np.concatenate(pieces) for pieces in zip(*sample.pieces, strict=True))
    grouped = Sample(
        kind=kind.with_levels(levels),
        keys=pl.DataFrame({"group": ["all"]}),
        x=x,
        size=np.array([len(x)]),
        n=np.array([n]),
        dropped=np.array([total - n]),
        row=number,
        group_of=np.broadcast_to(0, total),
        whole=whole,
        partly=partly,
        cells=cells,
    )
    return Table(grouped, folder / "rows", folder / "counts", dtype, share)


def _frames(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Some columns of a table, piece by piece; those of a CSV as text."""
    with files.readable(path):
        for piece in _csv(path, columns) if files.suffix(path) in dialect.SEPARATORS else _arrow(path, columns):
            yield from piece.iter_slices(ROWS)


def _arrow(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    return (pl.DataFrame(pl.from_arrow(piece)) for piece in record_batches(path, columns, ROWS))


def _csv(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Pieces of text, each under the names of the columns, for the same reader as whole files."""
    style = files.style(path, columns)
    with style.open(path) as file:
        names, text = b"", b""
        while more := file.read(PIECE):
            text += more
            if not names:
                end = _end_of_row(text, text.find(b"\n"), 1)
                names, text = text[:end], text[end:]
            end = _end_of_row(text, text.rfind(b"\n"), -1)
            if end:
                yield _parsed(names + text[:end], columns, style)
                text = text[end:]
        if text:
            yield _parsed(names + text, columns, style)


def _parsed(text: bytes, columns: Sequence[str], style: dialect.Dialect) -> pl.DataFrame:
    frame = pl.read_csv(text, separator=style.separator, infer_schema=False).select(columns)
    return frame.with_columns(style.with_points(column) for column in frame)


def _end_of_row(text: bytes, at: int, towards: int) -> int:
    """Position behind the first newline outside quotes, from the one at `at` in a direction; 0 if there is none."""
    while at >= 0 and text.count(b'"', 0, at) % 2:
        at = text.find(b"\n", at + 1) if towards > 0 else text.rfind(b"\n", 0, at)
    return at + 1


def _categories(path: Path, kind: ColumnModel, null: Sequence[str]) -> pl.DataFrame:
    """All values of categorical columns: read in front of each piece, they get the same numbers in all."""
    names = [name for name, word in zip(kind.columns, kind.words, strict=True) if word == "categorical"]
    found = [pl.DataFrame()] * len(names)
    for piece in _frames(path, names) if names else ():
        frame = groups.with_nulls(piece, null)
        for i, name in enumerate(names):
            found[i] = (
                pl.concat([found[i], frame.select(name)]).unique() if found[i].width else frame.select(name).unique()
            )
            if found[i].height > groups.MOST_CATEGORIES + 1:
                groups.numbers(found[i], ColumnModel.parse(["categorical"], [name]))  # raises the error
    return pl.concat(found, how="horizontal") if found else pl.DataFrame()


def run(
    table: Table, settings: Settings, progress: Callable[..., Any] | None = None
) -> tuple[Outcome, Assignments | None]:
    """Fit mixtures to all rows of a table, and choose one; and the component of every row, if requested.

    As `jaxem.cli.fit.run.run`, for one group. All processes return the same result.

    Raises:
        InputError: another process is dead.
    """
    try:
        return _run(table, settings, progress)
    except jax.errors.JaxRuntimeError as error:
        if table.share[1] == 1:
            raise
        reason = str(error).splitlines()[0]
        raise InputError(
            f"another of the {table.share[1]} processes is gone ({reason}); run all of them again"
        ) from None


def _run(table: Table, settings: Settings, progress: Callable[..., Any] | None) -> tuple[Outcome, Assignments | None]:
    began = time.perf_counter()
    outcome, grouped = Outcome.empty(table.grouped, settings), table.grouped
    shapes = plan(grouped, outcome.fittable, settings.components, settings.restarts)
    if not shapes.slabs:
        return outcome, None
    (slab,), prior = shapes.slabs, priors.Weak() if settings.prior == "weak" else None
    device, wide = jax.local_devices(backend=settings.device)[0], settings.dtype == "float64"
    with compilation_seconds() as compiling, jax.enable_x64(wide), jax.default_device(device):
        starts = starting_models(grouped.kind, settings, slab, *stack(grouped, slab, settings.dtype))
        fits: list[tuple[Any, ...]] = []
        found = surveyed(
            _together([starts[settings.components[0]]]), table.batches, prior, processes=table.share[1] > 1
        )
        for capacity, counts in shapes.capacities:
            models = _together([narrow(starts[k], capacity) for k in counts])
            tried = fit_starts(
                models, table.batches, found, jem.EM(), tol=settings.tol, max_steps=settings.max_steps
            )  # fmt: skip
            most = max(settings.components)
            fits += [(*_best(tried, i, settings.restarts), free_numbers(starts[k], most)) for i, k in enumerate(counts)]
            outcome.fits += len(counts) * settings.restarts
            if progress is not None:
                progress(outcome.fits, len(settings.components) * settings.restarts)
        entropy = _entropies(table, found, [model for model, *_ in fits])
        scores, picked, chosen = scored(fits, entropy, settings, grouped.n)
        outcome.store(slab, scores, picked, chosen, None)
    outcome.seconds, outcome.compile_seconds = time.perf_counter() - began, compiling()
    return outcome, Assignments(table, found, outcome) if settings.assign else None


def _together(starts: Sequence[Any]) -> Any:
    """Sets of starts `[1, restarts]` along a single axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate([leaf[0] for leaf in leaves])), *starts)


def _best(fits: jem.Fit, i: int, restarts: int) -> tuple[Any, ...]:
    """Best fit of the i-th set of starts: model, log-likelihood, steps and status, each with an axis of one."""
    some = slice(i * restarts, (i + 1) * restarts)
    one = best_of(jax.tree.map(lambda leaf: np.asarray(leaf[some]), fits))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], (one.model, one.log_likelihood, one.steps, one.status))


def _entropies(table: Table, found: DatasetSummary, models: list[Any]) -> np.ndarray:
    """`[1, C]` posterior entropy of each model's components, over all rows."""
    parts = [
        np.asarray(_undecided(models, x, weight), float) for x, weight, _ in read_ahead(table.batches, found.laid_out)
    ]
    own = np.sum(parts, axis=0)
    return np.asarray(multihost.joined(own, jnp.add) if found.shared else own)[None]


@jax.jit
def _undecided(models: list[Any], x: Any, weight: jax.Array) -> jax.Array:
    return jnp.stack([criteria.entropy(jax.tree.map(lambda leaf: leaf[0], model), x, weight) for model in models])


@dataclasses.dataclass(frozen=True)
class Assignments:
    """Component of every row of a table, computed piece by piece while it is written."""

    table: Table
    found: DatasetSummary
    outcome: Outcome

    def write_parquet(self, path: Path) -> None:
        """Write the frame of `frames.assignments` into a file."""
        import pyarrow.parquet as pq

        with contextlib.ExitStack() as files:
            writer = None
            for frame in self._frames():
                piece = frame.to_arrow()
                writer = writer or files.enter_context(pq.ParquetWriter(path, piece.schema))
                writer.write_table(piece)

    def _frames(self) -> Iterator[pl.DataFrame]:
        settings, before = self.outcome.settings, 0
        device, wide = jax.local_devices(backend=settings.device)[0], settings.dtype == "float64"
        with self.table.rows.open("rb") as rows, self.table.counts.open("rb") as counts:
            while len(count := np.fromfile(counts, bool, ROWS)):
                numbers = np.flatnonzero(count)
                with jax.enable_x64(wide), jax.default_device(device):
                    component, probability = self._belonging(self.table.some(rows, len(numbers)))
                grouped = dataclasses.replace(
                    self.table.grouped, row=numbers + 1, group_of=np.zeros(len(count), np.int64)
                )
                piece = dataclasses.replace(self.outcome, grouped=grouped, component=component, probability=probability)
                yield frames.assignments(piece).with_columns(pl.col("row") + before)
                before += len(count)

    def _belonging(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component of each row, and its probability."""
        x, _, n = self.found.laid_out(batch)
        if not n or self.outcome.choice[0] < 0:
            return np.full(len(batch), -1), np.full(len(batch), np.nan)
        found = belonging(self.outcome.models, jax.tree.map(lambda leaf: leaf[None], x))
        component, probability = (np.asarray(part)[0, :n] for part in found)
        return component, probability.astype(float)
