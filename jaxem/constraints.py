"""What a parameter may be: declared once, on its field.

A constraint knows how many axes one value has, how many free numbers it is worth (for BIC and AIC), and how
to say what is wrong with a value that a person passed in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

Check = Callable[[np.ndarray, float], str | None]


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A set of allowed values.

    Attributes:
        name: the set, in words.
        event_ndim: axes of one value (0 number, 1 vector, 2 matrix); the axes before them are members.
        free: shape of one value -> free numbers in it.
        check: (values, rounding) -> what is wrong with them, or None.
    """

    name: str
    event_ndim: int
    free: Callable[..., int]
    check: Check


def _no_nan(values: np.ndarray, rounding: float) -> str | None:
    return None if np.isfinite(values).all() else "has entries that are not finite"


def _positive(values: np.ndarray, rounding: float) -> str | None:
    return _no_nan(values, rounding) or (None if (values > 0).all() else "has entries that are not above zero")


def _non_negative(values: np.ndarray, rounding: float) -> str | None:
    return _no_nan(values, rounding) or (None if (values >= 0).all() else "has negative entries")


def _unit_interval(values: np.ndarray, rounding: float) -> str | None:
    inside = (values >= 0) & (values <= 1)
    return _no_nan(values, rounding) or (None if inside.all() else "has entries outside [0, 1]")


def _simplex(values: np.ndarray, rounding: float) -> str | None:
    negative = _non_negative(values, rounding)
    if negative:
        return negative
    off = np.abs(values.sum(-1) - 1).max(initial=0.0)
    return None if off <= rounding * max(8, values.shape[-1]) else f"does not sum to one (off by {off:.2g})"


def _positive_definite(values: np.ndarray, rounding: float) -> str | None:
    if bad := _no_nan(values, rounding):
        return bad
    if values.shape[-1] != values.shape[-2]:
        return f"is not square: its last two axes are {values.shape[-2]} and {values.shape[-1]}"
    size = np.abs(values).max(axis=(-1, -2), keepdims=True, initial=0.0)
    if (np.abs(values - np.swapaxes(values, -1, -2)) > rounding * 1e3 * size).any():
        return "is not symmetric"
    smallest = np.linalg.eigvalsh(values.astype(float)).min(initial=np.inf)
    # A covariance that is singular within rounding is what a floor is for; a negative one is a mistake.
    return None if smallest > -rounding * 1e3 * size.max(initial=0.0) else "is not positive definite"


real = Constraint("real", 0, lambda: 1, _no_nan)
vector = Constraint("real vector", 1, lambda size: size, _no_nan)
matrix = Constraint("real matrix", 2, lambda rows, columns: rows * columns, _no_nan)
# What a rotation of the factors undoes is not known from data.
loadings = Constraint("matrix of loadings", 2, lambda size, k: size * k - k * (k - 1) // 2, _no_nan)
positive = Constraint("positive", 0, lambda: 1, _positive)
positive_vector = Constraint("vector of positive numbers", 1, lambda size: size, _positive)
non_negative = Constraint("non-negative", 0, lambda: 1, _non_negative)
unit_interval = Constraint("unit interval", 0, lambda: 1, _unit_interval)
simplex = Constraint("simplex", 1, lambda size: size - 1, _simplex)
positive_definite = Constraint("positive definite", 2, lambda size, _: size * (size + 1) // 2, _positive_definite)
held = Constraint("held as it is", 0, lambda: 0, _no_nan)


def parameter(constraint: Constraint) -> Any:
    """A dataclass field that is a parameter: a leaf, constrained as said."""
    return dataclasses.field(metadata={"constraint": constraint})


def parameters(node: Any) -> dict[str, Constraint]:
    """The declared parameters of a model's own class, by field name."""
    return {f.name: f.metadata["constraint"] for f in dataclasses.fields(node) if "constraint" in f.metadata}


def is_held(node: Any, name: str) -> bool:
    """Does this model never change this parameter? Its `held` names those (a tuple); most models change all."""
    return name in getattr(node, "held", ())


def leaves(model: Any) -> list[tuple[tuple[Any, ...], Constraint, Any]]:
    """The parameters of a model and of all that it holds: path, constraint, values; in the order of its leaves."""
    found = []
    for path, values in jax.tree_util.tree_flatten_with_path(model)[0]:
        owner = model
        for key in path[:-1]:
            owner = owner[key.idx] if hasattr(key, "idx") else getattr(owner, key.name)
        name = path[-1].name
        found.append((path, held if is_held(owner, name) else parameters(owner)[name], values))
    return found


def check_parameters(node: Any) -> None:
    """Raise ValueError, naming class and argument, if a concrete parameter is not what its field declares.

    Traced values cannot be looked at; inside `jit` a bad value ends as a status of the fit.
    """
    for name, constraint in parameters(node).items():
        value = getattr(node, name)
        if isinstance(value, Tracer):
            continue
        if value.ndim < constraint.event_ndim:
            raise ValueError(
                f"{type(node).__name__}: {name} has {value.ndim} axes; a {constraint.name} needs at least "
                f"{constraint.event_ndim}"
            )
        wrong = constraint.check(np.asarray(value), float(np.finfo(value.dtype).eps))
        if wrong:
            raise ValueError(f"{type(node).__name__}: {name} {wrong}; it must be {constraint.name}")


def free_parameters(node: Any) -> int:
    """How many free numbers a model holds: a simplex of K is worth K - 1, a covariance of D columns D (D + 1) / 2.

    Args:
        node: one model. Of a batch every member counts.

    >>> import jaxem as jem
    >>> jem.free_parameters(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0])))
    3
    """
    total = 0
    declared = parameters(node)
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if is_held(node, field.name):
            continue
        if field.name in declared:
            constraint = declared[field.name]
            axes = value.ndim - constraint.event_ndim
            total += int(np.prod(value.shape[:axes], dtype=int)) * constraint.free(*value.shape[axes:])
        else:
            for child in jax.tree.leaves(value, is_leaf=dataclasses.is_dataclass):
                if dataclasses.is_dataclass(child):
                    total += free_parameters(child)
    return total
