"""Every solver climbs the same hill: coordinates that lose nothing, exact gradients, the same places to end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from families import ALL, Example
from jaxem.coordinates import coordinates, from_coordinates
from jaxem.pytree import replace
from jaxem.solvers.objective import objective, value_and_gradient

everything = pytest.mark.parametrize("example", ALL, ids=repr)
WALK = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], jem.Poisson([2.0, 6.0]))


def assert_close(a: Any, b: Any, **how: float) -> None:
    for one, other in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(one, other, **how)


@everything
def test_coordinates_lose_nothing(example: Example) -> None:
    model = example.mixture()
    free = jax.jit(coordinates)(model)
    assert sum(leaf.size for leaf in free) == jem.free_parameters(model)
    assert_close(jax.jit(from_coordinates)(free, model), model, rtol=1e-12, atol=1e-12)


def test_what_is_fixed_stays_out() -> None:
    """Zeros of a chain, a component without weight, a certain event: no coordinate moves them."""
    chain = jem.HMM(
        [1.0, 0.0, 0.0], [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.3, 0.0, 0.7]], jem.Bernoulli([1.0, 0.3, 0.0])
    )
    free = coordinates(chain)
    assert [leaf.tolist() for leaf in free[:1]] == [[0.0, 0.0]]
    moved = from_coordinates([leaf + 1.0 for leaf in free], chain)
    np.testing.assert_array_equal(np.asarray(moved.transition) == 0, np.asarray(chain.transition) == 0)
    assert moved.initial.tolist() == [1.0, 0.0, 0.0]
    assert [float(p) for p in moved.emission.probs[jnp.array([0, 2])]] == [1.0, 0.0]
    np.testing.assert_allclose(moved.transition.sum(1), 1, rtol=1e-12)
    assert moved.emission.probs[1] > 0.3


@everything
def test_the_gradient_is_that_of_the_log_likelihood(example: Example) -> None:
    """Fisher's identity against plain autodiff through the coordinates."""
    model, x = example.mixture(), example.rows(30)
    weight = jnp.linspace(0.0, 2.0, 30)
    prior = jax.tree.map(lambda leaf: 0.1 * leaf, model.floor(model.observe(x), weight))

    @jax.jit
    def both(model: Any) -> Any:
        free = coordinates(model)

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
    "annealed": jem.AnnealedEM([1.5, 1.2]),
}
solvers = pytest.mark.parametrize("name", SOLVERS)


def problem(which: str) -> tuple[Any, Any, int]:
    if which == "chain":
        x = WALK.sample(jax.random.key(1), 4, 60)
        return replace(WALK, emission=jem.Poisson([1.0, 8.0])), jem.Sequences(x, np.full(4, 60)), 240
    truth = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [2.5, 1.0]], jnp.stack([jnp.eye(2)] * 2)))
    return truth, truth.sample(jax.random.key(0), 200), 200


@solvers
@pytest.mark.parametrize("which", ["mixture", "chain"])
def test_all_end_where_em_does(name: str, which: str) -> None:
    start, x, rows = problem(which)
    em = jem.fit(start, x, tol=1e-9, max_steps=5000)
    found = jem.fit(start, x, SOLVERS[name], tol=1e-8, max_steps=3000)
    assert found.converged, found.reason
    assert abs(float(found.objective - em.objective)) < 1e-4 * rows
    if name != "annealed":
        np.testing.assert_allclose(start.log_prob(x).sum(), found.trace[0], rtol=1e-9)


@pytest.mark.parametrize("which", ["mixture", "chain"])
def test_extrapolation_never_goes_down(which: str) -> None:
    start, x, _ = problem(which)
    fast = jem.fit(start, x, SOLVERS["SQUAREM"], tol=1e-9, max_steps=500)
    trace = np.asarray(fast.trace)[: int(fast.steps) + 1]
    assert np.diff(trace).min() > -1e-9 * abs(trace[-1])


def test_where_em_crawls_extrapolation_takes_fewer_passes_and_ends_as_high() -> None:
    truth = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [1.8, 0.0]], jnp.stack([jnp.eye(2)] * 2)))
    x = truth.sample(jax.random.key(0), 200)
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


@solvers
def test_many_are_each_what_one_is(name: str) -> None:
    start, x, _ = problem("mixture")
    xs = jnp.stack([x[:150], x[50:]])
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), start)
    many = jem.fit_many(starts, xs, SOLVERS[name], max_steps=300)
    for i in range(2):
        one = jem.fit(start, xs[i], SOLVERS[name], max_steps=300)
        assert many.words[i] == one.words
        np.testing.assert_allclose(many.log_likelihood[i], one.log_likelihood, rtol=1e-6)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="AnnealedEM: temperatures is"):
        jem.AnnealedEM([1.0, 0.0])
