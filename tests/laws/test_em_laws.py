"""What makes EM climb, beside the essentials: the M-step is a maximum, it is total, and it needs statistics only."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from table import EXPECTING, LOCATION, STARTED, law

import jaxem as jem
from families import MIXTURES, Example, coordinates, e_step, expected_log_prob, m_step, perturbed, sample
from jaxem.distributions.base import add

ROWS = 24
"""For all laws that can do with so many, so that their E-steps are one program."""


def expected_statistics(model: Any, x: Any) -> Any:
    return e_step(model, x, jnp.ones(()))[1]


def assert_same(a: Any, b: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    for path, leaf in coordinates(a).items():
        np.testing.assert_allclose(leaf, coordinates(b)[path], rtol=rtol, atol=atol, err_msg=path)


@law(MIXTURES)
def test_m_step_is_a_maximum_of_q(example: Example, rng: np.random.Generator) -> None:
    start, x = example.mixture(), example.rows(ROWS)
    statistics = expected_statistics(start, x)
    best = m_step(start, statistics)
    for size in (0.01, 0.1, 0.5):
        other = perturbed(best, rng, size)
        assert expected_log_prob(other, statistics) < expected_log_prob(best, statistics)


@jax.jit
def read_by(reader: Any, model: Any) -> Any:
    """The M-step of the statistics that a model expects."""
    return reader.m_step(model.expected_statistics())


@law(EXPECTING)
def test_a_model_is_the_m_step_of_its_own_expected_statistics(example: Example, rng: np.random.Generator) -> None:
    members = example.members(3)
    assert_same(read_by(members, members), members)
    # Parameters must come from the statistics, not from the model that reads them.
    assert_same(read_by(perturbed(members, rng), members), members)


@law(EXPECTING)
def test_expected_statistics_are_the_mean_of_many_draws(example: Example) -> None:
    members, n = example.members(2), 40_000
    x = sample(members, jax.random.key(3), n)
    for k in range(2):
        fitted = m_step(members, e_step(members, x[k], np.full((2, n), 1 / n))[1])
        for path, leaf in coordinates(members).items():
            if leaf.shape[0] == 2:
                np.testing.assert_allclose(coordinates(fitted)[path][k], leaf[k], rtol=0.05, atol=0.05, err_msg=path)


@law(MIXTURES)
def test_em_stays_at_the_truth_for_many_rows(example: Example) -> None:
    truth, n = example.mixture(2), 40_000
    x = sample(truth, jax.random.key(5), n)
    moved = m_step(truth, expected_statistics(truth, x))
    for path, leaf in coordinates(truth).items():
        np.testing.assert_allclose(coordinates(moved)[path], leaf, rtol=0.08, atol=0.08, err_msg=path)


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


@law(STARTED)
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


@law(MIXTURES)
def test_fit_reports_the_objective_of_its_own_model(example: Example) -> None:
    x = example.rows(ROWS)
    fit = jem.fit(example.mixture(2, seed=3), x, max_steps=15, tol=0.0)
    assert fit.status_name != "log_likelihood_decreased"
    np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(x).sum(), rtol=1e-12)
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert fit.steps >= 1
    assert np.isfinite(trace).all()
    assert np.isnan(np.asarray(fit.trace)[int(fit.steps) + 1 :]).all()
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(trace[-1], fit.objective, rtol=1e-12)


@law(STARTED)
def test_a_member_without_rows_keeps_its_parameters(example: Example) -> None:
    """M-steps are total: finite statistics in, valid parameters out."""
    model, x = example.mixture(3), example.rows(ROWS)
    weight = np.ones((3, ROWS))
    weight[1] = 0
    members = model.components
    after = m_step(members, e_step(members, x, weight)[1])
    for path, leaf in coordinates(members).items():
        assert np.isfinite(coordinates(after)[path]).all(), path
        if not (isinstance(members, jem.TiedGaussian) and "covariance" in path):
            np.testing.assert_array_equal(coordinates(after)[path][1], leaf[1])
    nothing = m_step(members, e_step(members, x, 0 * weight)[1])
    assert_same(nothing, members)


@law(LOCATION)
def test_a_weak_prior_climbs_what_it_reports(example: Example) -> None:
    x = np.asarray(example.rows(30))
    fit = jem.fit(example.mixture(3, seed=4), x, prior=jem.priors.Weak(1.0), max_steps=30, tol=0.0)
    assert fit.status_name != "log_likelihood_decreased"
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(x).sum(), rtol=1e-12)
    assert abs(fit.objective - fit.log_likelihood) > 1e-3
