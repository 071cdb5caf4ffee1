"""Standard errors of a fitted model: the function `uncertainty`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.arguments import whole
from jaxem.core.constraints import walk
from jaxem.core.coordinates import flat, to_coordinates
from jaxem.data.prepare import prepare
from jaxem.distributions.base import Labelled, check_model
from jaxem.fitting.checks import check_labelled, check_prior, check_rows, hidden_states
from jaxem.fitting.regularisation import regularisers
from jaxem.fitting.result import Fit
from jaxem.latent.base import Latent
from jaxem.solvers.em import expectation, in_chunks
from jaxem.solvers.objective import value_and_gradient
from jaxem.uncertainty.delta import along
from jaxem.uncertainty.edges import determined, put_at_edges, rotations
from jaxem.uncertainty.information import NEAR, Plan, climbed, distance, inverse_root, outer_scores
from jaxem.uncertainty.large import DENSE, Rows, largest_missing, system
from jaxem.uncertainty.status import ErrorStatus
from jaxem.uncertainty.value import Uncertainty

KINDS = "observed", "opg", "sandwich"
SETTLED = 0.1
"""Standard errors from the maximum above which a model is not settled."""
CLOSE = 2.0
"""Standard errors between two components below which an interval may reach another labelling."""


def uncertainty(
    model_or_fit: Any,
    x: Any,
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    kind: str | None = None,
    cluster: Any = None,
    weights: str = "frequency",
    polish: int = 2,
) -> Uncertainty:
    """Standard errors of a fitted model, and how much of its information is missing.

    From the observed information, minus the Hessian of log-likelihood plus log-prior, exact and with respect to
    unconstrained coordinates (Louis 1982; Oakes 1999): a pass over the data for each parameter. It can be jitted and
    vmapped; see `uncertainty_many` for thousands of fits.

    A maximum at which nothing is regular has no standard errors: `status` says what is the case. Probabilities within
    1e-6 of zero or one are put there, and the errors of others are given that.

    Args:
        model_or_fit: a `Fit`, or a model at its maximum.
        x, weight, prior, labels: exactly what `fit` was given. On anything else the model is no maximum, which
            `distance` and `status` tell.
        kind: `"observed"` (the inverse of the observed information), `"opg"` (of the outer products of the scores of
            rows), or `"sandwich"` (I^-1 B I^-1, which holds if the model is not the truth, White 1982). If left out,
            `"sandwich"` where there are clusters or weights of a survey, else `"observed"`.
        cluster: `[n]` numbers or names; rows (sequences) of a cluster may depend on each other. For a sandwich or opg;
            no factor for a small number of clusters is applied.
        weights: `"frequency"`, rows that were seen so often, or `"sampling"`, weights of a survey.
        polish: Newton's steps towards the maximum, at most, before anything is told; none is taken from more than two
            standard errors away.

    Returns:
        An `Uncertainty`.

    Raises:
        TypeError: x does not hold numbers, a model that is none.
        ValueError: several models, another kind, fewer rows (sequences, clusters) than parameters for a sandwich, and
            whatever `fit` refuses.

    >>> import jax, jaxem as jem
    >>> x = jem.Mixture([0.4, 0.6], jem.Poisson([2.0, 9.0])).sample(jax.random.key(0), 500)
    >>> fit = jem.fit(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 5.0])), x)
    >>> errors = jem.uncertainty(fit, x)
    >>> errors.status_name, bool((errors.standard_error.components.rate < 0.3).all())
    ('ok', True)
    """
    model = model_or_fit.model if isinstance(model_or_fit, Fit) else model_or_fit
    check_model(model, x)
    if model.batch_shape:
        raise ValueError(f"model has batch shape {model.batch_shape}; pass one model, or several to uncertainty_many")
    kind = checked_kind(kind, weights, cluster)
    polish = whole(polish, "polish", 0)
    if isinstance(x, Labelled):
        x, labels = x.x, x.labels if labels is None else labels
    x = model.read(x)
    check_labelled(model, labels)
    x, weight, labels = prepare(x, weight, labels, hidden_states(model))
    check_prior(prior)
    check_rows(model, x)
    if not isinstance(weight, Tracer):
        model.check(x, weight, prior is None)
    cluster, groups = clusters(cluster, weight.shape[0])
    data = x if labels is None else Labelled(x, labels)
    plan = Plan(kind, weights == "sampling", groups, polish)
    size = jax.eval_shape(lambda model: flat(model)[0], model).size
    if not size:
        raise ValueError("model has no free parameters, so there is nothing to be unsure of; release what is held")
    if size > DENSE and kind == "opg":
        raise ValueError(f"kind is 'opg', and the model has {size} coordinates, more than {DENSE}; use 'sandwich'")
    errors = (compute if size <= DENSE else compute_large)(model, data, weight, prior, cluster, plan)
    check_count(errors, weight, cluster)
    return errors


def checked_kind(kind: Any, weights: Any, cluster: Any) -> str:
    """The kind; ValueError for one that does not exist, or that clusters or weights rule out."""
    if weights not in ("frequency", "sampling"):
        raise ValueError(f"weights is {weights!r}; it must be 'frequency' or 'sampling'")
    robust = cluster is not None or weights == "sampling"
    if kind is None:
        return "sandwich" if robust else "observed"
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be 'observed', 'opg' or 'sandwich'")
    if weights == "sampling" and kind != "sandwich":
        raise ValueError(f"kind is {kind!r}, and weights of a survey are no counts of rows; use kind='sandwich'")
    if cluster is not None and kind == "observed":
        raise ValueError("kind is 'observed', which takes rows as independent and has no clusters; use kind='sandwich'")
    return kind


def clusters(cluster: Any, n: int) -> tuple[Array | None, int]:
    """Clusters as integers, and how many there are."""
    if cluster is None:
        return None, 0
    if isinstance(cluster, Tracer):
        return cluster.astype(jnp.int32), n
    nulls = getattr(cluster, "null_count", 0)  # a number of pyarrow, a method of polars
    if nulls() if callable(nulls) else nulls:
        raise ValueError("cluster has nulls; every row must be in a cluster: drop those rows, or give each its own")
    names = np.asarray(cluster)
    if names.shape != (n,):
        raise ValueError(f"cluster has shape {names.shape}; with {n} rows it must be ({n},)")
    none = [name is None or name != name for name in names] if names.dtype.kind in "Of" else []
    if any(none):
        raise ValueError(
            f"cluster has a null in row {none.index(True)}; every row must be in a cluster: drop those rows, or give "
            "each its own"
        )
    found, codes = np.unique(names.astype(str) if names.dtype.kind == "O" else names, return_inverse=True)
    return jnp.asarray(codes.reshape(n), jnp.int32), len(found)


def check_count(errors: Uncertainty, weight: Array, cluster: Array | None) -> None:
    """Raise ValueError if there are fewer scores than parameters: their outer products are singular."""
    if errors.kind == "observed" or isinstance(errors.moves, Tracer) or isinstance(weight, Tracer):
        return
    counted = np.asarray(weight) > 0
    units = int(counted.sum()) if cluster is None else len(np.unique(np.asarray(cluster)[counted]))
    free = int(np.asarray(errors.moves).sum())
    if units < free:
        what = "rows (sequences, for a model of those)" if cluster is None else "clusters"
        raise ValueError(
            f"kind is {errors.kind!r}, and there are {units} {what} for {free} parameters; it needs as many at least: "
            "use kind='observed'"
        )


class _LookedAt(NamedTuple):
    """A model with its edges put at the edge, and what is needed to differentiate the objective there.

    Attributes:
        model: the model.
        data: rows as an E-step takes them.
        pseudo: statistics of floor and prior.
        moves: `[p]` coordinates that a fit can move and no floor holds up.
        states: number of hidden states in use before.
        edge, collapsed: whether a probability was put at an edge, and whether a floor holds up any member.
    """

    model: Any
    data: Any
    pseudo: Any
    moves: Array
    states: Array
    edge: Array
    collapsed: Array

    def vanished(self, model: Any, weight: Array) -> Array:
        """Whether a component of the model is without rows, or fell out of use at the edge."""
        return jnp.any(model.states < self.states) | jnp.any(model.has_empty_component(jnp.sum(weight)))


def _looked_at(model: Any, x: Any, weight: Array, prior: Any) -> _LookedAt:
    data = x if in_chunks(model, x, weight) else model.expand(model.observe(x))
    floor, pseudo = regularisers(model, x, weight, prior)

    def objective(model: Any) -> Array:
        return expectation(model, data, weight)[0] + model.expected_log_prob(pseudo)

    states = model.states
    model, edge = put_at_edges(model, objective, jnp.sum(weight))
    moves, collapsed = determined(model, floor)
    return _LookedAt(model, data, pseudo, moves, states, edge, collapsed)


@partial(jax.jit, static_argnames="plan")
def compute(
    model: Any, x: Any, weight: Float[Array, "n"], prior: Any, cluster: Array | None, plan: Plan
) -> Uncertainty:
    """All of it, as one program."""
    found = _looked_at(model, x, weight, prior)
    model, look, inverse = climbed(found.model, found.data, weight, found.pseudo, found.moves, plan.polish)
    away = distance(inverse, look.gradient)
    covariance, regular = inverse.matrix, inverse.regular
    if plan.kind != "observed":
        outer = outer_scores(model, found.data, weight, cluster, plan.groups, plan.sampling)
        if plan.kind == "sandwich":
            covariance = linalg.matmul(linalg.matmul(covariance, outer), covariance)
        else:
            root, some = inverse_root(outer, inverse.moves)
            covariance, regular = linalg.matmul(linalg.transpose(root), root), regular & some
    finite = jnp.isfinite(look.objective) & jnp.all(jnp.isfinite(look.gradient) & jnp.isfinite(jnp.diag(look.observed)))
    silent = jnp.any(found.moves & ~inverse.moves)
    regular &= finite
    nowhere = jnp.where(regular, jnp.zeros_like(away), jnp.nan)
    together = inverse.moves[:, None] & inverse.moves[None]
    covariance = jnp.where(together, linalg.symmetrize(covariance) + nowhere, 0)
    status = told(
        finite=finite, regular=regular, collapsed=found.collapsed, vanished=found.vanished(model, weight), away=away,
        edge=found.edge, silent=silent, close=closest(model, covariance) < CLOSE, turns=bool(rotations(model)),
    )  # fmt: skip
    return Uncertainty(
        model, covariance, look.observed, look.complete, inverse.moves, status, away + nowhere, plan=plan
    )


@partial(jax.jit, static_argnames="plan")
def compute_large(
    model: Any, x: Any, weight: Float[Array, "n"], prior: Any, cluster: Array | None, plan: Plan
) -> Uncertainty:
    """The same for many parameters, without matrices: the model, its status and distance."""
    found = _looked_at(model, x, weight, prior)
    model, data, pseudo, moves = found.model, found.data, found.pseudo, found.moves
    rows = Rows(data, weight, pseudo, cluster)
    free, model_at = flat(model)
    parts = system(model, rows, moves)

    def look(free: Array) -> tuple[Array, Array, Array]:
        """Objective, Newton's step, squared distance."""
        _, value, gradient = value_and_gradient(model_at(free), data, weight, pseudo)
        slope = jnp.where(moves, ravel_pytree(gradient)[0], 0)
        step = parts.inverse(slope)
        return value, step, jnp.sum(slope * step)

    def again(_: Any, carry: tuple[Array, tuple[Array, Array, Array]]) -> tuple[Array, tuple[Array, Array, Array]]:
        free, (value, step, squared) = carry
        new = free + step
        seen = look(new)
        rounding = 256 * float(jnp.finfo(free.dtype).eps) * (jnp.abs(value) + jnp.sum(weight))
        better = (seen[0] >= value - rounding) & (squared <= NEAR**2) & (squared >= 0)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), (new, seen), carry)

    free, (value, step, squared) = jax.lax.fori_loop(0, plan.polish, again, (free, look(free)))
    model = model_at(free)
    away = jnp.sqrt(jnp.maximum(squared, 0))
    rate = largest_missing(model, parts, moves)
    bound = float(np.sqrt(jnp.finfo(free.dtype).eps))
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(step))
    status = told(
        finite=finite, regular=(rate < 1 - bound) & (squared >= -bound), collapsed=found.collapsed,
        vanished=found.vanished(model, weight), silent=jnp.zeros((), bool), away=away, edge=found.edge,
        close=jnp.zeros((), bool), turns=bool(rotations(model)),
    )  # fmt: skip
    return Uncertainty(model, None, None, None, moves, status, away, rate, rows, plan=plan)


def told(
    *, finite: Array, regular: Array, collapsed: Array, vanished: Array, silent: Array, away: Array, close: Array,
    turns: bool, edge: Array,
) -> Array:  # fmt: skip
    """The status: of all that applies, what matters most."""
    conditions = [
        (~finite, ErrorStatus.nonfinite),
        (~regular, ErrorStatus.not_a_maximum),
        (collapsed, ErrorStatus.covariance_collapsed),
        (vanished, ErrorStatus.component_vanished),
        (silent, ErrorStatus.no_information),
        (away > SETTLED, ErrorStatus.not_settled),
        (close, ErrorStatus.components_close),
        (jnp.asarray(turns), ErrorStatus.rotation_free),
        (edge, ErrorStatus.on_boundary),
    ]
    codes = [jnp.full((), int(status), jnp.int32) for _, status in conditions]
    return jnp.select([condition for condition, _ in conditions], codes, jnp.full((), int(ErrorStatus.ok), jnp.int32))


def closest(model: Any, covariance: Float[Array, "p p"]) -> Float[Array, ""]:
    """The smallest Mahalanobis distance between two components (their weights and parameters); infinite for one."""
    if not isinstance(model, Latent) or isinstance(model.children, dict) or len(model.child.batch_shape) != 1:
        return jnp.full((), jnp.inf, covariance.dtype)
    size = model.child.batch_shape[0]

    def members(model: Any) -> Array:
        """`[K, m]`: coordinates of each."""
        each = zip(walk(model.child), to_coordinates(model.child), strict=True)
        own = [free.reshape(size, -1) for leaf, free in each if free.ndim and free.shape[0] == size and not leaf.still]
        weights = getattr(model, "weights", None)
        if weights is not None and weights.shape == (size,):
            own.append(jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), 0)[:, None])
        return jnp.concatenate(own, axis=1) if own else jnp.zeros((size, 0), covariance.dtype)

    first, second = np.triu_indices(size, 1)
    changes = along(members, model, covariance)
    here = members(model)
    if not here.shape[1] or not len(first):
        return jnp.full((), jnp.inf, covariance.dtype)
    apart = here[first] - here[second]
    moved = changes[:, first] - changes[:, second]

    def between(apart: Array, moved: Float[Array, "p m"]) -> Array:
        shared = linalg.matmul(moved.T, moved)
        entry = linalg.diagonal(shared)
        scale = 1 / jnp.sqrt(jnp.where(entry > 0, entry, 1))
        white = linalg.whitening(shared * linalg.outer(scale, scale))
        away = jnp.sqrt(jnp.sum(linalg.matmul(white, apart * scale) ** 2))
        # Of members that do not move nothing can be told apart.
        return jnp.where(jnp.any(entry > 0), away, jnp.inf)

    return jnp.min(jax.vmap(between, in_axes=(0, 1))(apart, moved))
