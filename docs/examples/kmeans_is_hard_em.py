"""k-means is EM that makes up its mind: what it takes for granted, and how EM cools down to it.

Run it with a file name to keep the picture:

    python docs/examples/kmeans_is_hard_em.py kmeans.png
"""

import sys
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Array

import jaxem as jem
from jaxem.core.pytree import module, replace
from jaxem.palette import PALETTE

jax.config.update("jax_enable_x64", True)  # the same centres, to 12 digits

VARIANCES = (9.0, 1.0, 0.1, 0.001)


@module
class EqualBalls(jem.Mixture):
    """What k-means takes for granted: Gaussian balls of one size, none heavier than another. Only centres move."""

    def with_counts(self, counts: Array, child: Any) -> Self:
        return replace(self, components=replace(self.components, mean=child.mean))


def balls(centres: np.ndarray, variance: float) -> EqualBalls:
    """Balls of this variance around these centres."""
    k = len(centres)
    return EqualBalls(np.full(k, 1 / k), jem.SphericalGaussian(centres, np.full(k, variance)))


def lloyd(x: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k-means (Lloyd 1982): each row to the nearest centre, each centre to the mean of its rows, until none moves."""
    while True:
        nearest = ((x[:, None] - centres) ** 2).sum(-1).argmin(1)
        moved = np.array([x[nearest == k].mean(0) for k in range(len(centres))])
        if (moved == centres).all():
            return centres, nearest
        centres = moved


def main(picture: str | None = None) -> None:
    """The same centres and the same assignments; then soft ones, and how they harden."""
    rng = np.random.default_rng(3)
    places = np.array([[0.0, 0.0], [3.0, 0.5], [1.0, 3.0], [4.0, 3.5]])
    x = rng.normal(places[rng.integers(0, 4, 400)], 0.9)
    start = x[:4]  # any four rows

    # Hard EM gives a row to its likeliest ball. Balls of equal weight and one variance, whatever it is: the nearest.
    centres, nearest = lloyd(x, start)
    inertia = ((x - centres[nearest]) ** 2).sum()
    for variance in (0.01, 1.0, 100.0):
        hard = jem.fit(balls(start, variance), x, jem.HardEM(), tol=0.0)
        assert hard.converged, hard.status_message
        np.testing.assert_allclose(hard.model.components.mean, centres, rtol=1e-12)
        np.testing.assert_array_equal(hard.model.predict(x), nearest)
        # What it climbs is the sum of squared distances that k-means lowers, upside down.
        constant = len(x) * np.log(4 * 2 * np.pi * variance)
        np.testing.assert_allclose(hard.log_likelihood, -inertia / (2 * variance) - constant, rtol=1e-12)
    sys.stdout.write(f"hard EM: the centres and assignments of k-means, in {hard.steps} steps\n")

    # Temperature T makes responsibilities proportional to p^(1/T). That is EM on balls T times as wide.
    annealed = jem.fit(balls(start, 0.5), x, jem.AnnealedEM([4.0]), tol=0.0, max_steps=1)
    wide = jem.fit(balls(start, 2.0), x, tol=0.0, max_steps=1)
    np.testing.assert_allclose(annealed.model.components.mean, wide.model.components.mean, rtol=1e-12)

    # So EM cools down to k-means: hot, all balls lie on top of each other; cold, a row belongs to one of them.
    fits = [jem.fit(balls(start, variance), x, tol=0.0) for variance in VARIANCES]
    sure = [float(np.asarray(fit.model.posterior(x)).max(1).mean()) for fit in fits]
    away = [float(np.abs(fit.model.components.mean - centres).max()) for fit in fits]
    for variance, certain, distance in zip(VARIANCES, sure, away, strict=True):
        sys.stdout.write(f"EM, variance {variance}: mean responsibility of the likeliest ball {certain:.4f}, ")
        sys.stdout.write(f"centres within {distance:.1e} of those of k-means\n")
    assert sure == sorted(sure)
    assert away == sorted(away, reverse=True)
    assert abs(sure[0] - 1 / 4) < 1e-6
    assert sure[-1] > 1 - 1e-12
    assert away[-1] < 1e-12

    if picture is not None:
        draw(x, centres, fits).savefig(picture, dpi=110)


def draw(x: np.ndarray, centres: np.ndarray, fits: list[jem.Fit]) -> Any:
    """Each row in the mixed colours of the balls that share it."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    colours = np.array([to_rgb(colour) for colour in PALETTE[:4]])
    for ax, i in zip(figure.subplots(1, 3, sharex=True, sharey=True), (0, 1, 3), strict=True):
        ax.scatter(*x.T, s=9, c=np.asarray(fits[i].model.posterior(x)) @ colours, lw=0)
        ax.scatter(*centres.T, s=130, facecolors="none", edgecolors="black", label="centres of k-means")
        ax.scatter(*fits[i].model.components.mean.T, s=60, marker="x", color="black", label="centres of EM")
        ax.set_title(f"variance {VARIANCES[i]}", loc="left", fontsize=10)
        ax.set_aspect("equal")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:2])
