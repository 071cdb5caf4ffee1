"""The problems that everybody is timed on, and the rule by which their answers must agree."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problems:
    """B mixtures to fit: rows `x [B, n, D]`, and the same start for everyone."""

    x: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def overlapping(problems: int, rows: int, columns: int, components: int, near: bool = False, seed: int = 0) -> Problems:
    """Full-covariance mixtures whose components overlap.

    Everyone starts at random rows with the covariance of all rows; or `near` the truth, as with many columns it has to
    be: from random rows some components collapse onto a few of them, and where a fit ends is a matter of its floor.
    """
    rng = np.random.default_rng(seed)
    shape = (problems, components, columns)
    weights = rng.dirichlet(np.full(components, 5.0), problems)
    means = rng.normal(size=shape) * 1.5
    spread = rng.normal(size=(*shape, columns)) * 0.4 + np.eye(columns)
    component = (rng.random((problems, rows, 1)) > np.cumsum(weights, axis=1)[:, None, :-1]).sum(-1)
    problem = np.arange(problems)[:, None]
    noise = rng.normal(size=(problems, rows, columns))
    x = means[problem, component] + np.einsum("bnij,bnj->bni", spread[problem, component], noise)
    chosen = rng.permuted(np.broadcast_to(np.arange(rows), (problems, rows)), axis=1)[:, :components]
    centred = x - x.mean(1, keepdims=True)
    covariance = np.einsum("bni,bnj->bij", centred, centred) / rows
    covariances = np.broadcast_to(covariance[:, None], (*shape, columns)).copy()
    uniform = np.full((problems, components), 1 / components)
    if near:
        return Problems(x, uniform, means + 0.5 * rng.normal(size=shape), covariances / 4)
    return Problems(x, uniform, x[problem, chosen], covariances)


def agreement(ours: np.ndarray, theirs: np.ndarray, rows: int, nats: float = 1e-4) -> float:
    """The share of problems whose log-likelihoods are within `nats` a row of each other."""
    return float(np.mean(np.abs(ours - theirs) <= nats * rows))


def refuse_if_different(ours: np.ndarray, theirs: np.ndarray, rows: int, name: str, least: float = 0.95) -> float:
    """The share that agrees; an error, before anything is timed, if it is not nearly all of them.

    Not all of them: a stopping rule, a floor under collapsing components and the last digit of a long climb differ
    between libraries, and a few mixtures end in another optimum for it.
    """
    share = agreement(ours, theirs, rows)
    if share < least:
        raise SystemExit(f"{name}: only {share:.1%} of the log-likelihoods agree; these runs must not be compared")
    return share
