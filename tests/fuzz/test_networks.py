"""Belief networks with zeros and tiny probabilities, any cell hidden: against the joint table, in long doubles."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from fuzz.budget import cases, generator

pytestmark = pytest.mark.slow

BATCH = 50
SIZES = (2, 3, 2, 2)
NAMES = "abcd"
GRAPHS = {
    "chain": {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]},
    "classes": {"a": [], "b": ["a"], "c": ["a"], "d": ["a"]},
    "collider": {"a": [], "b": [], "c": ["a", "b"], "d": ["b", "c"]},
    "apart": {"a": [], "b": ["a"], "c": [], "d": ["a", "b", "c"]},
}
ROWS = np.array(list(itertools.product(*([np.nan, *range(size)] for size in SIZES))))
Wide = np.longdouble


def tables(graph: dict[str, list[str]], rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
    found = {}
    tiny = 1e-30 if dtype == np.float32 else 1e-300
    for name, parents in graph.items():
        shape = (BATCH, *(SIZES[NAMES.index(parent)] for parent in parents), SIZES[NAMES.index(name)])
        table = rng.dirichlet(np.full(shape[-1], 10.0 ** rng.uniform(-2, 1)), shape[:-1])
        kind = rng.integers(3, size=(*shape[:-1], 1))
        rest = rng.random(shape) < 0.4
        rest[..., 0] = False
        table[..., 0] += 1e-3
        table = np.where(rest & (kind == 1), 0, np.where(rest & (kind == 2), tiny, table))
        table = (table / table.sum(-1, keepdims=True)).astype(dtype)
        found[name] = np.where(table < np.finfo(dtype).tiny, 0, table)  # XLA flushes what is subnormal
    return found


def joint(graph: dict[str, list[str]], given: dict[str, np.ndarray]) -> np.ndarray:
    """`[B, 2, 3, 2, 2]`, the product of the tables."""
    letters = {name: NAMES[i] for i, name in enumerate(NAMES)}
    whole = np.ones((BATCH, *SIZES), Wide)
    for name, parents in graph.items():
        table = given[name].astype(Wide)
        order = [letters[p] for p in parents] + [name]
        axes = "".join(order)
        sort = "".join(sorted(axes))
        moved = np.einsum(f"z{axes}->z{sort}", table)
        shape = [BATCH, *(SIZES[i] if letter in sort else 1 for i, letter in enumerate(NAMES))]
        whole = whole * moved.reshape(shape)
    return whole


@jax.jit
def answers(model: jem.BayesNet, x: Any) -> Any:
    return model.log_prob(x), model.posterior(x)


@pytest.mark.parametrize("name", GRAPHS)
def test_networks_are_their_joint_table(name: str, dtype: jnp.dtype) -> None:
    graph, rng = GRAPHS[name], generator(f"{name} {dtype.name}")
    eps = float(jnp.finfo(dtype).eps)
    for _ in range(-(-cases(50) // BATCH)):
        given = tables(graph, rng, np.dtype(dtype.name))
        model = jem.BayesNet(graph, given)
        whole = joint(graph, given)
        hidden = np.isnan(ROWS)
        log_prob, posterior = answers(model, model.observe(model.read(ROWS.astype(dtype.name))))
        log_prob = np.asarray(log_prob)
        assert log_prob.dtype == dtype
        for i, row in enumerate(ROWS):
            index = tuple(slice(None) if h else slice(int(v), int(v) + 1) for h, v in zip(hidden[i], row, strict=True))
            part = whole[(slice(None), *index)]
            mass = part.reshape(BATCH, -1).sum(1)
            with np.errstate(divide="ignore"):
                right = np.log(mass).astype(float)
            possible = np.isfinite(right)
            np.testing.assert_array_equal(log_prob[:, i] == -np.inf, ~possible, err_msg=str(row))
            known = 64 * eps * (1 + np.abs(right[possible]))
            assert (np.abs(log_prob[possible, i] - right[possible]) <= known).all(), row
            for v, variable in enumerate(NAMES):
                axes = tuple(a + 1 for a in range(len(SIZES)) if a != v)
                marginal = np.zeros((BATCH, SIZES[v]), Wide)
                at = slice(None) if hidden[i, v] else slice(int(row[v]), int(row[v]) + 1)
                marginal[:, at] = part.sum(axes)
                marginal = np.divide(marginal, mass[:, None], out=np.zeros_like(marginal), where=mass[:, None] > 0)
                found = np.asarray(posterior[variable])[:, i]
                wrong = np.abs(found - marginal.astype(float)).max(1)
                assert (wrong[possible] <= np.minimum(known, 1)).all(), (row, variable)
                assert np.isfinite(found).all()
