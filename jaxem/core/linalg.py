"""Small symmetric matrices, batched: the only module that factors a matrix.

No LAPACK: its batched kernels can deadlock the CPU's thread pool, and for the small matrices of a mixture plain
array code is several times faster. Up to `UNROLLED` columns the algebra is written out, with the batch innermost;
above that a loop runs over panels of `PANEL` columns: within a panel the algebra is written out, between panels it
is a matrix product. Derivatives are rules, not differentiated loops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

UNROLLED = 8
PANEL = 4
"""Columns in a panel: of 3, 4, 6 and 8 fastest or near it for 12 to 200 columns; 8 compiles four times as long."""

HIGHEST = jax.lax.Precision.HIGHEST

matmul = partial(jnp.matmul, precision=HIGHEST)


def symmetrize(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """Symmetric part of `matrix`."""
    return (matrix + transpose(matrix)) / 2


def transpose(matrix: Float[Array, "*batch d e"]) -> Float[Array, "*batch e d"]:
    """`matrix` with its last two axes exchanged."""
    return jnp.swapaxes(matrix, -1, -2)


def diagonal(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    """Diagonal of each matrix."""
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def diagonal_matrix(values: Float[Array, "*batch d"]) -> Float[Array, "*batch d d"]:
    """Diagonal matrices with these diagonals."""
    return values[..., None] * lead(jnp.eye(values.shape[-1], dtype=values.dtype), values.ndim + 1)


def lead(array: Array, ndim: int) -> Array:
    """`array` with leading axes of length one up to `ndim` axes: rows made ready to broadcast with members.

    Explicit, because the tests make JAX refuse implicit rank promotion.
    """
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def outer(a: Float[Array, "*batch d"], b: Float[Array, "*batch e"]) -> Float[Array, "*batch d e"]:
    """Outer product a b^T of each member."""
    return a[..., :, None] * b[..., None, :]


@jax.custom_jvp
def cholesky(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """Lower triangular L with L L^T = matrix.

    A pivot that rounding has taken below `ROUNDING` d units in the last place of its diagonal entry is put back to that
    level, so a matrix that is singular, or negative by rounding only, still has a finite factor.

    Args:
        matrix: symmetric, positive semi-definite within rounding. Only the lower triangle is read.

    >>> import jax.numpy as jnp
    >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    """
    size = matrix.shape[-1]
    return _cholesky_unrolled(matrix, diagonal(matrix), size)[0] if size <= UNROLLED else _cholesky_by_panels(matrix)


ROUNDING = 8
"""Rounding of a pivot, in units in the last place of its diagonal entry for each column."""


def rounding(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    """Rounding level of the pivot of each column: four times what `cholesky` lifts it to."""
    return 4 * ROUNDING * matrix.shape[-1] * float(jnp.finfo(matrix.dtype).eps) * diagonal(matrix)


def lifted(matrix: Float[Array, "*batch d d"], least: Float[Array, "*batch d"]) -> Float[Array, "*batch d d"]:
    """`matrix`, or one near it that is positive definite: no pivot is below `least`, nor below rounding.

    Where all pivots are above both, it comes back bit for bit. Else what they lack is added to the diagonal: a little
    less than `cholesky` would lift them by, so that what it makes of them does not depend on how they were rounded. Of
    a matrix that is no covariance by more than rounding the diagonal is kept.

    >>> import jax.numpy as jnp
    >>> lifted(jnp.array([[4.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, 0.5])).round(3).tolist()
    [[4.0, 2.0], [2.0, 1.5]]
    """
    size, entry = matrix.shape[-1], diagonal(matrix)
    deficit = _pivot_deficit_unrolled(matrix, least) if size <= UNROLLED else _pivot_deficit(matrix, least)
    sound = jnp.all(deficit <= 4 * size * (entry + least), axis=-1)[..., None, None]
    return jnp.where(sound, matrix + diagonal_matrix(deficit), diagonal_matrix(jnp.maximum(entry, least)))


def _smallest_pivot(least: Array, explained: Array, size: int) -> Array:
    """Smallest pivot that is more than rounding, in a column whose part `explained` earlier columns account for."""
    return least + 0.75 * ROUNDING * size * float(jnp.finfo(least.dtype).eps) * explained


def _pivot_deficit(matrix: Array, least: Array) -> Float[Array, "*batch d"]:
    """Amount to add to the diagonal, by panels."""
    # Moving second moments from a very distant reference may leave a negative diagonal.
    entry = jnp.maximum(diagonal(matrix), least)
    factor = cholesky(matrix + diagonal_matrix(entry - diagonal(matrix)))
    explained = jnp.sum(factor**2, axis=-1) - diagonal(factor) ** 2
    return jnp.maximum(_smallest_pivot(least, explained, matrix.shape[-1]) - (diagonal(matrix) - explained), 0)


def _pivot_deficit_unrolled(matrix: Array, least: Array) -> Float[Array, "*batch d"]:
    size = matrix.shape[-1]
    rest = [[matrix[..., i, j] for j in range(i + 1)] for i in range(size)]
    deficit = []
    for j in range(size):
        lowest = _smallest_pivot(least[..., j], matrix[..., j, j] - rest[j][j], size)
        pivot = jnp.maximum(rest[j][j], lowest)
        deficit.append(pivot - rest[j][j])
        for i in range(j + 1, size):
            slope = rest[i][j] / pivot
            for k in range(j + 1, i + 1):
                rest[i][k] = rest[i][k] - slope * rest[k][j]
    return jnp.stack(deficit, axis=-1)


def _safe_pivot(pivot: Array, entry: Array, size: int) -> tuple[Array, Array]:
    """Square root of a pivot lifted to rounding level, and the factor for the rest of its column.

    That factor is zero where the pivot is negative by more than rounding: the column could grow without bound.
    """
    rounding = ROUNDING * size * float(jnp.finfo(pivot.dtype).eps)
    least = jnp.maximum(rounding * entry, jnp.finfo(pivot.dtype).tiny)
    root = jnp.sqrt(jnp.maximum(pivot, least))
    return root, jnp.where((pivot > -least) & (entry > 0), 1 / root, 0)


def _cholesky_unrolled(matrix: Array, entry: Array, size: int) -> tuple[Array, Array]:
    """The factor, and the factors of `_safe_pivot` for each column; `entry` and `size` are of the whole matrix."""
    columns = matrix.shape[-1]
    factor, inverses = [[jnp.zeros_like(matrix[..., 0, 0])] * columns for _ in range(columns)], []
    for j in range(columns):
        pivot = matrix[..., j, j] - sum(factor[j][k] ** 2 for k in range(j))
        factor[j][j], inverse = _safe_pivot(pivot, entry[..., j], size)
        inverses.append(inverse)
        for i in range(j + 1, columns):
            rest = matrix[..., i, j] - sum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = rest * inverse
    return _stack(factor), jnp.stack(inverses, axis=-1)


def _stack(rows: list[list[Array]]) -> Array:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _panel(array: Array, at: Array, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, at, PANEL, axis=axis)


def _with_panel(array: Array, panel: Array, at: Array, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, panel, at, axis=axis)


def _in_panels(matrix: Array) -> Array:
    """The matrix padded to whole panels, with ones on the diagonal."""
    size, more = matrix.shape[-1], -matrix.shape[-1] % PANEL
    padded = jnp.pad(matrix, [(0, 0)] * (matrix.ndim - 2) + [(0, more), (0, more)])
    return padded + lead(jnp.diag((jnp.arange(size + more) >= size).astype(matrix.dtype)), matrix.ndim)


def _cholesky_by_panels(matrix: Array) -> Array:
    size, whole = matrix.shape[-1], _in_panels(matrix)
    entry, index = diagonal(whole), jnp.arange(whole.shape[-1])[:, None]

    def panel(i: Array, factor: Array) -> Array:
        at = i * PANEL
        rest = _panel(whole, at, -1) - matmul(factor, transpose(_panel(factor, at, -2)))
        corner, inverse = _cholesky_unrolled(_panel(rest, at, -2), _panel(entry, at, -1), size)
        columns: list[Array] = []
        for j in range(PANEL):
            known = sum(columns[k] * corner[..., j, k, None] for k in range(j))
            columns.append((rest[..., j] - known) * inverse[..., j, None])
        below = jnp.where(lead(index >= at + PANEL, matrix.ndim), jnp.stack(columns, axis=-1), 0)
        return _with_panel(factor, _with_panel(below, corner, at, -2), at, -1)

    return jax.lax.fori_loop(0, len(index) // PANEL, panel, jnp.zeros_like(whole))[..., :size, :size]


def triangular_inverse(factor: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """Inverse of a lower triangular matrix, by forward substitution."""
    size = factor.shape[-1]
    if size <= UNROLLED:
        return _inverse_unrolled(factor)
    whole = _in_panels(factor)
    identity = lead(jnp.eye(whole.shape[-1], dtype=factor.dtype), factor.ndim)

    def panel(i: Array, inverse: Array) -> Array:
        at = i * PANEL
        rows = _panel(whole, at, -2)
        rest = _panel(identity, at, -2) - matmul(rows, inverse)
        return _with_panel(inverse, matmul(_inverse_unrolled(_panel(rows, at, -1)), rest), at, -2)

    panels = whole.shape[-1] // PANEL
    return jax.lax.fori_loop(0, panels, panel, jnp.zeros_like(whole))[..., :size, :size]


def _inverse_unrolled(factor: Array) -> Array:
    size = factor.shape[-1]
    inverse = [[jnp.zeros_like(factor[..., 0, 0])] * size for _ in range(size)]
    for i in range(size):
        inverse[i][i] = 1 / factor[..., i, i]
        for j in range(i):
            known = sum(factor[..., i, k] * inverse[k][j] for k in range(j, i))
            inverse[i][j] = -known * inverse[i][i]
    return _stack(inverse)


@jax.custom_jvp
def whitening(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """Lower triangular W = L^-1 with W matrix W^T = 1: it turns a covariance into the identity.

    The inverse is W^T W and the log-determinant of `matrix` is -2 sum log diag W.

    >>> import jax.numpy as jnp
    >>> whitening(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[0.5, 0.0], [-0.25, 0.5]]
    """
    return triangular_inverse(cholesky(matrix))


def _half_lower(matrix: Array) -> Array:
    """Lower triangle with its diagonal halved."""
    size = matrix.shape[-1]
    weight = jnp.tril(jnp.ones((size, size), matrix.dtype)) - jnp.eye(size, dtype=matrix.dtype) / 2
    return matrix * lead(weight, matrix.ndim)


@whitening.defjvp
def _whitening_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # S = L L^T gives dL = L P(W dS W^T) with P the half-lower part, and dW = -W dL W.
    white = whitening(*primals)
    change = symmetrize(tangents[0])
    return white, -matmul(_half_lower(matmul(matmul(white, change), transpose(white))), white)


@cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    factor = cholesky(*primals)
    white = whitening(*primals)
    change = symmetrize(tangents[0])
    return factor, matmul(factor, _half_lower(matmul(matmul(white, change), transpose(white))))


def semidefinite_root(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """Lower triangular L with L L^T = matrix, which may be singular: columns without a remainder are zero.

    >>> import jax.numpy as jnp
    >>> semidefinite_root(jnp.array([[4.0, 2.0], [2.0, 1.0]])).tolist()
    [[2.0, 0.0], [1.0, 0.0]]
    """
    factor, size = cholesky(matrix), matrix.shape[-1]
    pivot = diagonal(factor)
    lifted = pivot**2 <= 9 * size * float(jnp.finfo(matrix.dtype).eps) * diagonal(matrix)
    lifted = lifted | (diagonal(matrix) <= 0)
    return jnp.where(lifted[..., None, :], 0, factor)


def half_log_det(white: Float[Array, "*batch d d"]) -> Float[Array, "*batch"]:
    """Half the log-determinant of the matrix that `white` whitens."""
    return -jnp.sum(jnp.log(diagonal(white)), axis=-1)


WRITTEN_OUT = 4
"""Rows up to which the algebra of matrices on the first two axes is unrolled; above, a loop goes over the rows."""


def product(a: Float[Array, "d k *s1"], b: Float[Array, "k e *s2"]) -> Float[Array, "d e *s"]:
    """Product a b of matrices on the first two axes, batch axes last."""
    if len(b) > WRITTEN_OUT:
        return jnp.sum(a[:, :, None] * b[None], axis=1)
    return sum((a[:, k, None] * b[k][None] for k in range(1, len(b))), a[:, 0, None] * b[0][None])


def triangular_root(
    matrix: Float[Array, "d e *s"], pivots: int | None = None, least: Any = 0.0
) -> Float[Array, "d p *s"]:
    """Lower triangular L with L L^T = M M^T, for wide matrices on the first two axes, batch axes last.

    By modified Gram-Schmidt, without the product M M^T, which has half the digits. A row that the rows before it span
    has a zero on the diagonal.

    Args:
        matrix: M.
        pivots: number of leading columns of L to compute; all if None.
        least: a row counts as spanned if at most this fraction of it remains: one number, or one for each row.

    >>> import jax.numpy as jnp
    >>> triangular_root(jnp.array([[3.0, 4.0], [0.0, 5.0]])).tolist()
    [[5.0, 0.0], [4.0, 3.0]]
    """
    size, pivots = len(matrix), len(matrix) if pivots is None else pivots
    squared = jnp.sum(matrix[:pivots] ** 2, axis=1)
    spanned = squared * jnp.broadcast_to(jnp.asarray(least, matrix.dtype) ** 2, pivots).reshape(
        pivots, *(1,) * (squared.ndim - 1)
    )
    index = jnp.arange(size, dtype=jnp.int32).reshape(size, *(1,) * (matrix.ndim - 2))

    def column(rest: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        # In a loop: unrolled, XLA may recompute the remainder of a row at each use, each time rounded differently.
        # A spanned row has nothing but rounding left, and its direction and length must be consistent.
        i, spanned = now
        along, rest = _project_out(rest, jax.lax.dynamic_index_in_dim(rest, i, keepdims=False), spanned)
        return rest, jnp.where(index >= i, along, 0)

    return jnp.swapaxes(jax.lax.scan(column, matrix, (jnp.arange(pivots, dtype=jnp.int32), spanned))[1], 0, 1)


def _project_out(
    rows: Float[Array, "d e *s"], row: Float[Array, "e *s"], spanned: Float[Array, "*s1"]
) -> tuple[Array, Array]:
    """Component of each row along `row` (zero if |row|^2 <= `spanned`), and the remainder of each row."""
    squared = _sum_first_axis(row * row)
    some = squared > spanned
    unit = row * jnp.where(some, 1 / jnp.sqrt(jnp.where(some, squared, 1)), 0)[None]
    along = _sum_first_axis(jnp.moveaxis(rows * unit[None], 1, 0))
    return along, rows - along[:, None] * unit[None]


def _sum_first_axis(terms: Array) -> Array:
    """Sum over the first axis; unrolled if it is short, so that XLA fuses it with what comes before."""
    if len(terms) > 3 * WRITTEN_OUT:
        return jnp.sum(terms, axis=0)
    return sum((terms[k] for k in range(1, len(terms))), terms[0])


def reflections(matrix: Float[Array, "d n *s"], pivots: int) -> tuple[Float[Array, "d n *s"], Float[Array, "p n *s"]]:
    """Rows turned by the Householder reflections that make the first `pivots` rows lower triangular; and the mirrors.

    The rows are the first axis, their batch is behind the second. Each row keeps its digits, however much larger others
    are (Householder 1958; Cox and Higham 1998): a row may be zero, or be spanned by others.

    Returns:
        `(turned, mirrors)`: entries above the diagonal of the first rows are rounding, which the caller discards;
        `reflected(rows, mirrors)` turns other rows likewise.

    >>> import jax.numpy as jnp
    >>> turned, mirrors = reflections(jnp.array([[3.0, 4.0], [0.0, 5.0]]), 1)
    >>> import numpy as np
    >>> np.abs(turned).round(5).tolist(), np.abs(reflected(jnp.array([[0.0, 5.0]]), mirrors)).round(5).tolist()
    ([[5.0, 0.0], [4.0, 3.0]], [[4.0, 3.0]])
    """

    def turn(rows: Array, i: Array) -> tuple[Array, Array]:
        # In a loop, as in `triangular_root`: a mirror must have exactly the length assumed.
        mirror = _mirror(jax.lax.dynamic_index_in_dim(rows, i, keepdims=False), i)
        return _reflected(rows, mirror), mirror

    return jax.lax.scan(turn, matrix, jnp.arange(pivots, dtype=jnp.int32))


def reflected(
    rows: Float[Array, "d n *s"], mirrors: Float[Array, "p n *s1"], reverse: bool = False
) -> Float[Array, "d n *s"]:
    """Rows after all reflections of `reflections`, or with `reverse` after undoing them."""
    if len(mirrors) > WRITTEN_OUT:
        return jax.lax.scan(lambda rows, mirror: (_reflected(rows, mirror), None), rows, mirrors, reverse=reverse)[0]
    for i in reversed(range(len(mirrors))) if reverse else range(len(mirrors)):
        rows = _reflected(rows, mirrors[i])
    return rows


def _mirror(row: Float[Array, "n *s"], i: Any) -> Float[Array, "n *s"]:
    """Mirror v, of length root two or zero: x - v v^T x zeroes this row behind its entry i."""
    index = jnp.arange(len(row), dtype=jnp.int32).reshape(-1, *(1,) * (row.ndim - 1))
    pivot = jnp.where(index == i, row, 0)
    ahead = jnp.where(index >= i, row, 0)
    squared = _sum_first_axis(ahead * ahead)
    some = squared > 0
    length = jnp.sqrt(jnp.where(some, squared, 1))
    mirror = ahead + jnp.where(index == i, jnp.where(pivot < 0, -length[None], length[None]), 0)
    half = jnp.sqrt(length) * jnp.sqrt(length + _sum_first_axis(jnp.abs(pivot)))
    return jnp.where(some[None], mirror / half[None], 0)


def _reflected(rows: Float[Array, "d n *s"], mirror: Float[Array, "n *s1"]) -> Float[Array, "d n *s"]:
    return rows - _sum_first_axis(jnp.moveaxis(rows * mirror[None], 1, 0))[:, None] * mirror[None]


def root_inverse(factor: Float[Array, "d d *s"]) -> Float[Array, "d d *s"]:
    """Inverse of lower triangular matrices on the first two axes, batch axes last."""
    size = len(factor)
    eye = jnp.eye(size, dtype=factor.dtype).reshape(size, size, *(1,) * (factor.ndim - 2))
    if size > WRITTEN_OUT:
        index = jnp.arange(size).reshape(size, *(1,) * (factor.ndim - 1))

        def row(inverse: Array, i: Array) -> tuple[Array, None]:
            below = jax.lax.dynamic_index_in_dim(factor, i)
            pivot = jax.lax.dynamic_index_in_dim(below, i, 1)
            new = (jax.lax.dynamic_index_in_dim(eye, i) - product(below, inverse)) / pivot
            return jnp.where(index == i, new, inverse), None

        return jax.lax.scan(row, jnp.zeros_like(factor), jnp.arange(size))[0]
    inverse = jnp.broadcast_to(eye[:1], factor[:1].shape) / factor[0, 0][None, None]
    for i in range(1, size):
        new = (eye[i : i + 1] - product(factor[i : i + 1, :i], inverse)) / factor[i, i][None, None]
        inverse = jnp.concatenate([inverse, new])
    return inverse


def solve(matrix: Float[Array, "d d"], b: Float[Array, "d"]) -> tuple[Float[Array, "d"], Float[Array, ""]]:
    """matrix^-1 b for a symmetric positive definite matrix; and the smallest pivot relative to its diagonal entry.

    That ratio is at rounding level if the matrix is singular: if it determines, say, only the sum of two numbers.
    """
    factor = cholesky(matrix)
    white = triangular_inverse(factor)
    pivot = jnp.min(diagonal(factor) ** 2 / jnp.maximum(jnp.abs(diagonal(matrix)), jnp.finfo(matrix.dtype).tiny))
    return matmul(transpose(white), matmul(white, b)), pivot


SWEEPS = 12
"""Sweeps of Jacobi's method at most: the number of digits doubles with each of the last."""


def eigenvalues(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    """Eigenvalues of symmetric matrices, falling.

    By Jacobi's rotations, half of the columns at once (Brent and Luk 1985): each step is a few array operations on the
    whole batch. Their error is some units in the last place of the largest.

    >>> import jax.numpy as jnp
    >>> eigenvalues(jnp.array([[2.0, 1.0], [1.0, 2.0]])).round(6).tolist()
    [3.0, 1.0]
    """
    size = matrix.shape[-1]
    if size < 2:
        return matrix[..., 0]
    # An odd one is paired with an empty column, which stays zero: no rotation, and the last place is cut off.
    even = size + size % 2
    padding = [(0, 0)] * (matrix.ndim - 2) + [(0, even - size)] * 2
    pairs = jnp.asarray(_round_robin(even))
    total = jnp.sum(matrix**2, axis=(-1, -2), keepdims=True)
    rounding = (even * float(jnp.finfo(matrix.dtype).eps)) ** 2

    def rotate(values: Array, partner: Array) -> tuple[Array, None]:
        mine = diagonal(values)
        other, cross = mine[..., partner], jnp.take_along_axis(values, lead(partner[:, None], values.ndim), -1)[..., 0]
        some = cross != 0
        ratio = jnp.where(some, (other - mine) / jnp.where(some, 2 * cross, 1), 0)
        tangent = jnp.where(ratio < 0, -1, 1) / (jnp.abs(ratio) + jnp.sqrt(ratio**2 + 1))
        # Of equal entries both see the same ratio, zero: one of them turns the other way.
        first = lead(jnp.arange(even, dtype=partner.dtype) < partner, mine.ndim)
        tangent = jnp.where((ratio == 0) & ~first, -tangent, tangent)
        tangent = jnp.where(some, tangent, 0)
        cosine = 1 / jnp.sqrt(tangent**2 + 1)
        sine = tangent * cosine
        values = cosine[..., None] * values - sine[..., None] * values[..., partner, :]
        return cosine[..., None, :] * values - sine[..., None, :] * values[..., partner], None

    def sweep(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.lax.scan(rotate, state[0], pairs)[0], state[1] + 1

    def rest(state: tuple[Array, Array]) -> Array:
        values, count = state
        apart = values - diagonal_matrix(diagonal(values))
        return (count < SWEEPS) & jnp.any(jnp.sum(apart**2, axis=(-1, -2), keepdims=True) > rounding * total)

    turned = jax.lax.while_loop(rest, sweep, (jnp.pad(matrix, padding), jnp.zeros((), jnp.int32)))[0]
    return -jnp.sort(-diagonal(turned)[..., :size], axis=-1)


def _round_robin(even: int) -> np.ndarray:
    """`[even - 1, even]`: with whom each is paired in each round, so that everybody meets everybody once."""
    rounds = []
    for turn in range(even - 1):
        circle = [(turn + i) % (even - 1) for i in range(even - 1)]
        partner = np.empty(even, np.int32)
        partner[[even - 1, circle[0]]] = circle[0], even - 1
        for a, b in zip(circle[1:], circle[:0:-1], strict=True):
            partner[a] = b
        rounds.append(partner)
    return np.stack(rounds)


def largest_eigenvalue(matrix: Callable[[Array], Array], like: Float[Array, "p"], steps: int = 200) -> Float[Array, ""]:
    """Largest eigenvalue of a positive semi-definite linear map, by power iteration."""

    def apply(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        image = matrix(carry[0])
        length = jnp.sqrt(jnp.sum(image**2))
        return image / jnp.where(length > 0, length, 1), length

    # A start that favours no direction and misses none.
    start = jnp.cos(jnp.arange(like.size, dtype=like.dtype) + 1)
    start = start / jnp.sqrt(jnp.sum(start**2))
    return jax.lax.fori_loop(0, steps, apply, (start, jnp.zeros((), like.dtype)))[1]
