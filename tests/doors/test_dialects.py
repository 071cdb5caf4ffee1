"""Text tables as people have them: separators, decimal commas, encodings, comments, names in capitals; and nulls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jaxem.cli import app
from jaxem.cli.columns import ColumnModel
from jaxem.cli.errors import InputError
from jaxem.cli.fit import streamed
from jaxem.cli.table import files, groups

TWO = ColumnModel.parse(["gaussian"], ["x", "y"])
EXPECTED = [[1.5, 2], [-2.5, 3], [1000.25, 4]]


def numbers(path: Path, columns: tuple[str, ...] = ("x", "y")) -> list[list[float]]:
    kind = ColumnModel.parse(["gaussian"], columns)
    return groups.group(files.read(path, columns), kind).x.tolist()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.CSV", b"x,y\n1.5,2\n-2.5,3\n1000.25,4\n"),
        ("t.csv", b"x;y\n1,5;2\n-2,5;3\n1000,25;4\n"),
        ("t.csv", b"x;y\n1.5;2\n-2.5;3\n1000.25;4\n"),
        ("t.csv", b"x\ty\n1.5\t2\n-2.5\t3\n1000.25\t4\n"),
        ("t.txt", b"x\ty\n1,5\t2\n-2,5\t3\n1000,25\t4\n"),
        ("t.TSV", b"x\ty\n1.5\t2\n-2.5\t3\n1000.25\t4\n"),
        ("t.tsv", b"x,y\n1.5,2\n-2.5,3\n1000.25,4\n"),
        ("t.csv", b"x|y\n1.5|2\n-2.5|3\n1000.25|4\n"),
        ("t.csv", "x,y\n1.5,2\n-2.5,3\n1000.25,4\n".encode("utf-16")),
        ("t.csv", "x;y\n1,5;2\n-2,5;3\n1000,25;4\n".encode("utf-16-be")),
        ("t.csv", "\ufeffx,y\n1.5,2\n-2.5,3\n1000.25,4\n".encode()),
        ("t.csv", b"# made on Monday, by hand\n# twice; really\nx,y\n1.5,2\n-2.5,3\n1000.25,4\n"),
        ("t.csv", b"#x,y\n1.5,2\n-2.5,3\n1000.25,4\n"),
        ("t.csv", b"# a remark\n#x,y\n1.5,2\n-2.5,3\n1000.25,4\n"),
        ("t.csv", b'note;x;y\n"a, b";1,5;2\n"c, d";-2,5;3\n;1000,25;4\n'),
        ("t.csv", b"note;x;y\r\na, b;1,5;2\r\nc, d;-2,5;3\r\ne, f;1000,25;4\r\n"),
    ],
)
def test_a_text_table_is_read_however_it_is_written(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert numbers(path) == EXPECTED
    # A piece at a time, too.
    pieces = pl.concat(streamed._frames(path, ["x", "y"]))
    assert groups.numbers(pieces, TWO)[0].tolist() == EXPECTED


def test_a_packed_table_in_capitals(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "T.CSV.GZ"
    path.write_bytes(gzip.compress(b"# a remark\nx;y\n1,5;2\n-2,5;3\n1000,25;4\n"))
    assert numbers(path) == EXPECTED


@pytest.mark.parametrize(
    "content",
    [
        b'x,y\n"1,5",2\n',  # between commas a comma is no decimal mark,
        b"x\ty\n1,234\t2\n",  # nor where it may separate thousands,
        b"x;y\n1.234;2\n1,5;3\n",  # nor beside points.
    ],
)
def test_commas_that_may_mean_something_else_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"column x, row \d: '1,\d+' is not a number; write decimals with a point"):
        numbers(tmp_path / "t.csv")


def test_a_hash_within_the_table_is_a_value(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y,c\n1,2,#1\n3,4,#2\n#5,6,#3\n")
    with pytest.raises(InputError, match="column x, row 3: '#5' is not a number"):
        numbers(tmp_path / "t.csv")


def test_names_with_commas(tmp_path: Path) -> None:
    pl.DataFrame({"weight, kg": [1.5, -2.5, 1000.25], "y": [2, 3, 4]}).write_csv(tmp_path / "t.csv")
    assert numbers(tmp_path / "t.csv", ("weight, kg", "y")) == EXPECTED
    arguments = ["fit", str(tmp_path / "t.csv"), "--columns", "weight,kg", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app.app, arguments)
    assert result.exit_code == 2
    assert "did you mean '\"weight, kg\"'?" in result.stderr


@pytest.mark.parametrize("values", [["b", "NA", "a", "-", " ", "nan"], ["NaN", "b", "-", "a", "NA", None]])
def test_texts_that_stand_for_missing_do_so_in_every_column(values: list[str]) -> None:
    frame = pl.DataFrame({"c": values, "g": values})
    grouped = groups.group(frame, ColumnModel.parse(["categorical"], ["c"]), ["g"], null=["NA", "-", "NaN"])
    assert grouped.kind.levels == (("a", "b"),)
    assert grouped.keys["g"].to_list() == ["a", "b", None]
    assert (grouped.n.tolist(), grouped.dropped.tolist()) == ([1, 1, 0], [0, 0, 4])
    # Without them they are words like others.
    assert len(groups.group(frame, ColumnModel.parse(["categorical"], ["c"]), null=[]).kind.levels[0]) == 5


def test_missing_categories_in_a_table_that_is_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("c\nb\nNA\na\n")
    kind = ColumnModel.parse(["categorical"], ["c"])
    with streamed.read(tmp_path / "t.csv", kind, ["NA"], "em", "float64", tmp_path) as table:
        assert table.grouped.kind.levels == (("a", "b"),)
        np.testing.assert_array_equal(next(iter(table.batches)), [1, 0])
