"""`jaxem hmm`: what it writes, what it refuses."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import jaxem as jem
from jaxem.cli import app

pytestmark = pytest.mark.slow

COLUMNS = ["--columns", "x", "--by", "g", "--order", "t"]
SEVERAL = [*COLUMNS, "--sequence", "part"]


def jaxem(*arguments: object) -> Result:
    return CliRunner().invoke(app.app, ["hmm", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Group a: two states in two sequences, the shorter one first, two steps not seen; b: one state; c: too short."""
    rng = np.random.default_rng(0)
    state = (np.arange(70) // 10) % 2
    rows = [("a", 1 if i < 25 else 2, float(i), 8.0 * s + rng.normal()) for i, s in enumerate(state)]
    rows += [("b", 1, float(i), rng.normal()) for i in range(40)]
    rows += [("c", 1, float(i), rng.normal()) for i in range(5)]
    table = pl.DataFrame(rows, schema=["g", "part", "t", "x"], orient="row").with_row_index("i")
    # Sequences start at zero again, and groups are mixed; within a sequence time grows.
    table = table.with_columns(t=pl.when(pl.col("part") == 2).then(pl.col("t") - 25).otherwise(pl.col("t")))
    table = table.with_columns(x=pl.when(pl.col("i").is_in([3, 40])).then(None).otherwise(pl.col("x")))
    return table.drop("i").sort("t", maintain_order=True)


def write(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_csv(path)
    return path


@pytest.fixture(scope="module")
def done(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("hmm")
    table, out = write(frame, folder / "t.csv"), folder / "out"
    return out, jaxem(table, *SEVERAL, "--states", "1:2", "--restarts", 2, "--out", out, "--assign")


def test_a_row_for_each_group(done: tuple[Path, Result]) -> None:
    assert done[1].exit_code == 0, done[1].output
    assert "2 of 3 groups" in done[1].stdout
    models = pl.read_parquet(done[0] / "models.parquet")
    names = "g n missing sequences states log_likelihood bic aic icl steps status initial transition mean covariance"
    assert models.columns == names.split()
    for name, values in {
        "g": ["a", "b", "c"],
        "n": [68, 40, 5],
        "missing": [2, 0, 0],
        "sequences": [2, 1, 1],
        "states": [2, 1, None],
        "status": ["converged", "converged", "too_few_rows"],
    }.items():
        assert models[name].to_list() == values
    assert [len(rows) for rows in models["transition"].to_list()[:2]] == [2, 1]
    assert [[len(row) for row in rows] for rows in models["transition"].to_list()[:2]] == [[2, 2], [1]]


def test_scores_are_those_of_the_model_on_the_sequences(done: tuple[Path, Result], frame: pl.DataFrame) -> None:
    row = pl.read_parquet(done[0] / "models.parquet").row(0, named=True)
    a = frame.filter(pl.col("g") == "a")
    parts = [a.filter(pl.col("part") == part).select("x").to_numpy() for part in (1, 2)]
    with jax.enable_x64(True):
        model = jem.HMM(row["initial"], row["transition"], jem.Gaussian(row["mean"], row["covariance"]))
        x = jem.Sequences.from_list(parts)
        log_likelihood, entropy = float(model.log_prob(x).sum()), float(jem.entropy(model, x))
    assert row["log_likelihood"] == pytest.approx(log_likelihood, rel=1e-12)
    assert row["bic"] == pytest.approx(-2 * log_likelihood + 7 * np.log(68), rel=1e-12)
    assert row["icl"] == pytest.approx(row["bic"] + 2 * entropy, rel=1e-12)


def test_assignments_are_the_decoded_path(done: tuple[Path, Result], frame: pl.DataFrame) -> None:
    assigned = pl.read_parquet(done[0] / "assignments.parquet")
    assert assigned.columns == ["row", "g", "state", "probability"]
    assert assigned["g"].to_list() == frame["g"].to_list()
    a = pl.concat([frame, assigned.select("state", "probability")], how="horizontal").filter(pl.col("g") == "a")
    a = a.sort("part", "t")
    truth = (np.arange(70) // 10) % 2
    high = a.filter(pl.col("x") > 4)["state"][0]
    # A step that was not seen has a state as well.
    assert a["state"].to_list() == [high if s else 1 - high for s in truth]
    assert a["probability"].is_between(0.5, 1 + 1e-12).all()
    assert assigned.filter(pl.col("g") == "c")["state"].null_count() == 5


def test_the_report_says_states(done: tuple[Path, Result]) -> None:
    html = (done[0] / "report.html").read_text()
    assert html.count("data:image/svg+xml;base64,") == 1
    for words in ("A hidden Markov model for every g", "in 4 sequences", "How many states", "jaxem hmm", "not seen"):
        assert words in html


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f, COLUMNS, "--order t, row 2: 0.0 is there twice in one sequence (the other is row 1)"),
        (
            lambda f: f.with_columns(t=pl.lit("soon")),
            SEVERAL,
            "--order t: it holds text; order by numbers, or by dates",
        ),
        (
            lambda f: f.with_columns(t=pl.when(pl.int_range(pl.len()) == 6).then(None).otherwise(pl.col("t"))),
            SEVERAL,
            "--order t, row 7: it is null; every step needs its place",
        ),
        (lambda f: f, [*SEVERAL, "--states", "0:2"], "--states 0:2: numbers of states go from 1 to 1000"),
        (lambda f: f, [*SEVERAL, "--states", "90"], "--states up to 90: the largest group has only 68 rows with"),
        (lambda f: f, [*COLUMNS, "--sequence", "prt"], "--sequence prt: "),
    ],
)
def test_bad_input_is_one_line(
    change: object, options: list[str], message: str, frame: pl.DataFrame, tmp_path: Path
) -> None:
    table = write(change(frame), tmp_path / "t.csv")  # type: ignore[operator]
    result = jaxem(table, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_dates_are_an_order(frame: pl.DataFrame, tmp_path: Path) -> None:
    b = frame.filter(pl.col("g") == "b")
    dates = pl.date_range(pl.date(2026, 1, 1), pl.date(2026, 2, 9), eager=True)
    table = write(b.with_columns(t=dates), tmp_path / "t.csv")
    result = jaxem(table, *COLUMNS, "--states", "1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr


def test_the_order_of_the_table_does_not_matter(frame: pl.DataFrame, tmp_path: Path) -> None:
    """Sorted or not: the same models, and every row of the table gets its own state."""
    b = frame.filter(pl.col("g") == "b").with_columns(x=pl.when(pl.col("t") % 7 < 3).then(9).otherwise(pl.col("x")))
    out = {}
    for name, table in {"sorted": b, "shuffled": b.sample(fraction=1, shuffle=True, seed=1)}.items():
        path = write(table, tmp_path / f"{name}.csv")
        arguments = ["--states", 2, "--restarts", 1, "--assign", "--out", tmp_path / name]
        result = jaxem(path, *COLUMNS, *arguments)
        assert result.exit_code == 0, result.output
        assert ("were sorted by it" in result.stderr) == (name == "shuffled")
        state = pl.read_parquet(tmp_path / name / "assignments.parquet").select("state", "probability")
        out[name] = pl.concat([table, state], how="horizontal").sort("t")
    assert out["sorted"].equals(out["shuffled"])
    read = [pl.read_parquet(tmp_path / name / "models.parquet") for name in out]
    assert read[0].equals(read[1])


def test_absent_steps_count_if_there_is_a_frequency(frame: pl.DataFrame, tmp_path: Path) -> None:
    """As if the table had had rows without values there."""
    whole = frame.filter(pl.col("g") == "b").with_columns(x=pl.when(pl.col("t") % 7 < 3).then(9).otherwise(pl.col("x")))
    absent = pl.col("t").is_in([5.0, 6.0, 20.0])
    unseen = whole.with_columns(x=pl.when(absent).then(None).otherwise(pl.col("x")))
    results = {}
    for name, table, options in (("lacking", whole.filter(~absent), ["--frequency", "1"]), ("unseen", unseen, [])):
        path = write(table.with_columns(pl.col("t").cast(pl.Int64)), tmp_path / f"{name}.csv")
        arguments = ["--states", 2, "--restarts", 1, "--assign", "--out", tmp_path / name]
        result = jaxem(path, *COLUMNS, *options, *arguments)
        assert result.exit_code == 0, result.output
        results[name] = [pl.read_parquet(tmp_path / name / f"{what}.parquet") for what in ("models", "assignments")]
    (models, states), (expected, all_states) = results["lacking"], results["unseen"]
    assert models.equals(expected)
    assert models["missing"].to_list() == [3]
    seen = pl.Series(range(40)).is_in([5, 6, 20])
    assert states["state"].to_list() == all_states.filter(~seen)["state"].to_list()
