"""The derivative of a fit: not through its steps, but of the place where it ends.

There the gradient of the objective is zero, and stays zero when data, weights or prior change a little (implicit
function theorem). So the parameters move by information^-1 times the change of that gradient, whatever solver found
them and in however many steps. With I - J, where J is the Jacobian of the EM map, in place of the information the same
holds of the EM map (Louis 1982; Meng and Rubin 1991): that is the form for models with many parameters, because it is
well conditioned in any units and need not be formed.

A probability that has come within `EDGE` of zero or one is on its way there, where a solver may stop early or late: it
is put at the edge, and held; the others' derivative is given that.
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
"""Free numbers up to which the information is formed: that takes a pass for each."""
ITERATIONS = 2000
"""At most, where it is not."""
EDGE = 1e-6
"""Probabilities closer than this to zero or one are at it."""
Data = tuple[Any, Array, Any]
"""What a fit may be differentiated by: x, weight, prior."""


def differentiated(fit: Fit, over: Any, pseudo: Callable[[Any, Array, Any], Statistics], at: Data, moved: Data) -> Any:
    """`(fit, change of fit)` for a change of the data.

    Args:
        fit: where it ended.
        over: the sum over what is hidden.
        pseudo: what is added before every M-step, from the data.
        at, moved: the data, and their change.

    Returns:
        The fit, whose status says so if it has no derivative there, and the change of its fields: zero but for the
        model, the log-likelihood and the objective, and those are NaN then.
    """

    def height(model: Any, x: Any, weight: Array, prior: Any) -> tuple[Array, Array]:
        log_likelihood = expectation(model, x, weight, over)[0]
        return log_likelihood, log_likelihood + model.expected_log_prob(pseudo(x, weight, prior))

    # Where that costs anything, what is so small is needed as it is: for one of a million rows, or under a prior.
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
    # A factor, not a choice: in reverse mode a choice would be zero.
    change = change * jnp.where(regular & ended, 1, jnp.nan)
    _, (model, log_likelihood, objective) = jax.jvp(values, (free, *at), (change, *moved))
    status = jnp.where(ended & ~regular, int(Status.not_a_maximum), fit.status).astype(jnp.int32)
    told = replace(fit, status=status, converged=status == int(Status.converged))
    still = jax.tree.map(_no_change, told)
    return told, replace(still, model=model, log_likelihood=log_likelihood, objective=objective)


def _by_information(
    model: Any, over: Any, pseudo: Callable[..., Statistics], at: Data, moved: Data
) -> tuple[Bool[Array, ""], Float[Array, "p"]]:
    """Is it a regular maximum, and the change of the coordinates."""

    def gradient(x: Any, weight: Array, prior: Any) -> Array:
        return ravel_pytree(value_and_gradient(model, x, weight, pseudo(x, weight, prior), over)[2])[0]

    curvature = information(model, at[0], at[1], pseudo(*at), over)
    change, pivot = linalg.solve(curvature, jax.jvp(gradient, at, moved)[1])
    return pivot > float(np.sqrt(jnp.finfo(pivot.dtype).eps)), change


def _by_em_map(
    model: Any, over: Any, pseudo: Callable[..., Statistics], at: Data, moved: Data
) -> tuple[Bool[Array, ""], Float[Array, "p"]]:
    """The same from the EM map, whose Jacobian is applied, not formed."""
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
    # Told apart from its solver, the system can be transposed, for reverse mode.
    return regular, jax.lax.custom_linear_solve(lambda v: v - jacobian(v), change, solve, transpose_solve=solve)


def _no_change(leaf: Any) -> Any:
    """A tangent of nothing: for what is not a float, JAX has a type of its own."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
