"""The main job: for every group of a table, models of several sizes from several starts, and the best of them.

Groups of like size are padded to one length and fitted together, a slab at a time; slabs are few in shape, because
every shape is a compilation, and small enough that an interruption loses little.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxem as jem
from jaxem import priors
from jaxem.cli.columns import ColumnModel
from jaxem.cli.fit.checkpoint import Parts, Result
from jaxem.cli.fit.result import Outcome, free_numbers, summarise
from jaxem.cli.fit.schedule import Plan, Slab, plan, stack
from jaxem.cli.fit.settings import Settings
from jaxem.cli.table.groups import Grouped
from jaxem.data.sequences import Sequences
from jaxem.io.progress import Tally
from jaxem.latent.components import narrow

COMPILING = "/jax/core/compile/backend_compile_duration"


def run(
    grouped: Grouped,
    settings: Settings = Settings(),
    progress: Callable[..., Any] | None = None,
    parts: Parts | None = None,
) -> Outcome:
    """Fit all groups that can be fitted. A fit that fails is a status in the result, never an exception.

    Sets no JAX flag. `KeyboardInterrupt` ends it early: what is complete is returned, `interrupted` is set, and
    the other groups have that status.

    Args:
        grouped: the rows, see `jaxem.cli.table.groups`.
        settings: of fits and choice.
        progress: called with (fits done, fits in all, groups in words), from several threads.
        parts: where finished slabs are kept; those that are there already are not fitted again. Of several processes
            each fits its share, and process 0 returns all.

    Raises:
        InputError: a finished slab cannot be written, or another process is dead.
    """
    began = time.perf_counter()
    outcome = Outcome.empty(grouped, settings)
    shapes = plan(grouped, outcome.fittable, settings.components, settings.restarts)
    mine, theirs = _shares(outcome, shapes.slabs, parts)
    each = len(settings.components) * settings.restarts
    stop, tally = threading.Event(), Tally(each * sum(len(slab.groups) for slab in shapes.slabs))
    if progress is not None:
        tally.tell = lambda done, total: progress(done, total, f"{done // each:,} of {total // each:,} groups")
    tally.put("before", outcome.before * each)
    free, outcome.workers = _free_devices(settings)
    with contextlib.ExitStack() as held:
        if parts is not None:
            held.enter_context(parts.peers.watched(stop, parts.advice))
        compiling = held.enter_context(compilation_seconds())
        pool, waiting = (held.enter_context(ThreadPoolExecutor(threads)) for threads in (outcome.workers, 1))
        work = partial(_fit_slab, grouped, settings, shapes, free, stop, tally, parts)
        futures = {pool.submit(work, slab): slab for slab in mine}
        if parts is not None:
            wait = partial(_await, parts, stop, tally, each)
            futures |= {waiting.submit(wait, slab): slab for slab in theirs}
        try:
            _collect(outcome, futures)
        except KeyboardInterrupt:
            outcome.interrupted = True
            stop.set()
            _collect(outcome, futures)
        except BaseException:
            stop.set()
            raise
    outcome.seconds, outcome.compile_seconds = time.perf_counter() - began, compiling()
    outcome.fits = tally.done - outcome.before * each
    return outcome


def _free_devices(settings: Settings) -> tuple[queue.SimpleQueue[Any], int]:
    """Each device of this process, repeated as often as slabs may share it; and how many in all."""
    devices = jax.local_devices(backend=settings.device) * settings.workers
    free = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    return free, len(devices)


def _shares(outcome: Outcome, slabs: list[Slab], parts: Parts | None) -> tuple[list[Slab], list[Slab]]:
    """Slabs to fit in this process, and slabs to wait for; results of an earlier run are stored.

    Unfinished slabs are dealt out in turn, so that each process has as much to do in a continued job, too.
    """
    if parts is None:
        return slabs, []
    left = [slab for slab in slabs if slab.index not in parts.finished]
    mine = left[parts.peers.index :: parts.peers.count]
    if parts.peers.index > 0:
        return mine, []
    for slab in slabs:
        if slab.index in parts.finished:
            if (result := parts.read(slab)) is None:
                mine.append(slab)
            else:
                outcome.store(slab, *result)
                outcome.before += len(slab.groups)
    return mine, [slab for turn, slab in enumerate(left) if turn % parts.peers.count]


def _await(parts: Parts, stop: threading.Event, tally: Tally, each: int, slab: Slab) -> Result | None:
    """Result of a slab from another process, with `each` fits for each group; None if stopped before."""
    while (result := parts.read(slab)) is None:
        if stop.wait(0.2):
            return None
    tally.put(slab.index, len(slab.groups) * each)
    return result


def _fit_slab(
    grouped: Grouped,
    settings: Settings,
    shapes: Plan,
    free: queue.SimpleQueue[Any],
    stop: threading.Event,
    tally: Tally,
    parts: Parts | None,
    slab: Slab,
) -> Result | None:
    """Scores for every number of components and the chosen models; None if stopped."""
    if stop.is_set():
        return None
    # Both are settings of this thread only.
    with jax.enable_x64(settings.dtype == "float64"), _device(free):
        x, weight = stack(grouped, slab, settings.dtype)
        starts = starting_models(grouped.kind, settings, slab, x, weight)
        results, most = [], max(settings.components)
        for capacity, counts in shapes.capacities:
            fit = _climb(settings, stop, tally, slab, [starts[k] for k in counts], x, weight, capacity)
            if stop.is_set():
                return None
            for i, k in enumerate(counts):
                part = slice(i * slab.size, (i + 1) * slab.size)
                members = jax.tree.map(lambda leaf, part=part: leaf[part], fit.model)
                scores = fit.log_likelihood[part], fit.steps[part], fit.status[part], free_numbers(starts[k], most)
                results.append((members, *scores))
        chosen = summarise(results, x, weight, settings, len(slab.groups), grouped.n[slab.groups])
        if parts is not None:
            parts.write(slab, chosen)
        return chosen


@contextlib.contextmanager
def _device(free: queue.SimpleQueue[Any]) -> Iterator[None]:
    """A free device, until the end."""
    device = free.get()
    try:
        with jax.default_device(device):
            yield
    finally:
        free.put(device)


def starting_models(kind: ColumnModel, settings: Settings, slab: Slab, x: Any, weight: np.ndarray) -> dict[int, Any]:
    """Starts `[size, restarts]` for each number of components; mixtures in the shape of the largest."""
    key = jax.random.fold_in(jax.random.key(settings.seed), slab.index)
    begin = partial(jem.start_many, weight=weight, restarts=settings.restarts, method=settings.method)
    starts, most = {}, max(settings.components)
    for k in settings.components:
        mine = jax.random.fold_in(key, k)
        if isinstance(x, Sequences):
            starts[k] = begin(mine, kind.family, x, k)
        else:
            starts[k] = begin(mine, kind.family, x, most, active=np.full(slab.size, k, np.int32))
    return jax.tree.map(np.asarray, starts)


def _climb(
    settings: Settings,
    stop: threading.Event,
    tally: Tally,
    slab: Slab,
    starts: Sequence[Any],
    x: Any,
    weight: np.ndarray,
    capacity: int,
) -> jem.Fit:
    """Fits of a slab from several sets of starts in one shape; the first axis is sets, then groups."""
    many = len(starts)
    models = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(narrow(start, capacity) for start in starts))
    share = settings.restarts * len(slab.groups) / slab.size
    xs = jax.tree.map(lambda leaf: np.concatenate([leaf] * many), x)
    fit = jem.fit_many(
        models, xs, jem.EM(), weight=np.concatenate([weight] * many),
        prior=priors.Weak() if settings.prior == "weak" else None,
        tol=settings.tol, max_steps=settings.max_steps, stop=stop.is_set,
        progress=lambda done, total: tally.put((slab.index, capacity), done * share),
    )  # fmt: skip
    tally.put((slab.index, capacity), len(slab.groups) * many * settings.restarts)
    return jax.tree.map(np.asarray, fit)


def _collect(outcome: Outcome, futures: dict[Any, Slab]) -> None:
    for future in as_completed(futures):
        with contextlib.suppress(CancelledError):
            if (result := future.result()) is not None:
                outcome.store(futures[future], *result)


@contextlib.contextmanager
def compilation_seconds() -> Iterator[Callable[[], float]]:
    """Time of XLA's compilations, summed over threads."""
    seconds = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILING:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: sum(seconds)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
