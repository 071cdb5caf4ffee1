"""Races of solvers from the same start, on the same objective and the same data: EM against gradient methods."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.arguments import said_of
from jaxem.core.constraints import free_parameters
from jaxem.data.prepare import prepare
from jaxem.distributions.base import check_model
from jaxem.evaluation.convergence_rate import em_rate
from jaxem.fitting.checks import check_labelled, check_limits, check_prior, hidden_states
from jaxem.fitting.fit import fit
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.palette import PALETTE
from jaxem.solvers.base import Solver
from jaxem.solvers.em import EM
from jaxem.solvers.squarem import SQUAREM
from jaxem.solvers.words import as_solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAPS = (1e-3, 1e-5, 1e-7)
"""Distances from the best, in nats a row, whose arrival times are reported."""
ELSEWHERE = 1e-3
"""A solver that converged further below the best than this, in nats a row, is in another optimum."""
ENOUGH, MOST = 0.02, 5
"""Seconds of runs after which the fastest is reliable, and the largest number of runs."""
POLISH = 10_000
"""Smallest number of steps of the long run, however short the race is."""
LINES = ("-", "--", "-.", ":")


@dataclasses.dataclass(frozen=True)
class Run:
    """Run of one solver in a race.

    Attributes:
        name, solver: as given.
        fit: its result.
        seconds: wall time of the fastest of a few calls after the first, without compilation.
        setup_seconds: of them, before the first step.
        compile_seconds: additional time of the first call.
        gap: `[steps + 1]` distance of the objective below the best before each step, in nats a row; of a solver that
            anneals, only after annealing.
    """

    name: str
    solver: Any
    fit: Fit
    seconds: float
    setup_seconds: float
    compile_seconds: float
    gap: np.ndarray

    @property
    def passes(self) -> np.ndarray:
        """`[steps + 1]` passes over the data up to each entry of `gap`; those of line searches are averaged."""
        return float(self.fit.passes) * np.arange(1, len(self.gap) + 1) / len(self.gap)

    @property
    def times(self) -> np.ndarray:
        """`[steps + 1]` seconds up to each entry of `gap`, setup included."""
        climbing = self.seconds - self.setup_seconds
        return self.setup_seconds + climbing * np.arange(1, len(self.gap) + 1) / len(self.gap)

    def arrival(self, gap: float) -> int | None:
        """First step after which the run stayed within `gap` of the best; None if there is none."""
        outside = np.flatnonzero(~(self.gap <= gap))
        step = int(outside[-1]) + 1 if len(outside) else 0
        return step if step < len(self.gap) else None


@dataclasses.dataclass(frozen=True)
class Race:
    """Runs of several solvers on one problem.

    Attributes:
        runs: one for each, in the order given.
        best: the largest objective that any of them reached, or a long run in float64 that continued from there; NaN if
            all failed.
        rows: sum of the weights of the rows (of the steps of sequences).
        rate: EM's convergence rate at the best model, see `em_rate`: the largest fraction of missing information there.
        free: number of free parameters.

    >>> import jax, jaxem as jem
    >>> race = jem.compare(jem.Poisson(1.0), jax.numpy.array([1.0, 3.0]), {"EM": jem.EM()})
    >>> race.rows, [run.name for run in race.runs]
    (2.0, ['EM'])
    """

    runs: tuple[Run, ...]
    best: float
    rows: float
    rate: float
    free: int

    def below(self, run: Run) -> float:
        """Distance of a run's model below the best, in nats a row."""
        return (self.best - float(run.fit.objective)) / self.rows

    def elsewhere(self, run: Run) -> bool:
        """Whether a run converged to another optimum."""
        return bool(run.fit.converged) and self.below(run) > ELSEWHERE

    def rows_of_table(self) -> list[dict[str, Any]]:
        """One dict for each solver: its status, and when it arrived within each of `GAPS` of the best."""
        rows = []
        for run in self.runs:
            row: dict[str, Any] = {
                "solver": run.name,
                "setting": setting(run.solver),
                "status": run.fit.status_name,
                "other optimum": self.elsewhere(run),
                "below the best": self.below(run),
                "steps": int(run.fit.steps),
                "passes": float(run.fit.passes),
                "seconds": run.seconds,
                "compile": run.compile_seconds,
            }
            for gap in GAPS:
                step = run.arrival(gap)
                row[f"passes to {gap:g}"] = None if step is None else float(run.passes[step])
                row[f"seconds to {gap:g}"] = None if step is None else float(run.times[step])
            rows.append(row)
        return rows

    def table(self) -> Any:
        """A polars DataFrame of `rows_of_table` if polars is installed, otherwise the list of dicts."""
        return as_table(self.rows_of_table())

    def plot(self) -> Figure:
        """Plot the gap to the best against seconds and against passes over the data, on logarithmic axes."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        floor = 1e-10
        for i, run in enumerate(self.runs):
            style = line(i)
            gap = np.where(np.isfinite(run.gap), np.maximum(run.gap, floor), np.nan)
            for ax, place in zip(axes, (run.times, run.passes), strict=True):
                ax.plot(place, gap, label=run.name, **style)
                ax.plot(place[-1:], gap[-1:], "o" if run.fit.converged else "x", color=style["color"], ms=5)
        for ax, label in zip(axes, ("seconds, without compilation", "passes over the data"), strict=True):
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel(label)
            plain(ax)
        axes[0].set_ylabel("below the best, nats a row")
        axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def compare(
    model: Any,
    x: Any,
    solvers: Mapping[str, Any] | list[Any] | tuple[Any, ...],
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    tol: float = 1e-9,
    max_steps: int = 2000,
) -> Race:
    """Race solvers from the same start.

    All maximise the same objective (prior included) on the same arrays. Each is run several times, to separate
    compilation, setup and steps. The best is the largest objective of all, or
    that of a long run of SQUAREM in float64 that continues from there.

    Args:
        model: the start of all.
        x, weight, prior, labels: as in `fit`.
        solvers: by name, for table and plot; each as in `fit`. Or a list of them.
        tol, max_steps: as in `fit`, for each.

    Returns:
        A `Race`: see `table` and `plot`.

    Raises:
        ValueError: no solvers, or any error of `fit`.

    >>> import jax, optax, jaxem as jem
    >>> x = jax.numpy.array([[-1.1], [-0.9], [-1.0], [1.9], [2.0], [2.1]])
    >>> start = jem.Mixture([0.5, 0.5], jem.SphericalGaussian([[-1.0], [1.0]], [1.0, 1.0]))
    >>> race = jem.compare(start, x, {"EM": jem.EM(), "SQUAREM": jem.SQUAREM(jem.EM())})
    >>> [run.fit.status_name for run in race.runs]
    ['converged', 'converged']
    """
    check_model(model, x)
    solvers, max_steps = as_solvers(solvers), check_limits(tol, max_steps)
    check_labelled(model, labels)
    check_prior(prior)
    x = jax.tree.map(jnp.asarray, model.read(x))
    x, weight, labels = prepare(x, weight, labels, hidden_states(model))
    given = {"weight": weight, "prior": prior, "labels": labels}
    raced = [_timed(solver, model, x, given, max_steps, tol) for solver in solvers.values()]
    values = [float(result.objective) if np.isfinite(result.objective) else -np.inf for result, *_ in raced]
    best, rate = np.nan, np.nan
    if max(values) > -np.inf:
        leader = raced[int(np.argmax(values))][0].model
        polished, rate = _polished(leader, x, max_steps=max(max_steps, POLISH), **given)
        best = max(*values, polished)
    rows = float(model.observations(model.observe(x), weight))
    runs = []
    for (name, solver), (result, clock) in zip(solvers.items(), raced, strict=True):
        trace = np.array(result.trace, float)[: int(result.steps) + 1]
        # While it anneals it reports another objective.
        trace[: solver.warmup] = np.nan
        runs.append(Run(name, solver, result, *clock, (best - trace) / rows))
    return Race(tuple(runs), best, rows, rate, int(np.max(free_parameters(model))))


def as_solvers(solvers: Any) -> dict[str, Any]:
    """Solvers by name, for table and plot; those of a list have their own names.

    >>> as_solvers(["em", "squarem"])
    {'em': EM(), 'squarem': SQUAREM(solver=EM())}
    """
    if not isinstance(solvers, Mapping):
        if not isinstance(solvers, (list, tuple)) or hasattr(solvers, "update"):
            raise TypeError(f"solvers is {said_of(solvers)}; name each, for example {{'EM': jem.EM()}}")
        names = [each if isinstance(each, str) else setting(as_solver(each)) for each in solvers]
        if len(set(names)) < len(names):
            raise ValueError(f"solvers has {max(names, key=names.count)} twice; name each: {{'EM': jem.EM(), ...}}")
        solvers = dict(zip(names, solvers, strict=True))
    if not solvers:
        raise ValueError("solvers is empty; name at least one, for example {'EM': jem.EM()}")
    return {str(name): as_solver(solver, f"solvers[{name!r}]") for name, solver in solvers.items()}


class _Clock(NamedTuple):
    """Times, as in `Run`."""

    seconds: float
    setup_seconds: float
    compile_seconds: float


def _timed(solver: Any, model: Any, x: Any, given: Any, max_steps: int, tol: float) -> tuple[Fit, _Clock]:
    def once(tol: float) -> tuple[Fit, float]:
        began = time.perf_counter()
        found = jax.block_until_ready(_fit(solver, model, x, given, max_steps, tol))
        return found, time.perf_counter() - began

    def fastest(tol: float) -> tuple[Fit, float]:
        found, seconds = once(tol)
        spent, runs = seconds, 1
        while spent < ENOUGH and runs < MOST:
            again = once(tol)[1]
            seconds, spent, runs = min(seconds, again), spent + again, runs + 1
        return found, seconds

    cold = once(tol)[1]
    found, warm = fastest(tol)
    # With an infinite tolerance it stops as early as possible: two lengths give the setup and the steps.
    early, short = fastest(np.inf)
    longer = int(found.steps) - int(early.steps)
    step = max(warm - short, 0.0) / longer if longer > 0 else warm / (int(found.steps) + 1)
    setup = max(warm - step * (int(found.steps) + 1), 0.0)
    return found, _Clock(warm, setup, max(cold - warm, 0.0))


@partial(jax.jit, static_argnames="max_steps")
def _fit(solver: Any, model: Any, x: Any, given: Any, max_steps: int, tol: Any) -> Fit:
    """`fit`, compiled as a whole, because its checks take as long as hundreds of steps on a few rows."""
    return fit(model, x, solver, tol=tol, max_steps=max_steps, **given)


def _polished(model: Any, x: Any, **given: Any) -> tuple[float, float]:
    """Objective of a long run in float64, from a model close to the maximum; and EM's convergence rate there."""
    weight, prior, labels = (given[name] for name in ("weight", "prior", "labels"))
    with jax.enable_x64(True):
        model, x = jax.tree.map(_widened, (model, x))
        end = fit(model, x, SQUAREM(EM()), tol=1e-13, **given)
        if Status(int(end.status)).failed:
            return -np.inf, np.nan
        return float(end.objective), float(em_rate(end.model, x, weight=weight, prior=prior, labels=labels))


def _widened(leaf: Any) -> Any:
    return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def setting(solver: Any) -> str:
    """A solver in words with its numbers, those within an optax transformation included."""
    if hasattr(solver, "transformation"):
        numbers = _numbers(solver.transformation) | ({"batch_size": solver.batch_size} if solver.minibatch else {})
        parts = [f"{name}={value:g}" for name, value in numbers.items() if value]
    elif not dataclasses.is_dataclass(solver):
        return repr(solver)
    else:
        fields = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver) if field.repr}
        parts = [f"{name}={_in_words(value)}" for name, value in fields.items() if name != "key"]
    return f"{type(solver).__name__}({', '.join(parts)})"


def _in_words(value: Any) -> str:
    if isinstance(value, jax.Array):
        return f"{value:g}" if value.ndim == 0 else str(value.tolist())
    return setting(value) if isinstance(value, Solver) else repr(value)


def _numbers(node: Any) -> dict[str, float]:
    """Numbers of an optax transformation, read from the closures of its functions."""
    if isinstance(node, (tuple, list)):
        return {name: value for part in node for name, value in _numbers(part).items()}
    numbers: dict[str, float] = {}
    cells = zip(node.__code__.co_freevars, node.__closure__, strict=True) if getattr(node, "__closure__", None) else ()
    for name, cell in cells:
        value = cell.cell_contents
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # Optax minimises: its step sizes are negative.
            numbers["learning_rate" if name == "step_size" else name] = abs(value)
        else:
            numbers.update(_numbers(value))
    return numbers


def as_table(rows: list[dict[str, Any]]) -> Any:
    """A polars DataFrame if polars is installed, otherwise the list."""
    try:
        import polars as pl
    except ImportError:
        return rows
    return pl.DataFrame(rows, infer_schema_length=None)


def line(i: int) -> dict[str, Any]:
    """Line style of the i-th solver, unique in colour and dashes."""
    return {"color": PALETTE[i % len(PALETTE)], "ls": LINES[(i + i // len(PALETTE)) % len(LINES)], "lw": 1.8}


def plain(ax: Axes) -> None:
    """Style axes with a light grid and no frame; an empty logarithmic axis gets valid limits."""
    for axis, limit in ((ax.xaxis, ax.set_xlim), (ax.yaxis, ax.set_ylim)):
        if axis.get_scale() == "log" and not np.isfinite(axis.get_minpos()):
            limit(1, 10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, which="major", color="#e3e6eb", lw=0.8)
