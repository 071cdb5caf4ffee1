"""Lanes: a fixed number of fits that advance together, each with a problem of its own, refilled as they finish.

Under `vmap` every fit runs until the slowest has converged, and the slowest of thousands takes many times the mean.
Here all lanes advance a few steps in one compiled call; then the host reads which have ended, and the next call banks
their results and loads new problems into them. One compiled shape serves any number of problems.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.distributions.base import Labelled, Statistics
from jaxem.fitting.fit import best, check_rows, hidden_states, regulariser
from jaxem.fitting.loop import Limits, Progress, advance, begin, settled, verdict
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.pytree import module, replace, select
from jaxem.sequences import Sequences

MANY = 64
"""Lanes get narrower if the queue would fill so many of them four times."""
LARGE = 6_000
"""Rows x hidden states above which lanes run one after the other, each in its own cache, instead of side by side."""


class Pace(NamedTuple):
    """How lanes run.

    Attributes:
        lanes: at most.
        steps: in one call; a lane that ends early idles for the rest of them.
        tail: the same, once there is nothing left to load into a lane and few are left: a call costs more than idling.
        narrower: once the queue is empty, go on with such a part of the lanes when that is enough: a straggler costs
            little. Each is compiled when it is first needed.
        threads: does one run of lanes leave cores of the CPU idle, so that several pay?
    """

    lanes: int
    steps: int
    tail: int
    narrower: tuple[int, ...]
    threads: bool


SIDE_BY_SIDE = Pace(256, 16, 64, (4, 16, 64), threads=False)
ONE_BY_ONE = Pace(16, 16, 16, (), threads=True)
SEQUENCES = Pace(64, 4, 16, (4, 32), threads=True)
"""Every step of every sequence is a turn of a loop, on one core: a call is long, and more lanes leave the cache."""


def pace(model: Any, x: Any, rows: int) -> Pace:
    """How lanes of this model run, on data like x with so many rows."""
    if isinstance(x, Sequences):
        return SEQUENCES
    width = getattr(model, "width", None) or hidden_states(model) or 1
    return ONE_BY_ONE if rows * width > LARGE else SIDE_BY_SIDE


def member(models: Any, index: Any) -> Any:
    """One model (or problem) of many."""
    return jax.tree.map(lambda leaf: leaf[index], models)


COMPILING = threading.Lock()
"""Held while a shape may compile for the first time, so that two threads do not compile the same one."""


@module
class _Problems:
    """All problems of one shape, on the device: lanes hold an index into them, not a copy."""

    data: Any
    weight: Array
    prior: Statistics


@module
class _Lanes:
    """What advances together: the progress of each lane, and the job it works on (one past the last when idle)."""

    progress: Progress
    job: Array


class Queue:
    """The host's side: which lanes run, which jobs wait."""

    def __init__(
        self,
        solver: Any,
        starts: Any,
        x: Any,
        weight: Array,
        labels: Array | None,
        prior: Any,
        limits: Limits,
        restarts: int,
        lanes: int,
    ) -> None:
        """Put all problems of one shape on the device; no lane has started."""
        check_rows(member(starts, 0), member(x, 0))
        self.solver, self.starts, self.limits, self.restarts = solver, starts, limits, restarts
        self.problems, self.floor = _prepare(solver, starts, x, weight, labels, prior, restarts=restarts)
        self.jobs = len(weight) * restarts
        self.pace = pace(member(starts, 0), x, weight.shape[1])
        self.width = min(lanes, self.pace.lanes, 1 << (self.jobs - 1).bit_length())
        # Each width is a compilation, which the stragglers of a short queue do not repay.
        self.narrower = [self.width // part for part in self.pace.narrower] if self.jobs >= 4 * MANY else []
        # On a device the flags are read one call late, so that it never waits for the host.
        self.late = 0 if jax.default_backend() == "cpu" else 1

    def run(self, report: Callable[[int], None], stop: Callable[[], bool]) -> Fit:
        """Work through all jobs; the best of each problem's restarts, with its status told exactly."""
        lanes, results = _idle(self.solver, self.starts, self.problems, width=self.width)
        jobs, loaded = np.full(self.width, self.jobs, np.int32), np.zeros(self.width, int)
        refill, waiting = np.full(self.width, True), 0
        left = np.full(self.jobs // self.restarts, self.restarts)
        flags: list[tuple[int, Array]] = []
        call = -1
        while True:
            call += 1
            given = np.flatnonzero(refill)[: self.jobs - waiting]
            jobs[refill], loaded[refill] = self.jobs, call
            jobs[given] = np.arange(waiting, waiting + len(given))
            waiting += len(given)
            with COMPILING if call == 0 else contextlib.nullcontext():
                lanes, results, status = self._turn(lanes, results, refill, jobs)
            running = jobs < self.jobs
            if not running.any():
                return _choose(self.solver, self.starts, results, self.problems, self.floor, restarts=self.restarts)
            width = min(w for w in (len(jobs), *self.narrower) if w >= running.sum())
            if waiting == self.jobs and width < len(jobs):
                keep = np.argsort(~running, kind="stable")[:width]
                lanes, status, jobs, loaded = _take(lanes, keep), status[keep], jobs[keep], loaded[keep]
                running, flags = running[keep], []
            flags.append((call, status))
            refill = np.full(len(jobs), False)
            if len(flags) > self.late:
                at, status = flags.pop(0)
                # Flags from before a lane was loaded speak of its last job.
                refill = running & (loaded <= at) & (np.asarray(status) != int(Status.running))
                np.subtract.at(left, jobs[refill] // self.restarts, 1)
                report(int((left == 0).sum()))
            if stop():
                waiting, jobs[~refill] = self.jobs, self.jobs

    def _turn(self, lanes: _Lanes, results: Progress, refill: np.ndarray, jobs: np.ndarray) -> Any:
        # Copies: the device may still read what the host is about to change.
        given = jnp.array(refill), jnp.array(jobs)
        steps = self.pace.steps if len(jobs) == self.width else self.pace.tail
        sizes = {"restarts": self.restarts, "one_by_one": self.pace is ONE_BY_ONE, "steps": steps}
        return _turn(self.solver, lanes, results, self.problems, self.starts, *given, self.limits, **sizes)


@partial(jax.jit, static_argnames="restarts")
def _prepare(
    solver: Any, starts: Any, x: Any, weight: Array, labels: Array | None, prior: Any, *, restarts: int
) -> tuple[_Problems, Statistics]:
    first = jax.tree.map(lambda leaf: leaf[::restarts], starts)

    def one(model: Any, x: Any, weight: Array, labels: Array | None) -> tuple[_Problems, Statistics]:
        data = x if labels is None else Labelled(x, labels)
        data = data if solver.batches else model.observe(data)
        floor = model.floor(data, weight)
        return _Problems(data, weight, regulariser(floor, prior, model, data, weight)), floor

    return jax.vmap(one, in_axes=(0, 0, 0, None if labels is None else 0))(first, x, weight, labels)


@partial(jax.jit, static_argnames="width")
def _idle(solver: Any, starts: Any, problems: _Problems, *, width: int) -> tuple[_Lanes, Progress]:
    """Lanes without work, and a place for the result of every job: until then its start, as interrupted."""
    model, problem = member(starts, 0), member(problems, 0)
    progress = begin(solver, model, problem.data, problem.weight, problem.prior)
    progress = replace(progress, status=jnp.full((), int(Status.interrupted), jnp.int32))
    jobs = jax.tree.leaves(starts)[0].shape[0]

    def many(count: int) -> Progress:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), progress)

    return _Lanes(many(width), jnp.full(width, jobs, jnp.int32)), replace(many(jobs), model=starts)


@partial(jax.jit, static_argnames=("restarts", "one_by_one", "steps"), donate_argnames=("lanes", "results"))
def _turn(
    solver: Any,
    lanes: _Lanes,
    results: Progress,
    problems: _Problems,
    starts: Any,
    refill: Array,
    jobs: Array,
    limits: Limits,
    *,
    restarts: int,
    one_by_one: bool,
    steps: int,
) -> tuple[_Lanes, Progress, Array]:
    """Bank the lanes marked `refill`, load `jobs` into them, and advance every lane by `steps`."""
    count = results.status.shape[0]
    banked = jnp.where(refill, lanes.job, count)
    results = jax.tree.map(lambda all, lane: all.at[banked].set(lane, mode="drop"), results, lanes.progress)
    job = jnp.where(refill, jobs, lanes.job)
    mine = jax.tree.map(lambda leaf: leaf[jnp.minimum(job, count - 1) // restarts], problems)

    def load(progress: Progress, problem: _Problems, job: Array, refill: Array) -> Progress:
        model = jax.tree.map(lambda leaf: leaf[jnp.minimum(job, count - 1)], starts)
        fresh = begin(solver, model, problem.data, problem.weight, problem.prior)
        idle = jnp.full((), int(Status.interrupted), jnp.int32)
        return select(refill, replace(fresh, status=jnp.where(job < count, fresh.status, idle)), progress)

    def climb(lane: tuple[Progress, _Problems]) -> Progress:
        progress, mine = lane
        model = progress.model
        data = mine.data if solver.batches else model.expand(mine.data)
        rows = model.observations(model.observe(mine.data), mine.weight)

        def step(now: Progress) -> Progress:
            return advance(solver, now, data, mine.weight, rows, mine.prior, limits)

        if not one_by_one:
            return jax.lax.fori_loop(0, steps, lambda _, now: step(now), progress)
        # A lane by itself can stop when its fit does.
        last = jnp.maximum(progress.steps, 0) + steps

        def goes_on(now: Progress) -> Array:
            return (now.status == int(Status.running)) & (now.steps < last)

        return jax.lax.while_loop(goes_on, step, progress)

    progress = jax.vmap(load)(lanes.progress, mine, job, refill)
    progress = jax.lax.map(climb, (progress, mine)) if one_by_one else jax.vmap(climb)((progress, mine))
    return _Lanes(progress, job), results, progress.status + 0


@jax.jit
def _take(lanes: _Lanes, keep: Array) -> _Lanes:
    return jax.tree.map(lambda leaf: leaf[keep], lanes)


@partial(jax.jit, static_argnames="restarts")
def _choose(
    solver: Any, starts: Any, results: Progress, problems: _Problems, floor: Statistics, *, restarts: int
) -> Fit:
    """The best restart of each problem, as a `Fit`."""
    rows = jnp.sum(problems.weight, axis=-1)
    tried = jax.vmap(settled)(results, jnp.repeat(rows, restarts)), starts
    tried = jax.tree.map(lambda leaf: leaf.reshape(-1, restarts, *leaf.shape[1:]), tried)
    results, starts = jax.vmap(member)(tried, best(tried[0].objective))
    return Fit(
        model=results.model,
        log_likelihood=results.log_likelihood,
        objective=results.objective,
        steps=jnp.maximum(results.steps, 0),
        converged=results.status == int(Status.converged),
        status=jax.vmap(verdict)(starts, results.model, results.status, floor, rows),
        passes=jax.vmap(solver.spent)(results.state, results.steps + 1),
        trace=None,
    )
