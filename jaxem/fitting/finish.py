"""The end of a fit: its result, and the best of several starts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.distributions.base import Statistics
from jaxem.fitting.loop import Progress, degeneracy_status, has_converged, keep_best_if_diverged
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status


def make_result(solver: Any, start: Any, end: Progress, trace: Array | None, floor: Statistics, weight: Array) -> Fit:
    """Result of a fit that has ended."""
    rows = jnp.sum(weight)
    end = keep_best_if_diverged(end, rows)
    status = degeneracy_status(start, end.model, end.status, floor, rows)
    return Fit(
        model=end.model,
        log_likelihood=end.log_likelihood,
        objective=end.objective,
        steps=jnp.maximum(end.steps, 0),
        converged=has_converged(end.status, status),
        status=status,
        passes=solver.total_passes(end.state, end.steps + 1),
        trace=trace,
    )


@jax.jit
def best_of(fits: Fit) -> Fit:
    """The best of fits from several starts, along their only axis (see `best_restart`)."""
    best = best_restart(fits.objective, fits.status)
    return jax.tree.map(lambda leaf: leaf[best], fits)


SOUNDNESS = np.array([0 if status.failed else 1 if status.degenerate else 2 for status in sorted(Status)], np.int32)
"""Rank of each status: 0 failed, 1 degenerate, 2 sound."""


def best_restart(objective: Array, status: Array) -> Array:
    """Index, on the last axis, of the start to keep.

    A sound fit comes before a degenerate one (a collapsed covariance, a vanished component, a fall of the objective),
    however high its objective, which only the floor limits; and both before one that failed. Among equals
    the highest objective counts: the first, of those that are equal within rounding.
    """
    soundness = jnp.asarray(SOUNDNESS)[status]
    among = jnp.isfinite(objective) & (soundness == jnp.max(soundness, axis=-1, keepdims=True))
    usable = jnp.where(among, objective, -jnp.inf)
    largest = jnp.max(usable, axis=-1, keepdims=True)
    rounding = 1024 * float(jnp.finfo(objective.dtype).eps) * jnp.abs(largest)
    return jnp.argmax(usable >= largest - jnp.where(jnp.isfinite(rounding), rounding, 0), axis=-1)
