"""What all plots share: ink, lines and axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxem.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#30363d", "#c9ced6"


def colour(state: Any) -> str:
    """The colour of a state or component, by its number."""
    return PALETTE[int(state) % len(PALETTE)]


def curves(ax: Axes, at: np.ndarray, each: np.ndarray, stems: bool = False) -> None:
    """Draw a curve for each component, and one for their sum."""
    for k, line in enumerate(each):
        if stems:
            some = line > 0
            place = at[some] + 0.6 * ((k + 0.5) / len(each) - 0.5)
            ax.vlines(place, 0, line[some], color=colour(k), lw=1.6)
            ax.plot(place, line[some], ".", color=colour(k), ms=5)
        else:
            ax.plot(at, line, color=colour(k), lw=1.6)
    if len(each) > 1:
        ax.plot(at, each.sum(0), color=INK, lw=1, ls=":")


def tidy(ax: Axes) -> None:
    """Take away the frame, and draw what is left of it faintly."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
    ax.xaxis.label.set(color=INK, size=9)
    ax.yaxis.label.set(color=INK, size=9)
