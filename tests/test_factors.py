"""Factor models: Gaussians whose covariance is never formed, against those that form it, peers and published fits."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as ss
from sklearn.decomposition import FactorAnalysis

import jaxem as jem
from families import e_step, m_step
from jaxem.core.pytree import replace
from oracles.test_published import case

pytestmark = pytest.mark.slow

SQUAREM = jem.SQUAREM(jem.EM())
ANDERSON = jem.Anderson(jem.EM())


def analysis(rng: np.random.Generator, d: int, f: int, *batch: int) -> jem.FactorAnalysis:
    shape = (*batch, d)
    return jem.FactorAnalysis(rng.normal(size=shape), rng.normal(size=(*shape, f)), rng.uniform(0.3, 2, shape))


def one(family: Any, x: Any, factors: int) -> Any:
    """A start for a single model."""
    return jax.jit(lambda x: family.start(x, jnp.ones(len(x), x.dtype), factors=factors))(x)


def rows_with(covariance: Any, n: int) -> np.ndarray:
    """Rows with just this covariance (divided by n) and a mean of zero."""
    z = np.random.default_rng(0).normal(size=(n, len(covariance)))
    q, _ = np.linalg.qr(z - z.mean(0))
    return np.sqrt(n) * q @ np.linalg.cholesky(covariance).T


def log_likelihood(covariance: Any, sample: Any, n: int) -> float:
    """Of n rows with this sample covariance, at their own mean."""
    scaled = np.trace(np.linalg.solve(covariance, sample))
    return -n / 2 * (len(sample) * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + scaled)


def test_density_is_that_of_the_covariance(rng: np.random.Generator) -> None:
    both = analysis(rng, 5, 2, 3), jem.PPCA(rng.normal(size=(3, 5)), rng.normal(size=(3, 5, 2)), rng.uniform(0.3, 2, 3))
    x = rng.normal(size=(20, 5)) * 3
    for model in both:
        found, covariance = model.log_prob(x), model.covariance
        for k in range(3):
            expected = ss.multivariate_normal(model.mean[k], covariance[k]).logpdf(x)
            np.testing.assert_allclose(found[k], expected, rtol=1e-10)


def test_a_distance_is_no_difference_of_large_numbers(rng: np.random.Generator) -> None:
    """In float32, of rows that factors explain all but a ten-millionth of: their squares alone are 1e7 times more."""
    exact = replace(analysis(rng, 20, 2), noise=jnp.full(20, 1e-7))
    x = np.asarray(exact.sample(jax.random.key(0), 50))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), exact)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), single)
    x = x.astype(np.float32)
    # What rounding the rows themselves does is in both.
    np.testing.assert_allclose(single.log_prob(x), exact.log_prob(x.astype(np.float64)), rtol=2e-2)


def test_factors_are_expected_given_the_row(rng: np.random.Generator) -> None:
    model, x = analysis(rng, 6, 2, 2), rng.normal(size=(9, 6))
    factors = model.transform(x)
    assert factors.shape == (2, 9, 2)
    for k in range(2):
        inverse = np.linalg.inv(model.covariance[k])
        np.testing.assert_allclose(factors[k], (x - np.asarray(model.mean[k])) @ inverse @ model.loadings[k], rtol=1e-9)


def test_a_rotation_is_not_counted(rng: np.random.Generator) -> None:
    model, x = analysis(rng, 7, 3), rng.normal(size=(5, 7))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = replace(model, loadings=model.loadings @ turn)
    np.testing.assert_allclose(turned.log_prob(x), model.log_prob(x), rtol=1e-12)
    assert jem.free_parameters(model) == 7 + (7 * 3 - 3) + 7
    assert jem.free_parameters(jem.PPCA(model.mean, model.loadings, 1.0)) == 7 + (7 * 3 - 3) + 1
    with pytest.raises(ValueError, match=r"FactorAnalysis: loadings has shape \(7, 3\) and noise \(6,\); with a mean"):
        jem.FactorAnalysis(model.mean, model.loadings, np.ones(6))


@pytest.mark.parametrize(
    ("factors", "metric", "solver"), [(1, "ll_corr", jem.EM()), (2, "ll_cov", SQUAREM), (2, "ll_cov", ANDERSON)]
)
def test_ability_and_intelligence(factors: int, metric: str, solver: Any) -> None:
    """Smith and Stanley 1983, six tests of 112 people (R's factanal). Two factors take plain EM thousands of steps."""
    found = case("factor_analysis_ability")
    covariance = np.array(found["data"]["cov"])
    sd = np.sqrt(np.diag(covariance)) if metric == "ll_corr" else np.ones(6)
    x = rows_with(covariance / np.outer(sd, sd), 112)
    expected = found["expected"]["computed"][str(factors)]
    fit = jem.fit(one(jem.FactorAnalysis, x, factors), x, solver, tol=1e-12)
    assert fit.status_name == "converged"
    assert fit.passes < 400
    np.testing.assert_allclose(fit.log_likelihood, expected[metric], atol=1e-8)
    variance = np.diag(covariance) / sd**2
    np.testing.assert_allclose(fit.model.noise / variance, expected["uniq"], rtol=1e-4)
    published = found["expected"]["published"][f"factanal_{factors}"]
    np.testing.assert_allclose(fit.model.noise / variance, published["uniq"], rtol=1e-4)
    shared = fit.model.loadings @ fit.model.loadings.T / np.sqrt(np.outer(variance, variance))
    np.testing.assert_allclose(shared, expected["LLt"], atol=1e-5)


def test_psychiatric_tests() -> None:
    """Maxwell 1961, ten tests of 148 people, three factors."""
    found = case("factor_analysis_maxwell")
    x, expected = rows_with(found["data"]["corr"], 148), found["expected"]["computed"]["3"]
    fit = jem.fit(one(jem.FactorAnalysis, x, 3), x, SQUAREM, tol=1e-12)
    assert fit.status_name == "converged"
    np.testing.assert_allclose(fit.log_likelihood, expected["ll_corr"], atol=1e-8)
    np.testing.assert_allclose(fit.model.noise, expected["uniq"], rtol=1e-5)


def test_ends_where_scikit_learn_and_the_eigenvalues_do() -> None:
    rng, n, f = np.random.default_rng(2), 300, 2
    x = rng.normal(size=(n, f)) @ rng.normal(size=(f, 8)) + rng.normal(size=(n, 8)) * rng.uniform(0.5, 2, 8) + 5
    sample = np.cov(x.T, bias=True)
    peer = FactorAnalysis(f, tol=1e-10, max_iter=3000, svd_method="lapack").fit(x)
    fit = jem.fit(one(jem.FactorAnalysis, x, f), x, SQUAREM, tol=1e-11)
    np.testing.assert_allclose(fit.log_likelihood, log_likelihood(peer.get_covariance(), sample, n), rtol=1e-9)
    np.testing.assert_allclose(fit.model.covariance, peer.get_covariance(), rtol=1e-3, atol=1e-3)
    # Tipping and Bishop 1999: the noise is the mean of the eigenvalues that are left out.
    values = np.linalg.eigvalsh(sample)
    spectrum = np.append(np.full(8 - f, values[:-f].mean()), values[-f:])
    components = jem.fit(one(jem.PPCA, x, f), x, SQUAREM, tol=1e-11)
    expected = -n / 2 * (8 * np.log(2 * np.pi) + np.log(spectrum).sum() + 8)
    np.testing.assert_allclose(components.log_likelihood, expected, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.eigvalsh(components.model.covariance), spectrum, rtol=1e-5)


def sizes(jaxpr: Any) -> set[tuple[int, ...]]:
    """The shapes of all that a program makes, its loops among it."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {tuple(getattr(variable.aval, "shape", ())) for variable in equation.outvars}
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= sizes(inner)
    return found


def test_many_columns() -> None:
    """More columns than a covariance could be formed for: nothing of columns x columns, or members x columns x rows."""
    d, f, n, k = 131, 3, 170, 7
    rng = np.random.default_rng(0)
    truth = analysis(rng, d, f)
    x = np.asarray(truth.sample(jax.random.key(1), n))

    def step(model: Any, x: Any) -> Any:
        log_prob, pullback = model.e_step(x)
        return model.m_step(pullback(log_prob)), log_prob, model.expected_log_prob(pullback(log_prob))

    shapes = sizes(jax.make_jaxpr(step)(analysis(rng, d, f, k), x).jaxpr)
    assert (d, n) in shapes
    assert not [shape for shape in shapes if shape.count(d) > 1 or {k, d, n} <= set(shape)]
    # The start is close: three steps of a subspace iteration find the span of the factors.
    start = one(jem.FactorAnalysis, x, f)
    fit = jem.fit(start, x)
    assert fit.status_name == "converged"
    assert fit.log_likelihood > truth.log_prob(x).sum()
    assert fit.log_likelihood - start.log_prob(x).sum() < 1e-3 * abs(fit.log_likelihood)
    assert fit.steps < 60


def test_a_column_that_factors_explain_wholly(rng: np.random.Generator) -> None:
    """A Heywood case: the noise of a column ends at its floor, and the status says so."""
    x = rng.normal(size=(80, 4))
    x = np.column_stack([x, x[:, 0]])
    fit = jem.fit(one(jem.FactorAnalysis, x, 1), x, ANDERSON)
    assert fit.status_name == "covariance_collapsed"
    assert np.isfinite(fit.log_likelihood)
    assert fit.model.noise[0] < 1e-6
    np.testing.assert_allclose(fit.model.noise[1:4], x[:, 1:4].var(0), rtol=0.1)


@pytest.mark.parametrize("family", [jem.FactorAnalysis, jem.PPCA])
def test_units_and_offsets_do_not_matter(family: Any, rng: np.random.Generator) -> None:
    """In float32, at 1e4, and in units of a millionth."""
    x = analysis(rng, 5, 2).sample(jax.random.key(0), 200)
    x = (np.round(np.asarray(x) * 64) / 64).astype(np.float32)

    @jax.jit
    def climbed(x: Any) -> Any:
        start = family.start(x, jnp.ones(len(x), x.dtype), factors=2)
        step = lambda _, m: m.m_step(m.e_step(x)[1](jnp.ones(len(x), x.dtype)))
        model = jax.lax.fori_loop(0, 5, step, start)
        return model.mean, model.covariance

    (mean, covariance), (there, far), (small, tiny) = map(climbed, (x, x + np.float32(1e4), x * np.float32(2.0**-20)))
    np.testing.assert_allclose(there - 1e4, mean, atol=4e-3)
    np.testing.assert_allclose(far, covariance, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(small * 2**20, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tiny * 2**40, covariance, rtol=1e-3, atol=1e-3)


def test_statistics_about_other_coefficients_say_the_same(rng: np.random.Generator) -> None:
    model, other, third = analysis(rng, 4, 2), analysis(rng, 4, 2), analysis(rng, 4, 2)
    statistics = e_step(model, rng.normal(size=(30, 4)), jnp.ones(()))[1]
    moved = statistics.about(other.expected_statistics().reference)
    np.testing.assert_allclose(third.expected_log_prob(moved), third.expected_log_prob(statistics), rtol=1e-10)
    # The best regression is the same from anywhere, and leaves nothing on the table.
    for a, b in zip(jax.tree.leaves(m_step(model, moved)), jax.tree.leaves(m_step(model, statistics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    best = m_step(model, statistics)
    np.testing.assert_allclose(statistics.about(best.expected_statistics().reference).cross, 0, atol=1e-9)
