"""What all solvers climb, in coordinates, with its gradient by Fisher's identity.

The gradient of log p(x) is that of Q, the expected log-probability, at the posterior of the same parameters (Fisher
1925; Dempster, Laird and Rubin 1977). So the E-step that EM takes gives the gradient as well: same sums, same chunks,
same memory. The derivative of that gradient is the Hessian (Louis 1982).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxem.coordinates import Coordinates, from_coordinates, to_coordinates
from jaxem.distributions.base import Statistics, add
from jaxem.solvers.em import expectation
from jaxem.sums import log_sum


def value_and_gradient(
    model: Any, x: Any, weight: Array, prior: Statistics, over: Any = log_sum
) -> tuple[Array, Array, Coordinates]:
    """The log-likelihood, that plus the log-prior, and the gradient of the latter in coordinates."""
    log_likelihood, statistics = expectation(model, x, weight, over)
    gradient = gradient_of(model, statistics, prior)
    return log_likelihood, log_likelihood + model.expected_log_prob(prior), gradient


def gradient_of(model: Any, statistics: Statistics, prior: Statistics) -> Coordinates:
    """The gradient of Q, and at the statistics of that very model of the objective, in coordinates."""
    counted = add(statistics, prior)
    return jax.grad(lambda free: from_coordinates(free, model).expected_log_prob(counted))(to_coordinates(model))


def left(model: Any, statistics: Statistics, prior: Statistics) -> Array:
    """What an EM step from a model would gain, to first order: half the gradient times the step, in coordinates.

    It is zero at a maximum only, and does not depend on units.
    """
    step = flat(model.m_step(add(statistics, prior)), model)[0] - flat(model)[0]
    return jnp.abs(jnp.sum(ravel_pytree(gradient_of(model, statistics, prior))[0] * step)) / 2


@jax.custom_vjp
def objective(free: Coordinates, like: Any, x: Any, weight: Array, prior: Statistics) -> Array:
    """The log-likelihood plus the log-prior at some coordinates. Only they have a derivative."""
    model = from_coordinates(free, like)
    return expectation(model, x, weight)[0] + model.expected_log_prob(prior)


def _forward(free: Coordinates, like: Any, x: Any, weight: Array, prior: Statistics) -> tuple[Array, Coordinates]:
    _, value, gradient = value_and_gradient(from_coordinates(free, like), x, weight, prior)
    return value, gradient


def _backward(gradient: Coordinates, change: Array) -> tuple[Any, ...]:
    return jax.tree.map(lambda leaf: change * leaf, gradient), None, None, None, None


objective.defvjp(_forward, _backward)


def flat(model: Any, like: Any = None) -> tuple[Float[Array, "p"], Callable[[Array], Any]]:
    """All coordinates of a model as one vector, and the way back to a model; `like` as in `to_coordinates`."""
    vector, unravel = ravel_pytree(to_coordinates(model, like))
    return vector, lambda free: from_coordinates(unravel(free), model if like is None else like)


def columns(function: Callable[[Array], Array], at: Float[Array, "p"]) -> Float[Array, "p p"]:
    """The derivative of a function of coordinates, a column for each: one after the other, to hold one at a time."""

    def column(direction: Array) -> Array:
        return jax.jvp(function, (at,), (direction,))[1]

    return jax.lax.map(column, jnp.eye(len(at), dtype=at.dtype)).T


def information(model: Any, x: Any, weight: Array, prior: Statistics, over: Any = log_sum) -> Float[Array, "p p"]:
    """The observed information: minus the second derivative of the objective, in coordinates.

    A coordinate that moves nothing has a row of zeros; it gets a one on the diagonal, so that it stays where it is.
    """
    at, model_at = flat(model)

    def gradient(free: Array) -> Array:
        return ravel_pytree(value_and_gradient(model_at(free), x, weight, prior, over)[2])[0]

    found = -columns(gradient, at)
    still = jnp.all(found == 0, axis=1)
    return jnp.where(jnp.diag(still), 1, (found + found.T) / 2)
