"""What the tests share."""

from __future__ import annotations

import gc
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

hypothesis.settings.register_profile(
    "jaxem",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.load_profile("jaxem")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> jnp.dtype:
    return jnp.dtype(request.param)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes a minute; it goes first, so that other processes work beside it")
    config.addinivalue_line("markers", "slow: left to `make slow`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of garbage need not look through it again and again."""
    gc.freeze()


_count = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Compiled programs hold seven memory maps each, of some 65,000 in a process, and memory: let them go at times."""
    if next(_count) % 200 == 0:
        jax.clear_caches()
        gc.collect()
