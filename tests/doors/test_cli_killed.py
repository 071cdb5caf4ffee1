"""A job that is killed again and again ends as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.slow

SLABS = 13
KILLS = 10


def start(table: Path, out: Path, workers: int = 2) -> subprocess.Popen[str]:
    """The real command, in a process of its own that shares the compilations of all tests."""
    options = f"--by g --columns x --family poisson --components 2 --restarts 1 --method random --workers {workers}"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}  # type: ignore[attr-defined]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxem.cli.app", "fit", table, *options.split(), "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | cache,
        text=True,
    )


def finished(out: Path) -> int:
    """How many slabs are finished; -1 before the work begins."""
    parts = out / "parts"
    return len(list(parts.glob("slab-*"))) if (parts / "job.json").exists() else -1


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL to send")
def test_kills_change_no_byte(table: Path, tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    process = start(table, alone, workers=1)
    _, said = process.communicate(timeout=200)
    assert (process.returncode, said) == (0, "")

    # From the first moment on to those in which the results are written, and the parts removed.
    chance = random.Random(6)
    moments = [*sorted(chance.randrange(SLABS) for _ in range(KILLS - 2)), SLABS, SLABS]
    found = []
    while moments:
        process = start(table, killed)
        while finished(killed) < moments[0] and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05 if moments[0] < SLABS else 1))
        process.kill()
        _, said = process.communicate(timeout=100)
        # One that was faster has ended well, and the next begins anew.
        assert process.returncode in (-signal.SIGKILL, 0), said
        if process.returncode:
            moments.pop(0)
            found.append(finished(killed))
    assert any(0 < some < SLABS for some in found)

    process = start(table, killed)
    _, said = process.communicate(timeout=200)
    assert (process.returncode, said) == (0, "")
    for name in ("models.parquet", "selection.parquet"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes()
    assert sorted(os.listdir(killed)) == ["models.parquet", "report.html", "selection.parquet"]
