"""Importing jaxem leaves the program alone: no flag changed, no backend started, no door's libraries loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import jax
before = {name: str(value) for name, value in jax.config.values.items()}
loaded = set(sys.modules)
import jaxem
after = {name: str(value) for name, value in jax.config.values.items()}
print(json.dumps({
    "changed": [name for name in after if before.get(name) != after[name]],
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - loaded}),
}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    # There is no such platform: whatever starts a backend fails.
    environment = {**os.environ, "JAX_PLATFORMS": "none-of-them"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_changes_no_flag_and_starts_no_backend(found: dict[str, list[str]]) -> None:
    assert found["changed"] == []


def test_loads_no_library_of_the_doors(found: dict[str, list[str]]) -> None:
    """What costs time to import is what is imported: a stopwatch would decide by the machine's mood."""
    heavy = {"optax", "chex", "flax", "matplotlib", "polars", "pyarrow", "pandas", "rich", "typer", "sklearn", "scipy",
             "safetensors", "jinja2", "beartype", "torch", "tensorflow"}  # fmt: skip
    assert "jaxem" in found["loaded"]
    assert not heavy & set(found["loaded"])
