"""Structural time-series models against dense conditioning: smoother, expected statistics, gradient; and EM climbs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from conditioning import dense
from jaxem.core.pytree import replace
from structural import data, errors, everything, seasons, several, tells

pytestmark = pytest.mark.slow

KINDS: dict[str, Any] = {
    "quarters": (lambda rng, turned: seasons(rng, 4, turned), 20),
    "months": (lambda rng, turned: seasons(rng, 12, turned), 30),
    "several": (several, 16),
}


def drawn(kind: str, count: int, dtype: Any, diffuse: bool) -> tuple[list[Any], list[np.ndarray]]:
    make, steps = KINDS[kind]
    rng = np.random.default_rng(0)
    # A covariance whose directions are mixed and differ by more than the type resolves does not exist in it.
    models = [make(rng, np.dtype(dtype).itemsize == 8) for _ in range(count)]
    xs = [data(rng, model, steps).astype(dtype) for model in models]
    if diffuse:  # all of it, or the trend alone
        whole = np.ones(len(models[0].initial_mean), bool)
        mask = tuple((whole if kind == "months" else np.arange(len(whole)) < 2).tolist())
        models = [replace(model, diffuse=mask) for model in models]
    return [jax.tree.map(lambda leaf: np.asarray(leaf, dtype), model) for model in models], xs


def answers(models: list[Any], x: np.ndarray) -> Any:
    """What the library says of each model and its data `[B, T, D]`."""
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *models)
    return jax.tree.map(np.asarray, everything(stacked, jnp.asarray(x), jnp.full(len(x), x.shape[1], jnp.int32)))


def check(kind: str, count: int, dtype: Any, diffuse: bool) -> None:
    models, xs = drawn(kind, count, dtype, diffuse)
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *models)
    out = jax.tree.map(
        np.asarray, everything(stacked, jnp.asarray(np.stack(xs)), jnp.full(count, len(xs[0]), jnp.int32))
    )
    tolerance = 1e-8 if np.dtype(dtype).itemsize == 8 else 1e-3
    for i, (model, x) in enumerate(zip(models, xs, strict=True)):
        value, both, slope = jax.tree.map(lambda leaf, i=i: leaf[i], out)
        if not tells(model, x):  # a month that was never seen
            assert np.isinf(both[1].covariance).any(), i
            assert np.isfinite(value), i
            continue
        truth = dense(model, x.astype(float), model.diffuse)
        found = errors(truth, value, *both, slope)
        assert max(found.values()) < tolerance, (i, {name: error for name, error in found.items() if error > tolerance})


def test_ten_models_are_dense_conditioning() -> None:
    check("quarters", 10, np.float64, diffuse=False)


@pytest.mark.parametrize("diffuse", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "count"), [("quarters", 80), ("months", 60), ("several", 80)])
def test_hundreds_of_models_are_dense_conditioning(kind: str, count: int, dtype: Any, diffuse: bool) -> None:
    check(kind, count, dtype, diffuse)


def test_slopes_at_nearly_singular_noises() -> None:
    """That by the emission noise was -122 where differences said +1, whether the seasons had a noise or hardly any."""
    rng = np.random.default_rng(5)
    one = seasons(rng, 4, turned=False)
    one = replace(one, initial_covariance=100 * np.eye(5), emission_noise=np.eye(1))
    noises = [(small, seen) for small in (0.0, 1e-16, 1e-12, 1e-8, 1e-4) for seen in (1.0, 1e-6)]
    models = [
        replace(one, transition_noise=np.diag([0.1, small, 0.1, small, small]), emission_noise=np.array([[seen]]))
        for small, seen in noises
    ]
    x = np.stack([data(rng, model, 40) for model in models])
    value, both, slope = answers(models, x)

    def by_differences(model: Any, x: np.ndarray) -> float:
        step = 1e-3 * model.emission_noise
        above, below = (dense(replace(model, emission_noise=model.emission_noise + h), x) for h in (step, -step))
        return float((above.log_likelihood - below.log_likelihood) / (2 * step.item()))

    for i, (model, rows) in enumerate(zip(models, x, strict=True)):
        its = jax.tree.map(lambda leaf, i=i: leaf[i], (value, both, slope))
        off = errors(dense(model, rows), its[0], *its[1], its[2])
        assert max(off.values()) < 1e-8, (noises[i], off)
        np.testing.assert_allclose(slope.emission_noise[i, 0, 0], by_differences(model, rows), rtol=1e-4, atol=1e-6)


NAMES = ("initial_mean", "initial_covariance", "transition", "transition_noise", "emission", "emission_bias")


def fitted(kind: str, count: int, diffuse: bool, held: tuple[str, ...]) -> Any:
    models, xs = drawn(kind, count, np.float64, diffuse)
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *models)
    leaves = (getattr(stacked, name) for name in (*NAMES, "emission_noise"))
    start = jem.LinearGaussianSSM(*leaves, held=held, diffuse=stacked.diffuse)
    sequences = [jem.Sequences.from_list([x]) for x in xs]
    return jem.fit_many(start, sequences, max_steps=25, tol=0.0)


@pytest.mark.parametrize("diffuse", [False, True])
@pytest.mark.parametrize(("kind", "count"), [("quarters", 80), ("several", 80)])
def test_em_climbs_with_only_the_noises_free(kind: str, count: int, diffuse: bool) -> None:
    held = ("initial_mean", "initial_covariance", "transition", "emission", "emission_bias")
    fits = fitted(kind, count, diffuse, held)
    assert not {"log_likelihood_decreased", "nonfinite"} & set(fits.status_name)


def test_a_quarterly_model_climbs() -> None:
    """Five of six such fell by up to 4 nats in one step, when roots were taken of differences."""
    transition = [[1.0, 0, 0, 0], [0, -1, -1, -1], [0, 1, 0, 0], [0, 0, 1, 0]]
    held = ("initial_mean", "initial_covariance", "transition", "emission", "emission_bias")
    one = jem.LinearGaussianSSM(
        np.zeros(4),
        100 * np.eye(4),
        transition,
        np.diag([0.1, 0.1, 0, 0]),
        [[1.0, 1, 0, 0]],
        [0.0],
        [[1.0]],
        held=held,
    )
    x = one.sample(jax.random.key(1), 1, 80)[0]
    trace = np.asarray(jem.fit(one, x, max_steps=60, tol=0.0).trace)
    assert (np.diff(trace[np.isfinite(trace)]) > -1e-10).all()


@pytest.mark.parametrize("diffuse", [(), (True, True, False, False, False)])
def test_gaps_are_filled_as_dense_conditioning_says(diffuse: tuple[bool, ...]) -> None:
    """The means, and of draws the mean and the covariance of all cells together."""
    rng = np.random.default_rng(3)
    system = several(rng)
    system = replace(system, initial_covariance=np.diag([4.0, 1.0, 9.0, 1.0, 2.0]), diffuse=diffuse)
    model = jem.LinearGaussianSSM(*(getattr(system, name) for name in (*NAMES, "emission_noise")), diffuse=diffuse)
    x = data(rng, system, 7)
    x[2], x[4, 1] = np.nan, np.nan
    truth = dense(system, x, diffuse)
    filled = np.asarray(model.impute(x).values[0])
    np.testing.assert_array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])
    np.testing.assert_allclose(filled, truth.complete, rtol=1e-9, atol=1e-9)
    n, covariance = 20_000, truth.complete_root @ truth.complete_root.T
    many = model.impute(jem.Sequences(np.tile(x, (n, 1, 1)), [len(x)] * n), jax.random.key(0)).values
    off = np.asarray(many).reshape(n, -1) - truth.complete.ravel()
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(off.mean(0)) <= 5 * spread / np.sqrt(n) + 1e-9).all()
    error = np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / n)
    assert (np.abs(off.T @ off / n - covariance) <= 5 * error + 1e-9).all()
