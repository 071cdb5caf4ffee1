"""Nothing is compiled twice: not for a second fit, another tolerance, or another number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from families import FAMILIES, Example

pytestmark = pytest.mark.slow

COMPILE = "/jax/core/compile/backend_compile_duration"
counts: list[str] = []


def _count(event: str, duration: float, **_: object) -> None:
    if event == COMPILE:
        counts.append(event)


jax.monitoring.register_event_duration_secs_listener(_count)


@contextlib.contextmanager
def compilations() -> Iterator[list[int]]:
    """How many programs were compiled (or fetched from the cache on disk) inside."""
    found = [0]
    before = len(counts)
    yield found
    found[0] = len(counts) - before


def test_the_counter_counts() -> None:
    with compilations() as found:
        jax.jit(lambda x: x * 3 + 17)(jnp.ones(23))
    assert found[0] >= 1


def data(example: Example, seed: int) -> tuple[jem.Mixture, np.ndarray, np.ndarray]:
    return (
        example.mixture(2, seed),
        np.asarray(example.rows(19, seed=seed)),
        np.random.default_rng(seed).uniform(1, 2, 19),
    )


def run(model: jem.Mixture, x: np.ndarray, weight: np.ndarray, tol: float) -> None:
    jax.block_until_ready(jem.fit(model, x, weight=weight, tol=tol, max_steps=30).log_likelihood)


def test_a_second_fit_compiles_nothing() -> None:
    example = FAMILIES[0]
    first, second, third = (data(example, seed) for seed in range(3))
    run(*first, tol=1e-3)
    with compilations() as found:
        run(*second, tol=1e-3)
        run(*third, tol=1e-7)
    assert found[0] == 0


def test_a_second_start_compiles_nothing() -> None:
    example = FAMILIES[0]
    xs = [np.asarray(example.rows(19, seed=seed)) for seed in range(2)]
    keys = list(jax.random.split(jax.random.key(0), 2))
    jem.Mixture.start(keys[0], example.family, xs[0], 2, restarts=2)
    with compilations() as found:
        jem.Mixture.start(keys[1], example.family, xs[1], 2, restarts=2)
    assert found[0] == 0


def test_a_second_fit_of_many_compiles_nothing() -> None:
    example = FAMILIES[0]

    def problems(seed: int) -> tuple[jem.Mixture, np.ndarray]:
        models = [example.mixture(2, seed + i) for i in range(5)]
        xs = np.stack([np.asarray(example.rows(19, seed=seed + i)) for i in range(5)])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models), xs

    first, second = problems(0), problems(7)
    jem.fit_many(*first, lanes=2, max_steps=20)
    with compilations() as found:
        jem.fit_many(*second, lanes=2, max_steps=20, tol=1e-4)
    assert found[0] == 0
