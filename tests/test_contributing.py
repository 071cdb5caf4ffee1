"""The family in CONTRIBUTING.md works: as a file of its own, alone, in mixtures and products, and by the laws."""

from __future__ import annotations

import doctest
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
import pages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module on the page, written to a file and imported."""
    (source,) = pages.python_blocks(pages.ROOT / "CONTRIBUTING.md")
    path = tmp_path_factory.mktemp("page") / "waiting.py"
    path.write_text(source.lstrip("\n"))
    spec = importlib.util.spec_from_file_location("waiting", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["waiting"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["waiting"]


def test_its_docstring_is_true(waiting: ModuleType) -> None:
    failed, tried = doctest.testmod(waiting)
    assert (failed, tried > 0) == (0, True)


def test_the_m_step_zeroes_the_gradient_of_expected_log_prob(waiting: ModuleType) -> None:
    x = jnp.array([0.5, 1.0, 4.0])
    statistics = waiting.Exponential([1.0, 1.0]).statistics(x, jnp.array([[1.0, 1.0, 1.0], [0.0, 2.0, 0.5]]))
    best = waiting.Exponential([1.0, 1.0]).m_step(statistics)
    slope = jax.grad(lambda model: model.expected_log_prob(statistics).sum())(best)
    np.testing.assert_allclose(best.rate, [3 / 5.5, 2.5 / 4.0])
    np.testing.assert_allclose(slope.rate, 0, atol=1e-12)


def test_a_member_without_rows_keeps_its_rate(waiting: ModuleType) -> None:
    model = waiting.Exponential([1.0, 7.0])
    x = jnp.array([2.0, 3.0])
    assert model.m_step(model.statistics(x, jnp.array([[1.0, 1.0], [0.0, 0.0]]))).rate[1] == 7
    assert jnp.isfinite(model.m_step(model.statistics(jnp.zeros(2), jnp.ones((2, 2)))).rate).all()


def test_impossible_rows_have_probability_zero_and_a_finite_gradient(waiting: ModuleType) -> None:
    x = jnp.array([-1.0, jnp.inf, jnp.nan, 1.0])
    assert waiting.Exponential(1.0).log_prob(x).tolist() == [-jnp.inf, -jnp.inf, 0.0, -1.0]
    assert jax.grad(lambda rate: waiting.Exponential(rate).log_prob(x)[2])(jnp.array(1.0)) == 0


def test_a_mixture_of_it_finds_the_truth_and_never_descends(waiting: ModuleType) -> None:
    truth = jem.Mixture([0.4, 0.6], waiting.Exponential([0.2, 8.0]))
    x = truth.sample(jax.random.key(0), 4000)
    start = jem.Mixture.start(jax.random.key(1), waiting.Exponential, x, 2, restarts=3)
    fit = jem.fit(start, x)
    gains = jnp.diff(fit.trace[: int(fit.steps) + 1])
    assert fit.status_name == "converged"
    assert (gains > -1e-9 * jnp.abs(fit.log_likelihood)).all()
    np.testing.assert_allclose(jnp.sort(fit.model.components.rate), [0.2, 8.0], rtol=0.1)


def test_it_takes_its_place_everywhere(waiting: ModuleType) -> None:
    """In `fit_many`, in a `Product`, as independent columns, under the gamma prior, with weights."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=60), rng.exponential(size=60)])
    families: dict[str, Any] = {
        "product": jem.Product.of(jem.Gaussian, waiting.Exponential),
        "columns": jem.Independent.of(waiting.Exponential),
    }
    for rows, family in ((x, families["product"]), (np.abs(x), families["columns"])):
        starts = jem.start_many(jax.random.key(0), family, [rows, rows[:40]], 2, restarts=2)
        fits = jem.fit_many(starts, [rows, rows[:40]])
        assert np.isfinite(fits.log_likelihood).all()
    prior = jem.priors.Structured({"components": jem.priors.Gamma(2.0, 1.0)})
    start = jem.Mixture.start(jax.random.key(0), waiting.Exponential, x[:, 1], 2)
    assert jem.fit(start, x[:, 1], prior=prior, weight=np.arange(60.0)).steps > 0
