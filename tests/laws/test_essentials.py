"""What every model obeys, whatever it is: the laws that `make test` runs on all of them.

They share few compiled programs, each of one shape, because compiling is what takes the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from table import EVERY, Model, law

import jaxem as jem
from families import Example, coordinates, direction, e_step, m_step, move, some
from jaxem.core.constraints import walk
from jaxem.core.coordinates import from_coordinates, to_coordinates
from jaxem.distributions.base import add

ROWS = 24
"""As many everywhere, or half of them."""
ONES = jnp.ones(ROWS)


def assert_same(a: Any, b: Any, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    for path, leaf in coordinates(a).items():
        np.testing.assert_allclose(leaf, coordinates(b)[path], rtol=rtol, atol=atol, err_msg=path)


@jax.jit
def along(model: Any, step: dict[str, Any], towards: dict[str, Any], x: Any, statistics: Any) -> Any:
    """L and Q of the model moved by a step, and their slopes where it goes on in a direction."""

    def both(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        there = move(model, {name: step[name] + t * towards[name] for name in step})
        return there.log_prob(x).sum(), there.expected_log_prob(statistics)

    return jax.jvp(both, (jnp.zeros(()),), (jnp.ones(()),))


def still(model: Any) -> dict[str, Any]:
    return {name: np.zeros(np.shape(leaf)) for name, leaf in coordinates(model).items()}


def times(size: float, step: dict[str, Any]) -> dict[str, Any]:
    return {name: size * np.asarray(each) for name, each in step.items()}


@law(EVERY, essential=True)
def test_the_m_step_zeroes_the_slope_of_q(example: Model, rng: np.random.Generator) -> None:
    """Along directions in which parameters may move, at the maximum and, lest zero come cheap, not before it."""
    start, x = example.model(), example.data(ROWS)
    _, statistics = e_step(start, x, ONES)
    best = m_step(start, statistics)
    towards, away = direction(best, rng), times(0.2, direction(best, rng))
    (_, top), (_, slope) = along(best, still(best), towards, x, statistics)
    (_, below), (_, steep) = along(best, away, towards, x, statistics)
    assert abs(slope) < 1e-8
    assert abs(steep) > 1e-3
    assert below < top


@law(EVERY, essential=True)
def test_q_touches_the_log_likelihood_and_lies_below_it(example: Model, rng: np.random.Generator) -> None:
    """L(other) - L(model) >= Q(other) - Q(model): L = Q - H, and H is largest at the model (Jensen)."""
    model, x = example.model(), example.data(ROWS)
    log_prob, statistics = e_step(model, x, ONES)
    towards = direction(model, rng)
    (here, q), (slope, slope_of_q) = along(model, still(model), towards, x, statistics)
    fine = abs(here) + ROWS
    np.testing.assert_allclose(here, np.sum(log_prob), rtol=1e-12, atol=1e-12 * fine)
    assert abs(slope - slope_of_q) < 1e-9 * fine
    for size in (1e-3, 0.1, 1.0):
        (there, q_there), _ = along(model, times(size, direction(model, rng)), towards, x, statistics)
        assert there - here > q_there - q


floor = jax.jit(lambda model, x, weight: model.floor(x, weight))
added = jax.jit(add)


@law(EVERY, essential=True)
def test_em_climbs(example: Model, rng: np.random.Generator) -> None:
    """From elsewhere, on weighted rows, with a floor under it."""
    model, x = example.model(3), example.data(ROWS)
    weight = jnp.asarray(rng.choice([0.5, 1.0, 2.0], ROWS))
    prior, last = floor(model, x, weight), -np.inf
    for _ in range(4):
        log_prob, statistics = e_step(model, x, weight)
        (_, log_prior), _ = along(model, still(model), still(model), x, prior)
        objective = float((weight * log_prob).sum() + log_prior)
        assert np.isfinite(objective)
        assert objective >= last - 1e-11 * (abs(objective) + ROWS)
        model, last = m_step(model, added(statistics, prior)), objective


def floats(dtype: Any, tree: Any) -> Any:
    """The same numbers, those with a point as that type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


@law(EVERY, essential=True)
def test_float32_stays_float32_and_agrees_with_float64(example: Model) -> None:
    def everything(model: Any, x: Any, weight: jax.Array) -> Any:
        log_prob, pullback = model.e_step(x)
        statistics = pullback(weight)
        states = model.posterior(x) if hasattr(model, "posterior") else ()
        parts = model.components.log_prob(x) if isinstance(example, Example) else ()
        return (
            log_prob, statistics, model.m_step(statistics), model.expected_log_prob(statistics), states, parts,
            model.floor(x, weight), model.sample(jax.random.key(0), 3), model.observe(x),
            jax.grad(lambda model: model.log_prob(x).sum())(model),
        )  # fmt: skip

    model, x, weight = floats(jnp.float32, (example.model(), example.data(ROWS), ONES))
    # Types are known before anything runs.
    made = jax.eval_shape(everything, model, x, weight)
    types = {leaf.dtype for leaf in jax.tree.leaves(made) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert types == {jnp.dtype("float32")}
    log_prob, statistics = e_step(model, x, weight)
    exact, same = floats(jnp.float64, (model, x))
    wanted, exactly = e_step(exact, same, ONES)
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-5, atol=1e-4)
    assert_same(m_step(model, statistics), m_step(exact, exactly), rtol=2e-3, atol=2e-3)


@law(EVERY, essential=True)
def test_statistics_add_over_rows(example: Model) -> None:
    model, x = example.model(), example.data(ROWS)
    weight = jnp.linspace(0.5, 1.5, ROWS)
    whole, *parts = (
        e_step(model, some(x, at), weight[at])[1] for at in (slice(None), slice(ROWS // 2), slice(ROWS // 2, None))
    )
    assert_same(m_step(model, added(*parts)), m_step(model, whole))


@law(EVERY, essential=True)
def test_weights_are_repetitions(example: Model) -> None:
    model, x = example.model(), example.data(ROWS)
    times = np.arange(ROWS) % 3  # as many rows when they are repeated
    weighted, statistics = e_step(model, x, jnp.asarray(times, float))
    repeated, again = e_step(model, some(x, np.repeat(np.arange(ROWS), times)), ONES)
    np.testing.assert_allclose(repeated, np.repeat(weighted, times), rtol=1e-12, atol=1e-12)
    assert_same(m_step(model, statistics), m_step(model, again))


@law(EVERY, essential=True)
def test_what_was_not_seen_says_nothing(example: Model) -> None:
    """A whole row (or sequence), and where any cell may be missing, a cell: the sum over all that it may hold."""
    model, x = example.model(), example.data(ROWS)
    values = np.array(x.values if isinstance(x, jem.Sequences) else x)
    values[3] = np.nan
    if example.cell is not None:
        values[5, -1] = np.nan
    gappy = x
    if isinstance(x, jem.Sequences):
        gappy = jem.Sequences(x.values, x.length, ~np.isnan(values).reshape(*values.shape[:2], -1).any(-1))
    else:
        gappy = jem.incomplete(values)
    whole, log_prob = np.asarray(e_step(model, x, ONES)[0]), []
    for _ in range(3):
        told, statistics = e_step(model, gappy, ONES)
        log_prob.append(np.asarray(told))
        model = m_step(model, statistics)
    np.testing.assert_allclose(log_prob[0][3], 0, atol=1e-12)
    there = [at for at in range(ROWS) if at not in (3, 5)]
    np.testing.assert_allclose(log_prob[0][there], whole[there], rtol=1e-10, atol=1e-10)
    assert (np.diff([each.sum() for each in log_prob]) > -1e-9).all()
    if example.cell is not None:
        held, volume = example.cell
        rows = np.tile(np.asarray(x)[5], (len(held), 1))
        rows[:, -1] = held
        mass = np.sum(np.exp(np.asarray(example.model().log_prob(rows), float))) * volume
        np.testing.assert_allclose(log_prob[0][5], np.log(mass), rtol=1e-6)


@law(EVERY, essential=True)
def test_it_can_be_saved_and_loaded(example: Model, tmp_path: Path) -> None:
    model, path = example.model(), tmp_path / "model.safetensors"
    jem.save(path, model)
    back = jem.load(path)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@jax.jit
def there_and_back(model: Any) -> Any:
    free = to_coordinates(model)
    return free, from_coordinates(free, model)


@law(EVERY, essential=True)
def test_there_is_a_coordinate_for_each_free_parameter(example: Model) -> None:
    """Of what is tied or held in part, fewer: as many as the parameters have directions to move in."""
    model = example.model()
    free, back = there_and_back(model)
    if all(leaf.mask is None and leaf.first is None for leaf in walk(model)):
        assert sum(leaf.size for leaf in free) == jem.free_parameters(model)
    else:
        at, unravel = ravel_pytree(free)
        slopes = jax.jacobian(lambda at: ravel_pytree(from_coordinates(unravel(at), model))[0])(at)
        assert np.linalg.matrix_rank(slopes) == jem.free_parameters(model)
    assert_same(back, model, rtol=1e-12, atol=1e-12)
