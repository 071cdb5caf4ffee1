"""One large mixture: 1,000,000 rows, D = 16, K = 32, full covariance; each contender in a process of its own.

    python benchmarks/large.py jaxem|sklearn|limit

prints one line of JSON. A process of its own, because the peak of its memory is what is asked for.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROWS, COLUMNS, COMPONENTS, STEPS = 1_000_000, 16, 32, 20


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, starting means and the one starting variance, made in pieces so that making them costs no memory."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(COMPONENTS, COLUMNS)) * 0.8
    # Aligned as JAX wants it, so that the array on the device is this one and not a copy.
    buffer = np.empty(ROWS * COLUMNS * 8 + 64, np.uint8)
    x = buffer[-buffer.ctypes.data % 64 :][: ROWS * COLUMNS * 8].view(np.float64).reshape(ROWS, COLUMNS)
    for piece in np.split(x, 100):
        piece[:] = rng.normal(size=piece.shape)
        piece += centres[rng.integers(COMPONENTS, size=len(piece))]
    return x, centres + rng.normal(size=centres.shape), np.full((), 2.0)


def peak() -> float:
    """The largest this process has been, in MB; `getrusage` would count the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run_jaxem() -> dict[str, Any]:
    """20 EM steps of jaxem."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jaxem as jem

    x, means, variance = data()
    rows = jax.device_put(x)
    before = peak()
    eye = np.broadcast_to(np.eye(COLUMNS) * variance, (COMPONENTS, COLUMNS, COLUMNS))
    start = jem.Mixture(np.full(COMPONENTS, 1 / COMPONENTS), jem.Gaussian(means, eye))

    def run(steps: int) -> tuple[Any, float]:
        begin = time.perf_counter()
        fit = jax.block_until_ready(jem.fit(start, rows, tol=0.0, max_steps=steps))
        return fit, time.perf_counter() - begin

    _, cold = run(STEPS)
    fit, warm = run(STEPS)
    return {
        "seconds": warm,
        "compile": cold - warm,
        "log_likelihood": float(fit.log_likelihood),
        "steps": int(fit.steps),
        "peak": peak(),
        "before": before,
        "data": x.nbytes / 2**20,
    }


def run_sklearn() -> dict[str, Any]:
    """20 EM steps of scikit-learn, on all cores of its BLAS."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x, means, variance = data()
    before = peak()
    precisions = np.broadcast_to(np.eye(COLUMNS) / variance, (COMPONENTS, COLUMNS, COLUMNS))
    peer = GaussianMixture(
        COMPONENTS,
        max_iter=STEPS,
        tol=0,
        reg_covar=0,
        weights_init=np.full(COMPONENTS, 1 / COMPONENTS),
        means_init=means,
        precisions_init=precisions,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        peer.fit(x)
        seconds = time.perf_counter() - begin
    top = peak()
    log_likelihood = sum(peer.score_samples(piece).sum() for piece in np.split(x, 100))
    return {
        "seconds": seconds,
        "compile": None,
        "log_likelihood": float(log_likelihood),
        "steps": int(peer.n_iter_),
        "peak": top,
        "before": before,
        "data": x.nbytes / 2**20,
    }


def run_limit() -> dict[str, Any]:
    """What a step cannot do without: its two matrix products and one exp over rows x components, chunk by chunk."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    import jaxem as jem
    from jaxem.solvers.em import CHUNK, expectation

    x, means, variance = data()
    features = COLUMNS * (COLUMNS + 3) // 2
    left = jnp.asarray(np.random.default_rng(1).normal(size=(COMPONENTS, features)))
    right = jnp.asarray(np.random.default_rng(2).normal(size=(features, CHUNK)))
    chunks = ROWS // CHUNK

    @jax.jit
    def limit(left: jax.Array, right: jax.Array) -> jax.Array:
        def chunk(_: Any, carry: jax.Array) -> jax.Array:
            logits = jnp.matmul(left + carry * 1e-30, right, precision="highest")
            mass = jnp.exp(logits * 1e-3)
            return carry + jnp.matmul(mass, right.T, precision="highest")

        return jax.lax.fori_loop(0, chunks, chunk, jnp.zeros_like(left))

    eye = np.broadcast_to(np.eye(COLUMNS) * variance, (COMPONENTS, COLUMNS, COLUMNS))
    model = jem.Mixture(np.full(COMPONENTS, 1 / COMPONENTS), jem.Gaussian(means, eye))
    rows, weight = jnp.asarray(x), jnp.ones(ROWS)
    step = jax.jit(lambda model, x, weight: model.m_step(expectation(model, x, weight)[1]))

    def seconds(function: Any, *args: Any) -> float:
        jax.block_until_ready(function(*args))
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            jax.block_until_ready(function(*args))
            times.append(time.perf_counter() - begin)
        return float(np.median(times))

    return {"step": seconds(step, model, rows, weight), "limit": seconds(limit, left, right)}


if __name__ == "__main__":
    print(json.dumps({"jaxem": run_jaxem, "sklearn": run_sklearn, "limit": run_limit}[sys.argv[1]]()))
