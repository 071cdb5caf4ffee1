"""Lanes: a fixed number of fits that advance together, each with a problem of its own, refilled as they finish.

Under `vmap` every fit runs until the slowest has converged, and the slowest of thousands takes many times the mean.
Here all lanes advance a few steps in one compiled call; then the host reads which have ended, and the next call banks
their results and loads new problems into them. One compiled shape serves any number of problems.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.padding import bucket
from jaxem.data.sequences import Sequences
from jaxem.fitting.checks import check_rows
from jaxem.fitting.loop import Limits, Progress
from jaxem.fitting.many.checkpoint import Shelf
from jaxem.fitting.many.device import Lanes, best_restarts, empty_lanes, member, prepare_lanes, run_lanes, select_lanes
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status

MANY = 64
"""Number of lanes from which they get narrower, if the queue would fill so many four times."""
LARGE = 6_000
"""Problem size (rows x states) above which lanes run sequentially, because one problem fills a core's cache."""
WIDEST = 8_192
"""Largest number of lanes on an accelerator. This and the next number are computed, not measured."""
BUSY = 1 << 24
"""Lanes x rows x hidden states that saturate an accelerator."""


class LaneSchedule(NamedTuple):
    """Schedule of lanes.

    Attributes:
        lanes: largest number.
        steps: in one call; a lane that ends early idles for the rest of them.
        tail: `steps` once no job waits and few lanes are left: a call costs more than idling.
        narrower: factors by which the number of lanes may shrink once the queue is empty, so that a straggler costs
            little. Each is compiled when first needed.
        threads: whether one run of lanes leaves CPU cores idle, so that several threads pay.
        late: calls after which the flags of one are read, so that a device never waits for the host.
    """

    lanes: int
    steps: int
    tail: int
    narrower: tuple[int, ...]
    threads: bool
    late: int = 0


SIDE_BY_SIDE = LaneSchedule(256, 16, 64, (4, 16, 64), threads=False)
ONE_BY_ONE = LaneSchedule(16, 16, 16, (), threads=True)
SEQUENCES = LaneSchedule(64, 4, 16, (4, 32), threads=True)
"""Sequences: every step of each is a turn of a loop, on one core: a call is long, and more lanes leave the cache."""


def work(model: Any, x: Any, weight: Any) -> int:
    """Size of the posterior of one problem: rows (for sequences all their steps) x hidden states."""
    steps = x.values.shape[2] if isinstance(x, Sequences) else 1
    return weight.shape[1] * steps * model.work_per_row


def pace(model: Any, x: Any, weight: Any, platform: str) -> LaneSchedule:
    """Schedule of lanes of this model on such a platform, for problems like x `[p, n, ...]`."""
    size = work(model, x, weight)
    if isinstance(x, Sequences):
        schedule = SEQUENCES
    elif size > LARGE and platform == "cpu":
        schedule = ONE_BY_ONE
    else:
        schedule = SIDE_BY_SIDE
    if platform == "cpu":
        return schedule
    return schedule._replace(lanes=min(WIDEST, max(MANY, BUSY // size)), threads=False, late=1)


COMPILING: defaultdict[Any, threading.Lock] = defaultdict(threading.Lock)
"""A lock for each device, held while a shape may compile for the first time, lest two threads compile the same."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """State of a running queue: enough to continue, in this process or another.

    Attributes:
        lanes, results: on the device.
        jobs: `[width]` job of each lane; one past the last job when it is idle.
        loaded: `[width]` call that loaded it.
        refill: `[width]` bool: lanes whose job has ended, or without one: the next call banks and loads them.
        left: `[problems]` restarts of each that have not ended.
        waiting: first job not yet loaded.
        call: number of calls made.
        flags: statuses of calls that the host has not read yet, and those calls.
    """

    lanes: Lanes
    results: Progress
    jobs: np.ndarray
    loaded: np.ndarray
    refill: np.ndarray
    left: np.ndarray
    waiting: int = 0
    call: int = 0
    flags: list[tuple[int, Any]] = dataclasses.field(default_factory=list)

    def done(self) -> int:
        """Number of problems all of whose restarts have ended."""
        return int((self.left == 0).sum())

    def with_leaves(self, leaves: list[np.ndarray]) -> Self:
        """The state with these leaves, if it is of the same queue; the number of lanes may differ."""
        flags = [(0, 0)] * ((len(leaves) - len(jax.tree.leaves(self))) // 2)
        like, structure = jax.tree.flatten(dataclasses.replace(self, flags=flags))
        state = jax.tree.unflatten(structure, map(_like, like, leaves))
        numbers = {"waiting": int(state.waiting), "call": int(state.call)}
        return dataclasses.replace(state, **numbers, flags=[(int(call), status) for call, status in state.flags])


class Queue:
    """The host's side of lanes: which run, and which jobs wait."""

    def __init__(
        self,
        solver: Any,
        starts: Any,
        x: Any,
        weight: Any,
        labels: Any,
        prior: Any,
        limits: Limits,
        restarts: int,
        lanes: int,
        device: Any,
    ) -> None:
        """Put all problems of one shape on the device; no lane has started."""
        check_rows(member(starts, 0), member(x, 0))
        self.pace = pace(member(starts, 0), x, weight, device.platform)
        self.solver, self.limits, self.restarts = solver, limits, restarts
        self.starts = jax.tree.map(jnp.asarray, starts)
        self.jobs = len(weight) * restarts
        self.width = min(lanes, bucket(self.jobs))
        # Each width is a compilation, for which the stragglers of a short queue do not pay.
        self.narrower = [self.width // part for part in self.pace.narrower] if self.jobs >= 4 * MANY else []
        self.compiling: Any = COMPILING[device]
        with self.compiling:
            self.problems, self.floor = prepare_lanes(solver, starts, x, weight, labels, prior, restarts=restarts)

    def run(self, report: Callable[[int], None], stop: Callable[[], bool], shelf: Shelf | None = None) -> Fit:
        """Work through all jobs; the best of each problem's restarts, with its exact status.

        With a shelf it continues from the state saved there, and saves its own now and then.
        """
        now = self._begin(shelf)
        report(now.done())
        while self._turn(now):
            self._narrow(now)
            self._read(now)
            report(now.done())
            stopped = stop()
            if shelf is not None and (stopped or shelf.due()):
                shelf.put(now.call, jax.tree.leaves(now))
            if stopped:
                shelf, now.waiting, now.jobs[~now.refill] = None, self.jobs, self.jobs
        if shelf is not None:
            shelf.put(now.call, jax.tree.leaves(now))
        return best_restarts(self.solver, self.starts, now.results, self.problems, self.floor, restarts=self.restarts)

    def _begin(self, shelf: Shelf | None) -> State:
        with self.compiling:
            lanes, results = empty_lanes(self.solver, self.starts, self.problems, width=self.width)
        now = State(
            lanes,
            results,
            jobs=np.full(self.width, self.jobs, np.int32),
            loaded=np.zeros(self.width, np.int64),
            refill=np.full(self.width, True),
            left=np.full(self.jobs // self.restarts, self.restarts),
        )
        if shelf is None:
            return now
        if (leaves := shelf.leaves()) is not None:
            return now.with_leaves(leaves)
        # A full disk fails before the first step.
        shelf.put(now.call, jax.tree.leaves(now))
        return now

    def _turn(self, now: State) -> bool:
        """Bank and load the lanes that are due, and advance all; whether any of them works."""
        if now.waiting == self.jobs and (now.jobs == self.jobs).all():
            return False
        now.call += 1
        given = np.flatnonzero(now.refill)[: self.jobs - now.waiting]
        now.jobs[now.refill], now.loaded[now.refill] = self.jobs, now.call
        now.jobs[given] = np.arange(now.waiting, now.waiting + len(given))
        now.waiting += len(given)
        # Copies: the device may still read arrays that the host is about to change.
        due = jnp.array(now.refill), jnp.array(now.jobs)
        steps = self.pace.steps if len(now.jobs) == self.width else self.pace.tail
        sizes = {"restarts": self.restarts, "one_by_one": self.pace is ONE_BY_ONE, "steps": steps}
        with self.compiling:
            now.lanes, now.results, status = run_lanes(
                self.solver, now.lanes, now.results, self.problems, self.starts, *due, self.limits, **sizes
            )
        self.compiling = contextlib.nullcontext()
        now.flags.append((now.call, status))
        return bool((now.jobs < self.jobs).any())

    def _narrow(self, now: State) -> None:
        """Once no job waits, continue with fewer lanes if those are enough."""
        running = now.jobs < self.jobs
        width = min(w for w in (len(running), *self.narrower) if w >= running.sum())
        if now.waiting < self.jobs or width == len(running):
            return
        keep = np.argsort(~running, kind="stable")[:width]
        now.lanes, now.jobs, now.loaded = select_lanes(now.lanes, keep), now.jobs[keep], now.loaded[keep]
        call, status = now.flags[-1]
        now.flags = [(call, status[keep])]

    def _read(self, now: State) -> None:
        """Mark the lanes that have ended, by the oldest flags that are due."""
        now.refill = np.full(len(now.jobs), False)
        if len(now.flags) > self.pace.late:
            call, status = now.flags.pop(0)
            # Flags from before a lane was loaded belong to its previous job.
            ended = np.asarray(status) != int(Status.running)
            now.refill = ended & (now.jobs < self.jobs) & (now.loaded <= call)
            np.subtract.at(now.left, now.jobs[now.refill] // self.restarts, 1)


def _like(template: Any, saved: np.ndarray) -> Any:
    """A saved array with the type of `template`: on the device or the host, random keys as such."""
    if not isinstance(template, jax.Array):
        return saved
    if jnp.issubdtype(template.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(template))
    return jnp.asarray(saved)
