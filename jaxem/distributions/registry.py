"""The one register of models: files, the words of families, the command line, its help and the laws read it."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

from jaxem.core.constraints import parameter, parameter_tree
from jaxem.core.pytree import module, static
from jaxem.distributions.support import FINITE, Support

T = TypeVar("T")


class ColumnUse(enum.Enum):
    """What a family reads of a table."""

    one = "one column"
    alone = "one column, by itself"
    any = "all columns together, or one among other families"
    all = "all columns together"
    ends = "two columns, a lower and an upper end"
    response = "inputs and, in the last column, a response"


@dataclasses.dataclass(frozen=True)
class FamilySpec:
    """What a word stands for.

    Attributes:
        family: as `jem.sized` takes it.
        about: what it is, for help and reports.
        reads: how much of a row.
        column: what its columns may hold in a table, if not what the family's own support says.
        total: what the sum of a row may be.
        gaps: may cells be missing from a row that it reads?
        units: does a change of units change nothing but the parameters: for `each` column, for all in `one` unit, or
            not at all?
        example: (NumPy generator, K) -> K members, on which the laws may run.
    """

    family: Any
    about: str
    reads: ColumnUse = ColumnUse.one
    column: Support | None = None
    total: Support | None = None
    gaps: bool = False
    units: str = ""
    example: Callable[[Any, int], Any] | None = None

    @property
    def support(self) -> Support:
        """What a column may hold, the response of a regression apart."""
        return self.column or (FINITE if self.reads is ColumnUse.response else self.family.support)

    @property
    def line(self) -> str:
        """All this in a line, for help."""
        holds = (self.total and f"{self.support.name} with {self.total.name}") or (self.response or self.support).name
        return f"{self.about}; reads {self.reads.value}: {holds}"

    @property
    def response(self) -> Support | None:
        """What the last column may hold, if that is something else."""
        return self.family.support if self.reads is ColumnUse.response else None


CLASSES: dict[str, type] = {}
"""All models that can be saved, by the names that files know them by."""
FAMILIES: dict[str, FamilySpec] = {}
"""All families that have a word."""


@dataclass_transform(
    frozen_default=True,
    eq_default=False,
    field_specifiers=(dataclasses.field, static, parameter, parameter_tree),
)
def structure(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree, and register it: then it can be saved and loaded.

    For latent structures, and for whatever else is a part of a model; a family takes `family`, which does this too.

    Raises:
        ValueError: another class of this name is registered; it says where.

    >>> import jaxem as jem
    >>> @jem.structure
    ... class Mixture(jem.Latent): ...
    Traceback (most recent call last):
    ...
    ValueError: Mixture is registered already, by jaxem.latent.mixture; give the class another name
    """
    first = CLASSES.get(cls.__name__)
    if first is not None and not _same(first, cls):
        raise ValueError(f"{cls.__name__} is registered already, by {_where(first)}; give the class another name")
    CLASSES[cls.__name__] = cls = module(cls)
    return cls


@dataclass_transform(
    frozen_default=True,
    eq_default=False,
    field_specifiers=(dataclasses.field, static, parameter, parameter_tree),
)
def family(word: str, about: str, *, reads: str = "one", **more: Any) -> Callable[[type[T]], type[T]]:
    """Register a family: a decorator of its class, which it makes a frozen dataclass and a pytree.

    Then it can be saved and loaded, its word stands for it in `Mixture.start` and on the command line (in a file of
    your own: `jaxem --import my_family.py fit ...`), and `jaxem families` lists it.

    Args:
        word: what people type for it, in lower case with `_` between: "half_normal".
        about: what its rows are, in a few words, for help and reports: "half-normal numbers".
        reads: how much of a row of a table: "one" column, one column "alone", "all" columns together, "any" of both,
            the two "ends" of an interval, or inputs and a "response".
        more: fields of `FamilySpec`: `column`, `total`, `gaps`, `units`, `example`.

    Raises:
        ValueError: another family has this word, or another class this name; it says where.

    >>> import jaxem as jem
    >>> @jem.family("gamma", "numbers above zero")
    ... class MyGamma(jem.Family): ...
    Traceback (most recent call last):
    ...
    ValueError: the word 'gamma' is registered already, for Gamma by jaxem.distributions.gamma; choose another
    """

    def register(cls: type[T]) -> type[T]:
        _check_word(word, cls)
        cls = structure(cls)
        return name(word, cls, about, reads=reads, **more)

    return register


def name(word: str, family: Any, about: str, *, reads: str = "one", **more: Any) -> Any:
    """Give a family a word, and return it: one that is made of others has no class of its own to decorate."""
    _check_word(word, family)
    FAMILIES[word] = FamilySpec(family, about, ColumnUse[reads], **more)
    return family


def _check_word(word: str, family: Any) -> None:
    first = FAMILIES.get(word)
    if first is not None and not _same(first.family, family):
        made = getattr(first.family, "__name__", type(first.family).__name__)
        raise ValueError(
            f"the word {word!r} is registered already, for {made} by {_where(first.family)}; choose another"
        )


def _same(first: Any, second: Any) -> bool:
    """Whether both are of the same lines of code, run again (a cell of a notebook, a module loaded anew)."""
    return isinstance(first, type) and _lines(first) == _lines(second)


def _lines(cls: Any) -> tuple[str, ...]:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return str(file or cls.__module__), getattr(cls, "__qualname__", "")


def _where(family: Any) -> str:
    """The module of a class; with its file, if it is a user's."""
    room = family.__module__
    file = getattr(sys.modules.get(room), "__file__", None)
    return room if room.startswith("jaxem.") or not file else f"{room} ({file})"
