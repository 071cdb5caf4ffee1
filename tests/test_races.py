"""Many races: profiles that add up, and a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.evaluation.race import setting

pytestmark = pytest.mark.slow

SOLVERS = {"EM": jem.EM(), "Anderson": jem.Anderson(jem.EM()), "sgd": jem.Gradient(optax.sgd(0.1))}


@pytest.fixture(scope="module")
def races() -> jem.Races:
    starts, xs = [], []
    for i, apart in enumerate(np.linspace(2.0, 6.0, 6)):
        truth = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0], [apart]], jnp.ones((2, 1, 1))))
        xs.append(truth.sample(jax.random.key(i), 150))
        starts.append(jem.Mixture.start(jax.random.key(i), jem.Gaussian, xs[-1], 2))
    return jem.compare_many(starts, xs, SOLVERS, max_steps=400)


def test_rates_are_those_of_the_best_places(races: jem.Races) -> None:
    assert ((races.rates > 0) & (races.rates < 1)).all()
    # Less is hidden where components stand apart.
    assert races.rates[-1] < 0.5 < races.rates[0]


def test_profiles_are_those_of_the_costs(races: jem.Races) -> None:
    cost = races.cost("passes")
    solved = np.isfinite(cost).any(axis=1)
    ratio = np.full(cost.shape, np.inf)
    ratio[solved] = cost[solved] / cost[solved].min(axis=1, keepdims=True)
    at, shares = races.performance_profile("passes")
    assert at[0] == 1
    assert shares[0].sum() > solved.mean() - 1e-9  # somebody is best on every problem
    for t, share in zip(at, shares, strict=True):
        np.testing.assert_allclose(share, (ratio <= t).mean(axis=0))
    budgets, shares = races.data_profile()
    assert (np.diff(budgets) > 0).all()
    assert (np.diff(shares, axis=0) >= 0).all()
    np.testing.assert_allclose(shares[-1], np.isfinite(cost).mean(axis=0))
    np.testing.assert_allclose(budgets[0], cost.min() / 6)  # one weight, two means, two variances; and one


def test_who_never_arrives_costs_without_end(races: jem.Races) -> None:
    race = races.races[0]
    runs = tuple(dataclasses.replace(run, gap=run.gap + 1) for run in race.runs)
    only = jem.Races((dataclasses.replace(race, runs=runs),))
    assert np.isinf(only.cost()).all()
    assert not only.performance_profile()[1].any()
    assert only.table()["median passes"].to_list() == [None] * 3


def test_table_and_picture(races: jem.Races, tmp_path: Path) -> None:
    table = races.table()
    assert table["solver"].to_list() == list(SOLVERS)
    assert table["problems"].to_list() == [6] * 3
    assert table["solved to 1e-05"][0] >= 4
    races.plot().savefig(tmp_path / "races.png")


def test_settings_of_optax_are_told() -> None:
    assert setting(jem.Gradient(optax.adam(0.05))) == "Gradient(b1=0.9, b2=0.999, eps=1e-08, learning_rate=0.05)"
    assert setting(jem.Gradient(optax.sgd(0.1, momentum=0.9), batch_size=32)).endswith("batch_size=32)")
    assert setting(jem.SQUAREM(jem.EM())) == "SQUAREM(solver=EM())"


def test_bad_input(races: jem.Races) -> None:
    with pytest.raises(ValueError, match="models holds 1 and xs 2 problems"):
        jem.compare_many([jem.Poisson(1.0)], [jnp.ones(2), jnp.ones(2)], SOLVERS)
    with pytest.raises(ValueError, match="of is 'euros'"):
        races.cost("euros")
