"""Members of different families side by side."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.pytree import module, replace
from jaxem.data.missing import cells
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family, Pullback, Rows, Statistics, convert_parameters
from jaxem.distributions.product import Sized, sized
from jaxem.distributions.registry import structure
from jaxem.distributions.support import Support


@module
class MaskedRows:
    """Rows as one part reads them; an example stands in the place of those that it cannot produce.

    Attributes:
        rows: as the part reads them.
        inside: `[n]` bool, can the part produce them?
    """

    rows: Rows
    inside: Bool[Array, "n"]


@structure
class Either(Family):
    """A family whose members are of different families: those of the first part, then those of the second, and so on.

    A `Mixture` of it mixes what no family mixes by itself: a `PointMass` at zero and a `Poisson` are a zero-inflated
    Poisson (Lambert 1992). An `HMM` of it has states of different kinds.

    Args:
        parts: families that read rows of the same shape, whose `batch_shape` differ in their last axis at most.

    Raises:
        ValueError: no parts, or parts that do not stand side by side.

    >>> import jaxem as jem
    >>> inflated = jem.Mixture([0.5, 0.5], jem.Either((jem.PointMass([0.0]), jem.Poisson([1.0]))))
    >>> inflated.log_prob([0, 1]).round(4).tolist()
    [-0.3799, -1.6931]
    """

    parts: tuple[Family, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        convert_parameters(self)
        if not self.parts or any(not part.batch_shape for part in self.parts):
            raise ValueError(
                "Either: it needs parts with a member axis each: Poisson([1.0]) has one, Poisson(1.0) none"
            )
        kinds = {(part.batch_shape[:-1], part.event_shape) for part in self.parts}
        if len(kinds) != 1:
            shapes = [(part.batch_shape, part.event_shape) for part in self.parts]
            raise ValueError(f"Either: parts have (batch, event) shapes {shapes}; only the last batch axis may differ")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return (*self.parts[0].batch_shape[:-1], sum(self._sizes))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.parts[0].event_shape

    @property
    def scalar(self) -> bool:  # type: ignore[override]
        return not self.event_shape

    @property
    def support(self) -> Support:  # type: ignore[override]
        names = dict.fromkeys(part.support.name for part in self.parts)
        return Support(", or ".join(names), self.contains, self.parts[0].support.example)

    @property
    def _sizes(self) -> list[int]:
        return [part.batch_shape[-1] for part in self.parts]

    @property
    def _ends(self) -> list[int]:
        """Where the members of one part end and those of the next begin."""
        return [sum(self._sizes[:i]) for i in range(1, len(self.parts))]

    def _split(self, values: Float[Array, "*batch n"]) -> list[Array]:
        """An array over all members, split into the members of each part."""
        return jnp.split(values, self._ends, axis=-2)

    def in_use(self, used: Array) -> dict[str, Any]:
        """Members of each part."""
        return {"parts": tuple(jnp.split(used, self._ends, axis=-1))}

    def columns(self, x: Array) -> tuple[MaskedRows, ...]:
        return self.observe_incomplete(x).columns

    def observe_incomplete(self, x: Any) -> Rows:
        """Observed data with missing rows, as each part reads them: all rows."""
        return Rows(tuple(_possible(part, x) for part in self.parts))

    def expand(self, x: Rows) -> Rows:
        """Observed data prepared by each part."""
        each = zip(self.parts, x.columns, strict=True)
        return Rows(tuple(replace(block, rows=part.expand(block.rows)) for part, block in each))

    def contains(self, columns: tuple[MaskedRows, ...]) -> Array:
        return jnp.stack([block.inside for block in columns]).any(0)

    def log_density(self, columns: tuple[MaskedRows, ...]) -> Float[Array, "*batch n"]:
        return self.e_step(Rows(columns))[0]

    def statistics(self, x: Any, weight: Array) -> tuple[Statistics, ...]:
        """The statistics of each part."""
        return self.e_step(x)[1](weight)

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        blocks = self.expand(self.observe(x)).columns
        steps = [part.e_step(block.rows) for part, block in zip(self.parts, blocks, strict=True)]
        insides = [linalg.lead(block.inside, len(self.batch_shape) + 1) for block in blocks]
        each = [jnp.where(inside, log_prob, -jnp.inf) for inside, (log_prob, _) in zip(insides, steps, strict=True)]

        def pullback(weight: Array) -> tuple[Statistics, ...]:
            weights = zip(steps, insides, self._split(weight), strict=True)
            return tuple(back(jnp.where(inside, weight, 0)) for (_, back), inside, weight in weights)

        return jnp.concatenate(each, axis=-2), pullback

    def expected_statistics(self) -> tuple[Statistics, ...]:
        return tuple(part.expected_statistics() for part in self.parts)

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> tuple[Statistics, ...]:
        """A weak prior's row, by each part."""
        each = zip(self.parts, self.observe(x).columns, strict=True)
        return tuple(part.unit_prior(members, block.rows, jnp.where(block.inside, weight, 0)) for part, block in each)

    def expected_log_prob(self, statistics: tuple[Statistics, ...]) -> Float[Array, "*batch"]:
        """Q of each member, by its part."""
        each = zip(self.parts, statistics, strict=True)
        return jnp.concatenate([part.expected_log_prob(s) for part, s in each], axis=-1)

    def m_step(self, statistics: tuple[Statistics, ...]) -> Self:
        """The M-step of each part."""
        return replace(self, parts=tuple(part.m_step(s) for part, s in zip(self.parts, statistics, strict=True)))

    def floor(self, x: Any, weight: Array) -> tuple[Statistics, ...]:
        blocks = self.observe(x).columns
        each = zip(self.parts, blocks, strict=True)
        return tuple(part.floor(block.rows, jnp.where(block.inside, weight, 0)) for part, block in each)

    def is_degenerate(self, floor: tuple[Statistics, ...]) -> Array:
        each = zip(self.parts, floor, strict=True)
        return jnp.concatenate([part.is_degenerate(f) for part, f in each], axis=-1)

    def columnwise(self, x: Array) -> cumulative.Columnwise:
        """Those of each part."""
        return cumulative.concatenated([part.columnwise(x) for part in self.parts], axis=-3)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n *event"]:
        """`n` rows from each member, `[*batch_shape, n, *event_shape]`."""
        keys = jax.random.split(key, len(self.parts))
        draws = [part.sample(k, n) for part, k in zip(self.parts, keys, strict=True)]
        return jnp.concatenate(draws, axis=len(self.batch_shape) - 1)

    def expected_rows(self, x: Any, weight: Array) -> Array:
        """Expected rows: the sum over the parts."""
        each = zip(self.parts, self.observe(x).columns, self._split(weight), strict=True)
        return sum(part.expected_rows(block.rows, w) for part, block, w in each)  # type: ignore[return-value]

    def drawn_rows(self, key: Array, x: Any, n: int) -> Array:
        """Draws of each part."""
        keys = jax.random.split(key, len(self.parts))
        each = zip(self.parts, self.observe(x).columns, keys, strict=True)
        draws = [part.drawn_rows(k, block.rows, n) for part, block, k in each]
        return jnp.concatenate(draws, axis=len(self.batch_shape) - 1)

    @staticmethod
    def of(*families: Any) -> EitherFamily:
        """One member of each family and all others of the last, as `Mixture.start` takes them.

        `Either.of(jem.PointMass, jem.Poisson)`: with three components, a point mass at zero and two Poissons.
        """
        return EitherFamily(tuple(sized(family) for family in families))


def _possible(part: Family, x: Any) -> MaskedRows:
    inside = part.inside(part.observe(x))
    values = cells(x)
    example = jnp.broadcast_to(jnp.asarray(part.support.example, values.dtype), part.event_shape)
    kept = inside.reshape(-1, *(1 for _ in part.event_shape))
    values = jnp.where(kept, values, example[None])
    return MaskedRows(part.observe(values if cells(x) is x else replace(x, values=values)), inside)


@dataclasses.dataclass(frozen=True)
class EitherFamily:
    """A family of members of different families, still to be fitted: what `start` takes."""

    parts: tuple[Sized, ...]

    def start(self, x: Any, weight: Array) -> Either:
        """Members fitted to weighted rows, which they share out in order."""
        last, ends = len(self.parts) - 1, range(1, len(self.parts))
        if weight.shape[-2] <= last:
            raise ValueError(f"Either: {weight.shape[-2]} components for {last + 1} families; each needs one")
        blocks = jnp.split(weight, list(ends), axis=-2)
        return Either(tuple(part.start(x, block) for part, block in zip(self.parts, blocks, strict=True)))

    def told(self, x: Any, weight: Any) -> EitherFamily:
        """Each family with the sizes that the rows tell."""
        return EitherFamily(tuple(part.told(x, weight) for part in self.parts))

    def seeding_features(self, x: Array, weight: Array) -> Array:
        """Rows as the last of the families sees them."""
        return self.parts[-1].seeding_features(x, weight)
