"""Plots of how well a model fits, and of how sure its parameters are."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxem.palette import PALETTE
from jaxem.plotting.axes import FAINT, INK, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def residuals(residuals: Any, ax: Axes | None = None) -> Axes:
    """Draw pseudo-residuals against the normal deviates that they are if the model is right: then they lie on the line.

    The band holds each point with probability .95. Counts are drawn by `mid`; pass a key to `jem.pseudo_residuals`
    where they are small.

    Args:
        residuals: of `jem.pseudo_residuals`, or an array; of several columns all are drawn, NaN is left out.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jaxem as jem
    >>> model = jem.Gaussian([0.0], [[1.0]])
    >>> residuals(jem.pseudo_residuals(model, model.sample(0, 50))).get_xlabel()
    'normal deviate'
    """
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    values = np.sort(np.asarray(getattr(residuals, "mid", residuals), float).ravel())
    values = values[~np.isnan(values)]
    share = (np.arange(len(values)) + 0.5) / max(len(values), 1)
    normal = NormalDist()
    at = np.array([normal.inv_cdf(p) for p in share])
    # An order statistic spreads as its share does, over the density there.
    width = 1.96 * np.sqrt(share * (1 - share) / max(len(values), 1)) / np.array([normal.pdf(z) for z in at])
    ax.fill_between(at, at - width, at + width, color=FAINT, alpha=0.5, lw=0)
    ax.plot(at, at, color=INK, lw=1, ls=":")
    finite = np.isfinite(values)
    ax.plot(at[finite], values[finite], ".", color=PALETTE[0], ms=4)
    ax.set_xlabel("normal deviate")
    ax.set_ylabel("pseudo-residual")
    tidy(ax)
    return ax


def forest(estimate: Any, lower: Any, upper: Any, names: Any = (), ax: Axes | None = None) -> Axes:
    """Draw estimates of one parameter with their intervals, sorted: a group may differ, or only be small.

    Args:
        estimate, lower, upper: `[G]`.
        names: of the groups.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> axes = forest([2.0, 1.0], [1.5, 0.5], [2.5, 1.5], ["b", "a"])
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['a', 'b']
    """
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    estimate, lower, upper = (np.asarray(each, float).ravel() for each in (estimate, lower, upper))
    order = np.argsort(estimate, kind="stable")
    place = np.arange(len(order))
    ax.hlines(place, lower[order], upper[order], color=PALETTE[0], lw=1.6)
    ax.plot(estimate[order], place, "o", color=INK, ms=3)
    ax.axvline(float(np.median(estimate)), color=FAINT, lw=1, zorder=0)
    ax.set_yticks(place, [str(names[i]) for i in order]) if len(names) else ax.set_yticks([])
    tidy(ax)
    return ax
