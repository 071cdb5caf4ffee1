"""Chains of log-potentials as plain functions: usable without any model, in any JAX program.

All take `log_initial [K]`, `log_transition [K, K]` (from the first axis to the second) or `[T - 1, K, K]`, and
`log_likelihood [T, K]` of the observation at each step. They need not be normalised. Everything can be jitted and
differentiated; under `vmap` the batch goes through one loop, side by side.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxem.chains import normalizer
from jaxem.chains.best_path import best_path
from jaxem.chains.chain import Chain
from jaxem.chains.methods import METHODS
from jaxem.chains.scan_exact import draws, forward
from jaxem.core.arguments import as_key, whole
from jaxem.core.pytree import module
from jaxem.data.arrays import float_type, numbers


@module
class Posterior:
    """Posterior of the hidden states given all observations.

    Attributes:
        log_normalizer: in nats.
        marginals: `[T, K]`, probability of each state at each step; zero beyond `length`.
        transitions: `[K, K]` expected transitions, or `[T - 1, K, K]` for each step.
    """

    log_normalizer: Float[Array, ""]
    marginals: Float[Array, "t k"]
    transitions: Array


def log_normalizer(
    log_initial: Any,
    log_transition: Any,
    log_likelihood: Any,
    length: Any = None,
    *,
    mask: Any = None,
    reset: Any = None,
    method: str = "auto",
) -> Float[Array, ""]:
    """log of the sum over all K^T paths of exp(the potentials on the path).

    Its derivative is a rule, forward-backward (Baum et al. 1970): forward and reverse mode, and Hessians.
    Exact whatever underflows: each state has a binary exponent of its own.

    Args:
        log_initial: `[K]`.
        log_transition: `[K, K]`, or `[T - 1, K, K]`.
        log_likelihood: `[T, K]`, in nats.
        length: number of steps; later entries are ignored, whatever they hold.
        mask: `[T]` bool, False where nothing is observed.
        reset: `[T]` bool, True where a new sequence starts: concatenated sequences give the sum of their normalisers.
        method: `"scan"`, `"blocked"`, `"associative"`, or `"auto"`, which chooses by the numbers of
            steps, states and sequences, and the machine. The result is the same. `"kernel"`, for up to 8
            states, is one program for a GPU (elsewhere it is interpreted, slowly); not measured yet, so never chosen.

    Returns:
        A number; -inf, with zero gradient, if no path is possible.

    Raises:
        ValueError: shapes that do not match (the axis is named), or an unknown method.

    >>> import jax.numpy as jnp
    >>> half = jnp.log(jnp.full((2, 2), 0.5))
    >>> log_normalizer(half[0], half, jnp.zeros((3, 2))).round(6).item()
    0.0
    """
    chain = _chain(log_initial, log_transition, log_likelihood, length, mask, reset, method)
    return normalizer.log_normalizer(chain)[0]


def forward_backward(
    log_initial: Any,
    log_transition: Any,
    log_likelihood: Any,
    length: Any = None,
    *,
    mask: Any = None,
    reset: Any = None,
    method: str = "auto",
    per_step: bool = False,
) -> Posterior:
    """Posterior marginals and expected transitions (Baum et al. 1970; Rauch, Tung and Striebel 1965).

    Args:
        log_initial, log_transition, log_likelihood, length, mask, reset, method: as in `log_normalizer`.
        per_step: transitions into each step, `[T - 1, K, K]`, instead of their sum.

    Raises:
        ValueError: shapes that do not match; the axis is named.

    >>> import jax.numpy as jnp
    >>> stay = jnp.log(jnp.eye(2))
    >>> seen = jnp.array([[0.0, -1.0], [0.0, -1.0]])
    >>> forward_backward(jnp.log(jnp.full(2, 0.5)), stay, seen).marginals.round(2).tolist()
    [[0.88, 0.12], [0.88, 0.12]]
    """
    chain = _chain(log_initial, log_transition, log_likelihood, length, mask, reset, method, per_step)
    value, expected = normalizer.expectations(chain)
    transitions = expected.transition[..., 0]
    if not per_step and transitions.ndim == 3:
        transitions = jnp.sum(transitions, axis=0)
    return Posterior(value[0], expected.marginals[..., 0], transitions)


def filter(
    log_initial: Any,
    log_transition: Any,
    log_likelihood: Any,
    length: Any = None,
    *,
    mask: Any = None,
    reset: Any = None,
    method: str = "auto",
) -> tuple[Float[Array, ""], Float[Array, "t k"]]:
    """The log-normaliser, and the probability of each state at each step given the observations up to that step.

    Args:
        log_initial, log_transition, log_likelihood, length, mask, reset, method: as in `log_normalizer`.

    Raises:
        ValueError: shapes that do not match; the axis is named.

    >>> import jax.numpy as jnp
    >>> value, filtered = filter(jnp.log(jnp.full(2, 0.5)), jnp.log(jnp.eye(2)), jnp.array([[0.0, -1.0], [0.0, 1.0]]))
    >>> filtered.round(3).tolist()
    [[0.731, 0.269], [0.5, 0.5]]
    """
    chain = _chain(log_initial, log_transition, log_likelihood, length, mask, reset, method)
    value, filtered = normalizer.filtered(chain)
    return value[0], filtered[..., 0]


def viterbi(
    log_initial: Any,
    log_transition: Any,
    log_likelihood: Any,
    length: Any = None,
    *,
    mask: Any = None,
    reset: Any = None,
) -> tuple[Int[Array, "t"], Float[Array, ""]]:
    """The most probable path, and its log-potential; of equal paths the first (Viterbi 1967).

    Args:
        log_initial, log_transition, log_likelihood, length, mask, reset: as in `log_normalizer`.

    Returns:
        `(path [T], score)`; beyond `length` the path is -1.

    Raises:
        ValueError: shapes that do not match; the axis is named.

    >>> import jax.numpy as jnp
    >>> path, score = viterbi(jnp.log(jnp.full(2, 0.5)), jnp.log(jnp.eye(2)), jnp.array([[0.0, -1.0], [0.0, 2.0]]))
    >>> path.tolist(), score.round(4).item()
    ([1, 1], 0.3069)
    """
    chain = _chain(log_initial, log_transition, log_likelihood, length, mask, reset)
    score, path = best_path(chain)
    return _within(path[:, 0], chain), score[0]


def sample_posterior(
    key: Any,
    log_initial: Any,
    log_transition: Any,
    log_likelihood: Any,
    n: int = 1,
    length: Any = None,
    *,
    mask: Any = None,
    reset: Any = None,
) -> Int[Array, "n t"]:
    """`n` paths from the posterior, by forward filtering and backward sampling (Carter and Kohn 1994).

    Args:
        key: a JAX random key, or a whole number as its seed.
        log_initial, log_transition, log_likelihood, length, mask, reset: as in `log_normalizer`.
        n: number of paths.

    Returns:
        `[n, T]`; beyond `length` -1.

    Raises:
        ValueError: shapes that do not match; the axis is named.

    >>> import jax, jax.numpy as jnp
    >>> stay = jnp.log(jnp.eye(2))
    >>> sample_posterior(jax.random.key(0), jnp.array([0.0, -jnp.inf]), stay, jnp.zeros((3, 2)), 2).tolist()
    [[0, 0, 0], [0, 0, 0]]
    """
    chain = _chain(log_initial, log_transition, log_likelihood, length, mask, reset)
    paths = draws(as_key(key), chain, forward(chain), whole(n, "n"))
    return jax.vmap(lambda path: _within(path, chain))(paths[:, 0].T)


def _within(path: Int[Array, "t"], chain: Chain) -> Int[Array, "t"]:
    return path if chain.there is None else jnp.where(chain.there[:, 0], path, -1)


def _chain(
    log_initial: Any,
    log_transition: Any,
    log_likelihood: Any,
    length: Any,
    mask: Any,
    reset: Any,
    method: str = "auto",
    per_step: bool = False,
) -> Chain:
    """The arguments as a chain of one sequence.

    Raises:
        ValueError: shapes that do not match (the axis is named), or an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    named = {"log_initial": log_initial, "log_transition": log_transition, "log_likelihood": log_likelihood}
    for name, value in named.items():
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array; pass its data, and mask= to say which steps were observed")
    *given, seen = (numbers(value, name) for name, value in named.items())
    if seen.ndim != 2 or 0 in seen.shape:
        raise ValueError(f"log_likelihood has shape {seen.shape}; it must be [steps, states]")
    steps, states = seen.shape
    dtype = float_type(seen.dtype)
    if given[0].shape != (states,):
        raise ValueError(f"log_initial has shape {given[0].shape}; with {states} states it must be ({states},)")
    if given[1].shape not in ((states, states), (steps - 1, states, states)):
        raise ValueError(
            f"log_transition has shape {given[1].shape}; with {states} states and {steps} steps it must be "
            f"({states}, {states}) or ({steps - 1}, {states}, {states})"
        )
    for name, value in (("mask", mask), ("reset", reset)):
        if value is not None and np.shape(value) != (steps,):
            raise ValueError(f"{name} has shape {np.shape(value)}; with {steps} steps it must be ({steps},)")
    if length is not None:
        if np.shape(length) != ():
            raise ValueError(f"length has shape {np.shape(length)}; it must be one number (use vmap for more)")
        if not isinstance(length, Tracer) and not 1 <= int(length) <= steps:
            raise ValueError(f"length is {length}; with {steps} steps in log_likelihood it must be from 1 to {steps}")
        length = jnp.asarray(length, jnp.int32)[None]
    initial, transition = (jnp.asarray(value, dtype)[..., None] for value in given)
    if per_step and transition.ndim == 3:
        transition = jnp.broadcast_to(transition[None], (steps - 1, *transition.shape))
    seen = jnp.asarray(seen, dtype)
    if mask is not None:
        seen = jnp.where(jnp.asarray(mask, bool)[:, None], seen, 0)
    start = None if reset is None else jnp.asarray(reset, bool)[:, None]
    return Chain(initial, transition, seen[..., None], length, start, method)
