"""Online EM: expected statistics updated batch by batch."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxem.core.arguments import as_key
from jaxem.core.pytree import module, static
from jaxem.distributions.base import Statistics, add, scale
from jaxem.solvers.base import Solver
from jaxem.solvers.em import expectation
from jaxem.solvers.minibatch import check_size, epoch
from jaxem.solvers.objective import plain_step


@module
class OnlineEM(Solver):
    """Online EM: stochastic approximation of the expected statistics (Cappe and Moulines 2009).

    After batch t, with g = t^-decay,

        statistics = (1 - g) statistics + g (those of the batch, times the number of batches)

    followed by an M-step. A step evaluates all rows, for the stopping rule, and then makes a shuffled pass over them.

    Args:
        batch_size: rows (or sequences) of a batch.
        decay: in (0.5, 1], for convergence; smaller forgets faster. An array, so a change compiles nothing.
        key: a JAX random key for the order of the rows.

    Raises:
        ValueError: no batch size, or a decay out of range.

    >>> import jax, jaxem as jem
    >>> fit = jem.fit(jem.Poisson(1.0), jax.numpy.array([0.0, 2.0, 8.0, 12.0]), jem.OnlineEM(2), max_steps=50)
    >>> bool(abs(fit.model.rate - 5.5) < 0.5)
    True
    """

    batch_size: int = static(default=None)
    decay: Any = 0.6
    key: Any = None
    monotone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_size("OnlineEM", self.batch_size, "EM() for all rows at once")
        if not isinstance(self.decay, Tracer) and not 0.5 < self.decay <= 1:
            raise ValueError(f"OnlineEM: decay is {self.decay}; it must be above 0.5 and at most 1")
        object.__setattr__(self, "decay", jnp.asarray(self.decay, jnp.result_type(float)))
        object.__setattr__(self, "key", as_key(0 if self.key is None else self.key, "OnlineEM: key"))

    @property
    def minibatch(self) -> bool:
        """Whether rows are taken in batches: yes."""
        return True

    @property
    def check_every(self) -> int:
        """Several passes, because single ones need not climb."""
        return 5

    @property
    def passes_per_step(self) -> int:
        """One evaluation, and one pass to learn."""
        return 2

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Any:
        """Initial state: statistics that the first batch replaces, numbers of batches and passes, remaining gain."""
        none = jnp.zeros((), jnp.int32)
        return scale(prior, 0), none, none, jnp.full((), jnp.inf, weight.dtype)

    def remaining_gain(self, state: Any) -> Array:
        """Gain of an EM step."""
        return state[3]

    def step(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """Log-likelihood of all rows, and then a pass in batches."""
        log_likelihood, exact = expectation(model, x, weight)
        promised = plain_step(model, exact, prior).gain
        model, (statistics, seen, passes, _) = self.learned(model, state, x, weight, prior)
        return model, (statistics, seen, passes, promised), log_likelihood

    def learned(self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics) -> tuple[Any, Any]:
        """`(model, state)` after a shuffled pass over the rows, with an update for each batch."""
        statistics, seen, passes, promised = state

        def learn(carry: Any, batch: Any, batch_weight: Array) -> Any:
            model, statistics, seen = carry
            share = (seen + 1).astype(weight.dtype) ** -self.decay.astype(weight.dtype)
            new = expectation(model, batch, batch_weight)[1]
            # The newer first: moments are kept about its reference, which is near the data.
            statistics = add(scale(new, share), scale(statistics, 1 - share))
            return model.m_step(add(statistics, prior)), statistics, seen + 1

        key = jax.random.fold_in(self.key, passes)
        model, statistics, seen = epoch(key, x, weight, self.batch_size, learn, (model, statistics, seen))
        return model, (statistics, seen, passes + 1, promised)
