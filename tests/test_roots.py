"""The root finder of the M-steps: right at once for many members, in both float types, and with derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.root_finding import root


def test_roots_of_many_members(dtype: jnp.dtype) -> None:
    cubes = jnp.array([8.0, 27.0, 1e-3, 0.0], dtype)
    found = root(lambda x: x**3 - cubes, jnp.zeros(4, dtype), jnp.full(4, 10, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found[:3], [2, 3, 0.1], rtol=4 * float(jnp.finfo(dtype).eps))
    assert abs(found[3]) < 1e-3  # a triple root: the cube of that is rounding


def test_a_function_that_newton_alone_would_leave() -> None:
    """arctan's tangents lead away from its root, and a step function has none."""
    low, high = jnp.array(-100.0), jnp.array(90.0)
    assert abs(root(lambda x: jnp.arctan(x - 3), low, high) - 3) < 1e-14
    assert abs(root(lambda x: jnp.where(x > 0.7, 1.0, -1.0), low, high) - 0.7) < 1e-13


def test_without_a_root_it_is_the_nearer_end() -> None:
    ends = jnp.zeros(2), jnp.ones(2)
    np.testing.assert_allclose(root(lambda x: x + jnp.array([5.0, -5.0]), *ends), [0, 1], atol=1e-12)


def test_its_derivative_is_that_of_the_equation() -> None:
    def log(a: jax.Array) -> jax.Array:
        return root(lambda x: jnp.exp(x) - a, jnp.array(-9.0), jnp.array(9.0))

    a = jnp.array(3.0)
    for slope in (jax.grad(log), jax.jacfwd(log)):
        np.testing.assert_allclose(slope(a), 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(jax.hessian(log)(a), -1 / 9, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(log)(jnp.array([0.5, 2.0])), np.log([0.5, 2.0]), rtol=1e-12)
