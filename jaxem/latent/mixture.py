"""Mixtures: the component that a row came from is hidden."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core.arguments import as_key, optional, whole
from jaxem.core.compilation import program
from jaxem.core.constraints import parameter, simplex
from jaxem.core.pytree import replace
from jaxem.data.arrays import as_dtype
from jaxem.data.missing import Incomplete, cells, hot_deck
from jaxem.data.prepare import as_table, prepare
from jaxem.distributions.base import Distribution
from jaxem.distributions.product import told
from jaxem.distributions.registry import structure
from jaxem.distributions.statistics.moments import shares
from jaxem.distributions.words import as_family
from jaxem.latent import seeding
from jaxem.latent.base import Latent, LatentStatistics, chosen, log_potential, same_members


@structure
class Mixture(Latent):
    """A mixture of the members of `components`, its last member axis.

    log p(x) = log sum_k weights[k] p(x | components[k])

    Args:
        weights: `[..., K]`, each row on the simplex. A weight of zero stays zero.
        components: any distribution with `batch_shape [..., K]`, another mixture among them.

    Raises:
        ValueError: weights that do not sum to one, or a batch shape that is not that of the weights.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.5, 0.5], jem.SphericalGaussian([[-1.0], [1.0]], [1.0, 1.0]))
    >>> model.log_prob([0.0]).round(4).tolist(), model.posterior([0.0]).tolist()
    ([-1.4189], [[0.5, 0.5]])
    """

    weights: Float[Array, "*batch k"] = parameter(simplex, axes=("state",))
    components: Distribution

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components.batch_shape != self.weights.shape:
            raise ValueError(
                f"Mixture: weights have shape {self.weights.shape} and components batch shape "
                f"{self.components.batch_shape}; they must be the same"
            )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the members: that of the weights without its last axis."""
        return self.weights.shape[:-1]

    @property
    def child(self) -> Distribution:
        """The components."""
        return self.components

    @property
    def states(self) -> Array:
        """The number of components with a weight."""
        return jnp.sum(self.weights > 0, axis=-1)

    def in_use(self, used: Array) -> dict[str, Any]:
        """Components that have a weight."""
        return {"components": used[..., None] & (self.weights > 0)}

    @classmethod
    def start(
        cls,
        key: Any,
        family: Any,
        x: Any,
        components: int,
        *,
        weight: Any = None,
        labels: Any = None,
        restarts: int | None = None,
        method: str = "mixed",
        active: Any = None,
    ) -> Self:
        """A mixture to start from: seeds, each row given to the nearest, one M-step.

        Args:
            key: a JAX random key, or a whole number as its seed.
            family: the kind of component: a family, its name (`"gaussian"`), `jem.sized(family, ...)`, or
                `jem.Product.of(...)`. A family of numbers on several columns becomes `Independent` columns. Sizes that
                are not given (`categories`, `total_count`) are the largest that the rows tell.
            x: `[n]` or `[n, D]` rows, of anything that `fit` reads; the model has their type of floats, or the default
                if they are integers. What is missing is drawn from its column, for the start only.
            components: K.
            weight: `[n]` row weights; rows of weight zero are ignored, whatever they hold.
            labels: `[n]` known components, -1 where unknown.
            restarts: how many starts; the model then has a leading axis of this length.
            method: `"kmeans++"` (seeds far apart), `"random"` (any rows), or `"mixed"`: of several starts the first,
                third, ... by k-means++, the others at random, because neither finds everything.
            active: use only the first so many of the K components; the others have weight zero for good. It may be
                traced, so mixtures of different sizes can share one compiled shape.

        Raises:
            TypeError: a key or a family that is none, or x that does not hold numbers.
            ValueError: components or restarts below one, an unknown method, a label out of range.

        >>> import jax, jaxem as jem
        >>> x = jax.numpy.array([[0.0], [0.1], [5.0], [5.1]])
        >>> jem.Mixture.start(jax.random.key(0), jem.SphericalGaussian, x, 2).weights.tolist()
        [0.5, 0.5]
        """
        key, family = as_key(key), as_family(family)
        components, restarts = whole(components, "components"), optional(restarts, "restarts")
        if method not in seeding.METHODS:
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(seeding.METHODS)}")
        x, weight, labels = prepare(as_table(x), weight, labels, components)
        plan = Plan(cls, told(family, cells(x), weight), components, restarts, method)
        return _start(key, x, weight, labels, None if active is None else as_dtype(active, np.int32), plan)

    def potentials(self) -> Float[Array, "*batch k"]:
        """The potentials log weights; -inf, with zero gradient, where a weight is zero."""
        return log_potential(self.weights)

    def log_normalizer(self, potentials: Array, evidence: Array, add: Any, x: Any) -> Float[Array, "*batch n"]:
        """The log-normaliser log sum_k exp(potential_k + log p(x | k)) of each row."""
        return add(potentials[..., None] + evidence, -2)

    def with_counts(self, counts: Float[Array, "*batch k"], child: Distribution) -> Self:
        """The model with weights as the shares of the counts."""
        return replace(self, weights=shares(counts, self.weights), components=child)

    def is_degenerate(self, floor: LatentStatistics) -> Array:
        """Whether any component with a weight has collapsed."""
        return jnp.any(self.components.is_degenerate(floor.child) & (self.weights > 0), axis=-1)

    def has_empty_component(self, rows: Array) -> Array:
        """Whether any component with a weight holds less than a hundredth of a row of `rows`."""
        return jnp.any((self.weights > 0) & (self.weights * rows[..., None] < 0.01), axis=-1)

    def coincides(self) -> Array:
        """Whether two components have the same parameters, or one of them hides what moves nothing."""
        used = self.weights > 0
        within = jnp.any(self.components.coincides() & used, axis=-1)
        return within | jnp.any(same_members(self.components, used), axis=(-2, -1))

    def occupancy(self) -> Float[Array, "*batch k"]:
        """The share of rows that each component takes: its weight."""
        return jnp.asarray(self.weights)

    def sample(self, key: Array, n: int) -> Array:
        """`n` rows from each member, `[*batch_shape, n, *event_shape]`."""
        return _sample(self, key, n)

    def rows_like(self, key: Array, x: Any) -> Array:
        """A component for each row, and what it draws there."""
        which, what = jax.random.split(key)
        component = jax.random.categorical(which, self.potentials()[..., None, :], shape=(*self.batch_shape, len(x)))
        return chosen(self.components.rows_like(what, x), component, len(self.batch_shape))

    def drawn_rows(self, key: Array, x: Any, n: int) -> Array:
        """Draws of rows: a component by its posterior, and what it draws."""
        which, what = jax.random.split(key)
        terms = self.potentials()[..., None] + self.evidence_of(x)
        component = jax.random.categorical(which, terms, axis=-2)
        return chosen(self.components.drawn_rows(what, self.child_data(x), n), component, len(self.batch_shape))


class Plan(NamedTuple):
    """What a start is to be, but for the data: the model's class, and the arguments of `Mixture.start`."""

    model: Any
    family: Any
    components: int
    restarts: int | None
    method: str


def start_work(key: Array, x: Any, weight: Any, labels: Any, *plan: Any) -> float:
    """Numbers that a start computes, for `jaxem.core.compilation`: seeds, some passes, M-steps."""
    *_, (_, _, components, restarts, _) = plan
    return 30.0 * sum(leaf.size for leaf in jax.tree.leaves(x)) * components * (restarts or 1)


@program(start_work, static_argnums=5)
def _start(key: Array, x: Any, weight: Array, labels: Any, active: Any, plan: Plan) -> Mixture:
    cls, family, components, restarts, method = plan
    if isinstance(x, Incomplete):
        x = hot_deck(jax.random.fold_in(key, 1), x.values, weight)
    active = jnp.asarray(components if active is None else active, jnp.int32)
    how = {"family": family, "k": components, "restarts": restarts or 1, "method": method}
    members, held = seeding.responsibilities(key, x, weight, labels, active, **how)
    total = held.sum(-1, keepdims=True)
    uniform = jnp.full_like(held, 1 / components)
    model = cls(jnp.where(total > 0, held / jnp.where(total > 0, total, 1), uniform), members)
    return model if restarts is not None else jax.tree.map(lambda leaf: leaf[0], model)


def _sample_work(model: Mixture, key: Array, n: int) -> float:
    return 10.0 * n * model.work_per_row * math.prod((*model.batch_shape, *model.event_shape))


@program(_sample_work, static_argnums=2)
def _sample(model: Mixture, key: Array, n: int) -> Array:
    which, what = jax.random.split(key)
    component = jax.random.categorical(which, model.potentials()[..., None, :], shape=(*model.batch_shape, n))
    return chosen(model.components.sample(what, n), component, len(model.batch_shape))
