"""Information criteria, against scikit-learn and by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

import jaxem as jem
from jaxem.core.constraints import free_parameters

pytestmark = pytest.mark.slow

KINDS = {
    "full": jem.Gaussian,
    "tied": jem.TiedGaussian,
    "diag": jem.DiagonalGaussian,
    "spherical": jem.SphericalGaussian,
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_bic_and_aic_are_those_of_scikit_learn(kind: str, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=(60, 3)), rng.normal(size=(40, 3)) + 3])
    peer = GaussianMixture(2, covariance_type=kind, random_state=0).fit(x)
    model = jem.Mixture(peer.weights_, KINDS[kind](peer.means_, peer.covariances_))
    parameters = free_parameters(model)
    assert parameters == peer._n_parameters()
    log_likelihood = float(model.log_prob(x).sum())
    assert jem.bic(log_likelihood, parameters, 100) == pytest.approx(peer.bic(x), rel=1e-9)
    assert jem.aic(log_likelihood, parameters) == pytest.approx(peer.aic(x), rel=1e-9)


def test_discrete_parameters_are_counted() -> None:
    items = jem.Product((jem.Categorical(np.full((2, 3), 1 / 3)), jem.Independent(jem.Bernoulli(np.full((2, 4), 0.5)))))
    assert free_parameters(jem.Mixture([0.5, 0.5], items)) == 1 + 2 * (2 + 4)


def test_icl_penalises_undecided_posteriors(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 1))
    model = jem.Mixture.start(jax.random.key(0), jem.SphericalGaussian, x, 2)
    posterior = np.asarray(model.posterior(x))
    entropy = -np.sum(posterior * np.log(posterior))
    assert float(jem.entropy(model, x)) == pytest.approx(entropy, rel=1e-9)
    assert jem.icl(-10.0, 3, 50, entropy) == pytest.approx(jem.bic(-10.0, 3, 50) + 2 * entropy)
    weight = np.where(np.arange(50) < 20, 1.0, 0.0)
    assert float(jem.entropy(model, x, weight)) == pytest.approx(float(jem.entropy(model, x[:20])), rel=1e-9)
