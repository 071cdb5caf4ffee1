"""Where EM sets out from: k-means++ seeds, or rows taken at random, many starts at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

METHODS = ("kmeans++", "random")


def seeds(
    key: Array,
    points: Float[Array, "n d"],
    weight: Float[Array, "n"],
    labels: Int[Array, "n"] | None,
    k: int,
    method: str,
) -> Int[Array, "k"]:
    """Rows to start components from.

    `kmeans++` draws each next row with probability proportional to weight times squared distance to the nearest row
    drawn so far (Arthur and Vassilvitskii 2007), so the first j of the k are a start for j components. `random` draws
    by weight alone. A component that some rows are known to belong to is seeded with one of those. Rows of weight
    zero are never drawn.
    """

    def draw(i: Array, mass: Array) -> Array:
        if labels is not None:
            known = weight * (labels == i).astype(weight.dtype)
            mass = jnp.where(jnp.sum(known) > 0, known, mass)
        mass = jnp.where(jnp.sum(mass) > 0, mass, weight)
        cumulated = jnp.cumsum(mass)
        return jnp.argmax(cumulated > chance[i] * cumulated[-1])

    def squared_distance(row: Array) -> Array:
        return sum((points[:, d] - points[row, d]) ** 2 for d in range(points.shape[1]))  # type: ignore[return-value]

    def add_seed(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, nearest = carry
        row = draw(i, weight * jnp.where(jnp.isfinite(nearest), nearest, 1))
        closer = jnp.minimum(nearest, squared_distance(row)) if method == "kmeans++" else nearest
        return rows.at[i].set(row), closer

    chance = jax.vmap(lambda key: jax.random.uniform(key, (), weight.dtype))(jax.random.split(key, k))
    return jax.lax.fori_loop(0, k, add_seed, (jnp.zeros(k, int), jnp.full_like(weight, jnp.inf)))[0]


def assignments(
    points: Float[Array, "n d"], rows: Int[Array, "k"], active: Int[Array, ""], labels: Int[Array, "n"] | None
) -> Float[Array, "k n"]:
    """One for the nearest of the first `active` seeds (or the known label), zero for the others."""
    centres = points[rows]
    distance = sum((points[None, :, d] - centres[:, d, None]) ** 2 for d in range(points.shape[1]))
    component = jnp.arange(len(rows), dtype=jnp.int32)[:, None]
    nearest = jnp.argmin(jnp.where(component < active, distance, jnp.inf), axis=0).astype(jnp.int32)
    if labels is not None:
        nearest = jnp.where(labels >= 0, labels.astype(jnp.int32), nearest)
    return (component == nearest[None]).astype(points.dtype)


@partial(jax.jit, static_argnames=("family", "k", "restarts", "method"))
def responsibilities(
    key: Array,
    x: Array,
    weight: Float[Array, "n"],
    labels: Int[Array, "n"] | None,
    active: Int[Array, ""],
    *,
    family: Any,
    k: int,
    restarts: int,
    method: str,
) -> tuple[Any, Float[Array, "r k"]]:
    """Components fitted to weighted hard assignments, `[restarts, k]` of them, and the weight that each holds."""
    points = family.points(x, weight)

    def one(key: Array) -> Array:
        return weight[None] * assignments(points, seeds(key, points, weight, labels, k, method), active, labels)

    assigned = jax.vmap(one)(jax.random.split(key, restarts))
    return family.start(x, assigned), assigned.sum(-1)
