"""Student's t: Gaussians whose precision varies from row to row."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import is_held, parameter, parameters, positive, positive_definite, vector
from jaxem.core.pytree import module, replace, static
from jaxem.core.root_finding import root
from jaxem.core.special import log_minus_digamma, stirling, x_minus_log1p
from jaxem.core.summation import totals
from jaxem.distributions import cumulative
from jaxem.distributions.base import Pullback, Rows
from jaxem.distributions.gaussian import Gaussian, lifted
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import mahalanobis
from jaxem.distributions.statistics.incomplete_gaussian import LOG_2_PI, AnyCell, Columns, Gaps
from jaxem.distributions.statistics.moments import Moments, has_weight, resolution

LEAST = 1e-2


MOST = {4: 1e5, 8: 1e10}
"""Degrees of freedom, by bytes of a float, above which a t is a Gaussian within rounding."""


@module
class RobustMoments:
    """Moments of rows, each weighted by the precision u that it is expected to have.

    Attributes:
        moments: of weight w E[u]; its `spread_rows` are the sum of w.
        spread: `[...]` sum of w (E[log u] - E[u] + 1): how unequal the precisions are; zero if all are one.
    """

    moments: Moments
    spread: Array


@family("student_t", "Student's t", reads="any", gaps=True, units="each")
class StudentT(AnyCell):
    """Student's t: a Gaussian whose rows have precisions of their own, u ~ Gamma(dof / 2, rate dof / 2).

    log p(x) = log Gamma((dof + D) / 2) - log Gamma(dof / 2) - 1/2 [D log(dof pi) + log det scatter]
    - (dof + D) / 2 log(1 + distance / dof), with distance = (x - location)^T scatter^-1 (x - location)

    A row is counted E[u | x] = (dof + D) / (dof + distance) times: the farther, the less. The covariance is
    scatter dof / (dof - 2), for dof above 2.

    Args:
        location: `[..., D]`, in the units of x.
        scatter: `[..., D, D]`, symmetric positive definite, in squared units of x.
        dof: `[...]`, degrees of freedom, above zero: 1 is Cauchy's distribution, many are a Gaussian.
        held: names of parameters that no fit changes: `("dof",)`. `jem.sized(jem.StudentT, dof=4)` starts with those
            degrees of freedom, held.

    Raises:
        ValueError: shapes that do not match, a scatter that is not symmetric positive definite, a dof that is not above
            zero, or names in `held` that are no parameters.

    Lange, Little and Taylor 1989, JASA 84:881; Liu and Rubin 1995, Statistica Sinica 5:19.

    >>> import jaxem as jem
    >>> jem.StudentT([0.0], [[1.0]], 1.0).log_prob([[0.0], [1.0]]).round(4).tolist()
    [-1.1447, -1.8379]
    """

    location: Float[Array, "*batch d"] = parameter(vector)
    scatter: Float[Array, "*batch d d"] = parameter(positive_definite)
    dof: Float[Array, "*batch"] = parameter(positive)
    held: tuple[str, ...] = static(())
    given_held: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "held", tuple(self.held))
        if unknown := set(self.held) - set(parameters(self)):
            raise ValueError(f"StudentT: held names {unknown.pop()!r}; parameters are {', '.join(parameters(self))}")
        shape = self.location.shape
        if self.scatter.shape != (*shape, shape[-1]) or self.dof.shape != shape[:-1]:
            raise ValueError(
                f"StudentT: scatter has shape {self.scatter.shape} and dof {self.dof.shape}; with a location of shape "
                f"{shape} they must be {(*shape, shape[-1])} and {shape[:-1]}"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.location.shape[-1:]

    def expand(self, x: Rows) -> Rows:
        """Observed data with the products of the columns, where there are many and all were seen."""
        return x if isinstance(x.columns, Gaps) else replace(x, columns=mahalanobis.widened(x.columns))

    def log_density(self, columns: Columns) -> Float[Array, "*batch n"]:
        return self._log_density(columns, *self._distance(columns))

    def statistics(self, x: Any, weight: Array) -> RobustMoments:
        """The moments of the rows, each weighted by its expected precision."""
        columns = self.observe(x).columns
        return self._statistics(columns, weight, *self._distance(columns))

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        columns = self.expand(self.observe(x)).columns
        distance, white = self._distance(columns)
        log_prob = self._log_density(columns, distance, white)
        return log_prob, lambda weight: self._statistics(columns, weight, distance, white)

    def _distance(self, columns: Columns) -> tuple[Float[Array, "*batch n"], Array]:
        """(x - location)^T scatter^-1 (x - location) of what was seen of each row, and what whitens the scatter."""
        if isinstance(columns, Gaps):
            white = columns.whitening(self.scatter)
            return columns.distance(self.location, white), white
        white = linalg.whitening(self.scatter)
        return mahalanobis.distance(columns, self.location, white), white

    def _sizes(self, columns: Columns) -> Float[Array, "*ones s"]:
        """The numbers of observed columns that rows may have."""
        most = self.event_shape[0]
        sizes = jnp.arange(most + 1) if isinstance(columns, Gaps) else jnp.array([most])
        return linalg.lead(sizes.astype(self.dof.dtype), self.dof.ndim + 1)

    def _of_row(self, columns: Columns, each: Float[Array, "*batch s"]) -> Float[Array, "*batch n"]:
        """Values for each of these sizes, by row."""
        return each[..., columns.of_row(columns.columns())] if isinstance(columns, Gaps) else each

    def _log_density(self, columns: Columns, distance: Float[Array, "*batch n"], white: Array) -> Array:
        h, d = self.dof[..., None] / 2, self._sizes(columns)
        # log Gamma(h + D/2) - log Gamma(h) - D/2 log(2 pi h), with nothing large in it.
        ratio = stirling(h + d / 2) - stirling(h) + (h + d / 2) * jnp.log1p(d / 2 / h) - d / 2
        constant = self._of_row(columns, ratio - d / 2 * LOG_2_PI)
        half_log_det = linalg.half_log_det(white)
        volume = columns.of_row(half_log_det) if isinstance(columns, Gaps) else half_log_det[..., None]
        log_density = constant - volume + _log_tail(self.dof[..., None], self._of_row(columns, d), distance)
        return self.within(columns, log_density)

    def _statistics(self, columns: Columns, weight: Array, distance: Array, white: Array) -> RobustMoments:
        dof, sizes = self.dof[..., None], self._sizes(columns)
        d = self._of_row(columns, sizes)
        precision = (dof + d) / (dof + distance)
        excess = (d - distance) / (dof + distance)
        # E[log u] - E[u] + 1 in two parts, of which the second is the same for all rows of a size.
        known = self._of_row(columns, jnp.where(sizes > 0, log_minus_digamma((dof + sizes) / 2), 0))
        rows, gaps = totals(weight, weight * (x_minus_log1p(excess, precision) + known))
        if isinstance(columns, Gaps):
            moments = columns.moments(weight, self.location, self.scatter, white, precision)
        else:
            moments = mahalanobis.moments(columns, weight * precision, self.location, white)
            moments = replace(moments, spread_rows=rows)
        return RobustMoments(moments, -gaps)

    def centre(self) -> Array:
        return self.location

    def completed(self, columns: Gaps, base: Array) -> Array:
        return columns.completed(base, self.scatter, columns.whitening(self.scatter))

    def drawn_rows(self, key: Array, x: Any, n: int) -> Float[Array, "*batch n d"]:
        """Draws of rows, each with a precision drawn given what was seen: the farther that lies, the wider the rest."""
        columns, (noise, precision) = self.observe(x).columns, jax.random.split(key)
        distance, white = self._distance(columns)
        rate = (self.dof[..., None] + distance) / 2
        shape = jnp.broadcast_to((self.dof[..., None] + self._of_row(columns, self._sizes(columns))) / 2, rate.shape)
        log_precision = jax.random.loggamma(precision, shape, dtype=rate.dtype) - jnp.log(rate)
        location, deviations = self.location[..., None], linalg.transpose(self._deviations(noise, n))
        middle, drawn = (
            columns.completed(base, self.scatter, white)
            for base in (jnp.broadcast_to(location, deviations.shape), location + deviations)
        )
        return linalg.transpose(middle + (drawn - middle) * jnp.exp(-log_precision / 2)[..., None, :])

    def expected_statistics(self) -> RobustMoments:
        ones = jnp.ones_like(self.dof)
        moments = Moments(ones, ones, jnp.zeros_like(self.location), self.scatter, self.location)
        return RobustMoments(moments, -log_minus_digamma(self.dof / 2))

    def expected_log_prob(self, statistics: RobustMoments) -> Float[Array, "*batch"]:
        """Q: that of the Gaussian rows, and that of their precisions, dof / 2 spread - rows stirling(dof / 2)."""
        moments, white, h = statistics.moments.about(self.location), linalg.whitening(self.scatter), self.dof / 2
        log_volume = self.event_shape[0] * LOG_2_PI + 2 * linalg.half_log_det(white)
        distance = jnp.sum(linalg.matmul(white, moments.second) * white, axis=(-1, -2))
        gaussian = -0.5 * (moments.spread_rows * log_volume + distance)
        return gaussian + h * statistics.spread - moments.spread_rows * stirling(h)

    def m_step(self, statistics: RobustMoments) -> Self:
        """The mean and scatter of the weighted rows; a member without rows keeps its parameters.

        location = sum w u x / sum w u, scatter = sum w u (x - location)(x - location)^T / sum w, and dof / 2 is where
        digamma(h) - log h is the mean of log u - u + 1.
        """
        moments = statistics.moments
        location = self.location if is_held(self, "location") else moments.mean(otherwise=self.location)
        some = has_weight(moments.spread_rows)
        rows = jnp.where(some, moments.spread_rows, 1)
        scatter = linalg.lifted(moments.about(location).second / rows[..., None, None], moments.least(location))
        new = {
            "location": location,
            "scatter": jnp.where(some[..., None, None], scatter, self.scatter),
            "dof": jnp.where(some, _degrees(-statistics.spread / rows), self.dof),
        }
        return replace(self, **{name: value for name, value in new.items() if not is_held(self, name)})

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> RobustMoments:
        """A row about the spread, narrower the more members share the data, and a hundredth of one about the place."""
        one = self.expected_statistics()
        share = jnp.asarray(members, self.dof.dtype) ** (-2 / self.event_shape[0])
        moments = replace(one.moments, rows=one.moments.rows / 100, second=one.moments.second * share)
        return replace(one, moments=moments)

    def floor(self, x: Any, weight: Array) -> RobustMoments:
        """The floor of the Gaussian."""
        gaussian = Gaussian(self.location, self.scatter)
        return RobustMoments(gaussian.floor(x, weight), jnp.zeros_like(self.dof))

    def is_degenerate(self, floor: RobustMoments) -> Array:
        """Whether the spread of some column, given those before it, is no more than rounding."""
        return lifted(resolution(self.location), self.scatter, linalg.whitening(self.scatter), floor.moments)

    @classmethod
    def start(cls, x: Any, weight: Float[Array, "*batch n"], **sizes: int) -> Self:
        """Gaussian members, taken for t's of 8 degrees of freedom, or of the `dof` that is to be held.

        Args:
            x: `[n, D]` rows.
            weight: `[..., n]`: a member for each leading index.
            sizes: `dof`, to be held, or nothing.
        """
        normal, dof = Gaussian.start(x, weight), sizes.get("dof", 8)
        # The scatter of a t of that covariance, if it has one.
        share = (dof - 2) / dof if dof > 3 else 1 / 3
        degrees = jnp.full(weight.shape[:-1], dof, weight.dtype)
        return cls(normal.mean, normal.covariance * share, degrees, ("dof",) if "dof" in sizes else ())

    def columnwise(self, x: Float[Array, "n d"]) -> cumulative.Columnwise:
        """Of each column a t again, wider the farther those before it lie from their mean (Kotz and Nadarajah 2004)."""
        white = linalg.whitening(self.scatter)
        z = linalg.matmul(white, linalg.lead(x.T, self.location.ndim + 1) - self.location[..., None])
        square = z * z
        before = jnp.cumsum(square, axis=-2) - square
        dof = self.dof[..., None, None]
        d = linalg.lead(jnp.arange(self.event_shape[0]).astype(z.dtype)[:, None], z.ndim)
        at = cumulative.student(z * jnp.sqrt((dof + d) / (dof + before)), jnp.broadcast_to(dof + d, z.shape))
        half, ratio = (dof + d) / 2, square / (dof + before)
        constant = stirling(half + 0.5) - stirling(half) + (half + 0.5) * jnp.log1p(0.5 / half) - 0.5 - 0.5 * LOG_2_PI
        # log of half (dof + before), of which half log(half) stands in the constant.
        scale = 0.5 * jnp.log((dof + before) / (dof + d)) - jnp.log(linalg.diagonal(white))[..., None]
        return cumulative.Columnwise(at, at, constant - scale - (half + 0.5) * jnp.log1p(ratio))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` draws from each member, `[*batch_shape, n, D]`."""
        noise, precision = jax.random.split(key)
        h, location = self.dof[..., None] / 2, self.location[..., None, :]
        log_precision = jax.random.loggamma(precision, h, (*self.batch_shape, n), self.dof.dtype) - jnp.log(h)
        return location + self._deviations(noise, n) * jnp.exp(-log_precision / 2)[..., None]

    def _deviations(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """Draws of x - location for rows that all have a precision of one."""
        z = jax.random.normal(key, (*self.batch_shape, n, *self.event_shape), self.dof.dtype)
        return linalg.matmul(z, linalg.transpose(linalg.cholesky(self.scatter)))


@jax.custom_jvp
def _log_tail(dof: Array, d: Array, distance: Array) -> Array:
    """The tail -(dof + d) / 2 log(1 + distance / dof), flat in many degrees of freedom."""
    return -(dof + d) / 2 * jnp.log1p(distance / dof)


@_log_tail.defjvp
def _log_tail_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    dof, d, distance = primals
    total = dof + distance
    share = distance / total
    by_dof = 0.5 * (d / dof * share - x_minus_log1p(-share, dof / total))
    by_d, by_distance = -0.5 * jnp.log1p(distance / dof), -(dof + d) / (2 * total)
    return _log_tail(*primals), by_dof * tangents[0] + by_d * tangents[1] + by_distance * tangents[2]


def _degrees(inequality: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The degrees of freedom at which log h - digamma(h), h = dof / 2, is this."""
    low, high = (math.log(limit / 2) for limit in (LEAST, MOST[inequality.dtype.itemsize]))
    c = jnp.maximum(inequality, math.exp(-high) / 4)
    # Within a hundredth or two (Minka 2002, Estimating a gamma distribution).
    guess = (3 - c + jnp.sqrt((c - 3) ** 2 + 24 * c)) / (12 * c)
    log_h = root(
        lambda z: c - log_minus_digamma(jnp.exp(z)), jnp.full_like(c, low), jnp.full_like(c, high), jnp.log(guess)
    )
    return 2 * jnp.exp(log_h)
