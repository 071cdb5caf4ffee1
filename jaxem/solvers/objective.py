"""What all solvers climb, in coordinates, with its gradient by Fisher's identity.

The gradient of log p(x) is that of Q, the expected log-probability, at the posterior of the same parameters (Fisher
1925; Dempster, Laird and Rubin 1977). So the E-step that EM takes gives the gradient as well: same sums, same chunks,
same memory.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from jaxem.coordinates import Coordinates, coordinates, from_coordinates
from jaxem.distributions.base import Statistics, add
from jaxem.solvers.em import expectation


def value_and_gradient(model: Any, x: Any, weight: Array, prior: Statistics) -> tuple[Array, Array, Coordinates]:
    """The log-likelihood, that plus the log-prior, and the gradient of the latter in coordinates."""
    log_likelihood, statistics = expectation(model, x, weight)
    counted = add(statistics, prior)
    gradient = jax.grad(lambda free: from_coordinates(free, model).expected_log_prob(counted))(coordinates(model))
    return log_likelihood, log_likelihood + model.expected_log_prob(prior), gradient


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
