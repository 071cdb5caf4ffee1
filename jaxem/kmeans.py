"""K-means as hard EM of a mixture of Gaussians with equal fixed weights and one fixed variance."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxem.core.arguments import as_key, whole
from jaxem.core.pytree import module, replace
from jaxem.core.semirings import maximum
from jaxem.core.summation import total
from jaxem.data.prepare import as_floats, as_table, as_weight, prepare
from jaxem.distributions.base import Statistics, as_rows
from jaxem.distributions.gaussian import SphericalGaussian
from jaxem.distributions.statistics import mahalanobis
from jaxem.distributions.statistics.moments import Moments, has_weight
from jaxem.fitting.fit import fit
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.latent import seeding
from jaxem.latent.mixture import Mixture
from jaxem.solvers.base import Solver
from jaxem.solvers.em import expectation


@module
class KMeans:
    """Result of `kmeans`.

    Attributes:
        centres: `[K, D]`, in the units of x.
        labels: `[n]` the nearest centre of each row.
        inertia: sum of weighted squared distances to it.
        steps: of the best start.
        status: a `Status` code.

    >>> import jax, jaxem as jem
    >>> jem.kmeans(jax.random.key(0), [0.0, 1.0, 8.0, 9.0], 2).inertia.item()
    1.0
    """

    centres: Float[Array, "k d"]
    labels: Int[Array, "n"]
    inertia: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]


@module
class Centres(Mixture):
    """Mixture whose means are its only free parameters."""

    def with_counts(self, counts: Array, child: Any) -> Self:
        return replace(self, components=replace(self.components, mean=child.mean))


@module
class Lloyd(Solver):
    """Hard EM, which moves a row far from its centre to every centre that has lost all of its rows."""

    over: ClassVar[Any] = staticmethod(maximum)

    def step(self, model: Any, state: None, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One step: centres become the means of their rows."""
        log_likelihood, statistics = expectation(model, x, weight, maximum)
        moments = statistics.child
        lost = jnp.any(~has_weight(moments.rows))
        moments = jax.lax.cond(lost, lambda: _refilled(model, x, weight, moments), lambda: moments)
        return model.m_step(replace(statistics, child=moments)), state, log_likelihood


def _refilled(model: Centres, x: Any, weight: Array, moments: Moments) -> Moments:
    """Moments after the rows farthest from their centres have moved to the centres without rows."""
    empty = ~has_weight(moments.rows)
    far = jnp.where(weight > 0, -model.e_step(x, maximum)[0], -jnp.inf)
    row = jax.lax.top_k(far, len(empty))[1][jnp.cumsum(empty, dtype=jnp.int32) - 1]
    places = mahalanobis.plain(model.components.observe(x).columns)[:, row].T
    mean = moments.reference
    nearest = jnp.argmin(jnp.sum((places[:, None] - mean[None]) ** 2, axis=-1), axis=-1)
    moved = jnp.where(empty, weight[row], 0)
    gone = jnp.zeros_like(moments.first).at[nearest].add(moved[:, None] * (places - moments.reference[nearest]))
    first = moments.first - gone + moved[:, None] * (places - moments.reference)
    return replace(moments, rows=moments.rows - jnp.zeros_like(moved).at[nearest].add(moved) + moved, first=first)


def kmeans(
    key: Any,
    x: Any,
    k: int,
    *,
    weight: Any = None,
    centres: Any = None,
    restarts: int = 10,
    max_steps: int = 300,
) -> KMeans:
    """K centres with the least sum of squared distances from the rows to the nearest (Lloyd 1982).

    It is `fit` with hard EM, for a mixture of Gaussians of equal weight and one variance: the best of several starts
    from k-means++ seeds (Arthur and Vassilvitskii 2007). A centre that loses all its rows takes the row that is
    farthest from its own.

    Args:
        key: a JAX random key, or a whole number as its seed.
        x: `[n]` or `[n, D]` rows.
        k: number of centres.
        weight: `[n]` weights of rows, at least zero.
        centres: `[K, D]` initial centres, instead of seeds.
        restarts: number of starts.
        max_steps: for each start.

    Returns:
        A `KMeans`.

    Raises:
        ValueError: fewer rows than centres, centres of another shape, or values that are not finite.

    >>> import jax, jaxem as jem
    >>> found = jem.kmeans(jax.random.key(0), [[0.0], [1.0], [8.0], [9.0]], 2)
    >>> sorted(found.centres.ravel().tolist()), found.inertia.item()
    ([0.5, 8.5], 1.0)
    """
    key = as_key(key) if centres is None else None
    restarts, max_steps = whole(restarts, "restarts"), whole(max_steps, "max_steps", 0)
    given = as_table(x)
    given = as_rows(given, given.shape[1:] or (1,), given.dtype)
    if weight is not None:
        weight = as_weight(weight, (len(given),), f"{len(given)} rows")
    counted = given if weight is None or isinstance(weight, Tracer) else given[np.asarray(weight) > 0]
    if not isinstance(counted, Tracer) and not jnp.isfinite(counted).all():
        raise ValueError("x holds values that are not finite; give their rows weight zero, or leave them out")
    x, weight, _ = prepare(given, weight, None)
    if not 1 <= (k := whole(k, "k", 0)) <= len(x):
        raise ValueError(f"k is {k}; with {len(x)} rows it must be from 1 to {len(x)}")
    if centres is None:
        centres = _seeds(key, x, weight, k, restarts)
    else:
        centres = as_floats(centres, x.dtype, "centres")[None]
        if centres.shape != (1, k, x.shape[1]):
            raise ValueError(f"centres has shape {centres.shape[1:]}; it must be {(k, x.shape[1])}")
    found = _best_of(centres, x, weight, max_steps)
    centres = found.model.components.mean
    labels, inertia = _nearest(given, weight, centres)
    return KMeans(centres, labels, inertia, found.steps, _judged(found.status, labels, weight, k))


@partial(jax.jit, static_argnums=3)
def _judged(status: Array, labels: Int[Array, "n"], weight: Array, k: int) -> Int[Array, ""]:
    """Status of a fit whose centres no longer move, and may be without rows."""
    # It has converged once no row changes its centre.
    status = jnp.where(status == int(Status.precision_exhausted), int(Status.converged), status)
    rows = jnp.zeros(k, weight.dtype).at[labels].add(weight)
    same = (status == int(Status.converged)) & jnp.any(rows <= 0)
    return jnp.where(same, int(Status.components_coincide), status).astype(jnp.int32)


@partial(jax.jit, static_argnums=3)
def _best_of(centres: Float[Array, "r k d"], x: Array, weight: Array, max_steps: int) -> Fit:
    """Best of several starts, one after the other, so that each takes its own number of steps."""
    share = jnp.full(centres.shape[1], 1 / centres.shape[1], x.dtype)
    # Any variance will do, but that of the data tells which gain is rounding.
    mean = jnp.sum(weight[:, None] * x, axis=0) / jnp.sum(weight)
    variance = jnp.sum(weight[:, None] * (x - mean[None]) ** 2) / (jnp.sum(weight) * x.shape[1])
    variance = jnp.broadcast_to(jnp.where(variance > 0, variance, 1), share.shape)

    def one(centres: Array) -> tuple[Fit, Array]:
        model = Centres(share, SphericalGaussian(centres, variance))
        found = fit(model, x, Lloyd(), weight=weight, tol=0, max_steps=max_steps)
        return found, _nearest(x, weight, found.model.components.mean)[1]

    fits, inertia = jax.lax.map(one, centres)
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(inertia)], fits)


@partial(jax.jit, static_argnums=(3, 4))
def _seeds(key: Array, x: Array, weight: Array, k: int, restarts: int) -> Float[Array, "r k d"]:
    keys = jax.random.split(key, restarts)
    return jax.vmap(lambda key: x[seeding.seeds(key, x, weight, None, k, apart=True)])(keys)


@jax.jit
def _nearest(x: Array, weight: Array, centres: Float[Array, "k d"]) -> tuple[Int[Array, "n"], Float[Array, ""]]:
    """The nearest centre of each row, the first of equals, and the weighted sum of squared distances."""

    def closer(best: tuple[Array, Array], centre: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        number, place = centre
        distance = jnp.sum((x - place[None]) ** 2, axis=-1)
        nearer = distance < best[1]
        return (jnp.where(nearer, number, best[0]), jnp.where(nearer, distance, best[1])), None

    nothing = jnp.zeros(len(x), jnp.int32), jnp.full(len(x), jnp.inf, x.dtype)
    numbered = jnp.arange(len(centres), dtype=jnp.int32), centres
    (labels, distance), _ = jax.lax.scan(closer, nothing, numbered)
    return labels, total(jnp.where(weight > 0, weight * distance, 0))
