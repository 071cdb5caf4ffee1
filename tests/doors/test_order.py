"""The steps of sequences: sorted by `--order`, gaps told or filled."""

from __future__ import annotations

import datetime

import numpy as np
import polars as pl
import pytest

from jaxem.cli.columns import ColumnModel
from jaxem.cli.errors import InputError
from jaxem.cli.table import groups

KIND = ColumnModel.parse(["gaussian"], ["x"])


def days(*numbers: int) -> list[datetime.date]:
    return [datetime.date(2026, 1, number) for number in numbers]


def test_rows_are_sorted_within_their_sequence() -> None:
    frame = pl.DataFrame({"g": ["b", "a", "b", "a", "b"], "t": [3, 9, 1, 8, 2], "x": [30.0, 9.0, 10.0, 8.0, 20.0]})
    grouped = groups.group(frame, KIND, ["g"], order="t")
    assert grouped.x.ravel().tolist() == [8, 9, 10, 20, 30]
    assert grouped.row.tolist() == [4, 2, 3, 5, 1]
    assert grouped.first is not None
    assert grouped.first.tolist() == [True, False, True, False, False]
    assert grouped.notes == ("the rows were not in the order of --order t and were sorted by it",)
    assert groups.group(frame.sort("t"), KIND, ["g"], order="t").notes == ()


@pytest.mark.parametrize("text", [True, False])
def test_absent_dates_are_told(text: bool) -> None:
    frame = pl.DataFrame({"t": days(1, 2, 3, 6, 7, 10), "x": np.arange(6.0)})
    frame = frame.with_columns(pl.col("t").cast(pl.String)) if text else frame
    (note,) = groups.group(frame, KIND, order="t").notes
    assert "--order t lacks 4 of its regular steps (between 2026-01-03 and 2026-01-06, for one)" in note
    assert "count as neighbours. --frequency 1d puts steps there" in note


@pytest.mark.parametrize(
    "places", [days(1, 2, 3, 4), [1, 5, 6, 30], [datetime.date(2026, month, 1) for month in range(1, 13)]]
)
def test_nothing_is_told_where_nothing_is_absent(places: list[object]) -> None:
    frame = pl.DataFrame({"t": places, "x": np.arange(float(len(places)))})
    assert groups.group(frame, KIND, order="t").notes == ()


def test_a_frequency_puts_unseen_steps_into_the_gaps() -> None:
    frame = pl.DataFrame({"g": ["a", "a", "b", "a", "b"], "t": days(4, 1, 7, 3, 8), "x": [4.0, 1.0, 7.0, 3.0, 8.0]})
    grouped = groups.group(frame, KIND, ["g"], order="t", frequency="1d")
    np.testing.assert_array_equal(grouped.x.ravel(), [1, np.nan, 3, 4, 7, 8])
    assert grouped.row.tolist() == [2, 0, 4, 1, 3, 5]
    assert (grouped.size.tolist(), grouped.n.tolist(), grouped.dropped.tolist()) == ([4, 2], [3, 2], [1, 0])
    assert len(grouped.notes) == 1  # that it was sorted


@pytest.mark.parametrize(
    ("places", "frequency", "steps"),
    [
        ([1, 2, 5], "1", 5),
        ([10, 20, 50], "10", 5),
        ([datetime.date(2026, 1, 31), datetime.date(2026, 2, 28), datetime.date(2026, 3, 31)], "1d", 60),
        ([datetime.date(2026, 1, 1), datetime.date(2026, 2, 1), datetime.date(2026, 5, 1)], "1mo", 5),
        ([datetime.datetime(2026, 1, 1, 6), datetime.datetime(2026, 1, 1, 9)], "1h", 4),
        (["2026-01-01 06:00", "2026-01-01 07:30"], "15m", 7),
        (["2026-01-01", "2026-01-15"], "1w", 3),
    ],
)
def test_frequencies_of_all_kinds(places: list[object], frequency: str, steps: int) -> None:
    frame = pl.DataFrame({"t": places, "x": np.arange(float(len(places)))})
    grouped = groups.group(frame, KIND, order="t", frequency=frequency)
    assert (len(grouped.x), int(grouped.seen.sum())) == (steps, len(places))


@pytest.mark.parametrize(
    ("places", "order", "frequency", "message"),
    [
        ([1, 2, 5], "", "1", "--frequency 1: it is for steps that have a place; name its column by --order"),
        ([1, 2, 5], "t", "1d", "--frequency 1d: it does not fit --order t"),
        ([1, 2, 5], "t", "often", "--frequency often: it does not fit --order t"),
        ([1.5, 2.0], "t", "1", "--frequency 1: it does not fit --order t"),
        (days(1, 2), "t", "2", "--frequency 2: it does not fit --order t, which holds dates"),
        (days(1, 4, 5), "t", "2d", r"--frequency 2d: row 2 \(2026-01-04\) is not a whole number of steps"),
        (days(1, 2, 20), "t", "1s", "--frequency 1s: it would make 1,641,600 steps of 3 rows"),
    ],
)
def test_frequencies_that_do_not_fit_are_refused(places: list, order: str, frequency: str, message: str) -> None:
    frame = pl.DataFrame({"t": places, "x": np.arange(float(len(places)))})
    with pytest.raises(InputError, match=message):
        groups.group(frame, KIND, order=order, frequency=frequency)


def test_a_forgotten_sequence_is_said_first() -> None:
    frame = pl.DataFrame({"t": days(1, 2, 1, 2), "x": np.arange(4.0)})
    with pytest.raises(InputError, match=r"row 3: 2026-01-01 is there twice .* tell several sequences .* --sequence"):
        groups.group(frame, KIND, order="t")
