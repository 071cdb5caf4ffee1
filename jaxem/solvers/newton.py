"""Newton's method, for models with few parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.coordinates import flat
from jaxem.core.pytree import module, select
from jaxem.distributions.base import Statistics
from jaxem.solvers.base import Solver
from jaxem.solvers.em import expectation
from jaxem.solvers.objective import information, plain_step, value_and_gradient

MOST = 200
"""Number of free parameters above which a Hessian costs more passes than it saves."""
EASED, RAISED = 0.1, 10.0


@module
class Newton(Solver):
    """Newton's method with the exact Hessian, damped (Levenberg-Marquardt); an EM step where it would fall.

    A step takes a pass for each free parameter, and a few more, so it is for models with few of them; close to
    the maximum the number of digits doubles with every step.

    Raises:
        ValueError: in `fit`, for a model with more than 200 free parameters.

    >>> import jax, jaxem as jem
    >>> fit = jem.fit(jem.Poisson(1.0), jax.numpy.array([0.0, 2.0, 8.0, 12.0]), jem.Newton())
    >>> fit.model.rate.round(3).item(), fit.status_name
    (5.5, 'converged')
    """

    @property
    def check_every(self) -> int:
        """Several steps, because one that is damped too much gains little."""
        return 2

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """Initial state: damping, passes so far, remaining gain."""
        size = flat(model)[0].size
        if size > MOST:
            raise ValueError(f"Newton: the model has {size} free numbers, more than {MOST}; use LBFGS()")
        return jnp.full((), 1e-2, weight.dtype), jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, weight.dtype)

    def remaining_gain(self, state: Any) -> Array:
        """Gain of the step, from gradient and information."""
        return state[2]

    def total_passes(self, state: Any, calls: Array) -> Array:
        """A pass for each free parameter, and four more, per step."""
        return state[1]

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """The better of a damped Newton step and an EM step."""
        damping, passes, _ = state
        free, model_at = flat(model)
        log_likelihood, statistics = expectation(model, x, weight)
        gradient = ravel_pytree(value_and_gradient(model, x, weight, prior)[2])[0]
        curvature = information(model, x, weight, prior)
        damped = curvature + damping * jnp.diag(jnp.maximum(jnp.abs(linalg.diagonal(curvature)), 1))
        there, _ = linalg.solve(damped, gradient)
        plain = plain_step(model, statistics, prior)
        ahead = model_at(free + there)

        def height(model: Any) -> Array:
            return expectation(model, x, weight)[0] + model.expected_log_prob(prior)

        # NaN compares as False. A step that rises, but less than EM's, was damped too much.
        reached = height(ahead)
        rises = reached >= log_likelihood + model.expected_log_prob(prior)
        damping = jnp.where(rises, EASED * damping, jnp.minimum(RAISED * damping, 1e3))
        promised = jnp.abs(jnp.sum(gradient * there)) / 2 + plain.lift
        ahead = select(reached >= height(plain.model), ahead, plain.model)
        return ahead, (damping, passes + free.size + 4, promised), log_likelihood
