"""More rows than memory should hold: 20,000,000 x 8 in a Parquet file, streamed, against the fit of all in memory.

    python benchmarks/stream.py FOLDER            writes the file there
    python benchmarks/stream.py FOLDER stream     fits it batch by batch
    python benchmarks/stream.py FOLDER memory     reads it all, and fits that

The last two print one line of JSON; each is a process of its own, because the peak of its memory is what is asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from large import peak

ROWS, COLUMNS, COMPONENTS, STEPS = 20_000_000, 8, 4, 5
GROUP = 1_000_000
"""Rows of a row group of the file."""


def centres() -> np.ndarray:
    """Where the components are."""
    return np.random.default_rng(0).normal(size=(COMPONENTS, COLUMNS)).astype(np.float32) * 2


def write(folder: Path) -> None:
    """The file, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, means = np.random.default_rng(1), centres()
    schema = pa.schema([(f"x{d}", pa.float32()) for d in range(COLUMNS)])
    with pq.ParquetWriter(folder / "rows.parquet", schema, compression="none", use_dictionary=False) as writer:
        for _ in range(ROWS // GROUP):
            rows = rng.standard_normal((GROUP, COLUMNS), np.float32)
            rows += means[rng.integers(COMPONENTS, size=GROUP)]
            writer.write_table(pa.table([rows[:, d] for d in range(COLUMNS)], schema=schema))


def start() -> Any:
    """A mixture that is not far from the truth, and not at it."""
    import jaxem as jem

    means = centres() + np.random.default_rng(2).normal(size=(COMPONENTS, COLUMNS)).astype(np.float32)
    eye = np.broadcast_to(np.eye(COLUMNS, dtype=np.float32) * 2, (COMPONENTS, COLUMNS, COLUMNS))
    return jem.Mixture(np.full(COMPONENTS, 1 / COMPONENTS, np.float32), jem.Gaussian(means, eye))


def run(folder: Path, way: str) -> dict[str, Any]:
    """The same steps twice, and what the second time took; in float32."""
    import jax

    import jaxem as jem

    source = jem.batches(folder / "rows.parquet")
    if way == "memory":
        x = np.empty((ROWS, COLUMNS), np.float32)
        at = 0
        for batch in source:
            x[at : at + len(batch)] = batch
            at += len(batch)

    def fit() -> tuple[Any, float, float]:
        began, busy = time.perf_counter(), time.process_time()
        if way == "memory":
            found = jem.fit(start(), x, tol=0.0, max_steps=STEPS)
        else:
            found = jem.fit_stream(start(), source, tol=0.0, max_steps=STEPS)
        jax.block_until_ready(found)
        return found, time.perf_counter() - began, time.process_time() - busy

    _, cold, _ = fit()
    found, warm, busy = fit()
    return {
        "seconds": warm,
        "busy": busy,
        "compile": cold - warm,
        "peak": peak(),
        "log_likelihood": float(found.log_likelihood),
        "passes": int(found.passes),
    }


def everything() -> dict[str, dict[str, Any]]:
    """Both ways, from one file that is gone afterwards."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, folder], check=True)
        for way in ("stream", "memory"):
            command = [sys.executable, __file__, folder, way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
    off = abs(found["stream"]["log_likelihood"] / found["memory"]["log_likelihood"] - 1)
    if off > 1e-5:
        raise SystemExit(f"stream: log-likelihoods differ by {off:.1e}")
    return found


if __name__ == "__main__":
    folder, *way = sys.argv[1:]
    if way:
        print(json.dumps(run(Path(folder), way[0])))
    else:
        write(Path(folder))
