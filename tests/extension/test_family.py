"""A family is one file and one decorator: `half_normal.py` takes its place everywhere, and nothing else knows of it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import scipy.stats
from half_normal import HalfNormal
from half_normal_by_row import HalfNormalByRow
from typer.testing import CliRunner

import families
import jaxem as jem
from jaxem.cli import app
from jaxem.distributions.registry import FAMILIES

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "laws"))
import table  # noqa: E402  (its folder is not the place of this file)

LAWS = {
    name: getattr(module, name)
    for module in map(importlib.import_module, ("test_essentials", "test_density", "test_em_laws"))
    for name in vars(module)
    if name in table.TABLE
}
GRID = (np.arange(0.005, 30, 0.01), 0.01)
KINDS = {
    word: families.Example(word, FAMILIES[word].example, FAMILIES[word].family, GRID, None, ("scale",))  # type: ignore
    for word in ("half_normal", "half_normal_by_row")
}
CAPABLE = (table.EVERY, table.MIXTURES, table.STARTED, table.LISTED, table.SCALE, table.EXPECTING)
X = np.array([0.5, 1.0, 4.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("word", KINDS)
@pytest.mark.parametrize("name", [n for n in LAWS if any(table.TABLE[n].concerns is each for each in CAPABLE)])
def test_the_laws_run_over_it(name: str, word: str, request: pytest.FixtureRequest) -> None:
    needed = [one for one in inspect.signature(LAWS[name]).parameters if one != "example"]
    LAWS[name](example=KINDS[word], **{one: request.getfixturevalue(one) for one in needed})


@pytest.mark.parametrize("family", [HalfNormal, HalfNormalByRow])
def test_it_is_scipys_and_its_fit_the_closed_form(family: Any) -> None:
    np.testing.assert_allclose(family([1.0, 2.5]).log_prob(X)[1], scipy.stats.halfnorm(scale=2.5).logpdf(X), rtol=1e-12)
    assert family(2.0).log_prob([-1.0, jnp.inf, jnp.nan]).tolist() == [-jnp.inf, -jnp.inf, 0]
    statistics = family([1.0, 1.0, 7.0]).statistics(X, jnp.array([[1.0] * 4, [0.0, 2.0, 0.5, 1.0], [0.0] * 4]))
    best = family([1.0, 1.0, 7.0]).m_step(statistics)
    np.testing.assert_allclose(best.scale, [np.sqrt(17.25 / 4), np.sqrt(10 / 3.5), 7])
    slope = jax.grad(lambda scale: family(scale).log_prob(jnp.array([-1.0, 2.0]))[1])(jnp.array(1.0))
    assert slope == 3


@pytest.mark.slow
@pytest.mark.parametrize("family", [HalfNormal, HalfNormalByRow])
def test_it_fits_in_mixtures_and_chains_with_missing_rows(family: Any, tmp_path: Path) -> None:
    truth = jem.Mixture([0.4, 0.6], family([0.3, 9.0]))
    x = np.array(truth.sample(jax.random.key(0), 4000))
    x[::10] = np.nan
    fit = jem.fit(jem.Mixture.start(jax.random.key(1), family, x, 2, restarts=2), x)
    assert fit.status_name == "converged"
    np.testing.assert_allclose(jnp.sort(fit.model.components.scale), [0.3, 9.0], rtol=0.1)
    filled = jem.Mixture([1.0], family([2.0])).impute(np.array([np.nan, 1.0]))
    np.testing.assert_allclose(filled, [2 * np.sqrt(2 / np.pi), 1.0])
    chain = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], family([0.3, 9.0]))
    sequences = jem.Sequences.from_list([*chain.sample(jax.random.key(2), 5), x[:50]])
    fitted = jem.fit(chain, sequences)
    assert fitted.converged
    jem.save(tmp_path / "chain", fitted.model)
    back = jem.load(tmp_path / "chain")
    assert type(back.emission) is family
    np.testing.assert_array_equal(back.log_prob(sequences), fitted.model.log_prob(sequences))


@pytest.mark.slow
def test_it_is_a_word_on_the_command_line(tmp_path: Path) -> None:
    file = ["--import", str(HERE / "half_normal.py")]
    listed = CliRunner().invoke(app.app, [*file, "families"]).output
    assert "half_normal " in listed
    assert "half-normal numbers; reads one column: numbers from 0 upward" in listed
    assert all(word in listed for word in FAMILIES)
    assert "log p(x) = log(2 / pi) / 2" in CliRunner().invoke(app.app, [*file, "families", "half-normal"]).output
    rows = np.abs(np.random.default_rng(0).normal(size=60)) * 3
    pl.DataFrame({"x": rows}).write_csv(tmp_path / "t.csv")
    fit = [*file, "fit", tmp_path / "t.csv", "--columns", "x", "--family", "half_normal", "--components", 1]
    run = CliRunner().invoke(app.app, [str(a) for a in (*fit, "--prior", "none", "--out", tmp_path / "out")])
    assert run.exit_code == 0, run.output
    (scale,) = np.ravel(pl.read_parquet(tmp_path / "out" / "models.parquet")["scale"].to_list())
    np.testing.assert_allclose(scale, np.sqrt(np.mean(rows**2)), rtol=1e-6)
    pl.DataFrame({"x": [*rows, -1.0]}).write_csv(tmp_path / "t.csv")
    run = CliRunner().invoke(app.app, [str(a) for a in (*fit, "--out", tmp_path / "other")])
    assert run.exit_code == 2
    assert "is below zero" in run.output
    bad = CliRunner().invoke(app.app, ["--import", "no_such_module", "families"])
    assert (bad.exit_code, bad.output.count("\n")) == (2, 1)
    assert "--import no_such_module: " in bad.output


def test_what_is_not_registered_says_how(tmp_path: Path) -> None:
    path = tmp_path / "model"

    class Own(HalfNormal):
        """Of the same fields."""

    with pytest.raises(TypeError, match=r"model is a Own; register it: @jem\.family\(word, about\) above the class"):
        jem.save(path, Own(1.0))
    jem.save(path, HalfNormal(1.0))
    bytes_ = path.read_bytes()
    path.write_bytes(bytes_.replace(b"HalfNormal", b"HalfAbsent"))
    with pytest.raises(ValueError, match=r"'HalfAbsent', which is not registered; import the module that defines it"):
        jem.load(path)


def test_a_word_or_a_class_that_is_there_already_says_where() -> None:
    with pytest.raises(
        ValueError, match=r"'half_normal' is registered already, for HalfNormal by half_normal \(.*py\)"
    ):

        @jem.family("half_normal", "others")
        class Other(jem.Family):
            """Nothing."""

    with pytest.raises(ValueError, match=r"HalfNormal is registered already, by half_normal \(.*py\); give"):

        @jem.structure
        class HalfNormal(jem.Family):
            """Nothing."""

    with pytest.raises(TypeError, match=r"Old\.harmless: say it as support = jem\.Support"):

        class Old(jem.Family):
            """As it was written once."""

            def harmless(self) -> float:
                return 1.0

    assert dataclasses.is_dataclass(FAMILIES["half_normal"].family)
