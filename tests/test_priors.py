"""Priors: pseudo-statistics mean what their names say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxem as jem
from jaxem.distributions.base import add

pytestmark = pytest.mark.slow

priors = jem.priors


def log_prior(prior: object, model: object) -> np.ndarray:
    return np.asarray(model.expected_log_prob(prior.statistics(model, None, None)))  # type: ignore[attr-defined]


def test_beta_dirichlet_and_gamma_are_the_densities_of_scipy() -> None:
    p = np.array([0.2, 0.6, 0.9])
    ours = log_prior(priors.Beta(2.5, 4.0), jem.Bernoulli(p))
    np.testing.assert_allclose(np.diff(ours), np.diff(stats.beta(2.5, 4.0).logpdf(p)))
    probs = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    alpha = np.array([2.0, 1.0, 3.0])
    ours = log_prior(priors.Dirichlet(alpha), jem.Categorical(probs))
    np.testing.assert_allclose(np.diff(ours), np.diff([stats.dirichlet(alpha).logpdf(row) for row in probs]))
    rate = np.array([0.5, 2.0, 7.0])
    ours = log_prior(priors.Gamma(3.0, 2.0), jem.Poisson(rate))
    np.testing.assert_allclose(np.diff(ours), np.diff(stats.gamma(3.0, scale=1 / 2.0).logpdf(rate)))


def test_normal_inverse_wishart_is_the_density_of_scipy(rng: np.random.Generator) -> None:
    mean, scatter, dof, mean_rows = np.array([1.0, -1.0]), np.array([[2.0, 0.5], [0.5, 1.0]]), 5.0, 3.0
    means = rng.normal(size=(4, 2))
    roots = rng.normal(size=(4, 2, 2)) + 2 * np.eye(2)
    covariances = roots @ np.swapaxes(roots, 1, 2)
    ours = log_prior(priors.NormalInverseWishart(mean, mean_rows, scatter, dof), jem.Gaussian(means, covariances))
    theirs = [
        stats.invwishart(dof, scatter).logpdf(c) + stats.multivariate_normal(mean, c / mean_rows).logpdf(m)
        for m, c in zip(means, covariances, strict=True)
    ]
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs), rtol=1e-10)


def test_pseudo_rows_are_rows(rng: np.random.Generator) -> None:
    """A prior made of a model's own mean statistics pulls exactly as that many rows of it would, on average."""
    like = jem.Gaussian(np.array([1.0, 2.0]), np.array([[2.0, 0.3], [0.3, 1.0]]))
    model = jem.Gaussian(np.zeros(2), np.eye(2))
    x = rng.normal(size=(50, 2))
    weight = jnp.ones(50)
    pseudo = priors.PseudoRows(25.0, like).statistics(model, x, weight)
    fitted = model.m_step(add(model.statistics(x, weight), pseudo))
    np.testing.assert_allclose(fitted.mean, (x.sum(0) + 25 * np.array([1.0, 2.0])) / 75)
    second = x.T @ x + 25 * (np.asarray(like.covariance) + np.outer(like.mean, like.mean))
    np.testing.assert_allclose(fitted.covariance, second / 75 - np.outer(fitted.mean, fitted.mean))


def test_pseudo_rows_broadcast_over_members() -> None:
    model = jem.Mixture([0.5, 0.5], jem.Categorical([[0.5, 0.5], [0.1, 0.9]]))
    prior = priors.Structured({"components": priors.PseudoRows(4.0, jem.Categorical([0.25, 0.75]))})
    made = prior.statistics(model, jnp.zeros(3), jnp.ones(3))
    np.testing.assert_allclose(made.child, [[1.0, 3.0], [1.0, 3.0]])
    np.testing.assert_allclose(made.counts, 0)


FAMILIES = [jem.Gaussian, jem.TiedGaussian, jem.DiagonalGaussian, jem.SphericalGaussian]


@pytest.mark.parametrize("family", FAMILIES)
def test_weak_prior_keeps_ties_from_collapsing_and_moves_little(family: type, rng: np.random.Generator) -> None:
    x = np.concatenate([np.round(rng.normal(size=(60, 2)) * 4), np.zeros((20, 2))])
    start = jem.Mixture.start(jax.random.key(0), family, x, 3, restarts=3)
    held = jem.fit(start, x, prior=priors.Weak(1.0))
    assert held.status_name == "converged"
    free = jem.fit(held.model, x)  # what the prior holds back: without it, the likelihood climbs on from there
    assert float(held.log_likelihood) <= float(free.log_likelihood) + 1e-6
    assert np.nanmin(np.diff(np.asarray(held.trace))) > -1e-8

    healthy = np.concatenate([rng.normal(size=(400, 2)), rng.normal(size=(400, 2)) + 5])
    start = jem.Mixture.start(jax.random.key(0), family, healthy, 2)
    free, held = jem.fit(start, healthy), jem.fit(start, healthy, prior=priors.Weak(1.0))
    assert abs(float(free.log_likelihood - held.log_likelihood)) < 0.05


def test_weak_prior_of_columns_is_that_of_the_row(rng: np.random.Generator) -> None:
    """Independent columns, written as one family, as two, or as one of each kind."""
    x = np.exp(rng.normal(size=(40, 2)) + 2 * rng.integers(0, 2, (40, 1)))
    place, variance = np.array([[0.0, 0.5], [2.0, 2.5]]), np.ones((2, 2))
    logs = [jem.LogNormal(place[:, d], variance[:, d]) for d in range(2)]
    gaussian = jem.DiagonalGaussian(place, variance)
    halves = [jem.DiagonalGaussian(place[:, d : d + 1], variance[:, d : d + 1]) for d in range(2)]
    fits = [
        jem.fit(jem.Mixture([0.5, 0.5], child), rows, prior=jem.priors.Weak(2.0), max_steps=5)
        for child, rows in [
            (gaussian, np.log(x)),
            (jem.Product(tuple(halves)), np.log(x)),
            (jem.Product(tuple(logs)), x),
            (jem.Independent(jem.LogNormal(place, variance)), x),
        ]
    ]
    for fit in fits[1:]:
        np.testing.assert_allclose(fit.model.weights, fits[0].model.weights, rtol=1e-9)
    found = fits[2].model.components.parts[0].scale, fits[3].model.components.base.scale[:, 0]
    for variance in (fits[1].model.components.parts[0].variance[:, 0], *(scale**2 for scale in found)):
        np.testing.assert_allclose(variance, fits[0].model.components.variance[:, 0], rtol=1e-8)


def test_weak_prior_is_equivariant_to_scale_and_offset(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(30, 2)) + 3])
    start = jem.Mixture.start(jax.random.key(0), jem.Gaussian, x, 2)
    moved = jem.Mixture(
        start.weights, jem.Gaussian(start.components.mean * 10 + 1000, start.components.covariance * 100)
    )
    one = jem.fit(start, x, prior=priors.Weak())
    other = jem.fit(moved, x * 10 + 1000, prior=priors.Weak())
    np.testing.assert_allclose(other.log_likelihood, one.log_likelihood - 70 * 2 * np.log(10.0), rtol=1e-8)
    np.testing.assert_allclose(other.model.components.covariance, one.model.components.covariance * 100, rtol=1e-5)


REGRESSIONS = {
    "linear": jem.LinearRegression,
    "poisson": jem.PoissonRegression,
    "logistic": jem.LogisticRegression,
    "experts": jem.LinearRegression,
}


@pytest.mark.parametrize("case", REGRESSIONS)
def test_weak_prior_of_regressions_does_not_see_the_origin_and_unit_of_inputs(
    case: str, rng: np.random.Generator, dtype: object
) -> None:
    """Dates written as yyyymmdd, or inputs in millionths, are as good as any: starts and fits differ in the line alone.

    Numbers that float32 holds just as well after moving.
    """
    z, side = 16 * np.round(rng.uniform(-400, 400, size=120)), rng.random(120) < 0.5
    predictor = np.where(side, 1.5, -1.0) * z / 3000 + np.where(side, 2, -1)
    response = {
        "poisson": lambda: rng.poisson(np.exp(predictor)),
        "logistic": lambda: rng.random(120) < 1 / (1 + np.exp(-predictor)),
    }.get(case, lambda: predictor + 0.3 * rng.normal(size=120))()
    kind = jem.MixtureOfExperts if case == "experts" else jem.Mixture
    fitted, found = jax.jit(lambda model, x: jem.fit(model, x, prior=priors.Weak(), tol=1e-9, max_steps=25)), []
    for offset, unit in ((0.0, 1.0), (2e7, 1.0), (0.0, 2.0**20)):
        x = np.stack([z * unit + offset, response], axis=1).astype(dtype)
        fit = fitted(kind.start(jax.random.key(0), REGRESSIONS[case], x, 2), x)
        assert fit.status_name in {"converged", "max_steps_reached", "precision_exhausted"}
        members = fit.model.experts if case == "experts" else fit.model.components
        found.append((fit.objective, fit.log_likelihood, members.coefficients * unit, fit.model.posterior(x)))
    close = 1e-9 if dtype == jnp.float64 else 1e-3
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=close, atol=close)


def test_a_prior_of_another_model_is_refused(rng: np.random.Generator) -> None:
    x = rng.normal(size=(10, 1))
    model = jem.Mixture.start(jax.random.key(0), jem.Gaussian, x, 2)
    with pytest.raises(ValueError, match="prior has the structure"):
        jem.fit(model, x, prior=jnp.ones(3))
    with pytest.raises(ValueError, match="Weak"):
        jem.fit(jem.Poisson(1.0), [1.0, 2.0], prior=priors.Weak())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.Dirichlet(0.5), "concentration is 0.5"),
        (lambda: priors.Beta(0.0, 1.0), "successes is 0"),
        (lambda: priors.Gamma(1.0, -1.0), "exposure is -1"),
        (lambda: priors.NormalInverseWishart(0.0, -1.0, np.eye(2), 4.0), "mean_rows is -1"),
        (lambda: priors.PseudoRows(-1.0, jem.Poisson(1.0)), "rows is -1"),
        (lambda: priors.Weak(-1.0), "rows is -1"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
