"""The result of a fit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxem.core.pytree import module
from jaxem.fitting.status import Status


@module
class Fit:
    """A fitted model and how the fit went. From `fit_many` every field has a leading axis, one entry a problem.

    Attributes:
        model: the fitted model; `log_likelihood` is that of this very model.
        log_likelihood: of the data alone, in nats, summed over weighted rows.
        objective: the maximised sum: `log_likelihood` plus the log-density of the prior, up to a constant.
        steps: of the solver (M-steps, for EM) that led to the model.
        converged: whether the stopping rule ended it.
        status: a `Status` code; see `status_name` and `status_message`.
        passes: over the data: one a step for EM, three for SQUAREM, as many as its line searches take for LBFGS.
        trace: `[max_steps + 1]` the objective before each step, NaN beyond the last (-inf where
            `jax_debug_nans` refuses NaN); None from `fit_many`.
    """

    model: Any
    log_likelihood: Float[Array, "*b"]
    objective: Float[Array, "*b"]
    steps: Int[Array, "*b"]
    converged: Bool[Array, "*b"]
    status: Int[Array, "*b"]
    passes: Array
    trace: Float[Array, "t"] | None

    @property
    def status_name(self) -> Any:
        """Name of the status, or an array of names."""
        names = np.array([Status(int(code)).name for code in np.ravel(self.status)], dtype=object)
        return names[0] if np.ndim(self.status) == 0 else names.reshape(np.shape(self.status))

    @property
    def status_message(self) -> Any:
        """Status as a sentence, or a list of sentences."""
        sentences = [Status(int(code)).sentence for code in np.ravel(self.status)]
        return sentences[0] if np.ndim(self.status) == 0 else sentences

    @property
    def words(self) -> Any:
        """Former name of `status_name`."""
        return self._renamed("words", "status_name")

    @property
    def reason(self) -> Any:
        """Former name of `status_message`."""
        return self._renamed("reason", "status_message")

    def _renamed(self, old: str, new: str) -> Any:
        warnings.warn(f"Fit.{old} is now Fit.{new}", DeprecationWarning, stacklevel=3)
        return getattr(self, new)
