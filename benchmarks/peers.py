"""What others do with the same problems: scikit-learn on all cores, and the obvious `vmap`."""

from __future__ import annotations

import os
import warnings

import jax
import joblib
import numpy as np
from problems import Problems
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import jaxem as jem

CORES = os.cpu_count() or 1


def start_of(problems: Problems) -> jem.Mixture:
    """The start of all problems as one model with a leading axis."""
    return jem.Mixture(problems.weights, jem.Gaussian(problems.means, problems.covariances))


def _sklearn_some(problems: Problems, chosen: np.ndarray, tol: float, max_steps: int) -> list[tuple[float, int]]:
    results = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for b in chosen:
            peer = GaussianMixture(
                problems.means.shape[1],
                tol=tol,
                max_iter=max_steps,
                reg_covar=1e-9,
                weights_init=problems.weights[b],
                means_init=problems.means[b],
                precisions_init=np.linalg.inv(problems.covariances[b]),
            ).fit(problems.x[b])
            results.append((peer.score(problems.x[b]) * len(problems.x[b]), peer.n_iter_))
    return results


def sklearn_many(problems: Problems, tol: float, max_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods and steps of scikit-learn's fits, through joblib on all cores, one BLAS thread each.

    With `reg_covar` 1e-9: its default of 1e-6 moves the estimates of narrow components, and with them the optimum.
    """
    parts = np.array_split(np.arange(len(problems.x)), CORES * 8)
    jobs = (joblib.delayed(_sklearn_some)(problems, part, tol, max_steps) for part in parts)
    results = [pair for part in joblib.Parallel(n_jobs=CORES)(jobs) for pair in part]
    return np.array([ll for ll, _ in results]), np.array([steps for _, steps in results])


@jax.jit
def lock_step(start: jem.Mixture, x: jax.Array, tol: jax.Array) -> jem.Fit:
    """`vmap` of one `while_loop`: every lane runs until the slowest has converged."""
    return jax.vmap(lambda model, rows: jem.fit(model, rows, tol=tol, max_steps=20_000))(start, x)
