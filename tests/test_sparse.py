"""Sparse counts: probabilities that go towards zero, and how solvers that look ahead keep away from it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.solvers.objective import flat

pytestmark = pytest.mark.slow

BINS, TOTAL = 14, 6
FAMILY = jem.sized(jem.Multinomial, total_count=TOTAL)
ACCELERATED = {"SQUAREM": jem.SQUAREM(jem.EM()), "Anderson": jem.Anderson(jem.EM())}
LONG = {"tol": 1e-8, "max_steps": 3000}


def counts(seed: int, components: int = 3, n: int = 400) -> np.ndarray:
    """Rows of a mixture whose components never see most of the bins."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(BINS, rng.choice([0.05, 0.1, 0.3])), components)
    return np.stack([rng.multinomial(TOTAL, probs[k]) for k in rng.integers(0, components, n)]).astype(float)


def alone(models: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], models)


def problems(number: int, components: int) -> tuple[Any, jax.Array]:
    xs = jnp.asarray(np.stack([counts(seed, components) for seed in range(number)]))
    return jem.start_many(jax.random.key(0), FAMILY, xs, components, method="random"), xs


def test_what_underflows_is_not_on_the_edge() -> None:
    """Coordinates of any size are those of a model that can come back; what is zero for good stays zero."""
    model = jem.Mixture([0.5, 0.5, 0.0], jem.Multinomial(jnp.full((3, 4), 0.25), 2))
    free, model_at = flat(model)
    for far in (-1e4, 1e4):
        moved = model_at(free + far)
        assert (moved.components.probs > 0).all()
        assert moved.weights.tolist()[2] == 0
        assert (moved.weights[:2] > 0).all()
        np.testing.assert_allclose(moved.components.probs.sum(-1), 1, rtol=1e-12)
    for family in (jem.Poisson(3.0), jem.Bernoulli(0.5)):
        free, model_at = flat(family)
        assert 0 < float(jax.tree.leaves(model_at(free - 1e4))[0]) < 1e-300


@pytest.mark.parametrize("name", ACCELERATED)
def test_a_look_ahead_over_the_edge_is_taken_back_whole(name: str) -> None:
    """Coordinates mean the same before and after: a fallback that was decoded otherwise was another model."""
    x = jnp.asarray(counts(12))
    start = jem.Mixture.start(jax.random.split(jax.random.key(0), 100)[12], FAMILY, x, 3, method="random")
    fit = jem.fit(start, x, ACCELERATED[name], **LONG)
    assert fit.converged, fit.status_message
    assert fit.objective > jem.fit(start, x, **LONG).objective - 1e-4


@pytest.mark.parametrize("components", [3, 4])
@pytest.mark.parametrize("name", ACCELERATED)
def test_acceleration_ends_where_em_stays(name: str, components: int) -> None:
    models, xs = problems(100, components)
    em = jem.fit_many(models, xs, **LONG)
    fits = jem.fit_many(models, xs, ACCELERATED[name], **LONG)
    assert fits.converged.all(), sorted(set(fits.status_name))
    again = jem.fit_many(fits.model, xs, **LONG)
    assert (np.asarray(again.objective - fits.objective) < 400 * 1e-6).all()
    # Looking ahead, it may come down on another hill than EM from the same start: higher by far more often than lower.
    assert (np.asarray(fits.objective) < np.asarray(em.objective) - 400 * 1e-6).sum() <= 2
    each = [jem.fit(alone(models, i), xs[i], ACCELERATED[name], **LONG) for i in range(8)]
    np.testing.assert_allclose(fits.objective[:8], [fit.objective for fit in each], rtol=1e-7)
    starts = jem.Mixture.start(jax.random.key(1), FAMILY, xs[0], components, restarts=8)
    together = jax.vmap(lambda start: jem.fit(start, xs[0], ACCELERATED[name], **LONG))(starts)
    assert together.converged.all()


@pytest.mark.parametrize("components", [3, 4])
def test_a_line_search_does_not_leave_what_it_cannot_come_back_to(components: int) -> None:
    """In log-ratios the gradient of a probability of 1e-30 vanishes, whatever pulls at it."""
    models, xs = problems(40, components)
    em = jem.fit_many(models, xs, **LONG)
    fits = [jem.fit(alone(models, i), xs[i], jem.LBFGS(), **LONG) for i in range(40)]
    assert {fit.status_name for fit in fits} == {"converged"}
    ends = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[fit.model for fit in fits])
    objective = np.array([fit.objective for fit in fits])
    assert (np.asarray(jem.fit_many(ends, xs, **LONG).objective) - objective < 400 * 1e-6).all()
    # As above: another hill, now and then.
    assert (objective < np.asarray(em.objective) - 400 * 1e-6).sum() <= 2


ROWS = jnp.array([0.0, 1, 2, 1, 0, 3, 8, 7, 10, 6, 9, 1])
HARDLY = jem.Mixture([1 - 1e-30, 1e-30], jem.Poisson([1.0, 8.0]))
"""Half of the rows want the second component."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", [jem.LBFGS(), jem.Newton()], ids=["LBFGS", "Newton"])
def test_who_sees_coordinates_only_comes_back_from_an_edge(solver: Any, dtype: str) -> None:
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), HARDLY)
    fit = jem.fit(start, ROWS.astype(dtype), solver)
    best = jem.fit(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 8.0])), ROWS, tol=1e-10)
    assert fit.converged
    np.testing.assert_allclose(fit.objective, best.objective, atol=1e-4 if dtype == "float32" else 1e-5)


def test_at_an_edge_that_pays_to_leave_nothing_has_converged() -> None:
    """The slope is 1e-30 there, and every component grows but for that: so it goes on."""
    fit = jem.fit(HARDLY, ROWS, jem.Gradient(optax.sgd(0.1)), max_steps=300)
    assert fit.steps == 300
    assert not fit.converged
    # What nothing pulls at may stay there.
    idle = jem.fit(jem.Mixture([1 - 1e-30, 1e-30], jem.Poisson([4.0, 900.0])), ROWS, jem.LBFGS())
    assert idle.model.weights[1] < 1e-6
    assert idle.steps < 20
