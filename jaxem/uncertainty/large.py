"""Standard errors of models with many parameters: systems are solved for what is asked for, and no matrix is formed.

V v = I_o^-1 v by conjugate gradients. A product I_o u is a tangent of the E-step; the preconditioner is the inverse of
the complete information, which takes no pass over the data, so that the number of passes depends on the fraction of
missing information alone, in any units.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.coordinates import flat
from jaxem.distributions.base import Statistics, add
from jaxem.solvers.em import expectation
from jaxem.uncertainty.delta import flattened

DENSE = 256
"""Number of coordinates up to which matrices are formed, with one pass for each."""
ITERATIONS = 500
"""Of conjugate gradients, at most."""


class Rows(NamedTuple):
    """What a covariance is computed from when it is asked for."""

    data: Any
    weight: Array
    prior: Statistics
    cluster: Array | None


class System(NamedTuple):
    """Linear maps at a model: `observed` and `complete` information, `covariance`."""

    observed: Callable[[Array], Array]
    complete: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    complete_inverse: Callable[[Array], Array]


def system(model: Any, rows: Rows, moves: Bool[Array, "p"]) -> System:
    """Information and its inverse as linear maps; one where coordinates do not move."""
    free, model_at = flat(model)
    eps = float(jnp.finfo(free.dtype).eps)
    counted = add(expectation(model, rows.data, rows.weight)[1], rows.prior)

    def inside(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """Minus the derivative of a function, where coordinates move; one elsewhere."""

        def times(vector: Array) -> Array:
            found = -jax.jvp(function, (free,), (jnp.where(moves, vector, 0),))[1]
            return jnp.where(moves, found, vector)

        return times

    def gradient(free: Array) -> Array:
        here = model_at(free)
        mine = add(expectation(here, rows.data, rows.weight)[1], rows.prior)
        return jax.grad(lambda z: model_at(z).expected_log_prob(mine))(free)

    complete = inside(jax.grad(lambda z: model_at(z).expected_log_prob(counted)))
    observed = inside(gradient)
    places = jnp.arange(free.size, dtype=jnp.int32)
    entry = jax.lax.map(lambda k: complete((places == k).astype(free.dtype))[k], places)
    scale = 1 / jnp.where(entry > 0, entry, 1)

    def complete_inverse(vector: Array) -> Array:
        found = cg(complete, vector, tol=64 * eps, maxiter=ITERATIONS, M=lambda v: scale * v)[0]
        return jnp.where(moves, found, 0)

    def inverse(vector: Array) -> Array:
        vector = jnp.where(moves, vector, 0)
        found = cg(observed, vector, tol=float(np.sqrt(eps)) * 1e-2, maxiter=ITERATIONS, M=complete_inverse)[0]
        return jnp.where(moves, found, 0)

    return System(observed, complete, inverse, complete_inverse)


def largest_missing(model: Any, parts: System, moves: Bool[Array, "p"]) -> Float[Array, ""]:
    """The largest fraction of missing information: the rate of EM."""
    free, _ = flat(model)

    def missing(vector: Array) -> Array:
        vector = jnp.where(moves, vector, 0)
        return vector - parts.complete_inverse(jnp.where(moves, parts.observed(vector), 0))

    return linalg.largest_eigenvalue(missing, free)


def meat(model: Any, rows: Rows, plan: Any) -> Callable[[Array], Array]:
    """B u: scores of rows (or of their sums over clusters) times themselves times u."""
    free, model_at = flat(model)
    counts = rows.weight

    def log_prob(free: Array) -> Array:
        found = model_at(free).log_prob(rows.data)
        return jnp.where(counts > 0, found, 0)

    def times(vector: Array) -> Array:
        change = jax.jvp(log_prob, (free,), (vector,))[1]
        if rows.cluster is not None:
            change = counts * jax.ops.segment_sum(counts * change, rows.cluster, plan.groups)[rows.cluster]
        else:
            change = change * (counts**2 if plan.sampling else counts)
        return jax.vjp(log_prob, free)[1](change)[0]

    return times


@partial(jax.jit, static_argnums=(0, 1))
def spread(function: Callable[[Any], Any], plan: Any, model: Any, rows: Rows, moves: Array) -> Array:
    """Standard errors of a function's flattened result, one system for each number."""
    apply, gradient_of, size = _covariance(function, plan, model, rows, moves)

    def one(k: Array) -> Array:
        gradient = gradient_of(k)
        return jnp.sqrt(jnp.sum(gradient * apply(gradient)))

    found = jax.lax.map(one, jnp.arange(size, dtype=jnp.int32))
    return jnp.where(found == 0, jnp.nan, found)


@partial(jax.jit, static_argnums=(0, 1))
def covariance(
    function: Callable[[Any], Any], plan: Any, model: Any, rows: Rows, moves: Array
) -> tuple[Array, Float[Array, "q q"]]:
    """A function's flattened result and its covariance."""
    apply, gradient_of, size = _covariance(function, plan, model, rows, moves)
    free, model_at = flat(model)

    def column(k: Array) -> Array:
        return jax.jvp(lambda z: flattened(function(model_at(z))), (free,), (apply(gradient_of(k)),))[1]

    found = jax.lax.map(column, jnp.arange(size, dtype=jnp.int32))
    return flattened(function(model)), linalg.symmetrize(found)


def _covariance(function: Any, plan: Any, model: Any, rows: Rows, moves: Array) -> tuple[Any, Any, int]:
    """V, the gradient of each number of the result, and how many there are."""
    parts = system(model, rows, moves)
    free, model_at = flat(model)
    out, pull = jax.vjp(lambda z: flattened(function(model_at(z))), free)
    places = jnp.arange(out.size, dtype=jnp.int32)

    def gradient_of(k: Array) -> Array:
        return jnp.where(moves, pull((places == k).astype(out.dtype))[0], 0)

    if plan.kind == "observed":
        return parts.inverse, gradient_of, out.size
    outer = meat(model, rows, plan)
    return lambda vector: parts.inverse(outer(parts.inverse(vector))), gradient_of, out.size


def shaped(found: Array, like: Any) -> Any:
    """Flattened results in the shape of a pytree of arrays."""
    leaves, structure = jax.tree.flatten(like)
    cuts = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])[:-1]
    pieces = jnp.split(found, cuts) if len(leaves) > 1 else [found]
    return jax.tree.unflatten(
        structure, [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    )
