"""Races on many problems: performance and data profiles of solvers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxem.distributions.base import check_model
from jaxem.evaluation.race import GAPS, Race, Run, as_solvers, as_table, compare, line, plain, setting
from jaxem.io.progress import reported

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS: dict[str, Callable[[Run, int], float]] = {
    "passes": lambda run, step: float(run.passes[step]),
    "seconds": lambda run, step: float(run.times[step]),
}
WITHIN = GAPS[1]


@dataclasses.dataclass(frozen=True)
class Races:
    """Races of several solvers on many problems.

    Attributes:
        races: one for each problem, all with the same solvers.

    >>> import jax, jaxem as jem
    >>> starts, xs = [jem.Poisson(1.0)] * 2, [jax.numpy.array([1.0, 3.0]), jax.numpy.array([2.0, 9.0])]
    >>> races = jem.compare_many(starts, xs, {"EM": jem.EM()})
    >>> races.names, races.cost("passes").shape
    (['EM'], (2, 1))
    """

    races: tuple[Race, ...]

    @property
    def names(self) -> list[str]:
        """Names of the solvers."""
        return [run.name for run in self.races[0].runs]

    @property
    def rates(self) -> np.ndarray:
        """`[problems]` EM's convergence rate on each."""
        return np.array([race.rate for race in self.races])

    def cost(self, of: str = "passes", gap: float = WITHIN) -> np.ndarray:
        """`[problems, solvers]` cost of arriving within `gap` nats a row of the best; inf if it never did.

        Args:
            of: `"passes"` over the data, or `"seconds"`.
            gap: nats a row.

        Raises:
            ValueError: another kind of cost.
        """
        if of not in COSTS:
            raise ValueError(f"of is {of!r}; it must be one of {', '.join(COSTS)}")
        costs = np.full((len(self.races), len(self.names)), np.inf)
        for p, race in enumerate(self.races):
            for s, run in enumerate(race.runs):
                step = run.arrival(gap)
                if step is not None:
                    costs[p, s] = COSTS[of](run, step)
        return costs

    def performance_profile(self, of: str = "passes", gap: float = WITHIN) -> tuple[np.ndarray, np.ndarray]:
        """Performance profile (Dolan and More 2002): share of problems solved at no more than t times the lowest cost.

        Returns:
            t `[m]`, rising from one, and shares `[m, solvers]`.
        """
        cost = self.cost(of, gap)
        least = cost.min(axis=1, keepdims=True)
        ratio = np.where(np.isfinite(least), cost / np.where(np.isfinite(least), least, 1), np.inf)
        return _shares(ratio, first=1.0)

    def data_profile(self, gap: float = WITHIN) -> tuple[np.ndarray, np.ndarray]:
        """Data profile (More and Wild 2009): share of problems solved with a budget of so many passes.

        A unit of budget is as many passes as the model has free parameters, plus one, so that small and large
        problems are comparable.

        Returns:
            budgets `[m]`, rising, and shares `[m, solvers]`.
        """
        units = np.array([[race.free + 1] for race in self.races])
        return _shares(self.cost("passes", gap) / units)

    def rows_of_table(self, gap: float = WITHIN) -> list[dict[str, Any]]:
        """One dict for each solver, over all problems."""
        passes, seconds = self.cost("passes", gap), self.cost("seconds", gap)
        rows = []
        for s, name in enumerate(self.names):
            runs = [race.runs[s] for race in self.races]
            solved = np.isfinite(passes[:, s])
            rows.append(
                {
                    "solver": name,
                    "setting": setting(runs[0].solver),
                    "problems": len(self.races),
                    f"solved to {gap:g}": int(solved.sum()),
                    "fewest passes": int((solved & (passes[:, s] == passes.min(axis=1))).sum()),
                    "fastest": int((solved & (seconds[:, s] == seconds.min(axis=1))).sum()),
                    "median passes": float(np.median(passes[solved, s])) if solved.any() else None,
                    "median seconds": float(np.median(seconds[solved, s])) if solved.any() else None,
                    "other optimum": sum(race.elsewhere(race.runs[s]) for race in self.races),
                    "not converged": sum(not bool(run.fit.converged) for run in runs),
                }
            )
        return rows

    def table(self, gap: float = WITHIN) -> Any:
        """A polars DataFrame of `rows_of_table` if polars is installed, otherwise the list of dicts."""
        return as_table(self.rows_of_table(gap))

    def plot(self, gap: float = WITHIN) -> Figure:
        """Plot both profiles, and the cost of each solver against EM's convergence rate."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 7.6), layout="constrained")
        ((fast, lean), (budget, rates)) = figure.subplots(2, 2)
        for ax, of in ((lean, "passes"), (fast, "seconds")):
            self._profile(ax, *self.performance_profile(of, gap))
            ax.set_xlabel(f"at most so many times the {of} of the best solver")
        self._profile(budget, *self.data_profile(gap))
        budget.set_xlabel("passes over the data, in units of free numbers + 1")
        self._by_rate(rates, gap)
        handles, labels = lean.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 7), frameon=False)
        return figure

    def _profile(self, ax: Axes, at: np.ndarray, shares: np.ndarray) -> None:
        for s, name in enumerate(self.names):
            ax.step(at, shares[:, s], where="post", label=name, **line(s))
        _log_scale(ax)
        ax.set_ylim(-0.02, 1.02)
        ax.set_ylabel("share of the problems")
        plain(ax)

    def _by_rate(self, ax: Axes, gap: float) -> None:
        """Plot passes against 1 / (1 - rate): the number of EM steps that make an error e times smaller."""
        passes, slow = self.cost("passes", gap), 1 / (1 - np.clip(self.rates, 0, 1 - 1e-12))
        size = float(np.clip(20 / np.sqrt(len(slow)), 3.5, 7))
        for s in range(len(self.names)):
            there = np.isfinite(passes[:, s]) & np.isfinite(slow)
            ax.plot(slow[there], passes[there, s], "o", ms=size, alpha=0.45, mew=0, color=line(s)["color"])
            ax.plot(*_running_median(slow[there], passes[there, s]), **line(s))
        _log_scale(ax)
        ax.set_yscale("log")
        ax.set_xlabel("1 / (1 - EM's rate): from clear (left) to hidden (right)")
        ax.set_ylabel(f"passes to {gap:g} nats a row")
        plain(ax)


def _log_scale(ax: Axes) -> None:
    """Make the x axis logarithmic with plain numbers, some within each decade if there are few of these."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def _shares(cost: np.ndarray, first: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every cost that occurs, and for each solver the share of problems that cost no more."""
    at = np.unique(cost[np.isfinite(cost)])
    at = at if first is None else np.union1d([first], at)
    return at, (cost[None] <= at[:, None, None]).mean(axis=1)


def _running_median(x: np.ndarray, y: np.ndarray, bins: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Medians of y over neighbours in x, as many in each bin."""
    order = np.argsort(x)
    parts = [part for part in np.array_split(order, min(bins, max(len(x) // 4, 1))) if len(part)]
    return np.array([np.median(x[part]) for part in parts]), np.array([np.median(y[part]) for part in parts])


def compare_many(
    models: Any,
    xs: Any,
    solvers: Mapping[str, Any] | list[Any] | tuple[Any, ...],
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    tol: float = 1e-9,
    max_steps: int = 2000,
    progress: bool | Callable[[int, int], None] | None = None,
) -> Races:
    """Race solvers on many problems, each by itself as in `compare`.

    Args:
        models: the starts, one for each problem: a list, or one model with a leading axis.
        xs: data of each problem, equally many.
        solvers: as in `compare`.
        weight, labels: for each problem as in `fit`, or None.
        prior: as in `fit`, the same for all.
        tol, max_steps: as in `fit`, for each.
        progress: as in `fit_many`.

    Returns:
        `Races`: see `table`, `plot`, `performance_profile`, `data_profile`.

    Raises:
        ValueError: no problems, or numbers of models and data that differ.

    >>> import jax, jaxem as jem
    >>> races = jem.compare_many([jem.Poisson(1.0)], [jax.numpy.array([1.0, 3.0])], {"EM": jem.EM()})
    >>> races.table()["solved to 1e-05"].to_list()
    [1]
    """
    solvers = as_solvers(solvers)
    if not isinstance(models, Sequence):
        check_model(models, xs, "models")
        models = [jax.tree.map(lambda leaf, i=i: leaf[i], models) for i in range(len(xs))]
    if not models or len(models) != len(xs):
        raise ValueError(f"models holds {len(models)} and xs {len(xs)} problems; they must be as many, at least one")
    races = []
    with reported(progress, "racing") as tell:
        for i, (model, x) in enumerate(zip(models, xs, strict=True)):
            own = {"weight": None if weight is None else weight[i], "labels": None if labels is None else labels[i]}
            races.append(compare(model, x, solvers, prior=prior, tol=tol, max_steps=max_steps, **own))
            if tell is not None:
                tell(i + 1, len(xs))
    return Races(tuple(races))
