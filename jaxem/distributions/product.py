"""Independent columns: blocks of different kinds (`Product`), or many columns of one kind (`Independent`)."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxem.core.pytree import replace
from jaxem.data.missing import some_columns
from jaxem.distributions import cumulative
from jaxem.distributions.base import Family, Pullback, Rows, Statistics, convert_parameters
from jaxem.distributions.registry import structure
from jaxem.distributions.support import Support


@dataclasses.dataclass(frozen=True)
class Sized:
    """A family with sizes that rows alone do not tell: what `start` takes.

    Attributes:
        family: a family (a class).
        columns: how many columns of the table it reads.
        sizes: `(("categories", 3),)` and the like.
    """

    family: Any
    columns: int = 1
    sizes: tuple[tuple[str, int], ...] = ()

    def start(self, x: Any, weight: Array) -> Any:
        """Members of the family fitted to weighted rows."""
        if self.family.scalar and np.ndim(x) == 2 and np.shape(x)[1] > 1:
            return Independent.of(self).start(x, weight)
        return self.family.start(x, weight, **dict(self.sizes))

    def told(self, x: Any, weight: Any) -> Sized:
        """The family with the sizes that rows tell, as far as they are not given."""
        if not isinstance(self.family, type):  # made of others, each of which reads its own
            return dataclasses.replace(self, family=told(self.family, x, weight))
        lacking = self.family.told(np.zeros(0)).keys() - dict(self.sizes).keys()
        if not lacking:
            return self
        name = self.family.__name__
        if isinstance(x, Tracer) or isinstance(weight, Tracer):
            size = min(lacking)
            raise ValueError(
                f"{name}: {size} cannot be read from rows inside jit, vmap or grad; pass "
                f"jem.sized(jem.{name}, {size}=...)"
            )
        values = np.asarray(x, float)
        counted = values[np.isfinite(values) & (np.asarray(weight).reshape(-1, *(1,) * (values.ndim - 1)) > 0)]
        sizes = {**self.family.told(counted), **dict(self.sizes)}
        return dataclasses.replace(self, sizes=tuple(sorted(sizes.items())))

    def seeding_features(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        if self.family.scalar and x.ndim == 2 and x.shape[1] > 1:
            return Independent.of(self).seeding_features(x, weight)
        return self.family.seeding_features(x, weight, **dict(self.sizes))


def told(family: Any, x: Any, weight: Any) -> Any:
    """A family with the sizes that rows tell, as `Mixture.start` takes it; a family of another kind is unchanged.

    Args:
        family: a family, or something that can `start`.
        x: rows.
        weight: `[n]`; rows of weight zero tell nothing.

    Raises:
        ValueError: a size is not given, and the rows are not known (inside `jit`).
    """
    if isinstance(family, type) and not hasattr(family, "sizes"):
        family = sized(family)
    return family.told(x, weight) if hasattr(family, "told") else family


def sized(family: Any, columns: int = 1, **sizes: int) -> Sized:
    """`family` with its sizes, as `Mixture.start` and `Product.of` take it.

    >>> import jaxem as jem
    >>> jem.sized(jem.Categorical, categories=3).sizes
    (('categories', 3),)
    """
    if isinstance(family, (str, Family)):
        # The words name families that are made of others, by what is in this file.
        from jaxem.distributions.words import as_family

        named = as_family(family)
        if not isinstance(named, Sized) or (columns == 1 and not sizes):
            return named
        return Sized(named.family, columns, tuple(sorted((dict(named.sizes) | sizes).items())))
    if isinstance(family, Sized):
        return family
    return Sized(family, columns, tuple(sorted(sizes.items())))


@structure
class Product(Family):
    """Independent blocks of columns, each with a family of its own.

    log p(x) = sum over parts of log p(block of x | part)

    Args:
        parts: families with the same `batch_shape`; each reads as many columns as its `event_shape` says, one if it
            is a family of numbers.

    Raises:
        ValueError: no parts, or parts with different `batch_shape`.

    >>> import jaxem as jem
    >>> model = jem.Product((jem.DiagonalGaussian([0.0], [1.0]), jem.Poisson(2.0)))
    >>> model.log_prob([[0.0, 0.0]]).round(3).tolist()
    [-2.919]
    """

    scalar = False
    parts: tuple[Family, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        convert_parameters(self)
        shapes = {part.batch_shape for part in self.parts}
        if len(shapes) != 1:
            raise ValueError(f"Product: parts have batch shapes {sorted(shapes)}; they must be one and the same")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.parts[0].batch_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (sum(self._widths),)

    @property
    def _widths(self) -> list[int]:
        """The number of columns of each part."""
        return [_width(part) for part in self.parts]

    def columns(self, x: Float[Array, "n d"]) -> tuple[Rows, ...]:
        return self.observe_incomplete(x).columns

    def observe_incomplete(self, x: Any) -> Rows:
        """Observed data with missing cells, each part with its own columns."""
        blocks, at = [], 0
        for part in self.parts:
            columns = slice(at, at + _width(part)) if part.event_shape else at
            blocks.append(part.observe(some_columns(x, columns)))
            at += _width(part)
        return Rows(tuple(blocks))

    def expand(self, x: Rows) -> Rows:
        """Observed data prepared by each part."""
        return Rows(tuple(p.expand(block) for p, block in zip(self.parts, x.columns, strict=True)))

    @property
    def censored(self) -> bool:  # type: ignore[override]
        return any(part.censored for part in self.parts)

    def observations(self, x: Any, weight: Array) -> Array:
        """The observations of the part that has fewest."""
        parts = zip(self.parts, self.observe(x).columns, strict=True)
        return jnp.min(jnp.stack([part.observations(block, weight) for part, block in parts]))

    def bounded(self, x: Any, weight: Array) -> Array:
        """Whether the likelihood of each part has a maximum."""
        parts = zip(self.parts, self.observe(x).columns, strict=True)
        return jnp.all(jnp.stack([jnp.asarray(part.bounded(block, weight)) for part, block in parts]))

    def check(self, x: Any, weight: Array, alone: bool) -> None:
        at = 0
        for part in self.parts:
            part.check(some_columns(x, slice(at, at + _width(part))), weight, alone)
            at += _width(part)

    def inside(self, x: Any) -> Array:
        blocks = self.observe(x).columns
        return jnp.stack([p.inside(block) for p, block in zip(self.parts, blocks, strict=True)]).all(0)

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        blocks = self.observe(x).columns
        steps = [p.e_step(block) for p, block in zip(self.parts, blocks, strict=True)]
        log_prob = sum(log_prob for log_prob, _ in steps)
        return log_prob, lambda weight: tuple(pullback(weight) for _, pullback in steps)  # type: ignore

    def statistics(self, x: Any, weight: Array) -> tuple[Statistics, ...]:
        """The statistics of each part."""
        return self.e_step(x)[1](weight)

    def expected_statistics(self) -> tuple[Statistics, ...]:
        return tuple(part.expected_statistics() for part in self.parts)

    def expected_log_prob(self, statistics: tuple[Statistics, ...]) -> Float[Array, "*batch"]:
        """Q: the sum over the parts."""
        return sum(p.expected_log_prob(s) for p, s in zip(self.parts, statistics, strict=True))  # type: ignore

    def m_step(self, statistics: tuple[Statistics, ...]) -> Self:
        """The M-step of each part."""
        return replace(self, parts=tuple(p.m_step(s) for p, s in zip(self.parts, statistics, strict=True)))

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> tuple[Statistics, ...]:
        """A weak prior's row by each part, whose columns have their share of the room that members share."""
        each = zip(self.parts, self._widths, self.observe(x).columns, strict=True)
        size = self.event_shape[0]
        return tuple(
            part.unit_prior(_apiece(part, members, width / size), block, weight) for part, width, block in each
        )

    def floor(self, x: Any, weight: Array) -> tuple[Statistics, ...]:
        blocks = self.observe(x).columns
        return tuple(p.floor(block, weight) for p, block in zip(self.parts, blocks, strict=True))

    def is_degenerate(self, floor: tuple[Statistics, ...]) -> Array:
        return jnp.stack([p.is_degenerate(f) for p, f in zip(self.parts, floor, strict=True)]).any(0)

    def columnwise(self, x: Float[Array, "n d"]) -> cumulative.Columnwise:
        """Those of each part."""
        each = zip(self.parts, self._blocks(x), strict=True)
        return cumulative.concatenated([part.columnwise(block) for part, block in each], axis=-2)

    def _blocks(self, x: Float[Array, "n d"]) -> list[Array]:
        """The columns that each part reads."""
        blocks = jnp.split(x, np.cumsum(self._widths)[:-1].tolist(), axis=1)
        return [block if part.event_shape else block[:, 0] for part, block in zip(self.parts, blocks, strict=True)]

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, D]`."""
        keys = jax.random.split(key, len(self.parts))
        return self._joined([part.sample(k, n) for part, k in zip(self.parts, keys, strict=True)])

    def rows_like(self, key: Array, x: Float[Array, "n d"]) -> Float[Array, "*batch n d"]:
        """Those of each part."""
        keys = jax.random.split(key, len(self.parts))
        each = zip(self.parts, keys, self._blocks(x), strict=True)
        return self._joined([part.rows_like(k, block) for part, k, block in each])

    def expected_rows(self, x: Any, weight: Array) -> Float[Array, "n d"]:
        blocks = self.observe(x).columns
        return self._joined([p.expected_rows(block, weight) for p, block in zip(self.parts, blocks, strict=True)])

    def drawn_rows(self, key: Array, x: Any, n: int) -> Float[Array, "*batch n d"]:
        blocks, keys = self.observe(x).columns, jax.random.split(key, len(self.parts))
        each = zip(self.parts, blocks, keys, strict=True)
        return self._joined([part.drawn_rows(k, block, n) for part, block, k in each])

    def _joined(self, blocks: list[Array]) -> Array:
        """Blocks of columns side by side."""
        pairs = zip(self.parts, blocks, strict=True)
        return jnp.concatenate([block if part.event_shape else block[..., None] for part, block in pairs], axis=-1)

    @staticmethod
    def of(*families: Any) -> ProductFamily:
        """The product of these families, as `Mixture.start` takes it: `Product.of(jem.Gaussian, jem.Poisson)`."""
        return ProductFamily(tuple(sized(family) for family in families))


@dataclasses.dataclass(frozen=True)
class ProductFamily:
    """A product still to be fitted: what `start` takes."""

    parts: tuple[Sized, ...]

    def start(self, x: Any, weight: Array) -> Product:
        """Members fitted to weighted rows, each part to its own columns."""
        return Product(tuple(part.start(block, weight) for part, block in self._blocks(x)))

    def told(self, x: Any, weight: Any) -> ProductFamily:
        """The product with the sizes that the columns of each part tell."""
        return ProductFamily(tuple(part.told(block, weight) for part, block in self._blocks(x)))

    def seeding_features(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        return jnp.concatenate([part.seeding_features(block, weight) for part, block in self._blocks(x)], axis=1)

    def _blocks(self, x: Array) -> list[tuple[Sized, Array]]:
        ends = np.cumsum([part.columns for part in self.parts])
        if np.ndim(x) != 2 or np.shape(x)[1] != ends[-1]:
            raise ValueError(f"x has shape {np.shape(x)}; the parts of this Product read {ends[-1]} columns")
        blocks = [x[:, end - part.columns : end] for part, end in zip(self.parts, ends, strict=True)]
        return [
            (part, block[:, 0] if part.columns == 1 and part.family.scalar else block)
            for part, block in zip(self.parts, blocks, strict=True)
        ]


@structure
class Independent(Family):
    """Independent columns of one family: the last member axis of `base` becomes the columns of a row.

    log p(x) = sum_d log p(x_d | base[..., d])

    Args:
        base: a family of numbers with `batch_shape [..., D]`.

    Raises:
        ValueError: base has no member axis, or is a family of vectors.

    >>> import jaxem as jem
    >>> jem.Independent(jem.Bernoulli([0.25, 0.5])).log_prob([[1, 1]]).round(4).tolist()
    [-2.0794]
    """

    scalar = False
    base: Family

    def __post_init__(self) -> None:
        if not self.base.batch_shape or self.base.event_shape:
            raise ValueError(
                f"Independent: base has batch shape {self.base.batch_shape} and event shape {self.base.event_shape}; "
                "it must be a family of numbers with at least one member axis"
            )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.base.batch_shape[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.batch_shape[-1:]

    @property
    def support(self) -> Support:  # type: ignore[override]
        return self.base.support

    @property
    def _axis(self) -> int:
        """The member axis of `base` that is the columns here."""
        return len(self.batch_shape)

    @property
    def _one(self) -> Family:
        """The first of the columns: what it reads does not depend on its parameters."""
        return jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, 0, self._axis, keepdims=False), self.base)

    def columns(self, x: Float[Array, "n d"]) -> Rows:
        return self.observe_incomplete(x).columns

    def observe_incomplete(self, x: Any) -> Rows:
        """Observed data with missing cells, column by column."""
        return Rows(jax.vmap(lambda column: self._one.observe(column), in_axes=1, out_axes=0)(x))

    def inside(self, x: Any) -> Array:
        return jax.vmap(self._one.inside)(self.observe(x).columns).all(0)

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        columns = self.observe(x).columns

        def log_prob(base: Family, column: Rows) -> Array:
            return base.e_step(column)[0]

        def statistics(base: Family, column: Rows, weight: Array) -> Statistics:
            return base.e_step(column)[1](weight)

        axis = self._axis
        each = jax.vmap(log_prob, in_axes=(axis, 0))(self.base, columns)
        pullback = jax.vmap(statistics, in_axes=(axis, 0, None), out_axes=axis)
        return each.sum(0), lambda weight: pullback(self.base, columns, weight)

    def statistics(self, x: Any, weight: Array) -> Statistics:
        """The statistics of each column."""
        return self.e_step(x)[1](weight)

    def unit_prior(self, members: Array | int, x: Any, weight: Array) -> Statistics:
        """A weak prior's row by each column, with its share of the room that members share."""
        members = _apiece(self.base, members, 1 / self.event_shape[0])
        each = jax.vmap(
            lambda base, column: base.unit_prior(members, column, weight), (self._axis, 0), out_axes=self._axis
        )
        return each(self.base, self.observe(x).columns)

    def floor(self, x: Any, weight: Array) -> Statistics:
        """The floor of each column."""
        each = jax.vmap(lambda base, column: base.floor(column, weight), (self._axis, 0), out_axes=self._axis)
        return each(self.base, self.observe(x).columns)

    def is_degenerate(self, floor: Statistics) -> Array:
        return self.base.is_degenerate(floor).any(-1)

    def expected_statistics(self) -> Statistics:
        return self.base.expected_statistics()

    def expected_log_prob(self, statistics: Statistics) -> Float[Array, "*batch"]:
        """Q: the sum over the columns."""
        return self.base.expected_log_prob(statistics).sum(-1)

    def m_step(self, statistics: Statistics) -> Self:
        """The M-step of each column."""
        return replace(self, base=self.base.m_step(statistics))

    def columnwise(self, x: Float[Array, "n d"]) -> cumulative.Columnwise:
        """Those of each column."""
        axis = self._axis
        each = jax.vmap(lambda base, column: base.columnwise(column), in_axes=(axis, 1), out_axes=axis)(self.base, x)
        return jax.tree.map(lambda leaf: leaf[..., 0, :], each)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, D]`."""
        return jnp.swapaxes(self.base.sample(key, n), -1, -2)

    def expected_rows(self, x: Any, weight: Array) -> Float[Array, "n d"]:
        each = jax.vmap(lambda base, column: base.expected_rows(column, weight), (self._axis, 0), out_axes=1)
        return each(self.base, self.observe(x).columns)

    def drawn_rows(self, key: Array, x: Any, n: int) -> Float[Array, "*batch n d"]:
        return self.sample(key, n)

    @staticmethod
    def of(family: Any) -> IndependentFamily:
        """Columns of `family`, as `Mixture.start` takes it: `Independent.of(jem.Bernoulli)`."""
        return IndependentFamily(sized(family))


@dataclasses.dataclass(frozen=True)
class IndependentFamily:
    """Independent columns still to be fitted: what `start` takes."""

    column: Sized

    def start(self, x: Any, weight: Array) -> Independent:
        """Members fitted to weighted rows, each column by itself."""
        axis = weight.ndim - 1
        return Independent(jax.vmap(lambda column: self.column.start(column, weight), in_axes=1, out_axes=axis)(x))

    def told(self, x: Any, weight: Any) -> IndependentFamily:
        """The family with the sizes that all columns together tell."""
        return IndependentFamily(self.column.told(x, weight))

    def seeding_features(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        return jnp.concatenate([self.column.seeding_features(column, weight) for column in x.T], axis=1)


def _width(part: Family) -> int:
    return part.event_shape[0] if part.event_shape else 1


def _apiece(part: Family, members: Array | int, share: float) -> Array:
    """As how many members some of the columns see, if together they see so many."""
    return jnp.asarray(members, jnp.result_type(*jax.tree.leaves(part))) ** share
