"""The plan of the house: no module of a lower floor imports a higher one, and one file only may factor a matrix."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import jaxem

PACKAGE = Path(jaxem.__file__).parent

# From the ground up. A module may import from its own floor and from those below.
FLOORS = [
    {
        "_version",
        "arguments",
        "arrays",
        "bijectors",
        "chains",
        "constraints",
        "coordinates",
        "data",
        "errors",
        "linalg",
        "missing",
        "palette",
        "problems",
        "pytree",
        "roots",
        "sequences",
        "sums",
    },
    {"distributions"},
    {"start"},
    {"latent"},
    {"priors"},
    {"solvers"},
    {"fitting"},
    {"kmeans", "rate"},
    {"compare", "files", "selection", "uncertainty"},
    {"races"},
]
INSIDE = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Whatever is not inside is a door (the command line, tables, plots): it may import all, and nothing inside imports it.

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room(module: Path) -> str:
    """The first part of a module's path: `latent` for latent/mixture.py, `linalg` for core/linalg.py."""
    return module.parts[0].removesuffix(".py")


def imported(module: Path) -> set[str]:
    """The rooms that a module imports from, wherever in the file."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        assert "jaxem" not in names or room(module) not in INSIDE, f"{module} imports all of jaxem; name what it needs"
        rooms |= {name.split(".")[1] for name in names if name.startswith("jaxem.")}
    return rooms


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_from_its_own_floor_or_below(module: Path) -> None:
    if module == Path("__init__.py"):
        assert imported(module) <= INSIDE.keys(), "importing jaxem must not load what only the doors need"
    elif room(module) in INSIDE:
        for other in imported(module):
            assert other in INSIDE, f"{module} imports {other}, which is a door"
            assert INSIDE[other] <= INSIDE[room(module)], f"{module} imports {other}, which is on a higher floor"


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
    """Their batched kernels can wait for ever on the CPU's thread pool; `jaxem.core.linalg` is written without them."""
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
    (tmp_path / "good.py").write_text("import numpy as np\nfrom jaxem import linalg\nnp.linalg.eigvalsh(linalg.inv(x))")
    assert not factorises(tmp_path / "good.py")
