"""The benchmark for a GPU, without one: every kind of case runs, and what was not measured says so."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WITHOUT = {"kind": "cpu", "platform": "cpu", "jax": "0"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    import gpu

    return gpu


def test_every_kind_of_case_runs(gpu: ModuleType) -> None:
    """In small; one of each kind, all contenders. dynamax may not be here."""
    names = ["many", "full", "a long chain"]
    found, why = gpu.said(names, small=True, seconds=250)
    assert not why
    rows = gpu.rows_of(names, True, found, why)
    missing = [row for row in rows if "ms" not in row]
    assert all(row["who"].startswith("dynamax") and "ModuleNotFound" in row["note"] for row in missing), missing
    assert len(rows) == 8
    text = gpu.table(WITHOUT, rows)
    assert "| 1 x 30, K = 2, forward-backward | jaxem, kernel | " in text
    assert "fits a second" in text
    assert "no fall above" in text
    assert text.count("not measured") == len(missing)


def test_without_a_gpu_nothing_is_measured(gpu: ModuleType, tmp_path: Path) -> None:
    """And what stands outside of the marks stays, twice over."""
    out = tmp_path / "RESULTS.md"
    out.write_text("# Measured\n\nbefore\n")
    gpu.main(["--out", str(out)])
    first = out.read_text()
    rows = [line for line in first.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) == sum(len(case.who) for case in gpu.CASES.values())
    assert all("not measured" in row and "no GPU here" in row for row in rows)
    assert "H200" in first
    out.write_text(first + "\nafter\n")
    gpu.write(gpu.table({**WITHOUT, "platform": "gpu"}, []), out)
    again = out.read_text()
    assert again.startswith("# Measured\n\nbefore\n\n" + gpu.BEGIN)
    assert again.endswith(gpu.END + "\n\nafter\n")
    assert "not known" in again
    assert "not measured" not in again


def test_what_takes_too_long_or_fails_says_so(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was said until then counts."""
    (tmp_path / "gpu_cases.py").write_text(
        'import sys, time\nprint(\'{"case": "full", "who": "jaxem", "ms": 7.0, "compile": 1.0}\\n{"ca\', flush=True)\n'
        "time.sleep(100 if 'full' in sys.argv else 0)\nraise MemoryError('all of it')"
    )
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    found, why = gpu.said(["full"], small=False, seconds=2)
    assert (found[0]["ms"], why) == (7.0, "not done after 2 seconds")
    assert gpu.said(["many"], small=False, seconds=20)[1] == "MemoryError: all of it"
    measured, late = gpu.rows_of(["full", "many"], False, found, why)
    assert "| 7 | 1.0 | 2.1 | 3.3 |" in gpu.table(WITHOUT, [measured])
    assert "not measured" in gpu.table(WITHOUT, [late])
    assert gpu.limits({"kind": "NVIDIA H100 80GB HBM3", "platform": "gpu"}) == ("H100", gpu.LIMITS["H100"])
