"""Fit one model to more rows than memory holds: every step reads them again, batch by batch.

Statistics add over rows. So a step of EM needs only their sum, and the same step, stopping rule
and statuses as in `fit` serve here: the solver is given `ReducedEStep` in place of rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core.pytree import module, replace, static
from jaxem.core.summation import two_sum
from jaxem.data.batches import read_ahead
from jaxem.data.prepare import prepare
from jaxem.data.sequences import Sequences
from jaxem.distributions.base import Statistics, add, check_model, scale
from jaxem.fitting.checks import check_limits, check_prior, check_rows, check_starts
from jaxem.fitting.finish import best_of, make_result
from jaxem.fitting.loop import Limits, Progress, advance, begin
from jaxem.fitting.regularisation import Blank, regularisers
from jaxem.fitting.result import Fit
from jaxem.fitting.sources import multihost
from jaxem.fitting.sources.summary import DatasetSummary
from jaxem.fitting.status import Status
from jaxem.fitting.stopping import Windows
from jaxem.io.progress import reported
from jaxem.solvers.em import EM, RowSource, expectation
from jaxem.solvers.online import OnlineEM
from jaxem.solvers.transformations import with_first_like
from jaxem.solvers.words import as_solver


def fit_stream(
    model: Any,
    batches: Any,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    *,
    prior: Any = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
    progress: bool | Callable[[int, float], None] | None = None,
    processes: bool = False,
) -> Fit:
    """Fit `model` to batches of rows that are read again for every step, as `fit` does to all of them together.

    The rows are read once to summarise them, and then once a step. The next batch is read while the current one is
    worked on, and only a few are held at any time. Sums over batches are taken pairwise, and that of
    the log-likelihood is compensated. Nothing compiles after the first step.

    With `OnlineEM` the batches are read once, in their order, and `batch_size` of their rows at a time, in a shuffled
    order, make an update. What `fit` takes from all rows (the floor, a prior's scale) comes from the first batch, and
    `tol` and `max_steps` are not looked at: the fit ends as `max_steps_reached`. If the batches can be read again, they
    are, for the log-likelihood; of a generator, which cannot, `log_likelihood` and `objective` are NaN.

    Args:
        model: the initial parameters. With one leading axis of R starts, all share each batch and the best is returned,
            as by `fit`.
        batches: something to iterate over again and again (`jem.batches` makes one; a list; an object with `__iter__`)
            that gives the same batches each time: rows `[n]` or `[n, D]` as `fit` takes them, or `Sequences`, or pairs
            of these and their `[n]` weights. They may differ in length; the fewer lengths, the better.
        solver: one whose step evaluates all rows once, as EM, HardEM, AnnealedEM, SQUAREM, Anderson, and
            Gradient without `batch_size` do; or `OnlineEM`.
        prior: as in `fit`.
        tol: stop when the predicted remaining gain is below this many nats a row.
        max_steps: M-steps at most.
        progress: True for a bar, or a function that is called after each pass with (M-steps, objective of the best
            start).
        processes: whether processes of `jax.distributed` each pass batches of their own. Then all make this call
            and get the same result, that of all batches together. Not for `OnlineEM`.

    Returns:
        A `Fit`. Its `passes` do not count the initial one; its `trace` is None after `OnlineEM`.

    Raises:
        TypeError: batches that cannot be read again, or do not hold numbers.
        ValueError: what `fit` raises, with the batch named; no rows; a solver that needs several passes a step;
            batches that differ when they are read again. Exceptions of reading are raised unchanged.

    >>> import numpy as np, jaxem as jem
    >>> x = np.array([[-1.1], [-0.9], [-1.0], [1.9], [2.0], [2.1]])
    >>> start = jem.Mixture([0.5, 0.5], jem.Gaussian([[-1.0], [1.0]], [[[1.0]], [[1.0]]]))
    >>> fit = jem.fit_stream(start, jem.batches(x, rows=4))
    >>> fit.model.components.mean.round(2).tolist(), fit.status_name
    ([[-1.0], [2.0]], 'converged')
    """
    check_model(model, batches)
    solver, max_steps = with_first_like(as_solver(solver)), check_limits(tol, max_steps)
    check_starts(model)
    check_prior(prior)
    once = _check_batches(batches)
    if isinstance(solver, OnlineEM):
        if processes or model.batch_shape:
            raise ValueError("OnlineEM: it takes one model, in one process; use EM()")
        return _one_pass(model, batches, solver, prior, once)
    if once:
        raise TypeError(
            "batches can be read once only, and each step reads them again; pass a list, jem.batches(...), or an "
            "object with a method __iter__ (for a single pass use OnlineEM)"
        )
    if solver.minibatch:
        raise _too_many_looks(solver)
    summary = surveyed(model, batches, prior, processes)
    with reported(progress, "fitting") as tell:
        if progress is True and tell is not None:
            bar, tell = tell, lambda steps, objective: bar(steps, max_steps, f"objective {objective:,.8g}")
        fits = fit_starts(model, batches, summary, solver, tol=tol, max_steps=max_steps, progress=tell)
    return best_of(fits) if model.batch_shape else fits


def fit_starts(
    model: Any,
    batches: Iterable[Any],
    summary: DatasetSummary,
    solver: Any,
    *,
    tol: float,
    max_steps: int,
    progress: Callable[[int, float], None] | None = None,
) -> Fit:
    """`fit_stream` after the first look at the batches: a `Fit` of every start, with the axis that the model has."""
    floor, pseudo = _regularised(model, *summary.sampled(), summary.prior)
    total, rows, least = (jnp.asarray(value, summary.dtype) for value in (summary.total, summary.observations, tol))
    limits = Limits(least, jnp.asarray(max_steps, jnp.int32))
    now, objectives = _first_progress(solver, model, total, pseudo, trace=Blank.of(max_steps))
    while (np.asarray(now.status) == int(Status.running)).any():
        summed = _pass(solver, now, batches, summary, pseudo)
        now, objectives = _next_progress(solver, now, summed, total, rows, pseudo, limits, objectives)
        if progress is not None:
            progress(int(np.max(now.steps)), float(np.max(now.objective)))
    return _results(solver, model, now, objectives, floor, total)


@module
class ReducedEStep(RowSource):
    """Result of an E-step over all rows, in place of the rows."""

    log_likelihood: Float[Array, "*r"]
    statistics: Statistics

    def expectation(self, model: Any, weight: Array, over: Any) -> tuple[Array, Statistics]:
        return self.log_likelihood, self.statistics


class Recorder:
    """The model and semiring of a solver's first call of `expectation`."""

    answer: tuple[Array, Statistics] | None = None


@module
class RecordingRows(RowSource):
    """Rows of one batch (or None) on which `solver.step` runs only to capture its E-step.

    The rest of that step is dead code, which XLA removes. The `note` is shared by all copies of the rows.
    """

    solver: Any
    x: Any
    weight: Array
    note: Recorder = static()

    def expectation(self, model: Any, weight: Array, over: Any) -> tuple[Array, Statistics]:
        if self.x is None or self.note.answer is not None:
            raise _too_many_looks(self.solver)
        self.note.answer = expectation(model, self.x, self.weight, over)
        return self.note.answer


def _too_many_looks(solver: Any) -> ValueError:
    return ValueError(
        f"{type(solver).__name__}: fit_stream takes solvers that look at all rows once a step, as EM(), SQUAREM(EM()) "
        "and Gradient(...) without batch_size do, or OnlineEM"
    )


@module
class Part:
    """E-step of some rows: log-likelihood, as a sum and its rounding error, and statistics."""

    log_likelihood: Array
    lost: Array
    statistics: Statistics


def _captured_e_step(solver: Any, now: Progress, x: Any, weight: Array, prior: Statistics) -> Part:
    """The E-step that the solver's next step makes on these rows; the rest of that step is discarded."""
    note = Recorder()
    solver.step(now.ahead, now.state, RecordingRows(solver, x, weight, note), weight, prior)
    if note.answer is None:
        raise _too_many_looks(solver)
    log_likelihood, statistics = note.answer
    return Part(log_likelihood, jnp.zeros_like(log_likelihood), statistics)


@jax.jit
def _part(solver: Any, now: Progress, x: Any, weight: Array, prior: Statistics) -> Part:
    """E-step of a batch; of several starts one after the other, skipping those that have ended."""
    if not now.ahead.batch_shape:
        return _captured_e_step(solver, now, x, weight, prior)

    def one(start: tuple[Progress, Statistics]) -> Part:
        now, prior = start

        def answer() -> Part:
            return _captured_e_step(solver, now, x, weight, prior)

        def nothing() -> Part:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(answer))

        return jax.lax.cond(now.status == int(Status.running), answer, nothing)

    return jax.lax.map(one, (now, prior))


@jax.jit
def _joined(a: Part, b: Part) -> Part:
    high, low = two_sum(a.log_likelihood, a.lost + b.lost, b.log_likelihood)
    return Part(high, low, add(a.statistics, b.statistics))


def _pass(
    solver: Any, now: Progress, batches: Iterable[Any], summary: DatasetSummary, prior: Statistics
) -> ReducedEStep:
    """E-step of the next step over all rows."""
    sums, counted, part = Pairwise(_joined), 0, None
    for x, weight, n in read_ahead(batches, named(summary.laid_out)):
        if n:
            # One batch is in work and one waits: the host must not run further ahead, or all of them would fill memory.
            jax.block_until_ready(part)
            part = _part(solver, now, x, weight, prior)
            sums.add(part)
            counted += n
    if counted != summary.counted:
        raise ValueError(
            f"batches gave {summary.counted:,} rows that count at first and {counted:,} when they were read again; "
            "they must be the same each time"
        )
    whole = sums.total()
    if summary.shared:
        whole = multihost.joined(whole, _joined)
    return ReducedEStep(whole.log_likelihood + whole.lost, whole.statistics)


def surveyed(model: Any, batches: Iterable[Any], prior: Any, processes: bool = False) -> DatasetSummary:
    """Summary of all rows, from a first pass."""
    summary = DatasetSummary(model, prior, processes)
    for _ in read_ahead(batches, named(summary.add)):
        pass
    if processes:
        multihost.surveyed(summary)
    if not summary.total:
        why = (
            "no rows"
            if not summary.sample.rows
            else f"{summary.sample.rows:,} rows, none with a weight and something seen"
        )
        raise ValueError(f"batches hold {why}; a fit needs at least one")
    return summary


def named(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`prepare`, whose errors name the number of the batch."""
    numbers = itertools.count()

    def one(batch: Any) -> Any:
        number = next(numbers)
        try:
            return prepare(batch)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"batches[{number}]: {error}") from error

    return one


def _check_batches(batches: Any) -> bool:
    """Whether the batches can be read once only; TypeError if they cannot be read at all."""
    if isinstance(batches, (str, Path, np.ndarray, jax.Array, Sequences)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is a {type(batches).__name__}; it must be something to iterate over that gives batches of rows, "
            "such as jem.batches(...)"
        )
    return iter(batches) is batches


def _over_starts(function: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """`function` of one start, vmapped if the model has several."""
    return jax.vmap(function) if model.batch_shape else function


@jax.jit
def _regularised(models: Any, x: Any, weight: Array, prior: Any) -> tuple[Statistics, Statistics]:
    return _over_starts(lambda model: regularisers(model, x, weight, prior), models)(models)


@partial(jax.jit, static_argnames="trace")
def _first_progress(
    solver: Any, models: Any, total: Array, pseudo: Statistics, *, trace: Blank
) -> tuple[Progress, Array]:
    """Progress before the first step, and an empty trace."""

    def one(model: Any, pseudo: Statistics) -> tuple[Progress, Array]:
        unread = RecordingRows(solver, None, total[None], Recorder())
        return begin(solver, model, unread, total[None], pseudo), trace.filled(total.dtype)

    return _over_starts(one, models)(models, pseudo)


@jax.jit
def _next_progress(
    solver: Any,
    now: Progress,
    summed: ReducedEStep,
    total: Array,
    rows: Array,
    pseudo: Statistics,
    limits: Limits,
    objectives: Array,
) -> tuple[Progress, Array]:
    """Progress after one more step."""

    def one(now: Progress, summed: ReducedEStep, pseudo: Statistics, objectives: Array) -> tuple[Progress, Array]:
        new = advance(solver, now, summed, total[None], rows, pseudo, limits)
        return new, objectives.at[new.steps].set(new.objective)

    return _over_starts(one, now.ahead)(now, summed, pseudo, objectives)


@jax.jit
def _results(solver: Any, models: Any, end: Progress, objectives: Array, floor: Statistics, total: Array) -> Fit:
    def one(model: Any, end: Progress, objectives: Array, floor: Statistics) -> Fit:
        return make_result(solver, model, end, objectives, floor, total[None])

    return _over_starts(one, models)(models, end, objectives, floor)


@dataclasses.dataclass
class Pairwise:
    """Pairwise sum: rounding grows with the logarithm of the number of parts.

    Attributes:
        join: adds two parts.
        sums: of 1, 2, 4, 8, ... parts, or None.
    """

    join: Callable[[Any, Any], Any]
    sums: list[Any] = dataclasses.field(default_factory=list)

    def add(self, part: Any) -> None:
        """Add one part."""
        for place, waiting in enumerate(self.sums):
            if waiting is None:
                self.sums[place] = part
                return
            part, self.sums[place] = self.join(waiting, part), None
        self.sums.append(part)

    def total(self) -> Any:
        """Sum of all parts so far, at least one."""
        first, *rest = [part for part in self.sums if part is not None]
        for part in rest:
            first = self.join(part, first)
        return first


def _one_pass(model: Any, batches: Iterable[Any], solver: OnlineEM, prior: Any, once: bool) -> Fit:
    """Fit by one pass: learn from each batch as it comes."""
    start, state, floor, pseudo, total = model, None, None, None, np.zeros(())
    for x, weight in read_ahead(batches, named(partial(_ready, model))):
        more = np.sum(weight, dtype=float)
        if not more:
            continue
        if state is None:
            floor, pseudo = _regularised(model, x, weight, prior)
            state = solver.init(model, x, weight, pseudo)
        sizes = jnp.asarray([total, total + more, more], weight.dtype)
        model, state = _updated(solver, model, state, x, weight, sizes, pseudo)
        total = total + more
    if state is None:
        raise ValueError("batches hold no rows that have a weight; a fit needs at least one")
    value = math.nan
    if not once:
        looks = (_log_likelihood(model, *batch) for batch in read_ahead(batches, partial(_ready, model)))
        value = sum(float(look) for look in looks)
    of_float = partial(jnp.asarray, dtype=jax.tree.leaves(pseudo)[0].dtype)
    sizes = of_float(value), floor, pseudo, of_float(total)
    return _single_pass_result(solver, start, model, state[0], *sizes, looked=not once)


def _ready(model: Any, batch: Any) -> tuple[Any, Array]:
    """A batch prepared as by `fit`."""
    x, weight = batch if isinstance(batch, tuple) else (batch, None)
    x, weight, _ = prepare(model.read(x), weight, None)
    if len(x):
        check_rows(model, x)
        model.check(x, weight, False)
    return x, weight


@jax.jit
def _updated(
    solver: OnlineEM, model: Any, state: Any, x: Any, weight: Array, sizes: Float[Array, "3"], prior: Statistics
) -> tuple[Any, Any]:
    """Model and state after one more batch, whose statistics are scaled to all rows so far, as are those before."""
    before, after, more = sizes
    statistics = scale(state[0], jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 1))
    return solver.learned(model, (statistics, *state[1:]), x, weight * (after / more), prior)


@jax.jit
def _log_likelihood(model: Any, x: Any, weight: Array) -> Array:
    return expectation(model, x, weight)[0]


@partial(jax.jit, static_argnames="looked")
def _single_pass_result(
    solver: OnlineEM,
    start: Any,
    model: Any,
    learned: Statistics,
    log_likelihood: Array,
    floor: Statistics,
    pseudo: Statistics,
    total: Array,
    *,
    looked: bool,
) -> Fit:
    """Result of a single pass."""
    # An M-step may keep its parameters where statistics are NaN: check them directly.
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((model, learned))]).all()
    lost = ~finite | (looked & (jnp.isnan(log_likelihood) | (log_likelihood == jnp.inf)))
    codes = (Status.nonfinite, Status.impossible_data, Status.max_steps_reached)
    nonfinite, impossible, ended = (jnp.full((), int(code), jnp.int32) for code in codes)
    status = jnp.where(lost, nonfinite, jnp.where(log_likelihood == -jnp.inf, impossible, ended))
    objective, one = log_likelihood + model.expected_log_prob(pseudo), jnp.ones((), jnp.int32)
    end = Progress(model, model, None, log_likelihood, objective, Windows.begun(objective), one, status, None)
    return replace(make_result(solver, start, end, None, floor, total[None]), passes=one + int(looked))
