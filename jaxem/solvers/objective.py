"""The objective of all solvers as a function of coordinates, with its gradient by Fisher's identity.

The gradient of log p(x) is that of Q, the expected log-probability, at the posterior of the same parameters (Fisher
1925; Dempster, Laird and Rubin 1977). So the E-step that EM takes gives the gradient as well: same sums, same chunks,
same memory. The derivative of that gradient is the Hessian (Louis 1982).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxem.core.constraints import Leaf, simplex, unit_interval, walk
from jaxem.core.coordinates import Coordinates, flat, from_coordinates, moving, to_coordinates
from jaxem.core.semirings import log_sum
from jaxem.distributions.base import Statistics, add
from jaxem.solvers.edges import NEAR, NOTABLE, growth
from jaxem.solvers.em import expectation


def value_and_gradient(
    model: Any, x: Any, weight: Array, prior: Statistics, over: Any = log_sum
) -> tuple[Array, Array, Coordinates]:
    """Log-likelihood, objective (log-likelihood plus log-prior), and gradient of the objective in coordinates."""
    log_likelihood, statistics = expectation(model, x, weight, over)
    gradient = gradient_of(model, statistics, prior)
    return log_likelihood, log_likelihood + model.expected_log_prob(prior), gradient


def gradient_of(model: Any, statistics: Statistics, prior: Statistics) -> Coordinates:
    """Gradient of Q in coordinates; with the model's own expected statistics, gradient of the objective."""
    counted = add(statistics, prior)
    return jax.grad(lambda free: from_coordinates(free, model).expected_log_prob(counted))(to_coordinates(model))


class Plain(NamedTuple):
    """The EM step from a model, for a solver that sees coordinates only.

    Attributes:
        model: after that step, lifted off the edges that it moves away from.
        gain: of that step, to first order: half the gradient times the step, in coordinates, plus `lift`. It is
            zero at a maximum only, and does not depend on units.
        lift: gain of the probabilities near zero or one that move away from there.
    """

    model: Any
    gain: Array
    lift: Array


def plain_step(model: Any, statistics: Statistics, prior: Statistics) -> Plain:
    """EM step from a model with these expected statistics.

    In log-ratios the gradient with respect to a probability vanishes with it, however steep Q is. The slope of Q in the
    probability itself does not: with the factor by which EM multiplies it, it gives the gain of coming back.
    """
    counted = add(statistics, prior)
    new = model.m_step(counted)
    step = flat(new, model)[0] - flat(model)[0]
    along = jnp.abs(jnp.sum(ravel_pytree(gradient_of(model, statistics, prior))[0] * step)) / 2
    slopes = jax.grad(lambda model: model.expected_log_prob(counted), allow_int=True)(model)
    each = zip(walk(model), jax.tree.leaves(new), jax.tree.leaves(slopes), strict=True)
    values, lifts = zip(*(_lifted(leaf, one, slope) for leaf, one, slope in each), strict=True)
    lift = sum(lifts, jnp.zeros_like(along))
    return Plain(jax.tree.unflatten(jax.tree.structure(new), values), along + lift, lift)


def _lifted(leaf: Leaf, new: Array, slope: Array) -> tuple[Array, Array]:
    """New values of a parameter, those that grow near an edge lifted off it, and the gain of that."""
    if leaf.restricted:
        return new, jnp.zeros((), new.dtype)
    if leaf.constraint is simplex:
        return _grown(leaf.values, new, slope)
    if leaf.constraint is unit_interval:
        old, both = (jnp.stack([1 - share, share], axis=-1) for share in (leaf.values, new))
        values, worth = _grown(old, both, jnp.stack([jnp.zeros_like(slope), slope], axis=-1))
        return values[..., 1], worth
    return new, jnp.zeros((), new.dtype)


def _grown(shares: Array, new: Array, slope: Array) -> tuple[Array, Array]:
    slope = jnp.where(shares > 0, slope, 0)
    steep = slope - jnp.sum(shares * slope, axis=-1, keepdims=True)
    more = jnp.where(steep > 0, growth(shares, new), 0)
    worth = jnp.sum(jnp.where(more > 0, steep * jnp.minimum(more, 1) / 2, 0))
    # Halfway in logarithms: a few steps from anywhere.
    lifted = jnp.where(more > NOTABLE, jnp.maximum(new, jnp.minimum(jnp.sqrt(new), NEAR)), new)
    return jnp.where(jnp.any(more > NOTABLE, axis=-1, keepdims=True), simplex.exact(lifted), new), worth


@jax.custom_vjp
def objective(free: Coordinates, like: Any, x: Any, weight: Array, prior: Statistics) -> Array:
    """The objective as a function of coordinates, the only argument with a derivative."""
    model = from_coordinates(free, like)
    return expectation(model, x, weight)[0] + model.expected_log_prob(prior)


def _forward(free: Coordinates, like: Any, x: Any, weight: Array, prior: Statistics) -> tuple[Array, Coordinates]:
    _, value, gradient = value_and_gradient(from_coordinates(free, like), x, weight, prior)
    return value, gradient


def _backward(gradient: Coordinates, change: Array) -> tuple[Any, ...]:
    return jax.tree.map(lambda leaf: change * leaf, gradient), None, None, None, None


objective.defvjp(_forward, _backward)


def columns(function: Callable[[Array], Array], at: Float[Array, "p"]) -> Float[Array, "p p"]:
    """Jacobian of a function of coordinates, computed column by column to hold one at a time."""

    def column(direction: Array) -> Array:
        return jax.jvp(function, (at,), (direction,))[1]

    return jax.lax.map(column, jnp.eye(len(at), dtype=at.dtype)).T


def information(model: Any, x: Any, weight: Array, prior: Statistics, over: Any = log_sum) -> Float[Array, "p p"]:
    """Observed information: minus the Hessian of the objective in coordinates.

    A coordinate that nothing moves, or without effect on these rows, has a row of zeros; its diagonal is set to one, so
    that it stays where it is. For standard errors, which it has none of, see `jaxem.uncertainty`.
    """
    at, model_at = flat(model)

    def gradient(free: Array) -> Array:
        return ravel_pytree(value_and_gradient(model_at(free), x, weight, prior, over)[2])[0]

    found = -columns(gradient, at)
    still = ~moving(model) | jnp.all(found == 0, axis=1)
    found = jnp.where(still[:, None] | still[None], 0, (found + found.T) / 2)
    return jnp.where(jnp.diag(still), 1, found)
