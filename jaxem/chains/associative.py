"""Forward-backward by associative scans: a number of turns that is the logarithm of the number of steps.

Each step is a matrix; products of matrices may be taken in any grouping (Sarkka and Garcia-Fernandez 2021). Forwards
they are matrices of log-potentials, each with a scale of its own; backwards they are conditional probabilities. It
takes K times the work of a scan, and holds a matrix for each step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.chains.chain import Chain, either
from jaxem.core.extended_float import finite_or_zero
from jaxem.core.linalg import lead
from jaxem.core.semirings import log_sum


class Filtered(NamedTuple):
    """Log-probabilities `[T, K, S]` of the states given the observations up to each step, and the log-normaliser."""

    log_states: Array
    log_mass: Array


class _Move(NamedTuple):
    """exp(scale) x exp(log_matrix), the largest entry of the latter one: `[T, K, K, S]` and `[T, S]`."""

    log_matrix: Array
    scale: Array


def _rescaled(log_matrix: Array, scale: Array) -> _Move:
    top = finite_or_zero(jnp.max(log_matrix, axis=(-3, -2)))
    return _Move(log_matrix - top[..., None, None, :], scale + top)


def _log_product(a: Array, b: Array) -> Array:
    """log sum_j exp(a_ij + b_jk), state by state, so that nothing of size K^3 is held."""
    terms = [a[..., :, j, None, :] + b[..., None, j, :, :] for j in range(a.shape[-2])]
    top = terms[0]
    for term in terms[1:]:
        top = jnp.maximum(top, term)
    shift = finite_or_zero(top)
    return jnp.log(sum(jnp.exp(term - shift) for term in terms)) + shift


def _compose(a: _Move, b: _Move) -> _Move:
    return _rescaled(_log_product(a.log_matrix, b.log_matrix), a.scale + b.scale)


def _moves(chain: Chain) -> Float[Array, "t k k s"]:
    """Log-potentials of the move into each step after the first."""
    _, k, s = chain.log_likelihood.shape
    return jnp.broadcast_to(lead(chain.log_transition, 4), (chain.steps - 1, k, k, s))


def _flags(chain: Chain) -> tuple[Array | None, Array | None]:
    """Flags of the steps after the first that start a sequence, and of padding, ready to meet `[T - 1, K, K, S]`."""
    over = None if chain.there is None else ~chain.there
    return tuple(None if flag is None else flag[1:, None, None] for flag in (chain.start, over))  # type: ignore[return-value]


def forward(chain: Chain) -> Filtered:
    """Filtered states at every step."""
    evidence, k = chain.log_likelihood, chain.states
    starts, over = _flags(chain)
    moves = _moves(chain)
    if starts is not None:
        moves = jnp.where(starts, chain.initial[None, None], moves)
    moves = moves + evidence[1:, None]
    if over is not None:
        stay = jnp.where(jnp.eye(k, dtype=bool), 0.0, -jnp.inf).astype(moves.dtype)
        moves = jnp.where(over, stay[None, :, :, None], moves)
    begin = chain.initial + evidence[0]
    so_far = jax.lax.associative_scan(_compose, _rescaled(moves, jnp.zeros_like(moves[:, 0, 0])))
    log_states = log_sum(begin[None, :, None] + so_far.log_matrix, 1)
    log_states = jnp.concatenate([begin[None], log_states])
    total = log_sum(log_states, 1)
    scale = so_far.scale[-1] if chain.steps > 1 else jnp.zeros_like(total[0])
    return Filtered(log_states - finite_or_zero(total)[:, None], total[-1] + scale)


def log_mass(filtered: Filtered) -> Float[Array, "s"]:
    """The log-normaliser, in nats."""
    return filtered.log_mass


def smoothed(chain: Chain, filtered: Filtered) -> tuple[Array, Array]:
    """Posterior marginals and expected transitions."""
    states = jnp.exp(filtered.log_states)
    ends = either(*_flags(chain))
    into = filtered.log_states[:-1, :, None] + _moves(chain)
    predicted = log_sum(into, 1)
    # The probability of the state now (first axis) given that of the next step (second).
    back = jnp.exp(into - finite_or_zero(predicted)[:, None])
    alone = states[:-1, :, None] + jnp.zeros_like(back)
    conditional = back if ends is None else jnp.where(ends, alone, back)

    def combined(later: Any, earlier: Any) -> Any:
        return sum(earlier[..., :, j, None, :] * later[..., None, j, :, :] for j in range(later.shape[-2]))

    from_end = jax.lax.associative_scan(combined, conditional, reverse=True)
    marginals = jnp.concatenate([jnp.sum(from_end * states[-1][None, None], axis=2), states[-1:]])
    marginals = marginals / jnp.where((total := marginals.sum(1, keepdims=True)) > 0, total, 1)
    pairs = back * marginals[1:, None]
    if ends is not None:
        pairs = jnp.where(ends, 0, pairs)
    return marginals, pairs if chain.log_transition.ndim == 4 else jnp.sum(pairs, axis=0)


def filtered(chain: Chain, filtered: Filtered) -> Float[Array, "t k s"]:
    """Probabilities of the filtered states."""
    return jnp.exp(filtered.log_states)
