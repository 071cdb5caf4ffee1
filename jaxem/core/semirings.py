"""Sums over hidden variables: log-sum-exp for EM and likelihoods, maximum for hard EM and decoding, tempered, sampled.

The first two never produce NaN where every term is -inf, and define their own derivatives: responsibilities, and
one at the first of the largest terms.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core.pytree import module


def _shift(terms: Array, axis: int) -> Array:
    largest = jnp.max(terms, axis=axis, keepdims=True)
    return jnp.where(jnp.isfinite(largest), largest, 0)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_sum(terms: Float[Array, ...], axis: int = -1) -> Float[Array, ...]:
    """log sum exp over `axis`; -inf, with zero gradient, if every term is -inf.

    >>> import jax.numpy as jnp
    >>> log_sum(jnp.array([-jnp.inf, 0.0])).item(), log_sum(jnp.array([-jnp.inf])).item()
    (0.0, -inf)
    """
    shift = _shift(terms, axis)
    total = jnp.sum(jnp.exp(terms - shift), axis=axis)
    return jnp.log(total) + jnp.squeeze(shift, axis)


@log_sum.defjvp
def _log_sum_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (terms,), (change,) = primals, tangents
    return log_sum(terms, axis), jnp.sum(responsibilities(terms, axis) * change, axis=axis)


def responsibilities(terms: Float[Array, ...], axis: int = -1) -> Float[Array, ...]:
    """exp(term) / sum of exp(terms): the derivative of `log_sum`; all zero if every term is -inf."""
    mass = jnp.exp(terms - jax.lax.stop_gradient(_shift(terms, axis)))
    total = jnp.sum(mass, axis=axis, keepdims=True)
    return mass * (1 / jnp.where(total > 0, total, 1))


def tempered(sharpness: Float[Array, ""], terms: Float[Array, ...], axis: int = -1) -> Float[Array, ...]:
    """log sum exp(sharpness x terms) / sharpness: `log_sum` at one, towards `maximum` for larger sharpness.

    >>> import jax.numpy as jnp
    >>> bool(abs(tempered(jnp.array(100.0), jnp.array([0.0, -1.0]))) < 1e-6)
    True
    """
    return log_sum(sharpness * terms, axis) / sharpness


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def maximum(terms: Float[Array, ...], axis: int = -1) -> Float[Array, ...]:
    """Largest term over `axis`; its derivative is one at the first of the largest, zero elsewhere."""
    return jnp.max(terms, axis=axis)


@maximum.defjvp
def _maximum_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (terms,), (change,) = primals, tangents
    best = jnp.argmax(terms, axis=axis, keepdims=True)
    return maximum(terms, axis), jnp.squeeze(jnp.take_along_axis(change, best, axis=axis), axis)


@module
class Sampled:
    """log-sum-exp whose derivative is one at a single term, drawn with its responsibility, and zero elsewhere.

    Attributes:
        key: a JAX random key. The same key draws the same.

    >>> import jax, jax.numpy as jnp
    >>> draw = jax.grad(Sampled(jax.random.key(0)))(jnp.array([0.0, -1.0]))
    >>> sorted(draw.tolist())
    [0.0, 1.0]
    """

    key: Array

    def __call__(self, terms: Float[Array, ...], axis: int = -1) -> Float[Array, ...]:
        """log sum exp over `axis`."""
        return _sampled(axis, self.key, terms)


def apart(add: Any, place: Any) -> Any:
    """The same sum, for one of several places: where it draws, it draws something else in each.

    >>> import jax
    >>> apart(maximum, 3) is maximum, apart(Sampled(jax.random.key(0)), 3).key.shape
    (True, ())
    """
    return Sampled(jax.random.fold_in(add.key, place)) if isinstance(add, Sampled) else add


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sampled(axis: int, key: Array, terms: Array) -> Array:
    return log_sum(terms, axis)


@_sampled.defjvp
def _sampled_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Any, Array]) -> tuple[Array, Array]:
    key, terms = primals
    # Adding Gumbel noise and taking the largest draws a term; none is drawn where all are impossible.
    drawn = jnp.argmax(terms + jax.random.gumbel(key, terms.shape, terms.dtype), axis=axis, keepdims=True)
    value = log_sum(terms, axis)
    change = jnp.squeeze(jnp.take_along_axis(tangents[1], drawn, axis=axis), axis)
    return value, jnp.where(jnp.isfinite(value), change, 0)
