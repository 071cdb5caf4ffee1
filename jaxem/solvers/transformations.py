"""Optax transformations that are the same: a fresh `optax.adam(0.05)` need not be another program."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

from jaxem.core.pytree import replace

LIBRARIES = ("optax", "jax")
"""Packages whose functions do the same if they are of the same code and keep the same values: they read no others."""

KNOWN: dict[Any, Any] = {}
"""The first transformation of each recipe."""


def first_like(transformation: Any) -> Any:
    """The first transformation that was made in the same way from the same numbers; else this one.

    >>> import optax
    >>> [first_like(optax.adam(rate)) is first_like(optax.adam(0.05)) for rate in (0.05, 0.1)]
    [True, False]
    """
    try:
        return KNOWN.setdefault(recipe(transformation), transformation)
    except (TypeError, ValueError, RecursionError):  # something in it has no hash, or is not known yet
        return transformation


def with_first_like(solver: Any) -> Any:
    """The solver, its transformation (if it has one) the first of its kind, so that programs are found again."""
    transformation = getattr(solver, "transformation", None)
    return solver if transformation is None else replace(solver, transformation=first_like(transformation))


def recipe(value: Any) -> Any:
    """What a value was made of: code and kept values of functions, entries of tuples; others are told by themselves."""
    if isinstance(value, FunctionType):
        if (value.__module__ or "").partition(".")[0] not in LIBRARIES:
            return value
        kept = tuple(recipe(cell.cell_contents) for cell in value.__closure__ or ())
        more = tuple(sorted((value.__kwdefaults__ or {}).items()))
        return value.__code__, kept, recipe(value.__defaults__ or ()), recipe(more)
    if isinstance(value, functools.partial):
        return recipe((value.func, value.args, tuple(sorted(value.keywords.items()))))
    if isinstance(value, tuple):
        return type(value), tuple(recipe(each) for each in value)
    return type(value), value
