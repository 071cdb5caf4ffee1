"""The first state, diffuse or so wide that float32 would drown the noises, and what the data tell of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.chains.kalman.paths import diagonal, eye_of, gram, swap
from jaxem.chains.kalman.system import System
from jaxem.core import linalg
from jaxem.core.linalg import product, reflections, root_inverse, semidefinite_root, triangular_root
from jaxem.core.pytree import replace


class Start(NamedTuple):
    """The first state: what a root of its covariance says, and beside it directions, of which some are flat.

    A direction of which something is known is a column of `whole` times `share`, and has a unit noise.

    Attributes:
        root: `[H, H]` of the rest of the covariance.
        beside: `[H, Q]`.
        flat: `[Q]`, is nothing known of it?
        whole: `[H, H]`, a root of the whole covariance.
        share: `[H]`, of each of its columns; squared, it and what is left are one.
    """

    root: Array
    beside: Array
    flat: np.ndarray
    whole: Array
    share: Array


class Told(NamedTuple):
    """The directions beside the root of a start, given the data.

    Attributes:
        mean: `[Q, 1, S]`.
        root: `[Q, Q, P]`: root root^T is their covariance.
        lost: `[T, H, Q, P]`, the paths of those of which they tell nothing.
    """

    mean: Array
    root: Array
    lost: Array


def started(system: System) -> System:
    """The system with a finite spread of its diffuse states to start from.

    The density over them being flat, any will do: that of what a few steps' noises add to the data.
    """
    if not any(system.diffuse):
        return system
    diffuse = jnp.array(system.diffuse)
    known = ~(diffuse[:, None] | diffuse[None])
    told = jax.lax.stop_gradient(_told_by_steps(system, jnp.eye(len(diffuse), dtype=system.transition.dtype)))
    spread = jnp.diag(jnp.where(diffuse, 1 / jnp.where(told > 0, told, 1), 0))
    return replace(system, initial_covariance=jnp.where(known, system.initial_covariance, 0) + spread)


def _told_by_steps(system: System, columns: Float[Array, "h q"]) -> Float[Array, "q"]:
    """The squared ratio of signal to noise of each of these first states, within H steps."""

    def look(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        rows, noise, told = carry
        noise = noise + jnp.sum(linalg.matmul(rows, system.transition_noise) * rows, axis=1)
        now = linalg.matmul(rows, columns) ** 2 / jnp.where(noise > 0, noise, jnp.inf)[:, None]
        return (linalg.matmul(rows, system.transition), noise, jnp.maximum(told, jnp.max(now, axis=0))), None

    first = system.emission, linalg.diagonal(system.emission_noise), jnp.zeros_like(columns[0])
    return jax.lax.scan(look, first, None, length=len(columns))[0][2]


def start_of(system: System) -> Start:
    """The parts of the first state. Directions beside the root of which something is known are for float32.

    There an initial covariance that is large beside the noises would drown them. At least half of each is beside: what
    the data tell of that is what they tell of the whole.
    """
    system, flat = started(system), np.array(system.diffuse or (False,) * len(system.transition))
    root = semidefinite_root(system.initial_covariance)
    eye = jnp.eye(len(root), dtype=root.dtype)
    if root.dtype.itemsize >= 8:
        return Start(root, eye[:, np.flatnonzero(flat)], flat[flat], root, jnp.zeros_like(root[0]))
    part = 1 / (1 + jnp.maximum(jax.lax.stop_gradient(_told_by_steps(system, root)), 1))
    inside, share = jnp.where(flat, 1, jnp.sqrt(part)), jnp.where(flat, 0, jnp.sqrt(1 - part))
    return Start(root * inside[None], jnp.where(flat[None], eye, root * share[None]), flat, root, share)


UNTOLD = 256
"""The data tell nothing of a direction of a diffuse start if no more than so many units of rounding are left of it."""


def least_squares(rows: Float[Array, "r n p"], flat: np.ndarray) -> tuple[Array, Array, Array, Array, Array]:
    """Least squares of rows on the first Q of them, by orthogonal transformation.

    Returns:
        `(factor, directions, share, untold, volume)`: in place of the rows others of the same products, as far as they
        go along the first; `[Q, Q, P]`, which times the first rows are orthonormal, or zero where they are
        `untold [Q, P]`; `[Q, 1, S]`, minus how far the others go along them; and `[P]`, minus the logarithm of the
        volume that the first rows span.
    """
    count = len(flat)
    factor = triangular_root(rows, count, np.where(flat, UNTOLD * jnp.finfo(rows.dtype).eps, 0).astype(rows.dtype))
    untold = diagonal(factor[:count]) == 0
    whole = jnp.where(eye_of(count, bool) & untold[:, None], 1, factor[:count])
    directions = root_inverse(whole)
    # What is told, is told at right angles to what is not.
    lost = jnp.where(untold[:, None], directions, 0)
    angles = triangular_root(lost)
    angles = jnp.where(eye_of(count, bool) & ~untold[:, None], 1, angles)
    lost = product(root_inverse(angles), lost)
    apart = directions - product(product(directions, swap(lost)), lost)
    volume = -jnp.sum(jnp.log(jnp.abs(diagonal(whole))) + jnp.log(diagonal(angles)), axis=0)
    directions = jnp.where(untold[:, None], directions, apart)
    return factor, directions, -swap(factor[count:]).reshape(count, 1, -1), untold, volume


def prior_rows(flat: np.ndarray, others: int, like: Array) -> Float[Array, "r q p"]:
    """The directions of a start before any data, as rows: of those that are not flat, a unit noise."""
    alone = jnp.diag(jnp.asarray(~flat, like.dtype))[..., None]
    return jnp.broadcast_to(
        jnp.pad(alone, ((0, others), (0, 0), (0, 0))), (len(flat) + others, len(flat), like.shape[-1])
    )


def without_end(covariance: Float[Array, "t h h p"], lost: Array) -> Float[Array, "t h h p"]:
    """Covariances, infinite along what the data tell nothing of."""
    unknown = jax.vmap(gram)(lost)
    return jnp.where(unknown == 0, covariance, jnp.sign(unknown) * jnp.inf)


def visible(paths: Float[Array, "t h q p"], among: Float[Array, "t h q p"]) -> Float[Array, "t h q p"]:
    """Zero where a path is no more than rounding of all."""
    scale = jnp.finfo(paths.dtype).eps * jnp.sum(among**2, axis=2, keepdims=True)
    return jnp.where(paths**2 > scale, paths, 0)


def score_of_start(system: System, slope: Array, known: Array, told: Told | None) -> tuple[Array, Array]:
    """The derivatives by mean and covariance of the first state, from a slope and a root of the information on it.

    Of a start that is all but unknown both are nothing beside what they are sums of. In units of its covariance L L^T
    they are what the data tell of it: L^T slope is the mean of its unit noises, and L^T information L is how much less
    than one their covariance is. Of a direction beside, which is a share of a unit noise, that is both over the share.
    """
    start = start_of(system)
    if told is None or slope.dtype.itemsize >= 8:
        return slope[:, 0], (gram(slope) - gram(known)) / 2
    used = ~jnp.asarray(start.flat) & (linalg.diagonal(start.whole) > 0)
    whole = jnp.where(used[None], start.whole, jnp.eye(len(used), dtype=slope.dtype))[..., None]
    share = jnp.where(used, start.share, 1)[:, None, None]
    mean, root = product(swap(whole), slope), product(swap(whole), known)
    mean = jnp.where(used[:, None, None], told.mean / share, mean)
    lack = (eye_of(len(used), slope.dtype) - gram(told.root)) / (share * swap(share))
    # Of what the data hardly tell, the sum has the digits.
    clear = used[:, None] & (diagonal(lack) > CLEAR)
    information = jnp.where(
        used[:, None, None] & used[None, :, None] & (clear[:, None] | clear[None]), lack, gram(root)
    )
    back = swap(root_inverse(whole))
    both = product(product(back, gram(mean) - information), swap(back))
    return product(back, mean)[:, 0], both / 2


CLEAR = 0.01
"""Of a direction of a start the data tell so much, if its variance is less by this part."""


def information_on_start(system: System, known: Float[Array, "h k p"]) -> Float[Array, "h k p"]:
    """A root of the information on the first state, once the directions of the start are not given, but unknown."""
    _, beside, flat = start_of(system)[:3]
    if not len(flat):
        return known
    # What tells of a flat direction tells of it alone.
    along, count = product(beside.T[..., None], known), int(flat.sum())
    if count:
        rows = jnp.concatenate([along[np.flatnonzero(flat)], along[np.flatnonzero(~flat)], known])
        turned, _ = reflections(rows, count)
        pivot = diagonal(turned[:count, :count]) ** 2
        spent = pivot > (UNTOLD * jnp.finfo(rows.dtype).eps) ** 2 * jnp.sum(rows[:count] ** 2, axis=1)
        rest = jnp.concatenate([jnp.where(spent[None], 0, turned[count:, :count]), turned[count:, count:]], 1)
        along, known = rest[: len(flat) - count], rest[len(flat) - count :]
    if count < len(flat):
        unit = jnp.broadcast_to(eye_of(known.shape[1], known.dtype), (known.shape[1], *known.shape[1:]))
        factor = triangular_root(jnp.concatenate([unit, swap(along)], 1))
        known = swap(product(root_inverse(factor), swap(known)))
    return known
