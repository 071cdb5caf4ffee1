"""Light programs for small work: as few as said, equal up to rounding, and plain `jit` wherever they are refused."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.core.compilation import SMALL, Program, program

fitting = importlib.import_module("jaxem.fitting.fit")

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


def lengths(fits: Any, of: Any) -> int:
    """How many programs of `fit` are compiled for all of these."""
    with compiled() as programs:
        for each in of:
            fits(each)
    return sum("_fit" in name for name in programs)


@pytest.mark.slow
def test_twenty_lengths_are_six_programs_and_limits_and_restarts_are_none() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=10_000) + 4 * (np.arange(10_000) % 2)
    means = rng.normal(size=(4, 2))

    def fitted(n: int, restarts: int = 4, **limits: Any) -> jem.Fit:
        start = jem.Mixture(
            np.full((restarts, 2), 0.5), jem.SphericalGaussian(means[:restarts, :, None], np.ones((restarts, 2)))
        )
        return jem.fit(start, x[:n, None], **{"max_steps": 5, **limits})

    assert lengths(fitted, np.linspace(100, 10_000, 20).astype(int)) <= 6
    assert lengths(lambda limits: fitted(100, **limits), [{"max_steps": 900}, {"tol": 1e-3}, {"restarts": 3}]) == 0
    assert fitted(100, max_steps=7).trace.shape == (8,)


@pytest.mark.slow
def test_a_fresh_transformation_is_no_other_program() -> None:
    x, start = np.arange(12.0), jem.Poisson(1.0)
    assert lengths(lambda rate: jem.fit(start, x, optax.adam(rate), max_steps=3), [0.05, 0.05, 0.1]) == 2


CASES: dict[str, Any] = {
    "gaussian": (jem.Gaussian, 2, {}),
    "gaps": (jem.Gaussian, 2, {"gaps": True}),
    "prior": (jem.DiagonalGaussian, 2, {"prior": jem.priors.Weak()}),
    "student": (jem.StudentT, 2, {"weight": True}),
    "weibull": (jem.Weibull, 0, {"labels": True}),
    "squarem": (jem.Gaussian, 2, {"solver": jem.SQUAREM(jem.EM())}),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", CASES)
def test_a_padded_fit_is_that_of_the_rows(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, columns, how = CASES[which]
    rng, n = np.random.default_rng(1), 61
    x = np.exp(rng.normal(size=(n, columns or 1)) / 2 + 2 * (np.arange(n) % 2)[:, None])
    if how.get("gaps"):
        x[::7, 0] = np.nan
    given = {"prior": how.get("prior"), "tol": 1e-9, "solver": how.get("solver", jem.EM())}
    given |= {"weight": rng.uniform(0.5, 2, n)} if how.get("weight") else {}
    given |= {"labels": np.where(np.arange(n) % 5, -1, np.arange(n) % 2)} if how.get("labels") else {}
    x = x if columns else x[:, 0]
    start = jem.Mixture.start(jax.random.key(0), family, x, 2, restarts=3)
    padded = jem.fit(start, x, **given)
    monkeypatch.setattr(fitting, "_fit_padded", lambda *given: fitting._fit.full(*given[:-1], trace=given[-1]))
    same(padded, jem.fit(start, x, **given))


@pytest.mark.slow
def test_padded_sequences_are_those_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x = [rng.normal(size=length) + 3 * (np.arange(length) // 7 % 2) for length in (41, 17, 30)]
    x[1][3] = np.nan
    start = jem.HMM.start(jax.random.key(0), jem.sized(jem.SphericalGaussian), [each[:, None] for each in x], 2)
    padded = jem.fit(start, [each[:, None] for each in x])
    monkeypatch.setattr(fitting, "_fit_padded", lambda *given: fitting._fit.full(*given[:-1], trace=given[-1]))
    same(padded, jem.fit(start, [each[:, None] for each in x]))


def same(padded: jem.Fit, plain: jem.Fit) -> None:
    assert int(padded.status) == int(plain.status)
    np.testing.assert_allclose(padded.objective, plain.objective, rtol=1e-9)
    for one, other in zip(jax.tree.leaves(padded.model), jax.tree.leaves(plain.model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert padded.trace.shape == plain.trace.shape
