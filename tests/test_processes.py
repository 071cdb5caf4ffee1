"""One model fitted by two processes, on JAX's own distributed runtime, to data of which each has a part."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROCESSES = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_two_processes_fit_what_one_does() -> None:
    port, program = free_port(), Path(__file__).with_name("on_processes.py")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, str(program), str(index), str(PROCESSES), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(PROCESSES)
    ]
    found = []
    try:
        for process in running:
            out, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in running:
            process.kill()
    assert found[0]["words"] == ["converged", "converged"]
    assert max(found[0]["differences"]) < 1e-12
    assert found[1]["numbers"] == found[0]["numbers"]
