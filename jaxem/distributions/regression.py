"""Regressions: a response given inputs. A row is the inputs and then the response, and only the response is modelled.

As families they take a place anywhere: in a `Mixture` (mixtures of regressions), as the emission of an `HMM` (Markov
switching regression; with `lagged` rows an autoregressive hidden Markov model), as experts.
"""

from __future__ import annotations

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive, real, vector
from jaxem.core.double_double import line
from jaxem.core.linalg import matmul
from jaxem.core.pytree import module, replace
from jaxem.data.missing import Incomplete, cells
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family, Rows, Statistics
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import quantiles
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.design_matrix import Design, design, shared
from jaxem.distributions.statistics.moments import has_weight, resolution

DEPENDENT = {False: 1e-10, True: 1e-5}
"""Inputs of which some combination, each in units of its spread, is this small: if they are float32, or not."""


@module
class Table:
    """Rows of a regression.

    Attributes:
        response: `[n]`, NaN where a row is impossible.
        design: the inputs.
    """

    response: Float[Array, "n"]
    design: Design


class Regression(Family):
    """Common parts of all regressions: `coefficients` `[..., P]`, an `intercept` `[...]`, and rows of P + 1 columns."""

    scalar = False
    coefficients: Array
    intercept: Array

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        for field in ("intercept", "variance"):
            value = getattr(self, field, None)
            if value is not None and value.shape != self.coefficients.shape[:-1]:
                raise ValueError(
                    f"{name}: {field} has shape {value.shape}; with coefficients of shape {self.coefficients.shape} it "
                    f"must be {self.coefficients.shape[:-1]}"
                )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.coefficients.shape[-1] + 1,)

    def columns(self, x: Float[Array, "n d"]) -> Table:
        possible = jnp.all(jnp.isfinite(x), axis=1) & self._possible(x[:, -1])
        return Table(jnp.where(possible, x[:, -1], jnp.nan), design(x[:, :-1], possible))

    def _possible(self, response: Array) -> Array:
        return jnp.isfinite(response)

    def observe_incomplete(self, x: Incomplete) -> Rows:
        """Observed data of which some responses are missing; of the other rows all inputs must be there."""
        return Rows(self.columns(x.values), ~jnp.isnan(x.values[:, -1]))

    def contains(self, columns: Table) -> Bool[Array, "n"]:
        return jnp.isfinite(columns.response)

    def expand(self, x: Rows) -> Rows:
        """Observed data with the products of the inputs, where there are many."""
        return replace(x, columns=replace(x.columns, design=x.columns.design.expand()))

    def _level(self, centre: Array) -> Float[Array, "*batch"]:
        """The linear predictor at a centre of the inputs."""
        return line(self.intercept, self.coefficients, linalg.lead(centre, self.coefficients.ndim))

    def _with_line(self, level: Array, slopes: Array, centre: Array, some: Array) -> Self:
        """The members with this line; those that have no rows keep theirs."""
        return replace(
            self,
            coefficients=jnp.where(some[..., None], slopes, self.coefficients),
            intercept=jnp.where(some, line(level, slopes, -centre), self.intercept),
        )

    def _predictor(self, table: Table) -> Float[Array, "*batch n"]:
        return table.design.linear(self._level(table.design.centre), self.coefficients)

    def _spread(self, table: Table, weight: Array) -> Float[Array, "q"]:
        """The scale of each input, and of the response."""
        inputs, possible = table.design.inputs + table.design.centre[:, None], self.contains(table)
        response = jnp.where(possible, table.response, 0)
        return quantiles.scale(jnp.concatenate([inputs, response[None]]), jnp.where(possible, weight, 0))

    def _shared(self, x: Any, weight: Array) -> tuple[Table, Float[Array, "n"]]:
        """The rows, and the share that each has of all of them."""
        rows = self.observe(x)
        return rows.columns, shared(rows.mask_weight(jnp.where(self.contains(rows.columns), weight, 0)))

    def moments(self, inputs: Float[Array, "n p"]) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n"]]:
        """The mean and the variance of the response.

        Args:
            inputs: `[n, P]`.
        """
        table = design(inputs, jnp.ones(len(inputs), bool))
        return self._moments(table.linear(self._level(table.centre), self.coefficients))

    def _moments(self, predictor: Array) -> tuple[Array, Array]:
        """The mean and the variance of the response, by its linear predictor."""
        raise NotImplementedError

    def ridge(self, strength: Any) -> Statistics:
        """The statistics that `priors.Ridge` adds."""
        raise NotImplementedError

    def tails_before(self, x: Float[Array, "n d"]) -> cumulative.Tails:
        return self.tails(x.at[:, -1].set(jnp.ceil(x[:, -1]) - 1) if self.discrete else x)

    def columnwise(self, x: Float[Array, "n d"]) -> cumulative.Columnwise:
        """That of the response, given the inputs."""
        return cumulative.one_column(self, x)

    def _predictor_and_response(self, x: Float[Array, "n d"]) -> tuple[Array, Array]:
        possible = jnp.isfinite(x).all(axis=1)
        table = design(jnp.where(possible[:, None], x[:, :-1], 0), possible)
        predictor = table.linear(self._level(table.centre), self.coefficients)
        return predictor, linalg.lead(jnp.where(possible, x[:, -1], jnp.nan), predictor.ndim)

    def sample(self, key: Array, n: int, inputs: Any = None) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, P + 1]`.

        Args:
            key: a JAX random key.
            n: how many.
            inputs: `[n, P]`, or for each member `[*batch_shape, n, P]`; standard normal if left out, because a
                regression does not say where they lie.
        """
        first, second = jax.random.split(key)
        shape = (*self.batch_shape, n, self.coefficients.shape[-1])
        if inputs is None:
            inputs = jax.random.normal(first, shape, self.coefficients.dtype)
        inputs = jnp.broadcast_to(jnp.asarray(inputs, self.coefficients.dtype), shape)
        predictor = self.intercept[..., None] + matmul(inputs, self.coefficients[..., None])[..., 0]
        return jnp.concatenate([inputs, self._draw(second, predictor)[..., None]], axis=-1)

    def rows_like(self, key: Array, x: Float[Array, "n d"]) -> Float[Array, "*batch n d"]:
        """Responses to the inputs of x."""
        return self.sample(key, len(x), x[:, :-1])

    def _draw(self, key: Array, predictor: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        raise NotImplementedError

    def check(self, x: Any, weight: Array, alone: bool) -> None:
        """Raise ValueError, in one line, for a row whose response was seen and an input was not.

        Also if nothing but the rows speaks, and they do not determine the coefficients.
        """
        if isinstance(x, Incomplete):
            partly = jnp.isnan(x.values[:, :-1]).any(axis=1) & ~jnp.isnan(x.values[:, -1]) & (weight > 0)
            if partly.any():
                raise ValueError(
                    f"x has a missing input in row {int(jnp.argmax(partly))}; {type(self).__name__} needs all inputs "
                    "of a row whose response was seen: leave the row out, fill the input, or make its response NaN"
                )
        if alone:
            check(type(self).__name__, cells(x), weight)

    @classmethod
    def start(cls, x: Any, weight: Float[Array, "*batch n"], **sizes: int) -> Self:
        check(cls.__name__, x, weight)
        return super().start(x, weight, **sizes)


def check(name: str, x: Any, weight: Any = None) -> None:
    """Raise ValueError, in one line, if rows do not determine the coefficients of a regression by themselves.

    Values that are not known yet (inside `jit`) cannot be looked at.
    """
    if isinstance(x, Tracer) or isinstance(weight, Tracer) or np.ndim(x) != 2:
        return
    table = np.asarray(x, float)
    there = np.isfinite(table).all(1)
    if weight is not None:
        there &= (np.asarray(weight).reshape(-1, len(table)) > 0).any(0)
    inputs = table[there, :-1]
    rows, size = len(inputs), inputs.shape[1] + 1
    hint = "give a prior, such as priors.Ridge, and a model to start from"
    if rows < size:
        raise ValueError(f"{name}: {rows} rows do not determine {size - 1} coefficients and an intercept; {hint}")
    if rows and size > 1:
        centred = inputs - inputs.mean(0)
        spread = np.sqrt((centred**2).sum(0))
        if (spread <= 1e-12 * np.abs(inputs).max(0)).any():
            column = int(np.argmax(spread <= 1e-12 * np.abs(inputs).max(0)))
            raise ValueError(f"{name}: input {column} is constant, and an intercept is fitted anyway; leave it out")
        if np.linalg.svd(centred / spread, compute_uv=False)[-1] < DEPENDENT[np.asarray(x).dtype == np.float32]:
            raise ValueError(f"{name}: the inputs are linearly dependent (a singular design); leave one out or {hint}")


@module
class Residuals(Referenced):
    """The statistics of a linear regression: weighted sums of products of (1, inputs, residual).

    About a line, because a residual keeps the digits that a response far away, or nearly on the line, would lose.

    Attributes:
        spread_rows: `[...]`, the rows that speak about the variance; a prior may set them apart.
        gram: `[..., P + 2, P + 2]`, sum of w u u^T with u = (1, z - centre, y - level - slopes . (z - centre)).
        level: `[...]`, of the line at the centre.
        slopes: `[..., P]`.
        centre: `[..., P]`.
    """

    sums = ("spread_rows", "gram")

    spread_rows: Array
    gram: Array
    level: Array
    slopes: Array
    centre: Array

    def about(self, level: Array, slopes: Array, centre: Array) -> Self:
        """The statistics of the same rows about another line and centre."""
        shift, size = self.centre - centre, self.slopes.shape[-1]
        eye = jnp.broadcast_to(jnp.eye(size + 2, dtype=shift.dtype), self.gram.shape)
        move = eye.at[..., 1:-1, 0].set(shift)
        move = move.at[..., -1, 0].set(self.level - level - jnp.sum(slopes * shift, axis=-1))
        move = move.at[..., -1, 1:-1].set(self.slopes - slopes)
        gram = matmul(matmul(move, self.gram), linalg.transpose(move))
        return replace(self, gram=gram, level=level, slopes=slopes, centre=centre)

    def size(self, level: Array, slopes: Array) -> Float[Array, "*batch"]:
        """The root mean square of what a line predicts for the rows: `level` at the centre, and its slopes."""
        line = jnp.concatenate([level[..., None], slopes], axis=-1)
        square = jnp.sum(line * matmul(self.gram[..., :-1, :-1], line[..., None])[..., 0], axis=-1)
        rows = self.gram[..., 0, 0]
        some = has_weight(rows)
        return jnp.sqrt(jnp.where(some, jnp.maximum(square, 0) / jnp.where(some, rows, 1), 0))


@family("linear_regression", "linear regression", reads="response", units="each")
class LinearRegression(Regression):
    """Linear regression: a response that is Gaussian about a linear function of the inputs.

    log p(y | z) = -1/2 [(y - intercept - coefficients . z)^2 / variance + log(2 pi variance)]

    Args:
        coefficients: `[..., P]`, in units of y for one of each input.
        intercept: `[...]`, the mean of y where all inputs are zero.
        variance: `[...]`, positive, in squared units of y.

    Raises:
        ValueError: shapes that do not match, or a variance that is not positive.

    >>> import jaxem as jem
    >>> jem.LinearRegression([2.0], 1.0, 1.0).log_prob([[0.0, 1.0], [1.0, 2.0]]).round(4).tolist()
    [-0.9189, -1.4189]
    """

    coefficients: Float[Array, "*batch p"] = parameter(vector)
    intercept: Float[Array, "*batch"] = parameter(real)
    variance: Float[Array, "*batch"] = parameter(positive)

    def _residual(self, columns: Table) -> Float[Array, "*batch n"]:
        seen = jnp.where(jnp.isfinite(columns.response), columns.response, 0)
        return linalg.lead(seen, self.coefficients.ndim) - self._predictor(columns)

    def log_density(self, columns: Table) -> Float[Array, "*batch n"]:
        scaled = self._residual(columns) ** 2 / self.variance[..., None]
        log_prob = -0.5 * (scaled + (math.log(2 * math.pi) + jnp.log(self.variance))[..., None])
        return jnp.where(linalg.lead(self.contains(columns), log_prob.ndim), log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Residuals:
        """Weighted products of (1, inputs, residual), about each member's own line."""
        table = self.observe(x).columns
        residual = self._residual(table)
        along = table.design.sums(weight * residual)
        last = jnp.sum(weight * residual * residual, axis=-1)[..., None]
        above = jnp.concatenate([table.design.gram(weight), along[..., None]], axis=-1)
        gram = jnp.concatenate([above, jnp.concatenate([along, last], axis=-1)[..., None, :]], axis=-2)
        return self._residuals(gram[..., 0, 0], gram, table.design.centre)

    def _residuals(self, spread_rows: Array, gram: Array, centre: Array) -> Residuals:
        """Statistics about the members' own lines."""
        everywhere = jnp.broadcast_to(centre, self.coefficients.shape)
        return Residuals(spread_rows, gram, self._level(centre), self.coefficients, everywhere)

    def expected_statistics(self) -> Residuals:
        """Expected statistics with standard normal inputs."""
        ones = jnp.ones_like(self.intercept)
        diagonal = jnp.concatenate(
            [ones[..., None], jnp.ones_like(self.coefficients), self.variance[..., None]], axis=-1
        )
        return self._residuals(ones, linalg.diagonal_matrix(diagonal), jnp.zeros_like(self.coefficients))

    def expected_log_prob(self, statistics: Residuals) -> Float[Array, "*batch"]:
        """Q: -1/2 [rows log(2 pi variance) + sum of squared residuals / variance]."""
        level = self._level(statistics.centre)
        squares = statistics.about(level, self.coefficients, statistics.centre).gram[..., -1, -1]
        log_volume = math.log(2 * math.pi) + jnp.log(self.variance)
        return -0.5 * (statistics.spread_rows * log_volume + squares / self.variance)

    def m_step(self, statistics: Residuals) -> Self:
        """Weighted least squares; the variance is the mean squared residual. Without rows a member stays as it is."""
        # The last row of the whitening is (residual - change . (1, inputs)) over its root sum of squares.
        last = linalg.whitening(statistics.gram)[..., -1, :]
        change = -last[..., :-1] / last[..., -1:]
        level, slopes = statistics.level + change[..., 0], statistics.slopes + change[..., 1:]
        new = self._with_line(level, slopes, statistics.centre, has_weight(statistics.gram[..., 0, 0]))
        rows = statistics.spread_rows
        some = has_weight(rows)
        variance = last[..., -1] ** -2 / jnp.where(some, rows, 1)
        variance = jnp.maximum(variance, resolution(statistics.size(level, slopes)))
        return replace(new, variance=jnp.where(some, variance, self.variance))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Residuals:
        """A row about the variance, less the more members share the data, and a hundredth of one about the line."""
        one, share = self.expected_statistics(), jnp.asarray(members, self.variance.dtype) ** -2
        table, weight = self._shared(x, weight)
        gram = jnp.zeros_like(one.gram).at[..., :-1, :-1].set(table.design.gram(weight) / 100)
        gram = gram.at[..., -1, -1].set(self.variance * share)
        return self._residuals(one.spread_rows, gram, table.design.centre)

    def floor(self, x: Any, weight: Array) -> Residuals:
        """A floor without rows: each input's rounding, and what holds up responses that are all zero."""
        table = self.observe(x).columns
        possible = self.contains(table)
        weight = jnp.where(possible, weight, 0)
        total = jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
        spread = jnp.sqrt(jnp.sum(weight[None] * table.design.inputs**2, axis=-1) / total)
        seen = quantiles.at_zero(jnp.where(possible, table.response, 0)[None], weight)
        diagonal = jnp.concatenate([jnp.zeros_like(seen), resolution(spread), seen])
        gram = jnp.broadcast_to(jnp.diag(diagonal), (*self.batch_shape, *(diagonal.size,) * 2))
        zero, flat = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        return Residuals(zero, gram, zero, flat, jnp.broadcast_to(table.design.centre, flat.shape))

    def is_degenerate(self, floor: Residuals) -> Array:
        """Whether the variance is no more than rounding, as it is with no more rows than coefficients."""
        _, *inputs, response = jnp.moveaxis(linalg.diagonal(floor.gram), -1, 0)
        predicted = sum((self.coefficients[..., p] ** 2 * scatter for p, scatter in enumerate(inputs)), response)
        return self.variance < 10 * (predicted + resolution(self._level(floor.centre)))

    def ridge(self, strength: Any) -> Residuals:
        """The ridge penalty of least squares, -strength/2 sum of squared coefficients / variance."""
        zero, flat = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        diagonal = jnp.broadcast_to(jnp.asarray(strength, flat.dtype), flat.shape)
        gram = linalg.diagonal_matrix(jnp.pad(diagonal, [(0, 0)] * (flat.ndim - 1) + [(1, 1)]))
        return Residuals(zero, gram, zero, flat, flat)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        one = jnp.ones(members, row.dtype)
        return cls(jnp.zeros((*members, len(row) - 1), row.dtype), one * row[-1], one)

    def tails(self, x: Float[Array, "n d"]) -> cumulative.Tails:
        predictor, response = self._predictor_and_response(x)
        return cumulative.normal((response - predictor) / jnp.sqrt(self.variance)[..., None])

    def _moments(self, predictor: Array) -> tuple[Array, Array]:
        return predictor, jnp.broadcast_to(self.variance[..., None], predictor.shape)

    def _draw(self, key: Array, predictor: Array) -> Array:
        noise = jax.random.normal(key, predictor.shape, predictor.dtype)
        return predictor + jnp.sqrt(self.variance)[..., None] * noise
