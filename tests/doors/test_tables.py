"""Reading tables: formats, nulls, groups, row numbers."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxem import datasets
from jaxem.cli.columns import ColumnModel
from jaxem.cli.errors import InputError
from jaxem.cli.table import files, groups

FRAME = pl.DataFrame({"g": ["b", "a", "b", None], "x": [1.0, 2.0, None, 4.0], "k": [0, 1, 2, 3]})
GAUSSIAN = ColumnModel.parse(["gaussian"], ["x"])


def write(frame: pl.DataFrame, path: Path) -> Path:
    if path.name.endswith(".gz"):
        import gzip

        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    elif path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".tsv":
        frame.write_csv(path, separator="\t")
    elif path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.name == "stream.arrow":
        frame.write_ipc_stream(path)
    else:
        frame.write_ipc(path)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet", "t.arrow", "stream.arrow", "t.feather"])
def test_every_format_gives_the_same_groups(name: str, tmp_path: Path) -> None:
    frame = files.read(write(FRAME, tmp_path / name), ["x"], {"--by": ["g"]})
    grouped = groups.group(frame, GAUSSIAN, ["g"])
    assert grouped.keys["g"].to_list() == ["a", "b", None]
    assert grouped.n.tolist() == [1, 1, 1]
    assert grouped.dropped.tolist() == [0, 1, 0]
    assert grouped.x.ravel().tolist() == [2.0, 1.0, 4.0]
    assert grouped.row.tolist() == [2, 1, 4]
    assert grouped.group_of.tolist() == [1, 0, 1, 2]
    assert [grouped.label(i) for i in range(3)] == ["a", "b", "(none)"]


def test_without_by_the_table_is_one_group() -> None:
    grouped = groups.group(FRAME, GAUSSIAN)
    assert grouped.keys.rows() == [("all",)]
    assert grouped.rows_of(0).ravel().tolist() == [1.0, 2.0, 4.0]


def test_groups_of_several_columns_are_sorted_as_numbers(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [10, 9, 9, 10], "b": ["x", "y", "x", "x"], "x": [1.0, 2.0, 3.0, 4.0]})
    path = write(frame, tmp_path / "t.csv")
    grouped = groups.group(files.read(path, ["x"], {"--by": ["a", "b"]}), GAUSSIAN, ["a", "b"])
    assert grouped.keys.rows() == [(9, "x"), (9, "y"), (10, "x")]


def test_codes_with_leading_zeros_stay_text() -> None:
    frame = pl.DataFrame({"zip": ["01", "1"], "x": [1.0, 2.0]})
    assert groups.group(frame, GAUSSIAN, ["zip"]).keys["zip"].to_list() == ["01", "1"]


def test_missing_texts_are_nulls_in_columns_of_numbers() -> None:
    frame = pl.DataFrame({"x": ["1", "NA", " 2 ", "", "-"]})
    assert groups.group(frame, GAUSSIAN, null=["NA", "-"]).row.tolist() == [1, 3]
    with pytest.raises(InputError, match=r"column x, row 5: '-' is not a number"):
        groups.group(frame, GAUSSIAN)


def test_nan_is_refused_unless_it_stands_for_missing() -> None:
    frame = pl.DataFrame({"x": [1.0, float("nan")]})
    with pytest.raises(InputError, match=r"column x, row 2: nan is not a number"):
        groups.group(frame, GAUSSIAN)
    assert groups.group(frame, GAUSSIAN, null=["NaN"]).row.tolist() == [1]


@pytest.mark.parametrize("values", [[datetime.date(2013, 1, 1)], [[1.0]], [b"x"]])
def test_what_is_not_a_number_is_refused(values: list[object]) -> None:
    with pytest.raises(InputError, match="--columns x"):
        groups.group(pl.DataFrame({"x": values}), GAUSSIAN)


@pytest.mark.parametrize("values", [["b", "a", None, "b"], [10, 9, None, 10], [True, False, None, True]])
def test_categories_are_numbered_in_order(values: list[object]) -> None:
    grouped = groups.group(pl.DataFrame({"c": values}), ColumnModel.parse(["categorical"], ["c"]))
    assert grouped.x.ravel().tolist() == [1.0, 0.0, 1.0]
    first, second = sorted({v for v in values if v is not None})  # type: ignore[type-var]
    assert [level.lower() for level in grouped.kind.levels[0]] == [str(first).lower(), str(second).lower()]


def test_too_many_categories_are_refused() -> None:
    frame = pl.DataFrame({"c": [f"name {i}" for i in range(groups.MOST_CATEGORIES + 1)]})
    with pytest.raises(InputError, match="257 different values"):
        groups.group(frame, ColumnModel.parse(["categorical"], ["c"]))


def test_words_for_yes_and_no() -> None:
    frame = pl.DataFrame({"b": ["true", "False", "1", "0"]})
    assert groups.group(frame, ColumnModel.parse(["bernoulli"], ["b"])).x.ravel().tolist() == [1, 0, 1, 0]


def test_groups_without_variation_are_known() -> None:
    frame = pl.DataFrame({"g": [1, 1, 2, 2, 3], "x": [5.0, 5.0, 1.0, 2.0, None]})
    assert groups.group(frame, GAUSSIAN, ["g"]).varies.tolist() == [False, True, False]


def test_flights_are_shipped() -> None:
    kind = ColumnModel.parse(["gaussian"], ["dep_delay", "arr_delay"])
    frame = files.read("flights", kind.columns, {"--by": ["tailnum"]})
    grouped = groups.group(frame, kind, ["tailnum"], missing="drop")
    assert datasets.flights().height == 334_264 == len(grouped.group_of)
    enough = grouped.n >= 30
    assert (enough.sum(), grouped.n[enough].sum()) == (2724, 310_579)
    assert np.all(np.diff(grouped.row[:4]) > 0)
    # Flights that left and did not arrive where they should.
    seen = groups.group(frame, kind, ["tailnum"])
    assert (seen.partly, seen.missing_cells, seen.patterns) == (1175, 1175, 2)
    with pytest.raises(ValueError, match="there are: flights"):
        datasets.path("trains")
