"""Baum-Welch steps on many sequences, on one long one, and thousands of small models: against hmmlearn."""

from __future__ import annotations

import os
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import joblib
import numpy as np
from hmmlearn.hmm import GaussianHMM
from many import stopwatch
from threadpoolctl import threadpool_limits

import jaxem as jem

STEPS, COLUMNS = 5, 3
CORES = os.cpu_count() or 1
Row = dict[str, Any]


def problem(sequences: int, steps: int, states: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sequences `[S, T, D]` drawn from a model with overlapping states, and a start not far from it."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(states, 2.0), states) + 2 * np.eye(states)
    transition /= transition.sum(1, keepdims=True)
    mean = rng.normal(size=(states, COLUMNS)) * 2
    path = np.zeros((sequences, steps), int)
    reach = transition.cumsum(1)
    for t in range(1, steps):
        path[:, t] = (rng.random((sequences, 1)) > reach[path[:, t - 1], :-1]).sum(1)
    x = mean[path] + rng.normal(size=(sequences, steps, COLUMNS))
    start = {
        "initial": np.full(states, 1 / states),
        "transition": np.full((states, states), 1 / states),
        "mean": mean + 0.3 * rng.normal(size=mean.shape),
        "covariance": np.broadcast_to(np.eye(COLUMNS), (states, COLUMNS, COLUMNS)),
    }
    return x, start


def model(start: dict[str, np.ndarray], dtype: Any) -> jem.HMM:
    """The start, as jaxem has it."""
    parts = {name: jnp.asarray(value, dtype) for name, value in start.items()}
    return jem.HMM(parts["initial"], parts["transition"], jem.Gaussian(parts["mean"], parts["covariance"]))


def peer(start: dict[str, np.ndarray], implementation: str, steps: int, tol: float) -> GaussianHMM:
    """The start, as hmmlearn has it, with its priors switched off."""
    hmm = GaussianHMM(
        len(start["initial"]),
        "full",
        min_covar=0,
        covars_prior=0,
        covars_weight=0,
        init_params="",
        n_iter=steps,
        tol=tol,
        implementation=implementation,
    )
    hmm.startprob_, hmm.transmat_ = start["initial"], start["transition"]
    hmm.means_, hmm.covars_ = start["mean"], start["covariance"]
    return hmm


@partial(jax.jit, static_argnames="steps")
def baum_welch(model: jem.HMM, data: Any, *, steps: int) -> tuple[jem.HMM, jax.Array]:
    """So many steps, and the log-likelihood before the last."""
    weight = jnp.ones(len(data.length), model.initial.dtype)

    def step(_: Any, carry: Any) -> Any:
        log_prob, pullback = carry[0].e_step(data)
        return carry[0].m_step(pullback(weight)), log_prob.sum()

    return jax.lax.fori_loop(0, steps, step, (model, jnp.zeros((), model.initial.dtype)))


def steps_of(sequences: int, steps: int, states: int, dtype: str, dynamax: bool = True) -> list[Row]:
    """Milliseconds of one whole Baum-Welch step; correctness first. dynamax keeps its priors: only time is compared."""
    case = f"{sequences:,} x {steps:,}, K = {states}, D = {COLUMNS}, one Baum-Welch step"
    x, start = problem(sequences, steps, states)
    ours = model(start, dtype)
    data = jax.jit(ours.observe)(jem.Sequences(jnp.asarray(x, dtype), np.full(sequences, steps)))

    def run() -> Any:
        return baum_welch(ours, data, steps=STEPS)

    (_, log_likelihood), (cold,) = stopwatch(run, 1)
    _, warm = stopwatch(run, 5)
    seconds = float(np.median(warm))
    rows = [{"case": case, "who": f"jaxem, {dtype}", "ms": 1e3 * seconds / STEPS, "compile": cold - seconds}]
    flat, lengths = x.reshape(-1, COLUMNS), [steps] * sequences
    for implementation in ("scaling", "log"):
        hmm = peer(start, implementation, STEPS, -np.inf)
        _, (taken,) = stopwatch(lambda hmm=hmm: hmm.fit(flat, lengths), 1)
        off = abs(float(log_likelihood) / hmm.monitor_.history[-1] - 1)
        if off > (1e-9 if dtype == "float64" else 1e-4):
            raise SystemExit(f"{case}: hmmlearn's log-likelihood differs by {off:.1e}; these must not be compared")
        name = f"hmmlearn, {implementation}, float64"
        rows.append({"case": case, "who": name, "ms": 1e3 * taken / STEPS, "compile": None})
    if dynamax:
        # With 64 bits switched on its M-step makes float64 of float32.
        with jax.enable_x64(dtype == "float64"):
            seconds, compiling, at_start = _dynamax(x, start, dtype)
        mine = float(ours.log_prob(jem.Sequences(jnp.asarray(x, dtype), np.full(sequences, steps))).sum())
        if abs(mine / at_start - 1) > 1e-4:
            raise SystemExit(f"{case}: dynamax's log-likelihood of the start is {at_start}, ours {mine}")
        rows.append({"case": case, "who": f"dynamax, {dtype}", "ms": 1e3 * seconds, "compile": compiling})
    return rows


def _dynamax(x: np.ndarray, start: dict[str, np.ndarray], dtype: str) -> tuple[float, float, float]:
    """Seconds of a step of dynamax, those of its compilation, and its log-likelihood of the start."""
    from dynamax.hidden_markov_model import GaussianHMM as Peer

    hmm = Peer(len(start["initial"]), COLUMNS)
    given = {
        "initial_probs": start["initial"],
        "transition_matrix": start["transition"],
        "emission_means": start["mean"],
        "emission_covariances": start["covariance"],
    }
    params, props = hmm.initialize(
        jax.random.key(0), **{name: jnp.asarray(value, dtype) for name, value in given.items()}
    )
    state = hmm.initialize_m_step_state(params, props)

    @jax.jit
    def run(params: Any, state: Any, x: jax.Array) -> Any:
        def step(carry: Any, _: None) -> Any:
            statistics, log_likelihood = jax.vmap(partial(hmm.e_step, carry[0]))(x)
            return hmm.m_step(carry[0], props, statistics, carry[1]), log_likelihood.sum()

        return jax.lax.scan(step, (params, state), None, length=STEPS)

    data = jnp.asarray(x, dtype)
    (_, trace), (cold,) = stopwatch(lambda: run(params, state, data), 1)
    _, warm = stopwatch(lambda: run(params, state, data), 3)
    seconds = float(np.median(warm))
    return seconds / STEPS, cold - seconds, float(trace[0])


def _peer_some(problems: list[tuple[list[np.ndarray], dict[str, np.ndarray]]], tol: float) -> list[float]:
    found = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parts, start in problems:
            lengths = [len(part) for part in parts]
            hmm = peer(start, "scaling", 500, tol * sum(lengths)).fit(np.concatenate(parts), lengths)
            found.append(hmm.score(np.concatenate(parts), lengths))
    return found


def thousands(count: int = 2_000, states: int = 3, tol: float = 1e-6) -> list[Row]:
    """Separate models of three ragged sequences each, to convergence."""
    case = f"{count:,} models of three sequences of 50 to 300 steps, K = {states}, to convergence"
    rng = np.random.default_rng(1)
    problems = []
    for seed in range(count):
        x, start = problem(3, 300, states, seed)
        problems.append(([part[:n] for part, n in zip(x, rng.integers(50, 301, 3), strict=True)], start))
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(model(start, "float64") for _, start in problems))
    sequences = [jem.Sequences.from_list(parts) for parts, _ in problems]

    def run() -> jem.Fit:
        return jem.fit_many(starts, sequences, tol=tol, max_steps=500)

    fits, (cold,) = stopwatch(run, 1)
    _, warm = stopwatch(run, 3)
    seconds = float(np.median(warm))
    parts = [problems[i :: CORES * 8] for i in range(CORES * 8)]
    jobs = (joblib.delayed(_peer_some)(part, tol) for part in parts)
    found, (taken,) = stopwatch(lambda: joblib.Parallel(n_jobs=CORES)(jobs), 1)
    theirs = np.empty(count)
    for i, part in enumerate(found):
        theirs[i :: CORES * 8] = part
    observed = np.array([sum(map(len, parts)) for parts, _ in problems])
    agree = np.mean(np.abs(np.asarray(fits.log_likelihood) - theirs) <= 1e-3 * observed)
    if agree < 0.95:
        raise SystemExit(f"{case}: only {agree:.1%} of the log-likelihoods agree; these must not be compared")
    return [
        {"case": case, "who": "jaxem fit_many, float64", "ms": 1e3 * seconds, "compile": cold - seconds},
        {"case": case, "who": "hmmlearn, scaling, joblib", "ms": 1e3 * taken, "compile": None},
    ]


def methods(steps: int, states: int) -> list[Row]:
    """Milliseconds of forward-backward on one sequence, in float32, by each way through the steps."""
    case = f"1 x {steps:,}, K = {states}, forward-backward alone, float32"
    rng = np.random.default_rng(0)
    given = np.full(states, -np.log(states)), np.log(rng.dirichlet(np.full(states, 2.0), states))
    potentials = [jnp.asarray(p, "float32") for p in (*given, rng.normal(size=(steps, states)))]
    rows, values = [], []
    for method in ("scan", "blocked", "associative"):
        run = jax.jit(partial(jem.chains.forward_backward, method=method))
        found, (cold,) = stopwatch(lambda run=run: run(*potentials), 1)
        _, warm = stopwatch(lambda run=run: run(*potentials), 5)
        seconds = float(np.median(warm))
        values.append(float(found.log_normalizer))
        rows.append({"case": case, "who": method, "ms": 1e3 * seconds, "compile": cold - seconds})
    if np.ptp(values) > 1e-5 * abs(values[0]):
        raise SystemExit(f"{case}: the methods disagree: {values}")
    return rows


def everything() -> list[list[Row]]:
    """All cases."""
    return [
        steps_of(200, 500, 4, "float32"),
        steps_of(1_000, 1_000, 4, "float32"),
        steps_of(1_000, 1_000, 16, "float32"),
        steps_of(1, 1_000_000, 4, "float32"),
        steps_of(1, 1_000_000, 16, "float32"),
        thousands(),
        methods(100_000, 2),
        methods(100_000, 4),
        methods(20_000, 16),
    ]
