"""Fit thousands of models in one call: problems into few shapes, shapes into queues, results back in order."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem._version import version
from jaxem.data.arrays import numbers
from jaxem.data.problems import as_problems
from jaxem.distributions.base import check_model
from jaxem.fitting.checks import check_labelled, check_limits, check_prior
from jaxem.fitting.loop import Limits
from jaxem.fitting.many.batching import Batch, batched, shared_batch, some
from jaxem.fitting.many.checkpoint import Checkpoint, Shelf
from jaxem.fitting.many.device import member
from jaxem.fitting.many.fingerprint import fingerprint
from jaxem.fitting.many.memory import free, shared_out, sizes
from jaxem.fitting.many.queue import LaneSchedule, Queue, pace
from jaxem.fitting.result import Fit
from jaxem.io.progress import Tally, reported
from jaxem.solvers.em import EM
from jaxem.solvers.transformations import with_first_like
from jaxem.solvers.words import as_solver

IN_PIECES = 8
"""Fraction of the free memory filled while data are prepared, because copies are made on the way."""

log = logging.getLogger("jaxem")


def fit_many(
    models: Any,
    xs: Any,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    shared: bool = False,
    tol: float | Sequence[float] | Array | np.ndarray = 1e-6,
    max_steps: int = 1000,
    progress: bool | Callable[[int, int], None] = False,
    stop: Callable[[], bool] | None = None,
    lanes: int | None = None,
    devices: Sequence[Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Fit:
    """Fit B models, each to its own rows.

    Args:
        models: the starts, `batch_shape` (B,), or (B, R) for R starts of each problem: the best is returned,
            chosen as by `fit`. Or a list of B models of one kind and size.
        xs: `[B, n, ...]`, an array or `Incomplete`, or a list of B arrays of any lengths; for models of sequences a
            list of B `Sequences`, or a batch of them (`Sequences.batch`).
        solver: as in `fit`.
        weight: row weights, shaped like the rows of xs.
        prior: as in `fit`; the same for all problems, or scaled to each by itself (`jaxem.priors.Weak`).
        labels: known components, shaped like the rows of xs; -1 where unknown, and None for a problem without any.
        shared: whether all models read the same rows: then xs are the data of one problem, as `fit` takes them,
            `weight` is `[B, n]`, and `labels` are `[n]`. No row is copied, whatever B is: a bootstrap needs weights.
        tol: stop a problem when its predicted remaining gain is below this many nats a row: one number, or `[B]`.
        max_steps: M-steps at most, for each.
        progress: True for a bar (of tqdm in notebooks, of rich in terminals), or a function that is called with
            (problems done, problems in all).
        stop: called between compiled calls; once it returns True, unfinished problems end as `interrupted`.
        lanes: how many fits advance together, at most. If left out, it is chosen; on an accelerator its
            memory limits it, and problems that do not fit at once take turns. The logger
            `jaxem` says which, at the level INFO.
        devices: to which the problems are dealt, independently; an array xs that lies on several
            devices names them by that. Every device compiles for itself, all of them at once.
        checkpoint: a folder for the state of a call that may be cut short. Every half minute, when it is
            stopped, on Ctrl-C and at the end the state is saved there; the same call goes on from it and ends with the
            same bits, on another number of devices or cores too. The folder stays, and a call that had ended returns
            its result again: delete it when that is safe. For one call at a time, in one process.

    Returns:
        A `Fit` whose fields have a leading axis B, in the order given, on the default device; each entry is what `fit`
        returns for that problem. A problem that fails changes no other.

    Raises:
        TypeError: xs does not hold numbers.
        ValueError: shapes that do not fit each other, or an empty problem (named by its index); a checkpoint of a call
            that was given something else.
        OSError: a checkpoint that cannot be written (raised before the first step, if it can be known then).

    >>> import jax, jaxem as jem
    >>> xs = [jax.numpy.array([[0.0], [0.5], [5.0], [5.5]]), jax.numpy.array([[1.0], [1.5], [9.0]])]
    >>> start = jem.SphericalGaussian([[[0.0], [5.0]], [[1.0], [9.0]]], jax.numpy.ones((2, 2)))
    >>> fits = jem.fit_many(jem.Mixture(jax.numpy.full((2, 2), 0.5), start), xs)
    >>> fits.model.components.mean.round(2).tolist()
    [[[0.25], [5.25]], [[1.25], [9.0]]]
    """
    models, solver = _as_batch(models), with_first_like(as_solver(solver))
    check_model(models, xs, "models")
    if lanes is not None and not (lanes >= 1 and int(lanes) == lanes):
        raise ValueError(f"lanes is {lanes}; it must be a whole number, one or above")
    problems, restarts = _batch_shape(models)
    max_steps = check_limits(tol, max_steps, (problems,))
    tols = np.broadcast_to(np.asarray(numbers(tol, "tol"), float), problems)
    # On the host, where slicing needs no compilation.
    leading = len(models.batch_shape)
    starts = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(problems * restarts, *leaf.shape[leading:]), models)
    model = jax.tree.map(jnp.asarray, member(starts, 0))
    check_labelled(model, labels)
    check_prior(prior)
    if shared:
        if np.shape(weight)[:1] != (problems,):
            raise ValueError(
                f"weight has shape {np.shape(weight)}; with shared rows it must be ({problems}, rows), a line each"
            )
        xs = model.read(xs)
    else:
        xs, weight, labels = as_problems(xs, weight, labels, problems, model.read)
    (home,) = jnp.zeros(()).devices()
    devices = _devices(devices, xs) or [home]
    given = {"models": models, "xs": xs, "solver": solver, "weight": weight, "prior": prior, "labels": labels}
    if len(devices) > 1 and not isinstance(xs, (list, tuple)):
        xs = jax.device_get(xs)
    memory = free(home)
    if shared:
        batches = [shared_batch(model, xs, weight, labels)]
    else:
        batches = batched(model, xs, weight, labels, restarts, None if memory is None else memory // IN_PIECES)
    paces = [pace(model, batch.x, batch.weight, devices[0].platform) for batch in batches]
    deals = [
        _deal(how, len(batch.index), lanes, devices, partial(sizes, solver, model, batch, prior, restarts))
        for how, batch in zip(paces, batches, strict=True)
    ]
    keep = None
    if checkpoint is not None:
        keep = Checkpoint(
            checkpoint,
            _fingerprints(given, tol=tol if np.ndim(tol) == 0 else tols.tolist(), max_steps=max_steps, lanes=lanes),
            deals,
        )
        deals = keep.deals
    parts = [
        _Part(batch, which, width)
        for batch, (count, width) in zip(batches, deals, strict=True)
        for which in np.array_split(np.arange(len(batch.index)), count)
    ]
    call = _Call(starts, restarts, solver, prior, tols, max_steps)
    queues = [partial(_run, call, part, None if keep is None else keep.shelf(i)) for i, part in enumerate(parts)]
    slots = devices * max(_threads(how, devices) for how in paces)
    with reported(progress, "fitting") as tell:
        fits = _run_all(queues, slots, home, keep is not None, Tally(problems, tell), stop)
    order = np.argsort(np.concatenate([part.batch.index[part.which] for part in parts]), kind="stable")
    return _in_order(fits, order)


@jax.jit
def _in_order(fits: list[Fit], order: Array) -> Fit:
    """Results of all queues, as one and in the order given."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *fits)


class _Call(NamedTuple):
    """Arguments common to all queues; models `[problems x restarts]`, on the host."""

    models: Any
    restarts: int
    solver: Any
    prior: Any
    tols: np.ndarray
    max_steps: int


class _Part(NamedTuple):
    """Problems of a batch that one queue works on, and its number of lanes."""

    batch: Batch
    which: np.ndarray
    lanes: int


def _as_batch(models: Any) -> Any:
    """Models as one stacked model; a list is stacked."""
    if not isinstance(models, (list, tuple)) or not len(models):
        return models
    for i, model in enumerate(models):
        check_model(model, name=f"models[{i}]")
        if jax.tree.structure(model) != jax.tree.structure(models[0]):
            raise ValueError(f"models[{i}] is of another kind than models[0]; all must be alike, for one fit_many each")
        shapes = [[leaf.shape for leaf in jax.tree.leaves(one)] for one in (model, models[0])]
        if shapes[0] != shapes[1]:
            raise ValueError(f"models[{i}] has parameters of other shapes than models[0]; make a call for each size")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *models)


def _batch_shape(models: Any) -> tuple[int, int]:
    shape = models.batch_shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"models has batch shape {shape}; it must be (problems,) or (problems, restarts)")
    return shape[0], shape[1] if len(shape) == 2 else 1


def _devices(devices: Sequence[Any] | None, xs: Any) -> list[Any]:
    """The devices named, or those of xs if there are several; else none."""
    if devices is None:
        values = None if isinstance(xs, (list, tuple)) else jax.tree.leaves(xs)[0]
        if not isinstance(values, jax.Array) or len(values.sharding.device_set) == 1:
            return []
        devices = sorted(values.sharding.device_set, key=lambda device: device.id)
    if not devices:
        raise ValueError("devices is empty; it must hold one device or more, of jax.local_devices()")
    for i, device in enumerate(devices):
        if device not in jax.local_devices(backend=getattr(device, "platform", None)):
            raise ValueError(f"devices[{i}] is {device!r}; it must be a device of this process, of jax.local_devices()")
    return list(devices)


def _threads(how: LaneSchedule, devices: list[Any]) -> int:
    """Number of threads for each device: one if XLA spreads the lanes over the cores, else several."""
    return max(1, (os.cpu_count() or 1) // len(devices)) if how.threads else 1


def _deal(
    how: LaneSchedule, problems: int, lanes: int | None, devices: list[Any], sizes: Callable[[], tuple[int, int]]
) -> list[int]:
    """Number of queues for the problems of a batch, and lanes of each."""
    most = how.lanes if lanes is None else min(lanes, how.lanes)
    memory = [free(device) for device in devices]
    known = [room for room in memory if room is not None]
    where = ", ".join(str(device) for device in devices)
    if len(known) < len(memory):
        log.info("%d lanes for %d problems of one shape on %s", most, problems, where)
        return [min(problems, _threads(how, devices) * len(devices)), most]
    lane, problem = sizes()
    queues, most = shared_out(lane, problem, -(-problems // len(devices)), most, min(known))
    log.info(
        "%d lanes of %.3g MB and %d problems of %.3g MB, in %d turns, of %.3g MB that may be taken on %s",
        most, lane / 1e6, problems, problem / 1e6, queues, min(known) / 1e6, where,
    )  # fmt: skip
    return [min(problems, queues * len(devices)), most]


def _fingerprints(given: dict[str, Any], **plain: Any) -> dict[str, str]:
    """Fingerprints of everything that a result depends on, for a checkpoint."""
    plain |= {"floats": jnp.result_type(float), "jaxem": version, "jax": jax.__version__}
    plain |= {name: value if value is None else fingerprint(value) for name, value in given.items()}
    return {name: str(value) for name, value in plain.items()}


def _run(
    call: _Call,
    part: _Part,
    shelf: Shelf | None,
    device: Any,
    report: Callable[[int], None],
    stop: Callable[[], bool],
) -> Fit:
    models, restarts, solver, prior, tols, max_steps = call
    batch = part.batch
    if len(part.which) < len(batch.index):
        batch = some(jax.device_get(batch), part.which)
    jobs = (batch.index[:, None] * restarts + np.arange(restarts)).ravel()
    starts = jax.tree.map(lambda leaf: leaf[jobs], models)
    limits = Limits(jnp.asarray(tols[batch.index], batch.weight.dtype), jnp.asarray(max_steps, jnp.int32))
    queue = Queue(solver, starts, *batch[1:], prior, limits, restarts, part.lanes, device)
    return queue.run(report, stop, shelf)


def _run_all(
    queues: list[Callable[..., Fit]],
    slots: list[Any],
    home: Any,
    apart: bool,
    tally: Tally,
    stop: Callable[[], bool] | None,
) -> list[Fit]:
    """Run the queues, each on the device of a free slot; an error or Ctrl-C ends them all.

    With several slots, or `apart`, each runs in a thread, which Ctrl-C does not interrupt: its state stays consistent.
    """
    ended = threading.Event()

    def stopped() -> bool:
        return ended.is_set() or (stop is not None and stop())

    # `jax_enable_x64` and the default device are thread-local in JAX: pass on the caller's.
    wide, default = jnp.result_type(float) == jnp.float64, jax.config.jax_default_device  # type: ignore
    idle: SimpleQueue[Any] = SimpleQueue()
    for slot in slots:
        idle.put(slot)

    def run(queue: Callable[..., Fit]) -> Fit:
        device = idle.get()
        try:
            # The default device stays unnamed: to JAX a named one is different, and would compile again.
            with jax.enable_x64(bool(wide)), jax.default_device(default if device == home else device):
                fit = queue(device, partial(tally.put, object()), stopped)
                return fit if device == home else jax.device_get(fit)
        except BaseException:
            ended.set()  # now, and not when the results are collected: that is in order
            raise
        finally:
            idle.put(device)

    if len(slots) == 1 and not apart:
        return [run(queue) for queue in queues]
    with ThreadPoolExecutor(len(slots)) as pool:
        try:
            return list(pool.map(run, queues))
        except BaseException:
            ended.set()
            raise
