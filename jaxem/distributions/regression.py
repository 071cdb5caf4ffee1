"""Regressions: a response given inputs. A row is the inputs and then the response, and only the response is modelled.

As families they take a place anywhere: in a `Mixture` (mixtures of regressions), as the emission of an `HMM` (Markov
switching regression; with `lagged` rows an autoregressive hidden Markov model), as experts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive, real, vector
from jaxem.core.double_double import factorial_rest, kept, log_words
from jaxem.core.linalg import matmul
from jaxem.core.pytree import module, replace
from jaxem.core.special import gap
from jaxem.data.missing import Incomplete, cells, some_columns
from jaxem.data.prepare import as_floats
from jaxem.distributions.base import Family, Rows, Statistics
from jaxem.distributions.gaussian import FLOOR
from jaxem.distributions.product import Product
from jaxem.distributions.statistics import mahalanobis
from jaxem.distributions.statistics.design_matrix import Design, design, shared
from jaxem.distributions.statistics.glm_bound import Tangent
from jaxem.distributions.statistics.moments import enough, resolution

RUNAWAY = 12.0
"""A change of the log-odds or the log-rate by this much, over one spread of the inputs, has no end: the responses are
separated by the inputs."""


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
    """What all regressions share: `coefficients` `[..., P]`, an `intercept` `[...]`, and rows of P + 1 columns."""

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

    def gaps(self, x: Incomplete) -> Rows:
        """A response that was not seen says nothing; of the other rows all inputs must be there."""
        return Rows(self.columns(x.values), ~jnp.isnan(x.values[:, -1]))

    def contains(self, columns: Table) -> Bool[Array, "n"]:
        return jnp.isfinite(columns.response)

    def expand(self, x: Rows) -> Rows:
        """With the products of the inputs, where there are many."""
        return replace(x, columns=replace(x.columns, design=x.columns.design.expand()))

    def _level(self, centre: Array) -> Float[Array, "*batch"]:
        """The linear predictor at a centre of the inputs."""
        return self.intercept + jnp.sum(self.coefficients * linalg.lead(centre, self.coefficients.ndim), axis=-1)

    def _with_line(self, level: Array, slopes: Array, centre: Array, some: Array) -> Self:
        """The members with this line; those that have no rows keep theirs."""
        return replace(
            self,
            coefficients=jnp.where(some[..., None], slopes, self.coefficients),
            intercept=jnp.where(some, level - jnp.sum(slopes * centre, axis=-1), self.intercept),
        )

    def _predictor(self, table: Table) -> Float[Array, "*batch n"]:
        return table.design.linear(self._level(table.design.centre), self.coefficients)

    def _spread(self, table: Table, weight: Array) -> Float[Array, "q"]:
        """The scale of each input, and of the response."""
        inputs, possible = table.design.inputs + table.design.centre[:, None], self.contains(table)
        response = jnp.where(possible, table.response, 0)
        return mahalanobis.scale(jnp.concatenate([inputs, response[None]]), jnp.where(possible, weight, 0))

    def _shared(self, x: Any, weight: Array) -> tuple[Table, Float[Array, "n"]]:
        """The rows, and the share that each has of all of them."""
        rows = self.observe(x)
        return rows.columns, shared(rows.counted(jnp.where(self.contains(rows.columns), weight, 0)))

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
        """What `priors.Ridge` adds to the statistics."""
        raise NotImplementedError

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

    def _draw(self, key: Array, predictor: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        raise NotImplementedError

    def check(self, x: Any, weight: Array, prior: Any) -> None:
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
        if prior is None:
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
class Residuals:
    """Weighted sums of products of (1, inputs, residual): what a linear regression needs to know of its rows.

    About a line, because a residual keeps the digits that a response far away, or nearly on the line, would lose.

    Attributes:
        spread_rows: `[...]`, the rows that speak about the variance; a prior may set them apart.
        gram: `[..., P + 2, P + 2]`, sum of w u u^T with u = (1, z - centre, y - level - slopes . (z - centre)).
        level: `[...]`, of the line at the centre.
        slopes: `[..., P]`.
        centre: `[..., P]`.
    """

    spread_rows: Array
    gram: Array
    level: Array
    slopes: Array
    centre: Array

    def about(self, level: Array, slopes: Array, centre: Array) -> Residuals:
        """The same rows, about another line and centre."""
        shift, size = self.centre - centre, self.slopes.shape[-1]
        eye = jnp.broadcast_to(jnp.eye(size + 2, dtype=shift.dtype), self.gram.shape)
        move = eye.at[..., 1:-1, 0].set(shift)
        move = move.at[..., -1, 0].set(self.level - level - jnp.sum(slopes * shift, axis=-1))
        move = move.at[..., -1, 1:-1].set(self.slopes - slopes)
        gram = matmul(matmul(move, self.gram), linalg.transpose(move))
        return Residuals(self.spread_rows, gram, level, slopes, centre)

    def size(self, level: Array, slopes: Array) -> Float[Array, "*batch"]:
        """The root mean square of what a line predicts for the rows: `level` at the centre, and its slopes."""
        line = jnp.concatenate([level[..., None], slopes], axis=-1)
        square = jnp.sum(line * matmul(self.gram[..., :-1, :-1], line[..., None])[..., 0], axis=-1)
        rows = self.gram[..., 0, 0]
        some = enough(rows)
        return jnp.sqrt(jnp.where(some, jnp.maximum(square, 0) / jnp.where(some, rows, 1), 0))

    def __add__(self, other: Residuals) -> Residuals:
        other = other.about(self.level, self.slopes, self.centre)
        return replace(self, spread_rows=self.spread_rows + other.spread_rows, gram=self.gram + other.gram)

    def __mul__(self, factor: Array | float) -> Residuals:
        """`factor` (a number) times as many of the same rows."""
        return replace(self, spread_rows=self.spread_rows * factor, gram=self.gram * factor)


@module
class LinearRegression(Regression):
    """A response that is Gaussian about a linear function of the inputs.

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
        """With standard normal inputs."""
        ones = jnp.ones_like(self.intercept)
        diagonal = jnp.concatenate(
            [ones[..., None], jnp.ones_like(self.coefficients), self.variance[..., None]], axis=-1
        )
        return self._residuals(ones, linalg.diagonal_matrix(diagonal), jnp.zeros_like(self.coefficients))

    def expected_log_prob(self, statistics: Residuals) -> Float[Array, "*batch"]:
        """-1/2 [rows log(2 pi variance) + sum of squared residuals / variance]."""
        level = self.intercept + jnp.sum(self.coefficients * statistics.centre, axis=-1)
        squares = statistics.about(level, self.coefficients, statistics.centre).gram[..., -1, -1]
        log_volume = math.log(2 * math.pi) + jnp.log(self.variance)
        return -0.5 * (statistics.spread_rows * log_volume + squares / self.variance)

    def m_step(self, statistics: Residuals) -> Self:
        """Weighted least squares; the variance is the mean squared residual. Without rows a member stays as it is."""
        # The last row of the whitening is (residual - change . (1, inputs)) over its root sum of squares.
        last = linalg.whitening(statistics.gram)[..., -1, :]
        change = -last[..., :-1] / last[..., -1:]
        level, slopes = statistics.level + change[..., 0], statistics.slopes + change[..., 1:]
        new = self._with_line(level, slopes, statistics.centre, enough(statistics.gram[..., 0, 0]))
        rows = statistics.spread_rows
        some = enough(rows)
        variance = last[..., -1] ** -2 / jnp.where(some, rows, 1)
        variance = jnp.maximum(variance, resolution(statistics.size(level, slopes)))
        return replace(new, variance=jnp.where(some, variance, self.variance))

    def weak(self, members: Array | int, x: Any, weight: Array) -> Residuals:
        """A row about the variance, less the more members share the data, and a hundredth of one about the line."""
        one, share = self.expected_statistics(), jnp.asarray(members, self.variance.dtype) ** -2
        table, weight = self._shared(x, weight)
        gram = jnp.zeros_like(one.gram).at[..., :-1, :-1].set(table.design.gram(weight) / 100)
        gram = gram.at[..., -1, -1].set(self.variance * share)
        return self._residuals(one.spread_rows, gram, table.design.centre)

    def floor(self, x: Any, weight: Array) -> Residuals:
        """No rows; of each input what rounding makes of it, and what holds up responses that are all zero."""
        table = self.observe(x).columns
        possible = self.contains(table)
        weight = jnp.where(possible, weight, 0)
        total = jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
        spread = jnp.sqrt(jnp.sum(weight[None] * table.design.inputs**2, axis=-1) / total)
        seen = mahalanobis.at_zero(jnp.where(possible, table.response, 0)[None], weight)
        diagonal = jnp.concatenate([jnp.zeros_like(seen), resolution(spread), seen])
        gram = jnp.broadcast_to(jnp.diag(diagonal), (*self.batch_shape, *(diagonal.size,) * 2))
        zero, flat = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        return Residuals(zero, gram, zero, flat, jnp.broadcast_to(table.design.centre, flat.shape))

    def collapsed(self, floor: Residuals) -> Array:
        """Is the variance no more than rounding? So it is with no more rows than coefficients."""
        _, *inputs, response = jnp.moveaxis(linalg.diagonal(floor.gram), -1, 0)
        predicted = sum((self.coefficients[..., p] ** 2 * scatter for p, scatter in enumerate(inputs)), response)
        return self.variance < 10 * (predicted + resolution(self._level(floor.centre)))

    def ridge(self, strength: Any) -> Residuals:
        """-strength/2 sum of squared coefficients / variance: the ridge of least squares."""
        zero, flat = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        diagonal = jnp.broadcast_to(jnp.asarray(strength, flat.dtype), flat.shape)
        gram = linalg.diagonal_matrix(jnp.pad(diagonal, [(0, 0)] * (flat.ndim - 1) + [(1, 1)]))
        return Residuals(zero, gram, zero, flat, flat)

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        one = jnp.ones(members, row.dtype)
        return cls(jnp.zeros((*members, len(row) - 1), row.dtype), one * row[-1], one)

    def _moments(self, predictor: Array) -> tuple[Array, Array]:
        return predictor, jnp.broadcast_to(self.variance[..., None], predictor.shape)

    def _draw(self, key: Array, predictor: Array) -> Array:
        noise = jax.random.normal(key, predictor.shape, predictor.dtype)
        return predictor + jnp.sqrt(self.variance)[..., None] * noise


class _Exponential(Regression):
    """Regressions whose log-likelihood is concave in the linear predictor, fitted by Newton steps (see `tangent`)."""

    def statistics(self, x: Any, weight: Array) -> Tangent:
        """The weighted slope and curvature of the log-likelihood at the members' own parameters."""
        table = self.observe(x).columns
        seen = linalg.lead(jnp.where(self.contains(table), table.response, 0), self.coefficients.ndim)
        mean, variance = self._moments(self._predictor(table))
        curvature = table.design.gram(weight * variance)
        low, high = (jnp.broadcast_to(limit, self.coefficients.shape) for limit in table.design.limits(weight))
        level = self._level(table.design.centre)
        at = jnp.concatenate([level[..., None], self.coefficients], axis=-1)
        linear = table.design.sums(weight * (seen - mean)) + matmul(curvature, at[..., None])[..., 0]
        return Tangent(
            rows=jnp.sum(weight, axis=-1),
            curvature=curvature[..., None, :, None, :],
            linear=linear[..., None, :],
            low=low,
            high=high,
            level=level[..., None],
            slopes=self.coefficients[..., None, :],
            centre=jnp.broadcast_to(table.design.centre, self.coefficients.shape),
        )

    def expected_log_prob(self, statistics: Tangent) -> Float[Array, "*batch"]:
        """A lower bound that touches at the parameters of the E-step: slope, curvature and its growth (`tangent`)."""
        level = self.intercept + jnp.sum(self.coefficients * statistics.centre, axis=-1)
        return statistics.value(level[..., None], self.coefficients[..., None, :])

    def m_step(self, statistics: Tangent) -> Self:
        """Newton's step, shortened so that it never lowers the log-likelihood; without rows a member stays."""
        level, slopes = statistics.step()
        some = enough(statistics.curvature[..., 0, 0, 0, 0])
        return self._with_line(level[..., 0], slopes[..., 0, :], statistics.centre, some)

    def _quadratic(self, curvature: Array, level: Array, slopes: Array, centre: Array) -> Tangent:
        centre = jnp.broadcast_to(centre, slopes.shape)
        return Tangent.quadratic(curvature[..., None, :, None, :], level[..., None], slopes[..., None, :], centre)

    def expected_statistics(self) -> Tangent:
        """With standard normal inputs: the quadratic that the log-likelihood of many rows looks like near its top."""
        slopes = self.coefficients
        size = jnp.sqrt(jnp.sum(slopes**2, axis=-1, keepdims=True))
        along = slopes / jnp.where(size > 0, size, 1)
        nodes, shares = (jnp.asarray(part, slopes.dtype) for part in np.polynomial.hermite_e.hermegauss(60))
        shares = linalg.lead(shares / jnp.sum(shares), slopes.ndim)
        nodes = linalg.lead(nodes, slopes.ndim)
        variance = self._moments(self.intercept[..., None] + size * nodes)[1] * shares
        zeroth, first, second = (jnp.sum(variance * nodes**k, axis=-1)[..., None] for k in range(3))
        rest = zeroth[..., None] * linalg.lead(jnp.eye(slopes.shape[-1], dtype=slopes.dtype), slopes.ndim + 1)
        inner = rest + (second - zeroth)[..., None] * linalg.outer(along, along)
        edge = first * along
        above = jnp.concatenate([zeroth, edge], axis=-1)[..., None, :]
        curvature = jnp.concatenate([above, jnp.concatenate([edge[..., None], inner], axis=-1)], axis=-2)
        return self._quadratic(curvature, self.intercept, slopes, jnp.zeros_like(slopes))

    def floor(self, x: Any, weight: Array) -> Tangent:
        """A ridge of `FLOOR` rows: it keeps separated responses from sending the coefficients to infinity."""
        table = self.observe(x).columns
        scale = self._spread(table, weight).at[-1].set(1)
        weights = jnp.roll(FLOOR[scale.dtype.itemsize] * scale**2, 1)
        curvature = jnp.broadcast_to(jnp.diag(weights), (*self.batch_shape, scale.size, scale.size))
        nothing = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        return self._quadratic(curvature, *nothing, table.design.mean(jnp.where(self.contains(table), weight, 0)))

    def collapsed(self, floor: Tangent) -> Array:
        """Do the inputs separate the responses, so that only the floor keeps the coefficients finite?"""
        diagonal = linalg.diagonal(floor.curvature[..., 0, :, 0, :])
        squared = jnp.sum(diagonal[..., 1:] * self.coefficients**2, axis=-1)
        return squared > RUNAWAY**2 * diagonal[..., 0]

    def weak(self, members: Array | int, x: Any, weight: Array) -> Tangent:
        """A row with any of the inputs that there are: what the curvature of the log-likelihood says of one."""
        table, weight = self._shared(x, weight)
        variance, centre = self._moments(self._predictor(table))[1], table.design.centre
        curvature = table.design.gram(linalg.lead(weight, variance.ndim) * variance)
        return self._quadratic(curvature, self._level(centre), self.coefficients, centre)

    def ridge(self, strength: Any) -> Tangent:
        """-strength/2 sum of squared coefficients."""
        flat = jnp.zeros_like(self.coefficients)
        diagonal = jnp.broadcast_to(jnp.asarray(strength, flat.dtype), flat.shape)
        diagonal = jnp.pad(diagonal, [(0, 0)] * (flat.ndim - 1) + [(1, 0)])
        return self._quadratic(linalg.diagonal_matrix(diagonal), jnp.zeros_like(self.intercept), flat, flat)

    @classmethod
    def around(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.zeros((*members, len(row) - 1), row.dtype), jnp.zeros(members, row.dtype))  # type: ignore


@module
class LogisticRegression(_Exponential):
    """A response of 0 or 1 whose log-odds are a linear function of the inputs.

    log p(y | z) = y eta - log(1 + exp(eta)), eta = intercept + coefficients . z

    Responses that the inputs separate have no finite maximum: the coefficients end where a weak ridge holds them, and
    the status of the fit is `covariance_collapsed`. A prior (`priors.Ridge`) is the remedy.

    Args:
        coefficients: `[..., P]`, log-odds for one of each input.
        intercept: `[...]`, log-odds where all inputs are zero.

    Raises:
        ValueError: shapes that do not match.

    >>> import jaxem as jem
    >>> jem.LogisticRegression([2.0], 0.0).log_prob([[0.0, 1.0], [1.0, 1.0]]).round(4).tolist()
    [-0.6931, -0.1269]
    """

    support = "a response of 0 or 1, after finite inputs"
    coefficients: Float[Array, "*batch p"] = parameter(vector)
    intercept: Float[Array, "*batch"] = parameter(real)

    def _possible(self, response: Array) -> Array:
        return (response == 0) | (response == 1)

    def log_density(self, columns: Table) -> Float[Array, "*batch n"]:
        predictor = self._predictor(columns)
        response = linalg.lead(columns.response, predictor.ndim)
        log_prob = -jax.nn.softplus(jnp.where(response == 1, -predictor, predictor))
        return jnp.where(jnp.isfinite(response), log_prob, -jnp.inf)

    def _moments(self, predictor: Array) -> tuple[Array, Array]:
        mean = jax.nn.sigmoid(predictor)
        return mean, mean * jax.nn.sigmoid(-predictor)

    def _draw(self, key: Array, predictor: Array) -> Array:
        draws = jax.random.uniform(key, predictor.shape, predictor.dtype)
        return (draws < jax.nn.sigmoid(predictor)).astype(predictor.dtype)


@module
class PoissonRegression(_Exponential):
    """Counts whose log-rate is a linear function of the inputs.

    log p(y | z) = y eta - exp(eta) - log y!, eta = intercept + coefficients . z

    Args:
        coefficients: `[..., P]`, the log-rate for one of each input.
        intercept: `[...]`, the log-rate where all inputs are zero.

    Raises:
        ValueError: shapes that do not match.

    >>> import jaxem as jem
    >>> jem.PoissonRegression([1.0], 0.0).log_prob([[0.0, 1.0], [1.0, 2.0]]).round(4).tolist()
    [-1.0, -1.4114]
    """

    support = "a response that is a whole number from 0 upward, after finite inputs"
    coefficients: Float[Array, "*batch p"] = parameter(vector)
    intercept: Float[Array, "*batch"] = parameter(real)

    def _possible(self, response: Array) -> Array:
        return (response >= 0) & (response == jnp.floor(response))

    def log_density(self, columns: Table) -> Float[Array, "*batch n"]:
        predictor = self._predictor(columns)
        response = linalg.lead(columns.response, predictor.ndim)
        count = jnp.where(jnp.isfinite(response), response, 0)
        return jnp.where(jnp.isfinite(response), _log_poisson(predictor, count), -jnp.inf)

    def _moments(self, predictor: Array) -> tuple[Array, Array]:
        rate = jnp.exp(predictor)
        return rate, rate

    def _draw(self, key: Array, predictor: Array) -> Array:
        return jax.random.poisson(key, jnp.exp(predictor)).astype(predictor.dtype)


def _log_poisson(predictor: Array, count: Array) -> Array:
    """log p of counts, whose log-rate is the predictor, by their distance from the rate (Loader 2000)."""
    high, low = log_words(jax.lax.stop_gradient(jnp.maximum(count, 1)))
    away = (predictor - high) - kept(low, predictor)
    near = jnp.abs(away) < 1
    small = jnp.expm1(jnp.where(near, away, 0))
    distance = jnp.where(near, count * gap(small), jnp.exp(predictor) - count * (1 + away))
    return -factorial_rest(count) - jnp.where(count > 0, distance, jnp.exp(predictor))


@module
class Joint(Product):
    """Inputs and a response that depends on them: two families, of which the second reads all columns.

    log p(z, y) = log p(z | parts[0]) + log p(y | z, parts[1])

    Args:
        parts: a family of the inputs, and a regression with the same `batch_shape`.

    Raises:
        ValueError: widths or batch shapes that do not match.

    >>> import jaxem as jem
    >>> model = jem.Joint((jem.SphericalGaussian([0.0], 1.0), jem.LinearRegression([2.0], 1.0, 1.0)))
    >>> model.log_prob([[0.0, 1.0]]).round(4).tolist()
    [-1.8379]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = [part.event_shape[0] for part in self.parts]
        if len(widths) != 2 or widths[1] != widths[0] + 1:
            raise ValueError(
                f"Joint: parts read {widths} columns; the second must read those of the first and one more"
            )

    @property
    def _widths(self) -> list[int]:
        return [*self.parts[0].event_shape, 1]

    def gaps(self, x: Any) -> Rows:
        """The first part reads all columns but the last."""
        return Rows((self.parts[0].observe(some_columns(x, slice(0, -1))), self.parts[1].observe(x)))

    def check(self, x: Any, weight: Array, prior: Any) -> None:
        self.parts[1].check(x, weight, prior)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, P + 1]`."""
        (first, second), response = jax.random.split(key), self.parts[1]
        return response.sample(second, n, self.parts[0].sample(first, n))  # type: ignore


@dataclasses.dataclass(frozen=True)
class JointFamily:
    """A `Joint` that is still to be fitted: something that can `start`."""

    inputs: Any
    response: Any

    def start(self, x: Any, weight: Array) -> Joint:
        """Members fitted to weighted rows, each part to what it reads."""
        return Joint((self.inputs.start(x[:, :-1], weight), self.response.start(x, weight)))

    def points(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        return self.response.points(x, weight)


def lagged(x: Any, order: int = 1) -> Float[Array, "t d"]:
    """Rows of an autoregression: the last `order` values, the most recent first, and then the value itself.

    An `HMM` on such rows with the emission `LinearRegression` is an autoregressive hidden Markov model (Hamilton 1989).

    Args:
        x: `[T]`, one series.
        order: how many values back.

    Returns:
        `[T - order, order + 1]`. A row of which a value is missing (NaN) has a missing response, so that it says
        nothing and still takes its time: what `missing="drop"` does elsewhere, with the clock going on.

    Raises:
        ValueError: not one series, or an order that is not from 1 to T - 1.

    >>> import jaxem as jem
    >>> jem.lagged([1.0, 2.0, 4.0, 8.0], 2).tolist()
    [[2.0, 1.0, 4.0], [4.0, 2.0, 8.0]]
    >>> jem.lagged([1.0, 2.0, float("nan"), 8.0, 16.0]).tolist()
    [[1.0, 2.0], [2.0, nan], [nan, nan], [8.0, 16.0]]
    """
    series = as_floats(x)
    if series.ndim != 1 or not 1 <= order < len(series):
        raise ValueError(f"lagged: x has shape {series.shape} and order is {order}; it takes one longer series")
    last = len(series) - order
    inputs = jnp.stack([series[order - k : order - k + last] for k in range(1, order + 1)], axis=1)
    response = series[order:]
    if jnp.issubdtype(series.dtype, jnp.floating):
        response = jnp.where(jnp.isnan(inputs).any(axis=1), jnp.nan, response)
    return jnp.concatenate([inputs, response[:, None]], axis=1)
