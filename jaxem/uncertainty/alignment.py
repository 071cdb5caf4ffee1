"""Order of components: refits of one data set number them as they like, until they are matched to a reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core.linalg import HIGHEST
from jaxem.core.pytree import module
from jaxem.data.prepare import prepare
from jaxem.distributions.base import check_model
from jaxem.latent.base import Latent
from jaxem.latent.components import fixed_states


@module
class Alignment:
    """Models with their components in the order of a reference.

    Attributes:
        models: `[B, ...]`.
        order: `[B, K]`: in the place of component k stands what was `order[b, k]`.
        agreement: `[B]`, the share of rows whose most probable component is then that of the reference; NaN for a model
            that has no posterior.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.4, 0.6], jem.Poisson([2.0, 9.0]))
    >>> jem.align(model, model, [1.0, 9.0]).order.tolist()
    [0, 1]
    """

    models: Any
    order: np.ndarray
    agreement: np.ndarray


def align(models: Any, like: Any, x: Any, weight: Any = None) -> Alignment:
    """Models with their components in the order of `like`, by the rows that they take.

    The permutation maximises sum_ik posterior_like(i, k) posterior(i, order(k)), exactly (Kuhn 1955; Jonker and
    Volgenant 1987). Parameters would mislead: components may lie close in one and far apart in another.

    Args:
        models: a batch `[B]` of mixtures or hidden Markov models, or one.
        like: one with as many components.
        x: the rows (sequences) by which they are matched; for a bootstrap the original ones.
        weight: `[n]` weights of rows (of sequences).

    Raises:
        TypeError: models without components.
        ValueError: another number of components.

    >>> import jaxem as jem
    >>> one = jem.Mixture([0.4, 0.6], jem.Poisson([2.0, 9.0]))
    >>> found = align(one.reordered([1, 0]), one, [1.0, 2.0, 8.0, 12.0])
    >>> found.order.tolist(), found.agreement.item(), found.models.components.rate.tolist()
    ([1, 0], 1.0, [2.0, 9.0])
    """
    check_model(like, x, "like")
    check_model(models, x, "models")
    for model in (models, like):
        if not isinstance(model, Latent):
            raise TypeError(f"align: a {type(model).__name__} has no components to put in order")
    if like.batch_shape or len(models.batch_shape) > 1:
        raise ValueError(
            f"align: like has batch shape {like.batch_shape} and models {models.batch_shape}; like must be one model, "
            "models one or a batch of them"
        )
    size, wanted = models.child.batch_shape[-1], like.child.batch_shape[-1]
    if size != wanted:
        raise ValueError(f"align: models have {size} components and like {wanted}; they must be as many")
    x, weight, _ = prepare(like.read(x), weight, None)
    batch = models if models.batch_shape else jax.tree.map(lambda leaf: leaf[None], models)
    soft, hard = (np.asarray(each, float) for each in _overlaps(batch, like, x, weight))
    fixed = fixed_states(like)
    order = np.tile(np.arange(size), (len(soft), 1))
    for place, overlap in zip(order, soft, strict=True):
        if np.isfinite(overlap).all():
            place[fixed:] = fixed + assignment(overlap[fixed:, fixed:])
    matched = np.take_along_axis(hard, order[:, None], axis=1)[:, 0].sum(-1)
    total = hard.sum((-1, -2))
    known = np.isfinite(soft).all((-1, -2)) & (total > 0)
    agreement = np.where(known, matched / np.where(total > 0, total, 1), np.nan)
    if not models.batch_shape:
        order, agreement = order[0], agreement[0]
    return Alignment(models.reordered(order), order, agreement)


@jax.jit
def _overlaps(models: Any, like: Any, x: Any, weight: Array) -> tuple[Array, Array]:
    """`[B, K, K]`, of rows how much a component shares with one of `like`: by probabilities, and by the largest."""
    reference = like.posterior(x)
    size = reference.shape[-1]
    # A row of padding, or an impossible one, belongs nowhere.
    belongs = jnp.sum(reference, axis=-1) > 0
    counted = jnp.where(belongs, weight.reshape(*weight.shape, *(1 for _ in belongs.shape[1:])), 0).ravel()

    def largest(posterior: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return jax.nn.one_hot(jnp.argmax(posterior, axis=-1), size, dtype=posterior.dtype)

    wanted = reference.reshape(-1, size)

    def one(model: Any) -> tuple[Array, Array]:
        posterior = model.posterior(x).reshape(-1, size)
        pairs = (posterior, wanted), (largest(posterior), largest(wanted))
        return tuple(jnp.matmul((mine * counted[:, None]).T, its, precision=HIGHEST) for mine, its in pairs)  # type: ignore

    return jax.lax.map(one, models)


def assignment(gain: np.ndarray) -> np.ndarray:
    """`order[k]`, another row for each column of a square matrix, with the largest sum of `gain[order[k], k]`.

    By shortest augmenting paths (Jonker and Volgenant 1987), in size^3 steps.

    >>> assignment(np.array([[1.0, 5.0], [4.0, 7.0]])).tolist()
    [1, 0]
    """
    cost, size = -gain.T, len(gain)
    # Potentials of columns and rows, the column of each row, and the way by which it came; place zero is outside.
    u, v, owner, way = np.zeros(size + 1), np.zeros(size + 1), np.zeros(size + 1, int), np.zeros(size + 1, int)
    for column in range(1, size + 1):
        owner[0], here = column, 0
        nearest, used = np.full(size + 1, np.inf), np.zeros(size + 1, bool)
        while owner[here]:
            used[here] = True
            reduced = np.append(np.inf, cost[owner[here] - 1] - u[owner[here]] - v[1:])
            better = ~used & (reduced < nearest)
            nearest[better], way[better] = reduced[better], here
            new = int(np.argmin(np.where(used, np.inf, nearest)))
            step = nearest[new]
            u[owner[used]] += step
            v[used] -= step
            nearest[~used] -= step
            here = new
        while here:
            owner[here] = owner[way[here]]
            here = way[here]
    order = np.empty(size, int)
    order[owner[1:] - 1] = np.arange(size)
    return order
