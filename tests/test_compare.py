"""A race: everybody from the same start, told apart by what they reach and what it took."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.evaluation.race import Run

pytestmark = pytest.mark.slow

TRUTH = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [2.5, 1.0]], jnp.stack([jnp.eye(2)] * 2)))
SOLVERS = {
    "EM": jem.EM(),
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Adam": jem.Gradient(optax.adam(0.05)),
    "L-BFGS": jem.LBFGS(),
    "annealed": jem.AnnealedEM([2.0, 1.5]),
}


@pytest.fixture(scope="module")
def race() -> jem.Race:
    x = TRUTH.sample(jax.random.key(0), 200)
    return jem.compare(TRUTH, x, SOLVERS, max_steps=1500)


def test_gaps_are_to_the_best_of_all(race: jem.Race) -> None:
    assert race.rows == 200
    for run in race.runs:
        assert run.gap[-1] >= -1e-12
        np.testing.assert_allclose(race.best - run.gap[-1] * 200, run.fit.objective, rtol=1e-12)
    first = race.runs[0].gap[0]
    assert all(run.gap[0] == pytest.approx(first) for run in race.runs if run.name != "annealed")
    assert min(run.gap[-1] for run in race.runs) < 1e-7


def test_the_table_says_when_each_arrived(race: jem.Race) -> None:
    table = race.table()
    assert table["solver"].to_list() == list(SOLVERS)
    assert set(table["status"]) == {"converged"}
    assert not table["other optimum"].any()
    em, fast = table.row(0, named=True), table.row(1, named=True)
    assert em["passes"] == em["steps"] + 1
    assert em["passes to 0.001"] <= em["passes to 1e-05"] <= em["passes to 1e-07"] <= em["passes"]
    assert fast["passes to 1e-07"] < em["passes to 1e-07"]
    assert table["setting"].to_list()[0] == "EM()"
    search = table.row(3, named=True)
    assert search["passes"] > search["steps"]


def test_arrival_is_for_good() -> None:
    run = jem.compare(jem.Poisson(1.0), jnp.array([1.0, 2.0]), {"EM": jem.EM()}).runs[0]
    wavering = Run(run.name, run.solver, run.fit, 1.0, 0.0, 0.0, np.array([1.0, 0.0, 0.5, 0.0]))
    assert wavering.arrival(0.1) == 3
    assert wavering.arrival(0.6) == 1
    assert wavering.arrival(-1.0) is None


def test_the_picture_has_everybody(race: jem.Race, tmp_path: Path) -> None:
    figure = race.plot()
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == list(SOLVERS)
    figure.savefig(tmp_path / "race.png")


def test_a_failure_is_in_the_table() -> None:
    x = jnp.array([1.0, -3.0])
    race = jem.compare(jem.Poisson(1.0), x, {"EM": jem.EM()})
    assert race.table()["status"].to_list() == ["impossible_data"]


def test_nobody_to_race_is_refused() -> None:
    with pytest.raises(ValueError, match="solvers is empty"):
        jem.compare(TRUTH, jnp.zeros((3, 2)), {})
