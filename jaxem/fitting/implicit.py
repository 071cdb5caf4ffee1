"""The derivative of a fit, by the implicit function theorem at its maximum instead of through its steps.

There the gradient of the objective is zero, and stays zero when data, weights or prior change a little.
So the parameters move by information^-1 times the change of that gradient, whatever solver found
them and in however many steps. With I - J, where J is the Jacobian of the EM map, in place of the information the same
holds of the EM map (Louis 1982; Meng and Rubin 1991): that is the form for models with many parameters, because it is
well conditioned in any units and need not be formed.

A probability within `EDGE` of zero or one is converging to it, where a solver may stop early or late: it
is set to the edge and held; the derivative of the others is conditional on that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import bicgstab
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.constraints import at_edges
from jaxem.core.coordinates import flat
from jaxem.core.pytree import replace, select
from jaxem.distributions.base import Statistics
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.solvers.em import em_step, expectation
from jaxem.solvers.objective import information, value_and_gradient

DENSE = 256
"""Number of free parameters up to which the information matrix is formed, with one pass for each."""
ITERATIONS = 2000
"""Largest number of iterations where it is not formed."""
EDGE = 1e-6
"""Distance from zero or one below which a probability is at the edge."""
Data = tuple[Any, Array, Any]
"""Data of a fit by which it may be differentiated: x, weight, prior."""


def differentiated(fit: Fit, over: Any, pseudo: Callable[[Any, Array, Any], Statistics], at: Data, moved: Data) -> Any:
    """`(fit, tangent of fit)` for a change of the data.

    Args:
        fit: the result.
        over: the semiring, the sum over hidden variables.
        pseudo: function of the data that gives the pseudo-statistics of every M-step.
        at, moved: the data, and their tangent.

    Returns:
        The fit, with another status if it has no derivative there, and the tangents of its fields: zero but for the
        model, the log-likelihood and the objective, which are NaN if there is no derivative.
    """

    def height(model: Any, x: Any, weight: Array, prior: Any) -> tuple[Array, Array]:
        log_likelihood = expectation(model, x, weight, over)[0]
        return log_likelihood, log_likelihood + model.expected_log_prob(pseudo(x, weight, prior))

    # A probability that matters so close to the edge stays as it is: for one of a million rows, or under a prior.
    edged = at_edges(fit.model, EDGE)
    rounding = 256 * float(jnp.finfo(fit.objective.dtype).eps) * (jnp.abs(fit.objective) + jnp.sum(at[1]))
    model = select(height(edged, *at)[1] >= fit.objective - rounding, edged, fit.model)
    free, model_at = flat(model)

    def values(free: Array, *data: Any) -> tuple[Any, Array, Array]:
        return model_at(free), *height(model_at(free), *data)

    way = _by_information if free.size <= DENSE else _by_em_map
    regular, change = way(model, over, pseudo, at, moved)
    sound = Status.converged, Status.max_steps_reached, Status.precision_exhausted
    ended = jnp.isin(fit.status, jnp.asarray(sound, fit.status.dtype))
    # A factor, not a `where`, whose derivative in reverse mode would be zero.
    change = change * jnp.where(regular & ended, 1, jnp.nan)
    _, (model, log_likelihood, objective) = jax.jvp(values, (free, *at), (change, *moved))
    status = jnp.where(ended & ~regular, int(Status.not_a_maximum), fit.status).astype(jnp.int32)
    result = replace(fit, status=status, converged=status == int(Status.converged))
    still = jax.tree.map(_no_change, result)
    return result, replace(still, model=model, log_likelihood=log_likelihood, objective=objective)


def _by_information(
    model: Any, over: Any, pseudo: Callable[..., Statistics], at: Data, moved: Data
) -> tuple[Bool[Array, ""], Float[Array, "p"]]:
    """Whether this is a regular maximum, and the change of the coordinates, by the information matrix."""

    def gradient(x: Any, weight: Array, prior: Any) -> Array:
        return ravel_pytree(value_and_gradient(model, x, weight, pseudo(x, weight, prior), over)[2])[0]

    curvature = information(model, at[0], at[1], pseudo(*at), over)
    change, pivot = linalg.solve(curvature, jax.jvp(gradient, at, moved)[1])
    return pivot > float(np.sqrt(jnp.finfo(pivot.dtype).eps)), change


def _by_em_map(
    model: Any, over: Any, pseudo: Callable[..., Statistics], at: Data, moved: Data
) -> tuple[Bool[Array, ""], Float[Array, "p"]]:
    """Whether this is a regular maximum, and the change, by the Jacobian of the EM map (applied, not formed)."""
    free, model_at = flat(model)

    def image(free: Array, x: Any, weight: Array, prior: Any) -> Array:
        return flat(em_step(model_at(free), x, weight, pseudo(x, weight, prior), over)[0], model)[0]

    def jacobian(direction: Array) -> Array:
        return jax.jvp(lambda free: image(free, *at), (free,), (direction,))[1]

    def solve(matrix: Callable[[Array], Array], b: Array) -> Array:
        return bicgstab(matrix, b, tol=64 * eps, maxiter=ITERATIONS)[0]

    eps = float(jnp.finfo(free.dtype).eps)
    regular = linalg.largest_eigenvalue(jacobian, free) < 1 - float(np.sqrt(eps))
    change = jax.jvp(lambda *data: image(free, *data), at, moved)[1]
    # With a solver that is independent of the system, JAX can transpose it for reverse mode.
    return regular, jax.lax.custom_linear_solve(lambda v: v - jacobian(v), change, solve, transpose_solve=solve)


def _no_change(leaf: Any) -> Any:
    """A zero tangent; JAX has a separate type for the tangent of a non-float."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
