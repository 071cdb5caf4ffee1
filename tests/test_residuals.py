"""Distribution functions against SciPy, pseudo-residuals against published ones, and how surely rows are classified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxem as jem

SHARED = Path(__file__).parents[2] / "shared"
EDGE = [-np.inf, -1.0, 0.0, np.inf]
LINE = [*np.linspace(-30, 30, 13)]
ABOVE = [1e-6, 0.01, 0.5, 1.0, 2.0, 5.0, 30.0, *EDGE]
COUNTS = [0.0, 1.0, 2.0, 3.5, 7.0, 40.0, 300.0, *EDGE]

FAMILIES: dict[str, tuple[Any, Any, list[float]]] = {
    "exponential": (lambda t: jem.Exponential(t(0.7)), stats.expon(scale=1 / 0.7), ABOVE),
    "gamma": (lambda t: jem.Gamma(t(2.5), t(0.8)), stats.gamma(2.5, scale=1 / 0.8), ABOVE),
    "gamma-narrow": (lambda t: jem.Gamma(t(1e5), t(1e5)), stats.gamma(1e5, scale=1e-5), [0.98, 0.99, 1.0, 1.01]),
    "inverse-gaussian": (lambda t: jem.InverseGaussian(t(2.0), t(3.0)), stats.invgauss(2 / 3, scale=3), ABOVE),
    "lognormal": (lambda t: jem.LogNormal(t(0.3), t(0.8)), stats.lognorm(0.8, scale=np.exp(0.3)), ABOVE),
    "weibull": (lambda t: jem.Weibull(t(1.7), t(3.0)), stats.weibull_min(1.7, scale=3), ABOVE),
    "laplace": (lambda t: jem.Laplace(t(0.3), t(2.0)), stats.laplace(0.3, 2), LINE),
    "beta": (lambda t: jem.Beta(t(2.0), t(5.0)), stats.beta(2, 5), [1e-5, 0.1, 0.3, 0.9, 0.999, 2.0, *EDGE]),
    "bernoulli": (lambda t: jem.Bernoulli(t(0.3)), stats.bernoulli(0.3), COUNTS),
    "binomial": (lambda t: jem.Binomial(9, t(0.3)), stats.binom(9, 0.3), [*COUNTS, 8.0, 9.0]),
    "geometric": (lambda t: jem.Geometric(t(0.3)), stats.geom(0.3, loc=-1), COUNTS),
    "poisson": (lambda t: jem.Poisson(t(4.0)), stats.poisson(4), COUNTS),
    "poisson-large": (lambda t: jem.Poisson(t(1e5)), stats.poisson(1e5), [99000.0, 1e5, 101000.0]),
    "negative-binomial": (lambda t: jem.NegativeBinomial(t(4.0), t(0.6)), stats.nbinom(0.6, 0.6 / 4.6), COUNTS),
    "almost-poisson": (lambda t: jem.NegativeBinomial(t(4.0), t(1e9)), stats.poisson(4 + 1e-10), COUNTS),
    "categorical": (
        lambda t: jem.Categorical(jnp.asarray([0.2, 0.5, 0.3], t)),
        stats.rv_discrete(values=([0, 1, 2], [0.2, 0.5, 0.3])),
        [0.0, 1.0, 2.0, 7.0, -1.0],
    ),
    "student": (lambda t: jem.StudentT(jnp.asarray([0.5], t), [[4.0]], 2.5), stats.t(2.5, 0.5, 2), LINE),
    "student-normal": (lambda t: jem.StudentT(jnp.asarray([0.5], t), [[4.0]], 4e3), stats.t(4e3, 0.5, 2), LINE),
    "gaussian": (lambda t: jem.Gaussian(jnp.asarray([0.5], t), [[4.0]]), stats.norm(0.5, 2), LINE),
    "spherical": (lambda t: jem.SphericalGaussian(jnp.asarray([0.5], t), 4.0), stats.norm(0.5, 2), LINE),
}


@pytest.mark.slow
def test_both_tails_are_those_of_scipy_to_all_their_digits(dtype: Any) -> None:
    members = {name: make(dtype.type) for name, (make, _, _) in FAMILIES.items()}
    rows = {name: np.asarray(points, dtype) for name, (_, _, points) in FAMILIES.items()}
    rows = {name: jnp.asarray(x[:, None] if members[name].event_shape else x) for name, x in rows.items()}
    # All in one program; as two members of a stack, the first of which is the model.
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), members)
    told = jax.jit(lambda stacked, rows: {name: stacked[name].columnwise(rows[name]).at for name in stacked})(
        stacked, rows
    )
    for name, (_, oracle, _) in FAMILIES.items():
        x = np.asarray(rows[name], float).ravel()
        tolerance = {"float64": 2e-12, "float32": 5e-4 if "large" in name or "narrow" in name else 5e-5}[dtype.name]
        tolerance = 1e-6 if name == "almost-poisson" and tolerance < 1e-6 else tolerance
        for found, wanted in ((told[name].below, oracle.cdf(x)), (told[name].above, oracle.sf(x))):
            assert found.dtype == dtype
            np.testing.assert_allclose(np.asarray(found)[0, 0], wanted, rtol=tolerance, atol=1e-36, err_msg=name)


@pytest.mark.slow
def test_a_distribution_function_steps_up_at_a_probability() -> None:
    np.testing.assert_array_equal(jem.PointMass(1.0).cdf([0.0, 1.0, 2.0, np.nan]), [0, 1, 1, np.nan])
    assert jem.Gaussian([0.0, 0.0], np.eye(2)).cdf([[0.0, np.inf]]).shape == (1, 2)
    np.testing.assert_allclose(
        jem.LinearRegression([2.0], 1.0, 4.0).cdf([[1.0, 3.0], [0.0, 3.0]]), stats.norm.cdf([0, 1])
    )


@pytest.mark.slow
def test_directions_are_counted_from_the_half_turn(dtype: Any) -> None:
    x, tolerance = np.linspace(-np.pi, np.pi, 41)[1:], {"float64": 1e-13, "float32": 5e-6}[dtype.name]
    mean, concentration = np.array([0.0, 2.5, -3.0, 1.0]), np.array([0.0, 0.7, 9.0, 5e3])
    found = jem.VonMises(mean.astype(dtype), concentration.astype(dtype)).cdf(x.astype(dtype))
    for row, m, k in zip(found, mean, concentration, strict=True):
        law = stats.vonmises(k, m) if k else stats.uniform(-np.pi, 2 * np.pi)
        np.testing.assert_allclose(row, law.cdf(x) - law.cdf(-np.pi), atol=tolerance * (1 + np.sqrt(k)))


@pytest.mark.slow
def test_columns_are_given_those_before_them() -> None:
    """A chain of conditional distributions of a normal and of a t, by their partitioned covariances."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    scatter, mean, x, dof = root @ root.T + np.eye(3), rng.normal(size=3), rng.normal(size=(5, 3)) * 3, 4.0
    normal, heavy = jem.Gaussian(mean, scatter).cdf(x), jem.StudentT(mean, scatter, dof).cdf(x)
    for j in range(3):
        before, across = scatter[:j, :j], scatter[j, :j]
        solved = np.linalg.solve(before, across) if j else np.zeros(0)
        centre = mean[j] + (x[:, :j] - mean[:j]) @ solved
        scale = np.sqrt(scatter[j, j] - across @ solved)
        np.testing.assert_allclose(normal[:, j], stats.norm.cdf(x[:, j], centre, scale), rtol=1e-11)
        off = x[:, :j] - mean[:j]
        distance = np.einsum("ni,ij,nj->n", off, np.linalg.inv(before), off) if j else np.zeros(5)
        wider = scale * np.sqrt((dof + distance) / (dof + j))
        np.testing.assert_allclose(heavy[:, j], stats.t.cdf(x[:, j], dof + j, centre, wider), rtol=1e-11)
    for model in (jem.Gaussian(mean, scatter), jem.StudentT(mean, scatter, dof)):
        np.testing.assert_allclose(model.columnwise(jnp.asarray(x)).log_prob.sum(0), model.log_prob(x), rtol=1e-12)
    factors = jem.FactorAnalysis(mean, root[:, :1], np.ones(3))
    np.testing.assert_allclose(factors.cdf(x), jem.Gaussian(mean, factors.covariance).cdf(x), rtol=1e-12)


@pytest.mark.slow
def test_a_mixture_of_columns_weighs_its_components_by_the_columns_before() -> None:
    parts = (jem.DiagonalGaussian([[0.0], [3.0]], [[1.0], [2.0]]), jem.Poisson([2.0, 6.0]))
    model = jem.Mixture([0.3, 0.7], jem.Product(parts))
    x = np.array([[0.5, 3.0], [2.0, 0.0], [9.0, 8.0]])
    found = jem.pseudo_residuals(model, x)
    first = np.stack([stats.norm.cdf(x[:, 0], 0, 1), stats.norm.cdf(x[:, 0], 3, np.sqrt(2))], axis=1) @ [0.3, 0.7]
    density = np.stack([stats.norm.pdf(x[:, 0], 0, 1), stats.norm.pdf(x[:, 0], 3, np.sqrt(2))], axis=1) * [0.3, 0.7]
    share = density / density.sum(1, keepdims=True)
    upper, lower = (
        (share * np.stack([stats.poisson.cdf(x[:, 1] - less, rate) for rate in (2.0, 6.0)], axis=1)).sum(1)
        for less in (0, 1)
    )
    np.testing.assert_allclose(found.mid[:, 0], stats.norm.ppf(first), rtol=1e-9)
    np.testing.assert_array_equal(found.lower[:, 0], found.upper[:, 0])
    for leaf, wanted in ((found.upper, upper), (found.lower, lower), (found.mid, (upper + lower) / 2)):
        np.testing.assert_allclose(leaf[:, 1], stats.norm.ppf(wanted), rtol=1e-9)


@pytest.mark.slow
def test_residuals_of_earthquakes_are_the_published_ones() -> None:
    if not (SHARED / "uncertainty_cases.json").exists():
        pytest.skip("the cases stay out of the project")
    names = ("uncertainty_cases.json", "reference_cases.json")
    read = {name: json.loads((SHARED / name).read_text())["cases"] for name in names}
    (case,) = [c for c in read["uncertainty_cases.json"] if c["name"] == "earthquakes3_pseudo_residuals"]
    (data,) = [c for c in read["reference_cases.json"] if c["name"] == "earthquakes_poisson_hmm_free_pi"]
    x = np.array(data["data"]["x"], float)
    stay = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    fit = jem.fit(jem.HMM(np.full(3, 1 / 3), stay, jem.Poisson([10.0, 20.0, 30.0])), x, tol=1e-14, max_steps=20_000)
    for kind in ("ordinary", "forecast"):
        found = jem.pseudo_residuals(fit.model, x, kind=kind)
        rows = np.stack([found.lower[0], found.mid[0], found.upper[0]], axis=1)
        np.testing.assert_allclose(rows, case["expected"][kind], atol=1e-6)


@pytest.mark.slow
def test_residuals_of_a_chain_are_conditional_probabilities_by_enumeration() -> None:
    """p(x_t <= x | all others), from the joint probabilities of all sequences; also gaps, padding and an outlier."""
    model = jem.HMM([0.6, 0.4], [[0.7, 0.3], [0.2, 0.8]], jem.Categorical([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8]]))
    x = [np.array([0.0, 2.0, 1.0, 2.0]), np.array([1.0, np.nan, 0.0])]
    found = {kind: jem.pseudo_residuals(model, x, kind=kind).upper for kind in ("ordinary", "forecast")}
    assert np.isnan(found["ordinary"][1, [1, 3]]).all()
    assert not np.isnan(found["ordinary"][0]).any()
    for kind in found:
        for s, sequence in enumerate(x):
            for t in range(len(sequence)):
                told = np.arange(len(sequence)) < (t if kind == "forecast" else len(sequence))
                others = np.where(told, sequence, np.nan)
                here = np.arange(len(sequence)) == t
                if np.isnan(sequence[t]):
                    continue
                each = [float(model.log_prob([np.where(here, v, others)])[0]) for v in range(3)]
                mass = np.exp(each) / np.exp(each).sum()
                wanted = np.inf if sequence[t] == 2 else stats.norm.ppf(mass[: int(sequence[t]) + 1].sum())
                np.testing.assert_allclose(found[kind][s, t], wanted, rtol=1e-9)
    far = jem.HMM([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], jem.DiagonalGaussian([[0.0], [1.0]], [[1.0], [1.0]]))
    outlier = jem.pseudo_residuals(far, np.array([[0.0], [30.0], [0.5]])).mid[0, 1, 0]
    law = np.log(0.5) + np.logaddexp(stats.norm.logsf(30), stats.norm.logsf(29))
    np.testing.assert_allclose(stats.norm.logsf(outlier), law, rtol=1e-10)


@pytest.mark.slow
def test_drawn_residuals_of_the_right_model_are_normal_deviates() -> None:
    model = jem.Mixture([0.4, 0.6], jem.NegativeBinomial([2.0, 9.0], [1.5, 6.0]))
    x = model.sample(0, 4000)
    drawn = jem.pseudo_residuals(model, x, key=1)
    assert stats.kstest(np.asarray(drawn.mid), "norm").pvalue > 0.01
    assert ((drawn.lower <= drawn.mid) & (drawn.mid <= drawn.upper)).all()
    censored = jem.Mixture([1.0], jem.Censored(jem.Exponential([0.5])))
    told = jem.pseudo_residuals(censored, [[2.0, 2.0], [2.0, np.inf]])
    np.testing.assert_allclose(told.lower, stats.norm.ppf([1 - np.exp(-1.0)] * 2), rtol=1e-10)
    assert told.upper[1] == np.inf
    assert told.upper[0] == told.lower[0]
    inflated = jem.Mixture([0.5, 0.5], jem.Either((jem.PointMass([0.0]), jem.Exponential([1.0]))))
    told = jem.pseudo_residuals(inflated, [0.0, 1.0])
    assert told.lower[0] == -np.inf
    np.testing.assert_allclose(told.upper, stats.norm.ppf([0.5, 1 - 0.5 * np.exp(-1)]), rtol=1e-10)
    lines = jem.Mixture([0.5, 0.5], jem.LinearRegression([[1.0], [-1.0]], [0.0, 0.0], [1.0, 4.0]))
    wanted = 0.5 * stats.norm.cdf(1.0, 2.0, 1.0) + 0.5 * stats.norm.cdf(1.0, -2.0, 2.0)
    np.testing.assert_allclose(jem.pseudo_residuals(lines, [[2.0, 1.0]]).mid, stats.norm.ppf([wanted]), rtol=1e-10)


@pytest.mark.slow
def test_classification_is_what_the_posterior_says() -> None:
    model = jem.Mixture([0.5, 0.3, 0.2], jem.Poisson([1.0, 4.0, 20.0]))
    x, weight = model.sample(0, 200), np.random.default_rng(0).integers(0, 3, 200).astype(float)
    told, posterior = jem.classification(model, x, weight), np.asarray(model.posterior(x))
    entropy, assigned = -(posterior * np.log(posterior)).sum(1), posterior.argmax(1)
    np.testing.assert_allclose(told.entropy[weight > 0], entropy[weight > 0], rtol=1e-10)
    np.testing.assert_allclose(
        float(weight.sum() * (1 - told.relative_entropy) * np.log(3)), jem.entropy(model, x, weight), rtol=1e-9
    )
    for k in range(3):
        mine = assigned == k
        np.testing.assert_allclose(told.mean_posterior[k], np.average(posterior[mine], axis=0, weights=weight[mine]))
    np.testing.assert_allclose(told.expected_error, np.average(1 - posterior.max(1), weights=weight))
    assert told.table().shape == (3, 5)
    chain = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Poisson([1.0, 9.0]))
    steps = jem.classification(chain, [np.array([1.0, 9.0, 8.0]), np.array([0.0])])
    assert steps.entropy.shape == (2, 3)
    assert np.isnan(steps.entropy[1, 1:]).all()
    assert np.isfinite(steps.expected_error)


def test_what_has_no_residuals_or_classes_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Dirichlet has no distribution function of a column"):
        jem.pseudo_residuals(jem.Dirichlet([1.0, 2.0]), [[0.5, 0.5]])
    with pytest.raises(ValueError, match="kind is 'past'; it must be"):
        jem.pseudo_residuals(jem.Poisson(1.0), [1.0], kind="past")
    with pytest.raises(TypeError, match="Poisson has no components"):
        jem.classification(jem.Poisson(1.0), [1.0])
