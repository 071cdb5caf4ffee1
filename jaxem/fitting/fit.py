"""Fit one model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxem.core.compilation import OFTEN, program
from jaxem.core.pytree import replace
from jaxem.data.arrays import as_dtype
from jaxem.data.buckets import is_local, padded_members, padded_rows
from jaxem.data.padding import bucket
from jaxem.data.prepare import prepare
from jaxem.distributions.base import Labelled, Statistics, check_model, work
from jaxem.fitting.checks import check_labelled, check_limits, check_prior, check_rows, check_starts, hidden_states
from jaxem.fitting.finish import best_of, make_result
from jaxem.fitting.implicit import differentiated
from jaxem.fitting.loop import Limits, Progress, advance, begin, prepared
from jaxem.fitting.regularisation import Blank, regularisers
from jaxem.fitting.result import Fit
from jaxem.fitting.sources.sharded import ShardedRows, dealt, layout_of
from jaxem.fitting.status import Status
from jaxem.solvers.em import EM
from jaxem.solvers.transformations import with_first_like
from jaxem.solvers.words import as_solver

TRACE = 1024
"""Length of the trace of small fits, which their programs know; of more steps, a power of two times that."""


def fit(
    model: Any,
    x: Any,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    tol: float | Array = 1e-6,
    max_steps: int = 1000,
    devices: Sequence[Any] | None = None,
) -> Fit:
    """Fit `model` to `x`, starting from the parameters that it has.

    Maximises sum_i weight_i log p(x_i) + log prior. It can be jitted and vmapped; calls with the same shapes compile
    once, whatever `tol` is. On a CPU small work is compiled lightly, and optimised once it has been done some hundred
    times; its rows, steps and starts are padded, so that calls of nearly the same shapes compile once. Both change
    results by rounding only. It can be differentiated, forward and in reverse, with respect to x, weight and prior, by
    the implicit function theorem at the model where it ended: memory does not grow with the steps, and
    the start does not matter. Fit with a small `tol` for that: the derivative is as exact as the maximum.

    It runs on as many devices as x lies on: pass arrays with a `jax.sharding.NamedSharding` over their first axis, or
    name `devices`. Each device takes the E-step of its own rows, and once in a pass the statistics are summed over all;
    the result is that of one device, up to rounding, and lies on all of them. The devices may be those of several
    processes, each of which then makes the same call; weights and labels may be spread like x, or be known in full to
    every process. `Sequences` may also be spread over their second axis, time: so an `HMM` is fitted to one sequence
    that is too long for one device. Under `jit`, and where x itself is differentiated, the sharding of x is unknown
    before the program runs: then the compiler divides the work.

    Args:
        model: the initial parameters. With one leading axis of R starts, all are fitted and the best is returned: the
            highest objective among sound ones; a degenerate fit (`covariance_collapsed`, `component_vanished`,
            `log_likelihood_decreased`) only if there is no sound one, and one that failed only if all did.
        x: rows, `[n]` or `[n, D]`, or `Sequences`: an array, a masked array, a list, a frame of pandas, polars or
            Arrow, of numbers of any type. They are read as floats of the model's type, with a warning where that costs
            digits; without `jax_enable_x64`, where nothing is float64, float64 data become float32 without one. A cell
            that is NaN, masked or None is missing: it is integrated out (under `jit`, where values are unknown,
            pass `jem.incomplete(x)` for that).
        solver: a solver, its class or its name (`"squarem"`), or an optax transformation.
        weight: `[n]` weights of rows (of sequences), at least zero. Rows of weight zero are ignored.
        prior: pseudo-statistics, or something that makes them (see `jaxem.priors`).
        labels: `[n]` integers, the known component of a row or -1; for sequences the known state of each step.
        tol: stop when the predicted remaining gain is below this many nats a row.
        max_steps: M-steps at most.
        devices: over which to spread the rows of x, or its sequences, or for an `HMM` with fewer sequences than devices
            their steps. It goes through the first device of this process: what is too large for that must come spread.

    Returns:
        A `Fit`. A failure is its `status`: infinity in x ends as `nonfinite`, never as converged.

    Raises:
        TypeError: x does not hold numbers (column and row are named), or a model or solver that is none.
        ValueError: shapes that do not fit each other, a prior of another kind of model, negative weights, labels or
            limits out of range; rows that are spread, for a solver that takes them in batches.

    >>> import jax, jaxem as jem
    >>> x = jax.numpy.array([[-1.1], [-0.9], [-1.0], [1.9], [2.0], [2.1]])
    >>> start = jem.Mixture([0.5, 0.5], jem.Gaussian([[-1.0], [1.0]], [[[1.0]], [[1.0]]]))
    >>> fit = jem.fit(start, x)
    >>> fit.model.components.mean.round(2).tolist(), fit.status_name
    ([[-1.0], [2.0]], 'converged')
    """
    check_model(model, x)
    solver, max_steps = with_first_like(as_solver(solver)), check_limits(tol, max_steps)
    if isinstance(x, Labelled):
        x, labels = x.x, x.labels if labels is None else labels
    x = model.read(x)
    check_labelled(model, labels)
    layout = layout_of(model, x)
    x, weight, labels = prepare(x, weight, labels, hidden_states(model))
    check_starts(model)
    check_prior(prior)
    check_rows(model, x)
    # Rows on other processes cannot be checked here.
    if not isinstance(weight, Tracer) and weight.is_fully_addressable:
        model.check(x, weight, prior is None)
    limits = Limits(as_dtype(tol, weight.dtype), as_dtype(max_steps, np.int32))
    data = x if labels is None else Labelled(x, labels)
    if devices is not None:
        data, weight, layout = dealt(model, data, weight, devices)
    if layout is not None:
        if solver.minibatch:
            raise ValueError(
                f"{type(solver).__name__} takes rows in batches, which must all be on one device; use EM()"
            )
        data, weight = layout.spread((data, weight))
        data = ShardedRows(data, None, layout)
        solver, model, prior, limits = layout.everywhere((solver, model, prior, limits))
    given = solver, model, data, weight, prior, limits
    trace = Blank.of(max_steps)
    if layout is None and _fit.is_small(*given, trace=trace) and is_local(data, weight):
        return _fit_padded(*given, trace)
    return _fit(*given, trace=trace)


def _fit_padded(solver: Any, models: Any, data: Any, weight: Array, prior: Any, limits: Limits, trace: Blank) -> Fit:
    """A small fit, in one of few shapes: the same result, up to rounding."""
    if not (solver.minibatch or _draws(solver)):
        x, labels = (data.x, data.labels) if isinstance(data, Labelled) else (data, None)
        x, weight, labels = padded_rows(x, weight, labels)
        data, models = x if labels is None else Labelled(x, labels), padded_members(models)
    longer = trace._replace(length=bucket(max(trace.length, TRACE)))
    fit = _fit(solver, models, data, weight, prior, limits, trace=longer)
    return replace(fit, trace=jax.device_put(np.asarray(fit.trace)[: trace.length], may_alias=False))


def _work(solver: Any, models: Any, x: Any, weight: Array, prior: Any, limits: Limits, *, trace: Blank) -> float:
    """Numbers that a fit computes: of a hundred passes, as nobody knows how many it will take."""
    return work(models, x) / 10 * min(trace.length, 100) * solver.passes_per_step


def _draws(solver: Any) -> bool:
    """Whether a solver holds a random key, with which it may draw one number for each row, padding included."""
    types = [getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(solver)]
    return any(jnp.issubdtype(each, jax.dtypes.prng_key) or each == np.uint32 for each in types if each is not None)


@program(_work, often=OFTEN, static_argnames="trace")
def _fit(solver: Any, models: Any, x: Any, weight: Array, prior: Any, limits: Limits, *, trace: Blank) -> Fit:
    return _fit_differentiable(trace, solver, models, limits, x, weight, prior)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fit_differentiable(
    trace: Blank, solver: Any, models: Any, limits: Limits, x: Any, weight: Array, prior: Any
) -> Fit:
    def climbed(model: Any) -> Fit:
        return _climb(trace, solver, model, limits, x, weight, prior)

    if not models.batch_shape:
        return climbed(models)
    return best_of(jax.vmap(climbed)(models))


@_fit_differentiable.defjvp
def _fit_differentiable_jvp(trace: Blank, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Fit, Fit]:
    solver, _, _, *data = primals
    fit = _fit_differentiable(trace, *primals)

    def pseudo(x: Any, weight: Array, prior: Any) -> Statistics:
        return regularisers(fit.model, x, weight, prior)[1]

    return differentiated(fit, solver.over, pseudo, tuple(data), tangents[3:])


def _climb(trace: Blank, solver: Any, model: Any, limits: Limits, x: Any, weight: Array, prior: Any) -> Fit:
    data, rows = prepared(solver, model, x, weight)
    floor, pseudo = regularisers(model, x, weight, prior)

    def running(carry: tuple[Progress, Array]) -> Array:
        return carry[0].status == int(Status.running)

    def step(carry: tuple[Progress, Array]) -> tuple[Progress, Array]:
        now = advance(solver, carry[0], data, weight, rows, pseudo, limits)
        return now, carry[1].at[now.steps].set(now.objective)

    initial = begin(solver, model, data, weight, pseudo), trace.filled(weight.dtype)
    end, objectives = jax.lax.while_loop(running, step, initial)
    return make_result(solver, model, end, objectives, floor, weight)
