"""Restrictions of a model's parameters: what is held, and what is tied to what.

A model carries them as one more field, `restriction`; `jaxem.core.constraints.walk` reads it, and so coordinates,
gradients, counts of free parameters and solvers know of it. The M-step keeps to it, too
(`jaxem.distributions.constrained_m_step`). Masks are arrays, so that models with other masks share a program and may be
stacked; everything else is part of the type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from jaxem.core.constraints import name_of
from jaxem.core.pytree import module, static
from jaxem.core.stationary import stationary

RULES: dict[str, Callable[[Array], Array]] = {"equal": lambda values: values, "stationary": stationary}
"""How a parameter may follow from another."""


@module
class Restriction:
    """Of one model.

    Attributes:
        held: by the names of own parameters, an array of the parameter's shape and type that is above zero where it is
            held, or None if all of it is.
        shared: (name, first) of own parameters that are equal among members: for each along the last axis of members,
            the member whose value it has.
        follows: (name, other, rule) of parameters here or further down that follow from others.
    """

    held: dict[str, Any]
    shared: tuple[tuple[str, tuple[int, ...]], ...] = static(default=())
    follows: tuple[tuple[str, str, str], ...] = static(default=())

    def following(self, path: tuple[Any, ...]) -> dict[str, tuple[str, Callable[[Array], Array]]]:
        """`follows` in the names that a model has whose part at `path` this is."""
        if not self.follows:
            return {}
        before = name_of(path) + "." if path else ""
        return {before + name: (before + other, RULES[rule]) for name, other, rule in self.follows}

    @property
    def tied(self) -> bool:
        """Whether any parameter is tied, to others or among members."""
        return bool(self.shared or self.follows)
