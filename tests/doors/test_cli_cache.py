"""Compiled programs are kept for the next run of the command line: where it says, unless it cannot or must not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jaxem.cli import app

pytestmark = pytest.mark.slow

# The command line as it starts; a command compiles one small program instead of many.
PROGRAM = """
import jax
from jaxem.cli import app
app._run = lambda command, options: print(jax.jit(lambda x: x + 1.0)(2.0))
app.main()
"""


def run(cache: Path, *flags: str) -> set[str]:
    """The programs that are kept in `cache` after a run, in which nothing may go wrong or be said to."""
    command = [sys.executable, "-c", PROGRAM, *flags, "fit", "table", "--columns", "x", "--out", "out"]
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = {**inherited, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3.0\n", "")
    return {path.name for path in (cache / "jaxem").glob("*-cache")}


def test_programs_are_kept_and_a_damaged_one_is_made_anew(tmp_path: Path) -> None:
    programs = run(tmp_path)
    assert programs
    for name in programs:
        (tmp_path / "jaxem" / name).write_bytes(b"damaged")
    assert run(tmp_path) == programs


def test_no_cache_keeps_nothing(tmp_path: Path) -> None:
    assert not run(tmp_path, "--no-cache")


def test_where_nothing_can_be_written_it_does_without(tmp_path: Path) -> None:
    (tmp_path / "jaxem").write_text("not a folder")
    assert not run(tmp_path)


def test_help_says_where() -> None:
    told = " ".join(CliRunner().invoke(app.app, ["--help"]).output.split())
    assert "--no-cache" in told
    assert "$XDG_CACHE_HOME/jaxem" in told
