"""Solvers by name, and conversion of anything that stands for a solver."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from jaxem.core.arguments import said_of
from jaxem.solvers.accelerated import Accelerated
from jaxem.solvers.anderson import Anderson
from jaxem.solvers.base import Solver
from jaxem.solvers.em import EM, HardEM
from jaxem.solvers.gradient import LBFGS, Gradient
from jaxem.solvers.newton import Newton
from jaxem.solvers.squarem import SQUAREM

SOLVERS: dict[str, Callable[[], Solver]] = {
    "em": EM,
    "hard_em": HardEM,
    "squarem": lambda: SQUAREM(EM()),
    "anderson": lambda: Anderson(EM()),
    "lbfgs": LBFGS,
    "newton": Newton,
}
"""Constructors of solvers that need no arguments, by name."""


def as_solver(solver: Any, name: str = "solver") -> Any:
    """A solver from a solver, its class or name, or an optax transformation (as `Gradient`).

    Args:
        solver: the argument.
        name: of the argument, for messages.

    Raises:
        TypeError: anything else, or a class that needs arguments.
        ValueError: an unknown name.

    >>> as_solver("L-BFGS"), as_solver(EM)
    (LBFGS(memory=10, max_linesearch_steps=20), EM())
    """
    if isinstance(solver, type):
        return _of_class(solver, name)
    if isinstance(solver, Solver) or hasattr(solver, "step"):
        return solver
    if hasattr(solver, "init") and hasattr(solver, "update"):
        return Gradient(solver)
    if isinstance(solver, str):
        word = "".join(letter for letter in solver.lower() if letter.isalnum())
        if (make := {key.replace("_", ""): make for key, make in SOLVERS.items()}.get(word)) is not None:
            return make()
        near = difflib.get_close_matches(solver.lower(), SOLVERS, 1)
        meant = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(SOLVERS)}"
        if word in ("adam", "sgd"):
            meant = f"it needs a learning rate: jem.Gradient(optax.{word}(0.05))"
        raise ValueError(f"{name}: there is no {solver!r}; {meant}")
    if getattr(type(solver), "__name__", "") == "function" and "optax" in str(getattr(solver, "__module__", "")):
        raise TypeError(f"{name} is the function {solver.__name__} of optax; call it: optax.{solver.__name__}(0.05)")
    raise TypeError(f"{name} is {said_of(solver)}; pass a solver such as jem.EM(), or its name, 'em'")


def _of_class(kind: type, name: str) -> Any:
    if not issubclass(kind, Solver):
        raise TypeError(f"{name} is the class {kind.__name__}; pass a solver such as jem.EM(), or its name, 'em'")
    if issubclass(kind, Accelerated):
        return kind(EM())  # type: ignore[call-arg]
    try:
        return kind()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is the class {kind.__name__}, which needs arguments: {error}") from None
