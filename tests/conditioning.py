"""What the data say of a state-space model as one joint Gaussian of everything, conditioned densely.

All noises of a sequence are one vector of independent units, of which states and data are sums: `x = mean + root
units`. One orthogonal factorisation of that root, LAPACK's, says what the data tell of the units and what they do
not. There is no recursion, and no loss of digits by large covariances, as none is subtracted: with an initial
covariance of 1e7 it is right to 1e-12 (against plain conditioning in 60 digits).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular


class Dense(NamedTuple):
    """Everything in float64, given one sequence; names as in `jaxem.chains.kalman`.

    Attributes:
        log_likelihood: in nats; over diffuse states the density is flat.
        mean, covariance: `[T, H]`, `[T, H, H]` of the states.
        complete: `[T, D]`, the mean of what is seen.
        complete_root: `[T D, r]`, a root of its covariance.
        moved, seen: as in `kalman.Expected`.
        score: of each parameter.
        scale: what goes into each score, as a root of sums of squares.
    """

    log_likelihood: float
    mean: np.ndarray
    covariance: np.ndarray
    complete: np.ndarray
    complete_root: np.ndarray
    moved: np.ndarray
    seen: np.ndarray
    score: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]


def root(covariance: np.ndarray) -> np.ndarray:
    """Lower triangular, of a covariance that may be singular."""
    rest, factor = np.array(covariance, float), np.zeros_like(covariance, float)
    for i in range(len(rest)):
        if rest[i, i] > 1e-14 * covariance[i, i]:
            factor[:, i] = rest[:, i] / np.sqrt(rest[i, i])
            rest = rest - np.outer(factor[:, i], factor[:, i])
    return np.tril(factor)


def dense(system: Any, x: np.ndarray, diffuse: tuple[bool, ...] = ()) -> Dense:
    """All that is known, given `x [T, D]` with NaN where nothing was seen."""
    m, p, a, q, c, d, r = (
        np.asarray(getattr(system, name), float)
        for name in (
            "initial_mean",
            "initial_covariance",
            "transition",
            "transition_noise",
            "emission",
            "emission_bias",
            "emission_noise",
        )
    )
    steps, size, hidden = len(x), len(d), len(m)
    flat = np.flatnonzero(diffuse)
    start = np.array(p)
    start[flat], start[:, flat] = 0, 0
    # Any spread of a flat start will do; without noise in the data there must be one.
    start[flat, flat] = 0 if (np.diag(r) > 0).all() else 1
    powers = [np.eye(hidden)]
    for _ in range(1, steps):
        powers.append(a @ powers[-1])
    moves = np.zeros((steps, hidden, steps, hidden))
    for t in range(steps):
        for s in range(t + 1):
            moves[t, :, s] = powers[t - s]
    moves = moves.reshape(steps * hidden, steps * hidden)
    unit = np.kron(np.eye(steps), root(q))
    unit[:hidden, :hidden] = root(start)
    emission, noise = np.kron(np.eye(steps), c), np.kron(np.eye(steps), root(r))
    mean = moves[:, :hidden] @ m
    states = np.hstack([moves @ unit, np.zeros((steps * hidden, steps * size))])  # by all units
    data = np.hstack([emission @ moves @ unit, noise])
    known = np.flatnonzero(~np.isnan(x.ravel()))
    off = (x.ravel() - emission @ mean - np.tile(d, steps))[known]

    orthogonal, factor = np.linalg.qr(data[known].T, mode="complete")
    told, free, factor = orthogonal[:, : len(known)], orthogonal[:, len(known) :], factor[: len(known)].T
    by_data = solve_triangular(factor, off[:, None], lower=True)
    value = -0.5 * len(known) * np.log(2 * np.pi) - np.log(np.abs(np.diag(factor))).sum()
    # Paths: the data's, and those of a root of what is left unknown of a flat start.
    path = np.zeros((steps * hidden, 0))
    if len(flat):
        unit_path = moves[:, :hidden][:, flat]
        moved = -solve_triangular(factor, (emission @ unit_path)[known], lower=True)
        q_, r_ = np.linalg.qr(moved)
        inverse = solve_triangular(r_, np.eye(len(flat)))
        along = -q_.T @ by_data
        by_data, moved = by_data + q_ @ along, q_
        path = unit_path @ inverse
        mean, by_data = mean + (path @ along)[:, 0], np.hstack([by_data, moved])
        value += 0.5 * len(flat) * np.log(2 * np.pi) - np.log(np.abs(np.diag(r_))).sum()
    value -= 0.5 * (by_data[:, 0] ** 2).sum()
    units = told @ by_data  # their mean, and a root of their covariance by the start
    z = states @ units + np.hstack([mean[:, None], path])
    e = noise @ units[steps * hidden :]
    w = unit @ units[: steps * hidden]
    z_root, w_root = np.hstack([z[:, 1:], states @ free]), np.hstack([w[:, 1:], unit @ free[: steps * hidden]])
    e_root = np.hstack([e[:, 1:], noise @ free[steps * hidden :]])

    def step(array: np.ndarray, t: int, rows: int) -> np.ndarray:
        return array[t * rows : (t + 1) * rows]

    moved, seen = np.zeros((2 * hidden, 2 * hidden)), np.zeros((size + hidden + 1,) * 2)
    for t in range(steps):
        if t + 1 < steps:
            both = np.vstack([step(w, t + 1, hidden)[:, :1], step(z, t, hidden)[:, :1]])
            spread = np.vstack([step(w_root, t + 1, hidden), step(z_root, t, hidden)])
            moved += both @ both.T + spread @ spread.T
        if not np.isnan(x[t]).all():
            both = np.vstack([step(e, t, size)[:, :1], step(z, t, hidden)[:, :1], [[1.0]]])
            spread = np.vstack([step(e_root, t, size), step(z_root, t, hidden), np.zeros((1, z_root.shape[1]))])
            seen += both @ both.T + spread @ spread.T
    blocks = [step(z_root, t, hidden) for t in range(steps)]

    # The slope by the mean of the data, and a root of minus its change.
    slope, sharp = np.zeros((steps * size, by_data.shape[1])), np.zeros((steps * size, len(known)))
    slope[known] = solve_triangular(factor, by_data, lower=True, trans="T")
    sharp[known] = solve_triangular(factor, np.eye(len(known)), lower=True, trans="T")
    by_state, by_root = moves.T @ emission.T @ slope, moves.T @ emission.T @ sharp
    common = told.T @ states.T  # of the states with the units of the data
    score = dict.fromkeys(("transition", "transition_noise", "emission", "emission_bias", "emission_noise"), 0.0)
    by_seen, by_moved, second = np.zeros(size), np.zeros(hidden), ((z**2).sum(1) + (z_root[:, len(flat) :] ** 2).sum(1))
    for t in range(steps):
        s, f, y = step(slope, t, size), step(sharp, t, size), step(z, t, hidden)
        score["emission"] += s @ y.T - f @ common[:, t * hidden : (t + 1) * hidden]
        score["emission_bias"] += s[:, 0]
        score["emission_noise"] += (s @ s.T - f @ f.T) / 2
        by_seen += (s**2).sum(1) + (f**2).sum(1)
        if t:
            s, f, y = step(by_state, t, hidden), step(by_root, t, hidden), step(z, t - 1, hidden)
            score["transition"] += s @ y.T - f @ common[:, (t - 1) * hidden : t * hidden]
            score["transition_noise"] += (s @ s.T - f @ f.T) / 2
            by_moved += (s**2).sum(1) + (f**2).sum(1)
    first, sharp = by_state[:hidden], by_root[:hidden]
    score["initial_mean"] = np.where(np.isin(np.arange(hidden), flat), 0, first[:, 0])
    score["initial_covariance"] = (first @ first.T - sharp @ sharp.T) / 2
    score["initial_covariance"][flat], score["initial_covariance"][:, flat] = 0, 0
    by_first = np.sqrt((first**2).sum(1) + (sharp**2).sum(1))
    by_seen, by_moved, states_size = np.sqrt(by_seen), np.sqrt(by_moved), np.sqrt(second.reshape(steps, hidden).sum(0))
    scale = {
        "transition": np.outer(by_moved, states_size),
        "transition_noise": np.outer(by_moved, by_moved),
        "emission": np.outer(by_seen, states_size),
        "emission_bias": by_seen,
        "emission_noise": np.outer(by_seen, by_seen),
        "initial_mean": by_first,
        "initial_covariance": np.outer(by_first, by_first),
    }
    complete = (emission @ z[:, 0] + np.tile(d, steps) + e[:, 0]).reshape(steps, size)
    return Dense(
        float(value),
        z[:, 0].reshape(steps, hidden),
        np.stack([block @ block.T for block in blocks]),
        complete,
        emission @ z_root + e_root,
        moved,
        seen,
        {name: np.asarray(total) * np.ones(np.shape(getattr(system, name))) for name, total in score.items()},
        scale,
    )
