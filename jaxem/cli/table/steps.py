"""Steps of sequences from rows with an order: sorted, and filled in where the table lacks them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any

import numpy as np
import polars as pl

from jaxem.cli.errors import InputError

DURATION = re.compile(r"([1-9]\d*)(ns|us|ms|s|m|h|d|w|mo|q|y)?")
DAY = 86_400 * 10**9
NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": DAY,
    "w": 7 * DAY,
}
NANOSECONDS |= {"mo": 28 * DAY, "q": 90 * DAY, "y": 365 * DAY}
"""Nanoseconds of the units of `--frequency`; for a month, a quarter and a year the smallest possible."""

MOST = 100
"""Steps for every row of the table above which the frequency is a mistake."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of all sequences, group after group.

    Attributes:
        rows: `[N]` row of the table of each step, from 0; -1 for a step that the table lacks.
        group: `[N]` the group of each.
        first: `[N]` bool, where a sequence starts.
        notes: messages for the user.
    """

    rows: np.ndarray
    group: np.ndarray
    first: np.ndarray
    notes: tuple[str, ...] = ()


def arranged(order: pl.Series | None, frequency: str, group: np.ndarray, part: np.ndarray) -> Steps:
    """Rows of a table as steps.

    Args:
        order: the column that sequences are sorted by; None if the table is sorted.
        frequency: see `groups.group`.
        group: `[n]` the group of each row.
        part: `[n]` the sequence of each row, from 0, numbered through all groups or within each.

    Raises:
        InputError: a place that is missing, or occurs twice; a frequency that does not fit the places.
    """
    if order is None:
        if frequency:
            raise InputError(f"--frequency {frequency}: it is for steps that have a place; name its column by --order")
        rows = np.lexsort((part, group))
        return Steps(rows, group[rows], _starts(group[rows], part[rows]))
    places = _places(order)
    physical = places.to_physical().to_numpy()
    rows = np.lexsort((physical, part, group))
    steps = Steps(rows, group[rows], _starts(group[rows], part[rows]))
    _check_once(order, physical, steps)
    notes = _notes(order, places, physical, part, steps, frequency)
    if frequency:
        steps = _filled(places, frequency, part, steps)
    return dataclasses.replace(steps, notes=notes)


def _starts(group: np.ndarray, part: np.ndarray) -> np.ndarray:
    """`[N]` bool: first steps of sequences."""
    both = np.stack([group, part])
    return np.concatenate([[True], (both[:, 1:] != both[:, :-1]).any(axis=0)])


def _places(order: pl.Series) -> pl.Series:
    """Place of each row in the order: numbers, dates or times, none of them null."""
    places = order
    if order.dtype == pl.String:
        whole = order.str.strip_chars().cast(pl.Int64, strict=False)
        numbers = order.str.strip_chars().cast(pl.Float64, strict=False)
        lost = order.null_count()
        places = whole if whole.null_count() == lost else numbers if numbers.null_count() == lost else _dates(order)
    elif order.dtype.is_nested() or not (order.dtype.is_numeric() or order.dtype.is_temporal()):
        raise InputError(f"--order {order.name}: the column holds {order.dtype}; order by numbers, dates or times")
    if order.dtype.is_decimal():
        places = order.cast(pl.Float64)
    missing = places.is_null() | (places.is_nan() if places.dtype.is_float() else False)
    if missing.any():
        raise InputError(
            f"--order {order.name}, row {(missing.arg_max() or 0) + 1}: it is null; every step needs its place"
        )
    return places


def _dates(column: pl.Series) -> pl.Series:
    """Text converted to dates and times."""
    for kind in (pl.Datetime, pl.Date, pl.Time):
        with contextlib.suppress(pl.exceptions.PolarsError):
            return column.str.strip_chars().str.strptime(kind)
    raise InputError(f"--order {column.name}: it holds text; order by numbers, or by dates such as 2026-01-31")


def _check_once(order: pl.Series, places: np.ndarray, steps: Steps) -> None:
    """Raise InputError for a place that occurs twice in one sequence."""
    values = places[steps.rows]
    twice = ~steps.first[1:] & (values[1:] == values[:-1])
    if twice.any():
        at = int(np.argmax(twice))
        before, row = sorted(steps.rows[[at, at + 1]] + 1)
        raise InputError(
            f"--order {order.name}, row {row}: {order[int(row) - 1]} is there twice in one sequence (the other is row "
            f"{before}); tell several sequences of a group apart with --sequence, or remove one of the rows"
        )


def _notes(
    order: pl.Series, places: pl.Series, physical: np.ndarray, part: np.ndarray, steps: Steps, frequency: str
) -> tuple[str, ...]:
    """Notes that rows were sorted, and that regular steps are absent."""
    notes = []
    within = ~steps.first[1:]
    if (within & (np.diff(steps.rows) < 0)).any():
        notes.append(f"the rows were not in the order of --order {order.name} and were sorted by it")
    apart = np.diff(physical[steps.rows])
    apart = np.where(within, apart, 0)
    found, counts = np.unique(apart[within], return_counts=True)
    if len(found) and not frequency:
        usual = found[np.argmax(counts)]
        absent = np.where(apart > 1.5 * usual, np.round(apart / usual) - 1, 0)
        if counts.max() > 0.5 * counts.sum() and absent.any():
            at = int(np.argmax(absent > 0))
            here, there = (order[int(steps.rows[i])] for i in (at, at + 1))
            notes.append(
                f"--order {order.name} lacks {int(absent.sum()):,} of its regular steps (between {here} and {there}, "
                f"for one); the steps on both sides of a gap count as neighbours. "
                f"--frequency {_written(places, usual)} puts steps there that were not seen"
            )
    return tuple(notes)


def _written(places: pl.Series, distance: Any) -> str:
    """Distance of two places, as `--frequency` takes it."""
    if not places.dtype.is_temporal():
        return f"{distance:g}"
    unit = DAY if places.dtype == pl.Date else NANOSECONDS[getattr(places.dtype, "time_unit", None) or "ns"]
    length = int(distance) * unit
    name = next(name for name in ("w", "d", "h", "m", "s", "ms", "us", "ns") if length % NANOSECONDS[name] == 0)
    return f"{length // NANOSECONDS[name]}{name}"


def _filled(places: pl.Series, frequency: str, part: np.ndarray, steps: Steps) -> Steps:
    """The steps, with those that the table lacks."""
    every = _every(places, frequency)
    sequence = np.cumsum(steps.first) - 1
    table = pl.DataFrame({"sequence": sequence, "place": places[steps.rows], "row": steps.rows, "group": steps.group})
    _check_many(table, frequency)
    full = table.upsample("place", every=every, group_by="sequence", maintain_order=True)
    full = full.with_columns(pl.col("sequence", "group").forward_fill(), pl.col("row").fill_null(-1))
    if (full["row"] >= 0).sum() < len(steps.rows):
        lost = int(np.setdiff1d(steps.rows, full["row"].to_numpy())[0])
        raise InputError(
            f"--frequency {frequency}: row {lost + 1} ({places[lost]}) is not a whole number of steps from the first "
            "of its sequence; choose a frequency that all rows have, or leave it out"
        )
    sequence = full["sequence"].to_numpy()
    first = np.concatenate([[True], sequence[1:] != sequence[:-1]])
    return Steps(full["row"].to_numpy(), full["group"].to_numpy(), first)


def _every(places: pl.Series, frequency: str) -> str:
    """Frequency in the syntax of polars.

    Raises:
        InputError: anything but a number, with a unit for dates and times.
    """
    found = DURATION.fullmatch(frequency.strip())
    timed = places.dtype.is_temporal() and places.dtype != pl.Time
    example = "1d, 1h or 15m" if timed else "1"
    if not found or (found[2] is None) == timed or not (timed or places.dtype.is_integer()):
        holds = "dates or times" if timed else f"{places.dtype}"
        raise InputError(
            f"--frequency {frequency}: it does not fit --order {places.name}, which holds {holds}; write for example "
            f"{example}, and order by whole numbers or dates"
        )
    return frequency.strip() if timed else f"{found[1]}i"


def _check_many(table: pl.DataFrame, frequency: str) -> None:
    """Raise InputError for a frequency that would make far more steps than there are rows."""
    found = DURATION.fullmatch(frequency.strip())
    spans = table.group_by("sequence").agg(span=pl.col("place").max() - pl.col("place").min())["span"]
    unit = NANOSECONDS[found[2]] / 1e3 if found and found[2] else 1
    lengths = spans.dt.total_microseconds() if spans.dtype == pl.Duration else spans
    steps = float(lengths.sum() or 0) / (int(found[1] if found else 1) * unit)
    if steps > MOST * table.height:
        raise InputError(
            f"--frequency {frequency}: it would make {steps:,.0f} steps of {table.height:,} rows; choose a longer one"
        )
