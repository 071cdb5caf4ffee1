"""Independent columns: blocks of different kinds (`Product`), or many columns of one kind (`Independent`)."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.distributions.base import Family, Pullback, Rows, Statistics
from jaxem.pytree import module, replace


@dataclasses.dataclass(frozen=True)
class Sized:
    """A family with the sizes that rows alone do not tell: something that can `start`.

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

    def points(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        if self.family.scalar and x.ndim == 2 and x.shape[1] > 1:
            return Independent.of(self).points(x, weight)
        return self.family.points(x, weight, **dict(self.sizes))


def sized(family: Any, columns: int = 1, **sizes: int) -> Sized:
    """`family` with its sizes, as `Mixture.start` and `Product.of` take it.

    >>> import jaxem as jem
    >>> jem.sized(jem.Categorical, categories=3).sizes
    (('categories', 3),)
    """
    if isinstance(family, Sized):
        return family
    return Sized(family, columns, tuple(sorted(sizes.items())))


@module
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
        shapes = {part.batch_shape for part in self.parts}
        if len(shapes) != 1:
            raise ValueError(f"Product: parts have batch shapes {sorted(shapes)}; they must be one and the same")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.parts[0].batch_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (sum(_width(part) for part in self.parts),)

    def columns(self, x: Float[Array, "n d"]) -> tuple[Any, ...]:
        blocks, at = [], 0
        for part in self.parts:
            block = x[:, at : at + _width(part)] if part.event_shape else x[:, at]
            blocks.append(part.columns(block))
            at += _width(part)
        return tuple(blocks)

    def expand(self, x: Rows) -> Rows:
        """Each block for itself."""
        return Rows(tuple(p.expand(Rows(block)).columns for p, block in zip(self.parts, x.columns, strict=True)))

    def contains(self, columns: tuple[Any, ...]) -> Array:
        return jnp.stack([p.contains(block) for p, block in zip(self.parts, columns, strict=True)]).all(0)

    def log_density(self, columns: tuple[Any, ...]) -> Float[Array, "*batch n"]:
        return sum(p.log_density(block) for p, block in zip(self.parts, columns, strict=True))  # type: ignore

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        blocks = self.expand(self.observe(x)).columns
        steps = [p.e_step(Rows(block)) for p, block in zip(self.parts, blocks, strict=True)]
        log_prob = sum(log_prob for log_prob, _ in steps)
        return log_prob, lambda weight: tuple(pullback(weight) for _, pullback in steps)  # type: ignore

    def statistics(self, x: Any, weight: Array) -> tuple[Statistics, ...]:
        """The statistics of each part."""
        blocks = self.observe(x).columns
        return tuple(p.statistics(Rows(block), weight) for p, block in zip(self.parts, blocks, strict=True))

    def expected_statistics(self) -> tuple[Statistics, ...]:
        return tuple(part.expected_statistics() for part in self.parts)

    def expected_log_prob(self, statistics: tuple[Statistics, ...]) -> Float[Array, "*batch"]:
        """The sum over the parts."""
        return sum(p.expected_log_prob(s) for p, s in zip(self.parts, statistics, strict=True))  # type: ignore

    def m_step(self, statistics: tuple[Statistics, ...]) -> Self:
        """Each part by itself."""
        return replace(self, parts=tuple(p.m_step(s) for p, s in zip(self.parts, statistics, strict=True)))

    def floor(self, x: Any, weight: Array) -> tuple[Statistics, ...]:
        blocks = self.observe(x).columns
        return tuple(p.floor(Rows(block), weight) for p, block in zip(self.parts, blocks, strict=True))

    def collapsed(self, floor: tuple[Statistics, ...]) -> Array:
        return jnp.stack([p.collapsed(f) for p, f in zip(self.parts, floor, strict=True)]).any(0)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, D]`."""
        keys = jax.random.split(key, len(self.parts))
        draws = [part.sample(k, n) for part, k in zip(self.parts, keys, strict=True)]
        columns = [d if part.event_shape else d[..., None] for part, d in zip(self.parts, draws, strict=True)]
        return jnp.concatenate(columns, axis=-1)

    @staticmethod
    def of(*families: Any) -> ProductFamily:
        """The product of these families, as `Mixture.start` takes it: `Product.of(jem.Gaussian, jem.Poisson)`."""
        return ProductFamily(tuple(sized(family) for family in families))


@dataclasses.dataclass(frozen=True)
class ProductFamily:
    """A product that is still to be fitted: something that can `start`."""

    parts: tuple[Sized, ...]

    def start(self, x: Any, weight: Array) -> Product:
        """Members fitted to weighted rows, each part to its own columns."""
        return Product(tuple(part.start(block, weight) for part, block in self._blocks(x)))

    def points(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        return jnp.concatenate([part.points(block, weight) for part, block in self._blocks(x)], axis=1)

    def _blocks(self, x: Array) -> list[tuple[Sized, Array]]:
        ends = np.cumsum([part.columns for part in self.parts])
        if np.ndim(x) != 2 or np.shape(x)[1] != ends[-1]:
            raise ValueError(f"x has shape {np.shape(x)}; the parts of this Product read {ends[-1]} columns")
        blocks = [x[:, end - part.columns : end] for part, end in zip(self.parts, ends, strict=True)]
        return [
            (part, block[:, 0] if part.columns == 1 and part.family.scalar else block)
            for part, block in zip(self.parts, blocks, strict=True)
        ]


@module
class Independent(Family):
    """Columns of one kind, independent: the last member axis of `base` becomes the columns of a row.

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
    def support(self) -> str:  # type: ignore[override]
        return self.base.support

    @property
    def _axis(self) -> int:
        """The member axis of `base` that is the columns here."""
        return len(self.batch_shape)

    def columns(self, x: Float[Array, "n d"]) -> Any:
        return jax.vmap(self.base.columns, in_axes=1)(x)

    def contains(self, columns: Any) -> Array:
        return jax.vmap(self.base.contains)(columns).all(0)

    def log_density(self, columns: Any) -> Float[Array, "*batch n"]:
        each = jax.vmap(lambda base, column: base.log_density(column), in_axes=(self._axis, 0))
        return each(self.base, columns).sum(0)

    def statistics(self, x: Any, weight: Array) -> Statistics:
        """The statistics of each column."""
        each = jax.vmap(
            lambda base, column: base.statistics(Rows(column), weight),
            in_axes=(self._axis, 0),
            out_axes=self._axis,
        )
        return each(self.base, self.observe(x).columns)

    def expected_statistics(self) -> Statistics:
        return self.base.expected_statistics()

    def expected_log_prob(self, statistics: Statistics) -> Float[Array, "*batch"]:
        """The sum over the columns."""
        return self.base.expected_log_prob(statistics).sum(-1)

    def m_step(self, statistics: Statistics) -> Self:
        """Each column by itself."""
        return replace(self, base=self.base.m_step(statistics))

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, D]`."""
        return jnp.swapaxes(self.base.sample(key, n), -1, -2)

    @staticmethod
    def of(family: Any) -> IndependentFamily:
        """Columns of `family`, as `Mixture.start` takes it: `Independent.of(jem.Bernoulli)`."""
        return IndependentFamily(sized(family))


@dataclasses.dataclass(frozen=True)
class IndependentFamily:
    """Independent columns that are still to be fitted: something that can `start`."""

    column: Sized

    def start(self, x: Any, weight: Array) -> Independent:
        """Members fitted to weighted rows, each column by itself."""
        axis = weight.ndim - 1
        return Independent(jax.vmap(lambda column: self.column.start(column, weight), in_axes=1, out_axes=axis)(x))

    def points(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        return jnp.concatenate([self.column.points(column, weight) for column in x.T], axis=1)


def _width(part: Family) -> int:
    return part.event_shape[0] if part.event_shape else 1
