"""The Laplace family: absolute deviations from a median."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive, real
from jaxem.core.pytree import module, replace
from jaxem.core.summation import totals
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family
from jaxem.distributions.registry import family
from jaxem.distributions.statistics import quantiles
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.moments import has_weight, resolution


@module
class Deviations(Referenced):
    """Absolute deviations of weighted rows from a place, each as the parabola that touches it at `reference`.

    With `at = location - reference`, their sum is at most
    `absolute - pull at + stiffness at^2 / 2 + resting |at|`, and just that at the reference.

    Attributes:
        rows: `[...]` sum of w.
        absolute: `[...]` sum of w |r|, with r = x - reference.
        pull: `[...]` sum of w sign r.
        stiffness: `[...]` sum of w / |r|.
        resting: `[...]` sum of w over the rows at the reference itself: no parabolas, and no part of the two before.
        reference: `[...]`.
    """

    sums = ("rows", "absolute", "pull", "stiffness", "resting")

    rows: Array
    absolute: Array
    pull: Array
    stiffness: Array
    resting: Array
    reference: Array

    def bound(self, at: Array) -> Array:
        """The sum of absolute deviations, at most, from a place that is `at` away from the reference."""
        return self.absolute - self.pull * at + 0.5 * self.stiffness * at**2 + self.resting * jnp.abs(at)

    def about(self, reference: Float[Array, "*batch"]) -> Self:
        """The statistics about another reference; rows at this one become parabolas as well."""
        at = reference - self.reference
        moved = at != 0
        distance = jnp.abs(jnp.where(moved, at, 1))
        return replace(
            self,
            absolute=self.bound(at),
            pull=self.pull - self.stiffness * at - self.resting * jnp.sign(at),
            stiffness=self.stiffness + jnp.where(moved, self.resting / distance, 0),
            resting=jnp.where(moved, 0, self.resting),
            reference=reference,
        )


@family("laplace", "Laplace numbers", units="each")
class Laplace(Family):
    """The Laplace family: two exponentials back to back, fitted by the median and the mean absolute deviation from it.

    log p(x) = -log(2 scale) - |x - location| / scale

    EM takes |r| <= (r^2 / c + c) / 2, which touches at c = |r|: the E-step of a Gaussian whose variances are hidden and
    exponential (Andrews and Mallows 1974; Phillips 2002). Rows at the location itself keep their |r|: enough of them
    hold it there, and too few do not, so a step does not stop short at a row.

    Args:
        location: `[...]`, in the units of x.
        scale: `[...]`, positive, in the units of x: the mean absolute deviation.

    Raises:
        ValueError: a scale that is not above zero.

    >>> import jaxem as jem
    >>> jem.Laplace(0.0, 0.5).log_prob([1.0, 2.0]).tolist()
    [-2.0, -4.0]
    """

    location: Float[Array, "*batch"] = parameter(real)
    scale: Float[Array, "*batch"] = parameter(positive)

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = jnp.broadcast_shapes(self.location.shape, self.scale.shape)
        for name in ("location", "scale"):
            object.__setattr__(self, name, jnp.broadcast_to(getattr(self, name), shape))

    def log_density(self, columns: Float[Array, "n"]) -> Float[Array, "*batch n"]:
        location, scale = self.location[..., None], self.scale[..., None]
        return -jnp.log(2 * scale) - jnp.abs(linalg.lead(columns, location.ndim) - location) / scale

    def statistics(self, x: Any, weight: Array) -> Deviations:
        """The absolute deviations from each member's location, as parabolas."""
        difference = linalg.lead(self.observe(x).columns, weight.ndim) - self.location[..., None]
        size = jnp.abs(difference)
        away = size > float(jnp.finfo(size.dtype).eps) * self.scale[..., None]
        rows, absolute, pull, stiffness, resting = totals(
            weight,
            weight * size,
            jnp.where(away, weight * jnp.sign(difference), 0),
            jnp.where(away, weight / jnp.where(away, size, 1), 0),
            jnp.where(away, 0, weight),
        )
        return Deviations(rows, absolute, pull, stiffness, resting, self.location)

    def expected_statistics(self) -> Deviations:
        # E|x - place| is at most the parabola that touches it at the location, of stiffness 1 / scale.
        ones, zeros = jnp.ones_like(self.scale), jnp.zeros_like(self.scale)
        return Deviations(ones, self.scale, zeros, 1 / self.scale, zeros, self.location)

    def expected_log_prob(self, statistics: Deviations) -> Float[Array, "*batch"]:
        """Q: -rows log(2 scale) - (the bound on absolute deviations) / scale."""
        bound = statistics.bound(self.location - statistics.reference)
        return -statistics.rows * jnp.log(2 * self.scale) - bound / self.scale

    def m_step(self, statistics: Deviations) -> Self:
        """The location at the bottom of the parabolas, or the reference if rows there hold it, and the scale."""
        some, stiff = has_weight(statistics.rows), statistics.stiffness > 0
        pull = jnp.sign(statistics.pull) * jnp.maximum(jnp.abs(statistics.pull) - statistics.resting, 0)
        at = jnp.where(stiff, pull / jnp.where(stiff, statistics.stiffness, 1), 0)
        location = jnp.where(some, statistics.reference + at, self.location)
        scale = statistics.bound(at) / jnp.where(some, statistics.rows, 1)
        scale = jnp.maximum(scale, jnp.sqrt(resolution(location)))
        return replace(self, location=location, scale=jnp.where(some, scale, self.scale))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Deviations:
        """A row about the scale, smaller the more members share the data, and a hundredth of one about the location."""
        one = self.expected_statistics()
        share = 1 / jnp.asarray(members, self.scale.dtype)
        return replace(one, absolute=one.absolute * share, stiffness=one.stiffness / 100)

    def floor(self, x: Any, weight: Array) -> Deviations:
        """A floor without rows, which holds up ties at zero."""
        rows, zero = self.observe(x), jnp.zeros_like(self.scale)
        least = jnp.sqrt(quantiles.at_zero(rows.columns[None], rows.mask_weight(weight))[0])
        return Deviations(zero, jnp.broadcast_to(least, zero.shape), zero, zero, zero, self.location)

    def is_degenerate(self, floor: Deviations) -> Array:
        """Whether the scale is no more than rounding."""
        return (self.scale < 2 * jnp.sqrt(resolution(self.location))) | (self.scale < 10 * floor.absolute)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        # So small that rows in any units are away from it: at a scale of one, those near 1e-7 would all rest there.
        return cls(jnp.broadcast_to(row, members), jnp.full(members, jnp.finfo(row.dtype).tiny, row.dtype))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        t = (linalg.lead(x, self.location.ndim + 1) - self.location[..., None]) / self.scale[..., None]
        tail = jnp.exp(-jnp.abs(t)) / 2
        return cumulative.Tails(jnp.where(t < 0, tail, 1 - tail), jnp.where(t < 0, 1 - tail, tail))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` draws from each member, `[*batch_shape, n]`."""
        draws = jax.random.laplace(key, (*self.batch_shape, n), self.scale.dtype)
        return self.location[..., None] + self.scale[..., None] * draws
