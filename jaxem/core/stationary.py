"""The stationary distribution of a transition matrix."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core.linalg import outer


def stationary(transition: Float[Array, "*batch k k"]) -> Float[Array, "*batch k"]:
    """Distribution p with p A = p, by elimination of one state after the other (Grassmann, Taksar, Heyman 1985).

    Nothing is subtracted, so even the least probable state keeps its digits. If the chain falls into closed classes,
    it is one of several stationary distributions; an absorbing state gets all of it.

    >>> import jax.numpy as jnp
    >>> stationary(jnp.array([[0.9, 0.1], [0.3, 0.7]])).round(4).tolist()
    [0.75, 0.25]
    """
    size = transition.shape[-1]
    least = float(jnp.finfo(transition.dtype).tiny) ** 0.25
    rest, columns = transition, []
    for last in range(size - 1, 0, -1):
        out = jnp.sum(rest[..., last, :last], axis=-1, keepdims=True)
        into = rest[..., :last, last] / jnp.where(out > 0, out, least)
        columns.append(into)
        rest = rest[..., :last, :last] + outer(into, rest[..., last, :last])
    mass = jnp.ones_like(transition[..., :1, 0])
    for into in reversed(columns):
        mass = jnp.concatenate([mass, jnp.sum(mass * into, axis=-1, keepdims=True)], axis=-1)
        mass = mass / jnp.sum(mass, axis=-1, keepdims=True)
    return mass
