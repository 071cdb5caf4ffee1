"""Gradient ascent on the same log-likelihood, with optax."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.coordinates import Coordinates, coordinates, from_coordinates
from jaxem.distributions.base import Statistics
from jaxem.pytree import module, static
from jaxem.solvers.base import Solver
from jaxem.solvers.objective import objective, value_and_gradient


@module
class Gradient(Solver):
    """Any optax transformation, on the unconstrained coordinates of the model.

    It minimises minus the objective for each row, so a learning rate means the same for few rows and for many. It need
    not climb at every step: the stopping rule looks at what 25 of them gain.

    Args:
        transformation: an optax `GradientTransformation`. Keep the object for further fits: another one, made by the
            same call, is another program to compile.

    >>> import jax, optax, jaxem as jem
    >>> x = jax.numpy.array([0.0, 2.0, 8.0, 12.0])
    >>> fit = jem.fit(jem.Poisson(1.0), x, jem.Gradient(optax.adam(0.05)))
    >>> fit.model.rate.round(1).item(), fit.words
    (5.5, 'converged')
    """

    transformation: Any = static()
    monotone: ClassVar[bool] = False
    window: ClassVar[int] = 25

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """The state of the transformation."""
        with _ordinary_promotion():
            return self.transformation.init(coordinates(model))

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One E-step, whose statistics give the gradient, and one update."""
        log_likelihood, _, gradient = value_and_gradient(model, x, weight, prior)
        free, rows = coordinates(model), _rows(weight)
        downhill = jax.tree.map(lambda leaf: -leaf / rows, gradient)
        with _ordinary_promotion():
            updates, state = self.transformation.update(downhill, state, free)
        return _moved(model, free, updates), state, log_likelihood


@module
class LBFGS(Solver):
    """Limited-memory BFGS of optax, with its zoom line search (Nocedal and Wright 2006, chapters 3 and 7).

    Args:
        memory: how many steps it remembers.
        most: evaluations in one line search at most.

    >>> import jax, jaxem as jem
    >>> fit = jem.fit(jem.Poisson(1.0), jax.numpy.array([0.0, 2.0, 8.0, 12.0]), jem.LBFGS())
    >>> fit.model.rate.round(3).item(), fit.words
    (5.5, 'converged')
    """

    memory: int = static(default=10)
    most: int = static(default=20)
    monotone: ClassVar[bool] = False
    window: ClassVar[int] = 3

    @property
    def _transformation(self) -> Any:
        import optax  # which takes its time, and who never asks for it need not wait

        search = optax.scale_by_zoom_linesearch(max_linesearch_steps=self.most, initial_guess_strategy="one")
        return optax.lbfgs(memory_size=self.memory, linesearch=search)

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """Nothing remembered yet, nothing evaluated."""
        with _ordinary_promotion():
            return self._transformation.init(coordinates(model)), jnp.zeros((), jnp.int32)

    def spent(self, state: Any, calls: Array) -> Array:
        """Line searches take as many evaluations as they need."""
        return state[1]

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One E-step for the gradient, and those of the line search."""
        free, rows = coordinates(model), _rows(weight)
        inner, evaluations = state
        log_likelihood, value, gradient = value_and_gradient(model, x, weight, prior)

        def cost(free: Any) -> Array:
            return -objective(free, model, x, weight, prior) / rows

        downhill = jax.tree.map(lambda leaf: -leaf / rows, gradient)
        with _ordinary_promotion():
            updates, inner = self._transformation.update(
                downhill, inner, free, value=-value / rows, grad=downhill, value_fn=cost
            )
        evaluations = evaluations + 1 + inner[-1].info.num_linesearch_steps.astype(jnp.int32)
        return _moved(model, free, updates), (inner, evaluations), log_likelihood


def _moved(model: Any, free: Coordinates, updates: Coordinates) -> Any:
    return from_coordinates([a + b for a, b in zip(free, updates, strict=True)], model)


@contextlib.contextmanager
def _ordinary_promotion() -> Iterator[None]:
    """Optax is written for JAX's own rules of promotion; a person may have switched on stricter ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _rows(weight: Array) -> Array:
    return jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
