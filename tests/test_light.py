"""Light programs for small work: as few as said, equal up to rounding, and plain `jit` wherever they are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.core.compilation import SMALL, Program, program

COMPILE = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compiled() -> Iterator[list[str]]:
    """Names of the programs that are compiled inside."""
    programs: list[str] = []

    def listen(event: str, duration: float, **told: Any) -> None:
        if event == COMPILE:
            programs.append(told.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def double(**options: Any) -> Program:
    return program(lambda x: x.size, **options)(lambda x: 2 * jnp.sin(x))


def test_small_work_is_light_and_large_or_repeated_work_is_not() -> None:
    small, large = double(often=10.0), program(lambda x: 2 * SMALL)(lambda x: 2 * jnp.sin(x))
    x, seen = jnp.arange(4.0), []
    for one, names in (small, ("light", "optimised")), (large, ("never", "large")):
        for attribute, name in zip(("light", "full"), names, strict=True):
            jitted = getattr(one, attribute)
            setattr(one, attribute, lambda x, name=name, jitted=jitted: (seen.append(name), jitted(x))[1])
    for _ in range(3):
        np.testing.assert_allclose(small(x), large(x), rtol=1e-15)
    assert seen == ["light", "large", "light", "large", "optimised", "large"]


def test_an_unknown_option_is_done_without() -> None:
    unknown = double(light={"xla_made_up_name": 3})
    np.testing.assert_allclose(unknown(jnp.ones(3)), 2 * np.sin(np.ones(3)), rtol=1e-15)


def test_inside_another_trace_it_is_plain_jit() -> None:
    one, x = double(), jnp.ones(3)
    wanted = 2 * np.sin(np.ones(3))
    np.testing.assert_allclose(jax.jit(one)(x), wanted, rtol=1e-15)
    np.testing.assert_allclose(jax.jit(lambda: one(x))(), wanted, rtol=1e-15)  # no argument tells of the trace
    np.testing.assert_allclose(jax.vmap(one)(x), wanted, rtol=1e-15)
    np.testing.assert_allclose(jax.grad(lambda y: one(y).sum())(x), 2 * np.cos(np.ones(3)), rtol=1e-15)
    np.testing.assert_allclose(jax.jacfwd(one)(x).diagonal(), 2 * np.cos(np.ones(3)), rtol=1e-15)


@pytest.mark.slow
def test_a_mixture_is_four_programs_from_start_to_posterior() -> None:
    rng, key = np.random.default_rng(0), jax.random.key(1)
    x = rng.normal(size=(83, 2)) + 5 * np.repeat([[0.0], [1.0]], [40, 43], 0)
    with compiled() as programs:
        start = jem.Mixture.start(key, jem.Gaussian, x, 2, restarts=4)
        jem.fit(start, x).model.posterior(x)
    assert len(programs) <= 4, programs


@pytest.mark.slow
def test_a_hidden_markov_model_is_six_programs_from_start_to_path() -> None:
    rng, key = np.random.default_rng(0), jax.random.key(1)
    x = [rng.normal(size=(length, 1)) + 5 * (np.arange(length) // 9 % 2)[:, None] for length in (29, 37)]
    x[0][3] = np.nan
    with compiled() as programs:
        start = jem.HMM.start(key, jem.Gaussian, x, 2, restarts=4)
        fit = jem.fit(start, x)
        path, likely = fit.model.decode(x), fit.model.posterior(x)
    assert len(programs) <= 6, programs
    assert (path == likely.argmax(-1)).mean() > 0.9
