"""Experts, networks and predictions: against scikit-learn, scipy, and densities integrated on a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

import jaxem as jem
from families import coordinates, move, perturbed
from jaxem.distributions.base import add

pytestmark = pytest.mark.slow

GATE = jem.SoftmaxGate([[1.0, 0.5], [-1.0, 1.0]], [0.2, 0.1])
MODEL = jem.MixtureOfExperts(
    GATE, jem.LinearRegression([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0]], [0.0, 1.0, -1.0], [0.3, 0.5, 1.0])
)
X = MODEL.sample(jax.random.key(0), 60)


def logits(inputs: np.ndarray) -> np.ndarray:
    return np.column_stack([inputs @ [1.0, 0.5] + 0.2, inputs @ [-1.0, 1.0] + 0.1, np.zeros(len(inputs))])


def test_log_prob_posterior_and_draws() -> None:
    x = np.asarray(X)
    gate = np.exp(logits(x[:, :2]))
    gate /= gate.sum(1, keepdims=True)
    means = x[:, :2] @ np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0]]).T + [0.0, 1.0, -1.0]
    joint = gate * stats.norm.pdf(x[:, 2:], means, np.sqrt([0.3, 0.5, 1.0]))
    np.testing.assert_allclose(MODEL.log_prob(x), np.log(joint.sum(1)), rtol=1e-11)
    np.testing.assert_allclose(MODEL.posterior(x), joint / joint.sum(1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(GATE.log_prob(x[:, :2]), np.log(gate.T), rtol=1e-9, atol=1e-12)
    drawn = np.asarray(MODEL.sample(jax.random.key(1), 4000, np.tile(x[:1, :2], (4000, 1))))
    prediction = MODEL.predict(x[:1, :2])
    assert abs(drawn[:, 2].mean() - prediction.mean[0]) < 4 * np.sqrt(prediction.variance[0] / 4000)
    np.testing.assert_allclose(drawn[:, 2].var(), prediction.variance[0], rtol=0.1)
    np.testing.assert_allclose((drawn[:, 2] < prediction.quantile(0.3)[0]).mean(), 0.3, atol=0.03)


def test_q_lies_below_and_touches(rng: np.random.Generator) -> None:
    statistics = MODEL.e_step(X)[1](jnp.ones(len(X)))

    @jax.jit
    def gap(other: Any) -> jax.Array:
        gained = other.log_prob(X).sum() - MODEL.log_prob(X).sum()
        return gained - (other.expected_log_prob(statistics) - MODEL.expected_log_prob(statistics))

    for size in (1e-3, 0.1, 1.0):
        assert gap(perturbed(MODEL, rng, size)) > 0
    direction = {name: rng.normal(size=leaf.shape) for name, leaf in coordinates(MODEL).items()}
    along = lambda model: lambda t: move(model, {n: t * d for n, d in direction.items()})
    assert abs(jax.jit(jax.grad(lambda t: gap(along(MODEL)(t))))(0.0)) < 1e-9
    best = MODEL.m_step(statistics)
    slope = jax.jit(lambda model: jax.grad(lambda t: along(model)(t).expected_log_prob(statistics))(0.0))
    assert abs(slope(best)) < 1e-8
    assert abs(slope(perturbed(best, rng))) > 1e-3
    halves = [MODEL.e_step(X[a:b])[1](jnp.ones(b - a)) for a, b in ((0, 23), (23, 60))]
    for a, b in zip(jax.tree.leaves(MODEL.m_step(add(*halves))), jax.tree.leaves(best), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_with_known_experts_the_gate_is_multinomial_logistic_regression() -> None:
    x, labels = np.asarray(X), np.asarray(MODEL.decode(X))
    fit = jem.fit(MODEL, x, labels=labels, tol=1e-12)
    expected = LogisticRegression(C=np.inf, tol=1e-12, max_iter=5000).fit(x[:, :2], labels)
    # Measured against the last class.
    np.testing.assert_allclose(fit.model.gate.coefficients, expected.coef_[:2] - expected.coef_[2:], rtol=1e-4)
    np.testing.assert_allclose(fit.model.gate.intercept, expected.intercept_[:2] - expected.intercept_[2], rtol=1e-4)


@pytest.mark.parametrize("family", [jem.LinearRegression, jem.PoissonRegression])
def test_em_climbs_from_a_start(family: Any) -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(-2, 2, size=(120, 1))
    eta = np.where(z[:, 0] < 0, -1.5 * z[:, 0], 1.5 * z[:, 0]) - 1
    y = rng.poisson(np.exp(eta)) if family is jem.PoissonRegression else eta + rng.normal(size=120) * 0.3
    x = np.column_stack([z, y]).astype(float)
    start = jem.MixtureOfExperts.start(jax.random.key(0), family, x, 2, restarts=3)
    fit = jem.fit(start, x, max_steps=60)
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert (np.diff(trace) > -1e-9).all()
    assert trace[-1] > trace[0] + 5
    prediction = fit.model.predict(z)
    assert prediction.mean.shape == (120,)
    if family is not jem.LinearRegression:
        with pytest.raises(ValueError, match="not Gaussian"):
            prediction.quantile(0.5)


def test_quantiles_are_those_of_the_mixture() -> None:
    prediction = MODEL.predict(X[:5, :2])
    for level in (0.01, 0.5, 0.9):
        at = np.asarray(prediction.quantile(level))
        below = stats.norm.cdf(at[:, None], prediction.means, np.sqrt(prediction.variances))
        np.testing.assert_allclose((np.asarray(prediction.weights) * below).sum(1), level, rtol=1e-9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        prediction.quantile(1.0)


@pytest.mark.parametrize("kind", ["full", "tied", "diagonal"])
def test_gaussian_mixture_regression_is_the_joint_density_integrated(kind: str) -> None:
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))
    full = root @ root.swapaxes(1, 2) + 0.3 * np.eye(3)
    components = {
        "full": lambda: jem.Gaussian(mean, full),
        "tied": lambda: jem.TiedGaussian(mean, full[0]),
        "diagonal": lambda: jem.DiagonalGaussian(mean, np.diagonal(full, axis1=1, axis2=2)),
    }[kind]()
    model = jem.Mixture([0.4, 0.6], components)
    given = np.array([0.3, -0.5])
    grid = np.linspace(-15, 15, 3001)
    rows = np.column_stack([np.full(3001, given[1]), grid, np.full(3001, given[0])])
    density = np.exp(np.asarray(model.log_prob(rows)))
    density /= density.sum()
    prediction = jem.conditional(model, [2, 0], given[None])
    np.testing.assert_allclose(prediction.mean, [density @ grid], rtol=1e-8)
    np.testing.assert_allclose(prediction.variance, [density @ grid**2 - (density @ grid) ** 2], rtol=1e-7)
    np.testing.assert_allclose(np.interp(0.2, density.cumsum(), grid), prediction.quantile(0.2)[0], atol=0.01)
    several = jem.conditional(model, [0], given[1:, None])
    assert several.mean.shape == (2, 1)
    np.testing.assert_allclose(several.mean[0], jem.conditional(model, [0], given[1:, None]).mean[0])


def test_conditional_refuses_what_it_cannot_do() -> None:
    model = jem.Mixture([1.0], jem.Gaussian([[0.0, 1.0]], [[[1.0, 0.5], [0.5, 1.0]]]))
    for given in ([0, 1], [2], []):
        with pytest.raises(ValueError, match="given is"):
            jem.conditional(model, given, [[0.0]])
    with pytest.raises(ValueError, match="x has 2 columns"):
        jem.conditional(model, [0], [[0.0, 1.0]])
    with pytest.raises(TypeError, match="no response"):
        jem.predict(model, [0.0])


@pytest.fixture(scope="module")
def wave() -> tuple[np.ndarray, ...]:
    """x sin x, the example of scikit-learn's Gaussian processes, with noise of deviation a half."""
    rng = np.random.default_rng(1)
    z, grid = np.sort(rng.uniform(0, 10, 150)), np.linspace(0.2, 9.8, 200)
    return z, z * np.sin(z) + rng.normal(size=150) * 0.5, grid, grid * np.sin(grid)


@pytest.fixture(scope="module")
def network(wave: Any) -> jem.RBFNetwork:
    return jem.RBFNetwork.start(jax.random.key(0), wave[0], wave[1], 8, restarts=5)


def test_a_network_comes_near_kernel_methods(wave: Any, network: jem.RBFNetwork) -> None:
    z, y, grid, truth = wave
    fit = jem.fit(network, network.rows(z, y))
    prediction = fit.model.predict(grid)
    error = lambda mean: np.sqrt(np.mean((np.asarray(mean) - truth) ** 2))
    process = GaussianProcessRegressor(10 * RBF() + WhiteKernel()).fit(z[:, None], y)
    ridge = KernelRidge(kernel="rbf", alpha=0.1, gamma=0.5).fit(z[:, None], y)
    peers = error(process.predict(grid[:, None])), error(ridge.predict(grid[:, None]))
    assert error(prediction.mean) < 3 * max(peers)
    assert error(prediction.mean) < 0.1 * np.std(truth)
    held = (prediction.quantile(0.05) < truth) & (truth < prediction.quantile(0.95))
    assert held.mean() > 0.9
    numbers = jem.RBFNetwork.start(jax.random.key(0), z, y, 15, linear=False, restarts=2)
    fit = jem.fit(numbers, numbers.rows(z, y), max_steps=200)
    assert error(fit.model.predict(grid).mean) < 0.25 * np.std(truth)


def test_the_outputs_of_a_network_are_weighted_least_squares(wave: Any, network: jem.RBFNetwork) -> None:
    z, y, *_ = wave
    network, rows = jax.tree.map(lambda leaf: leaf[0], network), network.rows(z, y)
    belief = np.asarray(network.posterior(rows))
    stepped = network.m_step(network.e_step(rows)[1](jnp.ones(150)))
    outputs = stepped.components.parts[1]
    for k in range(8):
        slope, level = np.polyfit(z, y, 1, w=np.sqrt(belief[:, k]))
        np.testing.assert_allclose([outputs.coefficients[k, 0], outputs.intercept[k]], [slope, level], rtol=1e-7)
    np.testing.assert_allclose(stepped.components.parts[0].mean[:, 0], belief.T @ z / belief.sum(0), rtol=1e-9)


def test_they_are_saved_and_drawn(wave: Any, network: jem.RBFNetwork, tmp_path: Path) -> None:
    z, y, *_ = wave
    network = jax.tree.map(lambda leaf: leaf[0], network)
    for model in (network, MODEL):
        jem.save(tmp_path / "model.safetensors", model)
        back = jem.load(tmp_path / "model.safetensors")
        assert jax.tree.structure(back) == jax.tree.structure(model)
    ax = network.predict(z).plot(y)
    assert ax.get_xlabel() == "input"
    assert MODEL.predict(X[:, :2]).plot().get_xlabel() == "predicted mean"
    sampled = network.sample(jax.random.key(0), 7)
    assert sampled.shape == (7, 2)
    assert np.isfinite(network.log_prob(sampled)).all()


def test_gates_are_checked() -> None:
    with pytest.raises(ValueError, match="intercept has shape"):
        jem.SoftmaxGate([[1.0]], [0.0, 1.0])
    with pytest.raises(ValueError, match="batch shapes"):
        jem.MixtureOfExperts(jem.SoftmaxGate([[1.0]], [0.0]), jem.LinearRegression([[1.0]], [0.0], [1.0]))
    with pytest.raises(ValueError, match="Joint: parts read"):
        jem.Joint((jem.SphericalGaussian([0.0], 1.0), jem.LinearRegression([2.0, 1.0], 1.0, 1.0)))
    with pytest.raises(ValueError, match="two at least"):
        jem.MixtureOfExperts.start(jax.random.key(0), jem.LinearRegression, X, 1)
