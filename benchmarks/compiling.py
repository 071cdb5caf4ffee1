"""What the first call costs: seconds of compilation and peak memory of each kind of fit in the README.

    python benchmarks/compiling.py [CASE]

Each case runs in a process of its own, without a cache of compilations: then the first call, less the second, is what
compiling took. Seconds of the processors are told beside those of the clock, because compiling uses several cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from large import peak

import jaxem as jem

Call = Callable[[], jem.Fit]
XLA = "/jax/core/compile/backend_compile_duration"
KEY = jax.random.key
SPAWNED = "--spawned"
TRUTH = [[-3.0, 0.0], [3.0, 1.0]]


def plane(rows: int = 400, seed: int = 0) -> np.ndarray:
    """Two clusters."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 2)) + np.array(TRUTH)[(rng.random(rows) < 0.75).astype(int)]


def curve() -> tuple[np.ndarray, np.ndarray]:
    """An input, and a response about a sine."""
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 10, 300)
    return z, 3 * np.sin(z) + rng.normal(size=300)


def walk(steps: int = 200, seed: int = 0) -> np.ndarray:
    """Levels of 0 and 4, which last."""
    rng = np.random.default_rng(seed)
    level = np.cumsum(rng.random(steps) < 0.07) % 2
    return 4.0 * level[:, None] + rng.normal(size=(steps, 1))


def mixture() -> Call:
    x = plane()
    start = jem.Mixture.start(KEY(1), jem.Gaussian, x, 2, restarts=4)
    return lambda: jem.fit(start, x)


def mixture_with_a_prior() -> Call:
    x = plane()
    start = jem.Mixture.start(KEY(1), jem.Gaussian, x, 4, restarts=4)
    return lambda: jem.fit(start, x, prior=jem.priors.Weak())


def mixed_columns() -> Call:
    rng = np.random.default_rng(0)
    second = rng.random(300) < 0.5
    x = np.column_stack([rng.normal(size=300) + 4 * second, rng.poisson(np.where(second, 9, 2))])
    labels, weight = np.where(np.arange(300) < 20, second, -1), (np.arange(300) < 299).astype(float)
    family = jem.Product.of(jem.Gaussian, jem.Poisson)
    start = jem.Mixture.start(KEY(4), family, x, 2, weight=weight, labels=labels, restarts=8)
    prior = jem.priors.Structured({"weights": jem.priors.Dirichlet(2.0)})
    return lambda: jem.fit(start, x, weight=weight, labels=labels, prior=prior)


def missing_cells() -> Call:
    x = plane()
    x[:150, 1] = x[200:250, 0] = np.nan
    start = jem.Mixture.start(KEY(1), jem.Gaussian, x, 2, restarts=4)
    return lambda: jem.fit(start, x)


def zero_inflated() -> Call:
    x = np.array([0.0] * 60 + [2.0, 3.0, 4.0, 3.0] * 10)
    start = jem.Mixture([0.5, 0.5], jem.Either((jem.PointMass([0.0]), jem.Poisson([1.0]))))
    return lambda: jem.fit(start, x)


def poisson() -> Call:
    x = np.random.default_rng(0).poisson(np.repeat([2, 12], 50)).astype(float)
    start = jem.Mixture([0.5, 0.5], jem.Poisson([2.0, 12.0]))
    return lambda: jem.fit(start, x)


def network() -> Call:
    graph = {"rain": [], "sprinkler": ["rain"], "wet": ["rain", "sprinkler"]}
    rng = np.random.default_rng(0)
    rain = rng.random(200) < 0.2
    sprinkler = rng.random(200) < np.where(rain, 0.01, 0.4)
    wet = rng.random(200) < np.where(rain | sprinkler, 0.9, 0.01)
    x = np.column_stack([rain, sprinkler, wet]).astype(float)
    x[rng.random(x.shape) < 0.2] = np.nan
    start = jem.BayesNet.start(KEY(0), graph, x, dict.fromkeys(graph, 2))
    return lambda: jem.fit(start, x)


def state_space() -> Call:
    x = jem.Sequences.from_list([np.cumsum(walk(seed=seed), axis=0) for seed in range(3)])
    start = jem.LinearGaussianSSM.start(KEY(0), x, 2)
    return lambda: jem.fit(start, x)


def experts() -> Call:
    x = np.column_stack(curve())
    start = jem.MixtureOfExperts.start(KEY(0), jem.LinearRegression, x, 3, restarts=3)
    return lambda: jem.fit(start, x, max_steps=100)


def units() -> Call:
    z, y = curve()
    start = jem.RBFNetwork.start(KEY(0), z, y, 8)
    rows = start.rows(z, y)
    return lambda: jem.fit(start, rows, max_steps=100)


def chain() -> Call:
    series = [walk(seed=seed) for seed in range(5)]
    series[0], series[1][17] = series[0][:50], np.nan
    x = jem.Sequences.from_list(series)
    start = jem.HMM.start(KEY(7), jem.Gaussian, x, 2, restarts=4)
    return lambda: jem.fit(start, x)


def many_mixtures() -> Call:
    groups = [plane(40 + 5 * i, seed=i) for i in range(12)]
    starts = jem.start_many(KEY(2), jem.Gaussian, groups, 2, restarts=4)
    return lambda: jem.fit_many(starts, groups, prior=jem.priors.Weak())


def many_chains() -> Call:
    sets = [jem.Sequences.from_list([walk(60 + 10 * i, seed=i), walk(seed=100 + i)]) for i in range(6)]
    starts = jem.start_many(KEY(2), jem.Gaussian, sets, 2, restarts=2)
    return lambda: jem.fit_many(starts, sets)


CASES: dict[str, Callable[[], Call]] = {
    "fit: mixture of Gaussians, four starts": mixture,
    "fit: the same, K = 4, with a weak prior": mixture_with_a_prior,
    "fit: Gaussian and Poisson columns, labels, a prior": mixed_columns,
    "fit: Gaussians with missing cells": missing_cells,
    "fit: zero-inflated counts": zero_inflated,
    "fit: mixture of Poissons": poisson,
    "fit: HMM, ragged, with a gap, four starts": chain,
    "fit: BayesNet": network,
    "fit: LinearGaussianSSM": state_space,
    "fit: MixtureOfExperts, three starts": experts,
    "fit: RBFNetwork": units,
    "fit_many: mixtures of Gaussians": many_mixtures,
    "fit_many: HMMs": many_chains,
}


class Programs:
    """What XLA compiled, or fetched from a cache, since this was made: seconds, and when the first was there."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first: tuple[float, float] | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event == XLA:
            self.first = self.first or (time.time(), time.process_time())
            self.seconds.append(duration)


def measured(case: str) -> dict[str, Any]:
    """The first call less the second, in this process."""
    call, took, programs = CASES[case](), [], Programs()
    for _ in range(2):
        began = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    wall, processors = (first - second for first, second in zip(*took, strict=True))
    found = {"wall": wall, "processors": processors, "xla": sum(programs.seconds), "programs": len(programs.seconds)}
    return {"case": case, **found, "peak": peak()}


def command_line(spawned: float, *arguments: str) -> dict[str, Any]:
    """`jaxem` with these arguments, in this process: when its first program was there, and what all of it took."""
    from jaxem.cli import app

    programs, sys.argv = Programs(), ["jaxem", *arguments]
    with contextlib.suppress(SystemExit):
        app.main()
    if programs.first is None:
        raise SystemExit("jaxem compiled nothing")
    starts = {"wall": programs.first[0] - spawned, "processors": programs.first[1]}
    return {**starts, "all": time.time() - spawned, "programs": len(programs.seconds), "peak": peak()}


def alone(*arguments: str, **environment: str) -> dict[str, Any]:
    """What `main` prints, in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


def everything() -> list[dict[str, Any]]:
    """All cases."""
    return [alone(case) for case in CASES]


def runs() -> list[dict[str, Any]]:
    """The command line on six small groups: without programs of an earlier run, and with them."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        rows = [f"{g},{a},{b}\n" for g in range(6) for a, b in plane(40, seed=g)]
        table.write_text("g,a,b\n" + "".join(rows))
        out = ["--by", "g", "--columns", "a,b", "--out", f"{folder}/out"]
        return [
            alone(SPAWNED, str(time.time()), "fit", str(table), *out, XDG_CACHE_HOME=f"{folder}/cache") | {"case": case}
            for case in ("jaxem fit: first run", "jaxem fit: second run")
        ]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if sys.argv[1:2] == [SPAWNED]:
        print(json.dumps(command_line(float(sys.argv[2]), *sys.argv[3:])))
    elif sys.argv[1:]:
        print(json.dumps(measured(sys.argv[1])))
    else:
        for found in (*everything(), *runs()):
            print(found)
