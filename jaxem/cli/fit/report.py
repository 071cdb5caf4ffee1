"""The report of a fit: one self-contained page on what was fitted, how it went, and what failed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxem import plot
from jaxem.cli.columns import Parameter
from jaxem.cli.fit.result import Outcome, belonging, unstacked
from jaxem.cli.fit.schedule import Slab, places, stack
from jaxem.cli.html import NAMED, Bar, Listed, bars, embedded, render, without
from jaxem.fitting.status import Status
from jaxem.palette import PALETTE
from jaxem.plotting.axes import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLES = 12
CHAINS = 6
"""Number of sequences shown as examples: each takes a row of the page."""
SHOWN = 400
"""Number of their steps that are drawn."""
WORST = 10
NUMBERS = 40
"""Largest number of rows of a table of parameters."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Parameters of one group's model.

    Attributes:
        group: its label.
        count: number of its components (states).
        rows: name of a number, and its value in each component; a single one if they share it.
        more: number of rows not shown.
    """

    group: str
    count: int
    rows: list[tuple[str, list[str]]]
    more: int


def page(outcome: Outcome, source: str, command: str, seconds: dict[str, float]) -> str:
    """The report as HTML, pictures included.

    Args:
        outcome: result of the job.
        source: name of the table.
        command: as typed.
        seconds: wall time of each part of the work (`reading`, ...); that of the job is added.
    """
    settings, grouped = outcome.settings, outcome.grouped
    fitted = int((outcome.choice >= 0).sum())
    shown = _typical(outcome, EXAMPLES if grouped.first is None else CHAINS)
    return render(
        "report.html",
        outcome=outcome,
        settings=settings,
        source=source,
        command=command,
        kind=grouped.kind,
        noun=grouped.noun,
        sequences=int(grouped.sequences.sum()),
        shown=SHOWN,
        by=[] if grouped.undivided else grouped.keys.columns,
        rows=len(grouped.group_of),
        used=int(grouped.n[outcome.choice >= 0].sum()),
        dropped=int(grouped.dropped.sum()),
        groups=len(grouped.n),
        fitted=fitted,
        seconds={**seconds, "fitting": outcome.seconds},
        statuses=_statuses(outcome),
        components=_components(outcome),
        gaps=grouped.gaps_in_words,
        examples=_examples(outcome, shown) if fitted else None,
        parameters=_parameters(outcome, shown),
        ellipses=grouped.first is None and plot.has_ellipses(outcome.models),
        worst=_worst(outcome),
        failures=_failures(outcome),
    )


def _statuses(outcome: Outcome) -> list[Bar]:
    codes, counts = np.unique(outcome.status, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    found = [Status(int(code)) for code in codes[order]]
    colours = [PALETTE[2] if s is Status.converged else PALETTE[1] if s.failed else PALETTE[4] for s in found]
    return bars([s.name.replace("_", " ") for s in found], counts[order], colours, [s.sentence for s in found])


def _components(outcome: Outcome) -> list[Bar]:
    tried = outcome.settings.components
    counts = np.array([int((outcome.components == k).sum()) for k in tried])
    return bars([str(k) for k in tried], counts, [PALETTE[0]] * len(tried))


def _parameters(outcome: Outcome, groups: list[int]) -> list[Fitted]:
    """Parameters of some groups' models."""
    if not groups:
        return []
    models: Any = jax.tree.map(lambda leaf: leaf[groups], outcome.models)
    parameters, found = outcome.grouped.kind.parameters(models), []
    for i, group in enumerate(groups):
        count = int(outcome.components[group])
        rows = [row for parameter in parameters for row in _rows(parameter, i, count)]
        found.append(Fitted(outcome.grouped.label(group), count, rows[:NUMBERS], max(len(rows) - NUMBERS, 0)))
    return found


def _rows(parameter: Parameter, i: int, count: int) -> Iterator[tuple[str, list[str]]]:
    """Each number of a parameter of one model, with its values in the components (states)."""
    values, entries = parameter.values[i], list(parameter.entries)
    if parameter.states == 2:
        # Columns of transitions are the states from which they start.
        values, entries = values[:count, :count], [tuple(str(k) for k in range(count))]
    values = values[:count] if parameter.states else values[None]
    axes = [list(enumerate(names)) for names in entries]
    symmetric = len(axes) == 2 and entries[0] == entries[1]
    for place in itertools.product(*axes):
        at, names = [number for number, _ in place], [name for _, name in place]
        if symmetric and at[0] < at[1]:
            continue
        said = parameter.name + (" to" if parameter.states == 2 else "")
        yield f"{said} {', '.join(names)}".strip(), [_in_words(value) for value in values[(slice(None), *at)]]


def _in_words(value: Any) -> str:
    """A number as text; a dash where a component has no such parameter."""
    return "-" if np.isnan(value) else f"{value:.4g}"


def _examples(outcome: Outcome, groups: list[int]) -> str:
    """Small multiples as a data URI: groups with many sizes of model, by size."""
    draw = _mixtures if outcome.grouped.first is None else _chains
    with jax.enable_x64(outcome.settings.dtype == "float64"), jax.default_device(jax.devices("cpu")[0]):
        figure = draw(outcome, groups, _assigned(outcome, groups))
    return embedded(figure)


def _mixtures(outcome: Outcome, groups: list[int], belonging: list[np.ndarray]) -> Figure:
    from matplotlib.figure import Figure

    kind, columns = outcome.grouped.kind, min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3 * columns, 2.7 * rows), layout="constrained")
    for i, group in enumerate(groups):
        ax = figure.add_subplot(rows, columns, i + 1)
        x, n = kind.rows(outcome.grouped.rows_of(group)), outcome.grouped.n[group]
        plot.mixture(outcome.model(group), x, ax, kind.columns, kind.levels, belonging[i])
        _title(ax, outcome, group, f"{n:,} rows" + (f", {len(x):,} drawn" if len(x) < n else ""))
    return figure


def _chains(outcome: Outcome, groups: list[int], states: list[np.ndarray]) -> Figure:
    from matplotlib.figure import Figure

    grouped, kind = outcome.grouped, outcome.grouped.kind
    height = 2.1 + 0.35 * max(len(kind.columns) - 2, 0)
    figure = Figure(figsize=(12, height * len(groups)), layout="constrained")
    grid = figure.add_gridspec(len(groups), 2, width_ratios=(5, 1))
    for i, group in enumerate(groups):
        x, model = grouped.rows_of(group), outcome.model(group)
        breaks = np.flatnonzero(grouped.place[1][grouped.start[group] :][: min(len(x), SHOWN)] == 0)[1:]
        ax = figure.add_subplot(grid[i, 0])
        plot.sequence(model, x[:SHOWN], ax, kind.columns, states[i][:SHOWN], breaks)
        many = f" in {grouped.sequences[group]:,} sequences" if grouped.sequences[group] > 1 else ""
        _title(ax, outcome, group, f"{len(x):,} steps{many}")
        plot.transitions(model, figure.add_subplot(grid[i, 1]))
    return figure


def _title(ax: Axes, outcome: Outcome, group: int, size: str) -> None:
    count = int(outcome.components[group])
    noun = outcome.grouped.noun + ("" if count == 1 else "s")
    title = f"{outcome.grouped.label(group)}  ·  {size}  ·  {count} {noun}"
    ax.set_title(title, fontsize=8.5, color=INK, loc="left")


def _typical(outcome: Outcome, most: int) -> list[int]:
    """Groups to show: in turn from each number of components, rather large ones among its groups."""
    queues = []
    for k in outcome.settings.components:
        mine = np.flatnonzero(outcome.components == k)
        # Not the extremes of each first: those at four fifths of the order, and on from there.
        spread = mine[np.argsort(outcome.grouped.n[mine], kind="stable")][:: max(len(mine) // most, 1)]
        rank = np.abs(np.arange(len(spread)) - 0.8 * (len(spread) - 1))
        queues.append(spread[np.argsort(rank, kind="stable")].tolist())
    turns = [(turn, i, group) for i, queue in enumerate(queues) for turn, group in enumerate(queue)]
    chosen = sorted(sorted(turns)[:most], key=lambda item: (item[1], outcome.grouped.n[item[2]]))
    return [group for _, _, group in chosen]


def _assigned(outcome: Outcome, groups: list[int]) -> list[np.ndarray]:
    """Component (state) of each row of some groups, in one compiled call."""
    grouped = outcome.grouped
    shape = int(grouped.longest[groups].max()), int(grouped.sequences[groups].max())
    slab = Slab(0, np.array(groups), *shape, len(groups), grouped.patterns)
    models: Any = jax.tree.map(lambda leaf: leaf[groups], outcome.models)
    component = np.asarray(belonging(models, stack(grouped, slab, outcome.settings.dtype)[0])[0])
    _, index = places(grouped, slab)
    return np.split(unstacked(component, index), np.cumsum(grouped.size[groups])[:-1])


def _worst(outcome: Outcome) -> list[dict[str, Any]]:
    """Groups furthest from a clean convergence: other statuses first, then the most steps."""
    fitted = np.flatnonzero(outcome.choice >= 0)
    clean = outcome.status[fitted] == int(Status.converged)
    order = np.lexsort([-outcome.chosen("steps")[fitted], clean])[:WORST]
    return [
        {
            "group": outcome.grouped.label(group),
            "n": int(outcome.grouped.n[group]),
            "components": int(outcome.components[group]),
            "steps": int(outcome.chosen("steps")[group]),
            "status": Status(int(outcome.status[group])),
        }
        for group in fitted[order].tolist()
    ]


def _failures(outcome: Outcome) -> list[Listed]:
    """Groups without a model, by reason."""
    grouped, found = outcome.grouped, []
    missing = np.flatnonzero(outcome.choice < 0)
    lacking = missing[grouped.lacks[missing] & (grouped.n[missing] >= outcome.settings.min_rows)]
    if len(lacking):
        named = [(grouped.label(g), grouped.rows_in_words(int(grouped.n[g]))) for g in lacking[:NAMED].tolist()]
        found.append(Listed("without a column", "There is a column of which they have no value.", len(lacking), named))
    missing = np.setdiff1d(missing, lacking)
    for code in np.unique(outcome.status[missing]):
        groups = missing[outcome.status[missing] == code].tolist()
        found.append(without(Status(int(code)), groups, grouped.label, grouped.n, outcome.settings.min_rows))
    return sorted(found, key=lambda item: -item.count)
