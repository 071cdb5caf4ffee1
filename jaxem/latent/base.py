"""Latent structures: models with something hidden, each one log-normaliser."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxem.core import linalg, semirings
from jaxem.core.compilation import program
from jaxem.core.constraints import check_parameters, told
from jaxem.core.pytree import apart_as, module
from jaxem.data.arrays import numbers
from jaxem.data.prepare import check_weight
from jaxem.distributions.base import Distribution, Labelled, Pullback, convert_parameters, work
from jaxem.latent.components import reordered


@module
class LatentStatistics:
    """Expected counts of a latent structure's own potentials, and the statistics of its child (of several, by name)."""

    counts: Any
    child: Any


class Hidden(Distribution):
    """A model with something hidden: `log Z = log sum_z exp(sum of the potentials that z uses)`.

    What you write:

    - `potentials()`: a pytree of own log-parameters;
    - `evidence_of(x)`: what observed x says about the hidden states, log-potentials `[..., K, n]` or a pytree of them;
    - `log_normalizer(potentials, evidence, add, x)`: `[..., n]`, with `add(terms, axis)` as its sum;
    - `e_step(x, add)`, and the rest of `Distribution`.

    What you get: `log_prob`, `entropy`, the solvers that put another sum in the place of log-sum (hard, annealed and
    stochastic EM). `Latent` is the kind that has a child and gets much more.
    """

    def potentials(self) -> PyTree:
        raise NotImplementedError

    def evidence_of(self, x: Any) -> PyTree:
        raise NotImplementedError

    def log_normalizer(self, potentials: PyTree, evidence: Any, add: Any, x: Any) -> Array:
        raise NotImplementedError

    def e_step(self, x: Any, add: Any = semirings.log_sum) -> tuple[Array, Pullback]:
        raise NotImplementedError

    def less_common(self, evidence: Any) -> Any:
        """Evidence without what all states of a row have in common: it says nothing of them, and would cost digits."""
        return jax.tree.map(_less_common, evidence)

    def log_prob(self, x: Any) -> Float[Array, "*batch n"]:
        """The log-probability log p(x_i), summed over what is hidden: `[*batch_shape, n]`, in nats."""
        return _log_prob(self, self.observe(x))

    def entropy(self, x: Any, weight: Any = None) -> Float[Array, "*batch"]:
        """The posterior entropy sum_i w_i H(hidden | x_i), in nats. See `jaxem.entropy`."""
        if weight is not None:
            check_weight(weight := numbers(weight, "weight"))
        return _entropy(self, self.observe(x), weight)


class Latent(Hidden):
    """A model with a hidden part and a child, which says how probable the data are under each hidden state.

    What you write:

    - fields: own parameters, each with its constraint, and one child, a `Distribution` whose last member axis is the
      hidden state;
    - `child`, `batch_shape`;
    - `potentials()`: a pytree of own log-parameters;
    - `log_normalizer(potentials, evidence [..., K, n], add, x)`: `[..., n]`, with `add(terms, axis)` as its sum;
    - `with_counts(counts, child)`: counts, shaped like the potentials, turned into parameters;
    - `sample(key, n)`;
    - if other distributions are hidden behind it as well (how long a state lasts): `children`, all of them by name.
      What is said above of one child is then a dict: `evidence`, the `child` of `with_counts` and of the statistics,
      `child_data`, `child_weight`. The first reads the rows of x, and its last member axis is the hidden state;
    - if a row of x is more than one row of the child (a sequence): `child_data`, `with_child_data`, `child_weight`,
      `evidence`, `per_row`.

    What you get: `log_prob`; `e_step` (the derivative of the log-normaliser is the posterior expectation of how often
    each potential is used: Fisher's identity; Dempster, Laird and Rubin 1977); `posterior` (the derivative of
    log-sum), `decode` (the derivative of max), `predict`; `m_step`, `expected_log_prob`; known labels; and all that
    `Distribution` promises, so a latent structure can be the child of another.
    """

    child: Any
    separable: ClassVar[bool] = True  # type: ignore[override]

    def __post_init__(self) -> None:
        convert_parameters(self)
        check_parameters(self)

    @property
    def children(self) -> Any:
        """The children: the child alone, or a dict of several by name, of which it is the first."""
        return self.child

    @property
    def states(self) -> Array | int:
        """The number of hidden states in use."""
        return self.child.batch_shape[-1]

    @property
    def work_per_row(self) -> int:
        """The number of hidden states."""
        return self.child.batch_shape[-1]

    def with_counts(self, counts: PyTree, child: Any) -> Self:
        raise NotImplementedError

    def child_data(self, x: Any) -> Any:
        """Observed data as the child reads it."""
        return x

    def with_child_data(self, x: Any, data: Any) -> Any:
        """Observed data with other data for the child."""
        return data

    def child_weight(self, x: Any, weight: Array) -> Array:
        """The weight of each of the child's rows."""
        return weight

    def evidence(self, child_log_prob: Any, x: Any) -> Any:
        """The evidence for each hidden state, from the child's log-probabilities."""
        return child_log_prob

    def evidence_of(self, x: Any) -> Any:
        """The evidence for each hidden state, from the child's log-probabilities and known labels."""
        data, labels = _split(x)
        log_prob = self._each(lambda child, rows: child.log_prob(rows), self.child_data(data))
        return self._known(self.evidence(log_prob, data), labels)

    def per_row(self, values: Array, x: Any) -> Array:
        """Values of the child's rows, `[..., n]`, with the axes of the user's data."""
        return values

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one row, as the child reads it."""
        return self.child.event_shape

    def read(self, x: Any) -> Any:
        return self.child.read(x)

    def observe(self, x: Any) -> Any:
        """`x` as the child reads it; known labels stay beside it."""
        if isinstance(x, Labelled):
            return Labelled(self.child.observe(x.x), x.labels)
        return self.child.observe(x)

    def expand(self, x: Any) -> Any:
        """Observed data prepared by the child."""
        data, labels = _split(x)
        data = self.with_child_data(data, self._each(lambda child, rows: child.expand(rows), self.child_data(data)))
        return data if labels is None else Labelled(data, labels)

    def log_prob(self, x: Any) -> Float[Array, "*batch n"]:
        """The log-probability log p(x_i), summed over what is hidden: `[*batch_shape, n]`, in nats.

        For `Labelled` data it is log p(x_i, label_i) where the label is known.
        """
        return super().log_prob(x)

    def e_step(self, x: Any, add: Any = semirings.log_sum) -> tuple[Array, Pullback]:
        """`(log_prob, pullback)`; `pullback(weight)` gives `LatentStatistics`. `add` is the sum to differentiate."""
        data, labels = _split(self.observe(x))
        steps = self._each(lambda child, rows: child.e_step(rows), self.child_data(data))
        child_log_prob, pullbacks = (self._each(lambda _, step, i=i: step[i], steps) for i in (0, 1))

        def value(own: Any, child_log_prob: Any) -> Array:
            return self.log_normalizer(own, self._known(self.evidence(child_log_prob, data), labels), add, data)

        # Of several children those that do not read the rows say the same on every device, as the potentials do.
        own, child_log_prob = apart_as(self._first(child_log_prob), (self.potentials(), child_log_prob))
        log_prob, backward = jax.vjp(value, own, child_log_prob)

        def pullback(weight: Array) -> LatentStatistics:
            counts, responsibilities = backward(weight)
            return LatentStatistics(counts, self._each(lambda _, back, r: back(r), pullbacks, responsibilities))

        return log_prob, pullback

    def m_step(self, statistics: LatentStatistics) -> Self:
        """Own parameters from the counts, the child's from its statistics."""
        return self.with_counts(statistics.counts, self._each(lambda child, its: child.m_step(its), statistics.child))

    def expected_log_prob(self, statistics: LatentStatistics) -> Float[Array, "*batch"]:
        """Q: <counts, potentials> and the child's, summed over its states; a count of zero contributes zero."""
        members = len(self.batch_shape)

        def of(child: Distribution, its: Any) -> Array:
            value = child.expected_log_prob(its)
            return value.reshape(*value.shape[:members], -1).sum(-1)

        return _used(statistics.counts, self.potentials(), members) + self._over(jnp.add, of, statistics.child)

    def posterior(self, x: Any) -> Float[Array, "*batch n k"]:
        """The probability of each hidden state given each row, `[*batch_shape, n, K]`.

        A row that is impossible under every state has posterior zero throughout.
        """
        return _usage(self, self.observe(x), semirings.log_sum)

    def decode(self, x: Any) -> Array:
        """The most probable hidden states, jointly: `[*batch_shape, n]` integers."""
        return _likeliest(self, self.observe(x), semirings.maximum)

    def predict(self, x: Any) -> Array:
        """The most probable hidden state of each row by itself: `[*batch_shape, n]` integers."""
        return _likeliest(self, self.observe(x), semirings.log_sum)

    def reordered(self, order: Any) -> Self:
        """The same model with its components (states) in another order.

        Args:
            order: `[K]`, or for each of a batch `[*batch_shape, K]`: in the place of k stands what was `order[k]`.

        Raises:
            TypeError: a structure that does not say which axes of its parameters count components.
            ValueError: an order that is no permutation, that moves a member which is of a family of its own, or parts
                of parameters that are held or tied.

        >>> import jaxem as jem
        >>> jem.Mixture([0.4, 0.6], jem.Poisson([2.0, 9.0])).reordered([1, 0]).components.rate.tolist()
        [9.0, 2.0]
        """
        return reordered(self, order)

    def less_common(self, evidence: Any) -> Any:
        """Evidence without the common part, of the child that reads the rows."""
        return self._with_first(evidence, _less_common(self._first(evidence)))

    def expected_rows(self, x: Any, weight: Array) -> Array:
        """Expected rows of the child, averaged over the posterior of its states."""
        data, _ = _split(self.observe(x))
        own, evidence = self.potentials(), self.evidence_of(x)
        _, backward = jax.vjp(lambda e: self.log_normalizer(own, e, semirings.log_sum, data), evidence)
        return self.child.expected_rows(self._first(self.child_data(data)), self._first(backward(weight)[0]))

    def floor(self, x: Any, weight: Array) -> LatentStatistics:
        """The child's floor; nothing for the own parameters."""
        data, _ = _split(self.observe(x))
        children = self.child_data(data), self.child_weight(data, weight)
        floor = self._each(lambda child, rows, weight: child.floor(rows, weight), *children)
        return LatentStatistics(jax.tree.map(jnp.zeros_like, self.potentials()), floor)

    def check(self, x: Any, weight: Array, alone: bool) -> None:
        self.child.check(x, weight, alone)

    @property
    def censored(self) -> Any:  # type: ignore[override]
        return self.child.censored

    def observations(self, x: Any, weight: Array) -> Array:
        data, _ = _split(x)
        return self.child.observations(*map(self._first, (self.child_data(data), self.child_weight(data, weight))))

    def bounded(self, x: Any, weight: Array) -> Array | bool:
        """Whether the likelihood of the child has a maximum."""
        data, _ = _split(x)
        return self.child.bounded(*map(self._first, (self.child_data(data), self.child_weight(data, weight))))

    def is_degenerate(self, floor: LatentStatistics) -> Array:
        """Whether the child of any state has collapsed."""
        return self._over(jnp.logical_or, lambda child, its: jnp.any(child.is_degenerate(its), axis=-1), floor.child)

    def inside(self, x: Any) -> Array:
        """Whether the child can produce each row, `[n]` bool."""
        return self.child.inside(self._first(self.child_data(_split(x)[0])))

    def _each(self, function: Callable[..., Any], *of_each: Any) -> Any:
        """`function(child, what it has of each)`: of the one child, or of several a dict by name."""
        children = self.children
        if not isinstance(children, dict):
            return function(children, *of_each)
        return {name: function(child, *(its[name] for its in of_each)) for name, child in children.items()}

    def _over(self, together: Callable[[Any, Any], Any], function: Callable[..., Any], *of_each: Any) -> Any:
        """The results of `_each`, combined over the children."""
        values = self._each(function, *of_each)
        return reduce(together, values.values()) if isinstance(values, dict) else values

    def _first(self, of_each: Any) -> Any:
        """The entry of the child that reads the rows."""
        return of_each[next(iter(self.children))] if isinstance(self.children, dict) else of_each

    def _with_first(self, of_each: Any, first: Any) -> Any:
        """Entries with another one for the child that reads the rows."""
        return {**of_each, next(iter(self.children)): first} if isinstance(self.children, dict) else first

    def _known(self, evidence: Any, labels: Array | None) -> Any:
        """Log-indicators: -inf at the states that a known label rules out."""
        return evidence if labels is None else self._with_first(evidence, _possible(self._first(evidence), labels))


@program(work)
def _log_prob(model: Hidden, x: Any) -> Array:
    return told(model, model.log_normalizer(model.potentials(), model.evidence_of(x), semirings.log_sum, _split(x)[0]))


@program(work, static_argnums=2)
def _usage(model: Latent, x: Any, add: Any) -> Array:
    """`[..., n, K]`: the derivative of the log-normaliser with respect to what the child says of each row."""
    data, _ = _split(x)
    own, evidence = model.potentials(), model.evidence_of(x)
    log_prob, backward = jax.vjp(lambda e: model.log_normalizer(own, e, add, data), evidence)
    used = model._first(backward(jnp.ones_like(log_prob))[0])
    return jnp.moveaxis(model.per_row(used, data), len(model.batch_shape), -1)


@program(work, static_argnums=2)
def _likeliest(model: Latent, x: Any, add: Any) -> Array:
    return jnp.argmax(_usage(model, x, add), axis=-1)


@program(work)
def _entropy(model: Hidden, x: Any, weight: Array | None) -> Array:
    data, _ = _split(x)
    evidence = model.less_common(model.evidence_of(x))
    own = model.potentials()
    log_prob, backward = jax.vjp(lambda own, e: model.log_normalizer(own, e, semirings.log_sum, data), own, evidence)
    if weight is not None and weight.shape != (n := log_prob.shape[-1],):
        raise ValueError(f"weight has shape {weight.shape}; with {n} rows it must be ({n},)")
    counted = jnp.where(jnp.isfinite(log_prob), 1 if weight is None else weight, 0).astype(log_prob.dtype)
    expected = _used(backward(counted), (own, evidence), len(model.batch_shape))
    return jnp.sum(jnp.where(counted > 0, counted * log_prob, 0), axis=-1) - expected


def _less_common(evidence: Float[Array, "*batch k n"]) -> Float[Array, "*batch k n"]:
    common = jnp.max(evidence, axis=-2, keepdims=True)
    return evidence - jnp.where(jnp.isfinite(common), common, 0)


def same_members(model: Any, used: Array) -> Bool[Array, "*batch k k"]:
    """Whether two members in use have the same parameters, within rounding, apart from shared ones."""
    shape = used.shape
    upper = jnp.triu(jnp.ones((shape[-1], shape[-1]), bool), 1)
    same = used[..., :, None] & used[..., None, :] & linalg.lead(upper, len(shape) + 1)
    for leaf in jax.tree.leaves(model):
        if leaf.shape[: len(shape)] == shape:
            values = leaf.reshape(*shape, -1)
            a, b = values[..., :, None, :], values[..., None, :, :]
            near = 64 * float(jnp.finfo(leaf.dtype).eps) * jnp.maximum(jnp.abs(a), jnp.abs(b))
            same &= jnp.all(jnp.abs(a - b) <= near, axis=-1)
    return same


def _used(counts: Any, potentials: Any, members: int) -> Array:
    """The product <counts, potentials> of each member; a count of zero contributes zero."""

    def used(count: Array, potential: Array) -> Array:
        value = jnp.where(count == 0, 0, count * jnp.where(count == 0, 0, potential))
        return value.reshape(*value.shape[:members], -1).sum(-1)

    return sum(jax.tree.leaves(jax.tree.map(used, counts, potentials)))  # type: ignore[return-value]


def log_potential(probability: Array) -> Array:
    """The log of a probability; -inf, with zero gradient, where it is zero."""
    possible = probability > 0
    return jnp.where(possible, jnp.log(jnp.where(possible, probability, 1)), -jnp.inf)


def chosen(draws: Array, states: Array, members: int) -> Array:
    """The draws of the `states [*members, n]`, out of draws `[*members, K, n, ...]` from every state."""
    index = jnp.expand_dims(states, members)
    index = index.reshape(*index.shape, *(1,) * (draws.ndim - index.ndim))
    return jnp.take_along_axis(draws, index, axis=members).squeeze(members)


def _split(x: Any) -> tuple[Any, Array | None]:
    return (x.x, x.labels) if isinstance(x, Labelled) else (x, None)


def _possible(child_log_prob: Float[Array, "*batch k n"], labels: Array) -> Float[Array, "*batch k n"]:
    """Log-indicators: -inf at the states that a known label rules out."""
    states = jnp.arange(child_log_prob.shape[-2], dtype=labels.dtype)[:, None]
    possible = (labels < 0)[None] | (labels[None] == states)
    return jnp.where(linalg.lead(possible, child_log_prob.ndim), child_log_prob, -jnp.inf)
