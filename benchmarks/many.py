"""Thousands of small mixtures, and hundreds of middling ones: against scikit-learn on all cores, and lock-step vmap."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from peers import lock_step, sklearn_many, start_of
from problems import agreement, overlapping, refuse_if_different

import jaxem as jem

Row = dict[str, Any]
EM = jem.EM()
FASTER = {"jaxem, SQUAREM": jem.SQUAREM(EM), "jaxem, Anderson": jem.Anderson(EM)}
"""Steps are passes for them. They leave other tracks than EM's, and end in other optima now and then."""


def stopwatch(run: Callable[[], Any], repeats: int) -> tuple[Any, list[float]]:
    """The last result of `run` and the seconds that each call took."""
    seconds, result = [], None
    for _ in range(repeats):
        begin = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begin)
    return result, seconds


def row(case: str, who: str, seconds: float, compile_seconds: float | None, end: Any, agree: Any) -> Row:
    """One line of the table; `end` is the log-likelihoods and steps."""
    log_likelihood, steps = (np.asarray(array) for array in end)
    return {
        "case": case,
        "who": who,
        "seconds": seconds,
        "compile": compile_seconds,
        "mean steps": float(np.mean(steps)),
        "max steps": int(np.max(steps)),
        "log_likelihood": log_likelihood,
        "agree": agree,
    }


def compare(case: str, problems: Any, tol: float, with_lock_step: bool) -> list[Row]:
    """Correctness first, then seconds: ours is the median of five runs after the one that compiles.

    One `tol` is two rules: scikit-learn's bounds the last gain, jaxem's what is still to be gained, often ten
    times as much. So jaxem runs a second time with 10 tol; the table says how near to the top each ends.
    """
    start, rows, limit = start_of(problems), problems.x.shape[1], 20_000

    def ours(tol: float, solver: Any = EM) -> jem.Fit:
        return jem.fit_many(start, problems.x, solver, tol=tol, max_steps=limit)

    first, (cold,) = stopwatch(lambda: ours(tol), 1)
    peer, (peer_seconds,) = stopwatch(lambda: sklearn_many(problems, tol, limit), 1)
    share = refuse_if_different(np.asarray(first.log_likelihood), peer[0], rows, f"{case}: scikit-learn")
    fits, warm = stopwatch(lambda: ours(tol), 5)
    seconds = float(np.median(warm))
    ours(10 * tol)
    looser, loose = stopwatch(lambda: ours(10 * tol), 5)
    table = [
        row(case, "jaxem fit_many", seconds, cold - seconds, (fits.log_likelihood, fits.steps), None),
        row(case, "scikit-learn, joblib", peer_seconds, None, peer, share),
        row(case, "jaxem, tol x 10", float(np.median(loose)), None, (looser.log_likelihood, looser.steps), None),
    ]
    for name, solver in FASTER.items():
        _, (cold,) = stopwatch(lambda solver=solver: ours(tol, solver), 1)
        found, warm = stopwatch(lambda solver=solver: ours(tol, solver), 5)
        share = agreement(np.asarray(fits.log_likelihood), np.asarray(found.log_likelihood), rows)
        end = found.log_likelihood, found.passes - 1
        table.append(row(case, name, float(np.median(warm)), cold - float(np.median(warm)), end, share))
    if with_lock_step:
        compiled, (compile_seconds,) = stopwatch(lambda: lock_step.lower(start, problems.x, tol).compile(), 1)
        lock, (lock_seconds,) = stopwatch(lambda: compiled(start, problems.x, tol), 1)
        share = refuse_if_different(
            np.asarray(fits.log_likelihood), np.asarray(lock.log_likelihood), rows, f"{case}: lock-step"
        )
        end = lock.log_likelihood, lock.steps
        table.append(row(case, "jax.vmap(while_loop)", lock_seconds, compile_seconds, end, share))
    best = np.max([line["log_likelihood"] for line in table], axis=0)
    for line in table:
        line["short"] = float(np.median(best - line["log_likelihood"]) / rows)
    return table


def small() -> list[Row]:
    """2,000 problems of 300 rows, two columns, three components."""
    return compare("2,000 x (300 x 2), K = 3", overlapping(2000, 300, 2, 3), 1e-8, with_lock_step=True)


def middling() -> list[Row]:
    """500 problems of 1,000 rows, eight columns, eight components."""
    return compare("500 x (1,000 x 8), K = 8", overlapping(500, 1000, 8, 8, near=True), 1e-8, with_lock_step=False)
