"""What `fit_many` compiles the first time: each of its programs once, and narrow lanes for long queues only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

import jaxem as jem
from jaxem.fitting.many import queue

pytestmark = pytest.mark.slow

COMPILE = "/jax/core/compile/backend_compile_duration"


def fitted(rows: int, monkeypatch: pytest.MonkeyPatch, many: int) -> tuple[jem.Fit, Counter[str]]:
    """Fits of a dozen problems with so many rows, two starts each; and how often what was compiled."""
    monkeypatch.setattr(queue, "MANY", many)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(12, rows, 1)) + 3 * rng.integers(0, 2, (12, rows, 1))
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2, restarts=2)
    programs: Counter[str] = Counter()

    def listen(event: str, duration: float, **told: Any) -> None:
        if event == COMPILE:
            programs[told.get("fun_name", "")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        return jem.fit_many(starts, xs, prior=jem.priors.Weak()), programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_short_queue_has_one_width_and_a_long_one_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    fits, programs = fitted(21, monkeypatch, many=64)
    turns = [name for name in programs if "run_lanes" in name]
    assert [programs[name] for name in turns] == [1]
    assert programs.total() < 30  # there were 53
    narrowed, more = fitted(21, monkeypatch, many=4)
    assert more[turns[0]] > 0
    for one, other in zip(jax.tree.leaves(fits), jax.tree.leaves(narrowed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
