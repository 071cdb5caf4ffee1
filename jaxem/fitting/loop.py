"""One step of any fit, with its stopping rule: shared by the loop for one model and the lanes for many."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.core.constraints import normalized
from jaxem.core.pytree import module, replace, select
from jaxem.data.missing import Incomplete
from jaxem.distributions.base import Family, Labelled, Statistics
from jaxem.fitting.status import Status
from jaxem.fitting.stopping import Answer, Look, Trend, Windows
from jaxem.latent.base import Latent
from jaxem.solvers.em import RowSource, in_chunks


@module
class Limits:
    """When to stop. All are arrays, so changing one never compiles anew.

    Attributes:
        tol: predicted remaining gain, in nats a row, that is small enough; for `fit_many` of each problem.
        max_steps: M-steps at most.
    """

    tol: Float[Array, "*problems"]
    max_steps: Int[Array, ""]


@module
class Record:
    """The highest place that a solver came by which may fall again, and where it began.

    Attributes:
        model, log_likelihood, objective: of that place.
        began: the objective of the start.
    """

    model: Any
    log_likelihood: Array
    objective: Array
    began: Array


@module
class Progress:
    """What one fit carries from step to step.

    Attributes:
        model: the model of which the fields below speak.
        ahead: the model that the next step will evaluate: the proposal made from `model`.
        state: the solver's own.
        log_likelihood, objective: of `model`; -inf before the first step.
        gains: what the stopping rule remembers of them.
        steps: M-steps taken to reach `model`.
        status: a `Status` code; anything but `running` freezes all of this.
        record: the best so far; None if the solver never falls.
    """

    model: Any
    ahead: Any
    state: Any
    log_likelihood: Array
    objective: Array
    gains: Trend | Windows
    steps: Array
    status: Array
    record: Record | None


def begin(solver: Any, model: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Progress:
    """A fit that has not taken a step: from exactly normalised parameters, or the first M-step would be a fall."""
    model = normalized(model)
    never = jnp.full((), -jnp.inf, weight.dtype)
    return Progress(
        model=model,
        ahead=model,
        state=solver.init(model, x, weight, prior),
        log_likelihood=never,
        objective=never,
        gains=Trend.begun(never) if solver.smooth else Windows.begun(never),
        steps=jnp.full((), -1, jnp.int32),
        status=jnp.full((), int(Status.running), jnp.int32),
        record=None if solver.monotone else Record(model, never, never, never),
    )


def prepared(solver: Any, model: Any, x: Any, weight: Float[Array, "n"]) -> tuple[Any, Array]:
    """The rows as every step takes them, and the weight of all observations, wherever the rows are.

    Small data is precomputed once; large data in every pass, chunk by chunk.
    """
    if isinstance(x, RowSource):
        return x.prepared(model, weight)
    data = x if solver.minibatch or in_chunks(model, x, weight) else model.expand(model.observe(x))
    return data, informed(model, x, weight)


def informed(model: Any, x: Any, weight: Float[Array, "n"]) -> Array:
    """The weight of all observations; zero if they do not tell how large something is.

    So it is of a column of which no cell was seen, and of rows censored so that nothing is likeliest (`bounded`).
    """
    observed = model.observe(x)
    told = jnp.asarray(model.bounded(observed, weight))
    cells = x.x if isinstance(x, Labelled) else x
    if isinstance(cells, Incomplete) and isinstance(model, (Family, Latent)):
        seen = ~jnp.isnan(cells.values.reshape(len(weight), -1))
        told &= jnp.all(jnp.any(seen & (weight > 0)[:, None], axis=0))
    return jnp.where(told, model.observations(observed, weight), 0)


def advance(
    solver: Any, now: Progress, x: Any, weight: Float[Array, "n"], rows: Array, prior: Statistics, limits: Limits
) -> Progress:
    """Evaluate the model ahead, decide whether to stop there, and propose one after it.

    `rows` is the weight of all observations (`Distribution.observations`): it never changes, so it comes from outside.
    A fit that has ended keeps everything but the model ahead, which nobody reads any more; one that fell ends where it
    was before, and what it fell to is not reported.
    """
    proposal, state, log_likelihood = solver.step(now.ahead, now.state, x, weight, prior)
    objective = log_likelihood + now.ahead.expected_log_prob(prior)
    steps = now.steps + 1
    rounding = float(jnp.finfo(objective.dtype).eps) * now.ahead.roundings(prior) * (jnp.abs(objective) + rows)
    remaining, tolerance = solver.remaining_gain(state), limits.tol * rows
    look = Look(objective, now.objective, remaining, steps - solver.warmup, tolerance, rounding)
    gains, answer = now.gains.after(look, solver)
    nothing = Status.no_events if now.ahead.censored else Status.no_data
    status = stopping_status(log_likelihood, objective, rows, steps, answer, limits, nothing)
    record = recorded(now, log_likelihood, objective)
    new = Progress(now.ahead, proposal, state, log_likelihood, objective, gains, steps, status, record)
    running, fell = now.status == int(Status.running), status == int(Status.log_likelihood_decreased)
    end = jnp.where(running, status, now.status)
    return replace(select(running & ~fell, new, now), ahead=proposal, status=end)


def recorded(now: Progress, log_likelihood: Array, objective: Array) -> Record | None:
    """The record after the model ahead was evaluated."""
    if now.record is None:
        return None
    began = jnp.where(now.steps < 0, objective, now.record.began)
    # NaN is above nothing.
    new, old = Record(now.ahead, log_likelihood, objective, began), replace(now.record, began=began)
    return select(objective > now.record.objective, new, old)


def keep_best_if_diverged(end: Progress, rows: Array) -> Progress:
    """A fit that has ended: where it arrived, or the best place that it came by if it did not arrive.

    A fit that could be evaluated once and then no more, or that ended a nat a row lower than it began, has diverged.
    """
    record = end.record
    if record is None:
        return end
    lost = (end.status == int(Status.nonfinite)) | (end.status == int(Status.impossible_data))
    sank = (end.status == int(Status.max_steps_reached)) & (end.objective < record.began - rows)
    diverged = (lost | sank) & jnp.isfinite(record.objective)
    status = jnp.where(diverged, int(Status.diverged), end.status).astype(jnp.int32)
    keeps = (status == int(Status.converged)) | ~(record.objective > end.objective) & ~diverged
    highest = replace(
        end, model=record.model, log_likelihood=record.log_likelihood, objective=record.objective, status=status
    )
    return select(keeps, replace(end, status=status), highest)


def stopping_status(
    log_likelihood: Array,
    objective: Array,
    rows: Array,
    steps: Array,
    answer: Answer,
    limits: Limits,
    nothing: Status,
) -> Int[Array, ""]:
    """The status after a step.

    Where no row says how large anything is (`rows` is zero), however it ends it has arrived nowhere: `nothing`.
    """
    cases = [
        (jnp.isnan(objective) | (objective == jnp.inf), Status.nonfinite),
        # A start with probabilities of zero is impossible under a prior, but only until its first M-step.
        ((log_likelihood == -jnp.inf) | ((steps > 0) & (objective == -jnp.inf)), Status.impossible_data),
        (answer.fell, Status.log_likelihood_decreased),
        (answer.arrived, Status.converged),
        (answer.exhausted, Status.precision_exhausted),
        (steps >= limits.max_steps, Status.max_steps_reached),
    ]
    conditions = [condition for condition, _ in cases]
    codes = [jnp.full((), int(status), jnp.int32) for _, status in cases]
    status = jnp.select(conditions, codes, jnp.full((), int(Status.running), jnp.int32))
    return jnp.where((rows <= 0) & ended_well(status), int(nothing), status).astype(jnp.int32)


def ended_well(status: Array) -> Array:
    """Whether there is a sound model: the fit arrived, or was on its way."""
    good = Status.converged, Status.max_steps_reached, Status.precision_exhausted
    return jnp.isin(status, jnp.asarray(good, status.dtype))


def has_converged(ended: Array, told: Array) -> Array:
    """Did the rule end it, and not on a saddle? `told` is the verdict on a fit that `ended` so."""
    return (ended == int(Status.converged)) & (told != int(Status.components_coincide))


def degeneracy_status(start: Any, model: Any, status: Array, floor: Statistics, rows: Array) -> Int[Array, ""]:
    """The status of a fit that has ended, told more exactly where the model has degenerated."""
    status = jnp.where(rows > 0, status, int(Status.no_data))
    usable = ended_well(status)
    still = (status == int(Status.converged)) | (status == int(Status.precision_exhausted))
    status = jnp.where(still & jnp.any(model.coincides()), int(Status.components_coincide), status)
    lost = jnp.any(model.has_empty_component(rows)) | jnp.any(model.states < start.states)
    status = jnp.where(usable & lost, int(Status.component_vanished), status)
    # Beside a covariance that has shrunk to its floor, distances are known to 1 / floor roundings only: a fall is that.
    collapsed = (usable | (status == int(Status.log_likelihood_decreased))) & jnp.any(model.is_degenerate(floor))
    return jnp.where(collapsed, int(Status.covariance_collapsed), status).astype(jnp.int32)
