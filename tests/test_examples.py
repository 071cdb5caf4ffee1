"""The examples of the documentation run, and what they claim is asserted in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pages

pytestmark = pytest.mark.slow

EXAMPLES = sorted((pages.ROOT / "docs" / "examples").glob("*.py"))
LONG = {
    "directions",
    "experts",
    "factors",
    "outliers",
    "switching_regression",
    "waiting_times",
    "airport_days",
    "baum_welch",
    "em_or_gradient",
    "kmeans_is_hard_em",
    "linkage",
    "local_optima",
    "prior_strength",
    "rbf",
}


def told(path: Path) -> Any:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])


@pytest.mark.parametrize("example", [told(path) for path in EXAMPLES])
def test_it_runs_and_tells_the_truth(example: Path, tmp_path: Path) -> None:
    # As a reader runs it: in an interpreter of its own, without 64-bit types, with the picture if it draws one.
    command = [sys.executable, str(example), str(tmp_path / "picture.png")]
    # A saddle is left by rounding, and that is other under the flags with which tests compile faster.
    quick = ("XLA_", "JAX_") if example.stem == "local_optima" else ()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(quick)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    if "savefig" in example.read_text():
        assert (tmp_path / "picture.png").stat().st_size > 10_000
