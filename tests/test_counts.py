"""Counts, point masses, and families side by side: against scipy and brute force, and at the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
import scipy.stats as ss

import jaxem as jem
from families import e_step
from jaxem.core.special import (
    log_minus_digamma,
    stirling,
    sum_k_over_r_plus_k,
    x_minus_log1p,
    x_minus_log1p_over_square,
)
from jaxem.distributions.poisson import Tables

pytestmark = pytest.mark.slow

COUNTS = np.array([0.0, 1, 2, 7, 40, 1e3, 1e6])


def test_negative_binomial_is_scipys() -> None:
    mean, shape = np.array([(3.0, 1.0), (50.0, 0.1), (5.0, 300.0), (1e4, 3.0), (2.0, 1e6)]).T
    theirs = ss.nbinom.logpmf(COUNTS, shape[:, None], (shape / (mean + shape))[:, None])
    np.testing.assert_allclose(jem.NegativeBinomial(mean, shape).log_prob(COUNTS), theirs, rtol=1e-8, atol=1e-9)


def test_geometric_and_multinomial_are_scipys() -> None:
    np.testing.assert_allclose(jem.Geometric(0.3).log_prob(COUNTS), ss.geom.logpmf(COUNTS, 0.3, loc=-1), rtol=1e-12)
    p, rows = np.array([0.2, 0.3, 0.5]), np.random.default_rng(0).multinomial(9, [0.1, 0.1, 0.8], 20)
    np.testing.assert_allclose(jem.Multinomial(p).log_prob(rows), ss.multinomial.logpmf(rows, 9, p), rtol=1e-12)


def test_a_negative_binomial_of_endless_shape_is_a_poisson(dtype: Any) -> None:
    mean, shape = jnp.asarray([0.5, 20.0], dtype), jnp.asarray([1e20, 1e20], dtype)
    x = COUNTS[:5].astype(dtype)
    eps = float(jnp.finfo(dtype).eps)
    model, poisson = jem.NegativeBinomial(mean, shape), jem.Poisson(mean)
    np.testing.assert_allclose(model.log_prob(x), poisson.log_prob(x), rtol=64 * eps, atol=64 * eps)
    statistics = e_step(model, x, jnp.ones((2, 5), dtype))[1]
    np.testing.assert_allclose(statistics.untabled, (x * (x - 1)).sum() / 2 / shape, rtol=1e-5)


def test_the_rests_of_special_functions() -> None:
    r = jnp.array([1e-2, 0.7, 15.9, 16.1, 1e4])[:, None]
    x = jnp.array([0.0, 1, 2, 3, 17, 400])[None]
    sums = [[sum(k / (a + k) for k in range(int(b))) for b in x[0]] for a in np.asarray(r)[:, 0]]
    np.testing.assert_allclose(sum_k_over_r_plus_k(r, x), sums, rtol=1e-10, atol=1e-13)
    t = jnp.array([-0.999, -0.21, -0.19, 1e-3, 0.19, 0.21, 1e6])
    np.testing.assert_allclose(x_minus_log1p(t), t - np.log1p(t), rtol=1e-9)
    np.testing.assert_allclose(x_minus_log1p_over_square(t), (t - np.log1p(t)) / t**2, rtol=1e-9)
    below, above = jnp.array([16.0 - 1e-9]), jnp.array([16.0 + 1e-9])  # where series begin
    for f in (stirling, log_minus_digamma):
        np.testing.assert_allclose(f(below), f(above), rtol=1e-9)


def test_the_bound_of_a_negative_binomial_lies_below_and_moves_below_itself(rng: np.random.Generator) -> None:
    x, shapes = rng.poisson(rng.gamma(0.7, 9, 50)).astype(float), np.exp(rng.uniform(-3, 9, 40))
    model = jem.NegativeBinomial(x.mean(), 2.0)
    tables: Tables = e_step(model, x, jnp.ones(50))[1]
    exact = np.array([sum(np.log1p(np.arange(int(n)) / s).sum() for n in x) for s in shapes])
    there = sum(np.log1p(np.arange(int(n)) / 2.0).sum() for n in x)
    to, middle = jnp.log(shapes), jnp.log(30.0)
    bound = tables.bound(to)
    assert (exact - there >= bound - 1e-9).all()
    moved = tables.about(middle)
    assert (bound - tables.bound(middle) >= moved.bound(to) - 1e-9).all()


@pytest.mark.parametrize(("mean", "shape"), [(3.0, 1.0), (40.0, 0.1), (20.0, 30.0), (1e4, 3.0)])
def test_negative_binomial_is_fitted_in_few_steps(mean: float, shape: float, rng: np.random.Generator) -> None:
    x = rng.poisson(rng.gamma(shape, mean / shape, 300)).astype(float)
    fit = jem.fit(jem.NegativeBinomial(mean, 1.0), x, tol=1e-13)

    def loss(log_shape: float) -> float:
        return -ss.nbinom.logpmf(x, np.exp(log_shape), 1 / (1 + x.mean() / np.exp(log_shape))).sum()

    best = so.minimize_scalar(loss, bounds=(-5, 10), method="bounded", options={"xatol": 1e-10})
    assert fit.status_name == "converged"
    assert fit.steps <= 20
    np.testing.assert_allclose(fit.model.mean, x.mean(), rtol=1e-12)
    np.testing.assert_allclose(fit.model.shape, np.exp(best.x), rtol=1e-4)  # scipy's function is flat to rounding there
    np.testing.assert_allclose(fit.log_likelihood, -best.fun, rtol=1e-9)


ODD = {
    "zeros": np.zeros(8),
    "equal": np.full(8, 3.0),
    "one and zeros": np.r_[np.zeros(7), 1],
    "narrow": np.array([4.0, 5, 6, 5, 5, 4, 6, 5]),
    "huge": np.array([1e9, 1e9, 1, 0, 5, 1e9, 3, 1e9]),
}


@pytest.mark.parametrize("family", [jem.NegativeBinomial, jem.Geometric])
def test_odd_counts_end_in_finite_models(family: Any, dtype: Any) -> None:
    for x in ODD.values():
        ones = jnp.ones((), dtype)
        fit = jem.fit(family(ones, ones) if family is jem.NegativeBinomial else family(ones / 2), x.astype(dtype))
        assert fit.status_name == "converged"
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((fit.model, fit.log_likelihood)))
        if family is jem.NegativeBinomial and x.var() <= x.mean():
            poisson = jem.Poisson(jnp.asarray(x.mean(), dtype)).log_prob(x.astype(dtype)).sum()
            np.testing.assert_allclose(fit.log_likelihood, poisson, rtol=1e-5, atol=1e-5)


def test_failures_that_never_come() -> None:
    fit = jem.fit(jem.Geometric(0.5), np.zeros(5))
    assert fit.model.probs == 1
    assert fit.log_likelihood == 0
    assert fit.model.log_prob([0.0, 1.0]).tolist() == [0, -np.inf]
    gradient = jax.grad(lambda p: jem.Geometric(p).log_prob(jnp.array([0.0, 1.0]))[0])(jnp.array(1.0))
    assert np.isfinite(gradient)


IMPOSSIBLE: list[tuple[Any, np.ndarray]] = [
    (jem.Geometric(0.3), np.array([-1.0, 0.5, np.inf])),
    (jem.NegativeBinomial(2.0, 3.0), np.array([-1.0, 0.5, np.inf])),
    (jem.NegativeBinomial(0.0, 3.0), np.array([1.0, 2.0])),
    (jem.Multinomial([0.5, 0.5, 0.0]), np.array([[-1.0, 1, 1], [0.5, 0.5, 0], [1, 1, 1]])),
    (jem.PointMass(2.0), np.array([1.0, np.inf])),
    (jem.Beta(2.0, 0.5), np.array([-1.0, 0, 1, 2, np.inf])),
    (jem.Dirichlet([2.0, 0.5]), np.array([[0.5, 0.6], [0, 1], [-1, 2], [np.inf, 0]])),
    (jem.VonMises(1.0, 2.0), np.array([np.inf])),
]


@pytest.mark.parametrize(("model", "rows"), IMPOSSIBLE, ids=lambda value: type(value).__name__)
def test_what_cannot_be_has_log_probability_minus_infinity_and_no_gradient(model: Any, rows: np.ndarray) -> None:

    @jax.jit
    def all_of(model: Any) -> tuple[Any, ...]:
        def finite_part(model: Any) -> tuple[Any, Any]:
            log_prob, pullback = model.e_step(rows)
            return jnp.where(jnp.isfinite(log_prob), log_prob, 0).sum(), (log_prob, pullback(jnp.zeros(len(rows))))

        return jax.grad(finite_part, has_aux=True)(model)

    gradient, (log_prob, statistics) = all_of(model)
    assert (log_prob == -np.inf).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, statistics)))


def inflated(zeros: float = 0.3, rate: float = 4.0) -> jem.Mixture:
    return jem.Mixture([zeros, 1 - zeros], jem.Either((jem.PointMass([0.0]), jem.Poisson([rate]))))


def test_zero_inflated_poisson() -> None:
    """Against its density, and its likelihood equations (Lambert 1992)."""
    x = np.arange(6.0)
    exact = 0.3 * (x == 0) + 0.7 * ss.poisson.pmf(x, 4)
    np.testing.assert_allclose(np.exp(inflated().log_prob(x)), exact, rtol=1e-12)
    np.testing.assert_allclose(inflated().posterior(x)[:, 0], 0.3 * (x == 0) / exact, rtol=1e-12)

    x = np.asarray(inflated().sample(jax.random.key(0), 400))
    fit = jem.fit(inflated(0.5, 1.0), x, tol=1e-14)
    rate = fit.model.components.parts[1].rate[0]
    np.testing.assert_allclose(rate / -np.expm1(-rate), x[x > 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(np.exp(fit.model.log_prob([0.0])[0]), (x == 0).mean(), rtol=1e-6)
    assert fit.model.components.parts[0].location == 0
    assert jem.free_parameters(fit.model) == 2
    gradient = jem.fit(inflated(0.5, 1.0), x, jem.LBFGS(), tol=1e-12)
    np.testing.assert_allclose(gradient.log_likelihood, fit.log_likelihood, rtol=1e-8)


def test_either_is_its_parts_side_by_side(rng: np.random.Generator, tmp_path: Path) -> None:
    parts = jem.PointMass([2.5]), jem.NegativeBinomial([3.0, 9.0], [1.0, 2.0]), jem.SphericalGaussian([[0.0]], [1.0])
    with pytest.raises(ValueError, match="only the last batch axis may differ"):
        jem.Either(parts)
    with pytest.raises(ValueError, match="member axis"):
        jem.Either((jem.Poisson(1.0),))
    model = jem.Either((*parts[:2], jem.Laplace([0.0], [1.0])))
    x = np.array([2.5, 0.0, 3.0, -1.5, np.inf])
    expected = np.concatenate([part.log_prob(x) for part in model.parts])
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-14)
    assert model.inside(x).tolist() == [True, True, True, True, False]

    # A part counts no row that it cannot produce, and the others do not notice.
    weight = jnp.asarray(rng.uniform(size=(4, 4)))
    statistics = e_step(model, x[:4], weight)[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(statistics))
    alone = e_step(model.parts[1], x[1:3], weight[1:3, 1:3])[1]
    np.testing.assert_allclose(statistics[1].total, alone.total)
    after = model.m_step(statistics)
    np.testing.assert_allclose(after.parts[1].mean, model.parts[1].m_step(alone).mean)
    assert after.parts[0].location == 2.5

    jem.save(tmp_path / "either.safetensors", model)
    np.testing.assert_allclose(jem.load(tmp_path / "either.safetensors").log_prob(x), expected, rtol=1e-14)


def test_either_starts_and_hides_in_a_chain() -> None:
    truth = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], jem.Either((jem.PointMass([0.0]), jem.Poisson([5.0]))))
    x = truth.sample(jax.random.key(1), 1)[0]
    family = jem.Either.of(jem.PointMass, jem.Poisson)
    mixture = jem.Mixture.start(jax.random.key(0), family, x, 3, method="random")
    assert [part.batch_shape for part in mixture.components.parts] == [(1,), (2,)]
    with pytest.raises(ValueError, match="each needs one"):
        family.start(x, jnp.ones((1, len(x))))
    fit = jem.fit(truth, x, max_steps=30)
    assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-9).all()
    states = np.asarray(fit.model.decode(x)).reshape(-1)
    assert (states[np.asarray(x) > 0] == 1).all()


@pytest.mark.parametrize("total", [0, 2.5])
def test_a_multinomial_total_is_a_whole_number(total: Any) -> None:
    with pytest.raises(ValueError, match="whole number above zero"):
        jem.Multinomial([0.5, 0.5], total)


def test_rows_of_a_multinomial_may_have_totals_of_their_own() -> None:
    x = np.array([[3.0, 1, 0], [0, 0, 0], [10, 20, 30]])
    model = jem.fit(jem.Multinomial([0.3, 0.3, 0.4]), x).model
    np.testing.assert_allclose(model.probs, x.sum(0) / x.sum(), rtol=1e-12)
    assert abs(model.log_prob(x)[1]) < 1e-12


def test_rows_that_were_not_seen_are_filled() -> None:
    x = np.array([0.0, np.nan, 4.0])
    model = inflated(0.25, 4.0)
    np.testing.assert_allclose(model.impute(x), [0, 3, 4], rtol=1e-12)
    assert abs(model.log_prob(x)[1]) < 1e-12
    drawn = np.asarray(model.impute(x, jax.random.key(0)))
    assert drawn[1] == np.round(drawn[1])
    around = jem.Mixture([0.5, 0.5], jem.VonMises([3.0, -3.0], [2.0, 2.0]))
    np.testing.assert_allclose(np.abs(around.impute([np.nan])), np.pi, rtol=1e-12)
    np.testing.assert_allclose(jem.Beta(1.0, 3.0).impute([np.nan]), 0.25)
    np.testing.assert_allclose(jem.Geometric(0.25).impute([np.nan]), 3)
