"""Chains of hostile log-potentials against the sum over all paths, in long doubles."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fuzz.budget import cases, generator
from jaxem import chains

pytestmark = pytest.mark.slow

BATCH, STEPS, STATES = 100, 5, 3
PATHS = np.array(list(itertools.product(range(STATES), repeat=STEPS)))
Wide = np.longdouble


def probabilities(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Logs of distributions: even, uneven to 1e-300 and below, or with zeros; a few rows of them impossible."""
    kind = rng.integers(4, size=(shape[0], *(1 for _ in shape[1:])))
    flat = rng.dirichlet(np.ones(STATES), shape[:-1])
    peaked = rng.dirichlet(np.full(STATES, 0.003), shape[:-1])
    with np.errstate(divide="ignore"):
        log = np.log(np.where(kind < 1, flat, peaked))
        zeros = np.where(rng.random(shape) < 0.4, -np.inf, np.log(flat))
    tiny = np.where(rng.random(shape) < 0.4, np.log(1e-300), np.log(flat))
    return np.where(kind < 2, log, np.where(kind < 3, zeros, tiny))


def draw(rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
    scale = 10.0 ** rng.uniform(-12, 4, (BATCH, 1, 1))
    seen = scale * rng.normal(size=(BATCH, STEPS, STATES)) + rng.choice([0, 0, -1e4, 1e4], (BATCH, 1, 1))
    seen = np.where(rng.random(seen.shape) < rng.choice([0, 0.2], (BATCH, 1, 1)), -np.inf, seen)
    return {
        "log_initial": probabilities(rng, BATCH, STATES).astype(dtype),
        "log_transition": probabilities(rng, BATCH, STATES, STATES).astype(dtype),
        "log_likelihood": seen.astype(dtype),
        "length": rng.choice([1, 2, STEPS, STEPS, STEPS], BATCH).astype(np.int32),
        "mask": rng.random((BATCH, STEPS)) < rng.choice([0.5, 1.0], (BATCH, 1)),
        "reset": rng.random((BATCH, STEPS)) < rng.choice([0.0, 0.3], (BATCH, 1)),
    }


def enumerated(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that is asked, of all paths; and how large the potentials of any path are at most."""
    initial, transition, seen = (
        case[name].astype(Wide) for name in ("log_initial", "log_transition", "log_likelihood")
    )
    there = np.arange(STEPS) < case["length"][:, None]
    score = np.zeros((BATCH, len(PATHS)), Wide)
    size = np.zeros((BATCH, len(PATHS)), Wide)
    starts = np.zeros((BATCH, STEPS), bool)
    for t in range(STEPS):
        here, now = PATHS[:, t], there[:, t, None]
        starts[:, t] = there[:, t] & (case["reset"][:, t] | (t == 0))
        begins = initial[:, here]
        moves = transition[:, PATHS[:, t - 1], here] if t else begins
        step = np.where(starts[:, t, None], begins, moves)
        says = np.where(case["mask"][:, t, None], seen[:, t, here], 0)
        for part in (step, says):
            part = np.where(now, part, 0)
            score, size = score + part, size + np.where(np.isfinite(part), np.abs(part), 0)
        # Beyond the end there is one way to go.
        score = np.where(now | (here == 0)[None], score, -np.inf)
    top = score.max(1, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0)
    weight = np.exp(score - shift)
    mass = weight.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        value = np.where(np.isfinite(top), shift + np.log(np.where(mass > 0, mass, 1)), -np.inf)[:, 0]
    weight = np.divide(weight, mass, out=np.zeros_like(weight), where=mass > 0)
    at = PATHS[None, :, :] == np.arange(STATES)[:, None, None]  # [K, paths, T]
    marginals = np.einsum("bp,kpt->btk", weight, at.astype(Wide)) * there[..., None]
    transitions = np.zeros((BATCH, STATES, STATES), Wide)
    for t in range(1, STEPS):
        moved = np.einsum("bp,ip,jp->bij", weight, at[..., t - 1].astype(Wide), at[..., t].astype(Wide))
        transitions += moved * (there[:, t] & ~starts[:, t])[:, None, None]
    return {
        "value": value,
        "marginals": marginals,
        "transitions": transitions,
        "initial": np.einsum("btk,bt->bk", marginals, starts.astype(Wide)),
        "best": top[:, 0],
        "score": score,
        "size": size.max(1),
    }


@partial(jax.jit, static_argnames="method")
def answers(method: str, case: dict[str, jax.Array]) -> dict[str, Any]:
    def one(case: dict[str, jax.Array]) -> dict[str, Any]:
        potentials = [case[name] for name in ("log_initial", "log_transition", "log_likelihood")]
        rest = {name: case[name] for name in ("length", "mask", "reset")}
        value, slopes = jax.value_and_grad(
            lambda *potentials: chains.log_normalizer(*potentials, method=method, **rest), (0, 1, 2)
        )(*potentials)
        found = {"value": value, "slopes": slopes}
        if method == "scan":
            found["path"], found["best"] = chains.viterbi(*potentials, **rest)
            found["filtered"] = chains.filter(*potentials, **rest)[0]
        return found

    return jax.vmap(one)(case)


@pytest.mark.parametrize("method", ["scan", "blocked", "associative"])
def test_chains_are_the_sum_over_all_paths(method: str, dtype: jnp.dtype) -> None:
    rng = generator(f"chains {method} {dtype.name}")
    eps = float(jnp.finfo(dtype).eps)
    for _ in range(-(-cases(100) // BATCH)):
        case = draw(rng, dtype)
        right, found = enumerated(case), jax.tree.map(np.asarray, answers(method, case))
        # Log-potentials of this size are known to so much, and so are what comes out, and the logs of ratios.
        known = (16 * eps * (1 + right["size"])).astype(float)
        possible = np.isfinite(right["value"])
        np.testing.assert_array_equal(found["value"] == -np.inf, ~possible)
        assert found["value"].dtype == dtype
        lost = np.abs(found["value"][possible] - right["value"][possible].astype(float))
        assert (lost <= known[possible]).all(), _worst(lost, known[possible], case, possible)
        initial, transition, seen = found["slopes"]
        marginals = right["marginals"] * case["mask"][..., None]
        for name, slope, expected in (
            ("initial", initial, right["initial"]),
            ("transition", transition, right["transitions"]),
            ("seen", seen, marginals),
        ):
            wrong = np.abs(slope - expected.astype(float)).reshape(BATCH, -1).max(1)
            assert (wrong <= np.minimum(known, 2.0)).all(), (
                f"{name}: {_worst(wrong, known, case, np.ones(BATCH, bool))}"
            )
        if "path" in found:
            best = np.abs(found["best"][possible] - right["best"][possible].astype(float))
            assert (best <= known[possible]).all()
            beyond = found["path"] < 0
            lies = (np.where(beyond, 0, found["path"]) * STATES ** np.arange(STEPS)[::-1]).sum(1)
            there = right["score"][np.arange(BATCH), lies].astype(float)
            assert (there[possible] >= (right["best"].astype(float) - known)[possible]).all()
            np.testing.assert_allclose(found["filtered"], found["value"], rtol=1e-6 if eps > 1e-9 else 1e-13)


def _worst(wrong: np.ndarray, known: np.ndarray, case: dict[str, np.ndarray], which: np.ndarray) -> str:
    at = int(np.argmax(wrong - known))
    number = int(np.flatnonzero(which)[at])
    shown = {name: value[number].tolist() for name, value in case.items()}
    return f"off by {wrong[at]:.3g}, of {known[at]:.3g} allowed: {shown}"
