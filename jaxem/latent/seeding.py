"""Seeds of EM: by k-means++, or rows taken at random, many starts at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

METHODS = ("mixed", "kmeans++", "random")
"""How rows to start from are drawn. Of several starts, `mixed` draws the first by k-means++, the second at random, and
so on in turn: where clusters overlap, or are of very different shapes, rows that are far apart may all be wrong."""


def seeds(
    key: Array,
    points: Float[Array, "n d"],
    weight: Float[Array, "n"],
    labels: Int[Array, "n"] | None,
    k: int,
    apart: Any,
) -> Int[Array, "k"]:
    """Rows to start components from.

    If they are to be `apart`, each next row is drawn with probability proportional to weight times squared distance to
    the nearest row drawn so far (k-means++: Arthur and Vassilvitskii 2007), so the first j of the k are a start for j
    components; else by weight alone. A component that some rows are known to belong to is seeded with one of those.
    Rows of weight zero are never drawn.
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
        closer = jnp.minimum(nearest, squared_distance(row))
        return rows.at[i].set(row), jnp.where(apart, closer, nearest)

    chance = jax.vmap(lambda key: jax.random.uniform(key, (), weight.dtype))(jax.random.split(key, k))
    return jax.lax.fori_loop(0, k, add_seed, (jnp.zeros(k, int), jnp.full_like(weight, jnp.inf)))[0]


def assignments(
    points: Float[Array, "n d"], rows: Int[Array, "k"], active: Int[Array, ""], labels: Int[Array, "n"] | None
) -> Float[Array, "k n"]:
    """Hard assignments: one for the nearest of the first `active` seeds (or the known label), zero for the others."""
    centres = points[rows]
    distance = sum((points[None, :, d] - centres[:, d, None]) ** 2 for d in range(points.shape[1]))
    component = jnp.arange(len(rows), dtype=jnp.int32)[:, None]
    nearest = jnp.argmin(jnp.where(component < active, distance, jnp.inf), axis=0).astype(jnp.int32)
    if labels is not None:
        nearest = jnp.where(labels >= 0, labels.astype(jnp.int32), nearest)
    return (component == nearest[None]).astype(points.dtype)


def apart(method: str, restarts: int) -> Bool[Array, "r"]:
    """Whether each of several starts is drawn by k-means++.

    >>> apart("mixed", 3).tolist()
    [True, False, True]
    """
    place = jnp.arange(restarts, dtype=jnp.int32)
    return {"mixed": place % 2 == 0, "kmeans++": place >= 0, "random": place < 0}[method]


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
    """Components fitted to weighted hard assignments, `[restarts, k]` of them, and the weight that each holds.

    Rows that no member of the family can produce are as good as absent.
    """
    # Of most families no parameter says which these are, and then no work is done to find any.
    inside = family.start(x, jnp.broadcast_to(weight, (k, *weight.shape))).inside(x)
    weight = jnp.where(inside, weight, 0)
    x = jnp.where(inside.reshape(-1, *(1,) * (x.ndim - 1)), x, x[jnp.argmax(weight)])
    points = family.seeding_features(x, weight)

    def one(key: Array, apart: Array) -> Array:
        return weight[None] * assignments(points, seeds(key, points, weight, labels, k, apart), active, labels)

    assigned = jax.vmap(one)(jax.random.split(key, restarts), apart(method, restarts))
    return family.start(x, assigned), assigned.sum(-1)
