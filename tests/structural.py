"""Random structural time-series models: a level, a slope, seasons, cycles, of one or several series, with gaps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conditioning import Dense
from jaxem.chains import kalman
from jaxem.chains.kalman import System

Rng = np.random.Generator


def seasonal(period: int) -> np.ndarray:
    """Effects of which a whole period's sum is a noise: `[period - 1, period - 1]`."""
    transition = np.eye(period - 1, k=-1)
    transition[0] = -1
    return transition


def cycle(frequency: float, damping: float) -> np.ndarray:
    """A rotation that shrinks."""
    cos, sin = np.cos(frequency), np.sin(frequency)
    return damping * np.array([[cos, sin], [-sin, cos]])


TREND = np.array([[1.0, 1.0], [0.0, 1.0]])


def blocks(*parts: np.ndarray) -> np.ndarray:
    """A matrix with these on its diagonal."""
    whole, at = np.zeros((sum(map(len, parts)),) * 2), 0
    for part in parts:
        whole[at : at + len(part), at : at + len(part)] = part
        at += len(part)
    return whole


def variances(rng: Rng, count: int, zero: float = 0.4) -> np.ndarray:
    """From 1e-4 to 10; some are zero."""
    return np.where(rng.random(count) < zero, 0.0, 10 ** rng.uniform(-4, 1, count))


def seasons(rng: Rng, period: int, turned: bool = True) -> System:
    """One series: level, slope and season; only the first of the seasonal states has a noise."""
    size = period + 1
    moves = np.zeros(size)
    moves[:3] = variances(rng, 3)
    emission = np.zeros((1, size))
    emission[0, [0, 2]] = 1
    noise = np.diag(variances(rng, 1, 0.0))
    return system(rng, turned, blocks(TREND, seasonal(period)), np.diag(moves), emission, noise)


def several(rng: Rng, turned: bool = True) -> System:
    """Two series that share a trend and a cycle, with a level and a bias of their own; noises that may be singular."""
    root = rng.normal(size=(5, 3)) * np.sqrt(variances(rng, 5, 0.3))[:, None]
    emission = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1]]) + 0.5 * rng.normal(size=(2, 5))
    mixed = rng.normal(size=(2, 2)) * np.sqrt(variances(rng, 2, 0.0))[:, None]
    noise = mixed @ mixed.T if rng.random() < 0.7 else np.outer(mixed[:, 0], mixed[:, 0])
    turning = cycle(rng.uniform(0.2, 2.5), rng.uniform(0.7, 1.0))
    return system(rng, turned, blocks(TREND, turning, np.eye(1)), root @ root.T, emission, noise)


def system(
    rng: Rng, turned: bool, transition: np.ndarray, moves: np.ndarray, emission: np.ndarray, noise: np.ndarray
) -> System:
    """With an initial covariance from 1 to 1e7 in each state, or the same in all; or in `turned` directions."""
    size = len(transition)
    start = 10 ** rng.uniform(0, 7, size if rng.random() < 0.5 else 1) * np.ones(size)
    directions = np.linalg.qr(rng.normal(size=(size, size)))[0] if turned and rng.random() < 0.3 else np.eye(size)
    covariance = (directions * start) @ directions.T
    return System(
        rng.normal(size=size) * (rng.random() < 0.5),
        (covariance + covariance.T) / 2,
        transition,
        moves,
        emission,
        rng.normal(size=len(emission)),
        noise,
    )


def data(rng: Rng, model: System, steps: int) -> np.ndarray:
    """Drawn from the model, though not its wide start; with steps and cells that were not seen: `[steps, D]`."""
    size, hidden = np.shape(model.emission)
    root = [np.linalg.svd(np.asarray(noise)) for noise in (model.transition_noise, model.emission_noise)]
    moves, noise = ((u * np.sqrt(s)) @ rng.normal(size=(len(s), steps)) for u, s, _ in root)
    state, x = 5 * rng.normal(size=hidden), np.zeros((steps, size))
    for t in range(steps):
        x[t] = model.emission @ state + model.emission_bias + noise[:, t]
        state = model.transition @ state + moves[:, t]
    x[rng.random(steps) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


@jax.jit
@jax.vmap
def everything(system: Any, values: Any, length: Any) -> Any:
    """Log-likelihood, expected statistics and states, and slopes; of `length` steps."""
    x = kalman.observed(values[None], jnp.ones((1, len(values)), bool), length[None])
    value, kept, lost = kalman.forward(system, x)
    expected, states = kalman.backward(system, x, kept, lost)
    slope = jax.grad(lambda system: kalman.log_normalizer(system, x)[0])(system)
    return value[0], jax.tree.map(lambda leaf: leaf[..., 0], (expected, states)), slope


def off(found: Any, truth: np.ndarray, scale: np.ndarray) -> float:
    """The largest error, in units of `scale`; what has none must be rounding beside the others."""
    none = scale <= 1e-12 * scale.max()
    return float(np.max(np.abs(np.asarray(found, float) - truth) / np.where(none, 1e-6 * scale.max() + 1e-300, scale)))


def errors(one: Dense, value: Any, expected: Any, states: Any, slope: Any) -> dict[str, float]:
    """The largest errors, each relative to its natural scale.

    Of means and covariances, the standard deviations given the data (and the size of the mean); of sums, the roots of
    the expected squares; of slopes, the root of the sum of squares of what goes into them.
    """
    spread = np.sqrt(np.einsum("tii->ti", one.covariance))
    found = {
        "value": off(value, np.asarray(one.log_likelihood), np.maximum(1, np.abs(one.log_likelihood))),
        "mean": off(states.mean, one.mean, np.abs(one.mean).max(0) + spread.max(0) + 0 * one.mean),
        "covariance": off(states.covariance, one.covariance, spread[:, :, None] * spread[:, None]),
    }
    for name in ("moved", "seen"):
        truth = getattr(one, name)
        size = np.sqrt(np.diag(truth))
        found[name] = off(getattr(expected, name), truth, np.outer(size, size))
    for name, truth in one.score.items():
        found[name] = off(getattr(slope, name), truth, one.scale[name])
    return found


def tells(system: Any, x: np.ndarray) -> bool:
    """Do the data tell all of a diffuse start?"""
    powers, rows = np.eye(len(system.transition)), []
    for cells in x:
        rows.append((system.emission @ powers)[~np.isnan(cells)])
        powers = system.transition @ powers
    flat = np.flatnonzero(system.diffuse)
    return bool(np.linalg.matrix_rank(np.concatenate(rows)[:, flat]) == len(flat))
