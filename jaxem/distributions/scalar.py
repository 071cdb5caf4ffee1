"""Families of numbers that are written for one member and one row; the base does the rest by `vmap`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxem.core import linalg
from jaxem.distributions.base import Family, Statistics


class ScalarFamily(Family):
    """A family of numbers, written for one member and one row.

    What you write, where every parameter of `self` is one number, and so is a row `x`:

    - fields, each with its constraint, and a `support` if not every number is possible;
    - `log_density(x)`: log p(x), for x inside the support only;
    - `row_statistics(x)`: a number, or a pytree of numbers, whose weighted sums over rows are sufficient;
    - `expected_log_prob(statistics)`, `m_step(statistics)`, `expected_statistics()`, of one member;
    - `draw(key)`: one row. For `impute`, its mean, `centre()`.

    What you get: members and rows, side by side and as fast as if they had been written so; rows outside the support
    have probability zero and no weight, with finite gradients; and all that a `Family` gets.

    >>> import jax, jax.numpy as jnp, jaxem as jem
    >>> from jaxem.core.constraints import parameter, positive
    >>> from jaxem.core.pytree import module, replace
    >>> @module
    ... class Rayleigh(jem.ScalarFamily):
    ...     support = jem.Support("numbers above 0", lambda x: x > 0, example=1.0)
    ...     scale: jax.Array = parameter(positive)
    ...     def log_density(self, x):
    ...         return jnp.log(x / self.scale**2) - (x / self.scale) ** 2 / 2
    >>> Rayleigh([1.0, 2.0]).log_prob([1.0, -1.0]).round(4).tolist()
    [[-0.5, -inf], [-1.5113, -inf]]
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Make what is written for one member work for many."""
        for name in ("expected_log_prob", "m_step", "expected_statistics", "centre"):
            if name in cls.__dict__:
                setattr(cls, name, _of_members(cls.__dict__[name]))
        if "log_density" in cls.__dict__:
            cls.log_density = _of_rows(cls.__dict__["log_density"])  # type: ignore[assignment]
        super().__init_subclass__(**options)

    def row_statistics(self, x: Float[Array, ""]) -> PyTree:
        """The sufficient statistics of one row."""
        raise NotImplementedError

    def draw(self, key: Array) -> Float[Array, ""]:
        """One row drawn from one member."""
        raise NotImplementedError

    def statistics(self, x: Any, weight: Float[Array, "*batch n"]) -> Statistics:
        """The weighted sums of `row_statistics`."""
        columns = self.observe(x).columns
        possible, x = self._possible(columns)
        weight = jnp.where(linalg.lead(possible, weight.ndim), weight, 0)
        each = _over(self, lambda one: jax.vmap(one.row_statistics)(x))
        return jax.tree.map(lambda values: jnp.sum(weight * jnp.asarray(values, weight.dtype), axis=-1), each)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` rows from each member, `[*batch_shape, n]`."""
        keys = jax.random.split(key, (*self.batch_shape, n))
        return _over(self, lambda one, keys: jax.vmap(one.draw)(keys), keys)

    def _possible(self, columns: Float[Array, "n"]) -> tuple[Array, Array]:
        """Which rows are in the support, and the rows with an example in the place of the others."""
        possible = self.contains(columns)
        return possible, jnp.where(possible, columns, jnp.asarray(self.support.example, columns.dtype))


def _over(family: Any, of_one: Callable[..., Any], *arrays: Any) -> Any:
    """`of_one(member, ...)` for each member, whose arrays come with the axes of the members first."""
    for _ in family.batch_shape:
        of_one = jax.vmap(of_one)
    return of_one(family, *arrays)


def _of_members(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of one member as one of all."""

    @functools.wraps(method)
    def of_members(self: Any, *statistics: Any) -> Any:
        return _over(self, method, *statistics)

    return of_members


def _of_rows(log_density: Callable[[Any, Array], Array]) -> Callable[[Any, Array], Array]:
    """A log-density of one member and one row as one of all; -inf for rows outside the support."""

    @functools.wraps(log_density)
    def of_rows(self: Any, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        possible, x = self._possible(columns)
        each = _over(self, lambda one: jax.vmap(functools.partial(log_density, one))(x))
        return jnp.where(linalg.lead(possible, each.ndim), each, -jnp.inf)

    return of_rows
