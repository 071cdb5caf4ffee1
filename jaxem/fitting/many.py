"""Fit thousands of models in one call: problems into few shapes, shapes into lanes, results back in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.data import as_floats, check_labels, check_weight, ready, stacked
from jaxem.fitting.fit import check_limits, hidden_states
from jaxem.fitting.lanes import COMPILING, Queue, member, pace
from jaxem.fitting.loop import Limits
from jaxem.fitting.ragged import SHAPE, padded_lengths
from jaxem.fitting.result import Fit
from jaxem.missing import Incomplete, cells, has_nan, incomplete
from jaxem.sequences import Sequences
from jaxem.sequences import stacked as stacked_sequences
from jaxem.solvers.em import EM

LANES = 256


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
        xs: `[B, n, ...]`, an array or `Incomplete`, or a list of B arrays of any lengths; for models of sequences a
            list of B `Sequences`, or a batch of them (`Sequences.batch`).
        solver: how to climb.
        weight: row weights, shaped like the rows of xs.
        prior: as in `fit`; the same for all problems, or scaled to each by itself (`jaxem.priors.Weak`).
        labels: known components, shaped like the rows of xs; -1 where unknown.
        tol: stop a problem when its predicted remaining gain is below this many nats a row.
        max_steps: M-steps at most, for each.
        progress: True for a bar, or a function that is called with (problems done, problems in all).
        stop: called between compiled calls; once it returns True, unfinished problems end as `interrupted`.
        lanes: how many fits advance together, at most.

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
    problems, restarts = _batch_shape(models)
    leading = len(models.batch_shape)
    # On the host: what is cut out there is not a program to compile.
    models = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(problems * restarts, *leaf.shape[leading:]), models)
    model = jax.tree.map(jnp.asarray, member(models, 0))
    threads, queues, indices = 1, [], []
    for batch in _batches(model, xs, weight, labels, problems, restarts):
        limits = Limits(jnp.asarray(tol, batch.weight.dtype), jnp.asarray(max_steps, jnp.int32))
        parts = min(_workers(model, batch), len(batch.index))
        threads = max(threads, parts)
        for part in np.array_split(np.arange(len(batch.index)), parts):
            mine = batch if parts == 1 else jax.tree.map(lambda leaf, part=part: leaf[part], batch)
            jobs = (mine.index[:, None] * restarts + np.arange(restarts)).ravel()
            starts = jax.tree.map(lambda leaf, jobs=jobs: leaf[jobs], models)
            queues.append(partial(_run, solver, starts, mine, prior, limits, restarts, lanes))
            indices.append(mine.index)
    with _Reporter(progress, problems) as report:
        fits = _run_all(queues, threads, report, stop)
    order = np.argsort(np.concatenate(indices), kind="stable")
    return _in_order(fits, order)


@jax.jit
def _in_order(fits: list[Fit], order: Array) -> Fit:
    """The results of all queues, as one and in the order given."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *fits)


class _Batch(NamedTuple):
    """Problems of one length: their numbers `[p]`, rows `[p, n, ...]`, weights and labels `[p, n]`."""

    index: np.ndarray  # type: ignore[reportIncompatibleMethodOverride]
    x: Any
    weight: Array
    labels: Array | None


def _workers(model: Any, batch: _Batch) -> int:
    """Threads that pay: side by side, XLA spreads the lanes over the cores; else it cannot."""
    alone = jax.default_backend() == "cpu" and pace(model, batch.x, batch.weight.shape[1]).threads
    return (os.cpu_count() or 1) if alone else 1


def _run(
    solver: Any,
    starts: Any,
    batch: _Batch,
    prior: Any,
    limits: Limits,
    restarts: int,
    lanes: int,
    report: Callable[[int], None],
    stop: Callable[[], bool],
) -> Fit:
    with COMPILING:
        queue = Queue(solver, starts, batch.x, batch.weight, batch.labels, prior, limits, restarts, lanes)
    return queue.run(report, stop)


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


def _batch_shape(models: Any) -> tuple[int, int]:
    shape = models.batch_shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"models has batch shape {shape}; it must be (problems,) or (problems, restarts)")
    return shape[0], shape[1] if len(shape) == 2 else 1


def _batches(model: Any, xs: Any, weight: Any, labels: Any, problems: int, restarts: int) -> list[_Batch]:
    """Problems of like length together, padded with rows of weight zero."""
    if len(xs) != problems:
        raise ValueError(f"xs holds {len(xs)} problems and models {problems}; they must be as many")
    states = hidden_states(model)
    if isinstance(xs, Sequences):
        row_weight = np.ones(xs.length.shape) if weight is None else _shaped(weight, xs.length.shape, "weight")
        return _padded(np.arange(problems), xs, row_weight, labels, states)
    if not isinstance(xs, Incomplete) and isinstance(first := model.read(xs[0]), Sequences):
        return _sequence_batches([first, *(model.read(x) for x in xs[1:])], weight, labels, states, restarts)
    if not isinstance(xs, (list, tuple)):
        x = as_floats(xs)
        shape = cells(x).shape
        if len(shape) < 2:
            raise ValueError(f"xs has shape {shape}; it must be [problems, rows, ...] or a list of arrays")
        row_weight = np.ones(shape[:2]) if weight is None else _shaped(weight, shape[:2], "weight")
        known = None if labels is None else _shaped(labels, shape[:2], "labels")
        return _padded(np.arange(problems), x, row_weight, known, states)

    arrays = [np.asarray(x) for x in xs]
    lengths = np.array([len(array) for array in arrays])
    if not lengths.all():
        raise ValueError(f"xs[{int(np.argmin(lengths))}] has no rows; leave that problem out")
    batches = []
    for length, index in _by_length(lengths, restarts * (states or 1)):
        x, row_weight, known = stacked(_of(index, arrays), length, _of(index, weight), _of(index, labels))
        batches += _padded(index, as_floats(x), row_weight, known, states)
    return batches


def _of(index: np.ndarray, values: Any) -> Any:
    """What belongs to some problems, if it is there at all."""
    return None if values is None else [values[i] for i in index]


def _by_length(lengths: np.ndarray, work: int) -> Iterator[tuple[int, np.ndarray]]:
    """Few lengths to pad to, each with the problems that it is for; `work` is what a row stands for."""
    shapes = padded_lengths(lengths, price=SHAPE / work)
    for length, shorter in zip(shapes, [0, *shapes[:-1]], strict=True):
        yield int(length), np.flatnonzero((lengths <= length) & (lengths > shorter))


def _sequence_batches(xs: list[Sequences], weight: Any, labels: Any, states: int | None, restarts: int) -> list[_Batch]:
    """Problems whose longest sequences are of like length together, padded with steps and with sequences."""
    batches = []
    work = restarts * (states or 1) * max(len(x) for x in xs)
    for steps, index in _by_length(np.array([x.steps for x in xs]), work):
        padded = stacked_sequences(_of(index, xs), steps, _of(index, weight), _of(index, labels))
        batches += _padded(index, *padded, states)
    return batches


def _padded(index: np.ndarray, x: Any, weight: Any, labels: Any, states: int | None) -> list[_Batch]:
    """Problems of one shape; those with missing cells apart, because the others are done in a simpler way."""
    check_weight(weight)
    if labels is not None:
        check_labels(labels, states)
    weight = np.asarray(weight, getattr(x, "values", x).dtype)
    batch = _Batch(index, *_ready(x, weight, labels))
    if not has_nan(batch.x):
        return [batch]
    gaps = np.isnan(np.asarray(batch.x)).reshape(len(index), -1).any(axis=1)
    parts = [jax.tree.map(lambda leaf, some=some: leaf[some], batch) for some in (~gaps, gaps) if some.any()]
    return [part._replace(x=incomplete(part.x)) for part in parts]


@jax.jit
def _ready(x: Any, weight: Any, labels: Any) -> Any:
    return jax.vmap(ready, in_axes=(0, 0, None if labels is None else 0))(x, weight, labels)


def _shaped(value: Any, shape: tuple[int, ...], name: str) -> Any:
    if np.shape(value) != shape:
        raise ValueError(f"{name} has shape {np.shape(value)}; with these xs it must be {shape}")
    return value


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
