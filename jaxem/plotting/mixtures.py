"""Plots of fitted models, with matplotlib, in Okabe and Ito's colours, which colour-blind people can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.constraints import leaves
from jaxem.distributions import (
    bernoulli,
    categorical,
    censored,
    dirichlet,
    gaussian,
    product,
    regression,
    student_t,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from jaxem.plotting.axes import FAINT, INK, colour, curves, tidy


def mixture(
    model: Any, x: Any, ax: Axes | None = None, names: Any = (), categories: Any = (), component: Any = None
) -> Axes:
    """Draw rows and the components of one fitted mixture.

    Several columns of numbers: the first two, each row that has both in the colour of its most probable component, with
    the ellipses that hold 39 % and 86 % of a component (one and two standard deviations). One column: a histogram, and
    the density of each component. Categories and yes-or-no columns: the probabilities of each component as a chart.
    Regressions: the response on the first input, and the mean of each component with the others at their medians.
    Censored numbers: the share that lies beyond, from rows (Kaplan and Meier 1958) and from components.

    Args:
        model: a mixture without leading axes.
        x: `[n]` or `[n, D]` rows, NaN where a cell is missing.
        ax: where to draw; a new figure if left out.
        names: names of the columns.
        categories: for each column, the names of its categories.
        component: `[n]` the component of each row, if known already.

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
    shares = category_shares(model.components)
    if shares is not None:
        if len(shares) == 1 and len(names) > 1:
            # Columns are categories themselves.
            names, categories = [""], [names]
        _bars(ax, np.asarray(model.weights), shares, names, categories)
    elif isinstance(model.components, censored.Censored):
        _survival(ax, model, table, names)
    elif table.shape[1] == 1:
        _histogram(ax, model, table[:, 0], names[0])
    else:
        component = np.asarray(model.predict(x) if component is None else component)
        draw = _lines if isinstance(model.components, regression.Regression) else _scatter
        draw(ax, model, component, table, names)
    tidy(ax)
    return ax


def has_ellipses(model: Any) -> bool:
    """Whether `mixture` draws ellipses."""
    components = getattr(model, "components", None)
    if components is None or isinstance(components, (censored.Censored, regression.Regression)):
        return False
    return components.event_shape not in ((), (1,)) and category_shares(components) is None


def _points(ax: Axes, model: Any, component: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Draw rows in the colours of their components, and set limits that hold them."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y, component = x[there], y[there], component[there]
    size = float(np.clip(160 / np.sqrt(max(len(x), 1)), 2, 16))
    for k in np.flatnonzero(np.asarray(model.weights) > 0):
        mine = component == k
        ax.scatter(x[mine], y[mine], s=size, color=colour(k), alpha=0.45, linewidths=0, rasterized=True)
    for values, limits in ((x, ax.set_xlim), (y, ax.set_ylim)):
        if len(values):
            low, high = values.min(), values.max()
            margin = 0.06 * (high - low if high > low else 1)
            limits(low - margin, high + margin)


def _scatter(ax: Axes, model: Any, component: np.ndarray, table: np.ndarray, names: list[str]) -> None:
    from matplotlib.patches import Ellipse

    _points(ax, model, component, table[:, 0], table[:, 1])
    for k, (mean, covariance) in enumerate(zip(*first_two_columns(model.components, table), strict=True)):
        variances, axes = np.linalg.eigh(covariance)
        angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
        for sds, alpha in ((1, 1.0), (2, 0.6)):
            wide, high = 2 * sds * np.sqrt(np.maximum(variances[::-1], 0))
            ax.add_patch(Ellipse(mean, wide, high, angle=angle, fill=False, lw=1.4, alpha=alpha, color=colour(k)))
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])


def _lines(ax: Axes, model: Any, component: np.ndarray, table: np.ndarray, names: list[str]) -> None:
    """Draw the response on the first input, and its mean in each component, with the other inputs at their medians."""
    _points(ax, model, component, table[:, 0], table[:, -1])
    inputs = np.tile(np.nanmedian(table[:, :-1], axis=0), (200, 1))
    inputs[:, 0] = np.linspace(np.nanmin(table[:, 0]), np.nanmax(table[:, 0]), 200)
    means = model.components.moments(jnp.asarray(inputs, model.components.coefficients.dtype))[0]
    for k in np.flatnonzero(np.asarray(model.weights) > 0):
        ax.plot(inputs[:, 0], means[k], color=colour(k), lw=1.8)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[-1])


def _survival(ax: Axes, model: Any, table: np.ndarray, names: list[str]) -> None:
    """Draw the share of rows, and of each component, that lies beyond."""
    lower, upper = table[np.isfinite(table).any(axis=1)].T
    lasting, middle = np.isinf(upper), np.where(np.isinf(lower), upper, (lower + upper) / 2)
    time = np.where(lasting, lower, middle)
    order = np.lexsort([lasting, time])
    time, lasting = time[order], lasting[order]
    beyond = np.cumprod(1 - ~lasting / np.arange(len(time), 0, -1))
    ax.step(time, beyond, where="post", color=FAINT, lw=3)
    open_ends = lasting if lasting.sum() <= 100 else np.zeros_like(lasting)
    ax.plot(time[open_ends], beyond[open_ends], "|", color=INK, ms=5)
    at = np.linspace(time.min(), time.max(), 300)
    ends = np.stack([at, np.full_like(at, np.inf)], axis=1)
    shares = np.exp(np.asarray(model.components.log_prob(ends))) * np.asarray(model.weights)[:, None]
    curves(ax, at, shares)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel(" to ".join(names))
    ax.set_ylabel("share beyond")


def _histogram(ax: Axes, model: Any, values: np.ndarray, name: str) -> None:
    values, whole = values[np.isfinite(values)], _counts(model.components)
    low, high = _reach(values)
    if whole and high - low <= 60:
        edges, at = np.arange(low, high + 2) - 0.5, np.arange(low, high + 1)
    else:
        shown = values[(values >= low) & (values <= high)]
        edges = np.histogram_bin_edges(shown, bins=min(40, max(8, int(np.sqrt(len(shown))))))
        at = _grid(model.components, shown, margin=0)
    heights = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
    ax.stairs(heights, edges, fill=True, color=FAINT)
    density = _density(model.components, at) * np.asarray(model.weights)[:, None]
    curves(ax, at, density, stems=whole and len(at) <= 40)
    # A density may be infinite at an end of its support.
    highest = np.max(density.sum(0), where=np.isfinite(density.sum(0)), initial=0)
    ax.set_ylim(0, 1.05 * max(heights.max(), min(highest, 3 * heights.max())))
    if whole:
        ax.locator_params(axis="x", integer=True)
    ax.set_xlabel(name)
    ax.set_yticks([])


def _reach(values: np.ndarray) -> tuple[float, float]:
    """Range in which values are drawn: all of it, unless a few of them are outliers."""
    low, high = values.min(), values.max()
    first, last = np.quantile(values, [0.02, 0.98])
    span = last - first
    return (max(low, first - span), min(high, last + span)) if high - low > 6 * span > 0 else (low, high)


def _bars(ax: Axes, weights: np.ndarray, shares: list[np.ndarray], names: list[str], categories: Any) -> None:
    """Draw probabilities `[K, C]` of each column: a bar for each component, side by side."""
    labels, at, start = [], [], 0
    used = np.flatnonzero(weights > 0)
    for d, table in enumerate(shares):
        several = table.shape[1] > 1
        words = list(categories[d]) if d < len(categories) and len(categories[d]) else None
        for c in range(table.shape[1]):
            for i, k in enumerate(used):
                place = start + (i + 0.5) / len(used) * 0.8 - 0.4
                ax.bar(place, table[k, c], 0.8 / len(used), color=colour(k), linewidth=0)
            labels.append((words[c] if words else str(c)) if several else names[d])
            at.append(start)
            start += 1
        start += 0.5 if several else 0
    ax.set_xticks(at, labels, rotation=90 if len(labels) > 5 else 0)
    if len(shares) == 1:
        ax.set_xlabel(names[0])
    ax.set_ylim(0, 1)
    ax.set_ylabel("probability")


def category_shares(components: Any) -> list[np.ndarray] | None:
    """`[K, C]` probabilities for each column, if all columns are categorical or binary; otherwise None."""
    if isinstance(components, product.Product):
        shares: list[np.ndarray] = []
        for part in components.parts:
            if (share := category_shares(part)) is None:
                return None
            shares += share
        return shares
    if isinstance(components, product.Independent):
        probs = np.asarray(leaves(components)[0][2])
        yes_no = isinstance(components.base, bernoulli.Bernoulli)
        return [probs[:, d, None] for d in range(probs.shape[1])] if yes_no else None
    if isinstance(components, categorical.Multinomial):
        return [np.asarray(components.probs)]
    if isinstance(components, dirichlet.Dirichlet):
        concentration = np.asarray(components.concentration)
        return [concentration / concentration.sum(axis=-1, keepdims=True)]
    if isinstance(components, categorical.Categorical):
        return [np.asarray(components.probs)]
    if isinstance(components, bernoulli.Bernoulli):
        return [np.asarray(components.probs)[:, None]]
    return None


def first_two_columns(components: Any, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[K, 2]` and covariance `[K, 2, 2]` of the first two columns (of the first, if there is only one)."""
    if isinstance(components, (product.Product, product.Independent)):
        means, covariances = zip(*_blocks(components, table), strict=True)
        widths = [mean.shape[1] for mean in means]
        covariance = np.zeros((len(means[0]), sum(widths), sum(widths)))
        for block, start in zip(covariances, np.cumsum(widths) - widths, strict=True):
            covariance[:, start : start + block.shape[1], start : start + block.shape[1]] = block
        mean = np.concatenate(means, axis=1)
    elif isinstance(components, student_t.StudentT):
        mean, covariance = np.asarray(components.location), np.asarray(components.scatter)
    elif hasattr(components, "covariance"):
        mean, covariance = np.asarray(components.mean), np.asarray(components.covariance)
        covariance = np.broadcast_to(covariance, (*mean.shape, mean.shape[-1]))
    elif isinstance(components, (gaussian.DiagonalGaussian, gaussian.SphericalGaussian)):
        mean, variance = np.asarray(components.mean), np.asarray(components.variance)
        variance = variance if variance.ndim == mean.ndim else variance[..., None]
        covariance = np.broadcast_to(variance, mean.shape)[..., None] * np.eye(mean.shape[-1])
    else:
        mean, covariance = _within_reach(components, table[:, 0])
    return mean[:, :2], covariance[:, :2, :2]


def _blocks(components: Any, table: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Moments of independent blocks of columns, until there are two columns."""
    if isinstance(components, product.Independent):
        base = components.base
        parts: Any = [jax.tree.map(lambda leaf, d=d: leaf[:, d], base) for d in range(min(table.shape[1], 2))]
    else:
        parts = components.parts
    found, at = [], 0
    for part in parts:
        if at < 2:
            width = part.event_shape[0] if part.event_shape else 1
            found.append(first_two_columns(part, table[:, at : at + width]))
            at += width
    return found


def _within_reach(family: Any, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[K, 1]` and variance `[K, 1, 1]` of a family of numbers, over the range of the rows or a little more."""
    at = _grid(family, values[np.isfinite(values)], margin=0.5)
    density = _density(family, at)
    share = np.where(np.isfinite(density), density, 0) * np.gradient(at)
    share /= np.maximum(share.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    mean = share @ at
    return mean[:, None], np.sum(share * (at - mean[:, None]) ** 2, axis=1)[:, None, None]


def _grid(family: Any, values: np.ndarray, margin: float) -> np.ndarray:
    """Points from the smallest value to the largest, and `margin` ranges beyond; denser where values are."""
    low, high = values.min(), values.max()
    beyond = margin * (high - low if high > low else 1)
    at = np.linspace(low - beyond, high + beyond, 300)
    if _counts(family):
        return np.unique(np.round(np.concatenate([at, [low, low + 1]])))
    return np.unique(np.concatenate([at, np.quantile(values, np.linspace(0, 1, 200))]))


def _counts(family: Any) -> bool:
    """Whether a family holds whole numbers only."""
    return not family.event_shape and not np.asarray(family.inside(np.array([0.5, 1.5]))).any()


def _density(family: Any, at: np.ndarray) -> np.ndarray:
    """`[K, m]` density of a family of one column."""
    # Padded to a power of two, so that plots share a compilation.
    rows = np.pad(at, (0, (1 << (len(at) - 1).bit_length()) - len(at)), mode="edge")
    rows = rows.astype(jax.tree.leaves(family)[0].dtype)
    log_prob = family.log_prob(rows[:, None] if family.event_shape else rows)
    return np.exp(np.asarray(log_prob, float))[:, : len(at)]
