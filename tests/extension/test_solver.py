"""A solver in one file: it goes wherever a solver goes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from extension.parabolic import Parabolic

pytestmark = pytest.mark.slow


@pytest.fixture
def x() -> Any:
    """Two components that overlap: EM takes thousands of steps."""
    rng = np.random.default_rng(4)
    return jnp.asarray(np.concatenate([rng.normal(0, 1, 150), rng.normal(1.5, 1, 150)]))


@pytest.fixture
def start() -> jem.Mixture:
    return jem.Mixture([0.6, 0.4], jem.DiagonalGaussian([[-0.5], [1.5]], [[1.0], [1.5]]))


def test_it_climbs_to_where_em_ends_in_fewer_steps(x: Any, start: jem.Mixture) -> None:
    plain = jem.fit(start, x, jem.EM(), tol=1e-10, max_steps=5000)
    fit = jem.fit(start, x, Parabolic(jem.EM()), tol=1e-10, max_steps=5000)
    trace = np.asarray(fit.trace)[: int(fit.steps)]
    assert (plain.status_name, fit.status_name) == ("converged", "converged")
    assert (np.diff(trace) >= 0).all()
    np.testing.assert_allclose(fit.log_likelihood, plain.log_likelihood, atol=1e-5)
    np.testing.assert_allclose(fit.model.components.mean, plain.model.components.mean, atol=1e-2)
    assert 3 * int(fit.steps) < int(plain.steps)  # one call of EM in each


def test_many_are_each_what_one_is(x: Any, start: jem.Mixture) -> None:
    xs, solver = jnp.stack([x, x[::-1] + 0.1]), Parabolic(jem.EM())
    fits = jem.fit_many(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start), xs, solver, tol=1e-8)
    for i, each in enumerate(xs):
        one = jem.fit(start, each, solver, tol=1e-8)
        assert fits.steps[i] == one.steps
        np.testing.assert_allclose(fits.log_likelihood[i], one.log_likelihood, rtol=1e-12)


def test_a_failure_is_seen(start: jem.Mixture) -> None:
    impossible = jem.Mixture([1.0, 0.0], jem.Poisson([0.0, 2.0]))
    fit = jem.fit(impossible, jnp.array([1.0, 2.0]), Parabolic(jem.EM()))
    assert not fit.converged
