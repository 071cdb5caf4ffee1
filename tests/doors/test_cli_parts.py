"""Finished groups on disk: a job that ended before its time goes on from them, and only that job does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import jaxem as jem
from jaxem.cli import app
from jaxem.cli.fit import checkpoint, report, run, schedule
from jaxem.core.pytree import replace
from jaxem.io import models

pytestmark = pytest.mark.slow

QUICK = "--restarts 1 --method random --workers 1"
COMMANDS = {
    "mixtures": f"fit --by g --columns k --family zero_inflated_poisson --components 2 {QUICK}",
    "chains": f"hmm --by g --columns k --family poisson --states 2 {QUICK}",
}
MIXTURES = COMMANDS["mixtures"]
TABLES = ["assignments.parquet", "models.parquet", "selection.parquet"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab for each group, and no pictures."""
    monkeypatch.setattr(schedule, "SLAB", 1)
    monkeypatch.setattr(report, "_examples", lambda outcome, groups: "")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four groups of 24 rows; the mixtures of two of them fail."""
    rng, n = np.random.default_rng(3), 4 * 24
    frame = pl.DataFrame({"g": np.repeat(list("abcd"), 24), "k": rng.poisson(4, n) * rng.integers(0, 2, n)})
    frame.write_parquet(tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def jaxem(command: str, table: Path, out: Path) -> Result:
    name, *options = command.split()
    return CliRunner().invoke(app.app, [name, str(table), *options, "--out", str(out)])


def on_a_full_disk(monkeypatch: pytest.MonkeyPatch, command: str, table: Path, out: Path) -> Result:
    """The command where there is room for two parts, after `job.json`."""
    synced, fsync = [], os.fsync

    def some(file: int) -> None:
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)
        synced.append(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", some)
        return jaxem(command, table, out)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_after_a_full_disk_the_same_command_goes_on(
    command: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, alone, full = f"{command} --assign", tmp_path / "alone", tmp_path / "full"
    assert jaxem(command, table, alone).exit_code == 0
    result = on_a_full_disk(monkeypatch, command, table, full)
    assert result.exit_code == 2
    assert result.stderr == (
        f"jaxem: error: --out {full}: cannot write there (No space left on device); the finished groups are in "
        f"{full}/parts, from where the same command goes on\n"
    )
    assert os.listdir(full) == ["parts"]
    assert sum(name.startswith("slab-") for name in os.listdir(full / "parts")) == 2

    moved = table.rename(tmp_path / "moved.parquet")
    result = jaxem(command.replace("--workers 1", "--workers 2"), moved, full)
    assert result.exit_code == 0, result.output
    assert "2 of the groups were done before; 2 fits in" in result.stdout
    assert "2 of the groups were done before" in (full / "report.html").read_text()
    assert sorted(os.listdir(full)) == sorted([*TABLES, "report.html"])
    for name in TABLES:
        assert (full / name).read_bytes() == (alone / name).read_bytes()


def test_ctrl_c_keeps_the_parts(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = run.Outcome.store

    def interrupt_after(self: run.Outcome, *arguments: object) -> None:
        store(self, *arguments)  # type: ignore[arg-type]
        if not self.interrupted:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.Outcome, "store", interrupt_after)
        result = jaxem(MIXTURES, table, tmp_path)
    assert result.exit_code == 130
    assert result.stderr.endswith(f"of 4 groups are in {tmp_path}; the same command goes on with the others\n")
    finished = len(list((tmp_path / "parts").glob("slab-*")))
    words = pl.read_parquet(tmp_path / "models.parquet")["status"].to_list()
    assert words.count("interrupted") == 4 - finished < 4
    result = jaxem(MIXTURES, table, tmp_path)
    assert f"{finished} of the groups were done before" in result.stdout
    assert "interrupted" not in pl.read_parquet(tmp_path / "models.parquet")["status"]


def test_another_job_is_refused_until_it_starts_over(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    on_a_full_disk(monkeypatch, MIXTURES, table, out)
    frame = pl.read_parquet(table)
    changed, renamed = tmp_path / "changed.parquet", tmp_path / "renamed.parquet"
    frame.with_columns(k=pl.when(pl.int_range(pl.len()) == 95).then(50).otherwise("k")).write_parquet(changed)
    frame.with_columns(g=pl.col("g").str.to_uppercase()).write_parquet(renamed)
    options = "--tol was 1e-06 and is 1e-05; --seed was 0 and is 1; --assign was not given and is given"
    cases = [
        (f"{MIXTURES} --seed 1 --tol 1e-5 --assign", table, options),
        (COMMANDS["chains"], table, "it was jaxem fit"),
        (MIXTURES, changed, "the rows of the table have changed"),
        (MIXTURES, renamed, "the rows of the table have changed"),
    ]
    for command, source, why in cases:
        result = jaxem(command, source, out)
        assert result.exit_code == 2
        assert result.stderr == (
            f"jaxem: error: --out {out}: {out}/parts has finished groups of another job ({why}); give its command to "
            "go on with it, --restart to start over, or another --out\n"
        )
    result = jaxem(f"{MIXTURES} --seed 1 --restart", table, out)
    assert result.exit_code == 0, result.output
    assert "done before" not in result.stdout
    assert not (out / "parts").exists()


def test_a_kill_while_the_parts_go_is_no_harm(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Parts, "remove", lambda self: None)
        jaxem(MIXTURES, table, tmp_path)
    # Some are gone, others not; and some files were only half written when an earlier process was killed.
    folder = tmp_path / "parts"
    (folder / "slab-000002.safetensors").unlink()
    (folder / ".slab-000002.safetensors.123.part").touch()
    (folder / "of somebody else").touch()
    (tmp_path / ".models.parquet.123.part").touch()
    result = jaxem(MIXTURES, table, tmp_path)
    assert result.exit_code == 0
    assert "3 of the groups were done before; 1 fits in" in result.stdout
    assert os.listdir(folder) == ["of somebody else"]
    assert not list(tmp_path.glob(".*"))


def test_parts_whose_owner_is_not_known_are_not_taken(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_full_disk(monkeypatch, MIXTURES, table, tmp_path)
    owner = tmp_path / "parts" / "job.json"
    owner.write_text("[]")
    result = jaxem(MIXTURES, table, tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"jaxem: error: {owner}: this file is not from jaxem; give --restart to start over, or another --out\n"
    )
    owner.unlink()
    result = jaxem(MIXTURES, table, tmp_path)
    assert result.exit_code == 0
    assert "done before" not in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="there is no such lock")
def test_two_jobs_do_not_meet_in_one_folder(table: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    hold = "import fcntl, time; fcntl.flock(0, fcntl.LOCK_EX); print('held', flush=True); time.sleep(300)"
    with (tmp_path / "parts" / "lock").open("w") as lock:
        other = subprocess.Popen([sys.executable, "-c", hold], stdin=lock, stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        result = jaxem(MIXTURES, table, tmp_path)
        other.kill()
    assert result.exit_code == 2
    assert result.stderr == (
        f"jaxem: error: --out {tmp_path}: another jaxem is at work there; wait until it has ended, or name another "
        "folder\n"
    )
    assert jaxem(MIXTURES, table, tmp_path).exit_code == 0


def test_what_is_in_the_way_of_the_parts_is_named(table: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").touch()
    result = jaxem(MIXTURES, table, tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"jaxem: error: --out {tmp_path}: cannot write there (")
    assert result.stderr.count("\n") == 1


def test_a_part_keeps_every_bit_of_a_failed_fit(tmp_path: Path) -> None:
    model = replace(jem.Poisson(1.0), rate=np.array([[np.nan, 1e-310], [-np.inf, 0.1]]))
    models.save(tmp_path / "part", (np.array([3]), model, ()))
    groups, back, nothing = models.load_unchecked(tmp_path / "part")
    assert (groups.tolist(), nothing) == ([3], ())
    assert isinstance(back, jem.Poisson)
    assert np.asarray(back.rate).tobytes() == np.asarray(model.rate).tobytes()
