"""Rows, sequences and steps spread over devices: the same fit as on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_eight_devices_fit_what_one_does() -> None:
    program = Path(__file__).with_name("on_devices.py")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=280)
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(checks) > 10
    wrong = [f"{check['check']}: {check['wrong']}" for check in checks if check["wrong"]]
    assert not wrong, "\n".join(wrong)
