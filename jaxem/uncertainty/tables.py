"""Tables of an `Uncertainty`: names of its coordinates, rows for people and for frames."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxem.core import bijectors
from jaxem.core.constraints import Leaf, simplex, unit_interval, walk
from jaxem.core.coordinates import to_coordinates
from jaxem.latent.base import Latent

SHOWN = 30
"""Rows of a printed table."""
COLUMNS = ("parameter", "component", "i", "j", "estimate", "se", "lower", "upper", "missing", "edge")


def coordinate_names(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The parameter and the place in it of every coordinate of one model."""
    names = []
    for leaf, free in zip(walk(model), to_coordinates(model), strict=True):
        if not free.size:
            continue
        for place in np.ndindex(*free.shape):
            paired = leaf.declared.bijector in (bijectors.POSITIVE_DEFINITE, bijectors.LOADINGS)
            names += [(leaf.name, (*place[:-1], *_pair(leaf, place[-1])) if paired else place)]
    return names


def _pair(leaf: Leaf, k: int) -> tuple[int, int]:
    """Row and column of the k-th number of a triangle."""
    rows, columns = leaf.values.shape[-2:]
    if leaf.declared.bijector is bijectors.LOADINGS:
        i, j = np.tril_indices(rows, 0, columns)
        return int(i[k]), int(j[k])
    i, j = np.tril_indices(rows, -1)
    return (k, k) if k < rows else (int(i[k - rows]), int(j[k - rows]))


def rows(errors: Any, level: float) -> list[dict[str, Any]]:
    """A dict for each number of the model; of many the problem first."""
    lead = errors.status.ndim
    lower, upper = errors.interval(level)
    parts = errors.model, errors.standard_error, lower, upper, errors.missing_each
    leaves = list(walk(errors._first))
    arrays = [[np.asarray(leaf, float) for leaf in jax.tree.leaves(part)] for part in parts]
    first = errors._first
    states = first.child.batch_shape[-1] if isinstance(first, Latent) else None
    found = []
    for problem in np.ndindex(*errors.status.shape):
        mine = {} if not lead else {"problem": problem[0] if lead == 1 else problem}
        for number, leaf in enumerate(leaves):
            if leaf.still and leaf.declared.name == "held as it is":
                continue
            each = [array[number][problem] for array in arrays]
            found += [mine | row for row in _of_parameter(leaf, each, states)]
    return found


def _of_parameter(leaf: Leaf, each: list[Any], states: int | None) -> list[dict[str, Any]]:
    values = each[0]
    bounded = leaf.declared in (simplex, unit_interval)
    symmetric = leaf.declared.bijector is bijectors.POSITIVE_DEFINITE
    found = []
    for place in np.ndindex(*values.shape):
        if symmetric and place[-1] > place[-2]:
            continue
        of_state = states is not None and bool(place) and values.shape[0] == states
        component, rest = (place[0], place[1:]) if of_state else (None, place)
        # Axes of members further in stand with the name.
        further, rest = rest[: max(0, len(rest) - 2)], rest[max(0, len(rest) - 2) :]
        name = leaf.name + "".join(f"[{k}]" for k in further)
        i, j = (*rest, None, None)[:2]
        numbers = [float(array[place]) for array in each]
        edge = bounded and numbers[0] in (0.0, 1.0)
        found.append(dict(zip(COLUMNS, (name, component, i, j, *numbers, edge), strict=True)))
    return found


def frame(rows: list[dict[str, Any]]) -> Any:
    """A polars frame of them; what does not exist is null."""
    try:
        import polars as pl
    except ImportError:
        raise ImportError("table() makes a polars frame, and polars is not installed; pip install polars") from None
    types: dict[str, Any] = dict.fromkeys(("component", "i", "j"), pl.Int64)
    types |= dict.fromkeys(("estimate", "se", "lower", "upper", "missing"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None).fill_nan(None)


def text(errors: Any) -> str:
    """What a person reads."""
    names = np.ravel(errors.status_name)
    if errors.status.ndim:
        kinds, counts = np.unique(names.astype(str), return_counts=True)
        told = ", ".join(f"{count} {kind}" for kind, count in zip(kinds, counts, strict=True))
        return f"Uncertainty of {len(names)} models ({errors.kind}): {told}"
    head = f"Uncertainty ({errors.kind}): {names[0]}, {float(errors.distance):.1g} standard errors away"
    lines = [head, f"  {errors.status_message}"] if names[0] != "ok" else [head]
    every = rows(errors, 0.95)
    shown = [[_place(row), *(_number(row[name]) for name in COLUMNS[4:9])] for row in every[:SHOWN]]
    shown = [["", "estimate", "se", "lower", "upper", "missing"], *shown]
    widths = [max(len(row[k]) for row in shown) for k in range(len(shown[0]))]
    for name, *numbers in shown:
        right = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
        lines += ["  ".join(["", name.ljust(widths[0]), *right])]
    if len(every) > SHOWN:
        lines.append(f"  and {len(every) - SHOWN} more: see table()")
    return "\n".join(lines)


def _place(row: dict[str, Any]) -> str:
    place = [str(row[name]) for name in ("component", "i", "j") if row[name] is not None]
    return row["parameter"] + (f"[{', '.join(place)}]" if place else "")


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.5g}"
