"""Heavy tails: densities of scipy, published fits, and what an outlier can do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as ss

import jaxem as jem
from families import covariances, e_step, m_step
from jaxem.core.coordinates import from_coordinates, to_coordinates
from jaxem.core.pytree import replace
from jaxem.distributions.student_t import MOST
from oracles.test_published import case

pytestmark = pytest.mark.slow

SQUAREM = jem.SQUAREM(jem.EM())


def student(rng: np.random.Generator, d: int, dof: Any) -> jem.StudentT:
    return jem.StudentT(rng.normal(size=d), covariances(rng, 1, d)[0], dof)


@pytest.mark.parametrize("dof", [0.05, 1.0, 7.0, 1e3])
def test_density_of_a_t(dof: float, rng: np.random.Generator) -> None:
    for d in (1, 3):
        model, x = student(rng, d, dof), rng.normal(size=(20, d)) * 5
        expected = ss.multivariate_t(model.location, model.scatter, dof).logpdf(x)
        np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-10, atol=1e-12)
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
        np.testing.assert_allclose(narrow.log_prob(x.astype(np.float32)), expected, rtol=1e-5, atol=1e-5)


def test_many_degrees_of_freedom_are_a_gaussian(rng: np.random.Generator, dtype: jnp.dtype) -> None:
    """Within rounding, though the two log-gammas in its constant are about 1e11 each."""
    most = MOST[dtype.itemsize]
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), student(rng, 2, most))
    x = jnp.asarray(rng.normal(size=(20, 2)), dtype)
    log_prob, statistics = e_step(model, x, jnp.ones((), dtype))
    normal = jem.Gaussian(model.location, model.scatter)
    expected, moments = e_step(normal, x, jnp.ones((), dtype))
    np.testing.assert_allclose(log_prob, expected, atol=np.max(expected**2) / most + 1e-5)
    assert 0 < -statistics.spread < 100 * 20 / most
    np.testing.assert_allclose(m_step(model, statistics).scatter, m_step(normal, moments).covariance, rtol=1e-3)


def one(family: Any, x: Any, **sizes: int) -> Any:
    """A start for a single model."""
    return jax.jit(lambda x: family.start(x, jnp.ones(len(x), x.dtype), **sizes))(x)


@pytest.mark.parametrize(("solver", "held"), [(SQUAREM, False), (jem.EM(), True)])
def test_creatinine_clearance(solver: Any, held: bool) -> None:
    """28 complete cases of Liu and Rubin 1995; the degrees of freedom estimated (as R's sn), or 4 (MASS's cov.trob)."""
    found = case("creatinine_mvt")
    x, published = np.array(found["data"]["X"]), found["expected"]["published"]
    computed = found["expected"]["computed"]
    computed = computed["nu4"] if held else computed
    fit = jem.fit(one(jem.StudentT, x, **({"dof": 4} if held else {})), x, solver, tol=1e-12, max_steps=200)
    assert fit.status_name == "converged"
    np.testing.assert_allclose(fit.log_likelihood, computed["ll"], atol=1e-9)
    np.testing.assert_allclose(fit.model.location, computed["mu"], rtol=1e-6)
    np.testing.assert_allclose(fit.model.scatter, computed["S"], rtol=1e-4, atol=1e-6)
    if held:
        assert fit.model.dof == 4
        np.testing.assert_allclose(fit.model.location, published["MASS_cov.trob_nu4"]["center"], rtol=1e-6)
        np.testing.assert_allclose(fit.model.scatter, published["MASS_cov.trob_nu4"]["cov"], rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_allclose(fit.model.dof, published["sn_mst.mple_symmetr"]["nu"], rtol=1e-5)
    assert jem.free_parameters(fit.model) == 14 + (not held)


def test_what_is_held_stays(rng: np.random.Generator, tmp_path: Any) -> None:
    x = jnp.asarray(rng.standard_t(3, size=(60, 2)))
    model = replace(student(rng, 2, 5.0), held=("location", "dof"))
    fit = jem.fit(model, x, SQUAREM)
    assert fit.converged
    assert fit.model.dof == 5
    np.testing.assert_array_equal(fit.model.location, model.location)
    # It is the maximum over what is left: the scatter is its own weighted mean.
    off = np.asarray(x - model.location[None])
    counts = 7 / (5 + np.einsum("ni,ij,nj->n", off, np.linalg.inv(fit.model.scatter), off))
    np.testing.assert_allclose(fit.model.scatter, (off.T * counts) @ off / 60, rtol=1e-3)
    free = to_coordinates(fit.model)
    assert [leaf.size for leaf in free] == [0, 3, 0]
    moved = from_coordinates([leaf + 1 for leaf in free], fit.model)
    assert moved.dof == 5
    assert moved.scatter[0, 0] > fit.model.scatter[0, 0]
    jem.save(tmp_path / "t", fit.model)
    assert jem.load(tmp_path / "t").held == ("location", "dof")
    with pytest.raises(ValueError, match="StudentT: held names 'degrees'; parameters are location, scatter, dof"):
        jem.StudentT([0.0], [[1.0]], 1.0, ("degrees",))
    with pytest.raises(ValueError, match=r"StudentT: scatter has shape \(1, 1\) and dof \(\); with a location"):
        jem.StudentT([0.0, 0.0], [[1.0]], 1.0)


def test_gaussian_data_have_many_degrees_of_freedom(rng: np.random.Generator) -> None:
    x = rng.uniform(-1, 1, size=(400, 2))
    normal = jem.fit(jem.Gaussian(np.zeros(2), np.eye(2)), x)
    fit = jem.fit(one(jem.StudentT, x), x, SQUAREM, max_steps=3000)
    assert fit.status_name == "converged"
    assert fit.model.dof > 1e3
    np.testing.assert_allclose(fit.log_likelihood, normal.log_likelihood, atol=400 * 1e-4)


@pytest.mark.parametrize("far", [1e3, 1e12])
def test_a_wild_row_moves_little(far: float, rng: np.random.Generator, dtype: jnp.dtype) -> None:
    """A Gaussian would follow it; a t all but forgets it, and nothing overflows or is NaN."""
    x = jnp.asarray(np.concatenate([rng.normal(size=(60, 2)), [[far, -far]]]), dtype)

    @jax.jit
    def fitted(x: Any) -> Any:
        start = jem.StudentT(jnp.zeros(2, x.dtype), jnp.eye(2, dtype=x.dtype), jnp.asarray(4, x.dtype), ("dof",))
        model = jax.lax.fori_loop(0, 30, lambda _, m: m.m_step(m.e_step(x)[1](jnp.ones(len(x), x.dtype))), start)
        return model, jax.grad(lambda m: m.log_prob(x).sum())(model)

    model, gradient = fitted(x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((model, gradient)))
    assert np.abs(model.location - x[:-1].mean(0)).max() < 0.3
    assert np.diag(model.scatter).max() < 2
    free = replace(model, held=())
    assert np.isfinite(m_step(free, e_step(free, x, jnp.ones((), dtype))[1]).dof)


def test_an_offset_moves_the_location_of_a_t_and_nothing_else(rng: np.random.Generator) -> None:
    x = (np.round(rng.standard_t(4, size=(200, 3)) * 64) / 64).astype(np.float32)
    here, there = (
        jem.fit(one(jem.StudentT, rows), rows, max_steps=10, tol=0.0).model for rows in (x, x + np.float32(10_000))
    )
    np.testing.assert_allclose(there.scatter, here.scatter, rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(there.dof, here.dof, rtol=1e-2)
    np.testing.assert_allclose(there.location - 10_000, here.location, atol=2e-3)


def test_density_of_a_laplace(rng: np.random.Generator) -> None:
    x = rng.normal(size=30) * 5
    np.testing.assert_allclose(jem.Laplace(0.3, 2.0).log_prob(x), ss.laplace(0.3, 2).logpdf(x), rtol=1e-12)


@pytest.mark.parametrize("solver", [jem.EM(), SQUAREM, jem.LBFGS()], ids=["EM", "SQUAREM", "LBFGS"])
def test_a_laplace_ends_at_the_median(solver: Any, rng: np.random.Generator) -> None:
    """From far away, from rows that are not the median, and from the median itself."""
    x = rng.normal(size=101) * 3 + 5
    median = np.median(x)
    top = ss.laplace(median, np.abs(x - median).mean()).logpdf(x).sum()
    for start in (1e4, x.max(), x[0], np.sort(x)[49], median):
        fit = jem.fit(jem.Laplace(start, 1.0), x, solver, tol=1e-9, max_steps=100)
        assert fit.status_name == "converged"
        np.testing.assert_allclose(fit.model.location, median, atol=1e-6)
        np.testing.assert_allclose(fit.log_likelihood, top, atol=1e-9 * len(x))
    if isinstance(solver, jem.EM):
        assert fit.model.location == median


def test_a_weighted_median_among_ties(rng: np.random.Generator) -> None:
    """Rows that rest at the location hold it if they are heavy enough, and let it go if they are not."""
    x, weight = np.array([0.0, 1.0, 2.0, 5.0, 9.0]), np.array([1.0, 1.5, 1.0, 3.0, 0.7])
    for start in x:
        fit = jem.fit(jem.Laplace(start, 1.0), x, weight=weight, tol=1e-12)
        np.testing.assert_allclose(fit.model.location, 5, atol=1e-6)
        np.testing.assert_allclose(fit.model.scale, weight @ np.abs(x - 5) / weight.sum(), rtol=1e-6)
        assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-12).all()


def test_ties_alone_collapse() -> None:
    fit = jem.fit(jem.Laplace(1.0, 1.0), np.full(9, 3.0))
    assert fit.status_name in {"covariance_collapsed", "no_variation"}
    assert np.isfinite(fit.model.scale)


def test_parabolas_stay_above_wherever_they_are_moved(rng: np.random.Generator) -> None:
    """They touch where they are made; moved, they are the same parabolas, and what rested becomes one."""
    x = np.append(rng.normal(size=20), [0.7, 0.7])
    statistics = jem.Laplace(0.7, 1.0).e_step(x)[1](jnp.ones(22))
    places = jnp.linspace(-3, 3, 41)
    truth = np.abs(x[:, None] - np.asarray(places)).sum(0)
    bound = statistics.bound(places - 0.7)
    assert statistics.resting == 2
    assert (bound >= truth - 1e-12).all()
    np.testing.assert_allclose(statistics.bound(jnp.asarray(0.0)), np.abs(x - 0.7).sum(), rtol=1e-12)
    moved = statistics.about(jnp.asarray(-1.0))
    assert moved.resting == 0
    np.testing.assert_allclose(moved.bound(jnp.asarray(0.0)), statistics.bound(jnp.asarray(-1.7)), rtol=1e-12)
    assert (moved.bound(places + 1.0) >= bound - 1e-9).all()
