"""Gradient ascent on the objective, with optax: all rows at once, or in batches; and L-BFGS."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core.arguments import as_key, said_of
from jaxem.core.coordinates import Coordinates, from_coordinates, logarithmic, to_coordinates
from jaxem.core.pytree import module, select, static
from jaxem.distributions.base import Statistics
from jaxem.solvers.base import Solver
from jaxem.solvers.em import expectation
from jaxem.solvers.minibatch import check_size, epoch
from jaxem.solvers.objective import gradient_of, objective, plain_step, value_and_gradient

FARTHEST = 4.0
"""Largest change of a logarithm in a line search, in nats."""


@module
class Gradient(Solver):
    """Gradient ascent by any optax transformation, on the unconstrained coordinates of the model.

    It minimises minus the objective per row, so a learning rate means the same for few rows and for many. It need
    not climb at every step: the stopping rule looks at the gain of 25 steps. Besides the gradient a transformation may
    ask for `value`, `grad` and `value_fn`, as line searches and Polyak's step do.

    With `batch_size` a step is one evaluation of all rows, which the stopping rule needs, and then a shuffled pass
    over them with one update for each batch.

    Args:
        transformation: an optax `GradientTransformation`, or anything with its `init` and `update` (`MultiSteps`).
            One of optax's own, made again by the same call, compiles nothing new; any other is another program: keep
            the object for further fits.
        batch_size: rows (or sequences) of an update; all of them if left out.
        key: a JAX random key for the order of the rows.

    Raises:
        ValueError: a batch size that is not a whole number above zero.

    >>> import jax, optax, jaxem as jem
    >>> x = jax.numpy.array([0.0, 2.0, 8.0, 12.0])
    >>> fit = jem.fit(jem.Poisson(1.0), x, jem.Gradient(optax.adam(0.05)))
    >>> fit.model.rate.round(1).item(), fit.status_name
    (5.5, 'converged')
    """

    transformation: Any = static()
    batch_size: int | None = static(default=None)
    key: Any = None
    monotone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (hasattr(self.transformation, "init") and hasattr(self.transformation, "update")):
            raise TypeError(
                f"Gradient: transformation is {said_of(self.transformation)}; pass one of optax, as optax.adam(0.05)"
            )
        if self.batch_size is not None:
            check_size("Gradient", self.batch_size, "no batch_size for all rows at once")
            object.__setattr__(self, "key", as_key(0 if self.key is None else self.key, "Gradient: key"))

    @property
    def check_every(self) -> int:
        """Steps between two looks of the stopping rule, because single ones need not climb."""
        return 5 if self.minibatch else 25

    @property
    def passes_per_step(self) -> int:
        """One evaluation, and in batches another pass to learn."""
        return 2 if self.minibatch else 1

    def total_passes(self, state: Any, calls: Array) -> Array:
        """Passes of the steps and of their line searches."""
        return super().total_passes(state, calls) + state[3]

    @property
    def minibatch(self) -> bool:
        """Whether a batch size was given."""
        return self.batch_size is not None

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """Initial state: of the transformation, number of steps, remaining gain, passes of line searches."""
        none = jnp.zeros((), jnp.int32)
        return _initial_state(self.transformation, to_coordinates(model)), none, _unknown(weight), none

    def remaining_gain(self, state: Any) -> Array:
        """Gain of an EM step: it stays large where the gains of a decaying learning rate vanish."""
        return state[2]

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One E-step, whose statistics give the gradient, and one update; in batches, one update for each of them."""
        inner, steps, _, searched = state
        log_likelihood, statistics = expectation(model, x, weight)
        promised, rows = plain_step(model, statistics, prior).gain, _rows(weight)

        def updated(carry: Any, x: Any, weight: Array, height: Array, gradient: Coordinates) -> Any:
            model, inner, searched = carry
            free = to_coordinates(model)
            slope = jax.tree.map(lambda leaf: leaf / rows, gradient)
            updates, inner = _update(
                self.transformation, inner, free, height / rows, slope, (model, x, weight, prior), rows
            )
            return _moved(model, free, updates), inner, searched + _linesearch_evaluations(inner)

        def learn(carry: Any, batch: Any, batch_weight: Array) -> Any:
            _, height, gradient = value_and_gradient(carry[0], batch, batch_weight, prior)
            return updated(carry, batch, batch_weight, height, gradient)

        initial = model, inner, searched
        if self.batch_size is None:
            height = log_likelihood + model.expected_log_prob(prior)
            model, inner, searched = updated(initial, x, weight, height, gradient_of(model, statistics, prior))
        else:
            key = jax.random.fold_in(self.key, steps)
            model, inner, searched = epoch(key, x, weight, self.batch_size, learn, initial)
        return model, (inner, steps + 1, promised, searched), log_likelihood


@module
class LBFGS(Solver):
    """Limited-memory BFGS of optax, with its zoom line search (Nocedal and Wright 2006, chapters 3 and 7).

    No logarithm (of a rate, of a ratio of probabilities) moves by more than a few nats at once: far out, the
    gradient of a probability has vanished, and nothing leads back. Where the line search gains nothing, or less
    than moving probabilities away from an edge would, it takes an EM step and clears its memory.

    Args:
        memory: number of steps remembered.
        max_linesearch_steps: largest number of evaluations in one line search.
        most: former name of `max_linesearch_steps`.

    >>> import jax, jaxem as jem
    >>> fit = jem.fit(jem.Poisson(1.0), jax.numpy.array([0.0, 2.0, 8.0, 12.0]), jem.LBFGS())
    >>> fit.model.rate.round(3).item(), fit.status_name
    (5.5, 'converged')
    """

    memory: int = static(default=10)
    max_linesearch_steps: int = static(default=20)
    most: int | None = dataclasses.field(default=None, repr=False, metadata={"static": True})
    monotone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.most is not None:
            warnings.warn("LBFGS(most=...) is now LBFGS(max_linesearch_steps=...)", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "max_linesearch_steps", self.most)
            object.__setattr__(self, "most", None)

    @property
    def check_every(self) -> int:
        """Several steps, because a single line search may gain nothing."""
        return 3

    def _transformation(self, logarithms: Coordinates) -> Any:
        import optax  # imported late, because it is slow to import

        return optax.lbfgs(
            memory_size=self.memory, linesearch=_bounded_linesearch(self.max_linesearch_steps, logarithms)
        )

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """Initial state: empty memory, remaining gain unknown."""
        return (
            _initial_state(self._transformation([]), to_coordinates(model)),
            jnp.zeros((), jnp.int32),
            _unknown(weight),
        )

    def remaining_gain(self, state: Any) -> Array:
        """Gain of an EM step."""
        return state[2]

    def total_passes(self, state: Any, calls: Array) -> Array:
        """Passes of the steps and of their line searches."""
        return state[1]

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One E-step for the gradient, and the evaluations of the line search."""
        free, rows = to_coordinates(model), _rows(weight)
        before, evaluations, _ = state
        log_likelihood, statistics = expectation(model, x, weight)
        height = (log_likelihood + model.expected_log_prob(prior)) / rows
        slope = jax.tree.map(lambda leaf: leaf / rows, gradient_of(model, statistics, prior))
        search = self._transformation(logarithmic(model))
        updates, inner = _update(search, before, free, height, slope, (model, x, weight, prior), rows)
        gained = -inner[-1].value - height
        plain = plain_step(model, statistics, prior)
        higher = (gained > 4 * float(jnp.finfo(height.dtype).eps) * jnp.abs(height)) & (gained * rows >= plain.lift)
        evaluations = evaluations + 1 + _linesearch_evaluations(inner)
        # A probability that underflows in an EM step can still come back.
        inside, forgotten = from_coordinates(to_coordinates(plain.model, model), model), _initial_state(search, free)
        ahead, inner = select(higher, (_moved(model, free, updates), inner), (inside, forgotten))
        return ahead, (inner, evaluations, plain.gain), log_likelihood


def _bounded_linesearch(most: int, logarithms: Coordinates) -> Any:
    """The zoom line search of optax, limited so that no logarithm moves by more than `FARTHEST`.

    Args:
        most: largest number of evaluations.
        logarithms: one for a coordinate that is a logarithm, zero for others.
    """
    import optax  # imported late, because it is slow to import

    def search(farthest: Any = None) -> Any:
        return optax.scale_by_zoom_linesearch(most, max_learning_rate=farthest, initial_guess_strategy="one")

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        moved = [jnp.max(jnp.abs(one) * is_log, initial=0) for one, is_log in zip(updates, logarithms, strict=True)]
        return search(FARTHEST / jnp.maximum(jnp.max(jnp.stack(moved)), 1e-30)).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(search().init, update)


def _initial_state(transformation: Any, free: Coordinates) -> Any:
    """Initial state of a transformation, with arrays as leaves."""
    with _ordinary_promotion():
        return jax.tree.map(jnp.asarray, transformation.init(free))


def _update(
    transformation: Any, state: Any, free: Coordinates, height: Array, slope: Coordinates, data: Any, rows: Array
) -> tuple[Coordinates, Any]:
    """One update by a transformation, given `height` and `slope` of the objective; and its state."""
    import optax  # imported late, because it is slow to import

    def cost(free: Any) -> Array:
        free = jax.tree.map(lambda leaf: leaf.astype(rows.dtype), free)
        return -objective(free, *data) / rows

    downhill = jax.tree.map(jnp.negative, slope)
    if isinstance(transformation, optax.GradientTransformation):
        transformation = optax.with_extra_args_support(transformation)
    with _ordinary_promotion():
        found = transformation.update(downhill, state, free, value=-height, grad=downhill, value_fn=cost)
    # With 64-bit types enabled, optax makes float64 of float32 in places.
    return jax.tree.map(lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), found, (free, state))


def _linesearch_evaluations(state: Any) -> Array:
    """Evaluations of the line search in the last update; zero for transformations without one."""
    import optax

    counts = optax.tree_utils.tree_get_all_with_path(state, "num_linesearch_steps")
    return sum((count.astype(jnp.int32) for _, count in counts), jnp.zeros((), jnp.int32))


def _unknown(weight: Array) -> Array:
    return jnp.full((), jnp.inf, weight.dtype)


def _moved(model: Any, free: Coordinates, updates: Coordinates) -> Any:
    return from_coordinates([a + b for a, b in zip(free, updates, strict=True)], model)


@contextlib.contextmanager
def _ordinary_promotion() -> Iterator[None]:
    """JAX's standard promotion rules, which optax relies on, whatever the user has configured."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _rows(weight: Array) -> Array:
    return jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
