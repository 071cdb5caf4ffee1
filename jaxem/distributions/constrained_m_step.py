"""The M-step of a model of which some parameters are held or tied.

Where the unconstrained maximum falls into parts (shares of counts; families of one parameter; an M-step that takes what
is held as given) what is held is put back, and that is the constrained maximum. Elsewhere Q is climbed in the
coordinates of what is left, by Newton's method with the damping of Levenberg and Marquardt (Nocedal and Wright 2006,
chapter 10): no step lowers Q, so EM climbs (generalised EM: Dempster, Laird and Rubin 1977), and it ends where the
slope of Q is nothing but rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxem.core import linalg
from jaxem.core.constraints import rebuilt, walk
from jaxem.core.coordinates import flat
from jaxem.core.pytree import replace

DENSE = 256
"""Coordinates up to which the second derivative of Q is formed."""
STEPS = 50
DAMPED = 1e8
"""With more damping than this there is no way up."""


def constrained(m_step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An M-step that keeps to the restriction of its model."""

    @functools.wraps(m_step)
    def keeping(self: Any, statistics: Any) -> Any:
        new = m_step(self, statistics)
        if self.restriction is None:
            return new
        new = restrained(replace(new, restriction=self.restriction), self)
        return new if _is_exact(self) else climbed(self, new, statistics)

    return keeping


def restrained(new: Any, model: Any) -> Any:
    """A new model with what is held and tied as in the old one."""
    each = zip(walk(new), walk(model), strict=True)
    return rebuilt(model, [_restrained(leaf.values, old) if old.restricted else leaf.values for leaf, old in each])


def _restrained(values: Array, old: Any) -> Array:
    return old.values if old.still else old.bijector.values(old.bijector.free(values, old.values), old.values)


def _is_exact(model: Any) -> bool:
    """Whether the unconstrained maximum, with what is held put back, is the constrained one."""
    restriction = model.restriction
    if restriction.tied:
        return False
    return model.separable or (model.given_held and all(mask is None for mask in restriction.held.values()))


class _Climb(NamedTuple):
    """The place of the climb, and Q and its derivatives there."""

    at: Float[Array, "p"]
    height: Float[Array, ""]
    slope: Float[Array, "p"]
    curvature: Float[Array, "..."]
    damping: Float[Array, ""]
    steps: Int[Array, ""]
    ended: Bool[Array, ""]


def climbed(model: Any, start: Any, statistics: Any) -> Any:
    """The maximum of Q over what is free, from a model or from `start`, whichever is higher."""
    before, model_at = flat(model)
    tried, size = flat(start, model)[0], before.size
    zero = jnp.zeros((), before.dtype)

    def objective(at: Array) -> Array:
        return jnp.sum(model_at(at).expected_log_prob(statistics))

    def look(at: Array) -> tuple[Array, Array, Array]:
        (value, slope), bent = jax.linearize(jax.value_and_grad(objective), at)
        # One pass for the value and its derivatives: what is written once is compiled once.
        curvature = -jax.lax.map(lambda way: bent(way)[1], jnp.eye(size, dtype=at.dtype)) if size <= DENSE else zero
        return value, slope, curvature

    def step(now: _Climb) -> _Climb:
        move, uphill = _direction(objective, now)
        worth = jnp.sum(move * now.slope) / 2
        rounding = 8 * float(jnp.finfo(before.dtype).eps) * jnp.abs(now.height)
        newton = now.steps > 1
        last = newton & uphill & (worth <= rounding)
        ahead = jnp.where(newton, now.at + move, jnp.where(now.steps == 0, before, tried))
        there = look(ahead)
        taken = (uphill & (worth >= 0) | ~newton) & (there[0] >= now.height - jnp.where(last, rounding, 0))
        damping = jnp.where(taken, now.damping / 10, jnp.maximum(now.damping * 10, 1e-3))
        damping = jnp.where(newton & (damping >= 1e-6), damping, 0)
        ended = last | (damping > DAMPED) | (now.steps > STEPS)
        at, height, slope, curvature = (
            jnp.where(taken, new, old) for new, old in zip((ahead, *there), now[:4], strict=True)
        )
        return _Climb(at, height, slope, curvature, damping, now.steps + 1, ended)

    nothing = jnp.zeros((size, size), before.dtype) if size <= DENSE else zero
    begin = _Climb(
        before, zero - jnp.inf, jnp.zeros_like(before), nothing, zero, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    )
    best = jax.lax.while_loop(lambda now: ~now.ended, step, begin)
    return model_at(best.at)


def _direction(objective: Callable[[Array], Array], now: _Climb) -> tuple[Float[Array, "p"], Bool[Array, ""]]:
    """The damped Newton step, and whether the second derivative with its damping is that of a hilltop."""
    if not now.curvature.ndim:
        return _direction_by_products(objective, now)
    diagonal, still = linalg.diagonal(now.curvature), jnp.all(now.curvature == 0, axis=-1)
    # In units of its own diagonal it has one scale, whatever those of the parameters are.
    size = jnp.sqrt(jnp.where(diagonal == 0, 1, jnp.abs(diagonal)))
    scaled = linalg.symmetrize(now.curvature / linalg.outer(size, size))
    scaled = scaled + linalg.diagonal_matrix(now.damping + jnp.where(still, jnp.ones_like(size), 0))
    move, pivot = linalg.solve(scaled, now.slope / size)
    return move / size, (pivot > float(jnp.finfo(size.dtype).eps)) & jnp.all(jnp.isfinite(move))


def _direction_by_products(objective: Callable[[Array], Array], now: _Climb) -> tuple[Array, Bool[Array, ""]]:
    """The damped Newton step by conjugate gradients, where the second derivative is too large to be formed."""

    def bent(way: Array) -> Array:
        return -jax.jvp(jax.grad(objective), (now.at,), (way,))[1]

    along, length = bent(now.slope), jnp.sum(now.slope**2)
    scale = now.damping * jnp.sqrt(jnp.sum(along**2) / jnp.where(length > 0, length, 1))
    move, _ = jax.scipy.sparse.linalg.cg(lambda way: bent(way) + scale * way, now.slope, maxiter=DENSE)
    return move, jnp.all(jnp.isfinite(move))
