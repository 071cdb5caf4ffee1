"""The report of a race: one self-contained page, and a summary for the terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxem.cli.html import NAMED, Bar, Listed, bars, embedded, render, without
from jaxem.cli.race.frames import winners
from jaxem.cli.race.run import Outcome
from jaxem.cli.race.solver_specs import BATCH
from jaxem.evaluation.profiles import WITHIN
from jaxem.evaluation.race import ELSEWHERE, GAPS, Race, Run, line
from jaxem.fitting.status import Status

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 60
"""Number of problems in the table of the page."""
REACHED = 1e-10
"""Gap, in nats a row, that counts as none."""


def page(outcome: Outcome, command: str, seconds: dict[str, float]) -> str:
    """The report as HTML, pictures included.

    Args:
        outcome: result of the race.
        command: as typed.
        seconds: wall time of each part of the work (`reading`, ...); that of the race is added.
    """
    card, races = outcome.card, outcome.races
    rates, settings = races.rates[np.isfinite(races.rates)], card.settings
    return render(
        "race.html",
        {"gap": in_digits, "three": three, "rate": lambda rate: f"{rate:.3f}" if np.isfinite(rate) else "-"},
        card=card,
        settings=settings,
        command=command,
        seconds={**seconds, "racing": outcome.seconds},
        compiling=sum(run.compile_seconds for race in races.races for run in race.runs),
        headline=headline(outcome),
        kind=next(iter(card.tables.values())).kind,
        rows=sum(problem.group.rows for problem in card.problems if problem.start == 0),
        groups=len(card.problems) // settings.starts,
        padding=_padding(outcome),
        batch=BATCH if any(run.solver.minibatch for run in races.races[0].runs) else None,
        rates=(rates.min(), rates.max()) if len(rates) else None,
        gaps=GAPS,
        within=WITHIN,
        elsewhere=ELSEWHERE,
        lean=_wins(outcome, "passes"),
        fast=_wins(outcome, "seconds"),
        solvers=_solvers(outcome),
        names=races.names,
        profiles=embedded(races.plot()),
        examples=[(label, race.rate, embedded(race.plot())) for label, race in _extremes(outcome)],
        problems=_problems(outcome)[:SHOWN],
        astray=_astray(outcome),
        left_out=[_left_out(outcome, status) for status in card.left_out],
    )


def summary(outcome: Outcome) -> Table:
    """Table of the solvers, for a terminal."""
    from rich.box import HORIZONTALS
    from rich.table import Table

    table = Table(title=headline(outcome), title_justify="left", title_style="bold", box=HORIZONTALS, padding=(0, 0))
    table.add_column("solver", no_wrap=True)
    for heading in (
        "arrived",
        "fewest passes",
        "fastest",
        "median passes",
        "median ms",
        "other optimum",
        "not converged",
    ):
        table.add_column(heading, justify="right")
    for row in outcome.races.rows_of_table():
        slow = row["median seconds"]
        numbers = (three(row["median passes"]), three(None if slow is None else 1000 * slow))
        counts = (row[f"solved to {WITHIN:g}"], row["fewest passes"], row["fastest"])
        others = (row["other optimum"], row["not converged"])
        table.add_row(row["solver"], *map(str, counts), *numbers, *map(str, others))
    return table


def headline(outcome: Outcome) -> str:
    """The winners, in a sentence."""
    (lean, fewest), (fast, fastest) = (_most(winners(outcome, of)) for of in ("passes", "seconds"))
    if not lean:
        return f"No solver came within {WITHIN:g} nats a row of the best on any problem."
    problems = len(outcome.card.problems)
    start = f"{' and '.join(lean)} needed the fewest passes over the data"
    end = f"{'was' if len(fast) == 1 else 'were'} the fastest"
    if problems > 1:
        start += f" on {fewest} of {problems} problems" + (" each" if len(lean) > 1 else "")
        end += f" on {fastest}" + (" each" if len(fast) > 1 else "")
    return f"{start}, and {end}." if lean == fast else f"{start}; {' and '.join(fast)} {end}."


def in_digits(gap: float | None) -> str:
    """A gap in nats a row, as short as possible.

    >>> in_digits(0.00721), in_digits(3e-13), in_digits(None)
    ('7.2e-3', '0', '-')
    """
    if gap is None or not np.isfinite(gap):
        return "-"
    return "0" if gap < REACHED else f"{gap:.1e}".replace("e-0", "e-").replace("e+00", "")


def three(number: float | None) -> str:
    """A number with three digits, or more before the point.

    >>> three(0.91234), three(1404.4), three(None)
    ('0.912', '1,404', '-')
    """
    if number is None or not np.isfinite(number):
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _most(won: list[list[str]]) -> tuple[list[str], int]:
    """The solvers that won most often, and how often."""
    counts = Counter(name for names in won for name in names)
    most = max(counts.values(), default=0)
    return [name for name, count in counts.items() if count == most], most


def _wins(outcome: Outcome, of: str) -> list[Bar]:
    names = outcome.races.names
    won = Counter(name for who in winners(outcome, of) for name in who)
    colours, problems = [_colour(i) for i in range(len(names))], len(outcome.card.problems)
    return bars(names, [won[name] for name in names], colours, total=problems)


def _colour(solver: int) -> str:
    return line(solver)["color"]


def _solvers(outcome: Outcome) -> list[dict[str, Any]]:
    """Rows of the table of solvers: how often each arrived, at what cost, and its remaining gap."""
    races = outcome.races
    arrived = [[row[f"solved to {gap:g}"] for row in races.rows_of_table(gap)] for gap in GAPS]
    found = []
    for s, (row, contender) in enumerate(zip(races.rows_of_table(), outcome.card.settings.contenders, strict=True)):
        seconds = row["median seconds"]
        found.append(
            {
                **row,
                "about": contender.about,
                "colour": _colour(s),
                "arrived": [counts[s] for counts in arrived],
                "milliseconds": None if seconds is None else 1000 * seconds,
                "compile": sum(race.runs[s].compile_seconds for race in races.races),
            }
        )
    return found


def _problems(outcome: Outcome) -> list[dict[str, Any]]:
    """Rows of the table of problems."""
    best = {
        of: zip(winners(outcome, of), outcome.races.cost(of).min(axis=1), strict=True) for of in ("passes", "seconds")
    }
    each = zip(outcome.card.problems, outcome.races.races, best["passes"], best["seconds"], strict=True)
    return [
        {
            "label": problem.label,
            "rows": problem.group.rows,
            "race": race,
            "lean": (", ".join(lean[0]), lean[1]),
            "fast": (", ".join(fast[0]), 1000 * fast[1]),
            "gaps": [(race.below(run), _end(race, run)[0]) for run in race.runs],
        }
        for problem, race, lean, fast in each
    ]


def _extremes(outcome: Outcome) -> list[tuple[str, Race]]:
    """Problems with the largest and the smallest EM rate; the first one if no rate is known."""
    rates = outcome.races.rates
    if not np.isfinite(rates).any():
        places = [0]
    else:
        places = dict.fromkeys([int(np.nanargmax(rates)), int(np.nanargmin(rates))])
    return [(outcome.card.problems[p].label, outcome.races.races[p]) for p in places]


def _astray(outcome: Outcome) -> list[Listed]:
    """For each solver the problems that it did not solve, by how it ended."""
    races, found = outcome.races, []
    for s, name in enumerate(races.names):
        ended: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for problem, race in zip(outcome.card.problems, races.races, strict=True):
            _, how, note = _end(race, race.runs[s])
            ended.setdefault((how, note), []).append((problem.label, f"{in_digits(race.below(race.runs[s]))} below"))
        found += [Listed(f"{name}: {how}", note, len(who), who[:NAMED]) for (how, note), who in ended.items() if how]
    return found


def _end(race: Race, run: Run) -> tuple[str, str, str]:
    """End of a run that did not reach the best: a letter, words and a sentence; empty strings otherwise."""
    status = Status(int(run.fit.status))
    if not run.fit.converged:
        return "x", status.name.replace("_", " "), status.sentence
    if race.elsewhere(run):
        return "o", "another optimum", f"It converged more than {ELSEWHERE:g} nats a row below the best."
    if race.below(run) > WITHIN:
        return "s", "short of the best", f"It converged, more than {WITHIN:g} nats a row below the best."
    return "", "", ""


def _left_out(outcome: Outcome, status: Status) -> Listed:
    groups, settings = outcome.card.left_out[status], outcome.card.settings
    rows = [group.rows for group in groups]
    least = max(settings.min_rows, settings.size)
    return without(status, range(len(groups)), lambda i: groups[i].label, rows, least)


def _padding(outcome: Outcome) -> float:
    """Fraction of padding in the arrays."""
    held = sum(problem.group.rows for problem in outcome.card.problems)
    steps = [getattr(problem.x, "steps", 1) for problem in outcome.card.problems]
    entries = sum(len(problem.weight) * of for problem, of in zip(outcome.card.problems, steps, strict=True))
    return 1 - held / entries
