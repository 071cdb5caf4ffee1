"""`jaxem fit --memory`: a table that is too large for it is streamed, and nothing else is different."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jaxem.cli import app, parsing
from jaxem.cli.errors import InputError
from jaxem.cli.fit import streamed

pytestmark = pytest.mark.slow


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app.app, ["fit", *map(str, words)])
    return result.exit_code, result.stderr


def table(n: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    at = rng.integers(0, 2, size=n)
    x = rng.normal(size=(n, 2)) + 6.0 * at[:, None]
    colour = np.where(rng.random(n) < 0.8, np.array(["red", "blue"])[at], "green")
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "colour": colour, "k": rng.poisson(1 + 4 * at)})
    return frame.with_columns(
        a=pl.when(pl.int_range(n) % 9 == 4).then(None).otherwise(pl.col("a")),
        b=pl.when(pl.int_range(n) % 36 == 4).then(None).otherwise(pl.col("b")),
    )


def both(path: Path, folder: Path, *words: str) -> list[dict[str, pl.DataFrame]]:
    """The tables of the usual way, and of the other."""
    found = []
    for memory, told in (("1GB", False), ("1kB", True)):
        out = folder / memory
        code, said = run(path, *words, "--out", out, "--memory", memory, "--assign")
        assert code == 0, said
        assert ("more than --memory 1kB: its rows are put into" in said) == told
        assert (out / "report.html").stat().st_size > 10_000
        found.append(
            {name: pl.read_parquet(out / f"{name}.parquet") for name in ("models", "selection", "assignments")}
        )
        assert sorted(file.name for file in out.iterdir()) == [
            "assignments.parquet", "models.parquet", "report.html", "selection.parquet"
        ]  # fmt: skip
    return found


def numbers(column: pl.Series) -> np.ndarray:
    while column.dtype == pl.List:
        column = column.explode()
    return column.to_numpy()


def assert_same(usual: dict[str, pl.DataFrame], streamed: dict[str, pl.DataFrame]) -> None:
    for name, frame in usual.items():
        other = streamed[name]
        assert other.schema == frame.schema
        for column in frame.columns:
            ours, theirs = numbers(other[column]), numbers(frame[column])
            if ours.dtype.kind == "f":
                np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=f"{name}, {column}")
            else:
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{name}, {column}")


def test_the_results_are_those_of_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with gaps, in pieces and batches of which none is the whole."""
    monkeypatch.setattr("jaxem.cli.fit.streamed.ROWS", 150)
    table().write_parquet(tmp_path / "t.parquet")
    usual, streamed = both(
        tmp_path / "t.parquet", tmp_path, "--columns", "a,b", "--components", "1:3", "--restarts", "2"
    )
    assert usual["models"]["components"].item() == 2
    assert usual["models"]["dropped"].item() == 11
    assert_same(usual, streamed)


def test_columns_of_a_csv_with_families_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The categories of all pieces get the numbers that they have in the whole."""
    monkeypatch.setattr("jaxem.cli.fit.streamed.ROWS", 150)
    monkeypatch.setattr("jaxem.cli.fit.streamed.PIECE", 999)
    table().sort("colour").write_csv(tmp_path / "t.csv", null_value="NA")
    words = ["--columns", "b,colour,k", "--family", "gaussian,categorical,poisson", "--components", "2"]
    usual, streamed = both(tmp_path / "t.csv", tmp_path, *words, "--restarts", "2", "--missing", "drop")
    assert usual["models"]["colour_categories"].item().to_list() == ["blue", "green", "red"]
    assert_same(usual, streamed)


def test_a_wrong_cell_is_said_with_its_row_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxem.cli.fit.streamed.ROWS", 150)
    lines = [str(i % 7) for i in range(400)]
    rest = ["--columns", "k", "--memory", "1kB", "--out", tmp_path / "out"]
    for text, family, message in (
        ("many", "gaussian", "column k, row 333: 'many' is not a number"),
        ("-1", "poisson", "column k, row 333: '-1' is not a count"),
        ("1e300", "gaussian", "column k, row 333: 1e+300 is beyond float32"),
    ):
        lines[332] = text
        (tmp_path / "t.csv").write_text("\n".join(["k", *lines]))
        code, said = run(tmp_path / "t.csv", *rest, "--family", family, "--dtype", "float32")
        assert (code, message in said) == (2, True), said
    (tmp_path / "t.csv").write_text("\n".join(["k,l", *[",1"] * 400]))
    code, said = run(tmp_path / "t.csv", *rest)
    assert (code, "column k is null throughout" in said) == (2, True), said
    assert list((tmp_path / "out").iterdir()) == []


def test_text_in_pieces_is_the_text_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newlines within quotes, and empty lines, which are rows."""
    path, text = tmp_path / "t.csv", 'k,"l\nm"\n1,"a\nb"\n\n\n3,4\n5,"""\n"\n6,7'
    path.write_text(text)
    whole = pl.read_csv(path, infer_schema=False)
    for size in range(1, len(text) + 1):
        monkeypatch.setattr("jaxem.cli.fit.streamed.PIECE", size)
        assert pl.concat(streamed._frames(path, whole.columns)).equals(whole)


@pytest.mark.parametrize("text", ["", "2", "many", "0GB", "-1GB", "2 PB", "2GBs"])
def test_a_budget_is_a_number_with_a_unit(text: str) -> None:
    if text == "2":
        assert parsing.memory(text) == 2
        return
    with pytest.raises(InputError, match=r"--memory .*: it must be a number with a unit; write for example 500MB"):
        parsing.memory(text)
