"""Priors in ordinary words, turned into pseudo-statistics: rows that are counted as if they had been seen.

A conjugate prior is a statistics pytree. It is added before every M-step, and its expected log-probability is added
to the objective, so that EM climbs the log-posterior (up to a constant) and every solver climbs the same. Each prior
here has one verb, `statistics(model, x, weight)`; `fit` and `fit_many` call it, the latter for each problem by itself.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxem.core.pytree import module
from jaxem.distributions.base import Statistics, add, scale
from jaxem.distributions.bernoulli import Trials
from jaxem.distributions.poisson import Arrivals
from jaxem.distributions.statistics.moments import Moments
from jaxem.latent.base import LatentStatistics


def _above(name: str, least: float, **values: Any) -> None:
    for argument, value in values.items():
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) >= least):
            raise ValueError(f"{name}: {argument} is {value}; it must be at least {least:g}")


def _like(value: Any, array: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, array.dtype), array.shape)


@module
class Dirichlet:
    """Of the probabilities of a `Categorical`, or the weights of a `Mixture`.

    log p(w) = sum_k (concentration_k - 1) log w_k + constant

    Args:
        concentration: a number (symmetric) or one for each category, at least one: `concentration - 1` rows are
            counted for each.

    Raises:
        ValueError: a concentration below one, whose mode need not exist.

    >>> import jaxem as jem
    >>> jem.priors.Dirichlet(2.0).statistics(jem.Categorical([0.5, 0.5]), None, None).tolist()
    [1.0, 1.0]
    """

    concentration: Any

    def __post_init__(self) -> None:
        _above("Dirichlet", 1, concentration=self.concentration)

    def statistics(self, model: Any, x: Any, weight: Any) -> Array:
        """Pseudo-counts, shaped like the model's probabilities."""
        return _like(self.concentration, model.probs) - 1


@module
class Beta:
    """Of the probability of a `Bernoulli` or `Binomial`.

    log p(p) = (successes - 1) log p + (failures - 1) log(1 - p) + constant

    Args:
        successes, failures: the two parameters, each at least one.

    Raises:
        ValueError: a parameter below one.

    >>> import jaxem as jem
    >>> jem.priors.Beta(2.0, 3.0).statistics(jem.Bernoulli(0.5), None, None).failures.item()
    2.0
    """

    successes: Any
    failures: Any

    def __post_init__(self) -> None:
        _above("Beta", 1, successes=self.successes, failures=self.failures)

    def statistics(self, model: Any, x: Any, weight: Any) -> Trials:
        """Pseudo-successes and -failures."""
        return Trials(_like(self.successes, model.probs) - 1, _like(self.failures, model.probs) - 1)


@module
class Gamma:
    """Of the rate of a `Poisson`.

    log p(rate) = (shape - 1) log rate - exposure rate + constant

    Args:
        shape: at least one; `shape - 1` arrivals are counted.
        exposure: rows in which they are counted, zero or above (the gamma's own rate parameter).

    Raises:
        ValueError: a shape below one or a negative exposure.

    >>> import jaxem as jem
    >>> jem.priors.Gamma(3.0, 1.0).statistics(jem.Poisson(1.0), None, None).total.item()
    2.0
    """

    shape: Any
    exposure: Any

    def __post_init__(self) -> None:
        _above("Gamma", 1, shape=self.shape)
        _above("Gamma", 0, exposure=self.exposure)

    def statistics(self, model: Any, x: Any, weight: Any) -> Arrivals:
        """Pseudo-arrivals and the rows they came in."""
        return Arrivals(_like(self.shape, model.rate) - 1, _like(self.exposure, model.rate))


@module
class NormalInverseWishart:
    """Of the mean and covariance of a Gaussian of any kind.

    covariance ~ InverseWishart(scatter, dof), mean | covariance ~ Normal(mean, covariance / mean_rows): the covariance
    is pulled towards scatter / (dof + D + 2) as strongly as that many rows would, the mean towards `mean` as
    `mean_rows` would. For a diagonal or spherical covariance it is the normal-inverse-gamma with the same meaning.

    Args:
        mean: `[D]`, or anything that broadcasts against it.
        mean_rows: zero or above; zero leaves the mean free.
        scatter: `[D, D]` matrix (its diagonal is used where the covariance has one).
        dof: degrees of freedom, above D - 1 for a proper prior.

    Raises:
        ValueError: negative `mean_rows` or `dof`.

    >>> import jaxem as jem, jax.numpy as jnp
    >>> prior = jem.priors.NormalInverseWishart(0.0, 1.0, jnp.eye(2), 4.0)
    >>> prior.statistics(jem.Gaussian(jnp.zeros(2), jnp.eye(2)), None, None).spread_rows.item()
    8.0
    """

    mean: Any
    mean_rows: Any
    scatter: Any
    dof: Any

    def __post_init__(self) -> None:
        _above("NormalInverseWishart", 0, mean_rows=self.mean_rows, dof=self.dof)

    def statistics(self, model: Any, x: Any, weight: Any) -> Moments:
        """Pseudo-rows about the prior's mean, with the prior's scatter."""
        like = model.expected_statistics()
        size = model.event_shape[0]
        scatter = jnp.asarray(self.scatter, model.mean.dtype)
        if like.second.ndim == like.first.ndim:
            scatter, size = jnp.diagonal(scatter), 1
        return Moments(
            _like(self.mean_rows, like.rows),
            _like(self.dof + size + 2, like.rows),
            jnp.zeros_like(like.first),
            _like(scatter, like.second),
            _like(self.mean, like.first),
        )


@module
class Ridge:
    """Of the coefficients of a regression: Gaussian about zero; the intercept is left free.

    log p(coefficients) = -1/2 sum_p strength_p coefficients_p^2 + constant

    Of a `LinearRegression` it is divided by the variance, so that `strength` is what ridge regression adds to the
    diagonal of the normal equations (Hoerl and Kennard 1970).

    Args:
        strength: zero or above; a number or one for each input. In squared units of the inverse of the input.

    Raises:
        ValueError: a negative strength.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> rows = jnp.array([[-1.0, -1.0], [1.0, 1.0]])
    >>> fit = jem.fit(jem.LinearRegression([0.0], 0.0, 1.0), rows, prior=jem.priors.Ridge(2.0))
    >>> fit.model.coefficients.round(4).tolist()
    [0.5]
    """

    strength: Any

    def __post_init__(self) -> None:
        _above("Ridge", 0, strength=self.strength)

    def statistics(self, model: Any, x: Any, weight: Any) -> Statistics:
        """Pseudo-statistics without rows."""
        return model.ridge(self.strength)


@module
class PseudoRows:
    """As if `rows` more rows had been seen for each member, looking just like draws from `like`.

    The conjugate prior of any family, in words: its pseudo-statistics are `rows` times the mean statistics of `like`.

    Args:
        rows: how many, zero or above.
        like: a model of the family, whose members broadcast against those of the model that is fitted.

    Raises:
        ValueError: a negative number of rows.

    >>> import jaxem as jem
    >>> jem.priors.PseudoRows(4.0, jem.Poisson(2.0)).statistics(jem.Poisson([1.0, 9.0]), None, None).total.tolist()
    [8.0, 8.0]
    """

    rows: Any
    like: Any

    def __post_init__(self) -> None:
        _above("PseudoRows", 0, rows=self.rows)

    def statistics(self, model: Any, x: Any, weight: Any) -> Statistics:
        """The statistics of the pseudo-rows, shaped like the model's."""
        one = scale(self.like.expected_statistics(), self.rows)
        return jax.tree.map(_like, one, model.expected_statistics())


@module
class OfMixture:
    """Of a mixture: one prior for its weights, one for its components; either may be left out.

    Args:
        weights: a `Dirichlet`, or None.
        components: a prior of the components' family, or None.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0]))
    >>> prior = jem.priors.OfMixture(weights=jem.priors.Dirichlet(2.0), components=jem.priors.Gamma(2.0, 1.0))
    >>> prior.statistics(model, jax.numpy.zeros(1), jax.numpy.ones(1)).counts.tolist()
    [1.0, 1.0]
    """

    weights: Any = None
    components: Any = None

    def statistics(self, model: Any, x: Any, weight: Any) -> LatentStatistics:
        """Pseudo-counts of the weights (none where a weight is zero for good), and the components' statistics."""
        counts = _pseudo_counts(self.weights, model.weights)
        return LatentStatistics(counts, _of_child(self.components, model, x, weight))


@module
class OfHMM:
    """Of a hidden Markov model: one prior for each of its parts; each may be left out.

    Args:
        initial: a `Dirichlet`, or None.
        transition: a `Dirichlet` of each row, or None. A concentration of shape `[K, K]` tells the states apart, and
            one that is larger on its diagonal makes them sticky: `1 + stay * jnp.eye(K)`.
        emission: a prior of the emission's family, or None.

    >>> import jaxem as jem, jax.numpy as jnp
    >>> model = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Poisson([1.0, 2.0]))
    >>> sticky = jem.priors.OfHMM(transition=jem.priors.Dirichlet(1 + 5 * jnp.eye(2)))
    >>> sticky.statistics(model, jnp.zeros(3), jnp.ones(1)).counts[1].tolist()
    [[5.0, 0.0], [0.0, 5.0]]
    """

    initial: Any = None
    transition: Any = None
    emission: Any = None

    def statistics(self, model: Any, x: Any, weight: Any) -> LatentStatistics:
        """Pseudo-counts (none where a probability is zero for good), and the emission's statistics."""
        own = (self.initial, model.initial), (self.transition, model.transition)
        counts = tuple(_pseudo_counts(prior, probability) for prior, probability in own)
        return LatentStatistics(counts, _of_child(self.emission, model, x, weight))


@module
class OfBayesNet:
    """Of the tables of a Bayesian network: one prior for all, or one for each that has any.

    Args:
        tables: a `Dirichlet` of every row of every table, or `{variable: Dirichlet}`; of tied tables the variable that
            has it is named. A concentration of shape `[*categories of the parents, C]` tells the entries apart.

    Raises:
        ValueError: (in a fit) a name that has no table of its own.

    >>> import jaxem as jem
    >>> model = jem.BayesNet({"a": [], "b": ["a"]}, {"a": [0.5, 0.5], "b": [[0.5, 0.5], [1.0, 0.0]]})
    >>> prior = jem.priors.OfBayesNet({"b": jem.priors.Dirichlet(2.0)})
    >>> [counts.tolist() for counts in prior.statistics(model, None, None)]
    [[0.0, 0.0], [[1.0, 1.0], [1.0, 0.0]]]
    """

    tables: Any

    def statistics(self, model: Any, x: Any, weight: Any) -> tuple[Array, ...]:
        """Pseudo-counts of every table, none where a probability is zero for good."""
        named = self.tables if isinstance(self.tables, dict) else dict.fromkeys(model.owners, self.tables)
        for name in named:
            if name not in model.owners:
                raise ValueError(f"OfBayesNet: {name!r} has no table of its own; {', '.join(model.owners)} have")
        owned = zip(model.owners, model.tables, strict=True)
        return tuple(_pseudo_counts(named.get(name), table.probs) for name, table in owned)


def _pseudo_counts(prior: Any, probability: Array) -> Array:
    """What a Dirichlet adds to counts: nothing where a probability is zero for good."""
    if prior is None:
        return jnp.zeros_like(probability)
    return jnp.where(probability > 0, _like(prior.concentration, probability) - 1, 0)


def _of_child(prior: Any, model: Any, x: Any, weight: Any) -> Statistics:
    x = model.observe(x)
    data, weight = model.child_data(x), model.child_weight(x, weight)
    if prior is None:
        return jax.tree.map(jnp.zeros_like, model.child.floor(data, weight))
    return prior.statistics(model.child, data, weight)


@module
class Weak:
    """A weak prior scaled to the data: each component has seen `rows` more rows, typical of all the data together.

    It keeps components from collapsing onto ties and moves nothing that the data have an opinion on. For Gaussians
    the pseudo-rows speak about the spread, made narrower by the number of components, K^(-2/D), and about the mean
    a hundredth as strongly (after Fraley and Raftery 2007); for counts and categories they are worth `rows` rows.

    Args:
        rows: what it is worth, in rows for each component.

    Raises:
        ValueError: a negative number of rows.

    >>> import jaxem as jem
    >>> jem.priors.Weak(1.0).rows
    1.0
    """

    rows: Any = 1.0

    def __post_init__(self) -> None:
        _above("Weak", 0, rows=self.rows)

    def statistics(self, model: Any, x: Any, weight: Array) -> LatentStatistics:
        """Pseudo-rows like all of the data, for each component."""
        if not hasattr(model, "child"):
            raise ValueError("Weak: it is a prior of mixtures; for a single family use PseudoRows")
        components, x = model.child, model.observe(x)
        data, weight = model.child_data(x), model.child_weight(x, weight)
        pooled = _pooled(components, data, weight)
        nothing = jax.tree.map(jnp.zeros_like, model.potentials())
        return LatentStatistics(nothing, scale(pooled.unit_prior(model.states, data, weight), self.rows))


SETTLED = 1e-8
"""Nats a row: with less than this to gain, one model of all data together has settled."""


def _pooled(members: Any, x: Any, weight: Array) -> Any:
    """Members that have each been fitted to all rows: by one M-step, or by many where a family hides something.

    Wherever they set out from they end in one place: or every start would have a prior of its own.
    """
    everywhere = jnp.broadcast_to(weight, (*members.batch_shape, len(weight)))
    return _settled(members, x, everywhere, members.floor(x, weight))


def _stepped(members: Any, x: Any, weight: Array, floor: Statistics) -> tuple[Any, Array]:
    """Members after a step of EM each, and their log-likelihood before it."""
    log_prob, pullback = members.e_step(x)
    value = jnp.sum(jnp.where(weight > 0, weight * log_prob, 0))
    return members.m_step(add(pullback(weight), floor)), value


@jax.custom_jvp
def _settled(members: Any, x: Any, weight: Array, floor: Statistics) -> Any:
    little = SETTLED * jnp.sum(weight)

    def goes_on(state: tuple[Any, Array, Array, Array]) -> Array:
        return (state[3] < 100) & ~(state[2] <= little)

    def step(state: tuple[Any, Array, Array, Array]) -> tuple[Any, Array, Array, Array]:
        new, value = _stepped(state[0], x, weight, floor)
        return new, value, value - state[1], state[3] + 1

    never = jnp.full((), jnp.inf, weight.dtype)
    return jax.lax.while_loop(goes_on, step, (members, -never, never, jnp.zeros((), jnp.int32)))[0]


@_settled.defjvp
def _settled_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """Of the last step alone."""
    settled = _settled(*primals)

    def last(x: Any, weight: Array, floor: Statistics) -> Any:
        return _stepped(settled, x, weight, floor)[0]

    return settled, jax.jvp(last, primals[1:], tangents[1:])[1]
