"""Roots of functions of one variable, batched over members: for M-steps without a closed form."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEPS = 80
"""Iterations at most: enough to halve any float64 bracket down to rounding; Newton needs about five."""


def root(
    function: Callable[[Array], Array],
    low: Float[Array, "*batch"],
    high: Float[Array, "*batch"],
    start: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Root of each member's increasing function, by Newton's method within a bracket, bisected where Newton fails.

    It is exact to rounding, relative to the larger of 1 and the root, so positive numbers are best sought by their
    logarithms. It can be differentiated in both modes, any number of times: the derivative of a root is that of the
    equation it solves (the implicit function theorem), not of the steps.

    Args:
        function: maps `[...]` to `[...]`, member by member; increasing where it crosses zero; JAX finds its slope.
        low: `[...]`, below the root. If the function is above zero at `low`, `low` is returned.
        high: `[...]`, above the root; if the function is below zero there, `high` is returned.
        start: `[...]`, an initial guess between the two; the middle if left out.

    >>> import jax.numpy as jnp
    >>> root(lambda x: x**3 - jnp.array([8.0, 27.0]), jnp.zeros(2), jnp.full(2, 10.0)).round(6).tolist()
    [2.0, 3.0]
    """
    low, high = jax.lax.stop_gradient((low, high))
    start = (low + high) / 2 if start is None else jnp.clip(jax.lax.stop_gradient(start), low, high)

    def solve(value: Callable[[Array], Array], start: Array) -> Array:
        return _newton(value, low, high, start)

    def along(slope: Callable[[Array], Array], change: Array) -> Array:
        steepness = slope(jnp.ones_like(change))
        return jnp.where(steepness == 0, 0, change / jnp.where(steepness == 0, 1, steepness))

    return jax.lax.custom_root(function, start, solve, along)


def _newton(function: Callable[[Array], Array], low: Array, high: Array, start: Array) -> Array:
    eps = float(jnp.finfo(start.dtype).eps)

    def going(state: tuple[Array, ...]) -> Array:
        x, _, _, moved, step = state
        return (step < STEPS) & jnp.any(moved > eps * jnp.maximum(jnp.abs(x), 1))

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, low, high, moved, count = state
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        low, high = jnp.where(value <= 0, x, low), jnp.where(value >= 0, x, high)
        newton = x - value / jnp.where(slope > 0, slope, 1)
        # A Newton step more than half as long as the one before is not converging: bisect instead.
        good = (slope > 0) & (newton >= low) & (newton <= high) & (2 * jnp.abs(newton - x) <= moved)
        new = jnp.where(good, newton, low + (high - low) / 2)
        return new, low, high, jnp.abs(new - x), count + 1

    state = (start, low, high, jnp.full_like(start, jnp.inf), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(going, step, state)[0]
