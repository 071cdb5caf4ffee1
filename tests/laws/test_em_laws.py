"""What makes EM climb: the M-step maximises Q, and Q lies below the log-likelihood and touches it at the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from families import (
    ALL,
    FEW,
    GAUSSIANS,
    NESTED,
    PLAIN,
    STARTED,
    Example,
    coordinates,
    e_step,
    expected_log_prob,
    m_step,
    move,
    perturbed,
)
from jaxem.distributions.base import add

everything = pytest.mark.parametrize("example", ALL, ids=repr)
plain = pytest.mark.parametrize("example", PLAIN, ids=repr)


def expected_statistics(model: Any, x: Any) -> Any:
    return e_step(model, x, jnp.ones(()))[1]


def assert_same(a: Any, b: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    for path, leaf in coordinates(a).items():
        np.testing.assert_allclose(leaf, coordinates(b)[path], rtol=rtol, atol=atol, err_msg=path)


@everything
def test_m_step_zeroes_the_slope_of_q(example: Example, rng: np.random.Generator) -> None:
    """Along directions in which parameters may move, at the maximum and, lest zero come cheap, not before it."""
    start, x = example.mixture(), example.rows(30)
    statistics = expected_statistics(start, x)
    best = m_step(start, statistics)
    direction = {name: rng.normal(size=leaf.shape) for name, leaf in coordinates(best).items()}

    @jax.jit
    def slope(model: Any) -> jax.Array:
        along = lambda t: move(model, {n: t * d for n, d in direction.items()}).expected_log_prob(statistics)
        return jax.grad(along)(jnp.zeros(()))

    assert abs(slope(best)) < 1e-8
    assert abs(slope(perturbed(best, rng))) > 1e-3


@plain
def test_m_step_is_a_maximum_of_q(example: Example, rng: np.random.Generator) -> None:
    start, x = example.mixture(), example.rows(30)
    statistics = expected_statistics(start, x)
    best = m_step(start, statistics)
    for size in (0.01, 0.1, 0.5):
        other = perturbed(best, rng, size)
        assert expected_log_prob(other, statistics) < expected_log_prob(best, statistics)


@pytest.mark.parametrize("example", [e for e in ALL if e not in NESTED], ids=repr)
def test_a_model_is_the_m_step_of_its_own_expected_statistics(example: Example, rng: np.random.Generator) -> None:
    members = example.members(3)
    assert_same(m_step(members, members.expected_statistics()), members)
    # Parameters must come from the statistics, not from the model that reads them.
    assert_same(m_step(perturbed(members, rng), members.expected_statistics()), members)


@pytest.mark.parametrize("example", [e for e in PLAIN if e not in NESTED], ids=repr)
def test_expected_statistics_are_the_mean_of_many_draws(example: Example) -> None:
    members, n = example.members(2), 40_000
    x = members.sample(jax.random.key(3), n)
    for k in range(2):
        fitted = m_step(members, e_step(members, x[k], jnp.full((2, n), 1 / n))[1])
        for path, leaf in coordinates(members).items():
            if leaf.shape[0] == 2:
                np.testing.assert_allclose(coordinates(fitted)[path][k], leaf[k], rtol=0.05, atol=0.05, err_msg=path)


@plain
def test_em_stays_at_the_truth_for_many_rows(example: Example) -> None:
    truth, n = example.mixture(2), 40_000
    x = truth.sample(jax.random.key(5), n)
    moved = m_step(truth, expected_statistics(truth, x))
    for path, leaf in coordinates(truth).items():
        np.testing.assert_allclose(coordinates(moved)[path], leaf, rtol=0.08, atol=0.08, err_msg=path)


@everything
def test_q_touches_the_log_likelihood_and_lies_below_it(example: Example, rng: np.random.Generator) -> None:
    """L(other) - L(model) >= Q(other) - Q(model): L = Q - H, and H is largest at the model (Jensen)."""
    model, x = example.mixture(), example.rows(25)
    statistics = expected_statistics(model, x)

    @jax.jit
    def gap(other: Any) -> jax.Array:
        gained = other.log_prob(x).sum() - model.log_prob(x).sum()
        return gained - (other.expected_log_prob(statistics) - model.expected_log_prob(statistics))

    assert abs(gap(model)) < 1e-10 * abs(model.log_prob(x).sum())
    for size in (1e-3, 0.1, 1.0):
        assert gap(perturbed(model, rng, size)) > 0
    direction = {name: rng.normal(size=leaf.shape) for name, leaf in coordinates(model).items()}
    slope = jax.jit(jax.grad(lambda t: gap(move(model, {n: t * d for n, d in direction.items()}))))(jnp.zeros(()))
    assert abs(slope) < 1e-9 * abs(model.log_prob(x).sum())


@jax.jit
def step(model: Any, x: Any, weight: Any, prior: Any) -> Any:
    log_prob, pullback = model.e_step(x)
    objective = (weight * log_prob).sum() + model.expected_log_prob(prior)
    return objective, model.m_step(add(pullback(weight), prior))


def climbs(model: Any, x: Any, weight: Any, prior: Any, steps: int = 6) -> None:
    """EM, step by step, never lowers log-likelihood + log prior by more than rounding."""
    last = -np.inf
    for _ in range(steps):
        objective, model = step(model, x, weight, prior)
        assert np.isfinite(objective)
        assert objective >= last - 1e-11 * (abs(objective) + len(x))
        last = float(objective)


@partial(jax.jit, static_argnums=3)
def pseudo_rows(model: Any, x: Any, weight: Any, with_prior: bool) -> Any:
    floor = model.floor(x, weight)
    return add(floor, jem.priors.Weak(1.0).statistics(model, x, weight)) if with_prior else floor


@pytest.mark.parametrize("example", STARTED, ids=repr)
@hypothesis.settings(max_examples=6)
@hypothesis.given(seed=st.integers(0, 2**16), repeats=st.booleans(), with_prior=st.booleans())
def test_em_never_lowers_its_objective(example: Example, seed: int, repeats: bool, with_prior: bool) -> None:
    """From any start, on data from another model, tied and duplicated rows among them, weighted, with a prior."""
    rng = np.random.default_rng(seed)
    x = np.asarray(example.rows(24, seed=seed % 8))
    if repeats:
        rounded = np.round(x)
        x = (rounded if example.mixture(2).inside(rounded).all() else x)[rng.integers(0, 12, 24)]
    weight = jnp.asarray(rng.choice([0.5, 1.0, 2.0], 24))
    model = perturbed(example.mixture(2, seed=seed), rng)
    prior = pseudo_rows(model, jnp.asarray(x), weight, with_prior)
    climbs(model, x, weight, prior)


@pytest.mark.parametrize("example", FEW, ids=repr)
def test_fit_reports_the_objective_of_its_own_model(example: Example) -> None:
    x = example.rows(40)
    fit = jem.fit(example.mixture(2, seed=3), x, max_steps=15, tol=0.0)
    np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(x).sum(), rtol=1e-12)
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert fit.steps >= 2
    assert np.isfinite(trace).all()
    assert np.isnan(np.asarray(fit.trace)[int(fit.steps) + 1 :]).all()
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(trace[-1], fit.objective, rtol=1e-12)


@pytest.mark.parametrize("example", STARTED, ids=repr)
def test_a_member_without_rows_keeps_its_parameters(example: Example) -> None:
    """M-steps are total: finite statistics in, valid parameters out."""
    model, x = example.mixture(3), example.rows(20)
    weight = jnp.ones((3, 20)).at[1].set(0)
    members = model.components
    after = m_step(members, e_step(members, x, weight)[1])
    for path, leaf in coordinates(members).items():
        assert np.isfinite(coordinates(after)[path]).all(), path
        if not (isinstance(members, jem.TiedGaussian) and "covariance" in path):
            np.testing.assert_array_equal(coordinates(after)[path][1], leaf[1])
    nothing = m_step(members, e_step(members, x, jnp.zeros((3, 20)))[1])
    assert_same(nothing, members)


@pytest.mark.parametrize("example", GAUSSIANS, ids=repr)
def test_a_weak_prior_climbs_what_it_reports(example: Example) -> None:
    x = np.asarray(example.rows(30))
    fit = jem.fit(example.mixture(3, seed=4), x, prior=jem.priors.Weak(1.0), max_steps=30, tol=0.0)
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(x).sum(), rtol=1e-12)
    assert abs(fit.objective - fit.log_likelihood) > 1e-3
