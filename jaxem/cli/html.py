"""Common parts of the reports: one page with embedded pictures, bars, and readable numbers."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxem._version import version
from jaxem.fitting.status import Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 60
"""Number of groups or problems that a list names; the others it counts."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    label: str
    count: int
    share: float
    """Fraction of all."""
    length: float
    """Fraction of the longest."""
    colour: str
    note: str = ""


def bars(
    labels: Sequence[str], counts: Any, colours: Sequence[str], notes: Sequence[str] = (), total: int | None = None
) -> list[Bar]:
    """A bar for each label; shares are of `total`, by default the sum of the counts.

    >>> [bar.length for bar in bars(["few", "many"], [1, 4], ["blue", "red"])]
    [0.25, 1.0]
    """
    counts = np.asarray(counts)
    total = max(int(counts.sum()) if total is None else total, 1)
    longest = max(int(counts.max(initial=0)), 1)
    each = zip(labels, counts.tolist(), colours, notes or [""] * len(labels), strict=True)
    return [Bar(label, count, count / total, count / longest, colour, note) for label, count, colour, note in each]


@dataclasses.dataclass(frozen=True)
class Listed:
    """A list of groups or problems with one thing in common.

    Attributes:
        title, note: the thing.
        count: number of groups or problems.
        named: the first of them, each with a note.
    """

    title: str
    note: str
    count: int
    named: list[tuple[str, str]]


def without(status: Status, groups: Sequence[int], label: Callable[[int], str], n: Any, least: int) -> Listed:
    """Groups that could not be fitted, for one reason, with their rows `n`; `least` were required."""
    asked = f" At least {least} rows were asked for." if status is Status.too_few_rows else ""
    named = [(label(group), f"{n[group]:,} row" + ("s" if n[group] != 1 else "")) for group in groups[:NAMED]]
    return Listed(status.name.replace("_", " "), status.sentence + asked, len(groups), named)


def embedded(figure: Figure) -> str:
    """A figure as a data URI: the page loads nothing."""
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", dpi=160, transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()


def in_words(seconds: float) -> str:
    """A duration in words, as short as possible.

    >>> in_words(0.012), in_words(72.4)
    ('0.01 s', '1 min 12 s')
    """
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 20 else 1 if seconds >= 1 else 2}f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def render(template: str, filters: dict[str, Any] | None = None, **values: Any) -> str:
    """HTML of a template in `jaxem/cli/templates`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxem.cli", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(seconds=in_words, **(filters or {}))
    return environment.get_template(template).render(version=version, **values)
