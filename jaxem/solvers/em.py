"""Expectation-maximisation, one step at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.distributions.base import Labelled, Statistics, add, scale
from jaxem.pytree import module
from jaxem.sums import total, two_sum

CHUNK = 8_192
"""Rows in one pass of the E-step: more than this and the responsibilities are made, used and dropped chunk by chunk."""


@module
class EM:
    """Expectation-maximisation (Dempster, Laird and Rubin 1977).

    Each step takes expected statistics under the current model and maximises; with a prior it adds the prior's
    pseudo-statistics first, and climbs the log-likelihood plus the prior.

    >>> import jaxem as jem
    >>> jem.EM()
    EM()
    """

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> None:
        """EM carries nothing between its steps."""
        return None

    def step(
        self, model: Any, state: None, x: Any, weight: Float[Array, "n"], prior: Statistics
    ) -> tuple[Any, None, Array]:
        """One step: `(the next model, state, log-likelihood of the model that came in)`."""
        log_likelihood, statistics = expectation(model, x, weight)
        return model.m_step(add(statistics, prior)), state, log_likelihood


def expectation(model: Any, x: Any, weight: Float[Array, "n"]) -> tuple[Array, Statistics]:
    """The log-likelihood and the expected statistics of weighted rows: the E-step.

    Statistics add over rows, so a large x that has not been observed yet goes through in chunks, and nothing of size
    rows x components is kept.
    """
    n = len(weight)
    if not in_chunks(x, weight):
        return _expectation(model, x, weight)

    def chunk(i: Array, carry: Any) -> Any:
        (high, low), statistics = carry
        start = jnp.minimum(i * CHUNK, n - CHUNK)
        rows, row_weight = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, CHUNK), (x, weight))
        # The last chunk reaches back over rows that have been counted, so that all have one shape.
        row_weight = jnp.where(start + jnp.arange(CHUNK, dtype=start.dtype) >= i * CHUNK, row_weight, 0)
        part, more = _expectation(model, rows, row_weight)
        return two_sum(high, low, part), add(statistics, more)

    nothing = scale(model.floor(*jax.tree.map(lambda leaf: leaf[:1], (x, weight))), 0)
    zero = jnp.zeros((), weight.dtype)
    (high, low), statistics = jax.lax.fori_loop(0, -(-n // CHUNK), chunk, ((zero, zero), nothing))
    return high + low, statistics


def in_chunks(x: Any, weight: Array) -> bool:
    """Is x an array of rows, not observed yet, that is too large to go through in one piece?"""
    return len(weight) > CHUNK and isinstance(x.x if isinstance(x, Labelled) else x, jax.Array)


def _expectation(model: Any, x: Any, weight: Array) -> tuple[Array, Statistics]:
    log_prob, pullback = model.e_step(x)
    # A row of weight zero adds nothing even where it is impossible: 0 x -inf would be NaN.
    return total(jnp.where(weight > 0, weight * log_prob, 0)), pullback(weight)
