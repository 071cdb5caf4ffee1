"""The race: problems from groups of tables and starts, and every solver on each of them.

Problems are padded to few lengths, with weight zero, because every shape is a compilation for every solver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem as jem
from jaxem import priors
from jaxem.cli.columns import ColumnModel
from jaxem.cli.errors import InputError
from jaxem.cli.fit.schedule import LENGTHS, Slab, stack
from jaxem.cli.race.solver_specs import BATCH, USUAL, Contender, parse
from jaxem.cli.table.groups import Grouped
from jaxem.core.coordinates import to_coordinates
from jaxem.data.padding import padded
from jaxem.fitting.status import Status
from jaxem.solvers.newton import MOST

SHAPE = 5_000
"""Cost of one more compiled shape, in rows of problems."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a race.

    Attributes:
        contenders: the solvers.
        size: number of components (states).
        starts: for each group; each is a problem.
        groups: largest number, the largest groups first.
        min_rows: groups with fewer rows that count are left out.
        scale: whether columns of location-scale families are standardised within each group.
        prior, method, tol, max_steps, seed, dtype: as in `jaxem.cli.fit.settings.Settings`.
    """

    contenders: tuple[Contender, ...] = parse(USUAL)
    size: int = 3
    starts: int = 1
    groups: int = 12
    min_rows: int = 20
    scale: bool = True
    prior: str = "weak"
    method: str = "kmeans++"
    tol: float = 1e-9
    max_steps: int = 2000
    seed: int = 0
    dtype: str = "float64"


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of one of the tables.

    Attributes:
        table: its name.
        grouped, index: the rows of that table, and the index of the group.
        several: whether there are other tables.
    """

    table: str
    grouped: Grouped
    index: int
    several: bool

    @property
    def rows(self) -> int:
        """Number of rows that count."""
        return int(self.grouped.n[self.index])

    @property
    def name(self) -> str:
        """Name within its table."""
        return self.grouped.label(self.index)

    @property
    def label(self) -> str:
        """Name with as much of the table's name as tells groups apart."""
        if self.grouped.undivided:
            return self.table
        return f"{self.table}: {self.name}" if self.several else self.name


@dataclasses.dataclass(frozen=True)
class Problem:
    """A start and its data.

    Attributes:
        label: of the group, and of the start if there are several.
        group, start: their indices.
        model: the start.
        x, weight: data, padded with weight zero.
    """

    label: str
    group: Group
    start: int
    model: Any
    x: Any
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class RacePlan:
    """The problems of a race.

    Attributes:
        tables, settings: the arguments.
        problems: the largest groups first.
        left_out: groups that cannot be raced, by reason.
        smaller: number of groups that could, but were not among the largest.
    """

    tables: Mapping[str, Grouped]
    settings: Settings
    problems: tuple[Problem, ...]
    left_out: Mapping[Status, Sequence[Group]]
    smaller: int

    @property
    def noun(self) -> str:
        """Noun for one value of the hidden variable: component or state."""
        return next(iter(self.tables.values())).noun


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a race.

    Attributes:
        card: the plan.
        races: one for each problem.
        seconds: wall time in all.
    """

    card: RacePlan
    races: jem.Races
    seconds: float


def prepare(tables: Mapping[str, Grouped], settings: Settings = Settings()) -> RacePlan:
    """Choose the groups, and the starts on each.

    Args:
        tables: the rows, by the names of the tables; see `jaxem.cli.table.groups`.
        settings: of the race.

    Raises:
        InputError: no group can be raced, or Newton's method cannot take the model.
    """
    able, left_out = _sorted_out(tables, settings)
    if not able:
        raise InputError(_nobody(left_out, settings))
    chosen = able[: settings.groups]
    with _numbers(settings):
        problems = tuple(_problems(tables, chosen, settings))
        _check_newton(problems, settings)
    return RacePlan(tables, settings, problems, left_out, len(able) - len(chosen))


def run(card: RacePlan, progress: Callable[[int, int], None] | None = None) -> Outcome:
    """Race all solvers. A solver that fails is a status in the result, never an exception. Sets no JAX flag.

    Args:
        card: see `prepare`.
        progress: called with (problems done, problems in all).
    """
    began, settings = time.perf_counter(), card.settings
    with _numbers(settings):
        races = jem.compare_many(
            [problem.model for problem in card.problems],
            [problem.x for problem in card.problems],
            solvers(card.problems, settings),
            weight=[problem.weight for problem in card.problems],
            prior=priors.Weak() if settings.prior == "weak" else None,
            tol=settings.tol,
            max_steps=settings.max_steps,
            progress=progress,
        )
    return Outcome(card, races, time.perf_counter() - began)


def solvers(problems: Sequence[Problem], settings: Settings) -> dict[str, Any]:
    """Solvers by name; batches are no larger than the smallest problem."""
    batch = min(BATCH, *(len(problem.weight) for problem in problems))
    key = jax.random.key(settings.seed)
    return {contender.name: contender.make(contender.rate, batch, key) for contender in settings.contenders}


@contextlib.contextmanager
def _numbers(settings: Settings) -> Iterator[None]:
    """Set float type and device, of this thread only."""
    with jax.enable_x64(settings.dtype == "float64"), jax.default_device(jax.devices("cpu")[0]):
        yield


def _sorted_out(tables: Mapping[str, Grouped], settings: Settings) -> tuple[list[Group], dict[Status, list[Group]]]:
    """Groups that can be raced, and those that cannot; the largest first."""
    found: dict[Status, list[Group]] = {}
    for table, grouped in tables.items():
        few = (grouped.n < max(settings.min_rows, settings.size)) | grouped.lacks
        codes = np.select([few, ~grouped.varies], [Status.too_few_rows, Status.no_variation], Status.running)
        for index, code in enumerate(codes.tolist()):
            found.setdefault(Status(code), []).append(Group(table, grouped, index, len(tables) > 1))
    for groups in found.values():
        groups.sort(key=lambda group: -group.rows)
    return found.pop(Status.running, []), found


def _nobody(left_out: Mapping[Status, Sequence[Group]], settings: Settings) -> str:
    if Status.no_variation in left_out:
        largest = left_out[Status.no_variation][0]
        return f"{largest.label}: all rows are the same, so there is nothing to race on; choose other columns"
    largest, least = left_out[Status.too_few_rows][0], max(settings.min_rows, settings.size)
    asked, rows = map(largest.grouped.rows_in_words, (least, largest.rows))
    return f"--min-rows: no group has {asked}; the largest, {largest.label}, has {rows}"


def _problems(tables: Mapping[str, Grouped], chosen: Sequence[Group], settings: Settings) -> list[Problem]:
    scaled = {
        name: in_standard_units(grouped, [group.index for group in chosen if group.table == name])
        if settings.scale
        else grouped
        for name, grouped in tables.items()
    }
    longest = np.array([tables[group.table].longest[group.index] for group in chosen])
    counts = np.array([tables[group.table].sequences[group.index] for group in chosen])
    lengths = padded(longest, LENGTHS, SHAPE)
    widths = padded(counts, LENGTHS, SHAPE / longest.mean(), multiple=1)
    found = []
    for rank, (group, length, width) in enumerate(zip(chosen, lengths.tolist(), widths.tolist(), strict=True)):
        grouped = scaled[group.table]
        one = stack(grouped, Slab(rank, np.array([group.index]), length, width, 1, grouped.patterns), settings.dtype)
        x, weight = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), one)
        starts = _starts(rank, grouped, x, weight, settings)
        for start in range(settings.starts):
            label = group.label + (f", start {start + 1}" if settings.starts > 1 else "")
            model = jax.tree.map(lambda leaf, start=start: leaf[start], starts)
            found.append(Problem(label, group, start, model, x, weight))
    return found


def _starts(rank: int, grouped: Grouped, x: Any, weight: jax.Array, settings: Settings) -> Any:
    """Starts along a leading axis."""
    structure = jem.Mixture if grouped.first is None else jem.HMM
    key = jax.random.fold_in(jax.random.key(settings.seed), rank)
    given = {"weight": weight, "restarts": settings.starts, "method": settings.method}
    return structure.start(key, grouped.kind.family, x, settings.size, **given)


def in_standard_units(grouped: Grouped, groups: Sequence[int]) -> Grouped:
    """Standardise columns of location-scale families by mean and standard deviation of each group.

    EM takes the same steps in any units; a gradient does not, and a learning rate means nothing in minutes. A spherical
    family has one variance for all columns, so they share one unit.
    """
    x, kind = grouped.x.copy(), grouped.kind
    scaled = np.array(kind.units) != ""
    for group in groups:
        part = slice(grouped.start[group], grouped.start[group] + grouped.size[group])
        seen = x[part][grouped.seen[part]]
        centre, unit = np.where(scaled, np.nanmean(seen, axis=0), 0), _units(seen, kind, scaled)
        x[part] = (x[part] - centre) / unit
    return dataclasses.replace(grouped, x=x)


def _units(seen: np.ndarray, kind: ColumnModel, scaled: np.ndarray) -> np.ndarray:
    variance = np.nanvar(seen, axis=0)
    if not kind.mixed and kind.units[0] == "one":
        variance = np.full_like(variance, variance.mean())
    return np.where(scaled & (variance > 0), np.sqrt(variance), 1)


def _check_newton(problems: Sequence[Problem], settings: Settings) -> None:
    free = max(sum(each.size for each in to_coordinates(problem.model)) for problem in problems)
    if free > MOST and any(contender.name == "Newton" for contender in settings.contenders):
        raise InputError(f"--solvers newton: the model has {free} free numbers, more than {MOST}; leave newton out")
