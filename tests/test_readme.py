"""Pages that are executed: every Python block runs, in order, and every `expression  # value` in it is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pages

PAGES = sorted([*pages.ROOT.glob("*.md"), *pages.ROOT.glob("docs/*.md")])


@pytest.mark.parametrize(
    ("page", "devices"),
    [
        ("README.md", 1),
        pytest.param("docs/scaling.md", 4, marks=pytest.mark.slow),
        pytest.param("docs/families.md", 1, marks=pytest.mark.slow),
        pytest.param("docs/how_sure.md", 1, marks=pytest.mark.slow),
    ],
)
def test_every_block_runs_and_tells_the_truth(page: str, devices: int) -> None:
    # In an interpreter of its own: a reader has neither 64-bit types nor strict promotion switched on.
    path = pages.ROOT / page
    assert len(pages.python_blocks(path)) >= 6
    command = [sys.executable, pages.__file__, str(path)]
    found = os.pathsep.join([str(pages.ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": found, "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_false_claim_is_found() -> None:
    assert pages.run("x = 1\nx + 1  # 2\n", "page", {}) == 1
    with pytest.raises(AssertionError, match="page, line 2: it is 2, the page says 3"):
        pages.run("x = 1\nx + 1  # 3\n", "page", {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(\s*([^)#\s]+)[^)]*\)", page.read_text())
    assert [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()] == []
