"""Every family that the command line knows: it starts, its parameters have names, and it can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

import jaxem as jem
from jaxem import plot
from jaxem.cli import app
from jaxem.cli.columns import FAMILIES, ColumnModel, ColumnUse, parameter_names
from jaxem.cli.table import groups
from jaxem.latent.components import fixed_states, map_states

pytestmark = pytest.mark.slow

mpl.use("agg")
N = 40


def jaxem(*arguments: object) -> Result:
    return CliRunner().invoke(app.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Columns that every family can read."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet([2, 3, 4], N)
    last = rng.weibull(2, N) * 5
    return pl.DataFrame(
        {
            "positive": rng.gamma(3, 2, N),
            "count": rng.poisson(4, N).clip(0, 9) * 1.0,
            "yes": (rng.random(N) < 0.5) * 1.0,
            "share": share[:, 0],
            "b": share[:, 1],
            "c": share[:, 2],
            "angle": rng.vonmises(1, 2, N),
            "lower": np.minimum(last, 6),
            "upper": np.where(last < 6, last, np.nan),
        }
    ).fill_nan(None)


def columns(word: str) -> list[str]:
    """What a family can read of the table."""
    entry = FAMILIES[word]
    if entry.reads is ColumnUse.ends:
        return ["lower", "upper"]
    if entry.reads is ColumnUse.response:
        return ["positive", "angle", "yes" if word == "logistic_regression" else "count"]
    if entry.reads in (ColumnUse.one, ColumnUse.alone):
        special = {"bernoulli": "yes", "beta": "share", "von_mises": "angle", "laplace": "angle"}
        return [special.get(word, "count" if entry.support.outside.startswith("is not a count") else "positive")]
    return ["count", "yes", "positive"] if word == "multinomial" else ["share", "b", "c"]


def kind_of(word: str) -> ColumnModel:
    factors = 2 if word in ("factor_analysis", "ppca") else None
    return ColumnModel.parse([word], columns(word), [9] if word == "binomial" else [], factors)


def read(word: str, frame: pl.DataFrame) -> groups.Grouped:
    frame = frame.with_columns(pl.col("positive").round()) if word == "multinomial" else frame
    return groups.group(frame, kind_of(word))


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "student_t": {"location": (3, 3), "scatter": (3, 3, 3), "dof": (3,)},
    "factor_analysis": {"mean": (3, 3), "loadings": (3, 3, 2), "noise": (3, 3)},
    "censored_gaussian": {"mean": (3, 1), "covariance": (3, 1, 1)},
    "linear_regression": {"coefficients": (3, 2), "intercept": (3,), "variance": (3,)},
    "multinomial": {"probs": (3, 3)},
    "dirichlet": {"concentration": (3, 3)},
    "gamma": {"shape": (3,), "rate": (3,)},
    "zero_inflated_poisson": {"rate": (3,)},
}


@pytest.mark.parametrize("word", FAMILIES)
def test_a_start_has_parameters_with_names(word: str, frame: pl.DataFrame) -> None:
    """Shapes only: nothing is compiled."""
    grouped = read(word, frame)
    x = jnp.asarray(grouped.kind.rows(grouped.x))[None]
    begin = jax.eval_shape(lambda x: jem.start_many(jax.random.key(0), grouped.kind.family, x, 3), x)
    models = jax.tree.map(lambda leaf: np.ones(leaf.shape), begin)
    weights, *found = grouped.kind.parameters(models)
    assert (weights.name, weights.values.shape) == ("weights", (1, 3))
    for parameter in found:
        assert parameter.name in parameter_names()
        assert tuple(map(len, parameter.entries)) == parameter.values.shape[1 + parameter.states :]
    if word in SHAPES:
        assert {parameter.name: parameter.values.shape[1:] for parameter in found} == SHAPES[word]
    entries = {parameter.name: parameter.entries for parameter in found}
    if word == "linear_regression":
        assert entries["coefficients"] == (("positive", "angle"),)
    if word == "factor_analysis":
        assert entries["loadings"] == (("share", "b", "c"), ("1", "2"))
    assert str(grouped.kind)


@pytest.mark.parametrize(
    "word", ["gamma", "censored_weibull", "poisson_regression", "zero_inflated_poisson", "dirichlet"]
)
def test_it_can_be_drawn(word: str, frame: pl.DataFrame) -> None:
    members: dict[str, Any] = {
        "gamma": jem.Gamma([0.5, 9.0], [0.1, 2.0]),
        "censored_weibull": jem.Censored(jem.Weibull([1.0, 2.0], [3.0, 5.0])),
        "poisson_regression": jem.PoissonRegression([[0.1, 0.2], [0.0, 0.1]], [1.0, 0.5]),
        "zero_inflated_poisson": jem.Either((jem.PointMass([0.0]), jem.Poisson([4.0]))),
        "dirichlet": jem.Dirichlet([[1.0, 2.0, 3.0], [3.0, 1.0, 1.0]]),
    }
    grouped = read(word, frame)
    model, ax = jem.Mixture([0.5, 0.5], members[word]), Figure().add_subplot()
    component = np.arange(len(grouped.x)) % 2
    plot.mixture(model, grouped.kind.rows(grouped.x), ax, grouped.kind.columns, component=component)
    assert ax.get_xlim()[0] < ax.get_xlim()[1]
    assert np.isfinite(ax.get_ylim()).all()
    assert not plot.has_ellipses(model)
    lines = {"gamma": 3, "censored_weibull": 5, "poisson_regression": 2, "zero_inflated_poisson": 3, "dirichlet": 0}
    assert len(ax.lines) == lines[word]


def test_columns_of_several_families(frame: pl.DataFrame, tmp_path: Path) -> None:
    """Each column takes what was seen of it."""
    gap = pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col("positive"))
    frame.select(gap.alias("p"), k="count").write_parquet(tmp_path / "t.parquet")
    arguments = ["--columns", "p,k", "--family", "exponential,geometric", "--components", 2, "--restarts", 1]
    result = jaxem("fit", tmp_path / "t.parquet", *arguments, "--max-steps", 30, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    row = pl.read_parquet(tmp_path / "models.parquet").row(0, named=True)
    assert list(row)[-2:] == ["p_rate", "k_probs"]
    with jax.enable_x64(True):
        members = jem.Exponential(row["p_rate"]), jem.Geometric(row["k_probs"])
        x = frame.select(gap, "count").to_numpy()
        log_likelihood = jem.Mixture(row["weights"], jem.Product(members)).log_prob(x).sum()
    assert row["n"] == N
    assert row["log_likelihood"] == pytest.approx(float(log_likelihood), rel=1e-10)
    html = " ".join((tmp_path / "report.html").read_text().split())
    assert "1 of the rows lacks one of its cells" in html
    assert "<td>k_probs</td>" in html


def test_zeros_keep_their_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    counts = np.where(rng.random(80) < 0.2, 0, rng.poisson(np.where(rng.random(80) < 0.3, 4, 30)))
    pl.DataFrame({"k": counts}).write_parquet(tmp_path / "t.parquet")
    arguments = ["--columns", "k", "--family", "zero_inflated_poisson", "--components", "1:3", "--restarts", 2]
    result = jaxem("fit", tmp_path / "t.parquet", *arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert pl.read_parquet(tmp_path / "selection.parquet")["components"].to_list() == [2, 3]
    row = pl.read_parquet(tmp_path / "models.parquet").row(0, named=True)
    assert row["rate"][0] is None
    assert row["rate"][1:] == pytest.approx([30, 4], rel=0.2)
    assert row["weights"][1] > row["weights"][2]
    with jax.enable_x64(True):
        members = jem.Either((jem.PointMass([0.0]), jem.Poisson(row["rate"][1:])))
        log_likelihood = jem.Mixture(row["weights"], members).log_prob(counts * 1.0).sum()
    assert row["log_likelihood"] == pytest.approx(float(log_likelihood), rel=1e-10)


def test_states_of_two_families_are_cut_apart() -> None:
    members = jem.Either((jem.PointMass([[0.0]]), jem.Poisson([[1.0, 2.0]])))
    models = jem.Mixture([[0.2, 0.3, 0.5]], members)
    assert fixed_states(models) == 1
    swapped = map_states(lambda a, axis: np.take(a, [0, 2, 1], axis), jax.tree.map(np.asarray, models))
    assert swapped.weights.tolist() == [[0.2, 0.5, 0.3]]
    assert [part.tolist() for part in jax.tree.leaves(swapped.components)] == [[[0.0]], [[2.0, 1.0]]]
