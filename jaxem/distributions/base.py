"""The interface of all models: `Distribution`, and `Family` for what a new family has to write."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxem.core import linalg
from jaxem.core.arguments import as_key, said_of, whole
from jaxem.core.compilation import program, size
from jaxem.core.constraints import check_parameters, held, parameters, simplex, told
from jaxem.core.pytree import module, replace
from jaxem.data.arrays import float_type, numbers
from jaxem.data.missing import Incomplete, cells, incomplete, unseen_rows
from jaxem.data.prepare import as_floats
from jaxem.distributions.constrained_m_step import constrained
from jaxem.distributions.cumulative import Columnwise, Tails, one_column
from jaxem.distributions.statistics import quantiles
from jaxem.distributions.statistics.base import Statistics, add, scale
from jaxem.distributions.statistics.base import over_parts as over_parts
from jaxem.distributions.support import FINITE, Support

Pullback = Callable[[Array], Statistics]


@module
class Rows:
    """Data as the models read it: rows on the last axis, with whatever does not depend on parameters done once.

    Attributes:
        columns: a pytree of arrays, each with the rows on its last axis. Its structure belongs to the family.
        seen: `[n]` bool, False for rows of which nothing was seen; None if the columns know what was not.
    """

    columns: Any
    seen: Array | None = None

    def mask_log_prob(self, log_density: Array) -> Array:
        """Log-densities; zero for rows of which nothing was seen."""
        return log_density if self.seen is None else jnp.where(linalg.lead(self.seen, log_density.ndim), log_density, 0)

    def mask_weight(self, weight: Array) -> Array:
        """Weights; zero for rows of which nothing was seen."""
        return weight if self.seen is None else jnp.where(linalg.lead(self.seen, weight.ndim), weight, 0)


@module
class Labelled:
    """Data of which some hidden states are known.

    Attributes:
        x: the data, as any model takes it.
        labels: `[n]` integers: the component (or state) of each row, -1 where it is not known.
    """

    x: Any
    labels: Array


class Distribution:
    """A model with a likelihood; `batch_shape` counts the members stacked in one object.

    What every model offers (`...` are the members, from `batch_shape`; `n` the rows, always last):

    - `log_prob(x)`: `[..., n]`, log p(x_i | member), in nats;
    - `e_step(x)`: `(log_prob, pullback)`, where `pullback(weight [..., n])` gives the expected statistics;
    - `m_step(statistics)`: the model that maximises `expected_log_prob(statistics)`;
    - `expected_log_prob(statistics)`: `[...]`, up to a constant that does not depend on the parameters;
    - `sample(key, n)`: `[..., n, *event_shape]`;
    - `read(x)`: what a person passed as arrays, rows first;
    - `observe(x)`: x in the layout of the loops; every method takes either;
    - `expand(x)`: observed x with what is worth making once for several steps, but not worth keeping for longer;
    - `floor(x, weight)`: the statistics that keep an M-step away from the edge of what can be computed.

    The whole library reads as two sentences: `log_prob, pullback = model.e_step(x)` and
    `model = model.m_step(pullback(weight))`.
    """

    batch_shape: Any
    event_shape: Any
    restriction: Any = None
    """What `jaxem.hold` and `jaxem.tie` said of its parameters: a field of every model, None for most."""
    given_held: ClassVar[bool] = False
    """Whether its M-step finds the maximum given whatever parameters are held (`is_held`)."""
    censored: ClassVar[Any] = False
    """Whether rows are intervals: those may say nothing of how large anything is, though they were observed."""
    shards_time: ClassVar[bool] = False
    """Whether the steps of a sequence may lie on several devices."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Let `sample` take a seed for a key, and the M-step keep to what is held and tied."""
        super().__init_subclass__(**options)
        if "m_step" in cls.__dict__:
            cls.m_step = constrained(cls.__dict__["m_step"])  # type: ignore[method-assign]
        if "sample" in cls.__dict__:
            cls.sample = _seeded(cls.__dict__["sample"])

    @property
    def separable(self) -> bool:
        """Whether Q falls into one part for each own parameter, and for each entry of it (but for their sum).

        Then the maximum is not moved by what is held elsewhere.
        """
        own = [each for each in parameters(self).values() if each is not held]
        return len(own) == 1 and (own[0].event_ndim == 0 or own[0] is simplex)

    @property
    def states(self) -> Array | int:
        """The number of hidden states in use; one where nothing is hidden."""
        return 1

    @property
    def work_per_row(self) -> int:
        """Numbers in the posterior of one row, or of one step of a sequence."""
        return 1

    def in_use(self, used: Array) -> dict[str, Any]:
        """The members of each field that any row can come from, where that differs from `used` (`[*batch_shape]` bool).

        By the name of the field, an array of bools as its members are; for a field that holds several models, a tuple
        of one for each. What can never be used has no free parameters.
        """
        return {}

    def read(self, x: Any) -> Any:
        """Rows as floats of the model's type."""
        return as_floats(x, type_of(self))

    def observe(self, x: Any) -> Any:
        raise NotImplementedError

    def observations(self, x: Any, weight: Array) -> Array:
        """The number of observations: the sum of the weights of all rows."""
        return jnp.sum(weight)

    def bounded(self, x: Any, weight: Array) -> Array | bool:
        """Whether the likelihood of these rows has a maximum, as far as their censoring tells."""
        return True

    def expand(self, x: Any) -> Any:
        """Observed data prepared for several steps; unchanged unless the model has something to prepare."""
        return x

    def log_prob(self, x: Any) -> Array:
        raise NotImplementedError

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        raise NotImplementedError

    def m_step(self, statistics: Statistics) -> Self:
        raise NotImplementedError

    def expected_log_prob(self, statistics: Statistics) -> Array:
        raise NotImplementedError

    def sample(self, key: Array, n: int) -> Array:
        raise NotImplementedError

    def floor(self, x: Any, weight: Array) -> Statistics:
        raise NotImplementedError

    def is_degenerate(self, floor: Statistics) -> Array:
        """Whether each member has shrunk to where only `floor` holds it up, `[...]` bool."""
        raise NotImplementedError

    def roundings(self, pseudo: Statistics) -> Array | float:
        """The error of the log-probability of a row, in units of rounding: it is a sum over columns.

        `pseudo` are the statistics that every M-step adds: they know the scale of the data.
        """
        return max((1, *self.event_shape))

    def has_empty_component(self, rows: Array) -> Array:
        """Whether a hidden state has lost (nearly) all of the `rows`, `[...]` bool; False without hidden states."""
        return jnp.zeros(self.batch_shape, bool)

    def coincides(self) -> Array:
        """Whether two hidden states in use are the same, or a factor moves nothing, `[...]` bool: EM stays there."""
        return jnp.zeros(self.batch_shape, bool)

    def inside(self, x: Any) -> Array:
        """Whether each row is a value that this model can produce, `[n]` bool."""
        raise NotImplementedError

    def check(self, x: Any, weight: Array, alone: bool) -> None:
        """Raise ValueError for rows to which no fit can succeed. Most families accept all.

        Args:
            x: rows, as `fit` has made them ready.
            weight: `[n]`.
            alone: whether nothing else speaks: there is no prior, and these are all rows.
        """

    def impute(self, x: Any, key: Any = None) -> Any:
        """Rows with their gaps (NaN) filled; what was seen stays as it is.

        Args:
            x: rows, as `log_prob` takes them.
            key: a JAX random key or a seed, to fill gaps with draws from p(missing | seen); without one they are filled
                with the mean of that, or with the most probable category.

        Raises:
            ValueError: the model is a batch of several.

        >>> import jax.numpy as jnp, jaxem as jem
        >>> model = jem.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
        >>> model.impute([[2.0, jnp.nan]]).tolist()
        [[2.0, 1.0]]
        """
        if self.batch_shape:
            raise ValueError(f"impute needs one model; this is a batch of shape {self.batch_shape}")
        x, key = incomplete(self.read(x)), None if key is None else as_key(key)
        return _impute(self, x, key) if isinstance(x, Incomplete) else x

    def sample_like(self, key: Any, x: Any) -> Any:
        """Rows drawn from the model that are otherwise like those of x.

        As many of them, and sequences as long; with the inputs of x, where the model does not say how those are
        distributed; with cells missing where they are in x; and, where x is censored, with times of the end of watch
        drawn like those of x.

        Args:
            key: a JAX random key or a seed.
            x: rows or sequences, as `log_prob` takes them.

        Raises:
            ValueError: the model is a batch of several.

        >>> import jaxem as jem
        >>> line = jem.LinearRegression([2.0], 1.0, 1e-12)
        >>> line.sample_like(0, [[3.0, 0.0], [4.0, float("nan")]]).values.round(3).tolist()
        [[3.0, 7.0], [4.0, nan]]
        """
        if self.batch_shape:
            raise ValueError(f"sample_like needs one model; this is a batch of shape {self.batch_shape}")
        x = self.read(x)
        x = x if hasattr(x, "length") else incomplete(x)
        return _sample_like(self, as_key(key), x)

    def rows_like(self, key: Array, x: Any) -> Array:
        """`[*batch_shape, n, *event_shape]`: a draw from each member for each row of x, whose gaps are not looked at.

        Args:
            x: `[n, *event_shape]` values; or, for models of sequences, `Sequences`.
        """
        return self.sample(key, len(x), *((x.steps,) if hasattr(x, "length") else ()))

    def expected_rows(self, x: Any, weight: Array) -> Array:
        """The sum over members of weight `[..., n]` x E[x_i | what was seen of it, member], `[n, *event_shape]`."""
        raise NotImplementedError(f"{type(self).__name__} cannot impute")

    def drawn_rows(self, key: Array, x: Any, n: int) -> Array:
        """A draw of each row from each member, given what was seen of it, `[..., n, *event_shape]`."""
        raise NotImplementedError(f"{type(self).__name__} cannot impute")


@jax.jit
def _sample_like(model: Distribution, key: Array, x: Any) -> Any:
    values = getattr(x, "values", x)
    drawn = jnp.where(jnp.isnan(values), values, model.rows_like(key, x if hasattr(x, "length") else values))
    return drawn if values is x else replace(x, values=drawn)


def _seeded(sample: Callable[..., Any]) -> Callable[..., Any]:
    """`sample(self, key, n, ...)` with an integer seed allowed for the key, and both arguments checked."""

    @functools.wraps(sample)
    def seeded(self: Any, key: Any, n: Any, *given: Any, **named: Any) -> Any:
        return sample(self, as_key(key), whole(n, "n", 0), *given, **named)

    return seeded


def check_model(model: Any, x: Any = None, name: str = "model") -> None:
    """Raise TypeError unless `model` is a model, and the data x are not one."""
    if isinstance(model, Distribution):
        if isinstance(x, Distribution):
            raise TypeError(f"x is a {type(x).__name__}, a model like the first argument; it must be the data")
        return
    if isinstance(x, Distribution):
        raise TypeError(
            f"{name} is {said_of(model)} and x a {type(x).__name__}; pass the model first, and then the data"
        )
    if isinstance(model, type) and issubclass(model, Distribution):
        raise TypeError(
            f"{name} is the class {model.__name__}; it must be a model, whose parameters say where to start: one that "
            f"you make of the class, or of the data by jem.Mixture.start"
        )
    if hasattr(model, "model"):
        raise TypeError(f"{name} is {said_of(model)}; pass the model in it, .model")
    raise TypeError(f"{name} is {said_of(model)}; it must be a model such as a jem.Mixture")


@jax.jit
def _impute(model: Distribution, x: Incomplete, key: Array | None) -> Array:
    values, n = x.values, len(x)
    rows = model.observe(x)
    filled = model.expected_rows(rows, jnp.ones(n, values.dtype)) if key is None else model.drawn_rows(key, rows, n)
    return jnp.where(jnp.isnan(values), filled.reshape(values.shape), values)


class Family(Distribution):
    """A family of densities with a closed-form (or short) maximum-likelihood fit.

    What you write, for parameters whose leading axes are the members `...`:

    - fields, each with its constraint: `rate: Array = parameter(positive)`;
    - `event_shape`: `()` for a number in each row, `(D,)` for D columns;
    - `log_density(columns)`: `[..., n]`;
    - `statistics(x, weight)`: the sufficient statistics, summed over rows with `weight [..., n]`;
    - `expected_log_prob(statistics)`, `m_step(statistics)`;
    - `expected_statistics()`: the mean statistics of one row drawn from each member;
    - `sample(key, n)`;
    - unless its parameters are numbers, `initial_members(row, members)`: any valid ones, from which `start` sets out;
    - `scalar = False` if a row is a vector;
    - if not every number is possible: `support`, a `jem.Support`; `centre()`, its mean row, for `impute`;
    - if some of the work on x can be done once: `columns(x)`, and then `contains(columns)`;
    - for `cdf` and residuals: `tails(x)`, and `discrete = True` if rows are whole numbers.

    What you get: a place in every `Mixture` and `Product`; `e_step`; `fit`, `fit_many`, restarts, weights, labels,
    priors; missing rows (whole ones; any cell, if the family is an `AnyCell`); starts; checks of
    arguments; saving and loading; the command line; the laws as tests.
    """

    support: ClassVar[Support] = FINITE
    scalar: ClassVar[bool] = True
    discrete: ClassVar[bool] = False
    """Whether rows are whole numbers, each with a probability of its own."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the support: a name alone belongs to a family that writes `contains` itself."""
        super().__init_subclass__(**options)
        if isinstance(name := cls.__dict__.get("support"), str):
            cls.support = dataclasses.replace(FINITE, name=name)
        if "harmless" in cls.__dict__:
            raise TypeError(f"{cls.__name__}.harmless: say it as support = jem.Support(name, contains, example)")

    def __post_init__(self) -> None:
        convert_parameters(self)
        check_parameters(self)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the members, `()` for one."""
        name, constraint = next(iter(parameters(self).items()))
        value = getattr(self, name)
        return value.shape[: value.ndim - constraint.event_ndim]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a row: `()` for one number, `(D,)` for D of them."""
        return ()

    def columns(self, x: Array) -> PyTree:
        return jnp.swapaxes(x, -1, -2) if self.event_shape else x

    def contains(self, columns: Any) -> Array:
        holds = self.support.holds(columns if isinstance(columns, jax.Array) else jax.tree.leaves(columns)[0])
        return jnp.all(holds, axis=-2) if self.event_shape else holds

    def log_density(self, columns: Any) -> Array:
        raise NotImplementedError

    def statistics(self, x: Any, weight: Array) -> Statistics:
        raise NotImplementedError

    def expected_statistics(self) -> Statistics:
        raise NotImplementedError

    def observe(self, x: Any) -> Rows:
        """Observed data: `x` (`[n]` or `[n, D]`) as floats, rows last, with parameter-free work done."""
        if isinstance(x, Rows):
            return x
        x = incomplete(self.read(x))
        values = as_rows(cells(x), self.event_shape, type_of(self))
        return _observed(self, replace(x, values=values) if isinstance(x, Incomplete) else values)

    def observe_incomplete(self, x: Incomplete) -> Rows:
        """Observed data of which some rows are missing; an example of the support stands in their place."""
        unseen = unseen_rows(x)
        example = jnp.broadcast_to(jnp.asarray(self.support.example, x.values.dtype), self.event_shape)
        values = jnp.where(unseen.reshape(-1, *(1 for _ in self.event_shape)), example[None], x.values)
        return Rows(self.columns(values), ~unseen)

    def check(self, x: Any, weight: Array, alone: bool) -> None:
        """Raise ValueError for a row of which a part is missing, if the family reads whole rows."""
        if (
            not isinstance(x, Incomplete)
            or not self.event_shape
            or type(self).observe_incomplete is not Family.observe_incomplete
        ):
            return
        partly = jnp.isnan(x.values).any(axis=1) & ~unseen_rows(x)
        if partly.any():
            raise ValueError(
                f"x has missing cells in row {int(jnp.argmax(partly))}; {type(self).__name__} reads rows that are "
                "whole or missing altogether: leave such rows out, or use a Gaussian family"
            )

    def log_prob(self, x: Any) -> Float[Array, "*batch n"]:
        """log p(x_i | member), `[*batch_shape, n]`, in nats; -inf for a value outside the support.

        NaN for parameters that are none (a negative variance), as a step along a raw gradient may leave them.

        Args:
            x: `[n]` for a family of numbers, `[n, D]` for one of vectors.

        Raises:
            ValueError: the columns of x are not the family's.
        """
        return _log_prob(self, self.observe(x))

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        """`(log_prob, pullback)`; `pullback(weight)` sums the sufficient statistics with that weight."""
        rows = self.expand(self.observe(x))
        log_prob = rows.mask_log_prob(self.log_density(rows.columns))
        return log_prob, lambda weight: self.statistics(rows, rows.mask_weight(weight))

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        """Members with valid parameters, not far from `row`.

        Unless a family says it better: parameters that are numbers are zero in coordinates (0 of the real ones, 1 of
        those above zero, 1/2 of those between zero and one).
        """
        wanted, values = parameters(cls), {}
        for name, constraint in wanted.items():
            if constraint.event_ndim or constraint.bijector is None:
                raise NotImplementedError(
                    f"{cls.__name__}.initial_members: {name} is a {constraint.name}; write a class method "
                    "initial_members(row, members) that gives any valid parameters"
                )
            half = jnp.full(members, 0.5, row.dtype)  # on the edge of no constraint
            values[name] = constraint.bijector.values(jnp.zeros_like(half), half)
        others = {field.name: sizes[field.name] for field in dataclasses.fields(cls) if field.name in sizes}  # type: ignore[arg-type]
        return cls(**values, **others)

    @classmethod
    def told(cls, values: np.ndarray) -> dict[str, int]:
        """Sizes read off the rows (`[n]`, without NaN), for those that `start` is not given."""
        return {}

    @classmethod
    def start(cls, x: Any, weight: Float[Array, "*batch n"], **sizes: int) -> Self:
        """Members fitted to weighted rows, from nothing.

        Args:
            x: `[n]` or `[n, D]` rows.
            weight: `[..., n]`: a member for each leading index. Each sees a tenth of a row more, typical of all rows
                together; a member without rows is just that. Rows outside the support are ignored.
            sizes: what the rows alone do not tell (`total_count`, `categories`).
        """
        columns = np.shape(x)[1:] if np.ndim(x) > 1 or not cls.scalar else ()
        x = as_rows(x, columns or (() if cls.scalar else (1,)), weight.dtype)
        everything = weight.reshape(-1, weight.shape[-1]).sum(0)
        inside = cls.initial_members(x[jnp.argmax(everything)], (), **sizes).inside(x)
        everything, weight = jnp.where(inside, everything, 0), jnp.where(linalg.lead(inside, weight.ndim), weight, 0)
        typical = x[jnp.argmax(everything)]
        x = jnp.where(inside.reshape(-1, *(1 for _ in typical.shape)), x, typical[None])
        model = cls.initial_members(typical, weight.shape[:-1], **sizes)
        rows, floor = model.observe(x), model.floor(x, everything)
        pooled, last = jnp.broadcast_to(everything, weight.shape), 2

        def look(time: Array, model: Self) -> Self:
            # Twice at all rows: the second M-step measures the spread from the mean that the first one found. Then a
            # tenth of a row like all the others together: a probability of zero is a place that EM cannot leave.
            share = jnp.where(time == last, jnp.asarray(0.1, weight.dtype), 0)
            statistics = model.e_step(rows)[1](jnp.where(time == last, weight, pooled))
            return model.m_step(add(statistics, add(floor, scale(model.unit_prior(1, rows, everything), share))))

        return jax.lax.fori_loop(0, last + 1, look, model)

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Statistics:
        """The statistics of one row of a weak prior for each of `members` components, scaled to all data together.

        Args:
            members: how many share the data.
            x: the rows to which this was fitted: what is given and not modelled (the inputs of a regression) is theirs.
            weight: `[n]`.
        """
        return self.expected_statistics()

    @classmethod
    def seeding_features(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n d"]:
        """Rows as points between which a distance means something: columns from their median, in units of spread."""
        columns = jnp.atleast_2d(x.T)
        (middle,) = quantiles.quantiles(columns, weight, (0.5,))
        return ((columns - middle[:, None]) / quantiles.scale(columns, weight)[:, None]).T

    def floor(self, x: Any, weight: Array) -> Statistics:
        """Statistics that keep the M-step total: none for most families."""
        return jax.tree.map(jnp.zeros_like, self.expected_statistics())

    def is_degenerate(self, floor: Statistics) -> Array:
        """Whether each member has collapsed: False for most families, which cannot."""
        return jnp.zeros(self.batch_shape, bool)

    def centre(self) -> Array:
        """The mean of a row of each member, `[..., *event_shape]`."""
        raise NotImplementedError(f"{type(self).__name__} does not say the mean of a row, so it cannot impute")

    def expected_rows(self, x: Any, weight: Array) -> Array:
        """Each member's mean, for rows that are missing altogether."""
        return jnp.einsum("kn,k...->n...", *flat_members(weight, self.centre()), precision=linalg.HIGHEST)

    def drawn_rows(self, key: Array, x: Any, n: int) -> Array:
        return self.sample(key, n)

    def cdf(self, x: Any) -> Float[Array, "*batch n"]:
        """P(X <= x_i | member), `[*batch_shape, n]`; NaN where x is.

        Of a family of vectors `[*batch_shape, n, D]`: each column by itself, given those before it (Rosenblatt 1952,
        Annals of Mathematical Statistics 23:470). Of a regression that of the response, given the inputs; of censored
        rows that of the upper end.

        Args:
            x: `[n]` for a family of numbers, `[n, D]` for one of vectors; numbers of any size.

        Raises:
            NotImplementedError: a family without a distribution function in closed form.
            ValueError: the columns of x are not the family's.

        >>> import jaxem as jem
        >>> [[round(float(p), 4) for p in row] for row in jem.Poisson([1.0, 4.0]).cdf([2, -1])]
        [[0.9197, 0.0], [0.2381, 0.0]]
        """
        return _cdf(self, as_rows(cells(self.read(x)), self.event_shape, type_of(self)))

    def tails(self, x: Array) -> Tails:
        """P(X <= x_i) and P(X > x_i) of a family of numbers, each `[..., n]` and to all digits: what `cdf` needs."""
        raise NotImplementedError(
            f"{type(self).__name__} has no distribution function here; write tails(x), which gives P(X <= x), P(X > x)"
        )

    def tails_before(self, x: Array) -> Tails:
        """P(X < x_i) and P(X >= x_i)."""
        return self.tails(jnp.ceil(x) - 1 if self.discrete else x)

    def columnwise(self, x: Array) -> Columnwise:
        """What each column says, given those before it."""
        if self.event_shape:
            raise NotImplementedError(
                f"{type(self).__name__} has no distribution function of a column, given those before it, in closed form"
            )
        return one_column(self, x)

    def inside(self, x: Any) -> Array:
        """Whether this family can produce each row (see `support`), `[n]` bool."""
        rows = self.observe(x)
        inside = self.contains(rows.columns)
        return inside if rows.seen is None else inside | ~rows.seen


def work(model: Any, x: Any, *given: Any, **named: Any) -> float:
    """Numbers that one pass over x computes, for `jaxem.core.compilation`: times ten, because it compiles little."""
    return 10.0 * size(x) * model.work_per_row * math.prod(model.batch_shape)


@partial(jax.jit, inline=True)
def _observed(family: Family, x: Array | Incomplete) -> Rows:
    """The observed data, as one program."""
    return family.observe_incomplete(x) if isinstance(x, Incomplete) else Rows(family.columns(x))


@program(work)
def _cdf(family: Family, x: Array) -> Array:
    below = family.columnwise(x).at.below
    return jnp.swapaxes(below, -1, -2) if below.shape[-2:-1] == family.event_shape else below[..., 0, :]


@program(work)
def _log_prob(family: Family, rows: Rows) -> Array:
    """Log-probabilities as one program, not one for each operation: a user waits for one compilation."""
    return told(family, family.e_step(rows)[0])


def type_of(model: Any) -> np.dtype:
    """The type of a model's floats: that of its parameters, all of which have one; JAX's default if it has none."""
    types = _types_of(model)
    return np.result_type(*types) if types else np.dtype(jnp.result_type(float))


def _types_of(model: Any) -> set[np.dtype]:
    return {leaf.dtype for leaf in jax.tree.leaves(model) if hasattr(leaf, "dtype") and is_float(leaf)}


def convert_parameters(node: Any) -> None:
    """Convert parameters (lists, numbers, integer arrays) to float arrays of one type, those of models included.

    A list takes the type of the arrays beside it, or the default float; of arrays of several types the widest counts,
    so that no digit is lost.
    """
    given = {name: getattr(node, name) for name in parameters(node)}
    arrays = {name: jnp.asarray(value) for name, value in given.items()}
    others = [f.name for f in dataclasses.fields(node) if f.name not in given and not f.metadata.get("static")]
    models = {name: getattr(node, name) for name in others if _holds_models(getattr(node, name))}
    types = [
        float_type(array.dtype) for name, array in arrays.items() if hasattr(given[name], "dtype") and is_float(array)
    ]
    types += [dtype for model in models.values() for dtype in _types_of(model)]
    dtype = np.result_type(*types) if types else jnp.result_type(float)
    for name, array in arrays.items():
        object.__setattr__(node, name, array.astype(dtype))
    for name, model in models.items():
        if _types_of(model) - {dtype}:
            widened = jax.tree.map(lambda leaf: leaf.astype(dtype) if is_float(leaf) else leaf, model)
            object.__setattr__(node, name, widened)


def _holds_models(value: Any) -> bool:
    """Whether it is a model, or several."""
    parts = jax.tree.leaves(value, is_leaf=is_model)
    return bool(parts) and all(is_model(part) for part in parts)


def is_float(array: Any) -> bool:
    """Whether this is an array of floating-point numbers."""
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def as_rows(x: Any, event_shape: tuple[int, ...], dtype: Any) -> Array:
    """`x` as floats of `dtype`, `[n]` or `[n, D]`; a single column may be given either way.

    Raises:
        TypeError: x does not hold numbers.
        ValueError: x has the wrong number of axes or columns.
    """
    x = numbers(x)
    if x.ndim == 1 and event_shape == (1,):
        x = x[:, None]
    if x.ndim == 2 and event_shape == () and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 1 + len(event_shape) or x.shape[1:] != event_shape:
        wanted = "[n]" if not event_shape else f"[n, {event_shape[0]}]"
        hint = "; for several independent columns use Independent or Product" if event_shape == () else ""
        if x.ndim > 2:
            hint = ": join the rows of several problems into one table, or fit each problem with fit_many"
        raise ValueError(f"x has shape {x.shape}; this model reads rows of shape {wanted}{hint}")
    return jnp.asarray(x, dtype)


def flat_members(weight: Float[Array, "*batch n"], *values: Array) -> tuple[Array, ...]:
    """Arrays whose leading axes are those of the members, with one axis for all members."""
    members = weight.ndim - 1
    return tuple(array.reshape(-1, *array.shape[members:]) for array in (weight, *values))


def is_model(node: Any) -> bool:
    """Whether this is a model (and not an array, or a pytree of arrays)."""
    return isinstance(node, Distribution) and dataclasses.is_dataclass(node)
