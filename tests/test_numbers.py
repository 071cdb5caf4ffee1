"""Shapes of data on which well-known libraries return wrong numbers, NaN called converged, or nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as ss

import jaxem as jem
from jaxem.core import linalg, semirings, summation
from jaxem.core.pytree import replace
from jaxem.distributions.statistics import mahalanobis

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
NORMAL = [jem.Gaussian, jem.TiedGaussian, jem.DiagonalGaussian, jem.SphericalGaussian]
normal = pytest.mark.parametrize("family", NORMAL)
FINE = {"converged", "max_steps_reached"}
DEGENERATE = FINE | {"covariance_collapsed", "component_vanished"}


def fitted(family: Any, x: np.ndarray, k: int = 2, **options: Any) -> jem.Fit:
    """A fit from a start, that has a finite model whatever its status; the trace never falls."""
    weight, labels = options.get("weight"), options.get("labels")
    start = jem.Mixture.start(KEY, family, x, k, weight=weight, labels=labels)
    fit = jem.fit(start, x, max_steps=200, **options)
    for leaf in jax.tree.leaves((fit.model, fit.log_likelihood)):
        assert np.isfinite(leaf).all()
    trace = np.asarray(fit.trace, float)[: int(fit.steps) + 1]
    dtype, columns = fit.log_likelihood.dtype, x.shape[-1]
    eps = float(np.finfo(dtype).eps)
    resolution = 256 * columns * eps * (np.abs(trace).max() + len(x))
    assert fit.status_name != "log_likelihood_decreased"
    assert (np.diff(trace) >= -resolution).all()
    return fit


def test_columns_that_nearly_determine_each_other(rng: np.random.Generator, dtype: Any) -> None:
    """Distances by products of columns have terms far larger than themselves; against extended precision."""
    d, rest = 6, 1e-5 if dtype == jnp.float64 else 1e-2
    x = rng.normal(size=(50, d))
    x[:, -1] = x[:, :2].sum(1) + rest * rng.normal(size=50)
    factor = np.eye(d)
    factor[-1] = [1, 1, 0, 0, 0, rest]
    model = jem.Gaussian(np.zeros(d, dtype), (factor @ factor.T).astype(dtype))
    rows = x.astype(dtype)
    far, covariance = rows.astype(np.longdouble), np.asarray(model.covariance).astype(np.longdouble)
    lower = np.zeros((d, d), np.longdouble)
    for j in range(d):
        lower[j, j] = np.sqrt(covariance[j, j] - (lower[j, :j] ** 2).sum())
        for i in range(j + 1, d):
            lower[i, j] = (covariance[i, j] - (lower[i, :j] * lower[j, :j]).sum()) / lower[j, j]
    z = np.zeros_like(far)
    for j in range(d):
        z[:, j] = (far[:, j] - z[:, :j] @ lower[j, :j]) / lower[j, j]
    expected = -0.5 * ((z**2).sum(1) + d * np.log(2 * np.pi)) - np.log(np.diag(lower)).sum()
    found = model.log_prob(rows)
    # The pivot of the last column is known to eps / rest^2.
    known = 8 * float(np.finfo(dtype).eps) / rest**2
    np.testing.assert_allclose(found, expected.astype(float), atol=known * float((z**2).max()))


def two_clouds(rng: np.random.Generator, n: int = 60, d: int = 2, apart: float = 6.0) -> np.ndarray:
    x = rng.normal(size=(n, d))
    x[: n // 2] += apart / np.sqrt(d)
    return x


@normal
def test_offset_of_a_million_in_float32(family: Any, rng: np.random.Generator) -> None:
    """A unit in the last place is 1/16 there: what float32 can hold of the data is right."""
    x = (np.round(two_clouds(rng) * 16) / 16).astype(np.float32)
    far = x + np.float32(1e6)
    np.testing.assert_array_equal(far.astype(float) - 1e6, x)
    here, there = fitted(family, x), fitted(family, far)
    np.testing.assert_allclose(there.log_likelihood, here.log_likelihood, rtol=2e-2)
    np.testing.assert_allclose(there.model.components.mean - 1e6, here.model.components.mean, atol=0.1)
    assert there.status_name in FINE


@normal
def test_offset_of_a_thousand_million_in_float32(family: Any, rng: np.random.Generator) -> None:
    """A unit in the last place is 64 there: clouds thousands apart are still told apart."""
    x = (1e9 + np.round(two_clouds(rng, apart=60) * 100 / 64) * 64).astype(np.float32)
    fit = fitted(family, x)
    exact = x.astype(float)
    for half, mean in zip(
        (exact[30:], exact[:30]), fit.model.components.mean[np.argsort(fit.model.components.mean[:, 0])], strict=True
    ):
        np.testing.assert_allclose(mean, half.mean(0), rtol=1e-7)
    np.testing.assert_allclose(fit.model.weights, 0.5, atol=1e-3)
    assert fit.status_name in FINE


@pytest.mark.parametrize("family", NORMAL)
def test_two_hundred_columns_in_float32(family: Any, rng: np.random.Generator) -> None:
    x = two_clouds(rng, n=500, d=200, apart=40)
    start = jem.Mixture.start(KEY, family, x, 2)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), start)
    single, double = jem.fit(narrow, x.astype(np.float32), max_steps=20), jem.fit(start, x, max_steps=20)
    assert single.status_name == double.status_name == "converged"
    np.testing.assert_allclose(single.log_likelihood, double.log_likelihood, rtol=1e-3)
    assert single.model.components.mean.dtype == jnp.float32


@normal
@pytest.mark.parametrize("d", [2, 9])
def test_components_a_thousand_deviations_apart(family: Any, d: int, rng: np.random.Generator, dtype: Any) -> None:
    x = two_clouds(rng, n=80, d=d, apart=1e3).astype(dtype)
    fit = fitted(family, x)
    halves = [np.asarray(x, float)[:40], np.asarray(x, float)[40:]]
    order = np.argsort(-fit.model.components.mean[:, 0])
    np.testing.assert_allclose(fit.model.components.mean[order], [h.mean(0) for h in halves], rtol=1e-5, atol=1e-4)
    if family is jem.DiagonalGaussian:
        variance = [h.var(0) for h in halves]
        floor = 2e-3 if dtype == jnp.float64 else 5e-3  # of float32, at this distance
        np.testing.assert_allclose(fit.model.components.variance[order], variance, rtol=floor)
    if family is jem.Gaussian:
        covariance = [np.cov(h.T, bias=True) for h in halves]
        np.testing.assert_allclose(fit.model.components.covariance[order], covariance, rtol=3e-3, atol=3e-3)


@normal
def test_duplicated_points(family: Any, rng: np.random.Generator, dtype: Any) -> None:
    x = np.repeat(rng.normal(size=(5, 2)), 10, axis=0).astype(dtype)
    assert fitted(family, x, k=4).status_name in DEGENERATE


@normal
@pytest.mark.parametrize("value", [0.0, 7.0, 1e6])
def test_all_points_equal(family: Any, value: float, dtype: Any) -> None:
    fit = fitted(family, np.full((60, 2), value, dtype))
    assert fit.status_name == "covariance_collapsed"
    np.testing.assert_allclose(fit.model.components.mean, value, rtol=1e-6)


@normal
def test_fewer_rows_than_components(family: Any, rng: np.random.Generator, dtype: Any) -> None:
    fit = fitted(family, rng.normal(size=(3, 2)).astype(dtype), k=5)
    assert fit.status_name in DEGENERATE - FINE
    assert fitted(family, rng.normal(size=(1, 2)).astype(dtype), k=2).status_name in DEGENERATE - FINE


@normal
@pytest.mark.parametrize("d", [3, 9])
def test_constant_and_collinear_columns(family: Any, d: int, rng: np.random.Generator, dtype: Any) -> None:
    x = two_clouds(rng, d=d)
    x[:, 0] = 3.0
    x[:, -1] = 2 * x[:, 1] + (x[:, 2] if d > 3 else 0)
    expected = {"covariance_collapsed"} if family is not jem.SphericalGaussian else FINE
    assert fitted(family, x.astype(dtype)).status_name in expected


@normal
def test_one_wild_row(family: Any, rng: np.random.Generator, dtype: Any) -> None:
    """A row at 1e15 gets a component to itself; the others are fitted as if it were not there."""
    x = two_clouds(rng)
    x[0] = 1e15
    fit = fitted(family, x.astype(dtype), k=2)
    order = np.argsort(fit.model.components.mean[:, 0])
    np.testing.assert_allclose(fit.model.components.mean[order][0], x[1:].mean(0), atol=1e-2)
    np.testing.assert_allclose(fit.model.components.mean[order][1], 1e15, rtol=1e-6)


@normal
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_tiny_and_huge_units(family: Any, scale: float, rng: np.random.Generator, dtype: Any) -> None:
    """Squares of such numbers leave the range of float32 (1e-38 to 1e38): the status must say so, and not lie."""
    x = two_clouds(rng)
    start = jem.Mixture.start(KEY, family, (x * scale).astype(dtype), 2)
    fit = jem.fit(start, (x * scale).astype(dtype), max_steps=200)
    plain = fitted(family, x.astype(dtype))
    if dtype == jnp.float64:
        assert fit.status_name in FINE
        np.testing.assert_allclose(float(fit.log_likelihood) + x.size * np.log(scale), plain.log_likelihood, rtol=1e-6)
        np.testing.assert_allclose(fit.model.components.mean / scale, plain.model.components.mean, rtol=1e-5)
    elif fit.converged and fit.status_name in FINE:
        np.testing.assert_allclose(float(fit.log_likelihood) + x.size * np.log(scale), plain.log_likelihood, rtol=1e-3)
    else:
        assert fit.status_name in {"nonfinite", "covariance_collapsed", "log_likelihood_decreased", "impossible_data"}


@normal
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_is_never_converged(family: Any, bad: float, rng: np.random.Generator, dtype: Any) -> None:
    """Infinity is no value, and neither is NaN under `jit`, where nobody can tell that it stands for a gap."""
    x = two_clouds(rng).astype(dtype)
    start = jem.Mixture.start(KEY, family, x, 2)
    x[3, 0] = bad
    fit = (jax.jit(jem.fit) if np.isnan(bad) else jem.fit)(start, x)
    assert fit.status_name in {"nonfinite", "impossible_data"}
    assert not fit.converged


@normal
def test_all_weights_zero_but_one(family: Any, rng: np.random.Generator) -> None:
    x = two_clouds(rng)
    assert fitted(family, x, weight=np.eye(60)[7]).status_name in DEGENERATE - FINE


def test_all_weights_zero(rng: np.random.Generator) -> None:
    """No rows at all: the model that came in, and a log-likelihood of zero."""
    x = two_clouds(rng)
    start = jem.Mixture.start(KEY, jem.Gaussian, x, 2)
    fit = jem.fit(start, x, weight=np.zeros(60))
    assert fit.log_likelihood == 0
    np.testing.assert_allclose(fit.model.components.mean, start.components.mean)


def test_whole_numbers_and_booleans_are_read_as_floats() -> None:
    counts = np.array([0, 1, 3, 2, 9, 8, 7, 11])
    for family, x in ((jem.Poisson, counts), (jem.Bernoulli, counts > 4), (jem.Gaussian, counts[:, None])):
        start = jem.Mixture.start(KEY, family, x, 2)
        a, b = jem.fit(start, x), jem.fit(start, np.asarray(x, float))
        assert a.log_likelihood.dtype == jnp.float64
        np.testing.assert_array_equal(a.log_likelihood, b.log_likelihood)
        np.testing.assert_array_equal(start.log_prob(x), start.log_prob(np.asarray(x, float)))
    narrow = jem.Gaussian(np.array([0.0], np.float32), np.array([[1.0]], np.float32)).log_prob(np.array([[1]], np.int8))
    np.testing.assert_allclose(narrow, ss.norm.logpdf(1), rtol=1e-6)


def test_values_outside_the_support_are_impossible() -> None:
    model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 4.0]))
    for x in ([1.0, -1.0], [1.0, 0.5]):
        assert model.log_prob(x)[1] == -jnp.inf
        assert jem.fit(model, x).status_name == "impossible_data"
        np.testing.assert_array_equal(model.posterior(x)[1], 0)


@normal
def test_a_bad_member_of_a_batch_changes_no_other(family: Any, rng: np.random.Generator) -> None:
    xs = np.stack([two_clouds(rng) for _ in range(3)])
    starts = jem.start_many(KEY, family, xs, 2)
    bad = xs.copy()
    bad[1, 5] = np.inf
    for run in (jax.vmap(jem.fit), jem.fit_many):
        good, mixed = run(starts, jnp.asarray(xs)), run(starts, jnp.asarray(bad))
        assert mixed.status_name[1] in {"nonfinite", "impossible_data"}
        for i in (0, 2):
            np.testing.assert_array_equal(good.log_likelihood[i], mixed.log_likelihood[i])
            np.testing.assert_array_equal(good.model.components.mean[i], mixed.model.components.mean[i])
            np.testing.assert_array_equal(good.status[i], mixed.status[i])


def test_rare_is_not_impossible() -> None:
    """A component of weight 1e-9 that must have made a row is counted as one."""
    model = jem.Mixture([1 - 1e-9, 1e-9], jem.SphericalGaussian([[0.0], [100.0]], [1.0, 1.0]))
    statistics = model.e_step(np.array([[0.0], [100.0]]))[1](jnp.ones(2))
    np.testing.assert_allclose(statistics.counts, [1, 1], rtol=1e-12)


def test_log_sum_of_nothing_possible() -> None:
    terms = jnp.array([[-jnp.inf, -jnp.inf], [-jnp.inf, 0.0], [-1e4, -1e4]])
    np.testing.assert_allclose(semirings.log_sum(terms), [-np.inf, 0, np.log(2) - 1e4])
    gradient = jax.vmap(jax.grad(semirings.log_sum))(terms)
    np.testing.assert_allclose(gradient, [[0, 0], [0, 1], [0.5, 0.5]])


def test_log_likelihood_of_many_rows_in_float32(rng: np.random.Generator) -> None:
    """Two hundred thousand terms: right to a hundredth of a nat in some 300,000."""
    x = rng.normal(size=(200_000, 1)).astype(np.float32)
    model = jem.Mixture(
        np.array([0.5, 0.5], np.float32),
        jem.SphericalGaussian(np.array([[-1.0], [1.0]], np.float32), np.ones(2, np.float32)),
    )
    each = np.asarray(model.log_prob(x), float)
    np.testing.assert_allclose(summation.total(model.log_prob(x)), each.sum(), rtol=1e-7)
    np.testing.assert_allclose(jem.fit(model, x, max_steps=0).log_likelihood, each.sum(), rtol=1e-7)


@pytest.mark.parametrize("d", [1, 3, 8, 9, 30])
def test_factors_are_lapacks(d: int, rng: np.random.Generator) -> None:
    root = rng.normal(size=(2, d, d + 3))
    matrix = jnp.asarray(root @ np.swapaxes(root, 1, 2))
    white = linalg.whitening(matrix)
    np.testing.assert_allclose(linalg.cholesky(matrix), np.linalg.cholesky(matrix), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(white, np.linalg.inv(np.linalg.cholesky(matrix)), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(-2 * linalg.half_log_det(white), -np.linalg.slogdet(matrix)[1], rtol=1e-10)
    change = rng.normal(size=matrix.shape)
    change, h = jnp.asarray(change + np.swapaxes(change, 1, 2)), 1e-6
    for function in (linalg.cholesky, linalg.whitening):
        slope = jax.jvp(function, (matrix,), (change,))[1]
        measured = (function(matrix + h * change) - function(matrix - h * change)) / (2 * h)
        np.testing.assert_allclose(slope, measured, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d", [4, 9, 14])
def test_a_singular_matrix_has_a_finite_factor(d: int, rng: np.random.Generator, dtype: Any) -> None:
    """Of columns that others span nothing is left, and nothing is divided by that."""
    root = rng.normal(size=(5, d, 2)).astype(dtype)
    matrix = jnp.asarray(root @ np.swapaxes(root, 1, 2))
    factor, white = jax.jit(lambda matrix: (linalg.cholesky(matrix), linalg.whitening(matrix)))(matrix)
    assert np.isfinite(white).all()
    size = float(jnp.abs(matrix).max())
    np.testing.assert_allclose(
        factor @ linalg.transpose(factor), matrix, atol=100 * d * size * float(jnp.finfo(dtype).eps)
    )


def gaussians(rng: np.random.Generator, d: int, apart: float, dtype: Any) -> tuple[jem.Gaussian, np.ndarray]:
    root = rng.normal(size=(3, d, 2 * d)) / np.sqrt(d)
    mean = rng.normal(size=(3, d)) * 0.1
    mean[1, 0] += apart
    x = np.concatenate([m + rng.normal(size=(20, d)) for m in mean])
    model = jem.Gaussian(mean, root @ np.swapaxes(root, 1, 2))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), model), x.astype(dtype)


@pytest.mark.parametrize("d", [mahalanobis.UNROLLED, mahalanobis.UNROLLED + 1, 9])
@pytest.mark.parametrize("apart", [1.0, 1e3])
def test_ways_to_a_distance_agree(d: int, apart: float, rng: np.random.Generator, dtype: Any) -> None:
    """Features, one member after the other, written out: all are the plain formula, and the guard picks a right one."""
    model, x = gaussians(rng, d, apart, dtype)
    columns, white = jnp.asarray(x.T), linalg.whitening(model.covariance)
    weight = jnp.asarray(rng.uniform(size=(3, len(x))), dtype)
    mean = np.asarray(model.mean, float)
    difference = x.astype(float) - mean[:, None]
    distance = np.einsum("knd,kde,kne->kn", difference, np.linalg.inv(np.asarray(model.covariance, float)), difference)
    first = np.einsum("kn,knd->kd", np.asarray(weight, float), difference)
    second = np.einsum("kn,knd,kne->kde", np.asarray(weight, float), difference, difference)
    fine = 1e-9 if dtype == jnp.float64 else 2e-4

    def check(found: Any, moments: Any) -> None:
        np.testing.assert_allclose(found, distance, rtol=fine, atol=fine * 10)
        np.testing.assert_allclose(moments[0], first, rtol=fine, atol=fine * apart)
        np.testing.assert_allclose(moments[1], second, rtol=fine, atol=fine * apart)

    by_guard = mahalanobis.moments(columns, weight, model.mean, white)
    check(mahalanobis.distance(columns, model.mean, white), (by_guard.first, by_guard.second))
    check(
        mahalanobis._distance_by_member(columns, model.mean, white),
        mahalanobis._moments_by_member(columns, model.mean, white, weight),
    )
    if apart == 1.0 or dtype == jnp.float64:
        centre = jnp.mean(model.mean, axis=0, keepdims=True)
        near = mahalanobis._features(columns - centre.T), model.mean - centre, white
        fine = max(fine, 1e-16 * apart**2 * 100)
        check(mahalanobis._distance_by_features(*near), mahalanobis._moments_by_features(*near, weight))


def test_the_guard_is_needed(rng: np.random.Generator) -> None:
    """Without it the features are wrong by nats in float32: this is the failure that the guard is there for."""
    model, x = gaussians(rng, 6, 1e3, jnp.float32)
    white, centre = linalg.whitening(model.covariance), jnp.mean(model.mean, axis=0, keepdims=True)
    exact = mahalanobis._distance_by_member(jnp.asarray(x.T), model.mean, white)
    unguarded = mahalanobis._distance_by_features(
        mahalanobis._features(jnp.asarray(x.T) - centre.T), model.mean - centre, white
    )
    own = np.repeat(np.eye(3, dtype=bool), 20, axis=1)
    assert np.abs(np.asarray(unguarded - exact))[own].max() > 1e-2
    guarded = mahalanobis.distance(jnp.asarray(x.T), model.mean, white)
    np.testing.assert_array_equal(np.asarray(guarded)[own], np.asarray(exact)[own])


def test_replace_is_not_checked_but_constructors_are() -> None:
    broken = replace(jem.Poisson(1.0), rate=jnp.asarray(-1.0))
    assert broken.rate == -1
    with pytest.raises(ValueError, match="rate"):
        jem.Poisson(broken.rate)
