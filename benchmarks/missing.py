"""What missing cells cost: a step of EM with a fifth of them gone, against a step on complete rows."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem as jem
from jaxem.solvers.em import em_step

CASES = [(100_000, 8, 1), (1_000, 3, 3), (20_000, 6, 8), (20_000, 20, 2)]
STEPS = 10


def rows(n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, the same with a fifth of their cells missing, and their covariance."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(d, d))
    x = rng.normal(size=(n, d)) @ root.T
    return x, np.where(rng.random(x.shape) < 0.2, np.nan, x), root @ root.T


@partial(jax.jit, static_argnums=3)
def climbed(model: Any, x: Any, weight: Any, steps: int) -> Any:
    """The model after some steps, on data that is laid out once."""
    data, floor = model.expand(model.observe(x)), model.floor(x, weight)
    return jax.lax.fori_loop(0, steps, lambda _, now: em_step(now, data, weight, floor)[0], model)


def step(model: Any, x: Any) -> float:
    """Seconds for one step: what ten take, less what one takes."""
    weight, seconds = jnp.ones(len(x)), []
    for steps in (1, 1 + STEPS):
        jax.block_until_ready(climbed(model, x, weight, steps))
        tries = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(climbed(model, x, weight, steps))
            tries.append(time.perf_counter() - began)
        seconds.append(min(tries))
    return (seconds[1] - seconds[0]) / STEPS


def by_hand(model: Any, row: np.ndarray) -> float:
    """log p(what was seen of a row), by NumPy."""
    seen = ~np.isnan(row)
    difference = (row - np.asarray(model.mean))[seen]
    covariance = np.asarray(model.covariance)[np.ix_(seen, seen)]
    quadratic = difference @ np.linalg.solve(covariance, difference)
    return -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])


def everything() -> list[dict[str, Any]]:
    """Milliseconds of a step on complete and on incomplete rows."""
    measured = []
    for n, d, k in CASES:
        whole, gaps, covariance = rows(n, d)
        mean = np.random.default_rng(1).normal(size=(k, d))
        model = jem.Mixture(np.full(k, 1 / k), jem.Gaussian(mean, np.broadcast_to(covariance, (k, d, d))))
        one = jem.Gaussian(mean[0], covariance)
        off = np.abs(np.asarray(one.log_prob(gaps[:200])) - [by_hand(one, row) for row in gaps[:200]]).max()
        if off > 1e-8:
            raise SystemExit(f"missing: log-probabilities are off by {off:.1e}")
        incomplete = jem.incomplete(gaps)
        seconds = step(model, jnp.asarray(whole)), step(model, incomplete)
        sets = len(np.unique(np.isnan(gaps), axis=0))
        measured.append({"case": f"{n:,} x {d}, K = {k}", "patterns": sets, "ms": [1e3 * s for s in seconds]})
    return measured


if __name__ == "__main__":
    for found in everything():
        print(found)
