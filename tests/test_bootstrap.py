"""Order of components, fits that share rows, and the bootstrap."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.uncertainty.alignment import assignment

SHARED = Path(__file__).parents[2] / "shared"


def test_the_best_assignment_is_that_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    for size in range(1, 7):
        gain = rng.normal(size=(size, size))
        best = max(sum(gain[order[k], k] for k in range(size)) for order in itertools.permutations(range(size)))
        found = assignment(gain)
        assert sorted(found) == list(range(size))
        np.testing.assert_allclose(gain[found, np.arange(size)].sum(), best)


@pytest.mark.slow
def test_a_model_in_another_order_is_the_same_model() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, 2))
    order = np.array([2, 0, 1])
    mixture = jem.Mixture([0.2, 0.3, 0.5], jem.TiedGaussian(rng.normal(size=(3, 2)), np.eye(2)))
    chain = jem.HMM(
        rng.dirichlet(np.ones(3)),
        rng.dirichlet(np.ones(3), 3),
        jem.Gaussian(mixture.components.mean, np.tile(np.eye(2), (3, 1, 1))),
    )
    for model in (mixture, chain):
        turned = model.reordered(order)
        np.testing.assert_allclose(turned.log_prob(x), model.log_prob(x), rtol=1e-12)
        np.testing.assert_allclose(turned.posterior(x), model.posterior(x)[..., order], rtol=1e-9)
    each = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), mixture.reordered(order), mixture, mixture.reordered([1, 2, 0])
    )
    found = jem.align(each, mixture, x)
    assert found.order.tolist() == [[1, 2, 0], [0, 1, 2], [2, 0, 1]]
    assert (found.agreement == 1).all()
    for leaf, wanted in zip(jax.tree.leaves(found.models), jax.tree.leaves(mixture), strict=True):
        np.testing.assert_array_equal(leaf, np.stack([wanted] * 3))
    for order, words in (([0, 0, 1], "each number from 0 to 2 once"), ([[0, 1, 2]], "it must be")):
        with pytest.raises(ValueError, match=words):
            mixture.reordered(order)
    with pytest.raises(ValueError, match="holds or ties some"):
        jem.hold(mixture, {"weights": [True, False, False]}).reordered([1, 0, 2])


@pytest.mark.slow
def test_fits_that_share_rows_are_those_of_copies() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(30, 2)) + 4])
    x[3, 1] = np.nan
    start = jem.Mixture([0.5, 0.5], jem.Gaussian([[0.0, 0.0], [4.0, 4.0]], np.tile(np.eye(2), (2, 1, 1))))
    weight = rng.multinomial(70, np.full(70, 1 / 70), size=5).astype(float)
    models = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), start)
    shared = jem.fit_many(models, x, weight=weight, shared=True)
    copied = jem.fit_many(models, np.stack([x] * 5), weight=weight)
    for one, other in zip(jax.tree.leaves(shared), jax.tree.leaves(copied), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    with pytest.raises(ValueError, match=r"weight has shape \(\); with shared rows it must be \(5, rows\)"):
        jem.fit_many(models, x, shared=True)


@pytest.mark.slow
def test_old_faithful_varies_as_mclust_says() -> None:
    if not (SHARED / "uncertainty_cases.json").exists():
        pytest.skip("the cases stay out of the project")
    names = ("uncertainty_cases.json", "reference_cases.json")
    cases, data = (json.loads((SHARED / name).read_text())["cases"] for name in names)
    (case,) = [c for c in cases if c["name"] == "faithful_vvv2_se"]
    (data,) = [c for c in data if c["name"] == "old_faithful_gmm"]
    x = np.array(data["data"]["X"])
    covariance = np.tile([[0.1, 0.5], [0.5, 35.0]], (2, 1, 1))
    fit = jem.fit(jem.Mixture([0.4, 0.6], jem.Gaussian([[2.0, 54.0], [4.3, 80.0]], covariance)), x, tol=1e-9)
    for kind, name in (("rows", "bs"), ("weights", "wlbs"), ("parametric", "pb"), ("jackknife", "jk")):
        told = jem.bootstrap(1, fit, x, 400, kind)
        wanted = case["mclust"][name]
        error = told.standard_error
        assert not told.failures
        assert told.agreement.min() > 0.9
        # Of 400 replicates 3.5 % on top of the 12 % that two bootstraps of 999 may differ by.
        np.testing.assert_allclose(error.weights, [wanted["w"]] * 2, rtol=0.15)
        np.testing.assert_allclose(error.components.mean, [wanted["mu_short"], wanted["mu_long"]], rtol=0.15)
        if kind == "jackknife":
            np.testing.assert_allclose(error.weights[0], wanted["w"], rtol=2e-3)
            with pytest.raises(ValueError, match="a jackknife has no quantiles"):
                told.interval()
        if kind == "rows":
            lower, _ = told.interval(0.95, "bca")
            percentile = told.interval(0.95)
            assert (lower.components.mean < fit.model.components.mean).all()
            np.testing.assert_allclose(lower.components.mean, percentile[0].components.mean, rtol=0.02)
            basic = told.interval(0.95, "basic")
            np.testing.assert_allclose(basic[0].weights, 2 * fit.model.weights - percentile[1].weights)


@pytest.mark.slow
def test_standard_errors_of_means_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(3)
    x = rng.gamma(2.0, size=60)
    fit = jem.fit(jem.Exponential(1.0), x)
    off = 1 / x.mean()
    exact = np.sqrt(59 / 60 * np.sum(((60 - 1) / (x.sum() - x) - np.mean(59 / (x.sum() - x))) ** 2))
    np.testing.assert_allclose(jem.bootstrap(0, fit, x, kind="jackknife").standard_error.rate, exact, rtol=1e-9)
    # The same rows, counted: as many refits as distinct rows.
    distinct = np.array([1.0, 2.0, 5.0])
    counted = jem.bootstrap(0, jem.Exponential(0.5), distinct, kind="jackknife", weight=[30.0, 20.0, 10.0])
    plain = jem.bootstrap(0, jem.Exponential(0.5), np.repeat(distinct, [30, 20, 10]), kind="jackknife")
    np.testing.assert_allclose(counted.standard_error.rate, plain.standard_error.rate, rtol=1e-9)
    assert len(counted.status) == 3
    drawn = jem.bootstrap(0, fit, x, 2000, "parametric").standard_error.rate
    np.testing.assert_allclose(drawn, off / np.sqrt(60), rtol=0.08)


@pytest.mark.slow
def test_what_is_drawn_is_like_the_data() -> None:
    key = jax.random.key(0)
    lines = jem.Mixture([0.5, 0.5], jem.LinearRegression([[1.0], [-1.0]], [0.0, 10.0], [0.01, 0.01]))
    x = np.array([[1.0, 2.0], [5.0, np.nan], [7.0, 3.0]])
    drawn = lines.sample_like(key, x)
    np.testing.assert_array_equal(drawn.values[:, 0], x[:, 0])
    assert np.isnan(drawn.values[:, 1]).tolist() == [False, True, False]
    assert (np.abs(drawn.values[0, 1] - np.array([1.0, 9.0])) < 1).any()
    chain = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Poisson([2.0, 9.0]))
    sequences = jem.Sequences.from_list([np.array([1.0, np.nan, 3.0]), np.array([4.0])])
    again = chain.sample_like(key, sequences)
    np.testing.assert_array_equal(again.length, sequences.length)
    np.testing.assert_array_equal(again.seen, sequences.seen)
    with pytest.raises(ValueError, match="x holds one sequence"):
        jem.bootstrap(0, chain, np.array([1.0, 2.0, 3.0]), 10, "rows")
    # Watched for 1 or 2 units of time, half of them each; drawn again, as many are censored, and at those times.
    rng = np.random.default_rng(0)
    lasts, ends = rng.exponential(1.0, 4000), np.tile([1.0, 2.0], 2000)
    seen = np.stack([np.minimum(lasts, ends), np.where(lasts <= ends, lasts, np.inf)], axis=1)
    told = np.asarray(jem.Censored(jem.Exponential(1.0)).sample_like(key, seen))
    censored = np.isinf(told[:, 1])
    assert set(told[censored, 0]) == {1.0, 2.0}
    assert (told[~censored, 0] == told[~censored, 1]).all()
    for time in (1.0, 2.0):
        before, after = (np.mean(np.isinf(rows[:, 1]) & (rows[:, 0] == time)) for rows in (seen, told))
        np.testing.assert_allclose(after, before, atol=0.03)


def test_a_bootstrap_of_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="kind is 'bayes'"):
        jem.bootstrap(0, jem.Poisson(1.0), [1.0, 2.0], 10, "bayes")
    model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0]))
    with pytest.raises(ValueError, match="labels belong to the rows"):
        jem.bootstrap(0, model, [1.0, 2.0], 10, labels=[0, 1])
