"""Every kind of model, fitted over and over on two threads at once: it must never hang, nor change its answer.

XLA's batched LAPACK kernels wait, on the CPU, for the threads on which they run; two such calls at once wait for ever.
jaxem has none of them, and this test would show it. A hang is ended by pytest-timeout, in thread mode: no Python signal
gets through to a thread that waits inside XLA.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem

pytestmark = pytest.mark.slow

SECONDS = 60
ROWS, COMPONENTS, RESTARTS, STEPS = 120, 3, 2, 10
LANES = {"gaussian", "gaussian, wide", "product"}  # the kinds that also go through fit_many: it compiles longest


def kinds() -> dict[str, tuple[Any, np.ndarray]]:
    """Every kind of model, and rows for it: as narrow and as wide as the algebra has paths for."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(ROWS, 8)) + rng.integers(0, 3, size=(ROWS, 1)) * 4
    counts = rng.poisson(rng.choice([2.0, 9.0], size=ROWS)).astype(float)
    narrow = wide[:, :2]
    return {
        "gaussian": (jem.Gaussian, narrow),
        "gaussian, wide": (jem.Gaussian, wide),
        "diagonal": (jem.DiagonalGaussian, narrow),
        "diagonal, wide": (jem.DiagonalGaussian, np.hstack([wide, wide])),
        "spherical": (jem.SphericalGaussian, narrow),
        "tied": (jem.TiedGaussian, narrow),
        "tied, wide": (jem.TiedGaussian, wide),
        "bernoulli": (jem.Bernoulli, (narrow > 2).astype(float)),
        "binomial": (jem.sized(jem.Binomial, total_count=40), np.minimum(counts, 40)),
        "categorical": (jem.sized(jem.Categorical, categories=4), counts % 4),
        "poisson": (jem.Poisson, counts),
        "product": (
            jem.Product.of(jem.sized(jem.Gaussian, columns=2), jem.Poisson),
            np.column_stack([narrow, counts]),
        ),
    }


def job(family: Any, x: np.ndarray, many: bool) -> Callable[[int], np.ndarray]:
    """Start, fit, score, sample, differentiate, in one program; the seed makes it one piece of work or another."""
    x = jnp.asarray(x, jnp.result_type(float))

    @jax.jit
    def program(key: jax.Array, x: jax.Array) -> tuple[Any, list[jax.Array]]:
        starts = jem.Mixture.start(key, family, x, COMPONENTS, restarts=RESTARTS)
        fit = jem.fit(starts, x, max_steps=STEPS)
        slopes = jax.grad(lambda model: model.log_prob(x).sum())(fit.model)
        size = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(slopes))
        return starts, [fit.log_likelihood, size, fit.model.posterior(x).sum(), fit.model.sample(key, 5).sum()]

    def run(seed: int) -> np.ndarray:
        starts, numbers = program(jax.random.key(seed), x)
        if many:
            fits = jem.fit_many(starts, jnp.stack([x] * RESTARTS), max_steps=STEPS, lanes=2)
            numbers += list(fits.log_likelihood)
        return np.array(numbers)

    return run


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 360, method="thread")
def test_two_threads_fit_everything_for_a_minute() -> None:
    jobs = {name: job(*kind, many=name in LANES) for name, kind in kinds().items()}
    work = [(name, seed) for name in jobs for seed in range(2)]
    end = time.monotonic() + SECONDS
    first: dict[tuple[str, int], np.ndarray] = {}
    done: list[int] = []
    failures: list[BaseException] = []

    def thread(order: list[tuple[str, int]]) -> None:
        # Twice through all of it, compilation included; then over and over until the time is up.
        try:
            for count, (name, seed) in enumerate(itertools.cycle(order)):
                if failures or (count >= 2 * len(order) and time.monotonic() > end):
                    done.append(count)
                    return
                numbers = jobs[name](seed)
                assert np.isfinite(numbers[0]), name
                np.testing.assert_allclose(numbers, first.setdefault((name, seed), numbers), rtol=1e-4, err_msg=name)
        except BaseException as failure:
            failures.append(failure)

    # One goes forwards and one backwards, so that they meet in all combinations.
    threads = [threading.Thread(target=thread, args=(order,), daemon=True) for order in (work, work[::-1])]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failures:
        raise failures[0]
    assert len(done) == 2


@pytest.mark.parametrize("name", kinds())
def test_no_kind_of_model_calls_lapack(name: str) -> None:
    """Not even through something that factorises behind one's back, as `multivariate_normal` does."""
    family, rows = kinds()[name]
    x = jnp.asarray(rows, jnp.result_type(float))

    def everything(key: jax.Array, x: jax.Array) -> Any:
        starts = jem.Mixture.start(key, family, x, COMPONENTS, restarts=RESTARTS)
        fit = jem.fit(starts, x, max_steps=2)
        information = jax.hessian(lambda weights: jem.Mixture(weights, fit.model.components).log_prob(x).sum())
        return fit, fit.model.sample(key, 3), fit.model.decode(x), information(fit.model.weights)

    program = jax.jit(everything).lower(jax.random.key(0), x).as_text()
    assert "while" in program  # the loop of the fit is in it
    for word in ("lapack", "cholesky", "triangular_solve"):
        assert word not in program.lower()
