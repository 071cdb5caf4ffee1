"""Every solver climbs the same hill: coordinates that lose nothing, exact gradients, the same places to end."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from table import law

import jaxem as jem
from families import MIXTURES, Example
from jaxem.core.coordinates import from_coordinates, to_coordinates
from jaxem.core.pytree import replace
from jaxem.core.semirings import Sampled
from jaxem.solvers.em import expectation
from jaxem.solvers.objective import objective, value_and_gradient

pytestmark = pytest.mark.slow

WALK = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], jem.Poisson([2.0, 6.0]))


def assert_close(a: Any, b: Any, **how: float) -> None:
    for one, other in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(one, other, **how)


def test_what_is_fixed_stays_out() -> None:
    """Zeros of a chain, a component without weight, a certain event: no coordinate moves them."""
    chain = jem.HMM(
        [1.0, 0.0, 0.0], [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.3, 0.0, 0.7]], jem.Bernoulli([1.0, 0.3, 0.0])
    )
    free = to_coordinates(chain)
    assert [leaf.tolist() for leaf in free[:1]] == [[0.0, 0.0]]
    moved = from_coordinates([leaf + 1.0 for leaf in free], chain)
    np.testing.assert_array_equal(np.asarray(moved.transition) == 0, np.asarray(chain.transition) == 0)
    assert moved.initial.tolist() == [1.0, 0.0, 0.0]
    assert [float(p) for p in moved.emission.probs[jnp.array([0, 2])]] == [1.0, 0.0]
    np.testing.assert_allclose(moved.transition.sum(1), 1, rtol=1e-12)
    assert moved.emission.probs[1] > 0.3


@law(MIXTURES)
def test_the_gradient_is_that_of_the_log_likelihood(example: Example) -> None:
    """Fisher's identity against plain autodiff through the coordinates."""
    model, x = example.mixture(), example.rows(30)
    weight = jnp.linspace(0.0, 2.0, 30)
    prior = jax.tree.map(lambda leaf: 0.1 * leaf, model.floor(model.observe(x), weight))

    @jax.jit
    def both(model: Any) -> Any:
        free = to_coordinates(model)

        def plain(free: Any) -> jax.Array:
            at = from_coordinates(free, model)
            return jnp.sum(weight * at.log_prob(x)) + at.expected_log_prob(prior)

        by_rule = jax.value_and_grad(objective)(free, model, x, weight, prior)
        return jax.value_and_grad(plain)(free), by_rule, value_and_gradient(model, x, weight, prior)[1:]

    plain, by_rule, direct = both(model)
    assert_close(by_rule, plain, rtol=1e-8, atol=1e-8)
    assert_close(direct, plain, rtol=1e-8, atol=1e-8)


SOLVERS = {
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Adam": jem.Gradient(optax.adam(0.03)),
    "LBFGS": jem.LBFGS(),
    "Anderson": jem.Anderson(jem.EM()),
    "Newton": jem.Newton(),
    "annealed": jem.AnnealedEM([1.5, 1.2]),
}
solvers = pytest.mark.parametrize("name", SOLVERS)


def problem(which: str) -> tuple[Any, Any, int]:
    if which == "chain":
        x = WALK.sample(jax.random.key(1), 4, 60)
        return replace(WALK, emission=jem.Poisson([1.0, 8.0])), jem.Sequences(x, np.full(4, 60)), 240
    if which == "counts":
        truth = jem.Mixture([0.4, 0.6], jem.Poisson([2.0, 7.0]))
        return truth, truth.sample(jax.random.key(0), 200), 200
    truth = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [2.5, 1.0]], jnp.stack([jnp.eye(2)] * 2)))
    return truth, truth.sample(jax.random.key(0), 200), 200


@solvers
@pytest.mark.parametrize("which", ["counts", "chain"])
def test_all_end_where_em_does(name: str, which: str) -> None:
    start, x, rows = problem(which)
    em = jem.fit(start, x, tol=1e-9, max_steps=5000)
    found = jem.fit(start, x, SOLVERS[name], tol=1e-8, max_steps=3000)
    assert found.converged, found.status_message
    assert abs(float(found.objective - em.objective)) < 1e-4 * rows
    if name != "annealed":
        np.testing.assert_allclose(start.log_prob(x).sum(), found.trace[0], rtol=1e-9)


def trace_of(fit: jem.Fit) -> np.ndarray:
    return np.asarray(fit.trace)[: int(fit.steps) + 1]


MONOTONE = {
    "EM": jem.EM(),
    "HardEM": jem.HardEM(),
    "SQUAREM": SOLVERS["SQUAREM"],
    "Anderson": SOLVERS["Anderson"],
    "Newton": SOLVERS["Newton"],
}


@pytest.mark.parametrize("name", MONOTONE)
@hypothesis.settings(max_examples=12)
@hypothesis.given(seed=st.integers(0, 2**31 - 1), apart=st.floats(0.0, 6.0))
def test_who_promises_to_climb_never_goes_down(name: str, seed: int, apart: float) -> None:
    """From poor starts too: on any data, from components at random rows."""
    assert MONOTONE[name].monotone
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[0], (60, 2)) + jnp.where(jnp.arange(60) < 25, apart, 0.0)[:, None]
    at = x[jax.random.choice(keys[1], 60, (2,), replace=False)]
    start = jem.Mixture([0.3, 0.7], jem.Gaussian(at, jnp.stack([jnp.eye(2)] * 2)))
    trace = trace_of(jem.fit(start, x, MONOTONE[name], tol=1e-9, max_steps=40))
    # Two components on one place lose digits with the square of how close they are to their floor.
    assert np.diff(trace).min(initial=0.0) > -1e-7 * (abs(trace[-1]) + 60)


@pytest.mark.parametrize("name", [name for name in MONOTONE if name != "EM"])
def test_chains_climb_as_well(name: str) -> None:
    start, x, _ = problem("chain")
    trace = trace_of(jem.fit(start, x, MONOTONE[name], tol=1e-9, max_steps=500))
    assert np.diff(trace).min() > -1e-9 * abs(trace[-1])


def test_the_published_acceleration_of_the_times_data() -> None:
    """Varadhan and Roland (2008): death notices in The Times; EM takes 2,909 maps to 1e-8, R's SQUAREM 72."""
    deaths, x = jnp.array([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1]), jnp.arange(10.0)
    start = jem.Mixture([0.4462944, 1 - 0.4462944], jem.Poisson([5.343398, 0.8713513]))
    for name, most in (("SQUAREM", 2909 // 15), ("Anderson", 2909 // 40), ("Newton", 200), ("LBFGS", 100)):
        fit = jem.fit(start, x, SOLVERS[name], weight=deaths, tol=1e-12, max_steps=5000)
        assert fit.converged
        assert fit.passes <= most, name
        np.testing.assert_allclose(fit.log_likelihood, -1989.9458598829642, rtol=0, atol=1e-9)
        np.testing.assert_allclose(fit.model.components.rate[::-1], [1.25609510122434, 2.66340335663247], atol=1e-5)
    np.testing.assert_allclose(jem.em_rate(fit.model, x, weight=deaths), 0.995666, atol=1e-6)


def test_all_report_the_same_log_likelihood_to_the_last_bit() -> None:
    start, x, _ = problem("mixture")
    data, weight = start.observe(x), jnp.ones(len(x))
    floor = start.floor(data, weight)
    solvers = [jem.EM(), *SOLVERS.values()]

    @jax.jit
    def reported(model: Any) -> list[jax.Array]:
        # An annealed one speaks of something else while it anneals.
        states = [
            s.init(model, data, weight, floor) if s.warmup == 0 else (jnp.int32(9), jnp.zeros(())) for s in solvers
        ]
        return [s.step(model, state, data, weight, floor)[2] for s, state in zip(solvers, states, strict=True)]

    assert len({float(value) for value in reported(start)}) == 1


def test_batches_come_close_to_where_em_ends() -> None:
    truth = problem("mixture")[0]
    x = truth.sample(jax.random.key(5), 2000)
    em = jem.fit(truth, x)
    for solver in (jem.OnlineEM(100), jem.Gradient(optax.adam(0.01), batch_size=100, key=jax.random.key(1))):
        fit = jem.fit(replace(truth, weights=jnp.array([0.7, 0.3])), x, solver, max_steps=40)
        assert fit.passes == 2 * (fit.steps + 1)
        assert abs(float(fit.objective - em.objective)) < 2e-3 * 2000
        # What it says of the model is exact, not an estimate from a batch.
        np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(x).sum(), rtol=1e-12)


@pytest.mark.parametrize("which", ["mixture", "chain"])
def test_a_draw_is_the_posterior_on_the_average(which: str) -> None:
    """Statistics of stochastic EM: those of EM, in the mean over keys; and the log-likelihood is exact."""
    start, x, rows = problem(which)
    data = start.observe(x)
    weight = jnp.ones(len(x))

    @jax.jit
    @jax.vmap
    def drawn(key: jax.Array) -> Any:
        return expectation(start, data, weight, Sampled(key))

    log_likelihood, statistics = drawn(jax.random.split(jax.random.key(3), 400))
    exact, expected = expectation(start, data, weight)
    np.testing.assert_allclose(log_likelihood, exact, rtol=1e-12)
    for one, all_ in zip(jax.tree.leaves(statistics.counts), jax.tree.leaves(expected.counts), strict=True):
        assert np.all(one == np.round(one))
        np.testing.assert_allclose(one.mean(0), all_, atol=5 * np.sqrt(rows / 4 / 400))


def test_stochastic_em_ends_near_the_top_with_the_best_that_it_came_by() -> None:
    for which in ("mixture", "chain"):
        start, x, rows = problem(which)
        em = jem.fit(start, x)
        fit = jem.fit(start, x, jem.StochasticEM(jax.random.key(1)), max_steps=100, tol=0.0)
        assert abs(float(fit.objective - em.objective)) < 0.02 * rows
        np.testing.assert_allclose(fit.objective, np.nanmax(fit.trace), rtol=1e-12)


def test_batches_keep_the_weights_of_their_rows() -> None:
    x, weight = jnp.repeat(jnp.array([0.0, 10.0]), 50), jnp.repeat(jnp.array([9.0, 1.0]), 50)
    for solver in (jem.OnlineEM(2, 0.9), jem.Gradient(optax.sgd(0.02), batch_size=2)):
        fit = jem.fit(jem.Poisson(5.5), x, solver, weight=weight, max_steps=100)
        np.testing.assert_allclose(fit.model.rate, 1.0, atol=0.15)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_a_line_search_that_finds_nothing_is_not_the_end(scale: float) -> None:
    """In other units the first steps of a gradient are far too long, or far too short."""
    start, x, rows = problem("mixture")
    wide = jnp.stack([scale**2 * jnp.eye(2)] * 2)
    moved = jem.Mixture(start.weights, jem.Gaussian(scale * start.components.mean, wide))
    em, found = (jem.fit(moved, scale * x, s, tol=1e-7, max_steps=5000) for s in (jem.EM(), jem.LBFGS()))
    assert found.converged
    assert found.objective > em.objective - 1e-5 * rows


def test_a_schedule_that_stands_still_has_not_converged() -> None:
    start, x, _ = problem("mixture")
    still = jem.fit(start, x, jem.Gradient(optax.sgd(optax.linear_schedule(0.0, 0.05, 2000, 100))), max_steps=90)
    assert still.status_name == "max_steps_reached"


def test_a_batch_of_everything_is_em() -> None:
    x = jnp.array([1.0, 3.0, 8.0, 9.0])
    start = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 9.0]))
    one = jem.fit(start, x, jem.OnlineEM(4), max_steps=1, tol=0.0)
    em = jem.fit(start, x, max_steps=1, tol=0.0)
    np.testing.assert_allclose(one.model.components.rate, em.model.components.rate)


@pytest.mark.parametrize("rate", [1e6, 50.0])
def test_a_rate_that_is_too_large_ends_as_diverged_with_the_best_so_far(rate: float) -> None:
    start, x, _ = problem("mixture")
    wild = jem.Gradient(optax.sgd(rate))
    fit = jem.fit(start, x, wild, max_steps=200)
    assert fit.status_name == "diverged"
    assert not fit.converged
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.model))
    assert fit.objective >= fit.trace[0]
    np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(x).sum(), rtol=1e-12)
    many = jem.fit_many(jax.tree.map(lambda leaf: leaf[None], start), x[None], wild, max_steps=200)
    assert many.status_name[0] == "diverged"
    np.testing.assert_allclose(many.log_likelihood[0], fit.log_likelihood, rtol=1e-9)


@pytest.mark.parametrize("name", ["HardEM", "annealed", "SQUAREM", "Anderson"])
def test_a_component_that_empties_is_no_nan(name: str) -> None:
    x = problem("mixture")[1]
    far = jem.Mixture([0.5, 0.5], jem.Gaussian([[0.0, 0.0], [500.0, 500.0]], jnp.stack([jnp.eye(2)] * 2)))
    fit = jem.fit(far, x, {**SOLVERS, **MONOTONE}[name])
    assert fit.status_name == "component_vanished"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.model))


def test_what_does_not_fit_says_what_does() -> None:
    wide = jem.Mixture([0.5, 0.5], jem.Gaussian(jnp.zeros((2, 20)), jnp.stack([jnp.eye(20)] * 2)))
    with pytest.raises(ValueError, match=r"Newton: the model has 461 free numbers, more than 200; use LBFGS\(\)"):
        jem.fit(wide, jnp.zeros((30, 20)), jem.Newton())
    with pytest.raises(ValueError, match=r"OnlineEM: batch_size is None; .* use EM\(\)"):
        jem.OnlineEM()
    with pytest.raises(ValueError, match=r"OnlineEM: decay is 0\.3"):
        jem.OnlineEM(10, 0.3)
    with pytest.raises(ValueError, match="Gradient: batch_size is 0"):
        jem.Gradient(optax.sgd(0.1), batch_size=0)
    with pytest.raises(ValueError, match="Anderson: memory is 0"):
        jem.Anderson(jem.EM(), 0)
    for solver in (jem.AnnealedEM([2.0]), jem.LBFGS(), jem.SQUAREM(jem.EM()), jem.StochasticEM(jax.random.key(0))):
        with pytest.raises(ValueError, match="SQUAREM: it accelerates a solver that never falls"):
            jem.SQUAREM(solver)


def test_where_em_crawls_extrapolation_takes_fewer_passes_and_ends_as_high() -> None:
    truth = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [1.2, 0.0]], jnp.stack([jnp.eye(2)] * 2)))
    x = truth.sample(jax.random.key(0), 1000)
    em, fast = (jem.fit(truth, x, solver, tol=1e-8, max_steps=5000) for solver in (jem.EM(), SOLVERS["SQUAREM"]))
    assert em.passes == em.steps + 1
    assert float(fast.passes) < 0.5 * float(em.passes)
    assert float(em.objective - fast.objective) < 200 * 1e-7


def test_hard_em_climbs_the_best_path() -> None:
    start, x, _ = problem("chain")
    fit = jem.fit(start, x, jem.HardEM(), tol=1e-9)
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert fit.converged
    assert np.diff(trace).min() > -1e-9 * abs(trace[-1])
    # What it reports is the likelihood together with the best states.
    labelled = jem.fit(fit.model, x, max_steps=0, labels=fit.model.decode(x))
    np.testing.assert_allclose(fit.log_likelihood, labelled.log_likelihood, rtol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_many_are_each_what_one_is(name: str) -> None:
    start, x, _ = problem("counts")
    xs = jnp.stack([x[:150], x[50:]])
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), start)
    many = jem.fit_many(starts, xs, SOLVERS[name], max_steps=300)
    for i in range(2):
        one = jem.fit(start, xs[i], SOLVERS[name], max_steps=300)
        assert many.status_name[i] == one.status_name
        np.testing.assert_allclose(many.log_likelihood[i], one.log_likelihood, rtol=1e-6)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="AnnealedEM: temperatures is"):
        jem.AnnealedEM([1.0, 0.0])
