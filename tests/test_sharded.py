"""Rows, sequences and steps spread over devices: the same fit as on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from families import GROUPED, Example, e_step, m_step, mostly_slow
from jaxem.distributions.base import add, over_parts, scale


@pytest.mark.slow
def test_eight_devices_fit_what_one_does() -> None:
    program = Path(__file__).with_name("on_devices.py")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=280)
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(checks) > 10
    wrong = [f"{check['check']}: {check['wrong']}" for check in checks if check["wrong"]]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("example", mostly_slow(GROUPED, GROUPED[-1]), ids=lambda example: example.name)
def test_statistics_of_parts_meet(example: Example) -> None:
    """Each part has a centre of its own, and extremes."""
    model, x, weight = example.members(2), example.rows(64, 2), jnp.asarray(np.random.default_rng(0).uniform(1, 2, 64))
    halves = [(x[:32], weight[:32]), (x[32:], weight[32:])]
    nothing = scale(model.floor(x[:1], weight[:1]), 0)
    parts = [add(nothing, e_step(model, *half)[1]) for half in halves]

    def together(sums: list[jax.Array], extremes: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        return jax.lax.psum(sums, "parts"), jax.lax.pmax(extremes, "parts")

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    met = jax.vmap(lambda part: over_parts(together, part), axis_name="parts")(stacked)
    there = m_step(model, jax.tree.map(lambda leaf: leaf[0], met))
    here = m_step(model, e_step(model, x, weight)[1])
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
