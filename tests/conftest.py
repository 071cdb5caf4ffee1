"""What the tests share."""

from __future__ import annotations

import hypothesis
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
