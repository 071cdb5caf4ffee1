"""Any optax transformation climbs, whatever it asks for besides the gradient."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem

pytestmark = pytest.mark.slow

START = jem.Mixture([0.5, 0.5], jem.Poisson([2.0, 4.0]))
X = jnp.array([0.0, 1, 2, 1, 0, 3, 8, 7, 10, 6, 9, 1])
BEST = float(jem.fit(START, X, tol=1e-10).objective)

ALIASES = [
    name
    for name, function in inspect.getmembers(optax, inspect.isfunction)
    if function.__module__ == optax.adam.__module__ and not name.startswith("_")
]
"""Every optimiser that the installed optax has."""

ASKING: dict[str, Callable[[], Any]] = {
    "polyak": lambda: optax.polyak_sgd(0.5, f_min=-BEST / len(X)),
    "plateau": lambda: optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=5)),
    "zoom": lambda: optax.lbfgs(),
    "backtracking": lambda: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(10)),
    "backtracking with its gradient": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10, store_grad=True)
    ),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(0.2, 200)),
    "masked": lambda: optax.chain(optax.masked(optax.clip(0.1), [False, True]), optax.adam(0.1)),
    "steps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


def optimiser(name: str) -> Any:
    make = getattr(optax, name)
    parameters = inspect.signature(make).parameters
    needs = dict.fromkeys((p.name for p in parameters.values() if p.default is p.empty), 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old names are offered, too
        return make(**needs, **({"key": jax.random.key(0)} if "key" in parameters else {}))


def climbed(transformation: Any, dtype: Any = float, **how: Any) -> jem.Fit:
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), START)
    fit = jem.fit(start, X.astype(dtype), jem.Gradient(transformation, **how), max_steps=200)
    assert {leaf.dtype for leaf in jax.tree.leaves((fit.model, fit.objective))} == {jnp.dtype(dtype)}
    assert fit.status_name in ("converged", "max_steps_reached", "diverged")
    assert fit.objective >= fit.trace[0]
    assert fit.objective <= BEST + 1e-4
    if fit.converged:
        np.testing.assert_allclose(fit.objective, BEST, atol=1e-3)
    return fit


@pytest.mark.parametrize("name", ALIASES)
def test_every_optimiser_climbs_or_says_that_it_diverged(name: str) -> None:
    fit = climbed(optimiser(name))
    assert fit.status_name == "diverged" or fit.objective > fit.trace[0] + 0.1


# With 64-bit types on, one of optax's searches does not keep to the type of a gradient that it stores.
NARROW = [name for name in ASKING if name != "backtracking with its gradient"]


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in ASKING), *((name, "float32") for name in NARROW)]
)
def test_what_asks_for_more_than_the_gradient_gets_it(name: str, dtype: str) -> None:
    assert climbed(ASKING[name](), dtype).objective > BEST - 0.1


@pytest.mark.parametrize("name", ["polyak", "plateau", "zoom"])
def test_in_batches_it_is_told_of_the_batch(name: str) -> None:
    fit = climbed(ASKING[name](), batch_size=6)
    assert fit.objective > fit.trace[0] + 0.1


def test_a_line_search_counts_its_passes() -> None:
    fit = climbed(ASKING["zoom"]())
    assert fit.converged
    assert fit.passes > 2 * fit.steps
