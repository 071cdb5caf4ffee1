"""What the tests share."""

from __future__ import annotations

import gc
import itertools
import zlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from families import FAMILIES, GROUPED, NESTED, Example

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
        if is_spared(item):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of garbage need not look through it again and again."""
    gc.freeze()


def is_spared(item: pytest.Item) -> bool:
    """What `make test` leaves to `make slow` of what is crossed with each other."""
    given = item.callspec.params if hasattr(item, "callspec") else {}  # type: ignore[attr-defined]
    turns = 3 if isinstance(given.get("example"), Example) else 2 if "dtype" in given and len(given) > 2 else 1
    return zlib.crc32(item.name.encode()) % turns > 0 or (
        isinstance(given.get("example"), Example) and given["example"] not in FAMILIES + NESTED + GROUPED
    )


_count = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Compiled programs hold seven memory maps each, of some 65,000 in a process, and memory: let them go at times."""
    if next(_count) % 200 == 0:
        jax.clear_caches()
        gc.collect()
