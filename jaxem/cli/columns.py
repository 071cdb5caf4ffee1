"""What each column of a table is taken to be: the families, by the words that people type for them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxem as jem
from jaxem.cli.errors import InputError
from jaxem.core.constraints import held, parameters
from jaxem.distributions.registry import FAMILIES, ColumnUse
from jaxem.distributions.support import Support
from jaxem.latent.components import _first_state, _fixed, _own_and_members, is_per_component

FACTORS = ("factor_analysis", "ppca")


def parameter_names() -> tuple[str, ...]:
    """The names that the parameters of families have in the results."""
    found: dict[str, None] = {}
    for family in (word.family for word in FAMILIES.values()):
        parts = getattr(family, "parts", ()) or [getattr(family, "base", None)]
        for part in parts:
            found |= dict.fromkeys(parameters(part.family if part else family))
    return tuple(found)


def reference(word: str = "") -> str:
    """A line for each family: its word, what its rows are, and how much of a table it reads; or all about one.

    Raises:
        InputError: there is no such family.
    """
    known = word.lower().replace("-", "_")
    if word and known not in FAMILIES:
        raise InputError(f"families {word}: there is no such family; choose from {', '.join(FAMILIES)}")
    width = max(map(len, FAMILIES))
    lines = [f"{one:{width}}  {FAMILIES[one].line}" for one in ([known] if word else sorted(FAMILIES))]
    return "\n".join([*lines, "", inspect.getdoc(FAMILIES[known].family) or ""] if word else lines)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of many fitted models, as a table holds it.

    Attributes:
        name: of the column in the table.
        values: `[G, ...]`.
        states: how many of the axes after the first count hidden states: 1, 0 if they share it, 2 for transitions.
        entries: for each axis after those the names along it.
    """

    name: str
    values: np.ndarray
    states: int
    entries: tuple[tuple[str, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class ColumnModel:
    """Which family reads which columns.

    Attributes:
        columns: names of the columns of a row.
        words: the family of each column.
        mixed: do the columns have families of their own (a `Product`), or one family together?
        trials: the total count of each binomial column, 0 for the others.
        levels: the categories of each categorical column, in the order of their numbers; empty for the others.
        factors: of the factor models; 0 for others.
    """

    columns: tuple[str, ...]
    words: tuple[str, ...]
    mixed: bool
    trials: tuple[int, ...]
    levels: tuple[tuple[str, ...], ...]
    factors: int = 0

    @classmethod
    def parse(
        cls, family: Sequence[str], columns: Sequence[str], trials: Sequence[int] = (), factors: int | None = None
    ) -> ColumnModel:
        """From the words of a command line: one family for all columns, or one for each.

        Raises:
            InputError: an unknown family, columns that it cannot read, trials or factors missing or not asked for.
        """
        said, family = family, [word.lower().replace("-", "_") for word in family]
        for word, known in zip(said, family, strict=True):
            if known not in FAMILIES:
                raise InputError(f"--family {word}: there is no such family; choose from {', '.join(FAMILIES)}")
        if len(family) not in (1, len(columns)):
            raise InputError(
                f"--family names {len(family)} families and --columns {len(columns)} columns; give one family for "
                "all columns, or one for each"
            )
        for word in family:
            _check_columns(word, len(family), columns)
        words = tuple(family) * (len(columns) if len(family) == 1 else 1)
        sizes = _trials(words, trials), ((),) * len(words), _factors(words, factors)
        return cls(tuple(columns), words, len(family) > 1, *sizes)

    def with_levels(self, levels: Sequence[Sequence[str]]) -> ColumnModel:
        """The same, with the categories that were found in the table."""
        return dataclasses.replace(self, levels=tuple(tuple(names) for names in levels))

    @property
    def reads(self) -> ColumnUse:
        """How much of a row each of the families reads."""
        return ColumnUse.one if self.mixed else FAMILIES[self.words[0]].reads

    @property
    def whole_rows(self) -> bool:
        """Must rows be complete?"""
        return self.reads not in (ColumnUse.one, ColumnUse.alone) and not FAMILIES[self.words[0]].gaps

    @property
    def least(self) -> int:
        """How many components there must be."""
        return 1 + _fixed(FAMILIES[self.words[0]].family)

    @property
    def units(self) -> list[str]:
        """For each column what a change of its units does, as a `FamilySpec` says."""
        return [FAMILIES[word].units for word in self.words]

    def supports(self, i: int) -> list[Support]:
        """What a column may hold."""
        word = FAMILIES[self.words[i]]
        last = i == len(self.columns) - 1
        found = [word.response if last and word.response else word.support]
        if most := self.trials[i]:
            outside, advice = f"is above the {most} of --trials", "mend it, or raise --trials"
            found.append(Support(f"at most {most}", lambda x: x <= most, outside=outside, advice=advice))
        return found

    @property
    def total(self) -> Support | None:
        """What the sum of a row may be."""
        return FAMILIES[self.words[0]].total

    @property
    def family(self) -> Any:
        """As `Mixture.start` takes it."""
        parts = [self._part(i) for i in range(len(self.columns))]
        return jem.Product.of(*parts) if self._product else parts[0]

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
        if self.words[i] in FACTORS:
            sizes = {"factors": self.factors}
        family = FAMILIES[self.words[i]].family
        return family if _fixed(family) else jem.sized(family, **sizes)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """`[..., n, D]` as the family reads it: a single column of numbers loses its axis."""
        single = len(self.columns) == 1 and getattr(FAMILIES[self.words[0]].family, "scalar", True)
        return x[..., 0] if single else x

    def parameters(self, models: Any) -> list[Parameter]:
        """The parameters of stacked models, which have one leading axis: their own, then those of their members."""
        own, members = _own_and_members(models)
        found = [Parameter(path[-1].name, np.asarray(values), values.ndim - 1) for path, _, values in own]
        for path, constraint, values in members:
            values = np.asarray(values)
            name, states, part = path[-1].name, int(is_per_component(constraint, values)), 0
            if constraint is held:
                continue
            if first := _first_state(models, path):
                # The states before it have no such parameter.
                values = np.pad(values, [(0, 0), (first, 0)], constant_values=np.nan)
            if self._product:
                part = next(key.idx for key in path if hasattr(key, "idx"))
                name = f"{self.columns[part]}_{'variance' if name == 'covariance' else name}"
                if FAMILIES[self.words[part]].reads is ColumnUse.any:
                    # A Gaussian of one column: its vectors and matrices are numbers.
                    values = values.reshape(values.shape[: 1 + states])
            entries = tuple(self._entries(part, size) for size in values.shape[1 + states :])
            found.append(Parameter(name, values, states, entries))
        return found

    def _entries(self, part: int, size: int) -> tuple[str, ...]:
        """What an axis of a parameter counts: categories, columns, inputs, or something without names."""
        inputs = self.columns[:-1] if self.reads is ColumnUse.response else self.columns
        for names in (self.levels[part], self.columns, inputs):
            if len(names) == size:
                return tuple(names)
        return tuple(str(i + 1) for i in range(size))

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
        about, names = FAMILIES[self.words[0]].about, ", ".join(self.columns)
        if self.reads is ColumnUse.response:
            return f"{about} of {self.columns[-1]} on {', '.join(self.columns[:-1])}"
        if self.factors:
            about += f" with {self.factors} factor{'s' if self.factors > 1 else ''}"
        independent = "independent columns of " if len(self.columns) > 1 and self.reads is ColumnUse.one else ""
        return f"{independent}{about} on {names}"


def _check_columns(word: str, families: int, columns: Sequence[str]) -> None:
    """Raise InputError unless the family can read so many columns."""
    reads, count = FAMILIES[word].reads, len(columns)
    if reads in (ColumnUse.one, ColumnUse.any):
        return
    if families > 1:
        raise InputError(f"--family {word}: it reads {reads.value}, so it cannot be one of several; give it alone")
    least, most = {ColumnUse.alone: (1, 1), ColumnUse.ends: (2, 2)}.get(reads, (2, count))
    if not least <= count <= most:
        named = f"--columns names {count}" if count > 1 else f"--columns {columns[0]} is one"
        raise InputError(f"--family {word}: it reads {reads.value}, and {named}; name others")


def _factors(words: Sequence[str], factors: int | None) -> int:
    wanted, most = words[0] in FACTORS, len(words) - 1
    if factors and not wanted:
        raise InputError(f"--factors is for {' and '.join(FACTORS)} only; leave it out, or use one of these families")
    if wanted and not factors:
        raise InputError(f"--family {words[0]}: it needs --factors F, the number of hidden factors")
    if factors and factors > most:
        raise InputError(f"--factors {factors}: {len(words)} columns can share {most} at most; ask for fewer")
    return factors or 0


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
