"""Tables of a race: its solvers, its problems, and each solver on each problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from jaxem.cli.race.run import Outcome


def solvers(outcome: Outcome) -> pl.DataFrame:
    """One row for each solver, over all problems: `Races.table`, and the seconds of its compilations."""
    races = outcome.races
    compiling = [sum(race.runs[s].compile_seconds for race in races.races) for s in range(len(races.names))]
    return _frame(races.rows_of_table()).with_columns(compile=np.array(compiling))


def problems(outcome: Outcome) -> pl.DataFrame:
    """One row for each problem.

    Columns: `problem` (its name), `table`, `group`, `start` (from 1), `rows`, `free` (number of parameters), `rate`
    (EM's own), `best` (the largest known objective, in the units of the race), and `fewest passes` and
    `fastest`: the solvers that were; null if none arrived.
    """
    wins = {"fewest passes": winners(outcome, "passes"), "fastest": winners(outcome, "seconds")}
    rows = [
        {
            "problem": problem.label,
            "table": problem.group.table,
            "group": problem.group.name,
            "start": problem.start + 1,
            "rows": problem.group.rows,
            "free": race.free,
            "rate": race.rate,
            "best": race.best,
            **{name: ", ".join(who[p]) or None for name, who in wins.items()},
        }
        for p, (problem, race) in enumerate(zip(outcome.card.problems, outcome.races.races, strict=True))
    ]
    return _frame(rows, dict.fromkeys(wins, pl.String))


def runs(outcome: Outcome) -> pl.DataFrame:
    """One row for each problem and solver: `problem`, and the columns of `Race.table`."""
    pairs = zip(outcome.card.problems, outcome.races.races, strict=True)
    return _frame([{"problem": problem.label, **row} for problem, race in pairs for row in race.rows_of_table()])


def winners(outcome: Outcome, of: str) -> list[list[str]]:
    """Solvers that arrived at the least cost, in `passes` or `seconds`, for each problem; several if equal, or none."""
    names = np.array(outcome.races.names)
    return [names[(cost == cost.min()) & np.isfinite(cost)].tolist() for cost in outcome.races.cost(of)]


def _frame(rows: list[dict[str, Any]], types: dict[str, Any] | None = None) -> pl.DataFrame:
    """A frame with null for NaN; columns of nulls are numbers, unless `types` says otherwise."""
    frame = pl.DataFrame(rows, infer_schema_length=None, schema_overrides=types)
    return frame.with_columns(pl.col(pl.Null).cast(pl.Float64)).fill_nan(None)
