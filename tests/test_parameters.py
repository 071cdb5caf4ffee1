"""What of a model can move: free numbers are counted as they are, starts are made exact, what is held stays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.core.bijectors import POSITIVE
from jaxem.core.constraints import (
    Constraint,
    leaves,
    normalized,
    parameter,
    simplex,
    unit_interval,
)
from jaxem.core.pytree import module, replace, static
from jaxem.solvers.objective import flat

pytestmark = pytest.mark.slow

LEFT_RIGHT = jem.HMM([1.0, 0.0, 0.0], [[0.5, 0.5, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]], jem.Poisson([1.0, 2.0, 3.0]))
"""A way forward, and no way back."""
ISLAND = jem.HMM([0.5, 0.5, 0.0], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.3, 0.4]], jem.Poisson([1.0, 2.0, 3.0]))
"""The last state is never reached."""


def batch_of(parts: Any, *shape: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*shape, *leaf.shape)), parts)


def stacked(*models: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def chain_net(last: Any) -> jem.BayesNet:
    """A, its copy B, and C that depends on both: of the rows of C two can never occur."""
    graph = {"a": [], "b": ["a"], "c": ["a", "b"]}
    return jem.BayesNet(graph, {"a": [0.5, 0.5], "b": np.eye(2), "c": last})


INNER = jem.Mixture([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], jem.Poisson([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
COUNTED = {
    "left-right chain": (LEFT_RIGHT, 5),
    "a state never reached": (ISLAND, 1 + 2 + 2),
    "a component never used": (jem.Mixture([0.5, 0.5, 0.0], jem.Poisson([1.0, 2.0, 3.0])), 3),
    "an inner mixture": (jem.Mixture([0.5, 0.5], INNER), 1 + (1 + 2) + (0 + 1)),
    "an inner mixture that is not used": (jem.Mixture([0.0, 1.0], INNER), 1),
    "a chain of mixtures": (jem.HMM([1.0, 0.0], [[0.5, 0.5], [0.0, 1.0]], INNER), 1 + (1 + 2) + (0 + 1)),
    "a mixture of chains": (jem.Mixture([0.4, 0.6], stacked(LEFT_RIGHT, ISLAND)), 1 + 5 + 5),
    "a mixture of one chain": (jem.Mixture([1.0, 0.0], stacked(LEFT_RIGHT, ISLAND)), 5),
    "shared by those in use": (jem.Mixture([1.0, 0.0], jem.TiedGaussian([[0.0, 0.0], [1.0, 1.0]], jnp.eye(2))), 2 + 3),
    "of different kinds": (
        jem.Mixture([0.5, 0.5, 0.0], jem.Either((jem.PointMass([0.0]), jem.Poisson([1.0, 2.0])))),
        1 + 1,
    ),
    "columns": (
        jem.Mixture([0.0, 1.0], jem.Product((jem.Independent(jem.Bernoulli([[0.5, 0.5], [1.0, 0.5]])),
                                             jem.Categorical([[0.2, 0.8, 0.0], [0.5, 0.0, 0.5]])))),
        1 + 1,
    ),
    "two factors, but for their rotation": (
        jem.FactorAnalysis(np.zeros(6), np.array([[1, 0.5], [0.2, 1], [1, 1], [0, 1], [2, 0.3], [1, -1]]), np.ones(6)),
        6 + 11 + 6,
    ),
    "a copy": (chain_net(np.full((2, 2, 2), 0.5)), 1 + 0 + 2),
    "certain": (chain_net([[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.3, 0.7]]]), 1 + 0 + 1),
    "a state without noise": (
        jem.LinearGaussianSSM(
            [0.0, 0.0], np.diag([1.0, 0.0]), np.eye(2), np.diag([0.0, 2.0]), [[1.0, 1.0]], [0.0], [[1.0]],
            held=("transition", "emission", "emission_bias", "initial_mean"),
        ),
        1 + 1 + 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_zeros_for_good_are_not_free(name: str) -> None:
    """As many free numbers as the scores of rows have dimensions; and what is zero stays where it is."""
    model, count = COUNTED[name]
    assert jem.free_parameters(model) == count
    rows = model.read(data_for(model))

    @jax.jit
    def told(model: Any) -> Any:
        free, model_at = flat(model)
        scores = jax.jacfwd(lambda free: model_at(free).log_prob(rows))(free)
        return model_at(free), scores, model_at(free + 0.3)

    same, scores, moved = told(model)
    assert np.linalg.matrix_rank(scores, tol=1e-8) == count
    for (_, limit, old), new, far in zip(leaves(model), *map(jax.tree.leaves, (same, moved)), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-9, atol=1e-12)
        if limit in (simplex, unit_interval):
            np.testing.assert_array_equal(np.asarray(far)[np.asarray(old) == 0], 0)


def data_for(model: Any) -> Any:
    """Rows that the model can produce, enough to tell all of its parameters."""
    if isinstance(model, jem.Mixture) and isinstance(model.components, jem.HMM):
        chains = jax.vmap(lambda chain: chain.sample(jax.random.key(0), 30, 6))(model.components)
        return jem.Sequences(jnp.concatenate(list(chains)), np.full(60, 6))
    if isinstance(model, (jem.HMM, jem.LinearGaussianSSM)):
        return jem.Sequences(model.sample(jax.random.key(0), 40, 6), np.full(40, 6))
    return model.sample(jax.random.key(0), 60)


def test_a_batch_is_counted_one_by_one() -> None:
    """Mixtures of one, two and three components in one shape, as `fit_many` pads them; and inside jit."""
    weights = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
    models = jem.Mixture(weights, jem.Gaussian(np.zeros((3, 3, 1)), np.ones((3, 3, 1, 1))))
    assert jem.free_parameters(models).tolist() == [2, 5, 8]
    assert jax.jit(jem.free_parameters)(models).tolist() == [2, 5, 8]
    assert jem.free_parameters(batch_of(models, 2)).tolist() == [[2, 5, 8]] * 2
    assert jem.free_parameters(stacked(LEFT_RIGHT, ISLAND)).tolist() == [5, 5]
    started = jem.Mixture.start(jax.random.key(0), jem.Gaussian, np.arange(9.0)[:, None], 3, active=2)
    assert jem.free_parameters(started) == 5
    assert isinstance(jem.free_parameters(started), int)


def test_a_constraint_of_ones_own() -> None:
    """With a bijector it is as good as any; without one it is counted, and says what it lacks."""

    def check(values: np.ndarray, rounding: float) -> str | None:
        return None if (values > 0).all() else "is not above zero"

    bare, whole = (Constraint("above zero", 0, lambda: 1, check, bijector) for bijector in (None, POSITIVE))

    @module
    class Bare(jem.Poisson):
        rate: Any = parameter(bare)

    @module
    class Whole(jem.Poisson):
        rate: Any = parameter(whole)

    x = jnp.array([1.0, 3.0])
    assert jem.free_parameters(Bare([1.0, 2.0])).tolist() == [1, 1]
    assert jem.free_parameters(Whole(1.0)) == 1
    np.testing.assert_allclose(jem.fit(Whole(1.0), x, jem.SQUAREM(jem.EM())).model.rate, 2.0)
    with pytest.raises(ValueError, match="rate is 'above zero', a Constraint without a bijector"):
        jem.fit(Bare(1.0), x, jem.SQUAREM(jem.EM()))


@module
class Steady(jem.Mixture):
    """A mixture of which some fields stay."""

    held: tuple[str, ...] = static(default=())

    def with_counts(self, counts: Any, child: Any) -> Any:
        new = super().with_counts(counts, child)
        return replace(new, **{name: getattr(self, name) for name in self.held})


SOLVERS = {
    "EM": jem.EM(),
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Anderson": jem.Anderson(jem.EM()),
    "Adam": jem.Gradient(optax.adam(0.05)),
    "LBFGS": jem.LBFGS(),
    "Newton": jem.Newton(),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("held", [("components",), ("weights",)])
def test_no_solver_moves_what_is_held(held: tuple[str, ...], name: str) -> None:
    """A field that is itself a model among them; and the rest ends where EM says."""
    start = Steady([0.5, 0.5], jem.Poisson([2.0, 8.0]), held)
    x = jem.Mixture([0.25, 0.75], jem.Poisson([3.0, 9.0])).sample(jax.random.key(0), 60)
    fit = jem.fit(start, x, SOLVERS[name], tol=1e-9, max_steps=3000)
    assert fit.converged
    for field in held:
        for old, new in zip(*(jax.tree.leaves(getattr(m, field)) for m in (start, fit.model)), strict=True):
            np.testing.assert_array_equal(new, old)
    assert jem.free_parameters(start) == 3 - {"components": 2, "weights": 1}[held[0]]
    em = jem.fit(start, x, tol=1e-12, max_steps=3000)
    np.testing.assert_allclose(fit.log_likelihood, em.log_likelihood, atol=1e-5)


def test_seven_digits_of_a_table_are_enough() -> None:
    third, off = np.full(3, 0.3333333), [[0.3333333, 0.6666667], [0.1234567, 0.8765434]]
    for values in (jem.Mixture(third, jem.Poisson([1.0, 2.0, 3.0])).weights, jem.Categorical(off).probs):
        np.testing.assert_allclose(values.sum(-1), 1.0, rtol=0, atol=1e-16)
    chain = jem.HMM([0.3333333, 0.6666666], off, jem.Poisson([1.0, 2.0]))
    np.testing.assert_allclose(chain.initial.sum(), 1.0, rtol=0, atol=2e-16)
    np.testing.assert_allclose(chain.transition.sum(-1), 1.0, rtol=0, atol=2e-16)
    net = jem.BayesNet({"a": [], "b": ["a"]}, {"a": [0.3333333, 0.6666666], "b": off})
    np.testing.assert_allclose(net.table("b").sum(-1), 1.0, rtol=0, atol=2e-16)
    single = jem.Categorical(third.astype(np.float32)).probs
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single.sum(), 1.0, atol=1.2e-7)
    covariance = jem.Gaussian([0.0, 0.0], [[1.0, 0.3333333], [0.3333334, 1.0]]).covariance
    np.testing.assert_array_equal(covariance, covariance.T)
    # What rounding of the type itself leaves keeps its bits, and what is further off is a mistake.
    tenths = np.full(10, 0.1)
    np.testing.assert_array_equal(jem.Categorical(tenths).probs, tenths)
    with pytest.raises(ValueError, match=r"Mixture: weights does not sum to one \(off by 2e-05\)"):
        jem.Mixture([0.5, 0.50002], jem.Poisson([1.0, 2.0]))
    with pytest.raises(ValueError, match="the table of 'a' is"):
        jem.BayesNet({"a": []}, {"a": [0.5, 0.50002]})
    with pytest.raises(ValueError, match="Gaussian: covariance is not symmetric"):
        jem.Gaussian([0.0, 0.0], [[1.0, 0.3], [0.3001, 1.0]])


def test_normalized_is_differentiable_and_keeps_zeros() -> None:
    model = replace(LEFT_RIGHT, transition=LEFT_RIGHT.transition * 1.0000003)
    exact = normalized(model)
    np.testing.assert_allclose(exact.transition.sum(-1), 1.0, rtol=0, atol=2e-16)
    np.testing.assert_array_equal(exact.transition == 0, LEFT_RIGHT.transition == 0)
    slope = jax.grad(lambda leaf: normalized(replace(model, transition=leaf)).transition[0, 0])(model.transition)
    np.testing.assert_allclose(slope[0], [0.5, -0.5, -0.5], rtol=1e-5)
    assert np.isfinite(slope).all()


def in_single(model: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)


@pytest.mark.parametrize("solver", [jem.EM(), jem.SQUAREM(jem.EM())], ids=["EM", "SQUAREM"])
def test_a_fit_in_single_precision_is_taken_up_in_double(solver: Any) -> None:
    """Weights that sum to 1 + 6e-8 are normalised before the first look: else the first M-step falls."""
    many, exact = 400, {"tol": 1e-10, "max_steps": 1000}
    rng = np.random.default_rng(0)
    x = np.where(rng.random((many, 60)) < 0.4, rng.poisson(2.0, (many, 60)), rng.poisson(7.0, (many, 60))).astype(float)
    weights = rng.dirichlet([5.0, 5.0, 5.0], many)
    starts = jem.Mixture(weights, jem.Poisson(np.sort(rng.uniform(1, 9, (many, 3)))))
    # At a maximum, where the fall of the first step would show, as far as single precision can say where.
    ends = jem.fit_many(starts, x, solver, **exact).model
    again = jax.tree.map(lambda leaf: leaf.astype(jnp.float32).astype(jnp.float64), ends)
    assert (np.asarray(again.weights.sum(-1)) != 1).sum() > many / 4
    fits = jem.fit_many(again, x, solver, **exact)
    ended = {"converged", "component_vanished", "components_coincide", "max_steps_reached"}
    assert set(fits.status_name) <= ended


def test_chains_and_networks_are_taken_up_as_well() -> None:
    rng = np.random.default_rng(1)
    chain = in_single(jem.HMM(rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 3), jem.Poisson([1.0, 4.0, 9.0])))
    x = rng.poisson(4.0, (5, 30)).astype(float)
    graph = {"h": [], "a": ["h"], "b": ["h"]}
    tables = {"h": rng.dirichlet(np.ones(3)), "a": rng.dirichlet(np.ones(3), 3), "b": rng.dirichlet(np.ones(3), 3)}
    net = in_single(jem.BayesNet(graph, tables))
    rows = np.column_stack([np.full(80, np.nan), rng.integers(0, 3, (80, 2))])
    for start, data in ((chain, jem.Sequences(jnp.asarray(x), np.full(5, 30))), (net, rows)):
        # At a maximum, where the fall of the first step would show, as far as single precision can say where.
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), start)
        rounded = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32).astype(jnp.float64), jem.fit(double, data, tol=1e-10).model
        )
        assert jem.fit(rounded, data, tol=1e-10).status_name == "converged"
