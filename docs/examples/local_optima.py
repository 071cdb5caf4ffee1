"""EM climbs the hill that it stands on: where many starts end, and what better starts, restarts and annealing change.

Run it with a file name to keep the picture:

    python docs/examples/local_optima.py optima.png
"""

import sys
from typing import Any

import jax
import numpy as np

import jaxem as jem
from jaxem import plot
from jaxem.palette import PALETTE

jax.config.update("jax_enable_x64", True)  # so that equal optima are seen to be equal

STARTS = 40
HOTTEST = (1.0, 1.5, 3.0)


def data() -> np.ndarray:
    """300 rows around the nine points of a square lattice, four standard deviations apart."""
    rng = np.random.default_rng(0)
    lattice = 4.0 * np.array([[i, j] for i in range(3) for j in range(3)])
    return rng.normal(lattice[rng.integers(0, 9, 300)], 1.0)


def balls(means: np.ndarray, variance: float) -> jem.Mixture:
    """Starts at these means `[STARTS, 9, 2]`, with nothing else to tell the components apart."""
    shape = means.shape[:-1]
    return jem.Mixture(np.full(shape, 1 / 9), jem.SphericalGaussian(means, np.full(shape, variance)))


@jax.jit
def fit_each(starts: jem.Mixture, x: jax.Array, temperatures: jax.Array) -> jem.Fit:
    """A fit from every start. At a temperature of one it is EM, so that one program does for all."""
    return jax.vmap(lambda start: jem.fit(start, x, jem.AnnealedEM(temperatures)))(starts)


def main(picture: str | None = None) -> None:
    """Three kinds of start, with and without annealing."""
    x = data()
    spread = jem.Mixture.start(jax.random.key(0), jem.SphericalGaussian, x, 9, restarts=STARTS, method="kmeans++")
    starts = {
        "random rows": balls(x[np.random.default_rng(1).integers(0, len(x), (STARTS, 9))], 1.0),
        "k-means++": spread,
        "k-means++, wide": balls(spread.components.mean, x.var()),  # the same means, and each as wide as all data
    }
    # The temperature falls to one in fifty steps, then EM goes on.
    fits = {
        (kind, hottest): fit_each(start, x, np.geomspace(hottest, 1, 50))
        for kind, start in starts.items()
        for hottest in HOTTEST
    }
    ends = {name: np.asarray(fit.log_likelihood) for name, fit in fits.items()}
    top = max(end.max() for end in ends.values())
    reached = {name: end > top - 0.01 for name, end in ends.items()}
    share = {name: float(hits.mean()) for name, hits in reached.items()}
    optima = {name: len(np.unique(end.round(1))) for name, end in ends.items()}
    for kind in starts:
        found = ", ".join(f"{share[kind, t]:.0%} ({optima[kind, t]} optima)" for t in HOTTEST)
        sys.stdout.write(f"{kind:16} reach the best with EM, annealed from 1.5, from 3: {found}\n")

    # Where a start lies matters, and so does how wide it is: wide components share the rows before they divide them.
    assert optima["random rows", 1.0] >= 20
    assert share["random rows", 1.0] < 0.25 < share["k-means++", 1.0] < 0.75 < share["k-means++, wide", 1.0]

    # Annealing keeps responsibilities soft for longer. Fewer optima are left, and more starts reach the best of them.
    for kind in starts:
        assert share[kind, 1.5] >= share[kind, 1.0]
        assert optima[kind, 1.5] <= optima[kind, 1.0]
    assert share["random rows", 1.5] > 3 * share["random rows", 1.0]
    # Too hot, and all components melt into one. EM cannot tell them apart again, and stays there.
    for kind in starts:
        melted = fits[kind, 3.0]
        assert share[kind, 3.0] == 0
        assert np.isin(melted.status, [jem.Status.converged, jem.Status.components_coincide]).all()
        assert np.ptp(np.asarray(melted.model.components.mean), axis=1).max() < 1e-4

    # Restarts need no share near one: the best of ten is enough. fit takes all starts and gives back the best.
    tens = reached["k-means++", 1.0].reshape(-1, 10).any(1)
    assert tens.all()
    best = jem.fit(spread, x)
    assert abs(float(best.log_likelihood) - ends["k-means++", 1.0].max()) < 1e-3
    sys.stdout.write(f"of ten starts by k-means++ the best is the best of all: {tens.sum()} times of {len(tens)}\n")

    if picture is not None:
        worst = jax.tree.map(lambda leaf: leaf[ends["k-means++", 1.0].argmin()], fits["k-means++", 1.0].model)
        gaps = {name: top - np.sort(end)[::-1] for name, end in ends.items()}
        draw(x, best.model, worst, gaps).savefig(picture, dpi=110)


def draw(x: np.ndarray, best: jem.Mixture, worst: jem.Mixture, gaps: dict[Any, np.ndarray]) -> Any:
    """The best optimum, the worst that a k-means++ start ended in, and how far below the best all starts ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    axes = figure.subplots(1, 3)
    for ax, model, title in zip(axes, (best, worst), ("The best optimum", "A local one"), strict=False):
        plot.mixture(model, x, ax, names=("", ""))
        ax.set_title(title, loc="left", fontsize=10)
    kinds = list(dict.fromkeys(kind for kind, _ in gaps))
    for (kind, hottest), gap in gaps.items():
        if hottest < 3:
            line, name = ("-", "EM") if hottest == 1 else ("--", "annealed")
            colour = PALETTE[kinds.index(kind)]
            axes[2].step(np.arange(1, STARTS + 1) / STARTS, gap, color=colour, ls=line, label=f"{kind}, {name}")
    axes[2].set_xlabel("share of the starts that ended no lower")
    axes[2].set_ylabel("nats below the best")
    axes[2].set_title("Where the starts ended", loc="left", fontsize=10)
    axes[2].spines[["top", "right"]].set_visible(False)
    axes[2].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:2])
