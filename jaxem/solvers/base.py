"""The interface of solvers: a value with two verbs. The loops around it exist once."""

from __future__ import annotations

import warnings
from operator import attrgetter
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxem.core.semirings import log_sum
from jaxem.distributions.base import Statistics

FORMER = {
    "left": "remaining_gain",
    "window": "check_every",
    "passes": "passes_per_step",
    "spent": "total_passes",
    "batches": "minibatch",
}
"""Former names of the protocol, and those of now."""


def _renamed(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


class Solver:
    """Base class of solvers: how to take one step of a fit.

    What you write: a frozen pytree with

    - `init(model, x, weight, prior) -> state`;
    - `step(model, state, x, weight, prior) -> (the next model, state, log-likelihood of the model that came in)`.

    What you get: `fit` and `fit_many`, with their stopping rule, statuses and lanes; and `fit_stream`, if a step looks
    at its rows by one call of `solvers.em.expectation` and no other way.

    Attributes:
        monotone: whether the objective never falls. If it may, a fall is no failure.
        smooth: whether gains shrink smoothly, step by step, and `remaining_gain` is the gain of a step. Then the
            stopping rule needs no differences of log-likelihoods, of which float32 has few digits.
        check_every: steps between two looks of the stopping rule, if not smooth.
        passes_per_step: over the data.
        over: the semiring, the sum over hidden variables whose value is maximised.
        minibatch: whether it takes the rows in batches. Then x comes as it was passed, rows first.

    >>> import jax, jaxem as jem
    >>> from jaxem.core.pytree import module
    >>> @module
    ... class Halfway(jem.Solver):
    ...     def step(self, model, state, x, weight, prior):
    ...         new, state, log_likelihood = jem.EM().step(model, state, x, weight, prior)
    ...         return jem.Poisson((model.rate + new.rate) / 2), state, log_likelihood
    >>> jem.fit(jem.Poisson(1.0), jax.numpy.array([1.0, 3.0]), Halfway()).status_name
    'converged'
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Former names of the protocol go on working, and say so."""
        super().__init_subclass__(**kwargs)
        for old, new in FORMER.items():
            if old in vars(cls) or old in vars(cls).get("__annotations__", ()):
                _renamed(f"{cls.__name__}.{old}", new)
                setattr(cls, new, property(attrgetter(old)))

    def __getattr__(self, name: str) -> Any:
        if name not in FORMER:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        _renamed(f"{type(self).__name__}.{name}", FORMER[name])
        return getattr(self, FORMER[name])

    monotone: ClassVar[bool] = True
    smooth: ClassVar[bool] = False
    over: ClassVar[Any] = staticmethod(log_sum)

    @property
    def check_every(self) -> int:
        """Steps between two looks of the stopping rule: 1."""
        return 1

    @property
    def passes_per_step(self) -> int:
        """Passes over the data in a step: 1."""
        return 1

    @property
    def minibatch(self) -> bool:
        """Whether rows are taken in batches: no."""
        return False

    @property
    def warmup(self) -> int:
        """Steps before the first look of the stopping rule."""
        return 0

    def total_passes(self, state: Any, calls: Array) -> Array:
        """Passes over the data in `calls` calls of `step`, the last of which returned `state`."""
        return self.passes_per_step * calls

    def remaining_gain(self, state: Any) -> Array | float:
        """Remaining gain, in nats, from the model that the last step started from.

        The fit goes on while it is above the tolerance. For a smooth solver it is the gain of the step itself, for
        others usually that of an EM step (`solvers.em.gain`); zero if unknown.
        """
        return 0.0

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """Initial state of the solver.

        Raises:
            ValueError: this solver cannot fit this model.
        """
        return None

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One step: `(the next model, state, log-likelihood of the model that came in)`."""
        raise NotImplementedError
