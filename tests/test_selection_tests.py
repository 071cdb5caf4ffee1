"""Selection of models, likelihood-ratio tests and profile intervals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import jaxem as jem

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def case(name: str) -> Any:
    if not (SHARED / "reference_cases.json").exists():
        pytest.skip("the cases stay out of the project")
    (found,) = [c for c in json.loads((SHARED / "reference_cases.json").read_text())["cases"] if c["name"] == name]
    return found["data"]


@pytest.mark.slow
def test_every_candidate_is_told_and_the_best_is_chosen() -> None:
    x = np.asarray(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 20.0])).sample(0, 150))
    best = jem.select(1, ["poisson", "geometric"], x, components=[1, 2, 3], restarts=3, folds=3)
    table = best.table()
    assert table["family"].to_list() == ["poisson"] * 3 + ["geometric"] * 3
    assert table.filter(table["chosen"])[["family", "components"]].rows() == [("poisson", 2)]
    assert best.fit.model.components.rate.shape == (2,)
    for row in table.iter_rows(named=True):
        k = row["components"]
        value, p, n = row["log_likelihood"], 2 * k - 1, 150
        assert row["p"] == p
        wanted = {
            "bic": -2 * value + p * np.log(n), "aic": -2 * value + 2 * p, "caic": -2 * value + p * (np.log(n) + 1),
            "aicc": -2 * value + 2 * p + 2 * p * (p + 1) / (n - p - 1), "sabic": -2 * value + p * np.log((n + 2) / 24),
        }  # fmt: skip
        for name, number in wanted.items():
            np.testing.assert_allclose(row[name], number, rtol=1e-6)
    one = table.row(0, named=True)
    np.testing.assert_allclose(one["log_likelihood"], stats.poisson.logpmf(x, x.mean()).sum(), rtol=1e-6)
    np.testing.assert_allclose([one["icl"], one["nec"]], [one["bic"], 1.0], rtol=1e-6)
    two, model = table.row(1, named=True), best.fit.model
    entropy = float(jem.entropy(model, x))
    np.testing.assert_allclose(two["icl"], two["bic"] + 2 * entropy, rtol=1e-6)
    np.testing.assert_allclose(two["nec"], entropy / (two["log_likelihood"] - one["log_likelihood"]), rtol=1e-4)
    assert table["cv"][1] > max(table["cv"][0], table["cv"][3])
    assert table["cv"][1] < two["log_likelihood"]
    with pytest.warns(UserWarning, match="2, is the largest that was tried"):
        jem.select(1, "poisson", x, components=[1, 2], restarts=3)


@pytest.mark.slow
def test_many_data_sets_and_sequences_have_their_own_best() -> None:
    chain = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Poisson([1.0, 12.0]))
    sequences = jem.Sequences.from_list([np.asarray(chain.sample(0, 1, 80)[0]), np.asarray(chain.sample(1, 1, 50)[0])])
    with pytest.warns(UserWarning, match="largest"):
        best = jem.select(0, "poisson", sequences, components=[1, 2], restarts=2)
    assert isinstance(best.fit.model, jem.HMM)
    assert best.fit.model.initial.shape == (2,)
    np.testing.assert_allclose(best.scores["bic"][0, 0], -2 * best.scores["log_likelihood"][0, 0] + np.log(130))
    sets = [jem.Poisson(4.0).sample(0, 60), jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 20.0])).sample(1, 90)]
    many = jem.select_many(2, "poisson", sets, components=[1, 2, 3], restarts=2)
    assert [many.best_of(i).model.components.rate.shape for i in range(2)] == [(1,), (2,)]
    assert many.table()["problem"].to_list() == [0] * 3 + [1] * 3
    with pytest.raises(ValueError, match="2 data sets"):
        _ = many.fit


@pytest.mark.slow
def test_the_number_of_components_is_tested_with_the_same_search() -> None:
    x = np.array(case("old_faithful_gmm")["X"])
    models = [jem.Mixture.start(0, jem.Gaussian, x, k, restarts=8) for k in (1, 2)]
    small, large = (jem.fit(model, x) for model in models)
    told = jem.likelihood_ratio_test(1, small, large, x, 39, restarts=2)
    np.testing.assert_allclose(told.statistic, 319.065353532, rtol=1e-5)
    assert told.degrees == 6
    assert told.p_value == 1 / 40
    assert told.exceedances == told.failures == told.lost == 0
    # Where there is one component, the test ends after a few replicates.
    single = np.random.default_rng(0).normal(size=(100, 2))
    models = [jem.fit(jem.Mixture.start(0, jem.Gaussian, single, k, restarts=4), single) for k in (1, 2)]
    early = jem.likelihood_ratio_test(2, *models, single, 199, restarts=2, exceedances=5)
    assert early.exceedances == 5 or early.p_value < 0.1
    assert len(early.replicates) <= 199
    with pytest.raises(ValueError, match="different numbers of hidden states"):
        jem.likelihood_ratio_test(0, small, large, x, None)
    with pytest.raises(ValueError, match="it must have more"):
        jem.likelihood_ratio_test(0, large, small, x)


@pytest.mark.slow
def test_a_regular_test_is_chi_squared() -> None:
    x = np.asarray(jem.Gamma(2.0, 1.0).sample(0, 200))
    small = jem.fit(jem.hold(jem.Gamma(1.0, 1.0), "shape"), x, tol=1e-12)
    large = jem.fit(jem.Gamma(1.0, 1.0), x, tol=1e-12)
    told = jem.likelihood_ratio_test(0, small, large, x, None)
    best = max(stats.gamma.logpdf(x, *stats.gamma.fit(x, floc=0)).sum(), float(large.log_likelihood))
    ratio = 2 * (best - stats.expon.logpdf(x, 0, x.mean()).sum())
    np.testing.assert_allclose([told.statistic, told.p_value], [ratio, stats.chi2.sf(ratio, 1)], rtol=1e-4)


@pytest.mark.slow
def test_profile_ends_are_where_the_likelihood_has_fallen() -> None:
    data = case("times_death_notices")
    x, weight = np.array(data["value"], float), np.array(data["freq"], float)
    start = jem.Mixture([0.36, 0.64], jem.Poisson([1.256, 2.6634]))
    fit = jem.fit(start, x, weight=weight, tol=1e-12, max_steps=20_000)
    ends = jem.profile_interval(fit, x, lambda model: model.weights[0], weight=weight)
    assert ends.status == ("ok", "ok")

    def profile(share: float) -> float:
        def loss(logs: np.ndarray) -> float:
            each = [
                np.log(w) + stats.poisson.logpmf(x, np.exp(r)) for w, r in zip((share, 1 - share), logs, strict=True)
            ]
            return -float(weight @ np.logaddexp(*each))

        tried = [
            optimize.minimize(loss, np.log(s), options={"gtol": 1e-10}) for s in ([1.256, 2.66], [0.5, 2.3], [1.8, 4])
        ]
        return -min(one.fun for one in tried)

    wanted = profile(0.3598853969849348) - stats.chi2.ppf(0.95, 1) / 2
    for found, low, high in ((ends.lower, 0.01, 0.35), (ends.upper, 0.36, 0.99)):
        np.testing.assert_allclose(
            found, optimize.brentq(lambda s: profile(s) - wanted, low, high, xtol=1e-9), atol=1e-7
        )
    spec = importlib.util.spec_from_file_location("linkage", ROOT / "docs" / "examples" / "linkage.py")
    assert spec is not None
    assert spec.loader is not None
    linkage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(linkage)
    table = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    # At the maximum itself, the root of a quadratic equation.
    model = linkage.Linkage(np.array(linkage.LIMIT), jem.Categorical(table))
    ends = jem.profile_interval(model, linkage.ROWS, lambda model: model.p, weight=linkage.COUNTS)
    np.testing.assert_allclose([ends.lower, ends.upper], [0.5215553405224046, 0.7217148158956648], atol=1e-8)


def test_intervals_and_selections_of_nothing_say_so() -> None:
    with pytest.raises(ValueError, match="level is 2"):
        jem.profile_interval(jem.Poisson(1.0), [1.0], lambda model: model.rate, 2)
    with pytest.raises(ValueError, match="criterion is 'best'"):
        jem.select(0, "poisson", [1.0], criterion="best")
    with pytest.raises(ValueError, match="must give one number"):
        jem.profile_interval(jem.Poisson([1.0]), [1.0], lambda model: model.rate)
    assert jax.tree.leaves(jem.Poisson(1.0))[0].dtype == jnp.result_type(float)
