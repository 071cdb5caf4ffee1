"""Coordinates in the open: any step in them is a model, and a model that is none has no log-probability."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.core.pytree import replace

START = jem.Mixture([0.3, 0.7], jem.Gaussian([[0.0, 0.0], [3.0, 0.0]], jnp.stack([jnp.eye(2)] * 2)))
CHAIN = jem.HMM([1.0, 0.0], [[0.8, 0.2], [0.0, 1.0]], jem.Poisson([2.0, 6.0]))


@pytest.mark.parametrize("make", [optax.adam(0.05), optax.sgd(0.3, momentum=0.9)], ids=["adam", "momentum"])
@pytest.mark.slow
def test_any_optimiser_stays_within_the_models_and_ends_where_em_does(make: Any) -> None:
    x = START.sample(jax.random.key(0), 80)
    free, model_at = jem.coordinates(START)
    assert {name: leaf.shape for name, leaf in free.items()} == {
        "weights": (1,),
        "components.mean": (2, 2),
        "components.covariance": (2, 3),
    }

    @jax.jit
    def climbed(free: Any, model_at: Any) -> Any:
        def loss(free: Any) -> jax.Array:
            return -model_at(free).log_prob(x).mean()

        def step(carry: Any, _: None) -> Any:
            free, state = carry
            updates, state = make.update(jax.grad(loss)(free), state, free)
            return (optax.apply_updates(free, updates), state), None

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            (free, _), _ = jax.lax.scan(step, (free, make.init(free)), length=2000)
        return free

    found = model_at(climbed(free, model_at))
    np.testing.assert_allclose(found.weights.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found.log_prob(x).sum(), jem.fit(START, x, tol=1e-10).log_likelihood, atol=1e-3)


def test_the_way_back_is_exact_keeps_what_is_fixed_and_knows_its_names() -> None:
    net = jem.BayesNet({"a": [], "b": ["a"]}, {"a": [0.5, 0.5], "b": [[1.0, 0.0], [0.3, 0.7]]})
    level = jem.LinearGaussianSSM([0.0], *[[[1.0]]] * 4, [0.0], [[1.0]], held=("transition", "emission"))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), START)
    for model in (CHAIN, net, level, batch):
        free, model_at = jem.coordinates(model)
        for old, new in zip(*map(jax.tree.leaves, (model, model_at(free))), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-12, atol=1e-15)
    assert set(jem.coordinates(level)[0]) == {
        "initial_mean",
        "initial_covariance",
        "transition_noise",
        "emission_bias",
        "emission_noise",
    }
    assert list(jem.coordinates(net)[0]) == ["tables.0.probs", "tables.1.probs"]
    free, model_at = jem.coordinates(CHAIN)
    moved = model_at(jax.tree.map(lambda leaf: leaf + 1.0, free))
    np.testing.assert_array_equal(np.asarray(moved.transition) == 0, np.asarray(CHAIN.transition) == 0)
    assert jem.free_parameters(moved) == jem.free_parameters(CHAIN) == 3
    with pytest.raises(ValueError, match=r"'emission\.rat' is no parameter: initial, transition, emission\.rate"):
        model_at({**free, "emission.rat": free["emission.rate"]})
    with pytest.raises(ValueError, match="'initial' is missing"):
        model_at({name: leaf for name, leaf in free.items() if name != "initial"})


def off(model: Any, **changes: Any) -> Any:
    return replace(model, **{name: jnp.asarray(value) for name, value in changes.items()})


def inside(model: Any, **changes: Any) -> Any:
    return replace(model, components=off(model.components, **changes))


WRONG = {
    "weights that sum to more": (off(START, weights=[5.0, 6.7]), [[0.0, 0.0]]),
    "a weight below zero": (off(START, weights=[1.2, -0.2]), [[0.0, 0.0]]),
    "a covariance that is none": (inside(START, covariance=[[[1.0, 2.0], [2.0, 1.0]], np.eye(2)]), [[0.0, 0.0]]),
    "one that is not symmetric": (inside(START, covariance=[[[1.0, 0.5], [0.2, 1.0]], np.eye(2)]), [[0.0, 0.0]]),
    "transitions": (off(CHAIN, transition=[[0.8, 0.3], [0.0, 1.0]]), [[1.0, 2.0]]),
    "an initial distribution": (off(CHAIN, initial=[1.1, 0.0]), [[1.0, 2.0]]),
    "a rate below zero": (off(jem.Poisson(1.0), rate=-0.5), [0.0]),
    "a probability above one": (off(jem.Bernoulli(0.5), probs=1.3), [1.0]),
    "shares of categories": (off(jem.Categorical([0.5, 0.5]), probs=[0.5, 0.9]), [0.0]),
    "a noise below zero": (
        off(jem.LinearGaussianSSM([0.0], *[[[1.0]]] * 4, [0.0], [[1.0]]), transition_noise=[[-0.5]]),
        [[0.0, 1.0, 2.0]],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_has_no_log_probability(name: str) -> None:
    model, x = WRONG[name]
    assert np.isnan(model.log_prob(x)).all()
    assert np.isnan(jax.jit(lambda model: model.log_prob(model.read(x)))(model)).all()


def test_only_the_member_that_is_none_has_none() -> None:
    batch = jem.Mixture([[0.5, 0.5], [0.5, 0.5]], jem.Poisson([[1.0, 2.0], [1.0, 2.0]]))
    told = off(batch, weights=[[0.5, 0.5], [0.5, 0.9]]).log_prob([1.0, 2.0])
    assert np.isnan(told).tolist() == [[False, False], [True, True]]
    net = jem.BayesNet({"a": [], "b": ["a"]}, {"a": [1.0, 0.0], "b": [[0.5, 0.5], [0.3, 0.7]]})
    # What no row can come to may hold anything.
    a, b = net.tables
    assert np.isfinite(replace(net, tables=(a, off(b, probs=[[0.5, 0.5], [0.0, 0.0]]))).log_prob([[0.0, 1.0]])).all()
    assert np.isnan(replace(net, tables=(a, off(b, probs=[[0.5, 0.6], [0.3, 0.7]]))).log_prob([[0.0, 1.0]])).all()


@pytest.mark.slow
def test_rounding_is_not_wrong_and_gradients_are_as_ever() -> None:
    """In every type that floats may have; weights of many components, covariances that are all but singular."""
    rng = np.random.default_rng(0)
    many = jem.Mixture(rng.dirichlet(np.full(500, 0.1)), jem.Poisson(rng.uniform(0, 9, 500)))
    close = np.outer([1.0, 1e-6, 1e5], [1.0, 1e-6, 1e5]) + np.diag([1e-9, 1e-21, 10.0])
    tight = jem.Gaussian(np.zeros(3), close + np.diag(np.diag(close)) * 1e-7)
    known, noise = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    flat = jem.LinearGaussianSSM([0.0, 0.0], known, np.eye(2), noise, [[1.0, 1.0]], [0.0], [[1.0]])
    for model, x in ((many, [1.0, 2.0]), (tight, np.zeros((2, 3))), (flat, [[0.0], [1.0]])):
        assert not np.isnan(model.log_prob(x)).any()
        single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
        assert not np.isnan(single.log_prob(jax.tree.map(lambda v: np.float32(v), x))).any()
    x = jnp.array([0.0, 3.0])
    mixture = jem.Mixture([0.4, 0.6], jem.Poisson([1.0, 4.0]))
    slope = jax.grad(lambda weights: off(mixture, weights=weights).log_prob(x).sum())(mixture.weights)
    np.testing.assert_allclose(slope, np.asarray(mixture.posterior(x)).sum(0) / np.asarray(mixture.weights), rtol=1e-12)
