"""The gate of a mixture of experts: shares that depend on inputs."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, vector
from jaxem.core.double_double import line
from jaxem.core.pytree import replace
from jaxem.distributions.base import Family, Rows
from jaxem.distributions.gaussian import FLOOR
from jaxem.distributions.registry import structure
from jaxem.distributions.statistics import quantiles
from jaxem.distributions.statistics.design_matrix import Design, design, shared
from jaxem.distributions.statistics.glm_bound import GLMBound
from jaxem.distributions.statistics.moments import has_weight


@structure
class SoftmaxGate(Family):
    """The probability of each of K classes, given inputs: its members are the classes, and a row is the inputs.

    log p(class k | z) = eta_k - log sum_j exp(eta_j), eta_k = intercept_k + coefficients_k . z, eta_K = 0

    The last class is the one that the others are measured against, so that every free number is determined. Fitted by
    Newton steps that never lower the log-likelihood (`jaxem.distributions.statistics.glm_bound`).

    Args:
        coefficients: `[..., K - 1, P]`.
        intercept: `[..., K - 1]`.

    Raises:
        ValueError: shapes that do not match.

    >>> import jaxem as jem
    >>> jem.SoftmaxGate([[2.0]], [0.0]).log_prob([[0.0], [1.0]]).round(4).tolist()
    [[-0.6931, -0.1269], [-0.6931, -2.1269]]
    """

    scalar = False
    coefficients: Float[Array, "*batch k p"] = parameter(vector)
    intercept: Float[Array, "*batch k"] = parameter(vector)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intercept.shape != self.coefficients.shape[:-1]:
            raise ValueError(
                f"SoftmaxGate: intercept has shape {self.intercept.shape}; with coefficients of shape "
                f"{self.coefficients.shape} it must be {self.coefficients.shape[:-1]}"
            )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return (*self.intercept.shape[:-1], self.intercept.shape[-1] + 1)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.coefficients.shape[-1:]

    def columns(self, x: Float[Array, "n p"]) -> Design:
        return design(x, jnp.all(jnp.isfinite(x), axis=1))

    def contains(self, columns: Design) -> Bool[Array, "n"]:
        return jnp.ones(columns.inputs.shape[1], bool)

    def expand(self, x: Rows) -> Rows:
        """Observed data with the products of the inputs, where there are many."""
        return replace(x, columns=x.columns.expand())

    def _level(self, centre: Array) -> Float[Array, "*batch k"]:
        return line(self.intercept, self.coefficients, centre)

    def log_density(self, columns: Design) -> Float[Array, "*batch k n"]:
        level = self._level(linalg.lead(columns.centre, self.coefficients.ndim))
        predictor = columns.linear(level, self.coefficients)
        return jax.nn.log_softmax(jnp.concatenate([predictor, jnp.zeros_like(predictor[..., :1, :])], axis=-2), axis=-2)

    def statistics(self, x: Any, weight: Float[Array, "*batch k n"]) -> GLMBound:
        """The weighted slope and curvature at the gate's own parameters; all classes together."""
        columns = self.observe(x).columns
        share = jnp.exp(self.log_density(columns))[..., :-1, :]
        rows = jnp.sum(weight, axis=-2)
        same = linalg.lead(jnp.eye(share.shape[-2], dtype=share.dtype)[..., None], share.ndim + 1)
        pairs = rows[..., None, None, :] * share[..., :, None, :] * (same - share[..., None, :, :])
        curvature = jnp.swapaxes(columns.gram(pairs), -3, -2)
        centre = jnp.broadcast_to(columns.centre, (*self.intercept.shape[:-1], columns.centre.size))
        here = GLMBound.quadratic(curvature, self._level(centre[..., None, :]), self.coefficients, centre)
        slope = columns.sums(weight[..., :-1, :] - rows[..., None, :] * share)
        reach = jnp.broadcast_to(columns.reach(rows), here.reach.shape)
        return replace(here, rows=jnp.sum(rows, axis=-1), linear=here.linear + slope, reach=reach)

    def expected_statistics(self) -> GLMBound:
        """Expected statistics with standard normal inputs, curved as for equally probable classes (Bohning 1992)."""
        eye = jnp.eye(self.event_shape[0] + 1, dtype=self.intercept.dtype)
        return self._ridge(eye / self.batch_shape[-1], self.intercept, self.coefficients, jnp.zeros(()))

    def expected_log_prob(self, statistics: GLMBound) -> Float[Array, "*batch k"]:
        """A lower bound that touches at the parameters of the E-step, in equal parts for each class."""
        whole = statistics.value(self._level(statistics.centre[..., None, :]), self.coefficients)
        return jnp.broadcast_to(whole[..., None] / self.batch_shape[-1], self.batch_shape)

    def m_step(self, statistics: GLMBound) -> Self:
        """A Newton step, shortened so that it never lowers the log-likelihood; without rows the gate stays."""
        level, slopes = statistics.step()
        intercept = line(level, slopes, -statistics.centre[..., None, :])
        some = has_weight(statistics.rows)[..., None]
        return replace(
            self,
            coefficients=jnp.where(some[..., None], slopes, self.coefficients),
            intercept=jnp.where(some, intercept, self.intercept),
        )

    def _ridge(self, each: Float[Array, "q q"], level: Array, slopes: Array, centre: Array) -> GLMBound:
        """A quadratic penalty; `each` is the precision of a class about the mean of all K."""
        count, batch = self.intercept.shape[-1], self.intercept.shape[:-1]
        between = jnp.eye(count, dtype=each.dtype) - 1 / (count + 1)
        curvature = between[:, None, :, None] * each[None, :, None, :]
        centre = jnp.broadcast_to(centre, (*batch, len(each) - 1)).astype(each.dtype)
        return GLMBound.quadratic(jnp.broadcast_to(curvature, (*batch, *curvature.shape)), level, slopes, centre)

    def floor(self, x: Any, weight: Array) -> GLMBound:
        """A ridge of `FLOOR` rows: it keeps classes that the inputs separate from sending coefficients to infinity."""
        columns = self.observe(x).columns
        scale = quantiles.scale(columns.inputs + columns.centre[:, None], weight)
        diagonal = FLOOR[scale.dtype.itemsize] * jnp.concatenate([jnp.ones_like(scale[:1]), scale**2])
        nothing = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        return self._ridge(jnp.diag(diagonal), *nothing, columns.mean(weight))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> GLMBound:
        """A weak prior's row with any of the inputs, as curved as where all classes are equally probable."""
        columns = self.observe(x).columns
        each = columns.gram(shared(weight)) / self.batch_shape[-1]
        level = self._level(linalg.lead(columns.centre, self.coefficients.ndim))
        return self._ridge(each, level, self.coefficients, columns.centre)

    def ridge(self, strength: Any) -> GLMBound:
        """The ridge penalty -strength/2 sum of squared coefficients, of all K classes about their mean."""
        size = self.event_shape[0]
        diagonal = jnp.broadcast_to(jnp.asarray(strength, self.intercept.dtype), (size,))
        nothing = jnp.zeros_like(self.intercept), jnp.zeros_like(self.coefficients)
        return self._ridge(jnp.diag(jnp.pad(diagonal, (1, 0))), *nothing, jnp.zeros(size, self.intercept.dtype))
