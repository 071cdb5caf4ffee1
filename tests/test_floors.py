"""The floor of a spread: it enters nowhere but where a spread would fall below what its float type resolves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma

import jaxem as jem
from jaxem.core import linalg

pytestmark = pytest.mark.slow

fitted = jax.jit(jem.fit)


def exact(x: np.ndarray) -> np.ndarray:
    """The covariance of rows, in extended precision."""
    far = x.astype(np.longdouble)
    difference = far - far.mean(0)
    return (difference.T @ difference / len(x)).astype(float)


def pair(family: Any, first: Any, second: Any) -> jem.Mixture:
    """Two components about two places, of unit spread."""
    return jem.Mixture(jnp.full(2, 0.5, first.dtype), family._unit(jnp.stack([first, second])))


def conditioned(covariance: np.ndarray) -> np.ndarray:
    """The smallest eigenvalue of covariances, brought to unit diagonals."""
    wide = covariance.astype(float)
    scale = np.sqrt(np.diagonal(wide, axis1=-2, axis2=-1))
    return np.linalg.eigvalsh(wide / scale[..., :, None] / scale[..., None, :])[..., 0]


@pytest.mark.parametrize("family", [jem.Gaussian, jem.DiagonalGaussian])
def test_clusters_far_apart_have_covariances_of_their_own(family: Any, rng: np.random.Generator, dtype: Any) -> None:
    """Up to 1e9 deviations apart in float64, 1e5 in float32, and beside a row at 1e15: to all digits of the type."""
    double = dtype == jnp.float64
    least = 1e-14 if double else 1e-7
    for apart in (1e1, 1e3, 1e6, 1e9) if double else (1e1, 1e3, 1e5):
        x = rng.normal(size=(60, 2)).astype(dtype)
        x[:30] += np.asarray(3 * apart, dtype)
        fit = fitted(pair(family, x[40], x[10]), x)
        assert jem.Status(int(fit.status)).name == "converged"
        for member, rows in ((0, x[30:]), (1, x[:30])):
            found = np.asarray(getattr(fit.model.components, "covariance" if family is jem.Gaussian else "variance"))
            wanted = exact(rows) if family is jem.Gaussian else np.diag(exact(rows))
            # The mean itself is rounded: by so much, the spread about it is larger.
            unit = float(np.finfo(dtype).eps) * np.abs(rows).max()
            np.testing.assert_allclose(found[member], wanted, rtol=1e-12 if double else 2e-6, atol=least + unit**2)
    wild = rng.normal(size=(60, 2)).astype(dtype)
    wild[0] = 1e15
    fit = fitted(pair(family, wild[1], wild[0]), wild)
    assert jem.Status(int(fit.status)).name == "covariance_collapsed"  # one row has no spread
    found, wanted = np.asarray(fit.model.components.expected_statistics().second)[0], exact(wild[1:])
    np.testing.assert_allclose(
        found, wanted if family is jem.Gaussian else np.diag(wanted), rtol=1e-12 if double else 2e-6, atol=1e-7
    )


def test_one_gaussian_is_the_covariance_of_its_rows(rng: np.random.Generator) -> None:
    x = rng.normal(size=(200, 2)) @ [[1.0, 3.0], [0.0, 1e-3]] + [5.0, -1e4]
    fit = fitted(jem.Gaussian(jnp.zeros(2), jnp.eye(2)), x)
    np.testing.assert_allclose(fit.model.covariance, exact(x), rtol=1e-12)
    x[0] = 1e15
    fit = fitted(jem.Gaussian(jnp.zeros(2), jnp.eye(2)), x)
    covariance = np.asarray(fit.model.covariance)
    np.testing.assert_allclose(covariance, exact(x), rtol=1e-12)
    np.linalg.cholesky(covariance)
    assert conditioned(covariance) > 0


def test_covariances_are_positive_definite_in_their_own_type(rng: np.random.Generator) -> None:
    """Near-collinear columns at offsets in float32: 200 problems of three steps each."""
    problems, n = 200, 100
    x = rng.normal(size=(problems, n, 3))
    slope, rest = rng.normal(size=(problems, 1, 2)), 10 ** rng.uniform(-6, -1, (problems, 1))
    x[..., 2] = np.sum(x[..., :2] * slope, axis=-1) + rest * rng.normal(size=(problems, n))
    x = (x * 10 ** rng.uniform(-2, 2, (problems, 1, 3)) + 10 ** rng.uniform(0, 5, (problems, 1, 3))).astype(np.float32)
    weight = rng.uniform(size=(problems, n)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def steps(x: Any, weight: Any) -> Any:
        model = jem.Gaussian(x[0], jnp.eye(3, dtype=x.dtype))
        return jax.lax.fori_loop(0, 3, lambda _, m: m.m_step(m.e_step(x)[1](weight)), model).covariance

    covariance = np.asarray(steps(x, weight))
    assert covariance.dtype == np.float32
    assert (conditioned(covariance) > 4 * np.finfo(np.float32).eps).all()
    np.linalg.cholesky(covariance)


def test_lifting_leaves_what_needs_none(rng: np.random.Generator, dtype: Any) -> None:
    """Bit for bit; and what is less than nothing, after moving moments from far away, is made positive definite."""
    roots = rng.normal(size=(20, 4, 4)).astype(dtype)
    good = roots @ np.swapaxes(roots, 1, 2) + np.eye(4, dtype=dtype)
    bad = -good
    bad[::2, 0, 1] = bad[::2, 1, 0] = 100.0
    single = np.ones((20, 4, 4), dtype)
    least = jnp.full((60, 4), 1e-3, dtype)
    lifted = np.asarray(jax.jit(linalg.lifted)(np.concatenate([good, bad, single]), least))
    np.testing.assert_array_equal(lifted[:20], good)
    np.linalg.cholesky(lifted)
    assert (conditioned(lifted) > 0).all()
    np.testing.assert_allclose(lifted[40:], single + np.diag([0, 1e-3, 1e-3, 1e-3]), rtol=1e-4)


def test_positive_numbers_are_at_their_maximum(rng: np.random.Generator) -> None:
    """log(shape) - digamma(shape) = log of the mean - mean of the logarithms, in extended precision."""
    x = 7 * rng.gamma(3.0, size=200)
    far = x.astype(np.longdouble)
    short = float(np.log(far.mean()) - np.log(far).mean())
    shape = float(jem.fit(jem.Gamma(1.0, 1.0), x, tol=1e-12).model.shape)
    np.testing.assert_allclose(np.log(shape) - digamma(shape), short, rtol=1e-12)
    spread = float((1 / far).mean() - 1 / far.mean())
    np.testing.assert_allclose(1 / jem.fit(jem.InverseGaussian(1.0, 1.0), x).model.shape, spread, rtol=1e-12)
    deviation = float(np.sqrt(np.square(np.log(far) - np.log(far).mean()).mean()))
    np.testing.assert_allclose(jem.fit(jem.LogNormal(0.0, 1.0), x).model.scale, deviation, rtol=1e-12)


def test_ties_end_at_the_resolution_of_their_type(dtype: Any) -> None:
    """At zero, at one, and far away: the status says so, and everything is finite."""
    for value in (0.0, 1.0, -1e6):
        x = np.full(20, value, dtype)
        for model in (
            jem.DiagonalGaussian(jnp.zeros(1, dtype), jnp.ones(1, dtype)),
            jem.Laplace(jnp.zeros((), dtype), jnp.ones((), dtype)),
        ):
            fit = fitted(model, x[:, None] if model.event_shape else x)
            assert jem.Status(int(fit.status)).name == "covariance_collapsed", (value, model)
            assert all(np.isfinite(leaf).all() and leaf.dtype == dtype for leaf in jax.tree.leaves(fit.model))
            assert np.isfinite(fit.log_likelihood)
