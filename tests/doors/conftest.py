"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

GROUPS = 6200


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """So many small groups that they are thirteen slabs; most files have a table of their own in its place."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(GROUPS), 6)
    frame = pl.DataFrame({"g": group, "x": rng.poisson(rng.choice([2, 9], len(group)))})
    frame.write_parquet(tmp_path / "t.parquet")
    return tmp_path / "t.parquet"
