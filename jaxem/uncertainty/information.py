"""Information about the parameters of a fitted model, in coordinates.

Of the objective, log-likelihood plus log-prior, at coordinates z:

    gradient               g   = d/dz Q(z; S(z'))            at z' = z (Fisher's identity)
    complete information   I_c = -d2/dz2 Q(z; S)             at fixed expected statistics S: no pass over the data
    observed information   I_o = -dg/dz                      of both arguments (Oakes 1999): tangents of the E-step
    missing information    I_m = I_c - I_o                   (Louis 1982)
    row scores             s_i = d/dz log p(x_i)             B = sum w_i s_i s_i', sums of clusters first
    covariance                   I_o^-1,  B^-1  or  I_o^-1 B I_o^-1  (White 1982)

The distance to the maximum is sqrt(g' I_o^-1 g), in standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.coordinates import flat
from jaxem.distributions.base import Statistics, add
from jaxem.solvers.em import chunk_rows, expectation, in_chunks

WIDTH = 16
"""Directions of a derivative that are computed together, at most."""
NEAR = 2.0
"""Standard errors from the maximum up to which Newton's steps polish a model; from farther away it is another one."""


BENT = 1e-3
"""Relative change of the information along a step, above which it is computed again for rows that go by in chunks."""


class Plan(NamedTuple):
    """How a covariance is computed; part of the type.

    Attributes:
        kind: of covariance.
        sampling: are weights those of a survey?
        groups: number of clusters, zero without any.
        polish: steps of Newton's method.
    """

    kind: str = "observed"
    sampling: bool = False
    groups: int = 0
    polish: int = 2


class Look(NamedTuple):
    """Objective, gradient and information at a model."""

    objective: Array
    gradient: Float[Array, "p"]
    observed: Float[Array, "p p"]
    complete: Float[Array, "p p"]


def directions(
    function: Callable[[Array], Any], at: Float[Array, "p"], has_aux: bool = False
) -> tuple[Any, Float[Array, "p ..."]]:
    """`(value, derivatives)` of a function of coordinates, a derivative for each, `WIDTH` of them at once.

    With `has_aux` the function returns `(output, aux)`, and `value` is that pair.
    """

    def along(direction: Array) -> tuple[Any, Any]:
        out = jax.jvp(function, (at,), (direction,), has_aux=has_aux)
        return ((out[0], out[2]), out[1]) if has_aux else out

    size = at.size
    together = jax.vmap(along, out_axes=(None, 0))
    if size <= WIDTH:
        return together(jnp.eye(size, dtype=at.dtype))
    blocks = -(-size // WIDTH)
    width = -(-size // blocks)
    every = jnp.eye(blocks * width, size, dtype=at.dtype).reshape(blocks, width, size)
    value, derivatives = jax.lax.map(together, every)
    first = jax.tree.map(lambda leaf: leaf[0], value)
    return first, derivatives.reshape(blocks * width, *derivatives.shape[2:])[:size]


def climbed(
    model: Any, data: Any, weight: Array, prior: Statistics, moves: Bool[Array, "p"], polish: int
) -> tuple[Any, Look, Inverse]:
    """The model after `polish` steps of Newton's method with one matrix, what there is to see there, and I_o^-1.

    A step is taken only if the objective does not fall, and none from more than `NEAR` standard errors away. How much
    of the gradient is left after the first says how much the information changes on the way.
    """
    free, model_at = flat(model)
    eps = float(jnp.finfo(free.dtype).eps)
    bent = BENT if in_chunks(model, data, weight) else 0.0

    def gradient(free: Array) -> tuple[Array, tuple[Array, Statistics]]:
        """Of the objective; and its value, and expected statistics."""
        here = model_at(free)
        log_likelihood, statistics = expectation(here, data, weight)
        counted = add(statistics, prior)
        slope = jax.grad(lambda z: model_at(z).expected_log_prob(counted))(free)
        return slope, (log_likelihood + here.expected_log_prob(prior), counted)

    def look(free: Array) -> tuple[Look, Inverse]:
        (slope, (value, counted)), rows = directions(gradient, free, has_aux=True)
        q = jax.grad(lambda z: model_at(z).expected_log_prob(counted))
        complete = directions(q, free)[1]
        seen = Look(value, slope, -linalg.symmetrize(rows), -linalg.symmetrize(complete))
        return seen, Inverse.of(seen.observed, seen.complete, moves)

    def step(carry: tuple[Array, Array, Array, Array], inverse: Inverse) -> tuple[Array, Array, Array, Array]:
        free, value, slope, bend = carry
        before = distance(inverse, slope)
        new = free + inverse.times(jnp.where(inverse.moves, slope, 0))
        new_slope, (new_value, _) = gradient(new)
        rounding = 256 * eps * (jnp.abs(value) + jnp.sum(weight))
        better = inverse.regular & (new_value >= value - rounding) & jnp.all(jnp.isfinite(new_slope))
        better &= before <= NEAR
        left = distance(inverse, new_slope) / jnp.where(before > 0, before, 1)
        now = new, new_value, new_slope, jnp.where(bend < 0, left, bend)
        return jax.tree.map(partial(jnp.where, better), now, carry)

    def again(state: tuple[Array, Look, Inverse, Array]) -> tuple[Array, Look, Inverse, Array]:
        free, _, _, turn = state
        seen, inverse = look(free)
        steps = jnp.where((turn == 0) & (distance(inverse, seen.gradient) > float(np.sqrt(eps))), polish, 0)
        carry = free, seen.objective, seen.gradient, jnp.full((), -1, free.dtype)
        free, value, slope, bend = jax.lax.fori_loop(0, steps, lambda _, carry: step(carry, inverse), carry)
        seen = seen._replace(objective=value, gradient=slope)
        return free, seen, inverse, jnp.where(bend > bent, turn + 1, 2)

    if not polish:
        return model, *look(free)
    # In a loop, which compiles once what is needed before and after the steps.
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(look, free))
    start = free, *blank, jnp.zeros((), jnp.int32)
    free, seen, inverse, _ = jax.lax.while_loop(lambda state: state[3] < 2, again, start)
    return model_at(free), seen, inverse


class Inverse(NamedTuple):
    """I_o^-1 where coordinates move, zero elsewhere: `root.T @ root`.

    Attributes:
        root: `[p, p]`.
        moves: `[p]`, also which coordinates the data say anything of.
        regular: whether I_o is positive definite by more than rounding.
    """

    root: Float[Array, "p p"]
    moves: Bool[Array, "p"]
    regular: Bool[Array, ""]

    @classmethod
    def of(cls, observed: Array, complete: Array, moves: Array) -> Inverse:
        moves = moves & (linalg.diagonal(complete) != 0)
        root, regular = inverse_root(observed, moves)
        return cls(root, moves, regular)

    def times(self, vector: Float[Array, "p"]) -> Float[Array, "p"]:
        return linalg.matmul(linalg.transpose(self.root), linalg.matmul(self.root, vector))

    @property
    def matrix(self) -> Float[Array, "p p"]:
        return linalg.matmul(linalg.transpose(self.root), self.root)


def inverse_root(matrix: Float[Array, "p p"], moves: Bool[Array, "p"]) -> tuple[Float[Array, "p p"], Bool[Array, ""]]:
    """W with W' W the inverse of the part that moves and zero elsewhere; and whether that part is positive definite.

    In units in which the diagonal is one, so that parameters of any sizes may stand side by side.
    """
    entry = linalg.diagonal(matrix)
    positive = jnp.all((entry > 0) | ~moves)
    scale = jnp.where(moves & (entry > 0), 1 / jnp.sqrt(jnp.where(entry > 0, entry, 1)), 0)
    scaled = matrix * linalg.outer(scale, scale) + jnp.diag(jnp.where(scale > 0, 0, 1).astype(matrix.dtype))
    scaled = jnp.where(jnp.isfinite(scaled), scaled, 0)
    white = linalg.whitening(scaled)
    pivot = jnp.min(1 / linalg.diagonal(white) ** 2, initial=1)
    regular = positive & (pivot > float(np.sqrt(jnp.finfo(matrix.dtype).eps)))
    return white * scale[None, :], regular


def distance(inverse: Inverse, gradient: Float[Array, "p"]) -> Float[Array, ""]:
    """sqrt(g' I_o^-1 g): how far the maximum is, in standard errors, to first order."""
    return jnp.sqrt(jnp.sum(linalg.matmul(inverse.root, jnp.where(inverse.moves, gradient, 0)) ** 2))


def outer_scores(
    model: Any, data: Any, weight: Float[Array, "n"], cluster: Array | None, groups: int, sampling: bool
) -> Float[Array, "p p"]:
    """B: outer products of the scores of rows, or of their sums over clusters. Rows go by in chunks.

    Args:
        model: at its maximum.
        data, weight: rows.
        cluster: `[n]` integers below `groups`, or None.
        groups: number of clusters.
        sampling: are weights those of a survey, and not counts of rows that are the same?
    """
    free, model_at = flat(model)
    p = free.size

    def scores(rows: Any, counts: Array) -> Float[Array, "p n"]:
        """Zero for rows that do not count, whatever they hold."""
        found = directions(lambda free: model_at(free).log_prob(rows), free)[1]
        return jnp.where(counts[None] > 0, found, 0)

    def part(rows: Any, counts: Array, group: Array | None) -> Array:
        mine = scores(rows, counts)
        if group is not None:
            return jax.ops.segment_sum((mine * counts[None]).T, group, groups)
        mine = mine * (counts if sampling else jnp.sqrt(counts))[None]
        return linalg.matmul(mine, mine.T)

    n, size = weight.shape[0], chunk_rows(model, data)
    if in_chunks(model, data, weight):

        def chunk(i: Array, total: Array) -> Array:
            start = jnp.minimum(i * size, n - size)
            rows, counts, group = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), (data, weight, cluster)
            )
            # The last chunk reaches back over rows already counted, so that all have one shape.
            counts = jnp.where(start + jnp.arange(size, dtype=start.dtype) >= i * size, counts, 0)
            return total + part(rows, counts, group)

        zero = jnp.zeros((p if cluster is None else groups, p), weight.dtype)
        total = jax.lax.fori_loop(0, -(-n // size), chunk, zero)
    else:
        total = part(data, weight, cluster)
    return total if cluster is None else linalg.matmul(total.T, total)
