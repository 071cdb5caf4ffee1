"""Good days and bad days at New York's airports: a hidden Markov model of daily delays, in Python.

Run it with a file name to keep the picture:

    python docs/examples/airport_days.py days.png

The command line does the same for each airport by itself, from `days().write_csv("days.csv")`:

    jaxem hmm days.csv --by origin --order day --columns late --states 1:4 --out days
"""

import sys

import jax
import numpy as np
import polars as pl

import jaxem as jem
from jaxem import plot
from jaxem.datasets import flights

AIRPORTS = ("EWR", "JFK", "LGA")


def days() -> pl.DataFrame:
    """The mean departure delay of each day at each airport, in minutes, on a scale that tames the worst days."""
    table = flights().group_by("origin", "month", "day").agg(late=pl.col("dep_delay").mean())
    table = table.with_columns(pl.col("origin").cast(pl.String), late=(pl.col("late") + 10).clip(1).log())
    return table.select("origin", "late", day=pl.date(2013, pl.col("month"), pl.col("day"))).sort("origin", "day")


def series(table: pl.DataFrame, origin: str) -> np.ndarray:
    """The 365 days of one airport."""
    return table.filter(pl.col("origin") == origin)["late"].to_numpy()[:, None]


def main(picture: str | None = None) -> None:
    """Fit one model to three airports; show that days come in runs."""
    table = days()
    x = jem.Sequences.from_list([series(table, origin) for origin in AIRPORTS])

    # Three sequences, one model: restarts are an axis, and the best of them comes back.
    start = jem.HMM.start(jax.random.key(0), jem.Gaussian, x, 2, restarts=8)
    fit = jem.fit(start, x, tol=1e-8)
    assert fit.converged, fit.status_message

    # A mixture sees the same days without their order. Order is worth a lot: bad days follow bad days.
    rows = np.concatenate([series(table, origin) for origin in AIRPORTS])
    mixture = jem.fit(jem.Mixture.start(jax.random.key(0), jem.Gaussian, rows, 2, restarts=8), rows, tol=1e-8)
    assert fit.log_likelihood > mixture.log_likelihood + 50

    model = fit.model
    bad = int(np.argmax(model.emission.mean[:, 0]))
    stay = float(model.transition[bad, bad])
    assert stay > float(model.stationary()[bad])
    share = float(model.stationary()[bad])
    sys.stdout.write(
        f"A bad day is followed by another with probability {stay:.2f}; of all days {share:.2f} are bad.\n"
    )

    # What tomorrow brings: the probabilities of the states, and a distribution of what will be seen.
    states, seen = model.forecast(x, 3)
    assert states.shape == (3, 3, 2)
    assert seen.batch_shape == (3, 3)

    if picture is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 6.2), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=(6, 1))
        for i, origin in enumerate(AIRPORTS):
            ax = figure.add_subplot(grid[i, 0])
            plot.sequence(model, series(table, origin), ax, names=["log(delay + 10 min)"])
            ax.set_title(f"{origin}, the days of 2013", loc="left", fontsize=9)
            ax.set_xlabel("")
        plot.transitions(model, figure.add_subplot(grid[1, 1]))
        figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:2])
