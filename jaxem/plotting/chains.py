"""Plots of hidden Markov models: a sequence with its states, and the transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxem.plotting.axes import INK, colour, tidy
from jaxem.plotting.mixtures import category_shares, first_two_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sequence(model: Any, x: Any, ax: Axes | None = None, names: Any = (), states: Any = None, breaks: Any = ()) -> Axes:
    """Draw a sequence over its steps, on ribbons in the colours of its decoded states.

    One column of numbers: its values, and the mean of the state that each step is in. Several: each in a lane of its
    own height. Steps that are not observed (NaN) are gaps.

    Args:
        model: a hidden Markov model without leading axes.
        x: `[T]` or `[T, D]`.
        ax: where to draw; a new figure if left out.
        names: names of the columns.
        states: `[T]` the state of each step, if known already.
        breaks: steps at which a new sequence starts.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jaxem as jem
    >>> model = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Poisson([1.0, 9.0]))
    >>> sequence(model, [0.0, 1.0, 2.0, 9.0, 11.0, 8.0], names=["calls"]).get_xlabel()
    'step'
    """
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(8, 2.5))[1]
    x = np.asarray(x, float)
    states = np.asarray(model.decode(x)[0] if states is None else states)
    table = np.where(np.isfinite(x), x, np.nan).reshape(len(x), -1)
    _ribbons(ax, states)
    step = np.arange(len(table))
    names = list(names) or [f"column {i + 1}" for i in range(table.shape[1])]
    if table.shape[1] == 1:
        _curve(ax, step, table[:, 0])
        if category_shares(model.emission) is None:
            level = first_two_columns(model.emission, table)[0][states, 0]
            for start, end in _runs(states):
                ax.plot([start - 0.5, end - 0.5], [level[start]] * 2, color=colour(states[start]), lw=1.8)
        ax.set_ylabel(names[0])
    else:
        low, high = np.fmin.reduce(table, axis=0), np.fmax.reduce(table, axis=0)
        lanes = np.arange(table.shape[1])[::-1]
        for lane, values, least, span in zip(lanes, table.T, low, np.where(high > low, high - low, 1), strict=True):
            _curve(ax, step, lane + 0.1 + 0.8 * (values - least) / span)
        ax.set_yticks(lanes + 0.5, names)
        ax.set_ylim(0, len(lanes))
    for place in breaks:
        ax.axvline(place - 0.5, color=INK, lw=0.8, ls=":")
    ax.set_xlim(-0.5, len(table) - 0.5)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("step")
    tidy(ax)
    return ax


def transitions(model: Any, ax: Axes | None = None) -> Axes:
    """Draw the transition matrix of a hidden Markov model: from the row's state to the column's.

    Args:
        model: a hidden Markov model without leading axes.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jaxem as jem
    >>> ax = transitions(jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], jem.Poisson([1.0, 9.0])))
    >>> [text.get_text() for text in ax.texts]
    ['.90', '.10', '.20', '.80']
    """
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(2.5, 2.5))[1]
    matrix = np.asarray(model.transition)
    ax.imshow(matrix, cmap="Greys", vmin=0, vmax=1.25, aspect="equal")
    for i, j in np.ndindex(*matrix.shape):
        if len(matrix) <= 8:
            text = f"{matrix[i, j]:.2f}".removeprefix("0") if matrix[i, j] < 0.995 else "1"
            ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if matrix[i, j] > 0.6 else INK)
    each = np.arange(len(matrix))
    ax.set_xticks(each, each)
    ax.set_yticks(each, each)
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        for k, label in enumerate(ticks):
            label.set(color=colour(k), fontweight="bold")
    ax.set_ylabel("from state")
    ax.set_xlabel("to state")
    ax.tick_params(length=0, labelsize=8.5)
    ax.spines[:].set_visible(False)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=INK, size=8.5)
    return ax


def _runs(states: np.ndarray) -> list[tuple[int, int]]:
    """Steps at which each run of one state begins and ends."""
    ends = np.flatnonzero(np.diff(states)) + 1
    return list(zip([0, *ends.tolist()], [*ends.tolist(), len(states)], strict=True))


def _ribbons(ax: Axes, states: np.ndarray) -> None:
    for start, end in _runs(states):
        ax.axvspan(start - 0.5, end - 0.5, color=colour(states[start]), alpha=0.22, lw=0)
        ax.axvspan(start - 0.5, end - 0.5, ymin=0.94, color=colour(states[start]), lw=0)


def _curve(ax: Axes, step: np.ndarray, values: np.ndarray) -> None:
    ax.plot(step, values, color=INK, lw=0.8, marker="." if len(step) <= 150 else None, ms=3)
    # Above the ribbon.
    ax.margins(y=0.12)
