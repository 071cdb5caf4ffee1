"""What is linear in the data of a state space, its algebra, and sums over many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains.chain import LONG
from jaxem.core.linalg import product, semidefinite_root
from jaxem.core.summation import two_sum

Paths = tuple[Array, ...]
"""What is linear in the data: `[H, 1, S]` of the data; and of a diffuse start `[H, Q, P]`, one for each direction."""


def swap(matrix: Float[Array, "d e s"]) -> Float[Array, "e d s"]:
    """The transpose."""
    return jnp.swapaxes(matrix, 0, 1)


def gram(matrix: Float[Array, "d e s"]) -> Float[Array, "d d s"]:
    """M M^T."""
    return product(matrix, swap(matrix))


def apply(matrix: Float[Array, "d k s1"], vectors: Paths) -> Paths:
    """A matrix times each path."""
    return tuple(product(matrix, vector) for vector in vectors)


def plus(*terms: Paths) -> Paths:
    """The sum, path by path."""
    return jax.tree.map(lambda *each: sum(each[1:], each[0]), *terms)


def outer(a: Paths, b: Paths) -> Float[Array, "d e s"]:
    """Sums of products over the paths: of the data, and of what is not known of a diffuse start."""
    return sum(product(left, swap(right)) for left, right in zip(a, b, strict=True))  # type: ignore[return-value]


def lower_triangle(matrix: Float[Array, "h h s"]) -> Float[Array, "h h s"]:
    """Zero above the diagonal."""
    return jnp.where(jnp.tril(jnp.ones(matrix.shape[:2], bool))[..., None], matrix, 0)


def noise_root(covariance: Float[Array, "h h"]) -> Float[Array, "h h 1"]:
    """A root of a covariance, the same for all sequences."""
    return semidefinite_root(covariance)[..., None]


def diagonal(matrix: Float[Array, "d d s"]) -> Float[Array, "d s"]:
    """The diagonal of each sequence's matrix."""
    return jnp.stack([matrix[i, i] for i in range(len(matrix))])


def eye_of(size: int, dtype: Any) -> Array:
    """The identity, the same for all sequences."""
    return jnp.eye(size, dtype=dtype)[..., None]


def as_rows(paths: tuple[Array, ...], patterns: int) -> Float[Array, "r n p"]:
    """Paths of several steps as rows, all that share covariances one under the other."""

    def each(path: Float[Array, "t d q s"]) -> Array:
        steps, size, count, sequences = path.shape
        return swap(path.reshape(steps * size, count * sequences // patterns, patterns))

    return jnp.concatenate([each(path) for path in paths])


def summed(terms: Float[Array, "t s"]) -> Float[Array, "s"]:
    """The sum over the steps, compensated for what rounding loses."""

    def compensated(terms: Array) -> Array:
        nothing = jnp.zeros_like(terms[0])
        (high, low), _ = jax.lax.scan(lambda sums, term: (two_sum(*sums, term), None), (nothing, nothing), terms)
        return high + low

    return total(terms, compensated)


def total(terms: Float[Array, "n s"], add: Callable[[Array], Array]) -> Float[Array, "s"]:
    """A sum of log-densities: where one is of the impossible so is all, however certain others may be."""
    endless = jnp.isinf(terms)
    extreme = jnp.where(jnp.any(terms == -jnp.inf, axis=0), -jnp.inf, jnp.inf)
    return jnp.where(jnp.any(endless, axis=0), extreme, add(jnp.where(endless, 0, terms)))


def _more(total: tuple[Array, Array], term: Array, steps: int) -> tuple[Array, Array]:
    """A sum and what its rounding lost: over many steps that is needed."""
    return two_sum(*total, term) if steps > LONG else (total[0] + term, total[1])


def added(sums: Any, terms: Any, steps: int) -> Any:
    """Running sums `(high, low)`, with the terms of one more step."""
    return jax.tree.map(lambda s, term: _more(s, term, steps), sums, terms, is_leaf=lambda s: isinstance(s, tuple))
