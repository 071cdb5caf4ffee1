"""Priors in ordinary words, turned into pseudo-statistics: rows that are counted as if they had been seen.

A conjugate prior is a statistics pytree. It is added before every M-step, and its expected log-probability is added
to the objective, so that EM climbs the log-posterior (up to a constant) and every solver climbs the same. Each prior
here has one verb, `statistics(model, x, weight)`; `fit` and `fit_many` call it, the latter for each problem by itself.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxem.core.arguments import said_of
from jaxem.core.constraints import parameters, simplex
from jaxem.core.pytree import module, replace
from jaxem.distributions.base import Statistics, add, is_model, scale
from jaxem.distributions.bernoulli import Trials
from jaxem.distributions.poisson import Arrivals
from jaxem.distributions.statistics.moments import Moments
from jaxem.latent.base import Latent, LatentStatistics
from jaxem.latent.bayesnet import BayesNet
from jaxem.latent.state_space import LinearGaussianSSM, StateSpaceStatistics


def _above(name: str, least: float, **values: Any) -> None:
    for argument, value in values.items():
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) >= least):
            raise ValueError(f"{name}: {argument} is {value}; it must be at least {least:g}")


def _like(value: Any, array: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, array.dtype), array.shape)


@module
class Dirichlet:
    """A Dirichlet prior of the probabilities of a `Categorical`, or the weights of a `Mixture`.

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
    """A beta prior of the probability of a `Bernoulli` or `Binomial`.

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
    """A gamma prior of the rate of a `Poisson`.

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
    """A normal-inverse-Wishart prior of the mean and covariance of a Gaussian of any kind.

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
    """A Gaussian prior about zero of the coefficients of a regression; the intercept is left free.

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
    """A prior of pseudo-rows: `rows` more for each member, with the expected statistics of draws from `like`.

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
class Structured:
    """A prior of a model made of parts: one for each of its fields, by the field's own name.

    | model | fields |
    |---|---|
    | `Mixture`, `RBFNetwork` | `weights` (a `Dirichlet`), `components` |
    | `HMM` | `initial`, `transition` (a `Dirichlet` each), `emission` |
    | `MixtureOfExperts` | `gate` and `experts` (a `Ridge` or another prior of either) |
    | `BayesNet` | `tables` (a `Dirichlet` of all, or `{variable: Dirichlet}`) |
    | `LinearGaussianSSM` | `transition`, `emission` (a `Ridge` each, in units of the noise) |
    | `Product`, `Joint`, `Either` | `parts` (one for each, in a list) |
    | `Independent`, `Censored` | `base` |

    A Dirichlet of a transition may have a concentration of shape `[K, K]`: larger on its diagonal, it makes states
    sticky; one of a table of a network may have shape `[*categories of the parents, C]`. Nothing is counted where a
    probability is zero for good. What is left out, or None, has no prior.

    Args:
        priors: by name of the field. A field that is made of parts itself takes a `Structured` in turn.

    Raises:
        TypeError: priors is no dictionary.
        ValueError: (in a fit) the model has no such field, or a prior of another number of parts.

    >>> import jaxem as jem, jax.numpy as jnp
    >>> model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0]))
    >>> prior = jem.priors.Structured({"weights": jem.priors.Dirichlet(2.0), "components": jem.priors.Gamma(2.0, 1.0)})
    >>> prior.statistics(model, jnp.zeros(1), jnp.ones(1)).counts.tolist()
    [1.0, 1.0]
    >>> model = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Poisson([1.0, 2.0]))
    >>> sticky = jem.priors.Structured({"transition": jem.priors.Dirichlet(1 + 5 * jnp.eye(2))})
    >>> sticky.statistics(model, jnp.zeros(3), jnp.ones(1)).counts[1].tolist()
    [[5.0, 0.0], [0.0, 5.0]]
    """

    priors: Any

    def __post_init__(self) -> None:
        if not isinstance(self.priors, dict):
            raise TypeError(
                f"Structured: priors is {said_of(self.priors)}; it must be a dictionary of priors by the names of the "
                "model's fields"
            )

    def statistics(self, model: Any, x: Any, weight: Any) -> Statistics:
        """The pseudo-statistics of every field."""
        names = _fields(model)
        for name in self.priors:
            if name not in names:
                known = f"it has {', '.join(names)}" if names else "it has no parts, so pass the prior by itself"
                raise ValueError(f"prior: a Structured is no prior of a {kind(model)} where it names {name!r}; {known}")
        given = {name: self.priors.get(name) for name in names}
        if isinstance(model, Latent):
            return _of_latent(given, model, x, weight)
        if isinstance(model, BayesNet):
            return _of_tables(given["tables"], model)
        if isinstance(model, LinearGaussianSSM):
            return _of_state_space(given, model)
        if "base" in names:
            # What a prior says in rows of data of its own is not known of the base: it reads other rows.
            return _of_part(given["base"], model.base, None, weight, model.floor(x, weight))
        return _of_parts(given["parts"], model, x, weight)


def _renamed(old: str, priors: dict[str, Any]) -> Structured:
    keys = ", ".join(f'"{name}": ...' for name in priors)
    warnings.warn(f"priors.{old}(...) is now priors.Structured({{{keys}}})", DeprecationWarning, stacklevel=3)
    return Structured(priors)


def OfMixture(weights: Any = None, components: Any = None) -> Structured:
    """Former name of a `Structured` prior of a mixture."""
    return _renamed("OfMixture", {"weights": weights, "components": components})


def OfHMM(initial: Any = None, transition: Any = None, emission: Any = None) -> Structured:
    """Former name of a `Structured` prior of a hidden Markov model."""
    return _renamed("OfHMM", {"initial": initial, "transition": transition, "emission": emission})


def OfBayesNet(tables: Any) -> Structured:
    """Former name of a `Structured` prior of a Bayesian network."""
    return _renamed("OfBayesNet", {"tables": tables})


def kind(model: Any) -> str:
    """The kind of a model, in words."""
    name = type(model).__name__
    return f"{name} of {kind(model.child)}" if hasattr(model, "child") else name


def _fields(model: Any) -> list[str]:
    """The names of the fields that a prior can be of."""
    if isinstance(model, Latent):
        return [*_simplices(model), *_children(model)]
    if isinstance(model, LinearGaussianSSM):
        return ["transition", "emission"]
    return [name for name in ("tables", "parts", "base") if hasattr(model, name)]


def _simplices(model: Latent) -> list[str]:
    """The own parameters that are counted, in the order of the potentials."""
    return [name for name, constraint in parameters(model).items() if constraint is simplex]


def _children(model: Latent) -> list[str]:
    """The fields that hold models."""
    return [field.name for field in dataclasses.fields(model) if is_model(getattr(model, field.name))]  # type: ignore[arg-type]


def _of_latent(given: dict[str, Any], model: Latent, x: Any, weight: Array) -> LatentStatistics:
    """Pseudo-counts of own parameters, and the statistics of the child."""
    counts = jax.tree.map(jnp.zeros_like, model.potentials())
    if own := _simplices(model):
        values = [_pseudo_counts(given[name], getattr(model, name)) for name in own]
        counts = jax.tree.structure(counts).unflatten(values)
    x = model.observe(x)
    data, weight = model.child_data(x), model.child_weight(x, weight)
    priors = [given[name] for name in _children(model)]
    if len(priors) == 1:
        child = _of_part(priors[0], model.child, data, weight, model.child.floor(data, weight))
    else:
        child = _of_parts(priors, model.child, data, weight)
    return LatentStatistics(counts, child)


def _of_parts(priors: Any, model: Any, x: Any, weight: Array) -> tuple[Statistics, ...]:
    """The statistics of each part of a product, or of what is one thing or another."""
    priors = [None] * len(model.parts) if priors is None else priors
    if not isinstance(priors, (list, tuple)) or len(priors) != len(model.parts):
        raise ValueError(
            f"prior: the parts of a {kind(model)} are {len(model.parts)}; give a list of as many priors, None for none"
        )
    x = model.observe(x)
    rows = [getattr(block, "rows", block) for block in x.columns]  # those of an Either are masked
    each = zip(priors, model.parts, rows, model.floor(x, weight), strict=True)
    return tuple(_of_part(prior, part, block, weight, floor) for prior, part, block, floor in each)


def _of_part(prior: Any, part: Any, x: Any, weight: Array, floor: Statistics) -> Statistics:
    return scale(floor, 0) if prior is None else prior.statistics(part, x, weight)


def _of_tables(given: Any, model: BayesNet) -> tuple[Array, ...]:
    """Pseudo-counts of every table; of tied tables the variable that has it is named."""
    named = given if isinstance(given, dict) else dict.fromkeys(model.owners, given)
    for name in named:
        if name not in model.owners:
            raise ValueError(f"prior: {name!r} has no table of its own; {', '.join(model.owners)} have")
    return tuple(_pseudo_counts(named.get(n), t.probs) for n, t in zip(model.owners, model.tables, strict=True))


def _of_state_space(given: dict[str, Any], model: LinearGaussianSSM) -> StateSpaceStatistics:
    """The penalty -1/2 trace(noise^-1 A strength A^T) of coefficients A of either regression; biases are free."""
    nothing = jax.tree.map(jnp.zeros_like, model.expected_statistics())
    strengths = {}
    for name, size in (("transition", model.transition.shape[-1]), ("emission", model.emission.shape[-1])):
        regression = getattr(nothing, name)
        strength = 0 if given[name] is None else given[name].strength
        strength = jnp.broadcast_to(jnp.asarray(strength, regression.features.dtype), (size,))
        features = jnp.diag(jnp.pad(strength, (0, regression.features.shape[-1] - size)))
        features = jnp.broadcast_to(features, regression.features.shape)
        strengths[name] = replace(regression, features=features)
    return replace(nothing, **strengths)


def _pseudo_counts(prior: Any, probability: Array) -> Array:
    """The pseudo-counts of a Dirichlet: none where a probability is a structural zero."""
    if prior is None:
        return jnp.zeros_like(probability)
    return jnp.where(probability > 0, _like(prior.concentration, probability) - 1, 0)


@module
class Weak:
    """A weak prior scaled to the data: `rows` pseudo-rows for each component, typical of all the data together.

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
    """The derivative of the last step alone."""
    settled = _settled(*primals)

    def last(x: Any, weight: Array, floor: Statistics) -> Any:
        return _stepped(settled, x, weight, floor)[0]

    return settled, jax.jvp(last, primals[1:], tangents[1:])[1]
