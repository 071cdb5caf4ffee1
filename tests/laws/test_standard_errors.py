"""Laws of standard errors: what must hold of every family and structure, whatever its numbers are."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from table import EVERY, Model, law

import jaxem as jem
from jaxem.core.coordinates import flat
from jaxem.fitting.regularisation import regularisers
from jaxem.solvers.objective import value_and_gradient
from jaxem.uncertainty.edges import determined
from jaxem.uncertainty.information import climbed, directions

STEP = 1e-5


@jax.jit
def facts(model: Any, x: Any, weight: Any) -> dict[str, Any]:
    """Gradient and information of a model on rows; scores by forward derivatives; central differences."""
    free, model_at = flat(model)
    data = model.expand(model.observe(x))
    floor, pseudo = regularisers(model, x, weight, None)
    moves, _ = determined(model, floor)
    look = climbed(model, data, weight, pseudo, moves, 0)[1]
    scores = directions(lambda z: model_at(z).log_prob(data), free)[1]
    of_floor = jax.grad(lambda z: model_at(z).expected_log_prob(pseudo))(free)

    def difference(k: Any) -> Any:
        step = STEP * (jnp.arange(free.size) == k).astype(free.dtype)
        ends = [
            ravel_pytree(value_and_gradient(model_at(z), data, weight, pseudo)[2])[0]
            for z in (free + step, free - step)
        ]
        return (ends[1] - ends[0]) / (2 * STEP)

    differences = jax.lax.map(difference, jnp.arange(free.size))
    return {
        "gradient": look.gradient - of_floor,
        "scores": scores,
        "observed": look.observed,
        "complete": look.complete,
        "differences": differences,
        "moves": moves,
    }


@law(EVERY)
def test_information_is_minus_the_derivative_of_the_gradient(example: Model) -> None:
    """Scores of rows add up to the gradient by Fisher's identity; the information is a central difference of it."""
    model, x = example.model(), example.data(24)
    weight = jnp.asarray(np.random.default_rng(3).uniform(0.5, 1.5, 24))
    found = facts(model, x, weight)
    size = np.abs(found["scores"]).sum(1).max()
    np.testing.assert_allclose(found["scores"] @ weight, found["gradient"], rtol=1e-8, atol=1e-9 * size)
    scale = np.sqrt(np.abs(np.diag(found["complete"])))
    unit = np.where(scale > 0, scale, 1)
    differences = (found["differences"] + found["differences"].T) / 2
    np.testing.assert_allclose(
        found["observed"] / np.outer(unit, unit), differences / np.outer(unit, unit), atol=2e-6 * max(1.0, size / 24)
    )
    still = ~np.asarray(found["moves"])
    assert (np.asarray(found["observed"])[still] == 0).all()


def poissons(weights: Any = (0.4, 0.6), rates: Any = (2.0, 9.0)) -> jem.Mixture:
    return jem.Mixture(np.array(weights), jem.Poisson(np.array(rates)))


COUNTS = np.asarray(poissons().sample(jax.random.key(0), 60), float)
FIT = {"tol": 1e-15, "max_steps": 5000}


@pytest.mark.slow
def test_the_missing_information_is_the_variance_of_scores() -> None:
    """Louis 1982, by enumeration of the components of five rows."""
    model, x = poissons(), jnp.asarray(COUNTS[:5])
    free, model_at = flat(model)

    def complete(z: Any, k: int, i: int) -> Any:
        at = model_at(z)
        return jnp.log(at.weights[k]) + jax.scipy.stats.poisson.logpmf(x[i], at.components.rate[k])

    scores = np.array([[jax.grad(partial(complete, k=k, i=i))(free) for k in range(2)] for i in range(5)])
    share = np.asarray(model.posterior(x))
    mean = np.einsum("ik,ikp->ip", share, scores)
    variance = np.einsum("ik,ikp,ikq->pq", share, scores, scores) - mean.T @ mean
    found = facts(model, x, jnp.ones(5))
    np.testing.assert_allclose(found["complete"] - found["observed"], variance, atol=1e-10)


@pytest.mark.slow
def test_the_sandwich_is_the_sum_of_squared_influences() -> None:
    """Of each row on the fit, by the derivative of the fit with respect to its weight; and EM's rate."""
    fit = jem.fit(poissons(), COUNTS, **FIT)
    influence = jax.jacrev(lambda w: jem.fit(poissons(), COUNTS, weight=w, **FIT).model.components.rate)(jnp.ones(60))
    errors = jem.uncertainty(fit, COUNTS, kind="sandwich")
    np.testing.assert_allclose(errors.standard_error.components.rate, np.sqrt((influence**2).sum(1)), rtol=1e-7)
    np.testing.assert_allclose(errors.missing_information[0], jem.em_rate(errors.model, COUNTS), rtol=1e-8)


@pytest.mark.slow
def test_the_order_of_components_orders_errors() -> None:
    fit = jem.fit(poissons(), COUNTS, **FIT).model
    other = jem.Mixture(fit.weights[::-1], jem.Poisson(fit.components.rate[::-1]))
    here, there = jem.uncertainty(fit, COUNTS), jem.uncertainty(other, COUNTS)
    np.testing.assert_allclose(
        there.standard_error.components.rate, here.standard_error.components.rate[::-1], rtol=1e-9
    )
    assert here.status == there.status


@pytest.mark.slow
def test_known_labels_leave_nothing_missing() -> None:
    labels = (COUNTS > 5).astype(int)
    fit = jem.fit(poissons(), COUNTS, labels=labels, **FIT)
    errors = jem.uncertainty(fit, COUNTS, labels=labels)
    np.testing.assert_allclose(errors.missing_information, 0, atol=1e-9)
    parts = [COUNTS[labels == k] for k in (0, 1)]
    wanted = [np.sqrt(part.mean() / len(part)) for part in parts]
    np.testing.assert_allclose(errors.standard_error.components.rate, wanted, rtol=1e-9)


@pytest.mark.slow
def test_a_gaussian_has_the_errors_of_the_textbook() -> None:
    """Nothing is hidden: sd / sqrt n of a mean, variance sqrt(2 / n) of a variance; in any units."""
    x = np.random.default_rng(0).normal(size=(40, 2)) @ np.array([[1.0, 0.4], [0.0, 1.0]])
    for factor, offset in ((1.0, 0.0), (1e3, 1e4)):
        rows = factor * x + offset
        covariance = np.cov(rows.T, bias=True)
        errors = jem.uncertainty(jem.Gaussian(rows.mean(0), covariance), rows)
        wanted = np.sqrt(np.diag(covariance) / 40)
        np.testing.assert_allclose(errors.standard_error.mean, wanted, rtol=1e-6)
        spread = np.sqrt((np.outer(*[np.diag(covariance)] * 2) + covariance**2) / 40)
        np.testing.assert_allclose(errors.standard_error.covariance, spread, rtol=1e-6)
        np.testing.assert_allclose(errors.missing_information, 0, atol=1e-6)
        assert errors.status_name == "ok"


@pytest.mark.slow
def test_factors_are_known_up_to_a_rotation() -> None:
    """Errors of what no rotation changes are those of the covariance that the model implies."""
    rng = np.random.default_rng(1)
    # Of five columns two factors are hardly determined: EM crawls to a noise of nearly zero.
    x = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 8)) + rng.normal(size=(300, 8)) * 0.7
    fit = jem.fit(jem.FactorAnalysis(np.zeros(8), rng.normal(size=(8, 2)), np.ones(8)), x, tol=1e-13, max_steps=5000)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = jem.FactorAnalysis(fit.model.mean, fit.model.loadings @ turn, fit.model.noise)
    here, there = jem.uncertainty(fit, x), jem.uncertainty(turned, x)
    for errors in (here, there):
        assert errors.status_name == "rotation_free"
        assert np.isnan(errors.standard_error.loadings).all()
    np.testing.assert_allclose(here.standard_error.noise, there.standard_error.noise, rtol=1e-6)
    common = [errors.delta(lambda m: m.loadings @ m.loadings.T) for errors in (here, there)]
    np.testing.assert_allclose(*common, rtol=1e-6)
    assert np.isfinite(common[0]).all()


@pytest.mark.slow
def test_a_nan_stays_with_its_component() -> None:
    """A component on ties has no errors; those of the other are the errors of its rows alone."""
    x = np.concatenate([np.full(20, 50.0), np.random.default_rng(0).normal(size=30)])[:, None]
    start = jem.Mixture([0.4, 0.6], jem.DiagonalGaussian([[50.0], [0.0]], [[1.0], [1.0]]))
    fit = jem.fit(start, x, tol=1e-12)
    errors = jem.uncertainty(fit, x)
    assert errors.status_name == "covariance_collapsed"
    found = errors.standard_error.components
    assert np.isnan([found.mean[0, 0], found.variance[0, 0]]).all()
    np.testing.assert_allclose(found.mean[1, 0], np.sqrt(x[20:].var() / 30), rtol=1e-6)


@pytest.mark.slow
def test_many_parameters_need_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems of equations give what matrices give."""
    from jaxem.uncertainty import compute

    fit = jem.fit(poissons(), COUNTS, **FIT)
    dense = {kind: jem.uncertainty(fit, COUNTS, kind=kind) for kind in ("observed", "sandwich")}
    monkeypatch.setattr(compute, "DENSE", 2)
    for kind, wanted in dense.items():
        found = jem.uncertainty(fit, COUNTS, kind=kind)
        assert found.covariance is None
        assert found.status == wanted.status
        for a, b in zip(jax.tree.leaves(found.standard_error), jax.tree.leaves(wanted.standard_error), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(found.missing_information[0], wanted.missing_information[0], rtol=1e-6)
        mean = lambda m: m.weights @ m.components.rate
        np.testing.assert_allclose(found.delta(mean), wanted.delta(mean), rtol=1e-6)
        np.testing.assert_allclose(found.wald(mean).statistic, wanted.wald(mean).statistic, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["mixture", "chain", "regression", "gaps"])
def test_intervals_cover(which: str) -> None:
    """95 % intervals of 2,000 simulations hold the truth in 93 to 97 % of them."""
    key, problems = jax.random.key(7), 2000
    if which == "mixture":
        truth = poissons()
        xs = np.asarray(truth.sample(key, problems * 200)).reshape(problems, 200)
    elif which == "chain":
        truth = jem.HMM([0.5, 0.5], [[0.8, 0.2], [0.3, 0.7]], jem.Poisson([2.0, 9.0]))
        # Of eight sequences no interval of an initial probability is too short: one of seven is near one half, too.
        xs = [
            jem.Sequences(x, np.full(40, 10))
            for x in np.asarray(truth.sample(key, problems * 40, 10)).reshape(problems, 40, 10)
        ]
    elif which == "regression":
        truth = jem.LinearRegression([1.0], 0.5, 2.0)
        rng = np.random.default_rng(0)
        z = rng.normal(size=(problems, 100))
        xs = np.stack([z, z + 0.5 + rng.normal(size=z.shape) * np.sqrt(2)], axis=-1)
    else:
        truth = jem.Gaussian([0.0, 1.0], [[1.0, 0.6], [0.6, 2.0]])
        xs = np.array(truth.sample(key, problems * 100)).reshape(problems, 100, 2)
        xs[:, ::3, 1] = np.nan
    starts = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (problems, *np.shape(leaf))), truth)
    fits = jem.fit_many(starts, xs, tol=1e-9, max_steps=3000)
    errors = jem.uncertainty_many(fits, xs)
    lower, upper = errors.interval(0.95)
    sound = np.asarray(errors.status) < jem.ErrorStatus.no_information
    assert sound.mean() > 0.98
    ends = (map(np.asarray, jax.tree.leaves(each)) for each in (lower, upper, truth))
    for low, high, true in zip(*ends, strict=True):
        known = np.isfinite(low)
        covered = np.where(known, (low <= true) & (true <= high), np.nan)[sound]
        if known[sound].mean() > 0.9:
            share = np.nanmean(covered, axis=0)
            assert ((share > 0.925) & (share < 0.97)).all(), (which, share)
