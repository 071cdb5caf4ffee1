"""Large mixtures: what a step does with many columns, members and rows.

With independent columns there are three ways: matrix products, member by member, or the sums as they stand.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.distributions.statistics import mahalanobis
from jaxem.solvers import em

pytestmark = pytest.mark.slow

ROWS, COLUMNS, MEMBERS = 40, 11, (2, 3)


def members(kind: Any, means: np.ndarray, dtype: Any) -> Any:
    """Members of either kind, half as wide as the unit Gaussian, or twice."""
    shape = means.shape if kind is jem.DiagonalGaussian else means.shape[:-1]
    return kind(means.astype(dtype), np.linspace(0.25, 4, np.prod(shape)).reshape(shape).astype(dtype))


def step(model: Any, x: Any, weight: Any) -> Any:
    """Densities, and the model after an M-step; traced anew, because how much is small is read while tracing."""

    def both(model: Any, x: Any, weight: Any) -> Any:
        log_prob, pullback = model.e_step(x)
        return log_prob, model.m_step(pullback(weight))

    return jax.jit(both)(model, x, weight)


@pytest.mark.parametrize("kind", [jem.DiagonalGaussian, jem.SphericalGaussian])
@pytest.mark.parametrize("apart", [1.0, 1e4])
def test_three_ways_one_answer(kind: Any, apart: float, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near each other the features are exact; far apart they would cancel, and every member goes by itself."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(*MEMBERS, COLUMNS)) * apart
    x = (means[0, rng.integers(3, size=ROWS)] + rng.normal(size=(ROWS, COLUMNS))).astype(dtype)
    weight = rng.uniform(size=(*MEMBERS, ROWS)).astype(dtype)
    model = members(kind, means, dtype)
    monkeypatch.setattr(mahalanobis, "SMALL", 0)
    found = step(model, x, weight)
    monkeypatch.setattr(mahalanobis, "SMALL", 1 << 30)
    plain = step(model, x, weight)
    fine = 1e-10 if dtype == jnp.float64 else 1e-4
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=fine, atol=fine)


def test_an_offset_moves_only_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, with features about the centre of the rows."""
    monkeypatch.setattr(mahalanobis, "SMALL", 0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, COLUMNS)).round(1).astype(np.float32)
    weight = np.ones((1, ROWS), np.float32)
    here, there = (
        step(members(jem.DiagonalGaussian, x[:1] + offset, "float32"), x + offset, weight)
        for offset in (np.float32(0), np.float32(1024))
    )
    np.testing.assert_allclose(there[0], here[0], rtol=2e-4)
    np.testing.assert_allclose(there[1].variance, here[1].variance, rtol=2e-4)


def test_large_steps_hold_no_members_by_columns_by_rows() -> None:
    """What a step of many members holds beside its data is of the size of the responsibilities."""
    n, d, k = 8_192, 32, 64
    x, weight = jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((k, n), jnp.float32)
    model = jax.eval_shape(lambda: jem.SphericalGaussian(jnp.zeros((k, d), jnp.float32), jnp.ones(k, jnp.float32)))
    needed = jax.jit(lambda *given: step(*given)).lower(model, x, weight).compile().memory_analysis()
    assert needed.temp_size_in_bytes < 4 * k * n * 4


def test_an_accelerator_takes_more_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as memory is meant for, whatever the model: every chunk costs launches."""
    x = jnp.zeros((1, 128), jnp.float32)
    small, large = (
        jem.Mixture(np.full(k, 1 / k, np.float32), jem.SphericalGaussian(np.ones((k, d), np.float32), np.ones(k, "f4")))
        for k, d in ((4, 2), (1_024, 128))
    )
    assert em.chunk_rows(small, x) == em.chunk_rows(large, x) == em.CHUNK
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows = em.chunk_rows(large, x)
    assert 1 << 15 <= rows <= 1 << 16
    assert rows * (1_024 + 128) * 4 < em.BYTES
    assert em.chunk_rows(small, x) > 100 * rows
