"""A linear Gaussian state space as plain functions of one sequence: what a user calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxem.chains.kalman.filtering import filtered
from jaxem.chains.kalman.sampling import centred, draws, without
from jaxem.chains.kalman.score import log_normalizer
from jaxem.chains.kalman.smoothing import smoothed
from jaxem.chains.kalman.start import started
from jaxem.chains.kalman.system import Observed, System, observed
from jaxem.core.pytree import module


@module
class Smoothed:
    """The states given data: means and covariances.

    Attributes:
        log_likelihood: in nats.
        mean: `[T, H]`; zero beyond the length.
        covariance: `[T, H, H]`; zero beyond the length, infinite where a diffuse start is not told by the data.
    """

    log_likelihood: Float[Array, ""]
    mean: Float[Array, "t h"]
    covariance: Float[Array, "t h h"]


def log_likelihood(system: System, x: Any, length: Any = None, *, mask: Any = None) -> Float[Array, ""]:
    """The log-likelihood log p(x_1 .. x_T), by the Kalman filter (Kalman 1960), in nats.

    Its gradient, by the parameters and by x, is the smoother, as a derivative rule: forward and reverse mode, and
    Hessians.

    Args:
        system: the parameters.
        x: `[T, D]`, or `[T]` if D is one; a cell that is NaN was not seen.
        length: how many steps are there; the others are ignored, whatever they hold.
        mask: `[T]` bool, False where nothing was observed.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> level = System(jnp.zeros(1), one, one, one, one, jnp.zeros(1), one)
    >>> log_likelihood(level, [0.0, 1.0]).round(4).item()
    -2.8426
    """
    return log_normalizer(system, _one(system, x, length, mask))[0]


def filter(system: System, x: Any, length: Any = None, *, mask: Any = None) -> Smoothed:
    """The state at each step given what was seen up to that step.

    Args:
        system, x, length, mask: as in `log_likelihood`.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> level = System(jnp.zeros(1), one, one, one, one, jnp.zeros(1), one)
    >>> filter(level, [0.0, 1.0]).mean.round(4).tolist()
    [[0.0], [0.6]]
    """
    value, mean, covariance = filtered(system, _one(system, x, length, mask))
    return Smoothed(value[0], mean[..., 0], covariance[..., 0])


def smoother(system: System, x: Any, length: Any = None, *, mask: Any = None) -> Smoothed:
    """The state at each step given the whole sequence (Rauch, Tung and Striebel 1965; de Jong 1989).

    Args:
        system, x, length, mask: as in `log_likelihood`.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> level = System(jnp.zeros(1), one, one, one, one, jnp.zeros(1), one)
    >>> smoother(level, [0.0, 1.0]).mean.round(4).tolist()
    [[0.2], [0.6]]
    """
    value, mean, covariance, _ = smoothed(system, _one(system, x, length, mask))
    return Smoothed(value[0], mean[..., 0], covariance[..., 0])


def sample_posterior(
    key: Array, system: System, x: Any, n: int = 1, length: Any = None, *, mask: Any = None
) -> Float[Array, "n t h"]:
    """`n` paths of the state drawn given the whole sequence (Durbin and Koopman 2002).

    A path and data drawn from the model, moved by what the smoother says of the difference of the data.

    Args:
        key: a JAX random key.
        system, x, length, mask: as in `log_likelihood`.
        n: how many paths.

    Returns:
        `[n, T, H]`; zero beyond the length.

    Raises:
        ValueError: shapes that do not match.

    >>> import jax, jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> still = System(jnp.zeros(1), one, one, 0 * one, one, jnp.zeros(1), 1e-12 * one)
    >>> sample_posterior(jax.random.key(0), still, [1.0, jnp.nan]).round(4).tolist()
    [[[1.0], [1.0]]]
    """
    seen, system = _one(system, x, length, mask), started(system)
    states, drawn = draws(key, system, n, len(seen.values))
    moved = smoothed(centred(system), without(seen, drawn))[1]
    there = jnp.arange(len(moved), dtype=jnp.int32) < seen.length
    return jnp.moveaxis(jnp.where(there[:, None, None], states + moved, 0), -1, 0)


def _one(system: System, x: Any, length: Any, mask: Any) -> Observed:
    """The arguments of a user, as one sequence.

    Raises:
        ValueError: shapes that do not match.
    """
    size = system.emission.shape[-2]
    x = jnp.asarray(x if isinstance(x, jax.Array) else np.asarray(x), system.emission.dtype)
    x = x[:, None] if x.ndim == 1 and size == 1 else x
    if x.ndim != 2 or x.shape[1] != size or not len(x):
        raise ValueError(f"x has shape {x.shape}; with this emission it must be [steps, {size}]")
    steps = len(x)
    if mask is not None and np.shape(mask) != (steps,):
        raise ValueError(f"mask has shape {np.shape(mask)}; with {steps} steps it must be ({steps},)")
    if length is not None:
        if np.shape(length) != ():
            raise ValueError(f"length has shape {np.shape(length)}; it must be one number (use vmap for more)")
        if not isinstance(length, Tracer) and not 1 <= int(length) <= steps:
            raise ValueError(f"length is {length}; with {steps} steps in x it must be from 1 to {steps}")
    seen = jnp.ones(steps, bool) if mask is None else jnp.asarray(mask, bool)
    return observed(x[None], seen[None], jnp.asarray(steps if length is None else length, jnp.int32)[None])
