"""Importing jaxem leaves the program alone: no flag changed, no backend started, no door's libraries loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import jax
before = {name: str(value) for name, value in jax.config.values.items()}
loaded = set(sys.modules)
import jaxem
from jax.extend import backend
after = {name: str(value) for name, value in jax.config.values.items()}
from jax._src import xla_bridge
print(json.dumps({
    "changed": [name for name in after if before.get(name) != after[name]],
    "backends": list(xla_bridge._backends),
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - loaded}),
}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_changes_no_flag(found: dict[str, list[str]]) -> None:
    assert found["changed"] == []


def test_starts_no_backend(found: dict[str, list[str]]) -> None:
    assert found["backends"] == []


def test_loads_no_library_of_the_doors(found: dict[str, list[str]]) -> None:
    """What costs time to import is what is imported: a stopwatch would decide by the machine's mood."""
    heavy = {"optax", "chex", "flax", "matplotlib", "polars", "pyarrow", "pandas", "rich", "typer", "sklearn", "scipy",
             "safetensors", "jinja2", "beartype", "torch", "tensorflow"}  # fmt: skip
    assert "jaxem" in found["loaded"]
    assert not heavy & set(found["loaded"])
