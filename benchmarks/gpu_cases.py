"""The cases of `gpu.py`, one after the other on the device that is here; a line of JSON for each contender when done.

    python benchmarks/gpu_cases.py [--small] device|CASE...

Correctness first: log-likelihoods against NumPy in float64, and EM must not fall in 20 steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import CASES, Case

import jaxem as jem
from jaxem.solvers.em import em_step

Said = dict[str, Any]
FALL = 1e-6
"""Of a log-likelihood, which EM may seem to fall by in float32. TF32 loses a hundred times as much."""


def timed(run: Callable[[], Any], check: Callable[[Any], None], repeats: int = 5) -> tuple[Any, Said]:
    """The result of a run, once it was checked; the median time of more of them, and that of compilation."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begin)
        if len(seconds) == 1:
            check(result)
    median = float(np.median(seconds[1:]))
    return result, {"ms": 1e3 * median, "compile": max(seconds[0] - median, 0.0)}


def refuse_if_off(found: Any, exact: Any, within: float = 1e-5) -> None:
    """An error, before anything is timed, if numbers are not right to so many digits."""
    off = float(np.max(np.abs(np.asarray(found, float) / np.asarray(exact) - 1)))
    if not off <= within:
        raise ArithmeticError(f"log-likelihoods are off by {off:.0e} of their size; not timed")


def gaussian_log_prob(model: jem.Mixture, x: np.ndarray) -> np.ndarray:
    """The log-likelihood of each row, in float64, by LAPACK."""
    weights, mean = np.asarray(model.weights, float), np.asarray(model.components.mean, float)
    if isinstance(model.components, jem.Gaussian):
        covariance = np.asarray(model.components.covariance, float)
    else:
        covariance = np.asarray(model.components.variance, float)[:, None, None] * np.eye(x.shape[1])
    terms = np.empty((len(weights), len(x)))
    for k in range(len(weights)):
        root = np.linalg.cholesky(covariance[k])
        z = np.linalg.solve(root, (x - mean[k]).T)
        volume = 2 * np.log(np.diag(root)).sum() + x.shape[1] * np.log(2 * np.pi)
        terms[k] = np.log(weights[k]) - 0.5 * ((z * z).sum(0) + volume)
    top = terms.max(0)
    return top + np.log(np.exp(terms - top).sum(0))


def many(who: str, problems: int, rows: int, columns: int, components: int) -> Said:
    """Mixtures whose components overlap, from random rows to convergence."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(problems, components, columns)) * 1.5
    label = rng.integers(components, size=(problems, rows))
    noise = rng.normal(size=(problems, rows, columns))
    x = np.float32(centres[np.arange(problems)[:, None], label] + noise * rng.uniform(0.5, 1.5, (problems, 1, columns)))
    spread = np.stack([np.cov(part.T) for part in x])
    shape = (problems, components, columns, columns)
    weights = np.full((problems, components), 1 / components, np.float32)
    start = jem.Mixture(weights, jem.Gaussian(x[:, :components], np.float32(np.broadcast_to(spread[:, None], shape))))

    def check(fits: jem.Fit) -> None:
        for problem in range(0, problems, max(problems // 50, 1)):
            model = jax.tree.map(lambda leaf, problem=problem: leaf[problem], fits.model)
            refuse_if_off(fits.log_likelihood[problem], gaussian_log_prob(model, x[problem].astype(float)).sum())

    fits, taken = timed(lambda: jem.fit_many(start, x, tol=1e-6), check, 2)
    steps = np.asarray(fits.steps)
    pace = f"{1e3 * problems / taken['ms']:,.0f} fits a second"
    return {**taken, "note": f"{pace}; {steps.mean():.0f} steps on average, {steps.max():,} at most"}


@partial(jax.jit, static_argnums=(1, 2, 3))
def clouds(key: jax.Array, rows: int, columns: int, components: int) -> tuple[jax.Array, jax.Array]:
    """Rows about centres, made where they are needed, and the centres."""
    place, which, noise = jax.random.split(key, 3)
    centres = jax.random.normal(place, (components, columns), jnp.float32)
    label = jax.random.randint(which, (rows,), 0, components)
    return centres[label] + jax.random.normal(noise, (rows, columns), jnp.float32), centres


def large(who: str, rows: int, columns: int, components: int, spherical: bool) -> Said:
    """A step of one mixture; the log-likelihood of some rows, and 20 steps that must not fall."""
    x, centres = clouds(jax.random.key(0), rows, columns, components)
    shape = (components, columns, columns)
    eye = jnp.broadcast_to(jnp.eye(columns, dtype=jnp.float32), shape)
    near = centres + 0.3 * jax.random.normal(jax.random.key(1), centres.shape, jnp.float32)
    ones = jnp.ones(components, jnp.float32)
    family = jem.SphericalGaussian(near, ones) if spherical else jem.Gaussian(near, eye)
    model, weight = jem.Mixture(ones / components, family), jnp.ones(rows, jnp.float32)
    some = x[:500]
    trace = np.asarray(jem.fit(model, x, tol=0.0, max_steps=20).trace, float)
    trace = trace[np.isfinite(trace)]
    fall = float(np.max(-np.diff(trace) / np.abs(trace[:-1])))
    if not fall <= FALL:
        raise ArithmeticError(f"EM fell by {fall:.0e} of its log-likelihood in a step; not timed")
    floor = jax.jit(model.floor)(x, weight)
    step = jax.jit(em_step)
    exact = gaussian_log_prob(model, np.asarray(some, float))
    _, taken = timed(
        lambda: step(model, x, weight, floor),
        lambda _: refuse_if_off(step(model, some, weight[:500], floor)[1], exact.sum()),
    )
    return {**taken, "note": f"{len(trace)} log-likelihoods of EM, no fall above {max(fall, 0):.0e} of their size"}


def chain_log_prob(initial: np.ndarray, transition: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The log-normaliser of each sequence of `[S, T, K]`, in float64 and log space."""
    states = initial + seen[:, 0]
    for t in range(1, seen.shape[1]):
        top = states.max(1, keepdims=True)
        states = np.log(np.exp(states - top) @ np.exp(transition)) + top + seen[:, t]
    top = states.max(1)
    return top + np.log(np.exp(states - top[:, None]).sum(1))


def chains(who: str, sequences: int, steps: int, states: int) -> Said:
    """Forward-backward on evidence of ordinary size: log-normaliser, marginals and expected transitions."""
    rng = np.random.default_rng(0)
    initial, transition = np.full(states, 1 / states), rng.dirichlet(np.full(states, 2.0), states)
    seen = jax.random.normal(jax.random.key(0), (sequences, steps, states), jnp.float32)
    library, way = who.split(", ")
    if library == "dynamax":
        from dynamax.hidden_markov_model import hmm_smoother, parallel_hmm_smoother

        smoother = hmm_smoother if way == "sequential" else parallel_hmm_smoother
        given = [jnp.asarray(p, "float32") for p in (initial, transition)]
        run = jax.jit(jax.vmap(lambda seen: smoother(*given, seen)))
        value = "marginal_loglik"
    else:
        given = [jnp.asarray(np.log(p), "float32") for p in (initial, transition)]
        run = jax.jit(jax.vmap(lambda seen: jem.chains.forward_backward(*given, seen, method=way)))
        value = "log_normalizer"
    exact = chain_log_prob(np.log(initial), np.log(transition), np.asarray(seen[:4], float))
    return timed(lambda: run(seen), lambda found: refuse_if_off(getattr(found, value)[:4], exact, 1e-4), 3)[1]


KINDS: dict[str, Callable[..., Said]] = {"many": many, "large": large, "chains": chains}


def run(name: str, case: Case, small: bool) -> None:
    """A line for each contender; one that fails says why, and the next has its turn."""
    more = {"spherical": name == "spherical"} if case.kind == "large" else {}
    for who in case.who:
        try:
            found = KINDS[case.kind](who, **case.sized(small), **more)
        except Exception as error:  # whatever a compiler, a device or a peer may raise: the table says it
            found = {"note": f"{type(error).__name__}: {error}".splitlines()[0][:200].replace("|", "/")}
        print(json.dumps({"case": name, "who": who, **found}), flush=True)


def main(arguments: list[str]) -> None:
    """The cases named."""
    for name in arguments:
        if name == "device":
            device = jax.devices()[0]
            print(json.dumps({"kind": device.device_kind, "platform": device.platform, "jax": jax.__version__}))
        elif name in CASES:
            run(name, CASES[name], "--small" in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
