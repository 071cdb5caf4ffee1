"""Pictures of fitted models, with matplotlib. Colours are those of Okabe and Ito, told apart by all eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxem.constraints import leaves
from jaxem.distributions import discrete, gaussian, product
from jaxem.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#30363d", "#c9ced6"


def mixture(
    model: Any, x: Any, ax: Axes | None = None, names: Any = (), categories: Any = (), component: Any = None
) -> Axes:
    """Draw rows and the components of one fitted mixture.

    Several columns of numbers: the first two, each row in the colour of its most probable component, with the ellipses
    that hold 39 % and 86 % of a component (one and two standard deviations). One column: a histogram, and the density
    of each component. Categories and yes-or-no columns: the probabilities of each component as a chart.

    Args:
        model: a mixture without leading axes.
        x: `[n]` or `[n, D]` rows.
        ax: where to draw; a new figure if left out.
        names: names of the columns.
        categories: for each column, the names of its categories.
        component: `[n]` the component of each row, if it is known already.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jaxem as jem
    >>> model = jem.Mixture([0.4, 0.6], jem.SphericalGaussian([[0.0, 0.0], [4.0, 4.0]], [1.0, 1.0]))
    >>> len(mixture(model, [[0.1, 0.2], [4.0, 3.0]]).patches)
    4
    """
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    x = np.asarray(x)
    table = x[:, None] if x.ndim == 1 else x
    names = list(names) or [f"column {i + 1}" for i in range(table.shape[1])]
    shares = _shares(model.components)
    if shares is not None:
        _bars(ax, np.asarray(model.weights), shares, names, categories)
    elif table.shape[1] == 1:
        _histogram(ax, model, x, names[0])
    else:
        _scatter(ax, model, np.asarray(model.predict(x) if component is None else component), table, names)
    return ax


def sequence(model: Any, x: Any, ax: Axes | None = None, names: Any = (), states: Any = None, breaks: Any = ()) -> Axes:
    """Draw a sequence over its steps, on ribbons in the colours of its decoded states.

    One column of numbers: its values, and the mean of the state that each step is in. Several: each in a lane of its
    own height. Steps that were not seen (NaN) are gaps.

    Args:
        model: a hidden Markov model without leading axes.
        x: `[T]` or `[T, D]`.
        ax: where to draw; a new figure if left out.
        names: names of the columns.
        states: `[T]` the state of each step, if it is known already.
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
    table = x[:, None] if x.ndim == 1 else x
    states = np.asarray(model.decode(x)[0] if states is None else states)
    _ribbons(ax, states)
    step = np.arange(len(table))
    names = list(names) or [f"column {i + 1}" for i in range(table.shape[1])]
    if table.shape[1] == 1:
        _curve(ax, step, table[:, 0])
        if _shares(model.emission) is None:
            level = _moments(model.emission)[0][states, 0]
            for start, end in _runs(states):
                ax.plot([start - 0.5, end - 0.5], [level[start]] * 2, color=_colour(states[start]), lw=1.8)
        ax.set_ylabel(names[0])
    else:
        low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
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
    _tidy(ax)
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
            label.set(color=_colour(k), fontweight="bold")
    ax.set_ylabel("from state")
    ax.set_xlabel("to state")
    ax.tick_params(length=0, labelsize=8.5)
    ax.spines[:].set_visible(False)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=INK, size=8.5)
    return ax


def _colour(state: Any) -> str:
    return PALETTE[int(state) % len(PALETTE)]


def _runs(states: np.ndarray) -> list[tuple[int, int]]:
    """Where a state is entered, and where it is left."""
    ends = np.flatnonzero(np.diff(states)) + 1
    return list(zip([0, *ends.tolist()], [*ends.tolist(), len(states)], strict=True))


def _ribbons(ax: Axes, states: np.ndarray) -> None:
    for start, end in _runs(states):
        ax.axvspan(start - 0.5, end - 0.5, color=_colour(states[start]), alpha=0.22, lw=0)
        ax.axvspan(start - 0.5, end - 0.5, ymin=0.94, color=_colour(states[start]), lw=0)


def _curve(ax: Axes, step: np.ndarray, values: np.ndarray) -> None:
    ax.plot(step, values, color=INK, lw=0.8, marker="." if len(step) <= 150 else None, ms=3)
    # Above the ribbon.
    ax.margins(y=0.12)


def _scatter(ax: Axes, model: Any, component: np.ndarray, table: np.ndarray, names: list[str]) -> None:
    from matplotlib.patches import Ellipse

    size = float(np.clip(160 / np.sqrt(len(table)), 2, 16))
    for k, weight in enumerate(np.asarray(model.weights)):
        if weight == 0:
            continue
        colour = PALETTE[k % len(PALETTE)]
        mine = table[component == k]
        ax.scatter(mine[:, 0], mine[:, 1], s=size, color=colour, alpha=0.45, linewidths=0, rasterized=True)
    for k, (mean, covariance) in enumerate(zip(*_first_two(model.components), strict=True)):
        variances, axes = np.linalg.eigh(covariance)
        angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
        for sds, alpha in ((1, 1.0), (2, 0.6)):
            wide, high = 2 * sds * np.sqrt(np.maximum(variances[::-1], 0))
            ax.add_patch(
                Ellipse(mean, wide, high, angle=angle, fill=False, lw=1.4, alpha=alpha, color=PALETTE[k % len(PALETTE)])
            )
    low, high = table[:, :2].min(0), table[:, :2].max(0)
    margin = 0.06 * np.where(high > low, high - low, 1)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    _tidy(ax)


def _histogram(ax: Axes, model: Any, x: np.ndarray, name: str) -> None:
    values = x.ravel()
    counts = not hasattr(model.components, "mean")
    low, high = values.min(), values.max()
    if counts and high - low <= 60:
        edges, at = np.arange(low, high + 2) - 0.5, np.arange(low, high + 1)
    else:
        edges, at = np.histogram_bin_edges(values, bins=min(40, max(8, int(np.sqrt(len(values)))))), None
    ax.hist(values, bins=edges.tolist(), density=True, color=FAINT, linewidth=0)
    if at is None:
        at = np.unique(np.round(np.linspace(low, high, 300))) if counts else np.linspace(low, high, 300)
    rows = at[:, None] if x.ndim == 2 else at
    density = np.exp(np.asarray(model.components.log_prob(rows))) * np.asarray(model.weights)[:, None]
    for k, line in enumerate(density):
        ax.plot(at, line, color=PALETTE[k % len(PALETTE)], lw=1.6, marker="." if counts and len(at) < 40 else None)
    if len(density) > 1:
        ax.plot(at, density.sum(0), color=INK, lw=1, ls=":")
    if counts:
        ax.locator_params(axis="x", integer=True)
    ax.set_xlabel(name)
    ax.set_yticks([])
    _tidy(ax)


def _bars(ax: Axes, weights: np.ndarray, shares: list[np.ndarray], names: list[str], categories: Any) -> None:
    """Probabilities `[K, C]` of each column: a bar for each component, side by side."""
    labels, at, start = [], [], 0
    used = np.flatnonzero(weights > 0)
    for d, table in enumerate(shares):
        several = table.shape[1] > 1
        words = list(categories[d]) if d < len(categories) and len(categories[d]) else None
        for c in range(table.shape[1]):
            for i, k in enumerate(used):
                place = start + (i + 0.5) / len(used) * 0.8 - 0.4
                ax.bar(place, table[k, c], 0.8 / len(used), color=PALETTE[k % len(PALETTE)], linewidth=0)
            labels.append((words[c] if words else str(c)) if several else names[d])
            at.append(start)
            start += 1
        start += 0.5 if several else 0
    ax.set_xticks(at, labels, rotation=90 if len(labels) > 5 else 0)
    if len(shares) == 1:
        ax.set_xlabel(names[0])
    ax.set_ylim(0, 1)
    ax.set_ylabel("probability")
    _tidy(ax)


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
    ax.xaxis.label.set(color=INK, size=9)
    ax.yaxis.label.set(color=INK, size=9)


def _shares(components: Any) -> list[np.ndarray] | None:
    """`[K, C]` probabilities for each column, if all columns are categories or yes-or-no; otherwise None."""
    if isinstance(components, product.Product):
        shares: list[np.ndarray] = []
        for part in components.parts:
            if (share := _shares(part)) is None:
                return None
            shares += share
        return shares
    if isinstance(components, product.Independent):
        probs = np.asarray(leaves(components)[0][2])
        bernoulli = isinstance(components.base, discrete.Bernoulli)
        return [probs[:, d, None] for d in range(probs.shape[1])] if bernoulli else None
    if isinstance(components, discrete.Categorical):
        return [np.asarray(components.probs)]
    if isinstance(components, discrete.Bernoulli):
        return [np.asarray(components.probs)[:, None]]
    return None


def _first_two(components: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[K, 2]` and covariance `[K, 2, 2]` of the first two columns."""
    mean, covariance = _moments(components)
    return mean[:, :2], covariance[:, :2, :2]


def _moments(components: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[K, D]` and covariance `[K, D, D]` of any family."""
    if isinstance(components, product.Product):
        means, covariances = zip(*(_moments(part) for part in components.parts), strict=True)
        widths = [mean.shape[1] for mean in means]
        covariance = np.zeros((len(means[0]), sum(widths), sum(widths)))
        for block, start in zip(covariances, np.cumsum(widths) - widths, strict=True):
            covariance[:, start : start + block.shape[1], start : start + block.shape[1]] = block
        return np.concatenate(means, axis=1), covariance
    if isinstance(components, product.Independent):
        mean, variance = _number_moments(components.base)
        return mean, variance[..., None] * np.eye(mean.shape[-1])
    if isinstance(components, (gaussian.Gaussian, gaussian.TiedGaussian)):
        mean, covariance = np.asarray(components.mean), np.asarray(components.covariance)
        return mean, np.broadcast_to(covariance, (*mean.shape, mean.shape[-1]))
    if isinstance(components, (gaussian.DiagonalGaussian, gaussian.SphericalGaussian)):
        mean, variance = np.asarray(components.mean), np.asarray(components.variance)
        variance = variance if variance.ndim == mean.ndim else variance[..., None]
        return mean, np.broadcast_to(variance, mean.shape)[..., None] * np.eye(mean.shape[-1])
    mean, variance = _number_moments(components)
    return mean[..., None], variance[..., None, None]


def _number_moments(family: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, `[...]`, of a family of numbers."""
    if isinstance(family, discrete.Poisson):
        return np.asarray(family.rate), np.asarray(family.rate)
    probs = np.asarray(family.probs)
    if isinstance(family, discrete.Categorical):
        number = np.arange(probs.shape[-1])
        mean = probs @ number
        return mean, np.sum(probs * (number - mean[..., None]) ** 2, axis=-1)
    trials = getattr(family, "total_count", 1)
    return trials * probs, trials * probs * (1 - probs)
