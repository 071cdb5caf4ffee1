"""Parameters that are held or tied: `jem.hold`, `jem.tie`, `jem.release`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.core.stationary import stationary

FEDERAL_FUNDS = np.array([
    1.03, 0.99, 1.34, 1.5, 1.94, 2.36, 2.48, 2.69, 2.81, 2.93, 2.93, 3, 3.23, 3.25, 1.86, 0.94, 1.32, 2.16, 2.57,
    3.08, 3.58, 3.99, 3.93, 3.7, 2.94, 2.3, 2, 1.73, 1.68, 2.4, 2.46, 2.61, 2.85, 2.92, 2.97, 2.96, 3.33, 3.45, 3.46,
    3.49, 3.46, 3.58, 3.97, 4.08, 4.07, 4.17, 4.56, 4.91, 5.41, 5.56, 4.82, 3.99, 3.89, 4.17, 4.79, 5.98, 5.94, 5.92,
    6.57, 8.33, 8.98, 8.94, 8.57, 7.88, 6.7, 5.57, 3.86, 4.56, 5.47, 4.75, 3.54, 4.3, 4.74, 5.14, 6.54, 7.82, 10.56,
    10, 9.32, 11.25, 12.09, 9.35, 6.3, 5.42, 6.16, 5.41, 4.83, 5.2, 5.28, 4.87, 4.66, 5.16, 5.82, 6.51, 6.76, 7.28,
    8.1, 9.58, 10.07, 10.18, 10.95, 13.58, 15.05, 12.69, 9.84, 15.85, 16.57, 17.78, 17.58, 13.59, 14.23, 14.51, 11.01,
    9.29, 8.65, 8.8, 9.46, 9.43, 9.69, 10.56, 11.39, 9.27, 8.48, 7.92, 7.9, 8.1, 7.83, 6.92, 6.21, 6.27, 6.22, 6.65,
    6.84, 6.92, 6.66, 7.16, 7.98, 8.47, 9.44, 9.73, 9.08, 8.61, 8.25, 8.24, 8.16, 7.74, 6.43, 5.86, 5.64, 4.82, 4.02,
    3.77, 3.26, 3.04, 3.04, 3, 3.06, 2.99, 3.21, 3.94, 4.49, 5.17, 5.81, 6.02, 5.8, 5.72, 5.36, 5.24, 5.31, 5.28,
    5.28, 5.52, 5.53, 5.51, 5.52, 5.5, 5.53, 4.86, 4.73, 4.75, 5.09, 5.31, 5.68, 6.27, 6.52, 6.47, 5.59, 4.33, 3.5,
    2.13, 1.73, 1.75, 1.74, 1.44, 1.25, 1.25, 1.02, 1, 1, 1.01, 1.43, 1.95, 2.47, 2.94, 3.46, 3.98, 4.46, 4.91, 5.25,
    5.25, 5.26, 5.25, 5.07, 4.5, 3.18, 2.09, 1.94, 0.51, 0.18, 0.18, 0.16, 0.12, 0.13, 0.19, 0.19, 0.19,
])  # fmt: skip
"""The federal funds rate, quarters from 1954:3 to 2010:4, in per cent (Stata's usmacro)."""

ROWS = np.random.default_rng(0).normal(size=(60, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
ROWS[30:] += [4.0, 1.0]
SOLVERS = {
    "EM": jem.EM(),
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Anderson": jem.Anderson(jem.EM()),
    "LBFGS": jem.LBFGS(),
    "Newton": jem.Newton(),
    "Adam": jem.Gradient(optax.adam(0.05)),
}


def two(family: Any = jem.DiagonalGaussian) -> jem.Mixture:
    spread = np.ones((2, 2)) if family is jem.DiagonalGaussian else np.stack([np.eye(2)] * 2)
    return jem.Mixture([0.4, 0.6], family([[0.0, 0.0], [4.0, 1.0]], spread))


def statistics(model: Any, x: Any = ROWS) -> Any:
    log_prob, pullback = model.e_step(jnp.asarray(x))
    return pullback(jnp.ones_like(log_prob))


def test_two_coins_that_are_picked_fairly() -> None:
    """Do and Batzoglou (2008), figure 1b: 0.80 and 0.52 after ten steps."""
    coins = jem.hold(jem.Mixture([0.5, 0.5], jem.Binomial(10, [0.6, 0.5])), "weights")
    fit = jem.fit(coins, jnp.array([5.0, 9.0, 8.0, 4.0, 7.0]), max_steps=10, tol=0.0)
    assert fit.model.weights.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(fit.model.components.probs, [0.80, 0.52], atol=5e-3)


def federal_funds() -> jem.HMM:
    start = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.DiagonalGaussian([[3.0], [9.0]], [[4.0], [4.0]]))
    return jem.tie(jem.tie(start, "emission.variance"), "initial", to="stationary")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EM", "LBFGS"])
def test_two_regimes_of_the_federal_funds_rate(name: str) -> None:
    """Stata's mswitch, as statsmodels' test_markov_regression has it."""
    fit = jem.fit(federal_funds(), [FEDERAL_FUNDS[:, None]], SOLVERS[name], tol=1e-12)
    assert fit.converged
    assert jem.free_parameters(fit.model) == 5
    np.testing.assert_allclose(fit.log_likelihood, -508.6359176, atol=1e-6)
    np.testing.assert_allclose(fit.model.transition[:, 0], [0.9820938, 0.0503587], atol=2e-6)
    np.testing.assert_allclose(fit.model.emission.mean[:, 0], [3.708770, 9.556793], atol=2e-5)
    np.testing.assert_allclose(fit.model.emission.variance, 2.107562**2, rtol=1e-5)
    np.testing.assert_allclose(fit.model.initial @ fit.model.transition, fit.model.initial, rtol=1e-12)


@pytest.mark.slow
def test_a_variance_for_all_components_is_the_pooled_one() -> None:
    model = jem.tie(two(), "components.variance")
    counted = statistics(model)
    free, tied = two().m_step(counted), model.m_step(counted)
    rows = np.asarray(counted.child.rows)
    pooled = rows @ np.asarray(free.components.variance) / rows.sum()
    np.testing.assert_allclose(tied.components.variance, [pooled, pooled], rtol=1e-12)
    np.testing.assert_allclose(tied.components.mean, free.components.mean, rtol=1e-9)
    np.testing.assert_allclose(tied.weights, free.weights, rtol=1e-12)


@pytest.mark.slow
def test_a_covariance_for_two_of_three_states_is_their_pooled_one() -> None:
    states = jem.Gaussian([[0.0, 0.0], [4.0, 1.0], [2.0, 0.0]], np.stack([np.eye(2)] * 3))
    model = jem.tie(jem.Mixture([0.3, 0.3, 0.4], states), "components.covariance", members=[0, 2])
    counted = statistics(model)
    free, tied = jem.release(model).m_step(counted), model.m_step(counted)
    rows = np.asarray(counted.child.rows)[[0, 2]]
    pooled = np.einsum("k,kij->ij", rows / rows.sum(), np.asarray(free.components.covariance)[[0, 2]])
    wanted = [pooled, free.components.covariance[1], pooled]
    np.testing.assert_allclose(tied.components.covariance, wanted, rtol=1e-10, atol=1e-12)


def test_rates_that_are_equal_are_the_rate_of_all_rows() -> None:
    x = jnp.array([0.0, 1.0, 2.0, 9.0, 11.0])
    model = jem.tie(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 10.0])), "components.rate")
    assert model.components.rate.tolist() == [5.5, 5.5]
    np.testing.assert_allclose(model.m_step(statistics(model, x)).components.rate, 4.6, rtol=1e-12)


@pytest.mark.parametrize("family", [jem.DiagonalGaussian, jem.Gaussian])
def test_spread_about_a_mean_that_is_held(family: Any) -> None:
    model = jem.hold(jem.Mixture([1.0], jax.tree.map(lambda leaf: leaf[:1], two(family).components)), "components.mean")
    new = model.m_step(statistics(model)).components
    assert new.mean.tolist() == [[0.0, 0.0]]
    wanted = np.mean(ROWS[:, :, None] * ROWS[:, None], axis=0)
    if family is jem.DiagonalGaussian:
        np.testing.assert_allclose(new.variance[0], np.diagonal(wanted), rtol=1e-12)
    else:
        np.testing.assert_allclose(new.covariance[0], wanted, rtol=1e-12)


def test_what_is_left_of_a_simplex_is_shared_by_the_others() -> None:
    start = jem.Mixture([0.5, 0.3, 0.2], jem.Poisson([1.0, 5.0, 12.0]))
    model, x = jem.hold(start, {"weights": [True, False, False]}), jnp.array([0.0, 1.0, 2.0, 9.0, 11.0])
    counts = np.asarray(statistics(model, x).counts)
    np.testing.assert_allclose(counts.sum(), 5)
    wanted = np.concatenate([[0.5], 0.5 * counts[1:] / counts[1:].sum()])
    np.testing.assert_allclose(model.m_step(statistics(model, x)).weights, wanted, rtol=1e-12)
    assert jem.free_parameters(model) == 4


@pytest.mark.slow
def test_all_solvers_end_at_the_same_constrained_maximum() -> None:
    model = jem.hold(two(jem.Gaussian), {"components.mean": [[True, False], [False, False]]})
    model = jem.tie(jem.hold(model, {"weights": [True, True]}), "components.covariance")
    assert jem.free_parameters(model) == 6
    ends = {name: jem.fit(model, ROWS, solver, tol=1e-11, max_steps=5000) for name, solver in SOLVERS.items()}
    for name, fit in ends.items():
        assert fit.model.weights.tolist() == [0.4, 0.6], name
        assert fit.model.components.mean[0, 0] == 0, name
        np.testing.assert_array_equal(*fit.model.components.covariance, err_msg=name)
        np.testing.assert_allclose(fit.log_likelihood, ends["EM"].log_likelihood, atol=1e-6, err_msg=name)
    assert ends["EM"].converged
    assert ends["EM"].steps > 3
    free = jem.fit(jem.release(model), ROWS, tol=1e-11)
    assert free.log_likelihood > ends["EM"].log_likelihood + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_problems_side_by_side_each_with_a_mask_of_its_own(dtype: Any) -> None:
    """A batch of models holds what each of them holds, and float32 stays float32."""
    x = np.stack([ROWS, ROWS * 2 + 1, ROWS - 3]).astype(dtype)
    models = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3).astype(dtype), two())
    mask = np.zeros((3, 2, 2))
    mask[0, 0], mask[2, 1, 1] = 1, 1
    held = jem.hold(models, {"components.mean": mask})
    assert jem.free_parameters(held).tolist() == [7, 9, 8]
    fits = jem.fit_many(held, x, tol=1e-6)
    assert fits.model.components.mean.dtype == dtype
    np.testing.assert_array_equal(fits.model.components.mean[mask > 0], models.components.mean[mask > 0])
    for i in range(3):
        one = jem.fit(jax.tree.map(lambda leaf, i=i: leaf[i], held), x[i], tol=1e-6)
        np.testing.assert_allclose(fits.log_likelihood[i], one.log_likelihood, rtol=1e-6)
        np.testing.assert_allclose(fits.model.components.mean[i], one.model.components.mean, rtol=2e-3, atol=1e-3)


@pytest.mark.slow
def test_the_derivative_of_a_fit_is_that_given_what_is_held() -> None:
    model = jem.tie(jem.hold(two(), {"components.mean": [[True, True], [False, False]]}), "components.variance")

    def variance(shift: Any) -> Any:
        return jem.fit(model, jnp.asarray(ROWS).at[3].add(shift), tol=1e-14, max_steps=20_000).model.components.variance

    slope = jax.jacobian(variance)(jnp.zeros(2))
    step = 1e-4
    for i, way in enumerate(np.eye(2)):
        np.testing.assert_allclose(
            slope[..., i], (variance(step * way) - variance(-step * way)) / (2 * step), rtol=1e-4, atol=1e-7
        )


@pytest.mark.slow
def test_with_a_prior_what_is_held_stays_and_the_rest_climbs() -> None:
    model = jem.hold(two(), "weights")
    fit = jem.fit(model, ROWS, prior=jem.priors.Weak(5), tol=1e-10)
    assert fit.converged
    assert fit.model.weights.tolist() == [0.4, 0.6]
    race = jem.compare(model, ROWS, {"EM": jem.EM(), "L-BFGS": jem.LBFGS()})
    for run in race.runs:
        assert run.fit.model.weights.tolist() == [0.4, 0.6]


@pytest.mark.slow
def test_parameters_of_two_parts_that_are_equal() -> None:
    """One rate for two columns of counts is that of both together."""
    columns = jem.Product((jem.Poisson([1.0, 6.0]), jem.Poisson([3.0, 9.0])))
    x = np.random.default_rng(1).poisson([[2, 2]] * 30 + [[8, 8]] * 30).astype(float)
    model = jem.tie(jem.Mixture([0.5, 0.5], columns), ("components.parts.0.rate", "components.parts.1.rate"))
    assert jem.free_parameters(model) == 3
    posterior = model.posterior(jnp.asarray(x))
    new = model.m_step(statistics(model, x)).components
    wanted = posterior.T @ x.mean(1) / posterior.sum(0)
    np.testing.assert_allclose(new.parts[0].rate, wanted, rtol=1e-10)
    np.testing.assert_array_equal(new.parts[1].rate, new.parts[0].rate)
    fit = jem.fit(model, x)
    assert fit.converged
    np.testing.assert_array_equal(fit.model.components.parts[0].rate, fit.model.components.parts[1].rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "x"),
    [
        (jem.Gamma(2.0, 0.5), [1.0, 2.0, 7.0, 3.0, 4.0]),
        (jem.Weibull(2.0, 3.0), [1.0, 2.0, 7.0, 3.0, 4.0]),
        (jem.Beta(2.0, 3.0), [0.1, 0.2, 0.4, 0.3, 0.15]),
        (jem.NegativeBinomial(3.0, 2.0), [0.0, 3.0, 9.0, 2.0, 2.0]),
        (jem.LogNormal(1.0, 0.5), [1.0, 2.0, 7.0, 3.0, 4.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_families_of_two_parameters_one_of_them_held(model: Any, x: Any) -> None:
    """The other is where the likelihood is highest, as a fine search finds it."""
    name, other = jem.coordinates(model)[0]
    fit = jem.fit(jem.hold(model, name), jnp.asarray(x), tol=1e-13)
    assert fit.converged
    assert getattr(fit.model, name) == getattr(model, name)
    free, model_at = jem.coordinates(jem.hold(model, name))

    def height(value: Any) -> Any:
        return model_at({other: value}).log_prob(jnp.asarray(x)).sum()

    grid = jnp.linspace(free[other] - 3, free[other] + 3, 4001)
    heights = jax.vmap(height)(grid)
    best = grid[jnp.argmax(heights)]
    found = jem.coordinates(fit.model)[0][other]
    np.testing.assert_allclose(found, best, atol=2e-3)
    assert fit.log_likelihood >= heights.max() - 1e-12


def test_a_part_is_held_with_all_that_it_has_and_released() -> None:
    chain = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], two().components)
    held = jem.hold(chain, "emission")
    assert jem.free_parameters(held) == 3
    assert list(jem.coordinates(held)[0]) == ["initial", "transition"]
    assert jem.free_parameters(jem.release(held, "emission.mean")) == 7
    assert jax.tree.structure(jem.release(held)) == jax.tree.structure(chain)
    t = jem.StudentT([0.0], [[1.0]], 4.0, held=("dof",))
    assert (jem.free_parameters(t), jem.free_parameters(jem.release(t))) == (2, 3)


def test_a_part_is_held_with_the_ties_in_it() -> None:
    tied = jem.tie(jem.Mixture([0.5, 0.5], PAIR), ("components.parts.0.rate", "components.parts.1.rate"))
    assert jem.free_parameters(jem.hold(tied, "components")) == 1


def test_a_tie_that_is_released_leaves_no_trace() -> None:
    model = federal_funds()
    assert jem.free_parameters(model) == 5
    assert jem.free_parameters(jem.release(model, "initial")) == 6
    assert jem.free_parameters(jem.release(model, "transition")) == 6
    assert jax.tree.structure(jem.release(model)) == jax.tree.structure(jem.release(jem.release(model)))
    assert jem.release(model).restriction is None


def test_the_stationary_distribution() -> None:
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(6), size=(3, 6))
    found = stationary(jnp.asarray(transition))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-15)
    np.testing.assert_allclose(np.einsum("bi,bij->bj", found, transition), found, rtol=1e-13)
    # A state that is next to never entered keeps its digits: 1e-200 / 0.5.
    rare = jnp.array([[1 - 1e-200, 1e-200], [0.5, 0.5]])
    np.testing.assert_allclose(stationary(rare)[1], 2e-200, rtol=1e-14)
    assert stationary(jnp.array([[0.5, 0.5], [0.0, 1.0]])).round(6).tolist() == [0, 1]


MODEL = two(jem.Gaussian)
PAIR = jem.Product((jem.Poisson([1.0, 6.0]), jem.Poisson([3.0, 9.0])))
CHAIN = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Poisson([1.0, 2.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jem.hold(MODEL, "mean"), "it has weights, components.mean, components.covariance"),
        (lambda: jem.release(MODEL, "wieghts"), "release: 'wieghts' is no parameter of this Mixture"),
        (lambda: jem.hold(MODEL, {"weights": [True, True, False]}), r"has shape \(3,\); it must broadcast to \(2,\)"),
        (lambda: jem.hold(MODEL, {"weights": [0.5, 0.5]}), "entries that are neither True nor False"),
        (
            lambda: jem.hold(MODEL, {"components.covariance": [[True, False], [False, True]]}),
            "held altogether or not at all",
        ),
        (
            lambda: jem.tie(MODEL, ("weights", "components.mean")),
            r"weights \(simplex, shape \(2,\)\) and components.mean \(real vector, shape \(2, 2\)\) cannot be equal",
        ),
        (lambda: jem.tie(MODEL, "weights"), "has no members to tie; name two parameters"),
        (lambda: jem.tie(MODEL, "components"), "is not one parameter; it has components.mean, components.covariance"),
        (lambda: jem.tie(MODEL, "components.mean", members=[0, 2]), "has the members 0 to 1"),
        (lambda: jem.tie(jem.hold(MODEL, "components.mean"), "components.mean"), "is held; release it first"),
        (lambda: jem.tie(CHAIN, "initial", to="stationery"), "it must be 'stationary'"),
        (lambda: jem.tie(MODEL, "weights", to="stationary"), "no initial distribution with a transition matrix"),
        (lambda: jem.tie(federal_funds(), "initial", to="stationary"), "tied to another parameter already"),
        (lambda: jem.hold(federal_funds(), "initial"), "initial is tied to transition; hold that one, or release"),
        (lambda: jem.tie(jem.tie(CHAIN, ("initial", "initial")), "initial"), "initial is named twice"),
        (
            lambda: jem.tie(jem.tie(PAIR, "parts.1.rate"), ("parts.0.rate", "parts.1.rate")),
            "parts.1.rate is held in part or tied among its members; name it first",
        ),
        (
            lambda: jem.tie(jem.tie(PAIR, ("parts.0.rate", "parts.1.rate")), "parts.1.rate"),
            "parts.1.rate is tied to parts.0.rate; tie the members of that one",
        ),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("call", [lambda: jem.hold(3, "a"), lambda: jem.hold(MODEL), lambda: jem.tie(MODEL, 3)])
def test_mistakes_of_type_are_named(call: Any) -> None:
    with pytest.raises(TypeError):
        call()
