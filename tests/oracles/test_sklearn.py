"""scikit-learn's GaussianMixture from the same start, step for step."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

import jaxem as jem
from families import e_step, m_step
from jaxem.core.pytree import replace

pytestmark = pytest.mark.slow

REG = 1e-4
STEPS = 12
KINDS = {
    "full": (jem.Gaussian, "covariance"),
    "tied": (jem.TiedGaussian, "covariance"),
    "diag": (jem.DiagonalGaussian, "variance"),
    "spherical": (jem.SphericalGaussian, "variance"),
}


def start(kind: str, mean: np.ndarray) -> Any:
    k, d = mean.shape
    shape = {"full": np.tile(np.eye(d), (k, 1, 1)), "tied": np.eye(d), "diag": np.ones((k, d)), "spherical": np.ones(k)}
    return jem.Mixture(np.full(k, 1 / k), KINDS[kind][0](mean, shape[kind]))


def regularised(model: jem.Mixture, name: str) -> jem.Mixture:
    """scikit-learn adds `reg_covar` to the diagonal after each M-step."""
    spread = getattr(model.components, name)
    more = REG * jnp.eye(spread.shape[-1]) if name == "covariance" else jnp.asarray(REG)
    more = jnp.broadcast_to(more, spread.shape)
    return replace(model, components=replace(model.components, **{name: spread + more}))


@pytest.mark.parametrize("d", [2, 6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_same_start_same_steps_same_log_likelihood(kind: str, d: int, rng: np.random.Generator) -> None:
    centres = rng.normal(size=(3, d)) * 2
    x = centres[rng.integers(0, 3, 120)] + rng.normal(size=(120, d)) * rng.uniform(0.5, 1.5, d)
    mean = x[[3, 50, 90]]
    model, name = start(kind, mean), KINDS[kind][1]
    for _ in range(STEPS):
        model = regularised(m_step(model, e_step(model, x, jnp.ones(120))[1]), name)

    precisions = np.asarray(getattr(start(kind, mean).components, name))  # unit, so their own inverses
    peer = GaussianMixture(
        3, covariance_type=kind, reg_covar=REG, tol=0, max_iter=STEPS, weights_init=np.full(3, 1 / 3), means_init=mean,
        precisions_init=precisions,
    ).fit(x)  # fmt: skip
    assert peer.n_iter_ == STEPS
    np.testing.assert_allclose(model.log_prob(x).sum(), peer.score(x) * 120, rtol=1e-9)
    np.testing.assert_allclose(model.weights, peer.weights_, rtol=1e-8)
    np.testing.assert_allclose(model.components.mean, peer.means_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(getattr(model.components, name), peer.covariances_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.posterior(x), peer.predict_proba(x), atol=1e-8)
