"""`jaxem race`: what it writes, that it is what `compare_many` finds, what it refuses."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import jaxem as jem
from jaxem.cli import app
from jaxem.cli.columns import ColumnModel
from jaxem.cli.race import report, run
from jaxem.cli.table import groups

pytestmark = pytest.mark.slow

STEPS = 60
QUICK = ["--columns", "k", "--family", "poisson", "--components", 2, "--solvers", "em,adam:0.1"]
QUICK += ["--max-steps", STEPS, "--min-rows", 10]


def jaxem(*arguments: object) -> Result:
    return CliRunner().invoke(app.app, ["race", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Groups a of 48 rows and b of 45, which are padded to 48, c with 3, d whose rows are all equal."""
    rng = np.random.default_rng(0)
    counts = [np.where(rng.random(n) < 0.4, rng.poisson(2, n), rng.poisson(far, n)) for n, far in ((48, 6), (45, 30))]
    rows = [("a", k) for k in counts[0].tolist()] + [("b", k) for k in counts[1].tolist()]
    rows += [("c", 1), ("c", 2), ("c", 5), *[("d", 4)] * 12]
    return pl.DataFrame(rows, schema=["g", "k"], orient="row").with_columns(t=pl.int_range(pl.len()))


@pytest.fixture(scope="module")
def table(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("race") / "t.csv"
    frame.write_csv(path)
    return path


@pytest.fixture(scope="module")
def done(table: Path) -> tuple[Path, Result]:
    out = table.parent / "deep" / "out"
    return out, jaxem(table, "--by", "g", *QUICK, "--starts", 2, "--seed", 3, "--out", out)


def read(done: tuple[Path, Result], name: str) -> pl.DataFrame:
    return pl.read_parquet(done[0] / f"{name}.parquet")


def test_files_and_a_summary(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "solvers.parquet",
        "problems.parquet",
        "runs.parquet",
    }
    for words in ("EM", "Adam 0.1", "fewest passes over the data on", "4 problems in", "2 groups left out"):
        assert words in result.stdout
    assert str(out / "report.html") in result.stdout.replace("\n", "")


def test_the_tables_are_those_of_compare_many(done: tuple[Path, Result], frame: pl.DataFrame) -> None:
    solvers = {"EM": jem.EM(), "Adam 0.1": jem.Gradient(optax.adam(0.1))}
    starts, xs = [], []
    for i, name in enumerate("ab"):
        x = frame.filter(pl.col("g") == name)["k"].to_numpy().astype(float)
        key = jax.random.fold_in(jax.random.key(3), i)
        begin = jem.Mixture.start(key, jem.Poisson, x, 2, restarts=2, method="kmeans++")
        starts += [jax.tree.map(lambda leaf, r=r: leaf[r], begin) for r in range(2)]
        xs += [x] * 2
    races = jem.compare_many(starts, xs, solvers, prior=jem.priors.Weak(), max_steps=STEPS)

    expected = races.table().drop("fastest", "median seconds")
    assert read(done, "solvers").select(expected.columns).equals(expected)

    problems = read(done, "problems")
    assert problems["problem"].to_list() == ["a, start 1", "a, start 2", "b, start 1", "b, start 2"]
    assert problems["table"].unique().to_list() == ["t.csv"]
    assert problems["group"].to_list() == ["a", "a", "b", "b"]
    assert problems["start"].to_list() == [1, 2, 1, 2]
    assert problems["rows"].to_list() == [48, 48, 45, 45]
    assert problems["free"].to_list() == [3] * 4
    np.testing.assert_allclose(problems["rate"], races.rates, rtol=1e-6)
    np.testing.assert_allclose(problems["best"], [race.best for race in races.races], rtol=1e-12)
    passes = races.cost("passes")
    fewest = [[name for name, p in zip(solvers, row, strict=True) if p == row.min() < np.inf] for row in passes]
    assert problems["fewest passes"].to_list() == [", ".join(names) for names in fewest]

    runs = read(done, "runs")
    direct = pl.concat([race.table() for race in races.races], how="vertical_relaxed")
    times = [name for name in direct.columns if "seconds" in name or name == "compile"]
    close = ["below the best"]
    assert runs["problem"].to_list() == np.repeat(problems["problem"].to_list(), 2).tolist()
    assert runs.drop("problem", *times, *close).equals(direct.drop(*times, *close))
    np.testing.assert_allclose(runs["below the best"], direct["below the best"], atol=1e-12)


def test_the_report_stands_alone_and_names_who_did_not_arrive(done: tuple[Path, Result]) -> None:
    html = (done[0] / "report.html").read_text()
    assert "http" not in html
    assert 'src="data:image/svg+xml;base64,' in html
    assert html.count("<img") == html.count("data:image/svg+xml;base64,") == 3
    for words in (
        "EM against gradient on t.csv",
        "Mixtures of 2",
        "2 groups, 2",
        "where most is hidden",
        "Gradient(b1=0.9, b2=0.999, eps=1e-08, learning_rate=0.1)",
        "Adam 0.1: max steps reached",
        "too few rows",
        "At least 10 rows",
        "no variation",
        "jaxem race",
        "--max-steps 60",
    ):
        assert words in html, words
    assert "--raw" not in html
    assert "--states" not in html


def test_nobody_arrives(table: Path, tmp_path: Path) -> None:
    hopeless = ["--by", "g", "--groups", 1, *QUICK, "--solvers", "adam:1e-9", "--max-steps", 5]
    result = jaxem(table, *hopeless, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "No solver came within 1e-05 nats a row" in " ".join(result.stdout.split())
    assert "<td>nobody</td>" in (tmp_path / "report.html").read_text()
    problems = pl.read_parquet(tmp_path / "problems.parquet")
    assert problems["fewest passes"].to_list() == problems["fastest"].to_list() == [None]
    assert pl.read_parquet(tmp_path / "runs.parquet").schema["passes to 1e-05"] == pl.Float64


def test_without_a_table_it_is_the_flights(tmp_path: Path) -> None:
    arguments = ["--groups", 1, "--components", 1, "--solvers", "em"]
    result = jaxem(*arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    problems = pl.read_parquet(tmp_path / "problems.parquet")
    assert problems.select("problem", "table", "rows", "free").rows() == [("N725MQ", "flights", 544, 5)]
    html = (tmp_path / "report.html").read_text()
    assert "jaxem race flights --columns dep_delay,arr_delay" in html
    assert "--by tailnum" in html


def test_several_tables_name_their_groups(frame: pl.DataFrame, tmp_path: Path) -> None:
    for name, group in (("x", "b"), ("y", "a")):
        frame.filter(pl.col("g") == group).write_parquet(tmp_path / f"{name}.parquet")
    files = [tmp_path / "x.parquet", tmp_path / "y.parquet"]
    assert jaxem(*files, "--by", "g", *QUICK, "--groups", 1, "--out", tmp_path).exit_code == 0
    problems = pl.read_parquet(tmp_path / "problems.parquet")
    assert problems.select("problem", "table", "group").rows() == [("y.parquet: a", "y.parquet", "a")]
    assert "the largest of 2 that could be raced" in " ".join((tmp_path / "report.html").read_text().split())


def test_a_table_without_groups_has_the_name_of_its_file() -> None:
    rows = groups.group(pl.DataFrame({"x": np.arange(30.0)}), ColumnModel.parse(["gaussian"], ["x"]))
    card = run.prepare({"t.csv": rows, "u.csv": rows}, run.Settings(size=1, groups=2))
    assert [problem.label for problem in card.problems] == ["t.csv", "u.csv"]


def test_hidden_markov_models_race_too(frame: pl.DataFrame, tmp_path: Path) -> None:
    frame.write_csv(tmp_path / "t.csv")
    model = ["--columns", "k", "--family", "poisson", "--states", 2, "--order", "t", "--by", "g", "--groups", 1]
    result = jaxem(tmp_path / "t.csv", *model, "--solvers", "em", "--max-steps", 200, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    problems = pl.read_parquet(tmp_path / "out" / "problems.parquet")
    assert problems["free"].to_list() == [1 + 2 + 2]
    assert "Hidden Markov models of 2" in (tmp_path / "out" / "report.html").read_text()


def grouped(family: str) -> groups.Grouped:
    rng = np.random.default_rng(1)
    frame = pl.DataFrame({"g": [1] * 20 + [2] * 30, "x": rng.normal(5, 9, 50), "y": rng.poisson(3, 50) + 0.0})
    return groups.group(frame, ColumnModel.parse(family.split(","), ["x", "y"]), ["g"])


def test_gaussian_columns_are_in_standard_units_within_each_group() -> None:
    given = grouped("gaussian")
    first = run.in_standard_units(given, [0])
    np.testing.assert_allclose(first.rows_of(0).mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(first.rows_of(0).std(axis=0), 1)
    np.testing.assert_array_equal(first.rows_of(1), given.rows_of(1))
    mixed = run.in_standard_units(grouped("gaussian,poisson"), [0, 1])
    np.testing.assert_allclose(mixed.rows_of(1)[:, 0].std(), 1)
    np.testing.assert_array_equal(mixed.x[:, 1], given.x[:, 1])
    # One variance for all columns: they must keep their proportions.
    spherical = run.in_standard_units(grouped("spherical"), [1]).rows_of(1).std(axis=0)
    np.testing.assert_allclose(np.square(spherical).mean(), 1)
    np.testing.assert_allclose(np.divide(*spherical), np.divide(*given.rows_of(1).std(axis=0)))


GOOD = "g,x,t\n" + "".join(f"a,{i % 7}.5,{i}\n" for i in range(30))
BAD = {
    "unknown solver": (["--solvers", "em,adma"], "--solvers adma: there is no such solver; choose from em, squarem,"),
    "a solver twice": (["--solvers", "em,adam,em"], "em is there twice"),
    "the usual rate twice": (["--solvers", "adam,adam:0.05"], "adam:0.05 is there twice"),
    "no solver": (["--solvers", ","], "--solvers is empty"),
    "a rate in words": (
        ["--solvers", "adam:fast"],
        "'fast' is not a learning rate above zero; write for example adam:",
    ),
    "a negative rate": (["--solvers", "sgd:-1"], "'-1' is not a learning rate above zero"),
    "a rate for EM": (["--solvers", "em:0.1"], "em has no learning rate"),
    "no such table": (["nothing.csv"], "nothing.csv: there is no such file"),
    "the table twice": (["t.csv", "t.csv"], "t.csv: the table is there twice"),
    "no such column": (["--columns", "xx"], "--columns xx: "),
    "no columns": (["--columns", ""], "--columns is empty"),
    "no such group column": (["--by", "h"], "--by h: "),
    "too few rows": (["--min-rows", "31"], "--min-rows: no group has 31 complete rows; the largest, t.csv, has 30"),
    "more components than rows": (["--components", "31"], "no group has 31 complete rows"),
    "no components": (["--components", "0"], "--components"),
    "an order without states": (["--order", "t"], "--order and --sequence are for hidden Markov models"),
    "components and states": (["--components", "2", "--states", "2"], "--components and --states: give one"),
    "a tolerance below zero": (["--tol", "-1"], "--tol -1.0: it must be"),
    "no float type": (["--dtype", "float16"], "--dtype float16: choose from float64, float32"),
    "no such option": (["--rate", "1"], "No such option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_no_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(GOOD)
    arguments, message = BAD[case]
    source = [] if arguments[0].endswith(".csv") else ["t.csv"]
    columns = [] if "--columns" in arguments else ["--columns", "x"]
    result = jaxem(*source, *arguments, *columns, "--out", "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("jaxem: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not Path("out").exists()


def test_newton_takes_models_with_few_numbers_only(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x\n" + "".join(f"{i % 50}.5\n" for i in range(120)))
    arguments = ["--columns", "x", "--components", 70, "--solvers", "em,newton", "--out", tmp_path / "out"]
    result = jaxem(tmp_path / "t.csv", *arguments)
    assert result.exit_code == 2
    assert "--solvers newton: the model has 209 free numbers, more than 200" in result.stderr


def test_all_rows_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x\n" + "1.5\n" * 30)
    result = jaxem(tmp_path / "t.csv", "--columns", "x", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "t.csv: all rows are the same" in result.stderr


@pytest.mark.parametrize(
    ("what", "error", "status"),
    [("compare_many", KeyboardInterrupt, 130), ("page", OSError("the disk is full"), 2)],
)
def test_nothing_is_half_written(
    what: str, error: Exception, status: int, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jem if what == "compare_many" else report, what, fail)
    result = jaxem(table, "--by", "g", *QUICK, "--out", tmp_path)
    assert result.exit_code == status
    assert result.stderr.count("\n") == 1
    assert ("nothing was written" if status == 130 else "cannot write there (the disk is full)") in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_reads_well() -> None:
    said = " ".join(CliRunner().invoke(app.app, ["race", "--help"], env={"COLUMNS": "200"}).output.split())
    for words in (
        "Race EM against gradient methods",
        "em,squarem,anderson,lbfgs,adam,sgd",
        "runs.parquet",
        "last digits",
    ):
        assert words in said
