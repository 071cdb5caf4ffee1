"""Data of several problems, as a person passes them: one array, or a list with an entry for each problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxem.data.arrays import numbers
from jaxem.data.missing import Incomplete, cells
from jaxem.data.prepare import as_labels, as_weight, check_labels
from jaxem.data.sequences import Sequences


def as_problems(
    xs: Any, weight: Any, labels: Any, problems: int | None = None, read: Callable[[Any], Any] | None = None
) -> tuple[Any, Any, Any]:
    """Data of several problems as arrays, or as lists of arrays or of `Sequences`.

    Args:
        xs, weight, labels: as `fit_many` takes them.
        problems: number of models.
        read: how a model reads the data of one problem, if there are models already.

    Raises:
        TypeError: data that are not numbers; the problem is named.
        ValueError: another number of problems, an empty one, or weights and labels that do not fit.
    """
    if isinstance(xs, Mapping):
        raise TypeError(f"xs is a {type(xs).__name__}; pass the data of the problems alone: list(xs.values())")
    ragged = isinstance(xs, (list, tuple)) or (isinstance(xs, np.ndarray) and xs.dtype.kind == "O" and xs.ndim == 1)
    if not ragged and not isinstance(xs, (Sequences, Incomplete)):
        xs = numbers(xs, "xs")
        if xs.ndim < 2:
            raise ValueError(f"xs has shape {xs.shape}; it must be [problems, rows, ...] or a list of arrays")
    count, counter = (len(xs), "xs") if problems is None else (problems, "models")
    for name, given in {"xs": xs, "weight": weight, "labels": labels}.items():
        if given is not None and len(given) != count:
            raise ValueError(f"{name} holds {len(given)} problems and {counter} {count}; they must be as many")
    if not count:
        raise ValueError("xs is empty; it must hold the data of one problem at least")
    of_sequences = False
    if not isinstance(xs, (Sequences, Incomplete)):
        first = _like_the_first(xs)
        of_sequences = isinstance(first, Sequences) or (read is not None and isinstance(read(first), Sequences))
    if not ragged and not of_sequences:
        shape = xs.length.shape if isinstance(xs, Sequences) else cells(xs).shape[:2]
        steps = (xs.values.shape[2],) if isinstance(xs, Sequences) else ()
        if isinstance(weight, (list, tuple)):
            weight = [np.ones(shape[1]) if each is None else each for each in weight]
        if isinstance(labels, (list, tuple)):
            labels = np.stack([_labels_of(each, (shape[1], *steps), f"labels[{i}]") for i, each in enumerate(labels)])
        labels = None if labels is None else as_labels(labels)
        if labels is not None and labels.shape != (*shape, *steps):
            raise ValueError(f"labels has shape {labels.shape}; with these xs it must be {(*shape, *steps)}")
        return xs, None if weight is None else as_weight(weight, shape, "these xs"), labels
    xs = [_problem(x, f"xs[{i}]", read, of_sequences) for i, x in enumerate(xs)]  # type: ignore[arg-type]
    if weight is not None:
        weight = [_weight_of(each, len(xs[i]), i) for i, each in enumerate(weight)]
    if labels is not None:
        shapes = [(len(x), x.steps) if isinstance(x, Sequences) else (len(x),) for x in xs]
        labels = [_labels_of(each, shapes[i], f"labels[{i}]") for i, each in enumerate(labels)]
    return xs, weight, labels


def _problem(x: Any, name: str, read: Callable[[Any], Any] | None, of_sequences: bool) -> Any:
    """Data of one problem: an array, or `Sequences`."""
    if not of_sequences:
        # A network's data, by the names of its variables.
        x = read(x).values if read is not None and isinstance(x, Mapping) else cells(x)
        x = np.asarray(numbers(x, name))
        if not x.ndim:
            raise ValueError(f"{name} is a single number; each problem must be rows, [n] or [n, D]")
    if not len(x):
        raise ValueError(f"{name} has no rows; leave that problem out")
    if not of_sequences:
        return x
    try:
        return x if read is None else read(x)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def _weight_of(weight: Any, rows: int, i: int) -> np.ndarray:
    """Weights of one problem; one for each row if None."""
    if weight is None:
        return np.ones(rows)
    return np.asarray(as_weight(weight, (rows,), f"the {rows} rows of xs[{i}]", f"weight[{i}]"), float)


def _labels_of(labels: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Labels of one problem; -1 (unknown) if None."""
    if labels is None:
        return np.full(shape, -1, np.int32)
    known = as_labels(labels, name, *shape[1:])
    known = known[None] if len(shape) == 2 and shape[0] == 1 and known.ndim == 1 else known
    if known.shape != shape:
        raise ValueError(f"{name} has shape {known.shape}; with the data of its problem it must be {shape}")
    check_labels(known, None, name)
    return np.asarray(known)


def _like_the_first(xs: Any) -> Any:
    """Data of the first problem; for a JAX array zeros of its shape and type, as it may lie on many devices."""
    return np.zeros(xs.shape[1:], xs.dtype) if isinstance(xs, jax.Array) else xs[0]
