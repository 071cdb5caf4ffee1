"""Each command of the command line once, from a table to all its files; what is in them, other tests look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jaxem.cli import app

RUNS = {
    "fit": ("--components 1:2 --restarts 1 --assign", "models selection assignments"),
    "hmm": ("--order t --states 1:2 --restarts 1 --assign", "models selection assignments"),
    "race": ("--components 2 --solvers em,squarem --max-steps 50", "solvers problems runs"),
}


def test_all_are_run() -> None:
    named = {command.callback.__name__ for command in app.app.registered_commands}  # type: ignore[union-attr]
    assert named == {*RUNS, "families"}


def test_families_are_listed() -> None:
    done = CliRunner().invoke(app.app, ["families"])
    assert done.exit_code == 0
    assert "poisson" in done.stdout
    assert "log p(x)" in CliRunner().invoke(app.app, ["families", "poisson"]).stdout


@pytest.mark.parametrize("command", RUNS)
def test_from_a_table_to_its_files(command: str, tmp_path: Path) -> None:
    rng, group = np.random.default_rng(0), np.repeat(["a", "b"], 40)
    counts = rng.poisson(np.where(np.arange(80) // 10 % 2, 2, 9))
    table, out = tmp_path / "t.csv", tmp_path / "out"
    pl.DataFrame({"g": group, "t": np.arange(80), "k": counts}).write_csv(table)
    options, files = RUNS[command]
    given = f"{command} {table} --by g --columns k --family poisson --out {out} {options}"
    done = CliRunner().invoke(app.app, given.split())
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert {path.name for path in out.iterdir()} == {f"{name}.parquet" for name in files.split()} | {"report.html"}
    first = pl.read_parquet(out / f"{files.split()[0]}.parquet")
    assert first.height == 2
    assert str(out) in done.stdout.replace("\n", "")
