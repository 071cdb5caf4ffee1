"""Logistic and Poisson regression."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, real, vector
from jaxem.core.double_double import factorial_rest, kept, log_words
from jaxem.core.linalg import matmul
from jaxem.core.special import x_minus_log1p
from jaxem.distributions import cumulative
from jaxem.distributions.gaussian import FLOOR
from jaxem.distributions.registry import family
from jaxem.distributions.regression import Regression, Table
from jaxem.distributions.statistics.glm_bound import GLMBound
from jaxem.distributions.statistics.moments import has_weight
from jaxem.distributions.support import COUNT, YES_NO

RUNAWAY = 12.0
"""A change of the log-odds or the log-rate by this much, over one spread of the inputs, has no end: the responses are
separated by the inputs."""


class _Exponential(Regression):
    """Regressions whose log-likelihood is concave in the linear predictor, fitted by Newton steps (see `tangent`)."""

    def statistics(self, x: Any, weight: Array) -> GLMBound:
        """The weighted slope and curvature of the log-likelihood at the members' own parameters."""
        table = self.observe(x).columns
        seen = linalg.lead(jnp.where(self.contains(table), table.response, 0), self.coefficients.ndim)
        mean, variance = self._moments(self._predictor(table))
        curvature = table.design.gram(weight * variance)
        level = self._level(table.design.centre)
        at = jnp.concatenate([level[..., None], self.coefficients], axis=-1)
        linear = table.design.sums(weight * (seen - mean)) + matmul(curvature, at[..., None])[..., 0]
        reach = table.design.reach(weight)
        return GLMBound(
            rows=jnp.sum(weight, axis=-1),
            curvature=curvature[..., None, :, None, :],
            linear=linear[..., None, :],
            reach=jnp.broadcast_to(reach, (*self.batch_shape, *reach.shape)),
            level=level[..., None],
            slopes=self.coefficients[..., None, :],
            centre=jnp.broadcast_to(table.design.centre, self.coefficients.shape),
        )

    def expected_log_prob(self, statistics: GLMBound) -> Float[Array, "*batch"]:
        """A lower bound that touches at the parameters of the E-step: slope, curvature and its growth (`tangent`)."""
        level = self._level(statistics.centre)
        return statistics.value(level[..., None], self.coefficients[..., None, :])

    def m_step(self, statistics: GLMBound) -> Self:
        """A Newton step, shortened so that it never lowers the log-likelihood; without rows a member stays."""
        level, slopes = statistics.step()
        some = has_weight(statistics.curvature[..., 0, 0, 0, 0])
        return self._with_line(level[..., 0], slopes[..., 0, :], statistics.centre, some)

    def _quadratic(self, curvature: Array, level: Array, slopes: Array, centre: Array) -> GLMBound:
        centre = jnp.broadcast_to(centre, slopes.shape)
        return GLMBound.quadratic(curvature[..., None, :, None, :], level[..., None], slopes[..., None, :], centre)

    def expected_statistics(self) -> GLMBound:
        """Expected statistics with standard normal inputs: the quadratic of the log-likelihood near its top."""
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

    def floor(self, x: Any, weight: Array) -> GLMBound:
        """A ridge of `FLOOR` rows: it keeps separated responses from sending the coefficients to infinity."""
        table = self.observe(x).columns
        scale = self._spread(table, weight).at[-1].set(1)
        weights = jnp.roll(FLOOR[scale.dtype.itemsize] * scale**2, 1)
        curvature = jnp.broadcast_to(jnp.diag(weights), (*self.batch_shape, scale.size, scale.size))
        nothing = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        return self._quadratic(curvature, *nothing, table.design.mean(jnp.where(self.contains(table), weight, 0)))

    def is_degenerate(self, floor: GLMBound) -> Array:
        """Whether the inputs separate the responses, so that only the floor keeps the coefficients finite."""
        diagonal = linalg.diagonal(floor.curvature[..., 0, :, 0, :])
        squared = jnp.sum(diagonal[..., 1:] * self.coefficients**2, axis=-1)
        return squared > RUNAWAY**2 * diagonal[..., 0]

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> GLMBound:
        """A weak prior's row: the curvature of the log-likelihood of one row with any of the inputs."""
        table, weight = self._shared(x, weight)
        variance, centre = self._moments(self._predictor(table))[1], table.design.centre
        curvature = table.design.gram(linalg.lead(weight, variance.ndim) * variance)
        return self._quadratic(curvature, self._level(centre), self.coefficients, centre)

    def ridge(self, strength: Any) -> GLMBound:
        """The ridge penalty -strength/2 sum of squared coefficients."""
        flat = jnp.zeros_like(self.coefficients)
        diagonal = jnp.broadcast_to(jnp.asarray(strength, flat.dtype), flat.shape)
        diagonal = jnp.pad(diagonal, [(0, 0)] * (flat.ndim - 1) + [(1, 0)])
        return self._quadratic(linalg.diagonal_matrix(diagonal), jnp.zeros_like(self.intercept), flat, flat)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.zeros((*members, len(row) - 1), row.dtype), jnp.zeros(members, row.dtype))  # type: ignore


@family("logistic_regression", "logistic regression", reads="response")
class LogisticRegression(_Exponential):
    """Logistic regression: a response of 0 or 1 whose log-odds are a linear function of the inputs.

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

    discrete = True
    support = dataclasses.replace(YES_NO, name="a response of 0 or 1, after finite inputs")
    coefficients: Float[Array, "*batch p"] = parameter(vector)
    intercept: Float[Array, "*batch"] = parameter(real)

    def _possible(self, response: Array) -> Array:
        return (response == 0) | (response == 1)

    def log_density(self, columns: Table) -> Float[Array, "*batch n"]:
        predictor = self._predictor(columns)
        response = linalg.lead(columns.response, predictor.ndim)
        log_prob = -jax.nn.softplus(jnp.where(response == 1, -predictor, predictor))
        return jnp.where(jnp.isfinite(response), log_prob, -jnp.inf)

    def tails(self, x: Float[Array, "n d"]) -> cumulative.Tails:
        predictor, response = self._predictor_and_response(x)
        no, yes = cumulative.at_least(
            ~(response < 0), cumulative.Tails(jax.nn.sigmoid(-predictor), jax.nn.sigmoid(predictor))
        )
        return cumulative.flipped(cumulative.at_least(~(response >= 1), cumulative.Tails(yes, no)))

    def _moments(self, predictor: Array) -> tuple[Array, Array]:
        mean = jax.nn.sigmoid(predictor)
        return mean, mean * jax.nn.sigmoid(-predictor)

    def _draw(self, key: Array, predictor: Array) -> Array:
        draws = jax.random.uniform(key, predictor.shape, predictor.dtype)
        return (draws < jax.nn.sigmoid(predictor)).astype(predictor.dtype)


@family("poisson_regression", "Poisson regression", reads="response")
class PoissonRegression(_Exponential):
    """Poisson regression: counts whose log-rate is a linear function of the inputs.

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

    discrete = True
    support = dataclasses.replace(COUNT, name="a response that is a whole number from 0 upward, after finite inputs")
    coefficients: Float[Array, "*batch p"] = parameter(vector)
    intercept: Float[Array, "*batch"] = parameter(real)

    def _possible(self, response: Array) -> Array:
        return (response >= 0) & (response == jnp.floor(response))

    def log_density(self, columns: Table) -> Float[Array, "*batch n"]:
        predictor = self._predictor(columns)
        response = linalg.lead(columns.response, predictor.ndim)
        count = jnp.where(jnp.isfinite(response), response, 0)
        return jnp.where(jnp.isfinite(response), _log_poisson(predictor, count), -jnp.inf)

    def tails(self, x: Float[Array, "n d"]) -> cumulative.Tails:
        predictor, response = self._predictor_and_response(x)
        return cumulative.poisson(jnp.exp(predictor), jnp.floor(response))

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
    distance = jnp.where(near, count * x_minus_log1p(small), jnp.exp(predictor) - count * (1 + away))
    return -factorial_rest(count) - jnp.where(count > 0, distance, jnp.exp(predictor))
