"""Sufficient statistics: how they add, scale, and meet over devices, and those that are kept about a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxem.core.pytree import replace

Statistics = PyTree


class Referenced:
    """Statistics about a reference: sums over rows that keep their digits because the reference is near.

    What you write: fields; which of them are `sums` over rows, and which are `extremes`, of which the largest counts
    (the least of something is minus the largest of its negative); and `about(*reference)`. The fields named in neither
    are the reference, in their order.
    """

    sums: ClassVar[tuple[str, ...]]
    extremes: ClassVar[tuple[str, ...]] = ()

    def about(self, *reference: Any, **named: Any) -> Self:
        """The statistics of the same rows about another reference."""
        raise NotImplementedError

    def aligned(self, other: Any) -> tuple[Self, Self]:
        """Both statistics about the reference of the first."""
        declared = {*self.sums, *self.extremes}
        names = [field.name for field in dataclasses.fields(self) if field.name not in declared]  # type: ignore[arg-type]
        return self, other.about(*(getattr(self, name) for name in names))

    def __add__(self, other: Self) -> Self:
        a, b = self.aligned(other)
        sums = {name: getattr(a, name) + getattr(b, name) for name in self.sums}
        return replace(a, **sums, **{name: jnp.maximum(getattr(a, name), getattr(b, name)) for name in self.extremes})

    def __mul__(self, factor: Array | float) -> Self:
        """The statistics of `factor` (a number) times as many of the same rows."""
        return replace(self, **{name: getattr(self, name) * factor for name in self.sums})


def add(a: Statistics, b: Statistics) -> Statistics:
    """The sum of two statistics of one model: over rows, chunks, devices, and of data and prior."""
    return jax.tree.map(lambda s, t: s + t, a, b, is_leaf=_is_referenced)


def scale(statistics: Statistics, factor: Any) -> Statistics:
    """The statistics of `factor` times as many of the same rows."""
    return jax.tree.map(lambda s: s * factor, statistics, is_leaf=_is_referenced)


def over_parts(
    together: Callable[[list[Array], list[Array]], tuple[list[Array], list[Array]]], statistics: Statistics
) -> Statistics:
    """The statistics of all parts of some data, from those of each part, all about one reference.

    Args:
        together: `(sums, extremes) -> (sums, extremes)` of all parts, from those of one.
        statistics: of one part.
    """
    nodes, structure = jax.tree.flatten(statistics, is_leaf=_is_referenced)
    sums, as_sums = jax.tree.flatten([_named(node, node.sums) if _is_referenced(node) else node for node in nodes])
    extremes, as_extremes = jax.tree.flatten([_named(node, getattr(node, "extremes", ())) for node in nodes])
    sums, extremes = together(sums, extremes)
    new = zip(nodes, as_sums.unflatten(sums), as_extremes.unflatten(extremes), strict=True)
    return structure.unflatten(replace(node, **s, **e) if _is_referenced(node) else s for node, s, e in new)


def _is_referenced(node: Any) -> bool:
    return isinstance(node, Referenced)


def _named(node: Any, names: tuple[str, ...]) -> dict[str, Array]:
    return {name: getattr(node, name) for name in names}
