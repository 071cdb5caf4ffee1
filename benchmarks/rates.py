"""Who wins where: solvers on mixtures and hidden Markov models whose components overlap from not at all to heavily."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxem as jem

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "rates.png"
SOLVERS = {
    "EM": jem.EM(),
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Anderson": jem.Anderson(jem.EM()),
    "L-BFGS": jem.LBFGS(),
    "Newton": jem.Newton(),
    "Adam 0.05": jem.Gradient(optax.adam(0.05)),
    "gradient 0.5": jem.Gradient(optax.sgd(0.5)),
}
SEEDS = 4

Problem = tuple[Any, Any]


def plane(apart: float, key: Any) -> Problem:
    """Two Gaussians in the plane, so many standard deviations apart."""
    truth = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [apart, 0.0]], jnp.stack([jnp.eye(2)] * 2)))
    x = truth.sample(key, 500)
    return jem.Mixture.start(key, jem.Gaussian, x, 2), x


def square(apart: float, key: Any) -> Problem:
    """Four balls on the corners of a square."""
    corners = apart * jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    x = jem.Mixture([0.25] * 4, jem.SphericalGaussian(corners, jnp.ones(4))).sample(key, 500)
    return jem.Mixture.start(key, jem.SphericalGaussian, x, 4), x


def counts(apart: float, key: Any) -> Problem:
    """Two Poissons, with roots of their rates half so far apart."""
    x = jem.Mixture([0.5, 0.5], jem.Poisson([4.0, (2 + apart / 2) ** 2])).sample(key, 500)
    return jem.Mixture.start(key, jem.Poisson, x, 2), x


def chain(apart: float, key: Any) -> Problem:
    """A chain of two states that stays where it is nine times in ten."""
    emission = jem.DiagonalGaussian([[0.0], [apart]], jnp.ones((2, 1)))
    x = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], emission).sample(key, 10, 50)
    sequences = jem.Sequences(x, np.full(10, 50))
    return jem.HMM.start(key, jem.DiagonalGaussian, sequences, 2), sequences


def problems() -> list[Problem]:
    """Seven distances, four draws of each, of every kind."""
    return [
        kind(float(apart), jax.random.key(seed))
        for kind in (plane, square, counts, chain)
        for apart in np.linspace(1.5, 6.0, 7)
        for seed in range(SEEDS)
    ]


def race() -> jem.Races:
    """All solvers on all problems; the picture goes where the documentation shows it."""
    starts, xs = zip(*problems(), strict=True)
    races = jem.compare_many(list(starts), list(xs), SOLVERS, max_steps=5000)
    races.plot().savefig(PICTURE, dpi=100)
    return races


def by_rate(races: jem.Races, edges: tuple[float, ...] = (0.5, 0.9, 0.98)) -> list[dict[str, Any]]:
    """For bands of EM's own rate: how often each solver took the fewest passes, and how many it took."""
    cost, bands = races.cost("passes"), np.digitize(races.rates, edges)
    bounds = ["0", *map(str, edges), "1"]
    rows = []
    for band in range(len(edges) + 1):
        mine = cost[bands == band]
        least = mine.min(axis=1, keepdims=True)
        rows.append(
            {
                "rate": f"{bounds[band]} to {bounds[band + 1]}",
                "problems": len(mine),
                "wins": ((mine == least) & np.isfinite(mine)).sum(axis=0),
                "median": np.median(mine, axis=0) if len(mine) else np.full(mine.shape[1], np.nan),
            }
        )
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    found = race()
    sys.stdout.write(f"{found.table()}\n{by_rate(found)}\n")
