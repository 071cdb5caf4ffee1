"""Lanes on the device: a few compiled programs, of one shape for any number of problems."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxem.core.compilation import program
from jaxem.core.pytree import module, replace, select
from jaxem.distributions.base import Labelled, Statistics
from jaxem.fitting.finish import best_of, make_result
from jaxem.fitting.loop import Limits, Progress, advance, begin, prepared
from jaxem.fitting.regularisation import regularisers
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status


def member(models: Any, index: Any) -> Any:
    """One model (or problem) of many."""
    with jax.debug_nans(False):  # cells that were not seen are no error
        return jax.tree.map(lambda leaf: leaf[index], models)


@module
class Problems:
    """All problems of one shape, on the device: lanes hold an index into them, not a copy.

    Where they share their rows, and differ in weights, the leading axis of `data` is one.
    """

    data: Any
    weight: Array
    prior: Statistics

    @property
    def shared(self) -> bool:
        """Whether all read the same rows."""
        return jax.tree.leaves(self.data)[0].shape[0] < self.weight.shape[0]

    def at(self, index: Array) -> Self:
        """Some of the problems, without the rows that they share."""
        own = replace(self, data=None) if self.shared else self
        return jax.tree.map(lambda leaf: leaf[index], own)

    def whole(self, one: Self) -> Self:
        """One of them, with its rows."""
        return replace(one, data=member(self.data, 0)) if self.shared else one


@module
class Lanes:
    """Fits that advance together: progress of each lane, and the job it works on (one past the last when idle)."""

    progress: Progress
    job: Array


def _queue_work(solver: Any, lanes: Any, results: Any, problems: Problems, starts: Any, *_: Any, **named: Any) -> float:
    """Numbers computed by all calls of `run_lanes` together: of every job, a hundred passes."""
    readers = problems.weight.shape[0] if problems.shared else 1
    return 100.0 * _size(problems.data) * readers * starts.work_per_row * named["restarts"] * solver.passes_per_step


def _size(*data: Any, **_: Any) -> float:
    return float(sum(leaf.size for leaf in jax.tree.leaves(data)))


@program(_size, static_argnames="restarts")
def prepare_lanes(
    solver: Any, starts: Any, x: Any, weight: Array, labels: Array | None, prior: Any, *, restarts: int
) -> tuple[Problems, Statistics]:
    """Everything independent of a model's parameters, computed once; and the floor of each problem's M-steps."""
    first = jax.tree.map(lambda leaf: leaf[::restarts], starts)
    shared = jax.tree.leaves(x)[0].shape[0] < weight.shape[0]
    data = x if labels is None else Labelled(x, labels)
    rows, axis = (member(data, 0), None) if shared else (data, 0)
    floor, pseudo = jax.vmap(regularisers, in_axes=(0, axis, 0, None))(first, rows, weight, prior)
    if not solver.minibatch:
        readers = jax.tree.map(lambda leaf: leaf[:1], first) if shared else first
        data = jax.vmap(lambda model, rows: model.observe(rows))(readers, data)
    return Problems(data, weight, pseudo), floor


@program(_size, static_argnames="width")
def empty_lanes(solver: Any, starts: Any, problems: Problems, *, width: int) -> tuple[Lanes, Progress]:
    """Idle lanes, and the result of every job so far: its start, as interrupted."""
    model, problem = member(starts, 0), problems.whole(problems.at(jnp.asarray(0)))
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
    mine = problems.at(jnp.minimum(job, count - 1) // restarts)
    own_tol = limits.tol[jnp.minimum(job, count - 1) // restarts]

    def load(progress: Progress, problem: Problems, job: Array, refill: Array) -> Progress:
        model, problem = jax.tree.map(lambda leaf: leaf[jnp.minimum(job, count - 1)], starts), problems.whole(problem)
        fresh = begin(solver, model, problem.data, problem.weight, problem.prior)
        empty_lanes = jnp.full((), int(Status.interrupted), jnp.int32)
        return select(refill, replace(fresh, status=jnp.where(job < count, fresh.status, empty_lanes)), progress)

    def climb(lane: tuple[Progress, Problems, Array]) -> Progress:
        progress, mine, tol = lane
        mine, own_limits = problems.whole(mine), replace(limits, tol=tol)
        data, rows = prepared(solver, progress.model, mine.data, mine.weight)

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


@program(_size, static_argnames="restarts")
def best_restarts(
    solver: Any, starts: Any, results: Progress, problems: Problems, floor: Statistics, *, restarts: int
) -> Fit:
    """The best restart of each problem as a `Fit`; interrupted if one of them was."""
    rows = jnp.sum(problems.weight, axis=-1)

    def ended(start: Any, result: Progress, problem: Array) -> Fit:
        return make_result(solver, start, result, None, member(floor, problem), rows[problem][None])

    each = jnp.arange(len(rows) * restarts, dtype=jnp.int32) // restarts
    fits = jax.vmap(ended)(starts, results, each)
    fits = jax.tree.map(lambda leaf: leaf.reshape(-1, restarts, *leaf.shape[1:]), fits)
    stopped, best = jnp.any(fits.status == int(Status.interrupted), axis=-1), jax.vmap(best_of)(fits)
    status = jnp.where(stopped, int(Status.interrupted), best.status).astype(jnp.int32)
    return replace(best, converged=best.converged & ~stopped, status=status)
