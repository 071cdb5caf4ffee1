"""The plan of the house: a room imports from its own floor and from those below, and one file only factors a matrix."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

import jaxem
import pages

PACKAGE = Path(jaxem.__file__).parent

# From the ground up. A room is a folder, or a file beside the folders.
FLOORS = ["_version palette core", "data chains", "distributions", "latent", "priors solvers io", "fitting"]
FLOORS += ["kmeans evaluation uncertainty"]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
# All others are doors (the command line, plots, public names of what is inside): nothing inside imports them.

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(module: Path) -> list[str]:
    """The full names that a module imports from jaxem, wherever in the file."""
    names: list[str] = []
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the whole name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "jaxem"]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_room_imports_from_its_own_floor_or_below(module: Path) -> None:
    room = module.parts[0].removesuffix(".py")
    own = FLOOR.get(room, len(FLOORS) - 1 if room == "__init__" else len(FLOORS))
    for name in imported(module):
        other = [*name.split("."), "__init__"][1]
        assert FLOOR.get(other, len(FLOORS)) <= own, f"{module} imports {name}, which is on a higher floor"


def chain(node: ast.expr) -> str:
    """`jnp.linalg` for the expression that says so."""
    if isinstance(node, ast.Attribute):
        return f"{chain(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def factorises(module: Path) -> list[str]:
    """Where a module reaches for a factorisation of JAX's (NumPy's, on the host, are no danger)."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("jax")]
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "jax":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and chain(node).split(".")[0] in {"jax", "jnp", "jsp", "lax"}:
            names = [chain(node)]
        # Those of sparse only apply a matrix.
        factoring = [name for name in names if {"linalg", "sparse"} & {*name.split(".")} == {"linalg"}]
        found += [f"{module}:{node.lineno} {name}" for name in factoring]
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_calls_a_factorisation_of_jax(module: Path) -> None:
    """Their batched kernels can wait for ever on the CPU's thread pool; `jaxem.linalg` is written without them."""
    assert factorises(module) == []


def test_the_search_for_factorisations_finds_them(tmp_path: Path) -> None:
    lines = [
        "import jax.scipy.linalg",
        "from jax.numpy import linalg",
        "from jax.numpy.linalg import cholesky",
        "jnp.linalg.inv(x)",
        "jax.lax.linalg.cholesky(x)",
    ]
    for line in lines:
        (tmp_path / "bad.py").write_text(line)
        assert factorises(tmp_path / "bad.py"), line
    (tmp_path / "good.py").write_text(
        "import numpy as np\nfrom jaxem.core import linalg\nnp.linalg.eigvalsh(linalg.inv(x))"
    )
    assert not factorises(tmp_path / "good.py")


def test_the_picture_of_the_rooms_is_true() -> None:
    spec = importlib.util.spec_from_file_location("rooms", pages.ROOT / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    page = rooms.PAGE.read_text()
    assert page == rooms.placed(page), "draw it again: python docs/rooms.py"
