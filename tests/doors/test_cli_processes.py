"""Several processes at one job: the same bytes, and none outlives another without a word."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jaxem.cli import app, cluster
from jaxem.cli.errors import InputError
from jaxem.cli.fit import checkpoint

pytestmark = pytest.mark.slow

COMMAND = "from jaxem.cli import app, cluster; cluster.SILENCE = 10; app.main()"
"""Who is gone is missed sooner than by a person's patience."""

OPTIONS = "--by g --columns x --family poisson --components 1 --restarts 1 --method random"


def start(
    table: Path, out: Path, count: int = 1, devices: int = 1, options: str = OPTIONS
) -> list[subprocess.Popen[str]]:
    """The real command, once for each process; compiled as in this process, so that they share what is cached."""
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    several = ["--coordinator", address, "--processes", str(count)] if count > 1 else []
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}  # type: ignore[attr-defined]
    if devices > 1:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", COMMAND, "fit", str(table), *options.split(), "--out", str(out), *several]
    return [
        subprocess.Popen(
            [*command, "--process", str(i)] if several else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            text=True,
        )
        for i in range(count)
    ]


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Status, output and errors of each."""
    said = [process.communicate(timeout=250) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL to send")
def test_four_processes_lose_one_and_two_go_on_to_what_one_finds(table: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert CliRunner().invoke(app.app, ["fit", str(table), *OPTIONS.split(), "--out", str(alone)]).exit_code == 0

    four = start(table, shared, count=4)
    # Not before something is finished that the next two can go on from.
    while not ((shared / "parts" / "process-3").exists() and any((shared / "parts").glob("slab-*"))):
        assert four[3].poll() is None
        time.sleep(0.01)
    four[3].kill()
    assert cluster.SILENCE + cluster.BEAT < 60
    found = ended(four)
    assert found[3][0] == -signal.SIGKILL
    gone = (
        f"jaxem: error: process 3 of 4 is gone; the finished groups are in {shared}/parts, from where the same command "
        "goes on, with any number of processes\n"
    )
    assert (found[0][0], found[0][2]) == (2, gone)
    for i in (1, 2):
        # Who had done its share by then has left in peace.
        assert (found[i][0] == 2 and found[i][2] == gone) or found[i][1].startswith(f"jaxem: process {i} of 4 has done")

    (status, told, said), (other, share, nothing) = ended(start(table, shared, count=2, devices=2))
    assert (status, said) == (other, nothing) == (0, "")
    assert "jaxem: 6,200 of 6,200 groups have a model, " in told
    assert "of the groups were done before" in told
    assert " fits by 2 processes in " in told
    assert share.startswith("jaxem: process 1 of 2 has done its share, ")
    assert sorted(os.listdir(shared)) == ["models.parquet", "report.html", "selection.parquet"]
    for name in ("models.parquet", "selection.parquet"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.timeout(600)
def test_two_processes_share_the_rows_of_one_large_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table, options = tmp_path / "t.parquet", "--columns x --family poisson --components 2 --restarts 1 --prior none"
    # Three batches: process 0 has two of them, in each step.
    pl.DataFrame({"x": rng.poisson(rng.choice([2, 9], 140_000))}).write_parquet(table)
    options += " --memory 1MB --max-steps 3 --assign"
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert CliRunner().invoke(app.app, ["fit", str(table), *options.split(), "--out", str(alone)]).exit_code == 0
    (status, _, _), (other, share, _) = ended(start(table, shared, count=2, options=options))
    assert (status, other) == (0, 0)
    assert "jaxem: process 1 of 2 has done its share, " in share
    one, both = (pl.read_parquet(out / "models.parquet") for out in (alone, shared))
    np.testing.assert_allclose(both["log_likelihood"], one["log_likelihood"], rtol=1e-12)
    np.testing.assert_allclose(both["icl"], one["icl"], rtol=1e-12)
    assert both["steps"].to_list() == one["steps"].to_list() == [3]
    rows = [pl.read_parquet(out / "assignments.parquet") for out in (alone, shared)]
    assert rows[0]["component"].to_list() == rows[1]["component"].to_list()


BAD = {
    "one of three": (
        "--coordinator h:1 --process 0",
        "--coordinator without --processes; processes of one job need all three",
    ),
    "two of three": ("--process 0", "--process without --coordinator and --processes; processes of one job need all"),
    "no port": (
        "--coordinator h --processes 2 --process 0",
        "--coordinator h: write HOST:PORT, for example node1:9876",
    ),
    "no number of a port": (
        "--coordinator h:99999 --processes 2 --process 0",
        "--coordinator h:99999: write HOST:PORT",
    ),
    "beyond the last": (
        "--coordinator h:1 --processes 2 --process 2",
        "--process 2: the 2 of --processes are numbered from 0 to 1",
    ),
    "said twice": ("--distributed --process 1", "--distributed reads from the cluster what --process says; leave one"),
    "no cluster": (
        "--distributed",
        "--distributed: JAX finds no cluster here (coordinator_address should be defined); give",
    ),
    "no such device": ("--device xpu", "--device xpu: choose from cpu, gpu, tpu"),
    "no TPU": ("--device tpu", "--device tpu: there is none that JAX can use ("),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_numbers_are_one_line(case: str, table: Path, tmp_path: Path) -> None:
    options, message = BAD[case]
    command = ["fit", str(table), *OPTIONS.split(), *options.split(), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app.app, command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"jaxem: error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_process_that_stays_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT", 2.0)
    alone = cluster.met(cluster.Meeting("localhost:9", 2, 1))
    with pytest.raises(InputError, match="not all processes have come within 2 s; see that each was started"), alone:
        pass


def test_a_process_that_fails_before_the_work_does_not_leave_the_others_waiting() -> None:
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"

    def first() -> None:
        with contextlib.suppress(ZeroDivisionError), cluster.met(cluster.Meeting(address, 2, 0)) as place:
            assert place == (0, 2)
            raise ZeroDivisionError

    thread = threading.Thread(target=first)
    thread.start()
    second = cluster.met(cluster.Meeting(address, 2, 1))
    with pytest.raises(InputError, match="another process ended before the work began; see what it says"), second:
        pass
    thread.join()


def test_all_processes_must_have_the_same_options_and_folder(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "met", lambda meeting: contextlib.nullcontext((1, 2)))
    command = ["fit", str(table), *OPTIONS.split(), "--out", str(tmp_path)]
    result = CliRunner().invoke(app.app, command)
    assert result.exit_code == 2
    assert result.stderr == (
        f"jaxem: error: --out {tmp_path}: process 1 of 2 does not see what process 0 has written there; all need the "
        "same folder\n"
    )
    monkeypatch.setattr(checkpoint, "changes", lambda was, now: ["--seed was 0 and is 1"])
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "job.json").write_text('{"command": 0, "options": 0, "rows": 0, "versions": 0}')
    result = CliRunner().invoke(app.app, command)
    assert result.exit_code == 2
    assert result.stderr == (
        "jaxem: error: process 1 of 2 was started otherwise than process 0: --seed was 0 and is 1\n"
    )


@pytest.mark.parametrize("how", ["silence", "failure", "absence"])
def test_a_process_that_is_gone_stops_the_others(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "BEAT", 0.01)
    monkeypatch.setattr(cluster, "SILENCE", 999 if how == "failure" else 0.2)
    stop, ours, sign = threading.Event(), tmp_path / "process-0", tmp_path / "process-1"
    if how != "absence":
        sign.write_text("0")

    def work() -> None:
        with cluster.Peers(tmp_path, 0, 2).watched(stop, "do this"):
            if how == "failure":
                # From its second sign on it has seen that of the other.
                while not ours.exists() or ours.read_text() in ("", "0"):
                    time.sleep(0.01)
                sign.unlink()
            assert stop.wait(60)

    with pytest.raises(InputError, match="process 1 of 2 is gone; do this, with any number of processes"):
        work()
    assert not ours.exists()


def test_a_process_that_is_done_may_be_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "BEAT", 0.01)
    monkeypatch.setattr(cluster, "SILENCE", 0.1)
    stop = threading.Event()
    (tmp_path / "process-1").write_text("done")
    with cluster.Peers(tmp_path, 0, 2).watched(stop, ""):
        assert not stop.wait(0.3)
    assert (tmp_path / "process-0").read_text() == "done"
