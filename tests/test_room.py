"""Lanes and problems by the memory of a device: what fits, what is said, and that it changes no result."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest

import jaxem as jem
from jaxem.fitting.many import fit_many, memory, queue
from jaxem.fitting.many.batching import Batch
from jaxem.fitting.many.device import empty_lanes, member, prepare_lanes, run_lanes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("room_for_all", [10_000, 40_000, 1_000_000])
@pytest.mark.parametrize("problems", [1, 300, 20_000])
@pytest.mark.parametrize("lane", [3, 100, 9_000])
def test_what_is_shared_out_fits(lane: int, problems: int, room_for_all: int) -> None:
    queues, width = memory.shared_out(lane, 7, problems, 256, room_for_all)
    assert 1 <= width <= 256
    assert -(-problems // queues) * 7 + width * lane <= room_for_all + 7
    if queues > 1:
        assert problems * 7 + width * lane > room_for_all, "fewer queues would do"
    if width < 256:
        assert problems * 7 + 2 * width * lane > room_for_all or 2 * width * lane > room_for_all // 2


def test_one_of_each_is_tried_where_not_even_that_fits() -> None:
    assert memory.shared_out(1000, 1000, 5, 256, 10) == (5, 1)
    assert memory.shared_out(1000, 1000, 5, 256, -10) == (5, 1)


def test_little_memory_cuts_problems_into_turns_and_changes_no_result(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    xs = [rng.normal(size=(rng.integers(20, 24), 2)) for _ in range(33)]
    xs[3][2, 0] = np.nan
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, [np.nan_to_num(x) for x in xs], 2, restarts=2)
    whole = jem.fit_many(starts, xs)
    monkeypatch.setattr(fit_many, "free", lambda device: 40_000)
    monkeypatch.setattr(fit_many, "IN_PIECES", 1000)  # so that the data do not fit at once either
    with caplog.at_level(logging.INFO, "jaxem"):
        turns = jem.fit_many(starts, xs)
    for ours, theirs in zip(jax.tree.leaves(turns), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    said = [record.getMessage() for record in caplog.records if record.name == "jaxem"]
    assert len(said) == 2  # the problem with the gap is a batch by itself
    assert "32 problems of" in said[0]
    assert "0.04 MB that may be taken on cpu:0" in said[0]
    assert "in 4 turns" in said[0]


@pytest.mark.parametrize(("family", "columns"), [(jem.Gaussian, 6), (jem.DiagonalGaussian, 16)])
def test_a_lane_is_no_larger_than_is_said(rng: np.random.Generator, family: type, columns: int) -> None:
    x = rng.normal(size=(64, 200, columns))
    starts = jem.start_many(jax.random.key(0), family, x, 3)
    batch = Batch(np.arange(64), x, np.ones(x.shape[:2]), None)
    model, solver, width = member(starts, 0), jem.EM(), 64
    lane, problem = memory.sizes(solver, model, batch, None, 1)
    problems, _ = prepare_lanes(solver, starts, x, batch.weight, None, None, restarts=1)
    held, results = empty_lanes(solver, starts, problems, width=width)
    limits = queue.Limits(np.full(len(batch.weight), 1e-6), np.int32(9))
    program = run_lanes.lower(
        solver, held, results, problems, starts, np.full(width, True), np.arange(width, dtype=np.int32), limits,
        restarts=1, one_by_one=False, steps=2,
    )  # fmt: skip
    needs = program.compile().memory_analysis()
    taken = needs.argument_size_in_bytes + needs.temp_size_in_bytes + needs.output_size_in_bytes
    said = width * lane + 64 * problem
    assert taken < said < 20 * taken


def test_an_accelerator_takes_more_lanes_and_never_one_by_one() -> None:
    model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0]))
    small, large = (np.ones((4, rows)) for rows in (500, 50_000))
    assert queue.pace(model, small, small, "cpu").lanes == 256
    assert queue.pace(model, large, large, "cpu") is queue.ONE_BY_ONE
    wide = queue.pace(model, small, small, "gpu")
    assert (wide.lanes, wide.late, wide.threads) == (8192, 1, False)
    assert queue.pace(model, large, large, "gpu").lanes == 167


@pytest.mark.parametrize("wrong", [0, -1])
def test_lanes_are_counted(wrong: int) -> None:
    models = jem.Poisson([1.0, 2.0])
    with pytest.raises(ValueError, match=f"lanes is {wrong}; it must be a whole number"):
        jem.fit_many(models, np.ones((2, 3)), lanes=wrong)
