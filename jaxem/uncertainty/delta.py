"""Standard errors of parameters and of functions of them, by the delta method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from jaxem.core import bijectors, linalg
from jaxem.core.constraints import Leaf, loadings, walk
from jaxem.core.coordinates import flat

Function = Callable[[Any], Any]


def root(covariance: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """Lower triangular L with L L' = covariance, which may be singular; in units that make its diagonal one."""
    entry = linalg.diagonal(covariance)
    some = (entry > 0) | jnp.isnan(entry)
    scale = jnp.sqrt(jnp.where(some, entry, 1))
    unit = covariance / linalg.outer(scale, scale)
    return linalg.semidefinite_root(unit) * scale[:, None]


def along(function: Function, model: Any, covariance: Float[Array, "p p"]) -> Any:
    """Change of `function(model)` along each column of the root of the covariance, `[p, ...]`: G L, never G."""
    free, model_at = flat(model)

    def floats(free: Array) -> Any:
        return jax.tree.map(_as_float, function(model_at(free)))

    return jax.vmap(lambda column: jax.jvp(floats, (free,), (column,))[1])(root(covariance).T)


def _as_float(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(jnp.result_type(float))


def flattened(tree: Any) -> Float[Array, "q"]:
    """All numbers of a pytree as one vector."""
    return jnp.concatenate([jnp.ravel(_as_float(leaf)) for leaf in jax.tree.leaves(tree)])


def spread(function: Function, model: Any, covariance: Float[Array, "p p"]) -> Any:
    """Standard errors of `function(model)`, shaped like it; NaN where nothing that moves has an effect."""
    changes = along(function, model, covariance)
    # The norm is scaled, so that squares of what is small do not vanish.
    return jax.tree.map(lambda leaf: _known(_norm(leaf)), changes)


def _norm(changes: Float[Array, "p ..."]) -> Array:
    largest = jnp.max(jnp.abs(changes), axis=0, initial=0)
    some = jnp.where(largest > 0, largest, 1)
    return some * jnp.sqrt(jnp.sum((changes / some[None]) ** 2, axis=0)) * jnp.where(largest == 0, 0, 1)


def _known(error: Array) -> Array:
    return jnp.where(error == 0, jnp.nan, error)


def parameters(model: Any) -> list[Array]:
    """Values of all parameters, in the order of the leaves."""
    return [leaf.values for leaf in walk(model)]


def of_parameters(model: Any, covariance: Float[Array, "p p"]) -> list[Array]:
    """Standard errors of all parameters; NaN for those that nobody can know: held, at an edge, loadings that turn."""
    return identified(model, spread(parameters, model, covariance))


def identified(model: Any, errors: list[Array]) -> list[Array]:
    """Standard errors of all parameters; NaN for loadings that a rotation of the factors changes."""
    return [
        jnp.full_like(error, jnp.nan) if leaf.declared is loadings and leaf.values.shape[-1] > 1 else error
        for leaf, error in zip(walk(model), errors, strict=True)
    ]


def bounds(leaf: Leaf, error: Array, level: Array, plain: bool) -> tuple[Array, Array]:
    """Ends of an interval of each number of a parameter, on the scale of its constraint: logarithm, log-odds, or as is.

    A value above zero is theta exp(-+ q se / theta), a probability is p -+ q se on the scale of its log-odds, where
    its standard error is se / (p (1 - p)).
    """
    values = _as_float(leaf.values)
    reach = ndtri((1 + level) / 2).astype(values.dtype) * error
    plainly = values - reach, values + reach
    bijector = leaf.declared.bijector
    if plain:
        return plainly
    if bijector in (bijectors.UNIT_INTERVAL, bijectors.SIMPLEX):
        inside = (values > 0) & (values < 1)
        p = jnp.where(inside, values, 0.5)
        odds, step = jnp.log(p) - jnp.log1p(-p), reach / (p * (1 - p))
        return jax.nn.sigmoid(odds - step), jax.nn.sigmoid(odds + step)
    if bijector not in (bijectors.POSITIVE, bijectors.FROM_ZERO, bijectors.POSITIVE_DEFINITE):
        return plainly
    above = values > 0
    if bijector is bijectors.POSITIVE_DEFINITE:
        above = above & linalg.lead(jnp.eye(values.shape[-1], dtype=bool), values.ndim)
    ratio = jnp.exp(reach / jnp.where(above, values, 1))
    return jnp.where(above, values / ratio, plainly[0]), jnp.where(above, values * ratio, plainly[1])


@partial(jax.jit, static_argnums=(3, 4))
def intervals(model: Any, errors: Any, level: Array, plain: bool, lead: int) -> tuple[Any, Any]:
    """`(lower, upper)`, two models, of a model and its standard errors."""

    def one(model: Any, errors: Any) -> tuple[Any, Any]:
        each = zip(walk(model), jax.tree.leaves(errors), strict=True)
        ends = [bounds(leaf, error, level, plain) for leaf, error in each]
        structure = jax.tree.structure(model)
        return tuple(jax.tree.unflatten(structure, [end[i] for end in ends]) for i in (0, 1))  # type: ignore[return-value]

    return over(one, lead)(model, errors)


def over(function: Callable[..., Any], lead: int) -> Callable[..., Any]:
    """`function` of each of many, along `lead` leading axes."""
    for _ in range(lead):
        function = jax.vmap(function)
    return function


@partial(jax.jit, static_argnums=1)
def standard_errors(value: Any, lead: int) -> Any:
    """Standard errors shaped like the model."""

    def one(model: Any, covariance: Array) -> Any:
        return jax.tree.unflatten(jax.tree.structure(model), of_parameters(model, covariance))

    return over(one, lead)(*value)


@partial(jax.jit, static_argnums=(0, 2))
def deltas(function: Function, value: Any, lead: int) -> Any:
    """Standard errors of `function(model)`."""
    return over(partial(spread, function), lead)(*value)


@partial(jax.jit, static_argnums=(0, 2))
def covariances(function: Function, value: Any, lead: int) -> tuple[Array, Array]:
    """`function(model)` as one vector, `[q]`, and its covariance `[q, q]`."""

    def one(model: Any, covariance: Array) -> tuple[Array, Array]:
        changes = jax.tree.leaves(along(function, model, covariance))
        columns = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in changes], axis=1)
        return flattened(function(model)), linalg.matmul(columns.T, columns)

    return over(one, lead)(*value)
