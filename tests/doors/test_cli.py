"""The command line: what it writes, what it refuses, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import jaxem as jem
from jaxem.cli import app
from jaxem.cli.fit import run, schedule

QUICK = ["--components", "1:2", "--restarts", "2"]


def jaxem(*arguments: object) -> Result:
    return CliRunner().invoke(app.app, ["fit", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups a (two clusters, one null), b (one cluster), c (too small), d (all rows equal), and rows without group."""
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0, 1, (30, 2)), rng.normal(20, 1, (15, 2))])
    one = rng.normal(5, 2, (40, 2))
    rows = [("a", *row) for row in two] + [("b", *row) for row in one]
    rows += [("c", 1.0, 2.0), ("c", 2.0, 1.0)] + [("d", 3.0, 3.0)] * 12 + [(None, *row) for row in one[:12] * 2]
    frame = pl.DataFrame(rows, schema=["g", "x", "y"], orient="row")
    frame = frame.with_columns(x=pl.when(pl.int_range(pl.len()) == 4).then(None).otherwise(pl.col("x")))
    path = tmp_path_factory.mktemp("table") / "t.csv"
    frame.write_csv(path)
    return path


@pytest.fixture(scope="module")
def done(table: Path) -> tuple[Path, Result]:
    out = table.parent / "deep" / "out"
    return out, jaxem(table, "--by", "g", "--columns", "x,y", "--missing", "drop", *QUICK, "--out", out, "--assign")


def test_one_line_and_four_files(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    assert "3 of 5 groups" in result.stdout
    assert result.stderr == ""
    files = {"models.parquet", "selection.parquet", "assignments.parquet", "report.html"}
    assert {path.name for path in out.iterdir()} == files


def test_models_has_a_row_for_each_group(done: tuple[Path, Result]) -> None:
    models = pl.read_parquet(done[0] / "models.parquet")
    names = "g n dropped components log_likelihood bic aic icl steps status weights mean covariance"
    assert models.columns == names.split()
    assert models["g"].to_list() == ["a", "b", "c", "d", None]
    assert models["n"].to_list() == [44, 40, 2, 12, 12]
    assert models["dropped"].to_list() == [1, 0, 0, 0, 0]
    assert models["status"].to_list()[:4] == ["converged", "converged", "too_few_rows", "no_variation"]
    assert models["components"].to_list()[:4] == [2, 1, None, None]
    assert models.schema["mean"] == pl.List(pl.List(pl.Float64))
    assert models.schema["covariance"] == pl.List(pl.List(pl.List(pl.Float64)))
    without = models.filter(pl.col("components").is_null())
    assert without.select(pl.exclude("g", "n", "dropped", "status")).null_count().sum_horizontal().sum() == 2 * 9


def test_scores_are_those_of_the_data_alone(done: tuple[Path, Result], table: Path) -> None:
    row = pl.read_parquet(done[0] / "models.parquet").row(0, named=True)
    x = pl.read_csv(table).filter(pl.col("g") == "a").drop_nulls().select("x", "y").to_numpy()
    with jax.enable_x64(True):
        model = jem.Mixture(row["weights"], jem.Gaussian(row["mean"], row["covariance"]))
        log_likelihood = float(model.log_prob(x).sum())
    assert row["log_likelihood"] == pytest.approx(log_likelihood, rel=1e-12)
    assert row["bic"] == pytest.approx(-2 * log_likelihood + 11 * np.log(44), rel=1e-12)
    assert row["aic"] == pytest.approx(-2 * log_likelihood + 22, rel=1e-12)
    assert row["icl"] >= row["bic"]
    assert row["weights"] == sorted(row["weights"], reverse=True)


def test_selection_has_a_row_for_each_group_and_number(done: tuple[Path, Result]) -> None:
    selection = pl.read_parquet(done[0] / "selection.parquet")
    models = pl.read_parquet(done[0] / "models.parquet")
    assert selection.height == 5 * 2
    assert selection["components"].to_list() == [1, 2] * 5
    chosen = selection.filter("chosen")
    for name in ("components", "log_likelihood", "bic", "icl", "steps", "status"):
        assert chosen[name].to_list() == models.filter(pl.col("components").is_not_null())[name].to_list()
    best = selection.group_by("g", maintain_order=True).agg(pl.col("bic").min())["bic"]
    assert best.to_list() == models["bic"].to_list()


def test_assignments_are_rows_of_the_table(done: tuple[Path, Result], table: Path) -> None:
    assigned = pl.read_parquet(done[0] / "assignments.parquet")
    assert assigned.columns == ["row", "g", "component", "probability"]
    assert assigned["row"].to_list() == list(range(1, pl.read_csv(table).height + 1))
    assert assigned["g"].to_list() == pl.read_csv(table)["g"].to_list()
    a = assigned.filter(pl.col("g") == "a")["component"].to_list()
    assert a == [0] * 4 + [None] + [0] * 25 + [1] * 15
    assert assigned.filter(pl.col("g") == "d")["component"].null_count() == 12
    assert assigned["probability"].drop_nulls().is_between(0.5, 1 + 1e-12).all()


def test_the_report_stands_alone(done: tuple[Path, Result]) -> None:
    html = (done[0] / "report.html").read_text()
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("data:image/svg+xml;base64,") == 1
    for word in ("no variation", "too few rows", "converged", "of compilation", "t.csv", "jaxem fit"):
        assert word in html


def test_a_second_run_is_the_same_and_compiles_nothing(table: Path, tmp_path: Path) -> None:
    # Its own first run: what earlier tests compiled may have been dropped (see conftest).
    first, second = tmp_path / "first", tmp_path / "second"
    command = (table, "--by", "g", "--columns", "x,y", "--missing", "drop", *QUICK, "--assign", "--out")
    assert jaxem(*command, first).exit_code == 0
    compiled: list[float] = []
    listen = lambda event, seconds, **_: compiled.append(seconds) if event == run.COMPILING else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    result = jaxem(*command, second)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert result.exit_code == 0
    assert not compiled
    for name in ("models", "selection", "assignments"):
        assert pl.read_parquet(first / f"{name}.parquet").equals(pl.read_parquet(second / f"{name}.parquet"))


@pytest.mark.slow
def test_flags_of_the_program_around_it_stay(table: Path, tmp_path: Path) -> None:
    before = dict(jax.config.values)
    assert jaxem(table, "--columns", "x", "--components", 1, "--dtype", "float32", "--out", tmp_path).exit_code == 0
    assert dict(jax.config.values) == before
    assert jax.numpy.ones(1).dtype == jax.numpy.result_type(float)
    models = pl.read_parquet(tmp_path / "models.parquet")
    assert models["group"].to_list() == ["all"]
    assert models.schema["mean"] == pl.List(pl.List(pl.Float32))


MIXED = {
    "gaussian,poisson": (["x_mean", "x_variance", "count_rate"], ["x", "count"]),
    "tied": (["mean", "covariance"], ["x", "y"]),
    "spherical": (["mean", "variance"], ["x", "y"]),
    "bernoulli": (["probs"], ["yes"]),
    "binomial": (["probs"], ["count"]),
    "categorical": (["word_probs", "yes_probs", "word_categories", "yes_categories"], ["word", "yes"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXED)
def test_every_kind_of_column_has_its_parameters(family: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 24
    frame = pl.DataFrame({
        "x": rng.normal(size=n), "y": rng.normal(size=n), "count": rng.poisson(3, n).clip(0, 9),
        "yes": rng.random(n) < 0.5, "word": rng.choice(["no", "maybe", "sure"], n),
    })  # fmt: skip
    frame.write_parquet(tmp_path / "t.parquet")
    names, columns = MIXED[family]
    trials = ["--trials", 9] if family == "binomial" else []
    arguments = ["--columns", ",".join(columns), "--family", family, "--components", 2, "--restarts", 1]
    result = jaxem(tmp_path / "t.parquet", *arguments, *trials, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    row = pl.read_parquet(tmp_path / "models.parquet").row(0, named=True)
    assert list(row)[-len(names) :] == names
    assert len(row["weights"]) == 2
    shapes = {name: np.shape(row[name]) for name in names}
    expected = {
        "gaussian,poisson": {"x_mean": (2,), "x_variance": (2,), "count_rate": (2,)},
        "tied": {"mean": (2, 2), "covariance": (2, 2)},
        "spherical": {"mean": (2, 2), "variance": (2,)},
        "categorical": {"word_probs": (2, 3), "yes_probs": (2, 2), "word_categories": (3,), "yes_categories": (2,)},
    }
    assert shapes == expected.get(family, {"probs": (2,)})
    if family == "categorical":
        assert row["word_categories"] == ["maybe", "no", "sure"]
        assert np.allclose(np.sum(row["word_probs"], axis=1), 1)


@pytest.mark.slow
def test_more_components_than_a_group_has_rows_are_skipped_with_the_reason(tmp_path: Path) -> None:
    frame = pl.DataFrame({"g": [1, 1] + [2] * 20, "x": [0.0, 1.0, *np.random.default_rng(0).normal(size=20)]})
    frame.write_parquet(tmp_path / "t.parquet")
    arguments = ["--by", "g", "--columns", "x", "--components", "1,3", "--min-rows", 1, "--restarts", 1]
    assert jaxem(tmp_path / "t.parquet", *arguments, "--out", tmp_path).exit_code == 0
    selection = pl.read_parquet(tmp_path / "selection.parquet")
    assert selection["status"].to_list()[1] == "too_few_rows"
    assert selection["reason"].to_list()[1] == "3 components for 2 rows: more components than rows."
    assert selection["log_likelihood"].is_null().to_list() == [False, True, False, False]


GOOD = "g,x,k,w\n" + "".join(f"a,{i}.5,{i % 3},{'no' if i % 2 else 'yes'}\n" for i in range(12))
BAD = {
    "no such file": ("", ["nothing.csv", "--columns", "x"], "nothing.csv: there is no such file"),
    "no such column": (GOOD, ["--columns", "xx"], "--columns xx: "),
    "no such group column": (GOOD, ["--columns", "x", "--by", "h"], "--by h: "),
    "text among numbers": (GOOD + "a,oops,1,no\n", ["--columns", "x"], "column x, row 13: 'oops' is not a number"),
    "infinity": (GOOD + "a,inf,1,no\n", ["--columns", "x"], "column x, row 13: 'inf' is infinite"),
    "NaN": (GOOD + "a,nan,1,no\n", ["--columns", "x"], "column x, row 13: 'nan' is not a number"),
    "negative count": (GOOD + "a,1,-1,no\n", ["--columns", "k", "--family", "poisson"], "column k, row 13: '-1'"),
    "fractional count": (GOOD, ["--columns", "x", "--family", "poisson"], "column x, row 1: '0.5' is not a count"),
    "count above the total": (
        GOOD,
        ["--columns", "k", "--family", "binomial", "--trials", "1"],
        "column k, row 3: '2' is above the 1 of --trials",
    ),
    "no trials": (GOOD, ["--columns", "k", "--family", "binomial"], "--family binomial: it needs --trials"),
    "zero for a gamma": (
        GOOD,
        ["--columns", "k", "--family", "gamma"],
        "column k, row 1: '0' is not above zero; mend it, or choose another --family",
    ),
    "a negative time": (
        GOOD + "a,-1,1,no\n",
        ["--columns", "x", "--family", "exponential"],
        "row 13: '-1' is below zero",
    ),
    "no proportion": (GOOD, ["--columns", "x", "--family", "beta"], "column x, row 2: '1.5' is not between 0 and 1"),
    "degrees": (GOOD, ["--columns", "x", "--family", "von_mises"], "row 7: '6.5' is no angle in radians; divide"),
    "shares of two": (
        "a,b\n.5,.5\n.5,.6\n",
        ["--columns", "a,b", "--family", "dirichlet"],
        "row 2: its sum of 1.1 is not one; divide each row by its sum",
    ),
    "ends the wrong way": (
        "a,b\n1,\n,2\n3,2\n",
        ["--columns", "a,b", "--family", "censored_gaussian"],
        "column b, row 3: 2 is below the 3 of a; mend it, or leave it empty if the end is not known",
    ),
    "a time before zero": ("a,b\n-1,2\n", ["--columns", "a,b", "--family", "censored_weibull"], "'-1' is below zero"),
    "ends of one column": (
        GOOD,
        ["--columns", "x", "--family", "censored_weibull"],
        "--family censored_weibull: it reads two columns, a lower and an upper end, and --columns x is one",
    ),
    "a response alone": (
        GOOD,
        ["--columns", "x", "--family", "linear_regression"],
        "a response, and --columns x is one",
    ),
    "a response that is no count": (
        GOOD,
        ["--columns", "k,x", "--family", "poisson_regression"],
        "column x, row 1: '0.5' is not a count",
    ),
    "all columns beside others": (
        GOOD,
        ["--columns", "x,k", "--family", "ppca,gaussian"],
        "--family ppca: it reads all columns together, so it cannot be one of several; give it alone",
    ),
    "no factors": (GOOD, ["--columns", "x,k", "--family", "ppca"], "--family ppca: it needs --factors F"),
    "too many factors": (
        GOOD,
        ["--columns", "x,k", "--family", "factor_analysis", "--factors", "2"],
        "--factors 2: 2 columns can share 1 at most",
    ),
    "factors of Gaussians": (GOOD, ["--columns", "x", "--factors", "2"], "--factors is for factor_analysis and ppca"),
    "nothing beside the zeros": (
        GOOD,
        ["--columns", "k", "--family", "zero_inflated_poisson", "--components", "1"],
        "--components 1: --family zero_inflated_poisson needs 2 at least",
    ),
    "texts for what is missing": (
        GOOD,
        ["--columns", "x", "--missing", "NA"],
        "--missing NA: choose from em, drop; texts that stand for a missing number go into --null",
    ),
    "neither yes nor no": (
        GOOD,
        ["--columns", "k", "--family", "bernoulli"],
        "column k, row 3: '2' is neither 0 nor 1",
    ),
    "more components than rows": (GOOD, ["--columns", "x", "--components", "13"], "--components up to 13: "),
    "no components": (GOOD, ["--columns", "x", "--components", "0:3"], "--components 0:3: "),
    "components backwards": (GOOD, ["--columns", "x", "--components", "3:1"], "--components 3:1: "),
    "components in words": (GOOD, ["--columns", "x", "--components", "few"], "--components: 'few' is not"),
    "no rows": ("g,x\n", ["--columns", "x"], "the table has no rows"),
    "no bytes": ("", ["--columns", "x"], "the file is empty"),
    "only nulls": ("g,x\na,\nb,\n", ["--columns", "x"], "column x is null throughout"),
    "unknown family": (GOOD, ["--columns", "x", "--family", "gauss"], "--family gauss: there is no such family"),
    "families for other columns": (GOOD, ["--columns", "x", "--family", "poisson,gaussian"], "--family names 2"),
    "unknown criterion": (GOOD, ["--columns", "x", "--select", "dic"], "--select dic: choose from bic, aic, icl"),
    "unknown prior": (GOOD, ["--columns", "x", "--prior", "strong"], "--prior strong: choose from"),
    "beyond float32": (
        "x\n1\n1e300\n",
        ["--columns", "x", "--components", "1", "--dtype", "float32"],
        "x, row 2: 1e+300",
    ),
    "a column twice": (GOOD, ["--columns", "x,x"], "x is there twice"),
    "not a table": (GOOD, ["t.docx", "--columns", "x"], "t.docx: .docx is not a known kind of table"),
    "not Parquet": (GOOD, ["t.parquet", "--columns", "x"], "t.parquet: cannot be read as Parquet"),
    "not Arrow": (GOOD, ["t.arrow", "--columns", "x"], "t.arrow: cannot be read as Arrow"),
    "a folder": (GOOD, [".", "--columns", "x"], ": is a folder"),
    "option out of range": (GOOD, ["--columns", "x", "--restarts", "0"], "--restarts"),
    "no columns": (GOOD, [], "--columns"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_no_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, arguments, message = BAD[case]
    named = bool(arguments) and not arguments[0].startswith("--")
    source = arguments[0] if named else "t.csv"
    if case != "no such file" and source != ".":
        Path(source).write_text(content)
    result = jaxem(*([] if named else [source]), *arguments, "--out", "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("jaxem: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not Path("out").exists()


def test_groups_named_like_a_column_of_the_results(tmp_path: Path) -> None:
    """They get another name there, and a person is told; nothing was fitted, and the exit status says so."""
    frame = pl.DataFrame({"n": ["a", "b"], "status": [1, 1], "x": [1.0, 2.0]})
    frame.write_csv(tmp_path / "t.CSV")
    arguments = ["--by", "n,status", "--columns", "x", "--family", "Gaussian", "--components", 1, "--assign"]
    result = jaxem(tmp_path / "t.CSV", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == app.NOTHING_FITTED
    assert "jaxem: --by n is named by_n in the results\n" in result.stderr
    assert "none of 2 groups could be fitted" in result.stdout
    for name in ("models", "selection", "assignments"):
        keys = pl.read_parquet(tmp_path / "out" / f"{name}.parquet").select("by_n", "by_status")
        assert keys.rows() == [("a", 1), ("b", 1)]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    table, blocked = tmp_path / "t.csv", tmp_path / "file"
    table.write_text(GOOD)
    blocked.write_text("in the way")
    result = jaxem(table, "--columns", "x", "--out", blocked)
    assert result.exit_code == 2
    assert "cannot write there" in result.stderr
    assert blocked.read_text() == "in the way"


@pytest.mark.slow
def test_ctrl_c_leaves_the_finished_groups(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted when the first slab is stored: its groups are there, the others say that they are not."""
    store = run.Outcome.store

    def interrupt_after(self: run.Outcome, *arguments: object) -> None:
        store(self, *arguments)  # type: ignore[arg-type]
        if not self.interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(schedule, "SLAB", 1)
    monkeypatch.setattr(run.Outcome, "store", interrupt_after)
    arguments = ["--by", "g", "--columns", "x,y", "--components", 1, "--workers", 1, "--assign"]
    result = jaxem(table, *arguments, "--out", tmp_path)
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1
    assert "interrupted" in result.stderr
    models = pl.read_parquet(tmp_path / "models.parquet")
    assert models.height == 5
    words = models["status"].to_list()
    assert words.count("interrupted") >= 1
    assert words.count("converged") >= 1
    assert "This job was interrupted" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
def test_a_signal_ends_the_process_with_130(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["fit", "flights", "--by", "tailnum", "--columns", "dep_delay,arr_delay", "--out", str(out)]
    arguments += ["--family", "diagonal", "--components", "1", "--restarts", "1"]
    process = subprocess.Popen([sys.executable, "-m", "jaxem.cli.app", *arguments], stderr=subprocess.PIPE, text=True)
    while not out.exists() and process.poll() is None:
        # The folder is made just before the fits begin.
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.count("\n") == 1
    assert "interrupted" in said


def test_help_reads_well() -> None:
    result = CliRunner().invoke(app.app, ["--help"])
    assert result.exit_code == 0
    assert "fit" in result.output
    assert CliRunner().invoke(app.app, ["--version"]).output == f"jaxem {jem.__version__}\n"
