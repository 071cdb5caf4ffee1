"""Fit thousands of models: a fixed number of lanes, each with a problem of its own, refilled as they finish.

Under `vmap` every fit runs until the slowest has converged, and the slowest of thousands takes many times the mean.
Here all lanes advance a few steps in one compiled call; then the host reads which have ended, and the next call banks
their results and loads new problems into them. One compiled shape serves any number of problems. Between calls the
host is free: progress, checkpoints and Ctrl-C live there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.data import as_floats, presence, ready, stack
from jaxem.distributions.base import Labelled, Statistics
from jaxem.fitting.fit import best, check_limits, check_rows, hidden_states, pseudo_statistics
from jaxem.fitting.loop import Limits, Progress, advance, begin, verdict
from jaxem.fitting.ragged import padded_lengths
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.pytree import module, replace, select
from jaxem.solvers.em import EM

LANES = 256
STEPS = 8
"""Steps in one call: a lane that ends early idles for the rest of them."""
NARROW = 8
"""Once the queue is empty and an eighth of the lanes is enough, go on with an eighth: a straggler costs little."""
ONE_BY_ONE = 16
"""Lanes, when they run one after the other."""
LARGE = 6_000
"""Rows x hidden states above which lanes run one after the other, each in its own cache, instead of side by side."""


def fit_many(
    models: Any,
    xs: Any,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
    progress: bool | Callable[[int, int], None] = False,
    stop: Callable[[], bool] | None = None,
    lanes: int = LANES,
) -> Fit:
    """Fit B models, each to its own rows.

    Args:
        models: where to start, `batch_shape` (B,), or (B, R) for R starts of each problem: the best is returned.
        xs: `[B, n, ...]`, or a list of B arrays of any lengths.
        solver: how to climb.
        weight: row weights, shaped like the rows of xs.
        prior: as in `fit`; the same for all problems, or scaled to each by itself (`jaxem.priors.Weak`).
        labels: known components, shaped like the rows of xs; -1 where unknown.
        tol: stop a problem when its predicted remaining gain is below this many nats a row.
        max_steps: M-steps at most, for each.
        progress: True for a bar, or a function that is called with (problems done, problems in all).
        stop: called between compiled calls; once it returns True, unfinished problems end as `interrupted`.
        lanes: how many fits advance together.

    Returns:
        A `Fit` whose fields have a leading axis B, in the order given; each entry is what `fit` returns for that
        problem. A problem that fails changes no other.

    Raises:
        TypeError: xs does not hold numbers.
        ValueError: shapes that do not fit each other, or an empty problem (named by its index).

    >>> import jax, jaxem as jem
    >>> xs = [jax.numpy.array([[0.0], [0.5], [5.0], [5.5]]), jax.numpy.array([[1.0], [1.5], [9.0]])]
    >>> start = jem.SphericalGaussian([[[0.0], [5.0]], [[1.0], [9.0]]], jax.numpy.ones((2, 2)))
    >>> fits = jem.fit_many(jem.Mixture(jax.numpy.full((2, 2), 0.5), start), xs)
    >>> fits.model.components.mean.round(2).tolist()
    [[[0.25], [5.25]], [[1.25], [9.0]]]
    """
    check_limits(tol, max_steps)
    problems, restarts = _batch(models)
    leading = len(models.batch_shape)
    models = jax.tree.map(lambda leaf: leaf.reshape(problems * restarts, *leaf.shape[leading:]), models)
    model = _member(models, 0)
    batches = _batches(xs, weight, labels, problems, hidden_states(model))
    queues, indices = [], []
    for index, x, row_weight, row_labels in batches:
        limits = Limits(jnp.asarray(tol, row_weight.dtype), jnp.asarray(max_steps, jnp.int32))
        for part in np.array_split(np.arange(len(index)), min(workers(model, x.shape[1]), len(index))):
            jobs = (index[part, None] * restarts + np.arange(restarts)).ravel()
            starts = jax.tree.map(lambda leaf, jobs=jobs: leaf[jobs], models)
            mine = (x[part], row_weight[part], None if row_labels is None else row_labels[part])
            queues.append(partial(_run, solver, starts, *mine, prior, limits, restarts, lanes))
            indices.append(index[part])
    with _Reporter(progress, problems) as report:
        fits = _run_all(queues, workers(model, max(x.shape[1] for _, x, *_ in batches)), report, stop)
    order = np.argsort(np.concatenate(indices), kind="stable")
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *fits)


def workers(model: Any, rows: int) -> int:
    """Threads that pay: side by side, XLA spreads the lanes over the cores; one after the other, it cannot."""
    return (os.cpu_count() or 1) if jax.default_backend() == "cpu" and _one_by_one(model, rows) else 1


def _one_by_one(model: Any, rows: int) -> bool:
    return rows * (hidden_states(model) or 1) > LARGE


def _run_all(
    queues: list[Callable[..., Fit]], threads: int, report: _Reporter, stop: Callable[[], bool] | None
) -> list[Fit]:
    """Run the queues, on several threads if that pays; an error or Ctrl-C ends them all."""
    ended = threading.Event()

    def stopped() -> bool:
        return ended.is_set() or (stop is not None and stop())

    if threads == 1:
        return [queue(report.source(), stopped) for queue in queues]

    # Which floats and which device to use is a thread's own business in JAX: hand the caller's on.
    wide, device = jnp.result_type(float) == jnp.float64, jax.config.jax_default_device  # type: ignore

    def run(queue: Callable[..., Fit]) -> Fit:
        with jax.enable_x64(bool(wide)), jax.default_device(device):
            return queue(report.source(), stopped)

    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(run, queues))
        except BaseException:
            ended.set()
            raise


def _batch(models: Any) -> tuple[int, int]:
    shape = models.batch_shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"models has batch shape {shape}; it must be (problems,) or (problems, restarts)")
    return shape[0], shape[1] if len(shape) == 2 else 1


def _member(models: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], models)


def _batches(
    xs: Any, weight: Any, labels: Any, problems: int, states: int | None
) -> list[tuple[np.ndarray, Array, Array, Array | None]]:
    """Problems of like length together: their indices, rows `[p, n, ...]`, weights and labels `[p, n]`."""
    if len(xs) != problems:
        raise ValueError(f"xs holds {len(xs)} problems and models {problems}; they must be as many")
    prepare = jax.vmap(lambda x, w, known: ready(x, w, known, states), in_axes=(0, 0, None if labels is None else 0))
    if not isinstance(xs, (list, tuple)):
        x = as_floats(xs)
        if x.ndim < 2:
            raise ValueError(f"xs has shape {x.shape}; it must be [problems, rows, ...] or a list of arrays")
        row_weight = jnp.ones(x.shape[:2], x.dtype) if weight is None else _shaped(weight, x.shape[:2], "weight")
        known = None if labels is None else _shaped(labels, x.shape[:2], "labels")
        return [(np.arange(problems), *prepare(x, row_weight.astype(x.dtype), known))]

    arrays = [np.asarray(x) for x in xs]
    lengths = np.array([len(array) for array in arrays])
    if not lengths.all():
        raise ValueError(f"xs[{int(np.argmin(lengths))}] has no rows; leave that problem out")
    shapes = padded_lengths(lengths)
    dtype = as_floats(arrays[0][:1]).dtype
    batches = []
    for length, shorter in zip(shapes, [0, *shapes[:-1]], strict=True):
        index = np.flatnonzero((lengths <= length) & (lengths > shorter))
        x = as_floats(stack([arrays[i] for i in index], length)).astype(dtype)
        row_weight = presence(lengths[index], length, dtype)
        if weight is not None:
            row_weight = row_weight * stack([np.asarray(weight[i], dtype) for i in index], length)
        known = None if labels is None else stack([np.asarray(labels[i]) for i in index], length, fill=-1)
        batches.append((index, *prepare(x, jnp.asarray(row_weight), None if known is None else jnp.asarray(known))))
    return batches


def _shaped(value: Any, shape: tuple[int, ...], name: str) -> Array:
    value = jnp.asarray(value)
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}; with these xs it must be {shape}")
    return value


_COMPILING = threading.Lock()
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


class _Queue:
    """The host's side: which lanes run, which jobs wait."""

    def __init__(
        self,
        solver: Any,
        starts: Any,
        x: Array,
        weight: Array,
        labels: Array | None,
        prior: Any,
        limits: Limits,
        restarts: int,
        lanes: int,
    ) -> None:
        check_rows(_member(starts, 0), x[0])
        self.solver, self.starts, self.limits, self.restarts = solver, starts, limits, restarts
        self.problems, self.floor = _prepare(starts, x, weight, labels, prior, restarts=restarts)
        self.jobs = len(x) * restarts
        self.width = min(lanes, 1 << (self.jobs - 1).bit_length())
        # One after the other, an idle lane costs nothing, so a few are enough and there is no need to narrow.
        self.one_by_one = _one_by_one(_member(starts, 0), x.shape[1])
        if self.one_by_one:
            self.width = min(self.width, ONE_BY_ONE)
        # On a device the flags are read one call late, so that it never waits for the host.
        self.late = 0 if jax.default_backend() == "cpu" else 1

    def run(self, report: Callable[[int], None], stop: Callable[[], bool] | None) -> Fit:
        """Work through all jobs; the best of each problem's restarts, with its status told exactly."""
        lanes, results = _idle(self.solver, self.starts, self.problems, width=self.width)
        jobs, loaded = np.full(self.width, self.jobs, np.int32), np.zeros(self.width, int)
        refill, waiting = np.full(self.width, True), 0
        left = np.full(self.jobs // self.restarts, self.restarts)
        flags: list[tuple[int, Array]] = []
        for call in itertools.count():
            given = np.flatnonzero(refill)[: self.jobs - waiting]
            jobs[refill], loaded[refill] = self.jobs, call
            jobs[given] = np.arange(waiting, waiting + len(given))
            waiting += len(given)
            with _COMPILING if call == 0 else contextlib.nullcontext():
                lanes, results, status = _turn(
                self.solver, lanes, results, self.problems, self.starts, refill, jobs, self.limits,
                restarts=self.restarts, one_by_one=self.one_by_one,
            )  # fmt: skip
            running = jobs < self.jobs
            if not running.any():
                return _choose(results, self.problems, self.floor, restarts=self.restarts)
            if not self.one_by_one and waiting == self.jobs and running.sum() <= len(jobs) // NARROW:
                keep = np.argsort(~running, kind="stable")[: len(jobs) // NARROW]
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
            if stop is not None and stop():
                waiting, jobs[~refill] = self.jobs, self.jobs
        raise AssertionError


@partial(jax.jit, static_argnames="restarts")
def _prepare(
    starts: Any, x: Array, weight: Array, labels: Array | None, prior: Any, *, restarts: int
) -> tuple[_Problems, Statistics]:
    first = jax.tree.map(lambda leaf: leaf[::restarts], starts)

    def one(model: Any, x: Array, weight: Array, labels: Array | None) -> tuple[_Problems, Statistics]:
        data = model.observe(x)
        pseudo = pseudo_statistics(prior, model, data, weight)
        return _Problems(data if labels is None else Labelled(data, labels), weight, pseudo), model.floor(data, weight)

    return jax.vmap(one, in_axes=(0, 0, 0, None if labels is None else 0))(first, x, weight, labels)


@partial(jax.jit, static_argnames="width")
def _idle(solver: Any, starts: Any, problems: _Problems, *, width: int) -> tuple[_Lanes, Progress]:
    """Lanes without work, and a place for the result of every job: until then its start, as interrupted."""
    model, problem = _member(starts, 0), _member(problems, 0)
    progress = begin(solver, model, problem.data, problem.weight, problem.prior)
    progress = replace(progress, status=jnp.full((), int(Status.interrupted), jnp.int32))
    jobs = jax.tree.leaves(starts)[0].shape[0]

    def many(count: int) -> Progress:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), progress)

    return _Lanes(many(width), jnp.full(width, jobs, jnp.int32)), replace(many(jobs), model=starts)


@partial(jax.jit, static_argnames=("restarts", "one_by_one"), donate_argnames=("lanes", "results"))
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
) -> tuple[_Lanes, Progress, Array]:
    """Bank the lanes marked `refill`, load `jobs` into them, and advance every lane by `STEPS`."""
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

        def step(now: Progress) -> Progress:
            return advance(solver, now, mine.data, mine.weight, mine.prior, limits)

        if not one_by_one:
            return jax.lax.fori_loop(0, STEPS, lambda _, now: step(now), progress)
        # A lane by itself can stop when its fit does.
        last = jnp.maximum(progress.steps, 0) + STEPS

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
def _choose(results: Progress, problems: _Problems, floor: Statistics, *, restarts: int) -> Fit:
    """The best restart of each problem, as a `Fit`."""
    results = jax.tree.map(lambda leaf: leaf.reshape(-1, restarts, *leaf.shape[1:]), results)
    chosen = best(results.objective)
    results = jax.vmap(lambda result, index: jax.tree.map(lambda leaf: leaf[index], result))(results, chosen)
    rows = jnp.sum(problems.weight, axis=-1)
    return Fit(
        model=results.model,
        log_likelihood=results.log_likelihood,
        objective=results.objective,
        steps=jnp.maximum(results.steps, 0),
        converged=results.status == int(Status.converged),
        status=jax.vmap(verdict)(results.model, results.status, floor, rows),
        trace=None,
    )


def _run(
    solver: Any,
    starts: Any,
    x: Array,
    weight: Array,
    labels: Array | None,
    prior: Any,
    limits: Limits,
    restarts: int,
    lanes: int,
    report: Callable[[int], None],
    stop: Callable[[], bool],
) -> Fit:
    with _COMPILING:
        queue = _Queue(solver, starts, x, weight, labels, prior, limits, restarts, lanes)
    return queue.run(report, stop)


class _Reporter:
    """Tells a person, or a function, how many problems are done; several queues may report to it."""

    def __init__(self, progress: bool | Callable[[int, int], None], total: int) -> None:
        self.tell, self.total, self.bar = progress if callable(progress) else None, total, None
        self.done: list[int] = []
        self.lock = threading.Lock()
        if progress is True:
            self.tell = self._open_bar()

    def _open_bar(self) -> Callable[[int, int], None]:
        try:
            from rich.progress import Progress as Bar
        except ImportError:
            raise ValueError("progress=True needs the package rich: pip install 'jaxem[cli]'") from None
        bar = Bar()
        task = bar.add_task("fits", total=self.total)
        self.bar = bar
        return lambda done, total: bar.update(task, completed=done)

    def __enter__(self) -> _Reporter:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def source(self) -> Callable[[int], None]:
        """A function for one queue to say how many of its problems are done."""
        with self.lock:
            self.done.append(0)
            mine = len(self.done) - 1

        def report(done: int) -> None:
            with self.lock:
                self.done[mine] = done
                if self.tell is not None:
                    self.tell(sum(self.done), self.total)

        return report
