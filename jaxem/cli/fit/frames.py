"""Results of the fits as frames: models, selection, assignments."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from jaxem.cli.columns import parameter_names
from jaxem.cli.fit.result import CRITERIA, FAILED, Outcome
from jaxem.fitting.status import Status

PARAMETERS = (*parameter_names(), "categories")
OWN = ("n", "dropped", "sequences", "components", "states", "log_likelihood", *CRITERIA, "steps", "status", "entropy")
OWN += (
    "weights",
    "initial",
    "transition",
    "parameters",
    "chosen",
    "reason",
    "row",
    "component",
    "state",
    "probability",
)
WORDS = np.array([status.name for status in Status])


def models(outcome: Outcome) -> pl.DataFrame:
    """One row for each group: the chosen model, with nulls where there is none.

    Columns: the group's key, `n`, `dropped` (for sequences `missing`, and `sequences`), `components` (`states`),
    `log_likelihood`, `bic`, `aic`, `icl`, `steps`, `status`, and a nested list for each parameter: `weights` (a number
    for each component, falling), or `initial` and `transition` (states by falling time spent in them), and those of the
    family.
    """
    grouped, has = outcome.grouped, outcome.choice >= 0
    if grouped.first is None:
        rows = {"dropped": grouped.dropped}
    else:
        rows = {"missing": grouped.dropped, "sequences": grouped.sequences}
    frame = grouped.keys.with_columns(
        n=grouped.n,
        **rows,
        **{f"{grouped.noun}s": _nullable(outcome.components, has)},
        **{name: _nullable(outcome.chosen(name), has) for name in ("log_likelihood", *CRITERIA)},
        steps=_nullable(outcome.chosen("steps"), has),
        status=pl.Series(WORDS[outcome.status]),
    )
    if outcome.models is None:
        own = ("weights",) if grouped.first is None else ("initial", "transition")
        return frame.with_columns(**{name: pl.lit(None, pl.List(pl.Float64)) for name in own})
    columns = {}
    for parameter in grouped.kind.parameters(outcome.models):
        shared = parameter.values.shape[1] if parameter.values.ndim > 1 else 0
        counts = outcome.components if parameter.states else np.where(has, shared, 0)
        columns[parameter.name] = nested(parameter.values, counts, square=parameter.states == 2)
    for name, levels in grouped.kind.categories().items():
        columns[name] = pl.Series([list(levels)] * len(has), dtype=pl.List(pl.String))
    return frame.with_columns(**columns)


def selection(outcome: Outcome) -> pl.DataFrame:
    """One row for each group and number of components (states): scores, status, reason, whether it was chosen."""
    grouped, scores, counts = outcome.grouped, outcome.scores, np.array(outcome.settings.components)
    groups, tried = scores.status.shape
    group, tries = np.repeat(np.arange(groups), tried), np.tile(np.arange(tried), groups)
    status = scores.status.ravel()
    fitted = ~np.isin(status, FAILED)
    n, k = grouped.n[group], counts[tries]
    reason = np.array([status.sentence for status in Status], dtype=object)[status]
    reason[status == int(Status.converged)] = None
    fewer = status == int(Status.too_few_rows)
    reason[fewer & grouped.lacks[group] & (n > 0)] = "There is a column of which it has no value."
    fewer &= n < k
    nouns = f"{grouped.noun}s"
    reason[fewer] = [f"{a} {nouns} for {b} rows: more {nouns} than rows." for a, b in zip(k[fewer], n[fewer])]  # noqa: B905
    floats = {name: getattr(scores, name).ravel() for name in ("log_likelihood", *CRITERIA, "entropy")}
    return grouped.keys[group].with_columns(
        **{nouns: k},
        n=n,
        parameters=_nullable(scores.parameters.ravel(), fitted),
        **{name: _nullable(values, fitted) for name, values in floats.items()},
        steps=_nullable(scores.steps.ravel(), fitted),
        status=pl.Series(WORDS[status]),
        chosen=outcome.choice[group] == tries,
        reason=pl.Series(reason.tolist(), dtype=pl.String),
    )


def assignments(outcome: Outcome) -> pl.DataFrame:
    """Every row of the table, in its order: `row` (from 1), the group's key, `component` (from 0), `probability`.

    Component and probability are null for rows that do not count and for groups without a model. In a sequence it is
    `state`, that on the most probable path, which an unobserved step has, too.
    """
    if outcome.component is None or outcome.probability is None:
        raise ValueError("the job was not asked for assignments; set assign=True in its Settings")
    grouped = outcome.grouped
    component = np.full(len(grouped.group_of), -1)
    probability = np.full(len(component), np.nan)
    there = grouped.row > 0  # 0: steps that the table lacks
    rows = grouped.row[there] - 1
    component[rows], probability[rows] = outcome.component[there], outcome.probability[there]
    row = pl.DataFrame({"row": np.arange(1, len(component) + 1)})
    assigned = component >= 0
    return row.hstack(grouped.keys[grouped.group_of]).with_columns(
        **{grouped.noun: _nullable(component, assigned)}, probability=_nullable(probability, assigned)
    )


def nested(values: np.ndarray, counts: np.ndarray, square: bool = False) -> pl.Series:
    """`[G, K, ...]` as a column of nested lists, of the first `counts` entries each; null where that is zero.

    Numbers `[G]` are a column of numbers. In a `square` `[G, K, K]` the inner lists are cut likewise.
    """
    values = np.asarray(values)
    if values.ndim == 1:
        return _nullable(values, ~np.isnan(values))
    there = np.arange(values.shape[1]) < counts[:, None]
    if square:
        array: Any = pa.array(values[there[:, :, None] & there[:, None, :]])
        array = _lists(np.repeat(counts, counts), array)
    else:
        kept = values[there]
        array = pa.array(kept.ravel(), from_pandas=True)
        for outer, size in zip(np.cumprod(kept.shape)[-2::-1], reversed(kept.shape[1:]), strict=True):
            array = _lists(np.full(outer, size), array)
    return pl.Series(pl.from_arrow(_lists(counts, array, mask=pa.array(counts == 0))))


def _lists(sizes: np.ndarray, array: Any, mask: Any = None) -> Any:
    """An array cut into lists of these sizes."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(offsets, array, mask=mask)


def _nullable(values: np.ndarray, present: np.ndarray) -> pl.Series:
    series = pl.Series(np.asarray(values))
    return series.to_frame("v").select(pl.when(pl.Series(present)).then(pl.col("v")))["v"]
