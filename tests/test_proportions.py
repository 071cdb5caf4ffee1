"""Proportions and directions: against scipy, and where they are concentrated without end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as ss

import jaxem as jem
from families import SINGLES, Example, coordinates, e_step, m_step, perturbed

pytestmark = pytest.mark.slow

MINE = {"geometric", "negative-binomial", "multinomial", "beta", "dirichlet", "von-mises"}
mine = pytest.mark.parametrize("example", [e for e in SINGLES if e.name in MINE], ids=repr)


@mine
def test_expected_statistics_are_those_of_the_model(example: Example, rng: np.random.Generator) -> None:
    """The M-step of what is expected gives the model back, whichever reads it; and many draws are about that."""
    members, n = example.members(2), 40_000
    for model in (members, perturbed(members, rng)):
        again = m_step(model, members.expected_statistics())
        for path, leaf in coordinates(members).items():
            np.testing.assert_allclose(coordinates(again)[path], leaf, rtol=1e-9, err_msg=path)
    x = jax.jit(lambda model: model.sample(jax.random.key(3), n))(members)
    for k in range(2):
        fitted = m_step(members, e_step(members, x[k], jnp.full((2, n), 1 / n))[1])
        for path, leaf in coordinates(members).items():
            np.testing.assert_allclose(coordinates(fitted)[path][k], leaf[k], rtol=0.05, atol=0.02, err_msg=path)


@pytest.mark.parametrize(("a", "b"), [(2.0, 5.0), (0.3, 0.2), (1e6, 2e6), (50.0, 0.5)])
def test_beta_is_scipys_and_fitted_as_by_scipy(a: float, b: float, rng: np.random.Generator) -> None:
    x = np.clip(rng.beta(a, b, 300), 1e-12, 1 - 1e-12)
    np.testing.assert_allclose(jem.Beta(a, b).log_prob(x), ss.beta.logpdf(x, a, b), rtol=1e-8, atol=1e-8)
    fit = jem.fit(jem.Beta(1.0, 1.0), x, tol=1e-12)
    theirs = ss.beta.fit(x, a, b, floc=0, fscale=1)[:2]
    assert fit.status_name == "converged"
    assert fit.steps <= 2
    np.testing.assert_allclose([fit.model.successes, fit.model.failures], theirs, rtol=1e-6)


def test_dirichlet_is_scipys_and_its_fit_solves_the_likelihood_equations(rng: np.random.Generator) -> None:
    a = np.array([0.5, 2.0, 7.0])
    x = rng.dirichlet(a, 200)
    np.testing.assert_allclose(jem.Dirichlet(a).log_prob(x), [ss.dirichlet.logpdf(row, a) for row in x], rtol=1e-10)
    fit = jem.fit(jem.Dirichlet(np.ones(3)), x, tol=1e-14)
    found = np.asarray(fit.model.concentration)
    # The floor is a 1e-8 of a row: solved to what it leaves.
    np.testing.assert_allclose(sp.digamma(found) - sp.digamma(found.sum()), np.log(x).mean(0), atol=1e-9)


def test_m_steps_of_proportions_are_exact_from_one_end_to_the_other(rng: np.random.Generator) -> None:
    """digamma(a) - digamma(sum a) is solved for concentrations from a hundredth to a thousand million."""
    a = 10.0 ** (rng.uniform(-2, 8, (400, 1)) + rng.uniform(-0.5, 0.5, (400, 3)))
    found = m_step(jem.Dirichlet(np.ones((400, 3))), jem.Dirichlet(a).expected_statistics())
    np.testing.assert_allclose(found.concentration, a, rtol=1e-9)


def test_narrow_proportions_in_float32(rng: np.random.Generator) -> None:
    x = rng.beta(2e6, 3e6, 500).astype(np.float32)
    fits = [jem.fit(jem.Beta(jnp.ones((), d), jnp.ones((), d)), x.astype(d)) for d in (jnp.float32, jnp.float64)]
    single, double = (fit.model.successes for fit in fits)
    np.testing.assert_allclose(single, double, rtol=1e-3)
    assert fits[0].status_name in ("converged", "precision_exhausted")


def test_von_mises_is_its_formula(rng: np.random.Generator) -> None:
    x, concentration = rng.uniform(-20, 20, 50), np.array([0.0, 0.3, 5.0, 100.0, 1e6])
    exact = concentration[:, None] * (np.cos(x - 1) - 1) - np.log(2 * np.pi * sp.i0e(concentration))[:, None]
    model = jem.VonMises(np.ones(5), concentration)
    np.testing.assert_allclose(model.log_prob(x), exact, rtol=1e-10)
    draws = np.asarray(model.sample(jax.random.key(0), 20_000))
    assert (np.abs(draws) <= np.pi).all()
    for row, k in zip((draws - 1 + np.pi) % (2 * np.pi) - np.pi, concentration, strict=True):
        assert ss.kstest(row, lambda v, k=k: ss.vonmises.cdf(v, max(k, 1e-9))).pvalue > 1e-3


def test_von_mises_is_fitted_as_by_scipy(rng: np.random.Generator) -> None:
    for mean, concentration in ((2.5, 4.0), (-3.1, 0.4), (3.1, 2e4)):
        x = rng.vonmises(mean, concentration, 300)
        theirs = ss.vonmises.fit(x, fscale=1)
        for turned in (x, x + 6 * np.pi):
            fit = jem.fit(jem.VonMises(0.0, 1.0), turned, tol=1e-14)
            assert -np.pi < fit.model.mean <= np.pi
            off = (float(fit.model.mean) - theirs[1] + np.pi) % (2 * np.pi) - np.pi
            np.testing.assert_allclose(off, 0, atol=1e-9)
            np.testing.assert_allclose(fit.model.concentration, theirs[0], rtol=1e-6)


def test_concentrations_of_directions_are_exact_from_one_end_to_the_other(dtype: Any) -> None:
    concentration = jnp.asarray(10.0 ** np.arange(-3, 12), dtype)
    mean = jnp.linspace(-3, 3, 15).astype(dtype)
    found = m_step(jem.VonMises(mean + 0.5, mean * 0 + 1), jem.VonMises(mean, concentration).expected_statistics())
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found.mean, mean, atol=16 * eps / 1e-3)
    np.testing.assert_allclose(found.concentration[3:], concentration[3:], rtol=256 * eps)


def test_slopes_of_concentrated_directions_in_float32() -> None:
    slope = jax.grad(lambda k: jem.VonMises(jnp.float32(0), k).log_prob(jnp.zeros(1, jnp.float32))[0])
    for k in (0.0, 1.0, 19.0, 21.0, 1e4, 1e8):
        exact = 1 - sp.i1e(k) / sp.i0e(k) if k < 1e4 else 1 / (2 * k)
        np.testing.assert_allclose(slope(jnp.float32(k)), exact, rtol=1e-4)


def test_a_concentration_of_zero_is_free() -> None:
    """A fit moves on from there, unlike from a probability or a rate of zero."""
    assert jem.free_parameters(jem.VonMises(0.0, 0.0)) == 2
    assert jem.free_parameters(jem.Mixture([0.5, 0.5], jem.VonMises([0.0, 1.0], [0.0, 3.0]))) == 5
    assert jem.free_parameters(jem.hold(jem.VonMises(0.0, 0.0), "concentration")) == 1
    fit = jem.fit(jem.VonMises(0.0, 0.0), [0.9, 1.0, 1.2])
    assert fit.model.concentration > 1
    assert np.isfinite(jem.coordinates(jem.VonMises([0.0, 0.0], [0.0, 3.0]))[0]["concentration"]).all()


NARROW: list[tuple[str, Any, np.ndarray]] = [
    ("beta", jem.Beta(1.0, 1.0), np.full(9, 0.3)),
    ("dirichlet", jem.Dirichlet([1.0, 1.0, 1.0]), np.full((9, 3), 1 / 3)),
    ("von-mises", jem.VonMises(0.0, 1.0), np.full(9, 3.0)),
]


@pytest.mark.parametrize(("name", "start", "x"), NARROW, ids=lambda value: value if isinstance(value, str) else "")
def test_equal_rows_collapse_onto_the_floor(name: str, start: Any, x: np.ndarray, dtype: Any) -> None:
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), start)
    fit = jem.fit(start, x.astype(dtype))
    assert fit.status_name == "covariance_collapsed"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((fit.model, fit.log_likelihood)))
    # With one row elsewhere it stands by itself.
    other = np.concatenate([x[1:], x[:1] * 0.8 + (np.array([[0.2, 0, 0]]) if name == "dirichlet" else 0.2)])
    assert jem.fit(start, other.astype(dtype)).status_name == "converged"


def test_opposite_directions_have_none(dtype: Any) -> None:
    fit = jem.fit(jem.VonMises(jnp.zeros((), dtype), jnp.ones((), dtype)), np.array([0, np.pi], dtype))
    assert fit.status_name == "converged"
    assert 0 < fit.model.concentration < 1e-6


@pytest.mark.parametrize("name", ["beta", "dirichlet"])
def test_em_climbs_on_tied_proportions(name: str, rng: np.random.Generator) -> None:
    (example,) = (e for e in SINGLES if e.name == name)
    x = np.asarray(example.rows(24))[rng.integers(0, 8, 24)]
    fit = jem.fit(example.mixture(2, seed=4), x, max_steps=60, tol=0.0)
    assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-9).all()
