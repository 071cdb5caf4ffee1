"""Mixtures against the sum over every assignment, written out; families against scipy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as ss

import jaxem as jem
from families import MIXTURES, Example, e_step
from jaxem.core.semirings import log_sum

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("example", MIXTURES, ids=repr)
def test_mixture_is_the_sum_over_all_assignments(example: Example) -> None:
    """p(x_1 .. x_n) = sum over z_1 .. z_n of prod weights[z_i] p(x_i | z_i); posteriors and counts likewise."""
    model, n, k = example.mixture(3), 4, 3
    x = example.rows(n)
    each = np.asarray(model.components.log_prob(x))
    joint, posterior, counts = 0.0, np.zeros((n, k)), np.zeros(k)
    for z in itertools.product(range(k), repeat=n):
        p = np.prod([model.weights[c] * np.exp(each[c, i]) for i, c in enumerate(z)])
        joint += p
        for i, c in enumerate(z):
            posterior[i, c] += p
            counts[c] += p
    log_prob, statistics = e_step(model, x, jnp.ones(n))
    np.testing.assert_allclose(log_prob.sum(), np.log(joint), rtol=1e-12)
    np.testing.assert_allclose(model.log_prob(x), log_prob, rtol=1e-14)
    np.testing.assert_allclose(model.posterior(x), posterior / joint, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(statistics.counts, counts / joint, rtol=1e-9)
    np.testing.assert_array_equal(model.decode(x), np.argmax(np.log(model.weights)[:, None] + each, axis=0))
    np.testing.assert_array_equal(model.predict(x), posterior.argmax(1))
    slope = jax.jit(jax.grad(lambda p: model.log_normalizer(p, jnp.asarray(each), log_sum, x).sum()))
    np.testing.assert_allclose(slope(model.potentials()), statistics.counts, rtol=1e-9)


def test_gaussians_are_scipys(rng: np.random.Generator, dtype: jnp.dtype) -> None:
    for d in (1, 2, 4, 5, 12):
        mean, root = rng.normal(size=(3, d)), rng.normal(size=(3, d, d + 2))
        covariance = root @ np.swapaxes(root, 1, 2) / d + 0.1 * np.eye(d)
        variance, x = rng.uniform(0.2, 3, (3, d)), rng.normal(size=(7, d)) * 2
        normal = ss.multivariate_normal
        pairs = [
            (jem.Gaussian(mean, covariance), [normal(m, c) for m, c in zip(mean, covariance, strict=True)]),
            (jem.TiedGaussian(mean, covariance[0]), [normal(m, covariance[0]) for m in mean]),
            (
                jem.DiagonalGaussian(mean, variance),
                [normal(m, np.diag(v)) for m, v in zip(mean, variance, strict=True)],
            ),
            (
                jem.SphericalGaussian(mean, variance[:, 0]),
                [normal(m, v[0]) for m, v in zip(mean, variance, strict=True)],
            ),
        ]
        for model, oracles in pairs:
            cast = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
            expected = [np.atleast_1d(oracle.logpdf(x)) for oracle in oracles]
            tolerance = 1e-11 if dtype == jnp.float64 else 1e-4
            np.testing.assert_allclose(cast.log_prob(x.astype(dtype)), expected, rtol=tolerance, atol=tolerance)


def test_counts_are_scipys(dtype: jnp.dtype) -> None:
    probs, rates = np.array([0.0, 0.03, 0.5, 1.0]), np.array([0.0, 0.4, 7.0, 300.0])
    tolerance = 1e-10 if dtype == jnp.float64 else 3e-5
    cases = [
        (jem.Bernoulli(probs), [ss.bernoulli(p) for p in probs], np.array([-1, 0, 1, 2])),
        (jem.Binomial(9, probs), [ss.binom(9, p) for p in probs], np.arange(-1, 11)),
        (jem.Poisson(rates), [ss.poisson(r) for r in rates], np.array([-1, 0, 1, 7, 300, 1000])),
    ]
    for model, oracles, x in cases:
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
        expected = np.stack([oracle.logpmf(x) for oracle in oracles])
        np.testing.assert_allclose(cast.log_prob(x.astype(dtype)), expected, rtol=tolerance, atol=tolerance)
    categories = np.array([[0.2, 0.5, 0.3, 0.0]])
    with np.errstate(divide="ignore"):
        expected = np.concatenate([[-np.inf], np.log(categories[0]), [-np.inf, -np.inf]])
    log_prob = jem.Categorical(categories.astype(dtype)).log_prob(np.array([-1, 0, 1, 2, 3, 4, 0.5]))
    np.testing.assert_allclose(log_prob[0], expected, rtol=tolerance)
