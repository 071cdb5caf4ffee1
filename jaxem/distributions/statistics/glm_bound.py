"""A Newton step for linear predictors that never lowers the log-likelihood, and its statistics.

Let eta = (1, z) theta, one predictor or several, and f(eta) the log-density of a row (logistic, Poisson, or the log of
a softmax). Then -f is convex, its third derivative is at most its second, and a change d of eta obeys

    f(eta + d) >= f + f' d - c(r) d^T (-f'') d,  c(r) = (e^r - 1 - r) / r^2         Bach 2010, proposition 1

where r is |d|, or the range of the d of several predictors. Let g be the sum of the slopes, H that of the curvatures,
D = H^-1 g Newton's step, N = g D, and delta = t D + e with H-orthogonal parts. Convexity separates the two, with any
1/p + 1/q = 1, and the sum over rows has the lower bound

    Q(delta) = t N - c(p |t| r) p t^2 N - c(q s) q e^T H e,   s^2 = R e^T H e

r is the largest change that D makes within the limits of the inputs, and R the largest x^T H^-1 x. Q touches at
delta = 0, and its maximiser is Newton's step, shortened:

    e = 0,  t = log(1 + r) / (p r)                                                  (Sun and Tran-Dinh 2019)

Near the maximum r goes to zero and a step leaves 1 - 1 / p of the distance, a hundredth of that in nats.
"""

from __future__ import annotations

from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.linalg import HIGHEST, matmul
from jaxem.core.pytree import module, replace
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.moments import has_weight

ALONG = 1.1
"""p: the smaller, the nearer to Newton's step, and the steeper Q falls off beside it."""


@module
class GLMBound(Referenced):
    """Sums over weighted rows, at the parameters that they were made with; quadratic priors are of the same kind.

    M predictors of P inputs; a row is (1, z - centre).

    Attributes:
        rows: `[...]`, sum of w; zero for a prior.
        curvature: `[..., M, P + 1, M, P + 1]`, sum of w (minus the second derivative).
        linear: `[..., M, P + 1]`, sum of w (the first derivative), plus the curvature times the parameters: of a
            quadratic it is the linear term.
        reach: `[..., 2, P]`, how far the inputs of any member reach below the centre, and above it; -inf without.
        level: `[..., M]`, the predictors at the centre.
        slopes: `[..., M, P]`.
        centre: `[..., P]`.
    """

    sums = ("rows", "curvature", "linear")
    extremes = ("reach",)

    rows: Array
    curvature: Array
    linear: Array
    reach: Array
    level: Array
    slopes: Array
    centre: Array

    def about(self, centre: Float[Array, "*batch p"]) -> Self:
        """The statistics of the same rows about another centre."""
        shift = self.centre - centre
        eye = jnp.broadcast_to(jnp.eye(shift.shape[-1], dtype=shift.dtype), (*shift.shape, shift.shape[-1]))
        first = jnp.eye(1, shift.shape[-1] + 1, dtype=shift.dtype)
        first = jnp.broadcast_to(first, (*shift.shape[:-1], *first.shape))
        move = jnp.concatenate([first, jnp.concatenate([shift[..., None], eye], axis=-1)], axis=-2)
        moved = jnp.einsum("...ab,...mbnc->...manc", move, self.curvature, precision=HIGHEST)
        return replace(
            self,
            curvature=jnp.einsum("...manc,...dc->...mand", moved, move, precision=HIGHEST),
            linear=jnp.einsum("...ab,...mb->...ma", move, self.linear, precision=HIGHEST),
            reach=self.reach + jnp.stack([-shift, shift], axis=-2),
            level=self.level - jnp.sum(self.slopes * shift[..., None, :], axis=-1),
            centre=centre,
        )

    def aligned(self, other: Self) -> tuple[Self, Self]:
        """Both statistics about the centre of the first, at the parameters of the first with rows: a prior has none."""
        other, mine = other.about(self.centre), self.rows > 0
        level = jnp.where(mine[..., None], self.level, other.level)
        slopes = jnp.where(mine[..., None, None], self.slopes, other.slopes)
        return replace(self, level=level, slopes=slopes), other

    @classmethod
    def quadratic(cls, curvature: Array, level: Array, slopes: Array, centre: Array) -> GLMBound:
        """The statistics of a Gaussian prior: its precision and its mean, without rows."""
        at = jnp.concatenate([level[..., None], slopes], axis=-1)
        none = jnp.zeros_like(centre)
        reach = jnp.full((*centre.shape[:-1], 2, centre.shape[-1]), -jnp.inf, centre.dtype)
        return cls(none.sum(-1), curvature, _applied(curvature, at), reach, level, slopes, centre)

    def value(self, level: Float[Array, "*batch m"], slopes: Float[Array, "*batch m p"]) -> Float[Array, "*batch"]:
        """Q for other parameters, `level` at this centre: the lower bound above."""
        here = self._central()
        level = level + jnp.sum(slopes * (here.centre - self.centre)[..., None, :], axis=-1)
        change = jnp.concatenate([(level - here.level)[..., None], slopes - here.slopes], axis=-1)
        white = here._white()
        slope, newton, gain = here._newton(white)
        length = jnp.sum(slope * change, axis=(-1, -2)) / jnp.where(gain > 0, gain, 1)
        beside = change - length[..., None, None] * newton
        size = jnp.sum(beside * _applied(here.curvature, beside), axis=(-1, -2))
        # A quadratic is what it is.
        p = jnp.where(self.rows > 0, ALONG, 1.0).astype(size.dtype)
        q = jnp.where(self.rows > 0, ALONG / (ALONG - 1), 1.0).astype(size.dtype)
        along = p * length**2 * gain * _growth((p * length * here._farthest(newton)) ** 2)
        return length * gain - along - q * size * _growth(q**2 * here._leverage(white) * size)

    def step(self) -> tuple[Float[Array, "*batch m"], Float[Array, "*batch m p"]]:
        """The parameters at the maximum of the bound: level at this centre, and slopes."""
        here = self._central()
        _, newton, _ = here._newton(here._white())
        farthest = here._farthest(newton)
        some = farthest > 0
        shorter = jnp.log1p(farthest) / jnp.where(some, farthest, 1) / ALONG
        change = jnp.where(some, shorter, jnp.where(self.rows > 0, 1 / ALONG, 1.0))[..., None, None] * newton
        level, slopes = here.level + change[..., 0], here.slopes + change[..., 1:]
        return level + jnp.sum(slopes * (self.centre - here.centre)[..., None, :], axis=-1), slopes

    def _central(self) -> GLMBound:
        """The statistics about the centre of the curvature, where level and slopes are least correlated."""
        predictors = np.arange(self.level.shape[-1])
        own = jnp.sum(self.curvature[..., predictors, 0, predictors, :], axis=-2)
        some = has_weight(own[..., :1])
        return self.about(self.centre + jnp.where(some, own[..., 1:] / jnp.where(some, own[..., :1], 1), 0))

    def _white(self) -> Float[Array, "*batch s s"]:
        size = self.linear.shape[-1] * self.linear.shape[-2]
        return linalg.whitening(self.curvature.reshape(*self.rows.shape, size, size))

    def _newton(self, white: Float[Array, "*batch s s"]) -> tuple[Array, Array, Array]:
        """The slope g at the parameters that the rows were seen with, Newton's step D, and N = g D."""
        slope = self.linear - _applied(self.curvature, jnp.concatenate([self.level[..., None], self.slopes], axis=-1))
        half = matmul(white, slope.reshape(*self.rows.shape, -1, 1))
        newton = matmul(linalg.transpose(white), half).reshape(slope.shape)
        return slope, newton, jnp.sum(half**2, axis=(-1, -2))

    @property
    def _reach(self) -> Float[Array, "*batch 2 p"]:
        """The reach, zero where there are no rows."""
        return jnp.where(self.rows[..., None, None] > 0, self.reach, 0)

    def _pairs(self, of: Any) -> list[Array]:
        """`of(k, i)` of any two predictors; `of(k, None)` of one and that of the class of reference, which is zero."""
        predictors = range(self.level.shape[-1])
        return [of(k, None) for k in predictors] + [of(k, i) for k in predictors for i in range(k)]

    def _farthest(self, change: Float[Array, "*batch m q"]) -> Float[Array, "*batch"]:
        """The bound r on how much a change of the parameters changes a predictor, or the difference of two."""
        low, high = -self._reach[..., 0, :], self._reach[..., 1, :]

        def most(k: int, i: int | None) -> Array:
            both = change[..., k, :] if i is None else change[..., k, :] - change[..., i, :]
            at_low, at_high = both[..., 1:] * low, both[..., 1:] * high
            highest = both[..., 0] + jnp.sum(jnp.maximum(at_low, at_high), axis=-1)
            lowest = both[..., 0] + jnp.sum(jnp.minimum(at_low, at_high), axis=-1)
            return jnp.maximum(jnp.abs(highest), jnp.abs(lowest))

        return jnp.where(self.rows > 0, jnp.max(jnp.stack(self._pairs(most)), axis=0), 0)

    def _leverage(self, white: Float[Array, "*batch s s"]) -> Float[Array, "*batch"]:
        """The bound R on the square of any row's change of a predictor, or difference of two, in units of e^T H e."""
        m, size = self.linear.shape[-2:]
        inverse = matmul(linalg.transpose(white), white).reshape(*self.rows.shape, m, size, m, size)
        limit = jnp.max(jnp.abs(self._reach), axis=-2)
        reach = jnp.concatenate([jnp.ones_like(limit[..., :1]), limit], axis=-1)

        def most(k: int, i: int | None) -> Array:
            block = inverse[..., k, :, k, :]
            if i is not None:
                block = block + inverse[..., i, :, i, :] - inverse[..., k, :, i, :] - inverse[..., i, :, k, :]
            return jnp.sum(jnp.abs(block) * linalg.outer(reach, reach), axis=(-1, -2))

        return jnp.where(self.rows > 0, jnp.max(jnp.stack(self._pairs(most)), axis=0), 0)


def _applied(curvature: Array, change: Float[Array, "*batch m q"]) -> Float[Array, "*batch m q"]:
    return jnp.einsum("...manb,...nb->...ma", curvature, change, precision=HIGHEST)


def _growth(squared: Array) -> Array:
    """(e^s - 1 - s) / s^2 of s^2: a half at zero, where it has no slope to speak of."""
    some = squared > 0
    s = jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1)), 0)
    series = jnp.zeros_like(s)
    for k in range(14, 0, -1):
        series = (series * s + 1) / (k + 1)
    small = s < 0.5
    large = jnp.where(small, 1, s)
    return jnp.where(small, series, (jnp.expm1(large) - large) / large**2)
