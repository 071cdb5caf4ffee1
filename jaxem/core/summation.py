"""The sums over what is hidden: log-sum-exp for EM and likelihoods, max for hard EM and decoding; and long sums.

The first two never produce NaN where every term is -inf, and carry their derivative as a rule: responsibilities, and
the first of the largest.
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
    """log sum exp(sharpness x terms) / sharpness: between their mean-field and their largest, log-sum at one.

    >>> import jax.numpy as jnp
    >>> bool(abs(tempered(jnp.array(100.0), jnp.array([0.0, -1.0]))) < 1e-6)
    True
    """
    return log_sum(sharpness * terms, axis) / sharpness


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def maximum(terms: Float[Array, ...], axis: int = -1) -> Float[Array, ...]:
    """The largest term over `axis`; its derivative is one at the first of the largest, zero elsewhere."""
    return jnp.max(terms, axis=axis)


@maximum.defjvp
def _maximum_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (terms,), (change,) = primals, tangents
    best = jnp.argmax(terms, axis=axis, keepdims=True)
    return maximum(terms, axis), jnp.squeeze(jnp.take_along_axis(change, best, axis=axis), axis)


@module
class Sampled:
    """log-sum, with one term for its derivative, drawn by the responsibilities instead of all of them.

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


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sampled(axis: int, key: Array, terms: Array) -> Array:
    return log_sum(terms, axis)


@_sampled.defjvp
def _sampled_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Any, Array]) -> tuple[Array, Array]:
    key, terms = primals
    # The largest after Gumbel noise is a draw; where nothing is possible, none is.
    drawn = jnp.argmax(terms + jax.random.gumbel(key, terms.shape, terms.dtype), axis=axis, keepdims=True)
    value = log_sum(terms, axis)
    change = jnp.squeeze(jnp.take_along_axis(tangents[1], drawn, axis=axis), axis)
    return value, jnp.where(jnp.isfinite(value), change, 0)


def placed(values: Array, axis: Any) -> Float[Array, ...]:
    """Values in the place of this device of a mesh axis, among zeros for the others: `[devices, ...]`.

    Their sum over the devices tells all of them what each has. For inside `jax.shard_map`.
    """
    here = jax.lax.axis_index(axis)
    own = jnp.arange(jax.lax.axis_size(axis), dtype=here.dtype) == here
    return jnp.where(own.reshape(-1, *(1 for _ in values.shape)), values[None], 0)


BLOCK = 512
SHORT = 4 * BLOCK
"""Up to this many numbers are added as they come. Above it they are added in blocks of `BLOCK`, and then the blocks:
rounding grows with the square root of their number, not with the number."""


def _is_short(n: Any) -> bool:
    """Of a size that is a symbol (in `jax.export`) nothing is known."""
    return isinstance(n, int) and n <= SHORT


def total(values: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """The sum over the last axis."""
    n = values.shape[-1]
    if _is_short(n):
        return jnp.sum(values, axis=-1)
    blocks = -(-n // BLOCK)
    padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, blocks * BLOCK - n)])
    return jnp.sum(jnp.sum(padded.reshape(*values.shape[:-1], blocks, BLOCK), axis=-1), axis=-1)


@jax.custom_jvp
def totals(*values: Float[Array, "*batch n"]) -> tuple[Float[Array, "*batch"], ...]:
    """The sum over the last axis of each of several arrays of one shape.

    In one pass, because XLA reads (and computes) everything again for each sum by itself: a third of the time.
    """
    n = values[0].shape[-1]
    if _is_short(n):
        return _one_pass(*values)
    whole = n // BLOCK * BLOCK
    blocks = [value[..., :whole].reshape(*value.shape[:-1], -1, BLOCK) for value in values]
    rest = [value[..., whole:] for value in values]
    each = zip(_one_pass(*blocks), _one_pass(*rest), strict=True)
    return tuple(jnp.sum(block, axis=-1) + tail for block, tail in each)


def _one_pass(*values: Array) -> tuple[Array, ...]:
    zeros = tuple(jnp.zeros((), value.dtype) for value in values)
    return jax.lax.reduce(values, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), (values[0].ndim - 1,))


@totals.defjvp
def _totals_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    return totals(*primals), tuple(jnp.sum(tangent, axis=-1) for tangent in tangents)


def two_sum(high: Array, low: Array, term: Array) -> tuple[Array, Array]:
    """`high + low + term` as a rounded sum and what the rounding lost (Neumaier 1974)."""
    raised = high + term
    lost = jnp.where(jnp.abs(high) >= jnp.abs(term), (high - raised) + term, (term - raised) + high)
    # A comparison, because in a kernel there is no `isfinite`.
    return raised, low + jnp.where(jnp.abs(raised) < jnp.inf, lost, 0)
