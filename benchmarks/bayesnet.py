"""EM for Bayesian networks: naive Bayes with a hidden class, against pgmpy; and the ALARM network by itself.

    python benchmarks/bayesnet.py

pgmpy (`pip install pgmpy`) drops every row of which a cell is missing, so it can only be compared where a whole
variable is hidden.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from many import stopwatch

import jaxem as jem

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from alarm import ALARM, alarm

ROWS, CHILDREN, STEPS = 1_000, 8, 5
Row = dict[str, Any]


@partial(jax.jit, static_argnames="steps")
def em(model: jem.BayesNet, data: Any, *, steps: int) -> tuple[jem.BayesNet, jax.Array]:
    """So many steps, and the log-likelihood before each."""
    weight = jnp.ones(data.codes.shape[1])

    def step(model: jem.BayesNet, _: None) -> Any:
        log_prob, pullback = model.e_step(data)
        return model.m_step(pullback(weight.astype(log_prob.dtype))), log_prob.sum()

    return jax.lax.scan(step, model, None, length=steps)


def naive_bayes(rows: int = ROWS, children: int = CHILDREN) -> tuple[jem.BayesNet, np.ndarray]:
    """A start, and rows whose class is hidden."""
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(children)]
    hidden = rng.random(rows) < 0.4
    shown = rng.random((rows, children)) < np.where(hidden[:, None], 0.75, 0.3)
    chance = rng.uniform(0.3, 0.7, (children, 2))
    tables = {"class": [0.5, 0.5]} | {name: np.stack([1 - p, p], -1) for name, p in zip(names, chance, strict=True)}
    model = jem.BayesNet({"class": []} | {name: ["class"] for name in names}, tables)
    return model, np.column_stack([np.full(rows, np.nan), shown])


def pgmpy_steps(model: jem.BayesNet, x: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """The tables after so many steps of pgmpy's, in our order of axes."""
    import logging

    import pandas as pd
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.models import DiscreteBayesianNetwork
    from pgmpy.parameter_estimator import DiscreteEM

    logging.getLogger("pgmpy").setLevel(logging.ERROR)
    network = DiscreteBayesianNetwork([(p, name) for name, parents in model.graph for p in parents], latents={"class"})
    states = {name: list(range(size)) for name, size in zip(model.names, model.categories, strict=True)}
    start = {}
    for name, parents in model.graph:
        table = np.moveaxis(np.asarray(model.table(name)), -1, 0).reshape(len(states[name]), -1)
        sizes = [len(states[parent]) for parent in parents]
        mine = {n: states[n] for n in (name, *parents)}
        start[name] = TabularCPD(name, len(table), table, list(parents), sizes, state_names=mine)
    data = pd.DataFrame(x[:, 1:].astype(int), columns=model.names[1:])
    estimator = DiscreteEM(
        state_names=states, latent_card={"class": 2}, max_iter=steps, init_cpds=start, show_progress=False
    )
    found = {cpd.variable: cpd for cpd in estimator.fit(network, data).parameters_}
    axes = {name: [found[name].variables.index(axis) for axis in (*parents, name)] for name, parents in model.graph}
    return {name: np.transpose(found[name].values, axes[name]) for name in model.names}


def against_pgmpy() -> list[Row]:
    """Milliseconds of an EM step of naive Bayes; the tables must be the same."""
    case = f"naive Bayes, hidden class, {CHILDREN} binary children, {ROWS:,} rows, one EM step, float64"
    model, x = naive_bayes()
    data = jax.jit(model.observe)(model.read(x))
    _, (cold,) = stopwatch(lambda: em(model, data, steps=STEPS), 1)
    (fitted, _), warm = stopwatch(lambda: em(model, data, steps=STEPS), 5)
    _, warm = stopwatch(lambda: em(model, data, steps=200), 2)
    seconds = min(warm) / 200
    rows = [{"case": case, "who": "jaxem", "ms": 1e3 * seconds, "compile": cold}]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, (taken,) = stopwatch(lambda: pgmpy_steps(model, x, STEPS), 1)
    except ImportError:
        return rows
    off = max(float(np.abs(found[name] - fitted.table(name)).max()) for name in model.names)
    if off > 1e-9:
        raise SystemExit(f"{case}: pgmpy's tables differ by {off:.1e}; these must not be compared")
    return [*rows, {"case": case, "who": "pgmpy", "ms": 1e3 * taken / STEPS, "compile": None}]


def on_alarm(dtype: str, steps: int = 20) -> list[Row]:
    """Milliseconds of an EM step on 1,000 rows of ALARM, a tenth of the cells hidden."""
    case = f"ALARM, 37 variables, {ROWS:,} rows, a tenth of the cells hidden, one EM step"
    truth = alarm(dtype)
    x = np.array(truth.sample(jax.random.key(0), ROWS))
    x[np.random.default_rng(1).random(x.shape) < 0.1] = np.nan
    sizes = {name: size for name, (size, _) in ALARM.items()}
    model = jem.BayesNet.start(jax.random.key(1), truth.graph, x, sizes)
    data = jax.jit(model.observe)(model.read(x))
    _, (cold,) = stopwatch(lambda: em(model, data, steps=steps), 1)
    (_, trace), warm = stopwatch(lambda: em(model, data, steps=steps), 3)
    if np.diff(trace).min() < -1e-9 * abs(float(trace[0])) and dtype == "float64":
        raise SystemExit(f"{case}: a step fell by {np.diff(trace).min()}")
    seconds = float(np.median(warm))
    return [{"case": case, "who": f"jaxem, {dtype}", "ms": 1e3 * seconds / steps, "compile": cold - seconds}]


def everything() -> list[list[Row]]:
    """All cases."""
    return [against_pgmpy(), on_alarm("float64") + on_alarm("float32")]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for rows in everything():
        print(rows[0]["case"])
        for row in rows:
            told = "" if row["compile"] is None else f"compile {row['compile']:.1f} s"
            print(f"  {row['who']:20s} {row['ms']:10.3f} ms  {row['ms'] / rows[0]['ms']:8.1f} x  {told}")
