"""A fit is a function of its data, and has the derivative of that function: not of the steps that were taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table import law

import jaxem as jem
from families import MIXTURES, Example
from jaxem.distributions.base import add
from jaxem.fitting import implicit
from jaxem.solvers import em
from jaxem.solvers.em import em_step

pytestmark = pytest.mark.slow

TRUTH = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [2.5, 0.0]], jnp.stack([jnp.eye(2)] * 2)))
SIMPLE = jem.Mixture([0.4, 0.6], jem.DiagonalGaussian([[0.0], [2.5]], jnp.ones((2, 1))))
CHAIN = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], jem.DiagonalGaussian([[0.0], [3.0]], jnp.ones((2, 1))))
EXACT = {"solver": jem.Newton(), "tol": 0.0, "max_steps": 30}
CLOSE = {"solver": jem.SQUAREM(jem.EM()), "tol": 1e-15, "max_steps": 2000}


def mixture(x: Any, weight: Any, strength: Any, **how: Any) -> jem.Fit:
    prior = jem.priors.Structured({"weights": jem.priors.Dirichlet(1 + strength)})
    return jem.fit(TRUTH if x.shape[1] == 2 else SIMPLE, x, weight=weight, prior=prior, **how)


def chain(x: Any, weight: Any, strength: Any, **how: Any) -> jem.Fit:
    ones = jem.priors.Dirichlet(1 + strength)
    sequences = jem.Sequences(x, np.full(len(x), x.shape[1]))
    return jem.fit(
        CHAIN, sequences, weight=weight, prior=jem.priors.Structured({"initial": ones, "transition": ones}), **how
    )


def number(fit: jem.Fit) -> Any:
    """Something of every kind of parameter."""
    return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(fit.model)) + 0.01 * fit.log_likelihood


def data(which: str) -> tuple[Any, Any, Any]:
    if which != "chain":
        truth = TRUTH if which == "mixture" else SIMPLE
        return truth.sample(jax.random.key(0), 40), jnp.linspace(0.5, 1.5, 40), jnp.asarray(1.0)
    return CHAIN.sample(jax.random.key(1), 4, 25), jnp.linspace(0.5, 1.5, 4), jnp.asarray(1.0)


@pytest.mark.parametrize(("which", "fitted"), [("mixture", mixture), ("chain", chain)])
def test_it_is_what_refits_differ_by(which: str, fitted: Any) -> None:
    given = data(which)
    value = jax.jit(lambda *given: number(fitted(*given, **EXACT)))
    found = jax.jit(jax.grad(lambda *given: number(fitted(*given, **CLOSE)), argnums=(0, 1, 2)))(*given)

    def moved(argument: int, place: Any, by: float) -> float:
        changed = list(given)
        changed[argument] = given[argument].at[place].add(by)
        return float(value(*changed))

    last = (0,) * (given[0].ndim - 2)
    for argument, place in [(0, (0, 0, *last)), (0, (3, 1, *last)), (1, (0,)), (1, (2,)), (2, ())]:
        refits = (moved(argument, place, 3e-4) - moved(argument, place, -3e-4)) / 6e-4
        # Where a refit stops it knows its parameters to about 1e-9.
        np.testing.assert_allclose(found[argument][place], refits, rtol=1e-5, atol=3e-6)


def test_forward_reverse_and_vmap_agree() -> None:
    x, weight, strength = data("simple")
    of = lambda weight: number(mixture(x, weight, strength, **CLOSE))
    reverse = jax.grad(of)(weight)
    np.testing.assert_allclose(jax.jacfwd(of)(weight), reverse, rtol=1e-10, atol=1e-13)
    both = jax.vmap(jax.grad(of))(jnp.stack([weight[::-1], weight]))
    np.testing.assert_allclose(both[1], reverse, rtol=1e-8, atol=1e-12)


def test_it_is_that_of_the_steps_unrolled() -> None:
    x, weight, _ = data("simple")

    def unrolled(weight: Any) -> Any:
        step = lambda model, _: (em_step(model, x, weight, SIMPLE.floor(x, weight))[0], None)
        return jnp.sum(jax.lax.scan(step, SIMPLE, length=6000)[0].components.mean)

    direct = jax.grad(lambda w: jnp.sum(jem.fit(SIMPLE, x, weight=w, **CLOSE).model.components.mean))(weight)
    np.testing.assert_allclose(direct, jax.grad(unrolled)(weight), rtol=1e-5, atol=1e-8)


def test_many_parameters_are_solved_for_without_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    given = data("simple")
    of = lambda *given: number(mixture(*given, **CLOSE))
    formed = jax.jit(jax.grad(of, argnums=(0, 1, 2)))(*given)
    jax.clear_caches()
    monkeypatch.setattr(implicit, "DENSE", 0)
    applied = jax.jit(jax.grad(lambda *given: of(*given), argnums=(0, 1, 2)))(*given)
    jax.clear_caches()
    for a, b in zip(formed, applied, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


def test_memory_does_not_grow_with_the_steps() -> None:
    x, weight, strength = data("simple")

    def memory(steps: int) -> int:
        of = jax.grad(lambda weight: number(mixture(x, weight, strength, max_steps=steps)))
        return jax.jit(of).lower(weight).compile().memory_analysis().temp_size_in_bytes

    # But for the trace: a number for each, in a few copies.
    assert memory(4000) - memory(1000) < 8 * 8 * 3000


def test_where_there_is_no_derivative_the_status_says_so() -> None:
    def derivative(start: Any, x: Any) -> tuple[Any, jem.Fit]:
        def of(weight: Any) -> Any:
            fit = jem.fit(start, x, weight=weight, tol=1e-10)
            return fit.model.components.mean[0, 0], fit

        return jax.grad(of, has_aux=True)(jnp.ones(len(x)))

    x = data("mixture")[0]
    merged = jem.Mixture([0.5, 0.5], jem.SphericalGaussian([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0]))
    gradient, fit = derivative(merged, x)
    assert fit.status_name == "components_coincide"
    assert not fit.converged
    assert np.isnan(gradient).all()
    ties = jnp.array([[0.0], [0.1], [0.3], [5.0], [5.0], [5.0]])
    gradient, fit = derivative(jem.Mixture([0.5, 0.5], jem.SphericalGaussian([[0.0], [5.0]], [1.0, 1.0])), ties)
    assert fit.status_name == "covariance_collapsed"
    assert np.isnan(gradient).all()


def test_a_row_of_weight_zero_has_the_derivative_of_its_own() -> None:
    x = jnp.array([1.0, 3.0, 100.0])
    of = lambda weight: jem.fit(jem.Poisson(1.0), x, weight=weight, tol=1e-12)
    slope = jax.grad(lambda weight: of(weight).model.rate)(jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(slope, [-0.5, 0.5, 49.0], rtol=1e-8)
    log_likelihood = jax.grad(lambda weight: of(weight).log_likelihood)(jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(log_likelihood, jem.Poisson(2.0).log_prob(x), rtol=1e-8)


def test_restarts_that_lose_have_no_say() -> None:
    """Not even one at a saddle, where there is no derivative."""
    x = jem.Mixture([0.5, 0.5], jem.Poisson([2.0, 12.0])).sample(jax.random.key(0), 120)
    starts = jem.Mixture([[0.5, 0.5], [0.5, 0.5]], jem.Poisson([[2.0, 12.0], [5.0, 5.0]]))
    alone = jax.tree.map(lambda leaf: leaf[0], starts)
    both, one = (
        jax.grad(lambda w, start=start: jem.fit(start, x, weight=w, tol=1e-9).model.components.rate[1])(jnp.ones(120))
        for start in (starts, alone)
    )
    np.testing.assert_allclose(both, one, rtol=1e-9)


@contextlib.contextmanager
def chunks_of(rows: int) -> Iterator[None]:
    """A pass in chunks of so many rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, "CHUNK", rows)
        jax.clear_caches()
        yield
    jax.clear_caches()


def test_the_first_row_of_the_first_chunk_has_a_derivative() -> None:
    """A sum of statistics begins with nothing, and with nothing of that row."""
    x, weight = data("simple")[0], jnp.linspace(0.5, 1.5, 40)

    @jax.jit
    @jax.grad
    def slope(weight: Any) -> Any:
        model = jem.fit(jem.DiagonalGaussian([0.0], [1.0]), x, weight=weight).model
        return model.mean[0] + model.variance[0]

    with chunks_of(16):
        found = slope(weight)
    mean = jnp.sum(weight * x[:, 0]) / jnp.sum(weight)
    apart = x[:, 0] - mean
    exact = (apart + apart**2 - jnp.sum(weight * apart**2) / jnp.sum(weight)) / jnp.sum(weight)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_rows_in_chunks_have_the_derivative_of_rows_at_once() -> None:
    given = data("simple")
    top = jem.fit(SIMPLE, given[0], weight=given[1], **CLOSE).model

    def of(x: Any, weight: Any, strength: Any) -> Any:
        prior = jem.priors.Structured({"weights": jem.priors.Dirichlet(strength)})
        return number(jem.fit(top, x, weight=weight, prior=prior, max_steps=0))

    def slopes() -> Any:
        reverse = jax.grad(of, argnums=(0, 1, 2))
        forward = jax.jvp(of, given, jax.tree.map(jnp.ones_like, given))[1]
        return jax.jit(lambda *given: reverse(*given))(*given), forward

    at_once = slopes()
    with chunks_of(16):
        in_chunks = slopes()
    for a, b in zip(jax.tree.leaves(in_chunks), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    reverse, forward = in_chunks
    np.testing.assert_allclose(sum(jnp.sum(leaf) for leaf in reverse), forward, rtol=1e-7)


@law(MIXTURES)
def test_a_step_in_chunks_has_the_derivative_of_one_at_once(example: Example) -> None:
    """Of every family: statistics about references of their own meet, with their derivatives."""
    model, x, weight = example.mixture(2), example.rows(40), jnp.linspace(0.5, 1.5, 40)
    floor = model.floor(model.observe(x), weight)

    def of(x: Any, weight: Any, chunked: bool) -> Any:
        log_likelihood, statistics = em.expectation(model, x if chunked else model.observe(x), weight)
        stepped = model.m_step(add(statistics, floor))
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(stepped)) + 0.01 * log_likelihood

    with chunks_of(16):
        slopes = jax.jit(lambda *given: [jax.grad(of, (0, 1))(*given, chunked) for chunked in (True, False)])
        for a, b in zip(*map(jax.tree.leaves, slopes(x, weight)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
