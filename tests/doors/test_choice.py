"""Choosing among fits, and the shapes that groups are fitted in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxem.cli import output
from jaxem.cli.columns import ColumnModel
from jaxem.cli.errors import InputError
from jaxem.cli.fit import frames, schedule
from jaxem.cli.fit.result import choose
from jaxem.cli.table import groups
from jaxem.fitting.status import Status

GOOD, POOR, FAILED = int(Status.converged), int(Status.covariance_collapsed), int(Status.nonfinite)


def test_the_smallest_criterion_of_the_sound_fits_is_chosen() -> None:
    criterion = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [np.nan, 2.0, 1.0]])
    status = np.array([[GOOD, GOOD, GOOD], [GOOD, GOOD, POOR], [FAILED, POOR, FAILED], [FAILED, FAILED, FAILED]])
    assert choose(criterion, status).tolist() == [2, 1, 1, -1]


def test_every_group_is_in_one_slab_and_fits_into_it() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 900, 1500)
    frame = pl.DataFrame({"g": np.repeat(np.arange(len(sizes)), sizes), "x": rng.normal(size=sizes.sum())})
    grouped = groups.group(frame, ColumnModel.parse(["gaussian"], ["x"]), ["g"])
    fittable = grouped.n >= 30
    plan = schedule.plan(grouped, fittable, [1, 2, 3, 5], 4)
    assert sorted(np.concatenate([slab.groups for slab in plan.slabs])) == np.flatnonzero(fittable).tolist()
    assert len({(slab.length, slab.size) for slab in plan.slabs}) <= schedule.LENGTHS
    assert sorted(k for _, counts in plan.capacities for k in counts) == [1, 2, 3, 5]
    slab = plan.slabs[0]
    x, weight = schedule.stack(grouped, slab, "float32")
    assert x.shape == (slab.size, slab.length, 1)
    assert weight.dtype == np.float32
    assert weight.sum(1)[: len(slab.groups)].tolist() == grouped.n[slab.groups].tolist()
    first = int(slab.groups[0])
    assert (x[0, : grouped.n[first]] == grouped.rows_of(first).astype("float32")).all()


def test_a_small_job_has_one_shape() -> None:
    frame = pl.DataFrame({"g": [0] * 30 + [1] * 60, "x": np.arange(90.0)})
    grouped = groups.group(frame, ColumnModel.parse(["gaussian"], ["x"]), ["g"])
    plan = schedule.plan(grouped, grouped.n > 0, [1, 2, 3], 4)
    assert len(plan.slabs) == len(plan.capacities) == 1


def test_nested_lists_are_cut_to_their_components() -> None:
    values = np.arange(12.0).reshape(2, 3, 2)
    assert frames.nested(values, np.array([2, 0])).to_list() == [[[0.0, 1.0], [2.0, 3.0]], None]
    assert frames.nested(values[:, :, 0], np.array([1, 3])).to_list() == [[0.0], [6.0, 8.0, 10.0]]
    assert frames.nested(np.array([1.0, np.nan]), np.array([1, 0])).to_list() == [1.0, None]


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with output.together(tmp_path) as place:
            place("a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("trials", "message"), [([1, 2, 3], "give one whole number"), ([0], "above zero"), ([], "it needs --trials")]
)
def test_trials_that_do_not_fit(trials: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ColumnModel.parse(["binomial"], ["a", "b"], trials)


def test_trials_may_differ_by_column() -> None:
    assert ColumnModel.parse(["binomial"], ["a", "b"], [3, 5]).trials == (3, 5)
    assert ColumnModel.parse(["gaussian", "binomial"], ["a", "b"], [5]).trials == (0, 5)
    with pytest.raises(InputError, match="for the binomial family only"):
        ColumnModel.parse(["poisson"], ["a"], [5])
