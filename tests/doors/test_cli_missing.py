"""`--missing`: what a row with gaps counts, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import jaxem as jem
from jaxem.cli import app
from jaxem.cli.columns import ColumnModel
from jaxem.cli.fit import schedule
from jaxem.cli.race import run
from jaxem.cli.table import groups

pytestmark = pytest.mark.slow

COLUMNS = ["--columns", "x,y", "--by", "g"]


def jaxem(*arguments: object) -> Result:
    return CliRunner().invoke(app.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Group a: two clusters, rows 2 and 7 (from 0) without x, 3 without y, 5 without both; b has no y at all."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (20, 2)), rng.normal(9, 1, (12, 2))])
    x[[2, 7], 0], x[3, 1], x[5] = np.nan, np.nan, np.nan
    a = pl.DataFrame({"g": "a", "x": x[:, 0], "y": x[:, 1]})
    b = pl.DataFrame({"g": "b", "x": rng.normal(size=8), "y": np.full(8, np.nan)})
    return pl.concat([a, b]).fill_nan(None).with_row_index("t")


@pytest.fixture(scope="module")
def table(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gaps") / "t.csv"
    frame.write_csv(path)
    return path


def rows(frame: pl.DataFrame) -> np.ndarray:
    return frame.filter(pl.col("g") == "a").select("x", "y").to_numpy()


def test_em_takes_what_was_seen(frame: pl.DataFrame, table: Path) -> None:
    out = table.parent / "em"
    result = jaxem("fit", table, *COLUMNS, "--components", 2, "--restarts", 2, "--out", out, "--assign")
    assert result.exit_code == 0, result.output
    models = pl.read_parquet(out / "models.parquet")
    assert models.select("g", "n", "dropped", "status").rows() == [
        ("a", 31, 1, "converged"),
        ("b", 8, 0, "too_few_rows"),
    ]
    row, x = models.row(0, named=True), rows(frame)
    with jax.enable_x64(True):
        model = jem.Mixture(row["weights"], jem.Gaussian(row["mean"], row["covariance"]))
        log_likelihood = float(model.log_prob(x).sum())
    assert row["log_likelihood"] == pytest.approx(log_likelihood, rel=1e-12)
    assert row["bic"] == pytest.approx(-2 * log_likelihood + 11 * np.log(31), rel=1e-12)
    component = pl.read_parquet(out / "assignments.parquet")["component"].to_list()
    assert component[:32] == [None if i == 5 else int(i >= 20) for i in range(32)]
    reason = pl.read_parquet(out / "selection.parquet")["reason"].to_list()
    assert reason == [None, "There is a column of which it has no value."]
    html = " ".join((out / "report.html").read_text().split())
    for words in ("11 of the rows lack some of their cells, 11 in all", "without a column", "covariance y, x"):
        assert words in html


def test_a_step_that_was_seen_in_part_counts(frame: pl.DataFrame, table: Path) -> None:
    out = table.parent / "hmm"
    result = jaxem("hmm", table, *COLUMNS, "--order", "t", "--states", 2, "--restarts", 1, "--out", out)
    assert result.exit_code == 0, result.output
    row = pl.read_parquet(out / "models.parquet").row(0, named=True)
    assert (row["n"], row["missing"], row["states"]) == (31, 1, 2)
    with jax.enable_x64(True):
        model = jem.HMM(row["initial"], row["transition"], jem.Gaussian(row["mean"], row["covariance"]))
        assert row["log_likelihood"] == pytest.approx(float(model.log_prob([rows(frame)])[0]), rel=1e-12)


def test_families_of_whole_rows_say_what_they_left_out(table: Path) -> None:
    out = table.parent / "whole"
    # Nothing is fitted: that needs no compilation.
    arguments = ["--family", "linear_regression", "--components", 1, "--min-rows", 29, "--out", out]
    result = jaxem("fit", table, *COLUMNS, *arguments)
    assert result.exit_code == app.NOTHING_FITTED, result.output
    said = "rows that lack some of their cells were left out (linear_regression reads whole rows).\n"
    assert result.stderr == f"jaxem: 11 {said}"
    assert pl.read_parquet(out / "models.parquet").select("n", "dropped").rows() == [(28, 4), (0, 8)]
    assert "left out (linear_regression reads whole rows)" in (out / "report.html").read_text()


def test_patterns_are_those_of_the_fullest_group(frame: pl.DataFrame) -> None:
    kind = ColumnModel.parse(["gaussian"], ["x", "y"])
    gaps = groups.group(frame, kind, ["g"])
    assert gaps.patterns == 4  # complete, no x, no y: a power of two
    assert gaps.lacks.tolist() == [False, True]
    x, weight = schedule.stack(gaps, schedule.Slab(0, np.array([0]), 40, 1, 2, 4), "float64")
    assert (x.patterns, x.values.shape, int(np.isnan(x.values[0][weight[0] > 0]).sum())) == (4, (2, 40, 2), 3)
    complete = groups.group(frame, kind, ["g"], missing="drop")
    assert (complete.patterns, complete.partly, complete.n.tolist()) == (0, 11, [28, 0])


def test_units_are_those_of_the_cells_that_are_there(frame: pl.DataFrame) -> None:
    kind = ColumnModel.parse(["gaussian"], ["x", "y"])
    scaled = run.in_standard_units(groups.group(frame, kind, ["g"]), [0]).rows_of(0)
    np.testing.assert_allclose(np.nanmean(scaled, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(scaled, axis=0), 1)


def test_open_ends_are_no_gaps() -> None:
    frame = pl.DataFrame({"low": [1.0, None, 3.0, None], "high": [1.0, 2.0, None, None]})
    grouped = groups.group(frame, ColumnModel.parse(["censored_gaussian"], ["low", "high"]))
    assert grouped.x.tolist() == [[1, 1], [-np.inf, 2], [3, np.inf]]
    assert (grouped.dropped.tolist(), grouped.partly) == ([1], 0)


def test_complete_groups_are_apart_where_that_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"g": np.repeat(np.arange(40), 30), "x": np.arange(1200.0), "y": np.arange(1200.0)})
    frame = frame.with_columns(y=pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col("y")))
    grouped = groups.group(frame, ColumnModel.parse(["gaussian"], ["x", "y"]), ["g"])
    for price, expected in ((10, [0, 2]), (10**7, [2])):
        monkeypatch.setattr(schedule, "SHAPE", price)
        found = schedule.plan(grouped, grouped.n > 0, [1, 2, 3], 4).slabs
        assert sorted({slab.patterns for slab in found}) == expected
        assert all(slab.patterns or not grouped.has_gaps[slab.groups].any() for slab in found)
