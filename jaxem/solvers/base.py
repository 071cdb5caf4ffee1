"""What every solver is: a value with two verbs. The loops around it exist once."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxem.core.semirings import log_sum
from jaxem.distributions.base import Statistics


class Solver:
    """How to climb.

    What you write: a frozen pytree with

    - `init(model, x, weight, prior) -> state`;
    - `step(model, state, x, weight, prior) -> (the next model, state, log-likelihood of the model that came in)`.

    What you get: `fit` and `fit_many`, with their stopping rule, statuses and lanes; and `fit_stream`, if a step looks
    at its rows by one call of `solvers.em.expectation` and no other way.

    Attributes:
        monotone: does the objective never fall? If it need not, a fall is no failure.
        smooth: do its gains shrink smoothly, step by step, and does `left` say what a step gains? Then the stopping
            rule needs no differences of log-likelihoods, of which float32 has few digits.
        window: steps between two looks of the stopping rule, if not.
        passes: over the data, of a step.
        over: the sum over what is hidden whose value it climbs.
        batches: does it take the rows in batches? Then x comes as it was passed, rows first.

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

    monotone: ClassVar[bool] = True
    smooth: ClassVar[bool] = False
    over: ClassVar[Any] = staticmethod(log_sum)

    @property
    def window(self) -> int:
        """Every step."""
        return 1

    @property
    def passes(self) -> int:
        """One."""
        return 1

    @property
    def batches(self) -> bool:
        """No: all rows at once."""
        return False

    @property
    def warmup(self) -> int:
        """Steps before the first look."""
        return 0

    def spent(self, state: Any, calls: Array) -> Array:
        """Passes over the data in so many calls of `step`, the last of which left this state."""
        return self.passes * calls

    def left(self, state: Any) -> Array | float:
        """What the last step knows to be left to gain from the model that came in, in nats.

        The fit goes on while that is above the tolerance. Of a smooth solver it is what the step itself gains, of
        others as a rule what a plain EM step would (`solvers.em.gain`); zero if it does not know.
        """
        return 0.0

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """What is carried from step to step.

        Raises:
            ValueError: this solver cannot fit this model.
        """
        return None

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """`(the next model, state, log-likelihood of the model that came in)`."""
        raise NotImplementedError
