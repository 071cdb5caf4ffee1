"""Priors by the names of a model's fields, and statistics of parts of the data that meet."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.core.pytree import replace
from jaxem.core.summation import placed
from jaxem.distributions.base import add, over_parts, scale
from jaxem.priors import Beta, Dirichlet, Gamma, Ridge, Structured


@pytest.mark.slow
def test_a_ridge_of_gate_and_experts_is_a_quadratic_in_their_coefficients() -> None:
    gate = jem.SoftmaxGate([[3.0]], [0.5])
    model = jem.MixtureOfExperts(gate, jem.LogisticRegression([[2.0], [-1.0]], [0.0, 1.0]))
    flat = replace(
        model,
        gate=replace(gate, coefficients=jnp.zeros((1, 1))),
        experts=replace(model.experts, coefficients=jnp.zeros((2, 1))),
    )
    x, weight = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.ones(2)

    def worth(**priors: Ridge) -> float:
        statistics = Structured(priors).statistics(model, x, weight)
        return float(model.expected_log_prob(statistics) - flat.expected_log_prob(statistics))

    # Of two classes, 3 and 0, each is 1.5 from their mean.
    np.testing.assert_allclose(worth(gate=Ridge(0.4)), -0.4 / 2 * 2 * 1.5**2)
    np.testing.assert_allclose(worth(experts=Ridge(0.4)), -0.4 / 2 * (2.0**2 + 1.0**2))
    np.testing.assert_allclose(worth(), 0)
    together = worth(gate=Ridge(0.4), experts=Ridge(0.4))
    np.testing.assert_allclose(together, worth(gate=Ridge(0.4)) + worth(experts=Ridge(0.4)))


def test_a_ridge_of_a_state_space_model_is_in_units_of_its_noise() -> None:
    model = jem.LinearGaussianSSM(
        [0.0, 0.0], np.eye(2), [[0.9, 0.3], [0.0, 0.8]], np.diag([0.5, 2.0]), [[1.0, 2.0]], [7.0], [[4.0]]
    )
    statistics = Structured({"transition": Ridge(3.0), "emission": Ridge([1.0, 5.0])}).statistics(model, None, None)
    move = np.array([[0.9, 0.3], [0.0, 0.8]])
    wanted = -3 / 2 * np.trace(np.diag([2.0, 0.5]) @ move @ move.T) - (1 * 1**2 + 5 * 2**2) / 4 / 2
    np.testing.assert_allclose(model.expected_log_prob(statistics), wanted)  # whatever the bias of 7


def test_a_prior_of_each_part() -> None:
    poisson, coin = jem.Poisson([1.0, 2.0]), jem.Bernoulli([0.2, 0.6])
    x, weight = jnp.array([[1.0, 0.0], [4.0, 1.0]]), jnp.ones(2)
    product = jem.Product((poisson, coin))
    first, second = Structured({"parts": [Gamma(3.0, 1.0), None]}).statistics(product, x, weight)
    np.testing.assert_array_equal([first.total, first.exposure], [[2, 2], [1, 1]])
    np.testing.assert_array_equal([second.successes, second.failures], np.zeros((2, 2)))
    either = jem.Either((poisson, jem.Poisson([5.0])))
    first, second = Structured({"parts": [None, Gamma(3.0, 1.0)]}).statistics(either, x[:, 0], weight)
    assert first.total.tolist() == [0, 0]
    assert second.total.tolist() == [2]
    inside = Structured({"weights": Dirichlet(2.0), "components": Structured({"parts": [Gamma(3.0, 1.0), Beta(2, 2)]})})
    statistics = inside.statistics(jem.Mixture([0.5, 0.5], product), x, weight)
    assert statistics.counts.tolist() == [1, 1]
    assert statistics.child[1].successes.tolist() == [1, 1]
    columns = jem.Independent(coin)
    assert Structured({"base": Beta(3.0, 2.0)}).statistics(columns, x, weight).successes.tolist() == [2, 2]
    with pytest.raises(ValueError, match="the parts of a Product are 2; give a list of as many priors"):
        Structured({"parts": [None]}).statistics(product, x, weight)
    with pytest.raises(TypeError, match="priors is a Dirichlet; it must be a dictionary"):
        Structured(Dirichlet(2.0))


@pytest.mark.slow
def test_parts_of_the_data_meet_though_a_member_has_no_rows_in_one_of_them() -> None:
    """The part without rows comes first: what it says of where the member stands must not be believed."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 2)), rng.integers(0, 2, (40, 1))], axis=1)
    model = jem.LogisticRegression(jnp.array([[1.0, -2.0], [0.5, 0.5]]), jnp.array([0.3, -0.4]))
    weight = jnp.asarray(rng.uniform(size=(2, 40))).at[1, :20].set(0.0)

    def together(sums: list, extremes: list) -> tuple[list, list]:
        sums, places = jax.lax.psum((sums, [placed(each, "parts") for each in extremes]), "parts")
        return sums, [jnp.max(each, axis=0) for each in places]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 1), axis_name="parts")
    def met(x: jax.Array, weight: jax.Array) -> jem.LogisticRegression:
        floor = model.floor(jnp.zeros((1, 3)), jnp.ones(1))
        statistics = model.e_step(x)[1](weight)
        return model.m_step(over_parts(together, add(scale(floor, 0), statistics)))

    parts = met(jnp.asarray(x).reshape(2, 20, 3), weight.reshape(2, 2, 20))
    whole = model.m_step(model.e_step(x)[1](weight))
    for leaf, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(leaf, jnp.stack([wanted, wanted]), rtol=1e-10)
