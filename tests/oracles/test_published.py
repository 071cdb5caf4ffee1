"""Published optima and textbook steps.

No floor is in the way of a Gaussian optimum: log-likelihoods are compared to what the tolerance of the fit leaves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.core.pytree import replace

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[3] / "shared" / "reference_cases.json"


def case(name: str) -> Any:
    if not CASES.exists():
        pytest.skip(f"{name}: its data stay out of the project, and {CASES.name} is not there")
    found = [c for c in json.loads(CASES.read_text())["cases"] if c["name"] == name]
    if not found:
        pytest.skip(f"{name} is not in {CASES.name}")
    return found[0]


def coins(heads: list[int], tosses: int, start: list[float]) -> Any:
    """EM of two coins, each chosen half of the time: weights are put back after every step."""
    model = jem.Mixture([0.5, 0.5], jem.Binomial(tosses, start))
    x, weights = np.array(heads), model.weights

    @jax.jit
    def step(model: jem.Mixture) -> tuple[jem.Mixture, Any]:
        statistics = model.e_step(x)[1](jnp.ones(len(x)))
        return replace(model.m_step(statistics), weights=weights), statistics.child

    return model, x, step


def test_two_coins() -> None:
    """Do and Batzoglou 2008, Nature Biotechnology 26:897, figure 1."""
    model, x, step = coins([5, 9, 8, 4, 7], 10, [0.6, 0.5])
    np.testing.assert_allclose(model.posterior(x)[:, 0], [0.45, 0.80, 0.73, 0.35, 0.65], atol=5.1e-3)
    np.testing.assert_allclose(model.log_prob(x).sum(), -11.320586576057854, rtol=1e-12)
    thetas = []
    for _ in range(300):
        model, tossed = step(model)
        thetas.append(np.asarray(model.components.probs))
        if len(thetas) == 1:
            np.testing.assert_allclose(tossed.successes, [21.297481896347225, 11.702518103652775], rtol=1e-12)
            np.testing.assert_allclose(tossed.failures, [8.572246614530176, 8.427753385469824], rtol=1e-12)
    np.testing.assert_allclose(thetas[0], [0.71301224, 0.58133931], atol=5e-9)
    np.testing.assert_allclose(thetas[1], [0.74529204, 0.56925575], atol=5e-9)
    np.testing.assert_allclose(thetas[9], [0.79674415, 0.51965866], atol=5e-9)
    np.testing.assert_allclose(thetas[-1], [0.7967890669226468, 0.5195831201451351], rtol=1e-9)
    np.testing.assert_allclose(model.log_prob(x).sum(), -9.796924292221636, rtol=1e-12)


def test_five_tosses() -> None:
    """A tutorial that stops early; its data are less dispersed than one coin's, and the limit is two equal coins."""
    model, x, step = coins([3, 2, 1, 3, 2], 5, [0.2, 0.7])
    expected = [0.14226174, 0.60753486, 0.93526658, 0.14226174, 0.60753486]
    np.testing.assert_allclose(model.posterior(x)[:, 0], expected, atol=5e-9)
    model, tossed = step(model)
    np.testing.assert_allclose(tossed.successes[0], 4.21897644367866, rtol=1e-12)
    np.testing.assert_allclose(tossed.failures[0], 7.955322426015897, rtol=1e-12)
    np.testing.assert_allclose(model.components.probs, [0.3465478, 0.52870588], atol=5e-8)
    for _ in range(200):
        model, _ = step(model)
    np.testing.assert_allclose(model.components.probs, [0.44, 0.44], atol=1e-6)


DEATHS = [162, 267, 271, 185, 111, 61, 27, 8, 3, 1]


@pytest.mark.parametrize("start", [(0.4462944, 5.343398, 0.8713513), (0.3, 1.0, 2.5), (0.9, 1.0, 3.0)])
def test_death_notices(start: tuple[float, float, float]) -> None:
    """Hasselblad 1969: notices of deaths in The Times on 1,096 days; EM's rate is 0.9957."""
    model = jem.Mixture([start[0], 1 - start[0]], jem.Poisson(start[1:]))
    fit = jem.fit(model, np.arange(10), weight=np.array(DEATHS), tol=1e-13, max_steps=20_000)
    assert fit.status_name == "converged"
    np.testing.assert_allclose(fit.log_likelihood, -1989.9458598829642, atol=1e-8)
    order = np.argsort(fit.model.components.rate)
    np.testing.assert_allclose(fit.model.components.rate[order], [1.256095101224338, 2.6634043566324728], rtol=1e-4)
    np.testing.assert_allclose(fit.model.weights[order][0], 0.3598853969849348, rtol=1e-4)


def test_death_notices_of_one_rate() -> None:
    fit = jem.fit(jem.Poisson(1.0), np.arange(10), weight=np.array(DEATHS))
    np.testing.assert_allclose(fit.model.rate, 2.156934306569343, rtol=1e-12)
    np.testing.assert_allclose(fit.log_likelihood, -2001.397847371757, rtol=1e-12)


def best_fit(x: np.ndarray, family: Any, k: int, restarts: int, **options: Any) -> jem.Fit:
    start = jem.Mixture.start(jax.random.key(0), family, x, k, restarts=restarts, weight=options.get("weight"))
    return jem.fit(start, x, tol=1e-11, max_steps=5000, **options)


def assert_optimum(fit: jem.Fit, log_likelihood: float, slack: float = 1e-7) -> None:
    assert fit.status_name == "converged"
    assert -slack < fit.log_likelihood - log_likelihood < 1e-7 * abs(log_likelihood)


@pytest.mark.parametrize(
    ("family", "k", "log_likelihood"),
    [
        (jem.Gaussian, 2, -1130.2639601847454),
        (jem.TiedGaussian, 2, -1140.1867594370824),
        (jem.TiedGaussian, 3, -1126.3159285854917),
        (jem.DiagonalGaussian, 2, -1147.80635253781),
        (jem.SphericalGaussian, 2, -1709.52928217743),
    ],
)
def test_old_faithful(family: Any, k: int, log_likelihood: float) -> None:
    """272 eruptions (R datasets); optima of mclust run to the end. Its default tolerance stops at -1126.326."""
    x = np.array(case("old_faithful_gmm")["data"]["X"])
    fit = best_fit(x, family, k, restarts=6)
    assert_optimum(fit, log_likelihood)
    if family is jem.Gaussian:
        order = np.argsort(fit.model.components.mean[:, 0])
        np.testing.assert_allclose(fit.model.weights[order], [0.3558728677, 0.6441271323], rtol=2e-5)
        mean = [[2.0363884803, 54.4785166356], [4.2896619959, 79.9681154491]]
        np.testing.assert_allclose(fit.model.components.mean[order], mean, rtol=1e-5)
        np.testing.assert_allclose(jem.bic(fit.log_likelihood, 11, 272), 2322.1917431, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "family", "k", "key"),
    [
        ("old_faithful_waiting_univariate", jem.TiedGaussian, 2, "E2"),
        ("old_faithful_waiting_univariate", jem.Gaussian, 2, "V2"),
        ("acidity_univariate_gmm", jem.TiedGaussian, 2, "E2"),
        ("acidity_univariate_gmm", jem.TiedGaussian, 3, "E3"),
        ("acidity_univariate_gmm", jem.Gaussian, 2, "V2"),
        ("enzyme_univariate_gmm", jem.TiedGaussian, 2, "E2"),
        ("enzyme_univariate_gmm", jem.Gaussian, 2, "V2"),
    ],
)
def test_one_column(name: str, family: Any, k: int, key: str) -> None:
    found = case(name)
    x = np.array(found["data"]["x"], float)[:, None]
    assert_optimum(best_fit(x, family, k, restarts=8), found["expected"]["computed"][key]["loglik"], slack=2e-5)


@pytest.mark.parametrize(("family", "k", "key"), [(jem.DiagonalGaussian, 2, "VVI,2"), (jem.Gaussian, 2, "VVV,2")])
def test_diabetes(family: Any, k: int, key: str) -> None:
    """mclust's are optima from a hierarchical start, not proven global: ours may be higher, not lower."""
    found = case("diabetes_gmm")
    x = np.stack([np.array(found["data"]["X_columns"][c], float) for c in ("glucose", "insulin", "sspg")], axis=1)
    fit = best_fit(x, family, k, restarts=8)
    assert fit.converged
    assert fit.log_likelihood > found["expected"]["computed"]["mclust_hc_start_tol_1e-13"][key]["loglik"] - 1e-4


CLASSES = [("lca_stouffer_toby", 2), ("lca_stouffer_toby", 3), ("lca_carcinoma", 2), ("lca_carcinoma", 3)]
CLASSES += [("lca_gss82", 2), ("lca_gss82", 3), ("lca_cheating", 2)]


@pytest.mark.parametrize("which", CLASSES)
def test_latent_classes(which: tuple[str, int]) -> None:
    """Latent class analysis is a mixture of products of categories; repeated patterns are weights."""
    name, k = which
    found = case(name)
    x = np.array(found["data"]["patterns_coded_from_1"]) - 1
    parts = [jem.sized(jem.Categorical, categories=int(c) + 1) for c in x.max(0)]
    fit = best_fit(x, jem.Product.of(*parts), k, restarts=16, weight=np.array(found["data"]["count"]))
    # A flat top: a predicted remaining gain of 1e-11 a row is some 1e-8 in all.
    np.testing.assert_allclose(fit.log_likelihood, found["expected"]["computed"][str(k)]["ll"], atol=1e-6)
    if set(x.max(0)) == {1}:
        binary = best_fit(x, jem.Independent.of(jem.Bernoulli), k, restarts=16, weight=np.array(found["data"]["count"]))
        np.testing.assert_allclose(binary.log_likelihood, fit.log_likelihood, atol=1e-6)


MISSING = ["cholesterol", "missvals", "apple"]


@pytest.mark.parametrize("name", [f"mvn_missing_{name}" for name in MISSING])
def test_normals_with_missing_cells(name: str) -> None:
    """Schafer 1997 and the packages norm2 and mvnmle: the observed-data maximum, and how fast EM nears it."""
    found = case(name)
    x = np.array(found["data"]["X_null_is_missing"], float)
    expected = found["expected"]["computed"]
    start = jem.Gaussian(np.nanmean(x, axis=0), np.diag(np.nanvar(x, axis=0)))
    fit = jem.fit(start, x, jem.SQUAREM(jem.EM()), tol=1e-12, max_steps=3000)
    assert fit.status_name == "converged"
    np.testing.assert_allclose(fit.log_likelihood, expected["loglik_with_2pi"], atol=1e-8)
    np.testing.assert_allclose(fit.model.mean, expected["mean"], rtol=1e-6)
    np.testing.assert_allclose(fit.model.covariance, expected["cov"], rtol=1e-5)
    np.testing.assert_allclose(jem.em_rate(fit.model, x), expected["em_rates"][0], rtol=1e-3)
