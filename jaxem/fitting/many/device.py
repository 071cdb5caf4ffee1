"""Lanes on the device: a few compiled programs, of one shape for any number of problems."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxem.core.compilation import program, size
from jaxem.core.pytree import module, replace, select
from jaxem.distributions.base import Labelled, Statistics
from jaxem.fitting.finish import best_restart
from jaxem.fitting.loop import (
    Limits,
    Progress,
    advance,
    begin,
    degeneracy_status,
    has_converged,
    informed,
    keep_best_if_diverged,
)
from jaxem.fitting.regularisation import regulariser
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status


def member(models: Any, index: Any) -> Any:
    """One model (or problem) of many."""
    with jax.debug_nans(False):  # cells that were not seen are no error
        return jax.tree.map(lambda leaf: leaf[index], models)


@module
class Problems:
    """All problems of one shape, on the device: lanes hold an index into them, not a copy."""

    data: Any
    weight: Array
    prior: Statistics


@module
class Lanes:
    """Fits that advance together: progress of each lane, and the job it works on (one past the last when idle)."""

    progress: Progress
    job: Array


def _queue_work(solver: Any, lanes: Any, results: Any, problems: Problems, starts: Any, *_: Any, **named: Any) -> float:
    """Numbers computed by all calls of `run_lanes` together: of every job, a hundred passes."""
    return 100.0 * size(problems.data) * starts.work_per_row * named["restarts"] * solver.passes


@program(size, static_argnames="restarts")
def prepare_lanes(
    solver: Any, starts: Any, x: Any, weight: Array, labels: Array | None, prior: Any, *, restarts: int
) -> tuple[Problems, Statistics]:
    """Everything independent of a model's parameters, computed once; and the floor of each problem's M-steps."""
    first = jax.tree.map(lambda leaf: leaf[::restarts], starts)

    def one(model: Any, x: Any, weight: Array, labels: Array | None) -> tuple[Problems, Statistics]:
        data = x if labels is None else Labelled(x, labels)
        data = data if solver.batches else model.observe(data)
        floor = model.floor(data, weight)
        return Problems(data, weight, regulariser(floor, prior, model, data, weight)), floor

    return jax.vmap(one, in_axes=(0, 0, 0, None if labels is None else 0))(first, x, weight, labels)


@program(size, static_argnames="width")
def empty_lanes(solver: Any, starts: Any, problems: Problems, *, width: int) -> tuple[Lanes, Progress]:
    """Idle lanes, and the result of every job so far: its start, as interrupted."""
    model, problem = member(starts, 0), member(problems, 0)
    progress = begin(solver, model, problem.data, problem.weight, problem.prior)
    progress = replace(progress, status=jnp.full((), int(Status.interrupted), jnp.int32))
    jobs = jax.tree.leaves(starts)[0].shape[0]

    def many(count: int) -> Progress:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), progress)

    return Lanes(many(width), jnp.full(width, jobs, jnp.int32)), replace(many(jobs), model=starts)


@program(_queue_work, static_argnames=("restarts", "one_by_one", "steps"), donate_argnames=("lanes", "results"))
def run_lanes(
    solver: Any,
    lanes: Lanes,
    results: Progress,
    problems: Problems,
    starts: Any,
    refill: Array,
    jobs: Array,
    limits: Limits,
    *,
    restarts: int,
    one_by_one: bool,
    steps: int,
) -> tuple[Lanes, Progress, Array]:
    """Bank the lanes marked `refill`, load `jobs` into them, and advance every lane by `steps`.

    The `tol` of the limits is that of each problem.
    """
    count = results.status.shape[0]
    banked = jnp.where(refill, lanes.job, count)
    results = jax.tree.map(lambda all, lane: all.at[banked].set(lane, mode="drop"), results, lanes.progress)
    job = jnp.where(refill, jobs, lanes.job)
    mine = jax.tree.map(lambda leaf: leaf[jnp.minimum(job, count - 1) // restarts], problems)
    own_tol = limits.tol[jnp.minimum(job, count - 1) // restarts]

    def load(progress: Progress, problem: Problems, job: Array, refill: Array) -> Progress:
        model = jax.tree.map(lambda leaf: leaf[jnp.minimum(job, count - 1)], starts)
        fresh = begin(solver, model, problem.data, problem.weight, problem.prior)
        empty_lanes = jnp.full((), int(Status.interrupted), jnp.int32)
        return select(refill, replace(fresh, status=jnp.where(job < count, fresh.status, empty_lanes)), progress)

    def climb(lane: tuple[Progress, Problems, Array]) -> Progress:
        progress, mine, tol = lane
        own_limits = replace(limits, tol=tol)
        model = progress.model
        data = mine.data if solver.batches else model.expand(mine.data)
        rows = informed(model, mine.data, mine.weight)

        def step(now: Progress) -> Progress:
            return advance(solver, now, data, mine.weight, rows, mine.prior, own_limits)

        if not one_by_one:
            return jax.lax.fori_loop(0, steps, lambda _, now: step(now), progress)
        # A single lane can stop when its fit does.
        last = jnp.maximum(progress.steps, 0) + steps

        def goes_on(now: Progress) -> Array:
            return (now.status == int(Status.running)) & (now.steps < last)

        return jax.lax.while_loop(goes_on, step, progress)

    progress = jax.vmap(load)(lanes.progress, mine, job, refill)
    lane = progress, mine, own_tol
    progress = jax.lax.map(climb, lane) if one_by_one else jax.vmap(climb)(lane)
    return Lanes(progress, job), results, progress.status + 0


@jax.jit
def select_lanes(lanes: Lanes, keep: Array) -> Lanes:
    """Only the lanes `keep`."""
    return jax.tree.map(lambda leaf: leaf[keep], lanes)


@program(size, static_argnames="restarts")
def best_restarts(
    solver: Any, starts: Any, results: Progress, problems: Problems, floor: Statistics, *, restarts: int
) -> Fit:
    """The best restart of each problem (see `best_restart`), as a `Fit`; interrupted if one of them was."""
    rows = jnp.sum(problems.weight, axis=-1)

    def ended(start: Any, result: Progress, problem: Array) -> tuple[Progress, Array]:
        result = keep_best_if_diverged(result, rows[problem])
        return result, degeneracy_status(start, result.model, result.status, member(floor, problem), rows[problem])

    each = jnp.arange(len(rows) * restarts, dtype=jnp.int32) // restarts
    tried = jax.vmap(ended)(starts, results, each)
    tried, statuses = jax.tree.map(lambda leaf: leaf.reshape(-1, restarts, *leaf.shape[1:]), tried)
    results, status = jax.vmap(member)((tried, statuses), best_restart(tried.objective, statuses))
    stopped = jnp.any(statuses == int(Status.interrupted), axis=-1)
    return Fit(
        model=results.model,
        log_likelihood=results.log_likelihood,
        objective=results.objective,
        steps=jnp.maximum(results.steps, 0),
        converged=has_converged(results.status, status) & ~stopped,
        status=jnp.where(stopped, int(Status.interrupted), status).astype(jnp.int32),
        passes=jax.vmap(solver.spent)(results.state, results.steps + 1),
        trace=None,
    )
