"""What a log-probability is: it normalises, it is differentiable, and it keeps its float type."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from table import LISTED, LOCATION, STARTED, law

import jaxem as jem
from families import MIXTURES, Example, coordinates, move


@law(LISTED)
def test_probabilities_of_all_rows_sum_to_one(example: Example) -> None:
    rows, volume = example.support
    model = example.mixture()
    for each in (model, model.components):
        mass = volume * np.exp(each.log_prob(rows)).sum(-1)
        # The grid and the counts end where less than 1e-8 is left; the trapezoid of a Gaussian is as exact.
        np.testing.assert_allclose(mass, 1, rtol=1e-7)


@law(MIXTURES)
def test_members_are_models_side_by_side(example: Example) -> None:
    members, x = example.members(3), example.rows(7)
    together = members.log_prob(x)
    assert together.shape == (3, 7)
    for k, member in enumerate(unstacked(members, 3)):
        np.testing.assert_allclose(member.log_prob(x)[0], together[k], rtol=1e-12)


def unstacked(members: object, k: int) -> list[object]:
    """Each of K members as a model of one member; what members share stays shared."""
    shared = "covariance" if isinstance(members, jem.TiedGaussian) else None
    names = coordinates(members)
    take = {name: (leaf if shared and shared in name else None) for name, leaf in names.items()}

    def member(i: int) -> object:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if take[jax.tree_util.keystr(path)] is not None else leaf[i : i + 1], members
        )

    return [member(i) for i in range(k)]


@law(MIXTURES)
def test_slope_along_any_feasible_direction_is_that_of_finite_differences(
    example: Example, rng: np.random.Generator
) -> None:
    model, x = example.mixture(), example.rows(6)
    direction = {name: rng.normal(size=leaf.shape) for name, leaf in coordinates(model).items()}

    def along(t: jax.Array) -> jax.Array:
        return move(model, {name: t * step for name, step in direction.items()}).log_prob(x)

    h = 1e-5

    @jax.jit
    def value_and_slopes(t: jax.Array) -> tuple[jax.Array, ...]:
        value, forward = jax.jvp(along, (t,), (jnp.ones(()),))
        slope = jax.grad(lambda t: along(t).sum())
        return value, forward, slope(t), jax.jvp(slope, (t,), (jnp.ones(()),))[1]

    above, _, slope_above, _ = value_and_slopes(jnp.asarray(h))
    below, _, slope_below, _ = value_and_slopes(jnp.asarray(-h))
    _, forward, backward, curvature = value_and_slopes(jnp.zeros(()))
    np.testing.assert_allclose(forward, (above - below) / (2 * h), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(backward, forward.sum(), rtol=1e-9)
    np.testing.assert_allclose(curvature, (slope_above - slope_below) / (2 * h), rtol=1e-5, atol=1e-6)


@law(LOCATION)
def test_slope_in_the_data_is_that_of_finite_differences(example: Example, rng: np.random.Generator) -> None:
    model, x = example.mixture(), example.rows(4)
    step, h = jnp.asarray(rng.normal(size=x.shape)), 1e-6
    measured = (model.log_prob(x + h * step) - model.log_prob(x - h * step)) / (2 * h)
    forward = jax.jit(lambda x: jax.jvp(model.log_prob, (x,), (step,))[1])(x)
    backward = jax.jit(jax.grad(lambda x: model.log_prob(x).sum()))(x)
    np.testing.assert_allclose(forward, measured, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sum(backward * step), measured.sum(), rtol=1e-5, atol=1e-6)


@law(MIXTURES)
def test_rows_may_be_observed_beforehand(example: Example) -> None:
    model, x = example.mixture(), example.rows(6)
    np.testing.assert_array_equal(model.log_prob(model.observe(x)), model.log_prob(x))
    np.testing.assert_array_equal(model.components.log_prob(model.observe(x)), model.components.log_prob(x))


@law(MIXTURES)
def test_samples_come_from_the_model(example: Example) -> None:
    """The mean log-probability of draws is the model's negative entropy: two samples of it agree."""
    model = example.mixture()
    draws = [np.asarray(model.log_prob(model.sample(jax.random.key(seed), 4000))) for seed in (1, 2)]
    error = np.hypot(*(d.std() / np.sqrt(len(d)) for d in draws))
    assert abs(draws[0].mean() - draws[1].mean()) < 4 * error
    if example.support is not None:
        rows, volume = example.support
        exact = np.asarray(model.log_prob(rows))
        exact = exact[np.isfinite(exact)]
        assert abs(draws[0].mean() - volume * np.sum(np.exp(exact) * exact)) < 4.5 * draws[0].std() / np.sqrt(4000)


@law(STARTED)
def test_starts_and_fits_of_float32_are_float32(example: Example) -> None:
    def everything(model: jem.Mixture, x: jax.Array) -> object:
        return jem.fit(model, x, max_steps=2), jem.Mixture.start(jax.random.key(0), example.family, x, 2, restarts=2)

    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), example.mixture())
    # Types are known before anything runs.
    made = jax.eval_shape(everything, model, example.rows(12).astype(jnp.float32))
    types = {leaf.dtype for leaf in jax.tree.leaves(made) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert types == {jnp.dtype("float32")}
