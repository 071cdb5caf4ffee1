"""The von Mises family: directions, as angles in radians."""

from __future__ import annotations

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import i0e, i1e
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.constraints import from_zero, parameter, real
from jaxem.core.pytree import module, replace
from jaxem.core.root_finding import root
from jaxem.core.summation import totals
from jaxem.distributions import cumulative
from jaxem.distributions.base import flat_members
from jaxem.distributions.gaussian import FLOOR
from jaxem.distributions.members import ScalarParameters
from jaxem.distributions.registry import family
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.moments import has_weight
from jaxem.distributions.support import ANGLE

LARGE = {4: 20.0, 8: 200.0}
"""Concentrations, by bytes of a float, from which seven terms of the series of I1 / I0 are better than the quotient."""


@module
class Directions(Referenced):
    """Sums over weighted points u of the unit circle, about the point r in the direction `reference`.

    Attributes:
        rows: `[...]`, sum of w.
        cosines, sines: `[...]`, sum of w (u - r).
        chord: `[...]`, sum of w |u - r|^2 / 2 = sum of w (1 - cos(x - reference)).
        reference: `[...]`, radians.
    """

    sums = ("rows", "cosines", "sines", "chord")

    rows: Array
    cosines: Array
    sines: Array
    chord: Array
    reference: Array

    def about(self, reference: Float[Array, "*batch"]) -> Self:
        """The statistics of the same rows about another direction."""
        across, along = _between(reference, self.reference)  # r' - r
        chord = self.chord - self.cosines * across - self.sines * along + self.rows * (across**2 + along**2) / 2
        cosines, sines = self.cosines - self.rows * across, self.sines - self.rows * along
        return replace(self, cosines=cosines, sines=sines, chord=chord, reference=reference)

    def direction(self) -> Float[Array, "*batch"]:
        """The mean direction, in (-pi, pi]."""
        x = self.rows * jnp.cos(self.reference) + self.cosines
        y = self.rows * jnp.sin(self.reference) + self.sines
        nowhere = (x == 0) & (y == 0)
        angle = jnp.arctan2(jnp.where(nowhere, 0, y), jnp.where(nowhere, 1, x))
        return jnp.where(angle <= -math.pi, -angle, angle)


def _between(a: Array, b: Array) -> tuple[Array, Array]:
    """The difference a - b of points of the unit circle, to all digits where they are close."""
    middle, half = (a + b) / 2, jnp.sin((a - b) / 2)
    return -2 * jnp.sin(middle) * half, 2 * jnp.cos(middle) * half


@family("von_mises", "von Mises angles", column=ANGLE)
class VonMises(ScalarParameters):
    """The von Mises family: angles about a mean direction.

    log p(x) = concentration cos(x - mean) - log I0(concentration) - log 2 pi

    Args:
        mean: `[...]`, radians. M-steps put it into (-pi, pi].
        concentration: `[...]`, zero or above: zero is the uniform distribution, and 1 / concentration about the
            variance where it is large.

    Raises:
        ValueError: a negative concentration.

    Mardia and Jupp (2000), Directional Statistics, chapter 3.

    >>> import jaxem as jem
    >>> jem.VonMises(0.0, [0.0, 2.0]).log_prob([0.0, 6.2831853]).round(4).tolist()
    [[-1.8379, -1.8379], [-0.6619, -0.6619]]
    """

    mean: Float[Array, "*batch"] = parameter(real)
    concentration: Float[Array, "*batch"] = parameter(from_zero)

    @classmethod
    def seeding_features(cls, x: Array, weight: Array, **sizes: int) -> Float[Array, "n 2"]:
        """Rows as points of the unit circle."""
        return jnp.stack([jnp.cos(x), jnp.sin(x)], axis=-1)

    def columns(self, x: Array) -> tuple[Array, Array]:
        """Points of the unit circle; NaN where x is not finite."""
        return jnp.cos(x), jnp.sin(x)

    def _from_mean(self, columns: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """The difference of each row from the mean direction, as points of the circle, and half of its square."""
        mean = self.mean[..., None]
        cosine, sine = (linalg.lead(jnp.where(jnp.isfinite(c), c, 0), mean.ndim) for c in columns)
        across, along = cosine - jnp.cos(mean), sine - jnp.sin(mean)
        return across, along, (across**2 + along**2) / 2

    def log_density(self, columns: tuple[Array, Array]) -> Float[Array, "*batch n"]:
        concentration = self.concentration[..., None]
        chord = self._from_mean(columns)[2]
        log_prob = -concentration * chord - _log_i0e(concentration) - math.log(2 * math.pi)
        return jnp.where(linalg.lead(self.contains(columns), log_prob.ndim), log_prob, -jnp.inf)

    def statistics(self, x: Any, weight: Array) -> Directions:
        """Rows, and their points and chords about each member's mean direction."""
        parts = (weight * part for part in self._from_mean(self.observe(x).columns))
        rows, cosines, sines, chord = totals(weight, *parts)
        return Directions(rows, cosines, sines, chord, self.mean)

    def expected_statistics(self) -> Directions:
        chord = _shortfall(self.concentration)
        return Directions(
            jnp.ones_like(chord), -chord * jnp.cos(self.mean), -chord * jnp.sin(self.mean), chord, self.mean
        )

    def expected_log_prob(self, statistics: Directions) -> Float[Array, "*batch"]:
        """Q: -concentration chord about the mean - rows log(e^-concentration I0(concentration))."""
        chord = statistics.about(self.mean).chord
        return -self.concentration * chord - statistics.rows * _log_i0e(self.concentration)

    def m_step(self, statistics: Directions) -> Self:
        """The mean direction, and the concentration with I1 / I0 = the mean length of the sum of the points."""
        some = has_weight(statistics.rows)
        mean = jnp.where(some, statistics.direction(), self.mean)
        rows = jnp.where(some, statistics.rows, 1)
        eps = float(jnp.finfo(rows.dtype).eps)
        short = jnp.where(some, statistics.about(mean).chord / rows, 0.5)
        short = jnp.clip(short, eps**2, 1 - eps)
        concentration = _concentration(short)
        return replace(self, mean=mean, concentration=jnp.where(some, concentration, self.concentration))

    def floor(self, x: Any, weight: Array) -> Directions:
        """A floor without rows: `FLOOR` times the mean chord of all the data about their mean direction."""
        rows = self.observe(x)
        weight = jnp.where(self.contains(rows.columns), rows.mask_weight(weight), 0)
        cosine, sine = (jnp.sum(weight * jnp.where(weight > 0, c, 0)) for c in rows.columns)
        total = jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
        spread = jnp.clip(1 - jnp.hypot(cosine, sine) / total, 1e-6, 1) * FLOOR[weight.dtype.itemsize]
        zero = jnp.zeros_like(self.mean)
        return Directions(zero, zero, zero, zero + spread, self.mean)

    def is_degenerate(self, floor: Directions) -> Array:
        """Whether the spread is within three times the floor's."""
        return 20 * floor.chord * self.concentration > 1

    def expected_rows(self, x: Any, weight: Array) -> Float[Array, "n"]:
        """The direction of the mean of their points."""
        length = 1 - _shortfall(self.concentration)
        points = length * jnp.cos(self.mean), length * jnp.sin(self.mean)
        cosine, sine = (jnp.einsum("kn,k->n", *flat_members(weight, p), precision=linalg.HIGHEST) for p in points)
        return jnp.arctan2(sine, cosine)

    @classmethod
    def initial_members(cls, row: Array, members: tuple[int, ...], **sizes: int) -> Self:
        return cls(jnp.broadcast_to(row, members), jnp.ones(members, row.dtype))

    def tails(self, x: Float[Array, "n"]) -> cumulative.Tails:
        """P(-pi < X <= x), of the direction x."""
        # From the half turn that all members share.
        mean, cut = self.mean[..., None], jnp.full_like(self.mean, -math.pi)[..., None]
        x = _turned(linalg.lead(x, mean.ndim))
        first, here = (cumulative.von_mises(_turned(a - mean), self.concentration[..., None]).below for a in (cut, x))
        below = jnp.where(_turned(x - mean) <= _turned(cut - mean), 1 - first + here, here - first)
        below = jnp.where(x == jnp.asarray(math.pi, x.dtype), 1, below)
        return cumulative.Tails(below, 1 - below)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n"]:
        """`n` angles from each member, `[*batch_shape, n]`, in (-pi, pi].

        By rejection from a normal distribution that ends at the half turn: 1 - cos x >= 2 (x / pi)^2, and two draws of
        three are taken.
        """
        return _turned(_deviations(key, self.concentration[..., None], n) + self.mean[..., None])


def _turned(angle: Array) -> Array:
    """The same direction in (-pi, pi]."""
    angle = angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))
    return jnp.where(angle <= -math.pi, math.pi, angle)


def _deviations(key: Array, concentration: Float[Array, "*batch 1"], n: int) -> Float[Array, "*batch n"]:
    """Draws about a mean of zero."""
    shape = (*concentration.shape[:-1], n)
    dtype = concentration.dtype
    # A wide normal for the uniform, too: `more` is what its density then has to spare at the half turn.
    least = jnp.maximum(concentration, 1e-3)
    more = 2 * (least - concentration)
    scale = math.pi / (2 * jnp.sqrt(least))

    def waiting(state: tuple[Array, ...]) -> Array:
        return (state[0] < 100) & ~jnp.all(state[2])

    def draw(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, draws, done = state
        of_angle, of_chance = jax.random.split(jax.random.fold_in(key, count))
        limit = jnp.broadcast_to(math.pi / scale, shape)
        angle = scale * jax.random.truncated_normal(of_angle, -limit, limit, shape, dtype)
        chance = 2 * least * (angle / math.pi) ** 2 - 2 * concentration * jnp.sin(angle / 2) ** 2 - more
        taken = -jax.random.exponential(of_chance, shape, dtype) < chance
        return count + 1, jnp.where(done, draws, angle), done | taken

    state = (jnp.zeros((), int), jnp.zeros(shape, dtype), jnp.zeros(shape, bool))
    return jax.lax.while_loop(waiting, draw, state)[1]


def _shortfall(concentration: Array) -> Array:
    """1 - I1 / I0, the mean of 1 - cos: about 1 / (2 concentration) where that is large."""
    limit = LARGE[concentration.dtype.itemsize]
    large = concentration > limit
    v = 1 / jnp.where(large, concentration, limit)
    small = jnp.where(large, 1, concentration)
    series = v * (1 / 2 + v * (1 / 8 + v * (1 / 8 + v * (25 / 128 + v * (13 / 32 + v * (1073 / 1024 + v * 103 / 32))))))
    return jnp.where(large, series, (i0e(small) - i1e(small)) / i0e(small))


@jax.custom_jvp
def _log_i0e(concentration: Array) -> Array:
    """log(e^-concentration I0(concentration)); JAX's own slope of it cancels where the concentration is large."""
    return jnp.log(i0e(concentration))


@_log_i0e.defjvp
def _log_i0e_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _log_i0e(*primals), -_shortfall(*primals) * tangents[0]


def _concentration(short: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The concentration with I1 / I0 = 1 - short, by log-odds, nearly a straight line in log concentration."""
    length = 1 - short
    low, high = jnp.log(2 * length), -jnp.log(short)
    guess = low + jnp.log1p(-(length**2) / 2) + high - jnp.log1p(length)  # Banerjee et al. 2005

    def excess(log_concentration: Array) -> Array:
        concentration = jnp.exp(log_concentration)
        missing = _shortfall(concentration)
        small = jnp.minimum(concentration, 1)
        log_ratio = jnp.where(concentration > 1, jnp.log1p(-missing), jnp.log(i1e(small) / i0e(small)))
        return log_ratio - jnp.log(missing) - jnp.log(length) + jnp.log(short)

    return jnp.exp(root(excess, low, high, guess))
