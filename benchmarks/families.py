"""What it costs to write a family for one member and one row: the time of its EM steps over those of the batched form.

    python benchmarks/families.py

Both forms of one family (tests/extension/half_normal*.py) take the same steps alternately, in one process; the ratio is
of the shortest times of each. A ratio of at most 1.1 is what the documentation promises.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxem as jem

sys.path.append(str(Path(__file__).parents[1] / "tests" / "extension"))
from half_normal import HalfNormal
from half_normal_by_row import HalfNormalByRow

SIZES = [(3, 1_000, 1000), (8, 100_000, 2)]
"""Members, rows, steps in one call."""
TURNS = 25


@partial(jax.jit, static_argnums=2)
def steps(model: Any, x: Any, count: int) -> Any:
    """So many steps of EM."""

    def step(_: Any, model: Any) -> Any:
        log_prob, pullback = model.e_step(x)
        return model.m_step(pullback(jax.numpy.ones_like(log_prob)))

    return jax.lax.fori_loop(0, count, step, model)


def seconds(model: Any, x: Any, count: int) -> float:
    """Of one call."""
    began = time.perf_counter()
    jax.block_until_ready(steps(model, x, count))
    return time.perf_counter() - began


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    for members, rows, count in SIZES:
        x = np.abs(rng.normal(size=rows)) * rng.choice([0.5, 5.0], rows)
        scales = np.linspace(0.5, 5, members)
        both = [jem.Mixture(np.full(members, 1 / members), one(scales)) for one in (HalfNormal, HalfNormalByRow)]
        ends = [steps(model, x, count).components.scale for model in both]
        np.testing.assert_allclose(*ends, rtol=1e-5)
        taken = [[seconds(model, x, count) for model in both] for _ in range(TURNS)]
        batched, by_row = map(min, zip(*taken, strict=True))
        print(
            f"{members} members, {rows:,} rows: batched {batched / count * 1e6:.0f} us a step, by row "
            f"{by_row / count * 1e6:.0f}, ratio {by_row / batched:.2f}"
        )
