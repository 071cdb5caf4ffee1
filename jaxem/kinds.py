"""What each column of a table is taken to be: the families, by the words that people type for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import jaxem as jem
from jaxem.constraints import Constraint, leaves
from jaxem.errors import InputError

FAMILIES: dict[str, Any] = {
    "gaussian": jem.Gaussian,
    "diagonal": jem.DiagonalGaussian,
    "spherical": jem.SphericalGaussian,
    "tied": jem.TiedGaussian,
    "bernoulli": jem.Bernoulli,
    "binomial": jem.Binomial,
    "categorical": jem.Categorical,
    "poisson": jem.Poisson,
}
DESCRIPTIONS = {
    "gaussian": "Gaussians with full covariance",
    "diagonal": "Gaussians with diagonal covariance",
    "spherical": "Gaussians with one variance for all columns",
    "tied": "Gaussians that share one covariance",
    "bernoulli": "Bernoulli (yes or no)",
    "binomial": "binomial counts",
    "categorical": "categories",
    "poisson": "Poisson counts",
}
NORMAL = ("gaussian", "diagonal", "spherical", "tied")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of many fitted models, as a table holds it.

    Attributes:
        name: of the column in the table.
        values: `[G, ...]`.
        states: how many of the axes after the first count hidden states: 1, 0 if they share it, 2 for transitions.
    """

    name: str
    values: np.ndarray
    states: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """Which family reads which columns.

    Attributes:
        columns: names of the columns of a row.
        words: the family of each column.
        mixed: do the columns have families of their own (a `Product`), or one family together?
        trials: the total count of each binomial column, 0 for the others.
        levels: the categories of each categorical column, in the order of their numbers; empty for the others.
    """

    columns: tuple[str, ...]
    words: tuple[str, ...]
    mixed: bool
    trials: tuple[int, ...]
    levels: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, family: Sequence[str], columns: Sequence[str], trials: Sequence[int] = ()) -> Kind:
        """From the words of a command line: one family for all columns, or one for each.

        Raises:
            InputError: an unknown family, numbers of families and columns that differ, trials missing or not asked for.
        """
        for word in family:
            if word not in FAMILIES:
                raise InputError(f"--family {word}: there is no such family; choose from {', '.join(FAMILIES)}")
        if len(family) not in (1, len(columns)):
            raise InputError(
                f"--family names {len(family)} families and --columns {len(columns)} columns; give one family for "
                "all columns, or one for each"
            )
        words = tuple(family) * (len(columns) if len(family) == 1 else 1)
        return cls(tuple(columns), words, len(family) > 1, _trials(words, trials), ((),) * len(words))

    def with_levels(self, levels: Sequence[Sequence[str]]) -> Kind:
        """The same, with the categories that were found in the table."""
        return dataclasses.replace(self, levels=tuple(tuple(names) for names in levels))

    @property
    def family(self) -> Any:
        """As `Mixture.start` takes it."""
        parts = [self._part(i) for i in range(len(self.columns))]
        if self._product:
            return jem.Product.of(*parts)
        return parts[0] if self.words[0] not in NORMAL else parts[0].family

    @property
    def _product(self) -> bool:
        """Do the columns differ in family or size, so that each is a part of its own?"""
        alike = len({(self._part(i)) for i in range(len(self.columns))}) == 1
        categories = len(self.columns) > 1 and "categorical" in self.words
        return self.mixed or not alike or categories

    def _part(self, i: int) -> Any:
        sizes = {}
        if self.words[i] == "binomial":
            sizes = {"total_count": self.trials[i]}
        if self.words[i] == "categorical":
            sizes = {"categories": len(self.levels[i])}
        return jem.sized(FAMILIES[self.words[i]], **sizes)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """`[..., n, D]` as the family reads it: a single column of numbers loses its axis."""
        return x[..., 0] if len(self.columns) == 1 and FAMILIES[self.words[0]].scalar else x

    def parameters(self, models: Any) -> list[Parameter]:
        """The parameters of stacked models, which have one leading axis: their own, then those of their members."""
        own, members = _own_and_members(models)
        found = [Parameter(path[-1].name, np.asarray(values), values.ndim - 1) for path, _, values in own]
        for path, constraint, values in members:
            values = np.asarray(values)
            name, states = path[-1].name, int(is_per_component(constraint, values))
            if self._product:
                part = next(key.idx for key in path if hasattr(key, "idx"))
                name = f"{self.columns[part]}_{'variance' if name == 'covariance' else name}"
                if self.words[part] in NORMAL:
                    # A Gaussian of one column: its vectors and matrices are numbers.
                    values = values.reshape(values.shape[: 1 + states])
            found.append(Parameter(name, values, states))
        return found

    def categories(self) -> dict[str, tuple[str, ...]]:
        """The names of the categories, by the name of their column in the results."""
        prefixes = [f"{column}_" if self._product else "" for column in self.columns]
        named = zip(prefixes, self.levels, strict=True)
        return {f"{prefix}categories": levels for prefix, levels in named if levels}

    def __str__(self) -> str:
        """In words, for a report."""
        if self.mixed:
            pairs = zip(self.columns, self.words, strict=True)
            return "independent columns: " + ", ".join(f"{column} ({word})" for column, word in pairs)
        independent = "independent columns of " if len(self.columns) > 1 and self.words[0] not in NORMAL else ""
        return f"{independent}{DESCRIPTIONS[self.words[0]]} on {', '.join(self.columns)}"


def _trials(words: Sequence[str], trials: Sequence[int]) -> tuple[int, ...]:
    wanted = words.count("binomial")
    if trials and not wanted:
        raise InputError("--trials is for the binomial family only; leave it out, or use --family binomial")
    if wanted and not trials:
        raise InputError("--family binomial: it needs --trials N, the number of trials behind each count")
    if trials and (len(trials) not in (1, wanted) or min(trials) < 1):
        raise InputError(
            f"--trials {','.join(map(str, trials))}: give one whole number above zero for all {wanted} binomial "
            "columns, or one for each"
        )
    each = iter(list(trials) * (wanted if len(trials) == 1 else 1))
    return tuple(next(each) if word == "binomial" else 0 for word in words)


def is_per_component(constraint: Constraint, values: Any) -> bool:
    """Has this parameter of the members of stacked models, `[G, ...]`, an axis of hidden states after the first?"""
    return values.ndim - constraint.event_ndim >= 2


def map_states(change: Any, models: Any) -> Any:
    """`change(array, axis)` applied to every axis of stacked models that counts hidden states.

    All axes of a model's own parameters do (weights, transitions), and the second of its members' parameters.
    """

    def along(values: Any, axes: Sequence[int]) -> Any:
        for axis in axes:
            values = change(values, axis)
        return values

    own, members = _own_and_members(models)
    changed = [along(values, range(1, values.ndim)) for _, _, values in own]
    changed += [along(values, [1] if is_per_component(limit, values) else []) for _, limit, values in members]
    return jax.tree.unflatten(jax.tree.structure(models), changed)


def map_own(change: Any, models: Any) -> Any:
    """`change(array)` applied to a model's own parameters, and not to its members'."""
    own, members = _own_and_members(models)
    changed = [change(values) for _, _, values in own] + [values for _, _, values in members]
    return jax.tree.unflatten(jax.tree.structure(models), changed)


def _own_and_members(models: Any) -> tuple[list[Any], list[Any]]:
    """The leaves of a latent structure (its child is its last field), and those of its child."""
    flat = leaves(models)
    own = len(flat) - len(jax.tree.leaves(models.child))
    return flat[:own], flat[own:]
