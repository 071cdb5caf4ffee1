"""Certainty of a classification: which component each row belongs to, and how surely."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.core.linalg import HIGHEST
from jaxem.core.pytree import module
from jaxem.data.prepare import prepare
from jaxem.distributions.base import check_model
from jaxem.latent.base import Latent


@module
class Classification:
    """Certainty with which rows (steps of sequences) belong to components.

    Attributes:
        entropy: `[n]` (`[S, T]`) of the posterior of each row, in nats; NaN where nothing is there.
        relative_entropy: 1 - mean entropy / log K: one if all rows are certain, zero if the model knows nothing.
        mean_posterior: `[K, K]`: in its line k the mean posterior of the rows assigned to component k; NaN if none are.
            Large numbers on the diagonal are what one hopes for.
        share: `[K]`, the share of rows assigned to each component.
        expected_error: the share of rows assigned to the wrong component, if the model is right:
            mean of 1 - max_k posterior.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 9.0]))
    >>> jem.classification(model, [0.0, 1.0, 1.0, 12.0]).share.tolist()
    [0.75, 0.25]
    """

    entropy: Array
    relative_entropy: Float[Array, ""]
    mean_posterior: Float[Array, "k k"]
    share: Float[Array, "k"]
    expected_error: Float[Array, ""]

    def table(self) -> Any:
        """A polars frame with a line for each component: its share of rows, and their mean posteriors."""
        import polars

        posterior = np.asarray(self.mean_posterior)
        columns = {f"posterior_{k}": posterior[:, k] for k in range(posterior.shape[1])}
        return polars.DataFrame({"assigned": np.arange(len(posterior)), "share": np.asarray(self.share), **columns})


def classification(model: Any, x: Any, weight: Any = None) -> Classification:
    """Certainty of the classification of rows by their most probable component.

    Args:
        model: a mixture, a hidden Markov model (of which each step is a row), or another structure with components.
        x: rows or sequences.
        weight: `[n]` weights of rows (of sequences); one each if left out.

    Raises:
        TypeError: a model without components.
        ValueError: a batch of several models.

    Celeux and Soromenho 1996, Journal of Classification 13:195 (entropy); Nagin 2005 (mean posteriors).

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 9.0]))
    >>> told = classification(model, [0.0, 1.0, 4.0, 12.0])
    >>> told.mean_posterior.round(2).tolist(), told.expected_error.round(3).item()
    ([[1.0, 0.0], [0.16, 0.84]], 0.079)
    """
    check_model(model, x)
    if not isinstance(model, Latent):
        raise TypeError(f"classification: a {type(model).__name__} has no components to which rows belong")
    if model.batch_shape:
        raise ValueError(f"classification needs one model; this is a batch of shape {model.batch_shape}")
    x, weight, _ = prepare(model.read(x), weight, None)
    posterior = model.posterior(x)
    there = getattr(x, "there", None)
    if there is not None:
        weight = jnp.where(there, weight[:, None], 0)
    return _classified(posterior, weight)


@jax.jit
def _classified(posterior: Float[Array, "*n k"], weight: Float[Array, "*n"]) -> Classification:
    k = posterior.shape[-1]
    entropy = -jnp.sum(jnp.where(posterior > 0, posterior * jnp.log(jnp.where(posterior > 0, posterior, 1)), 0), -1)
    # A row that is impossible everywhere belongs nowhere.
    weight = jnp.where(jnp.sum(posterior, axis=-1) > 0, weight, 0)
    some = weight > 0
    share = weight / jnp.sum(weight)
    assigned = jax.nn.one_hot(jnp.argmax(posterior, axis=-1), k, dtype=share.dtype) * share[..., None]
    held = jnp.sum(assigned.reshape(-1, k), axis=0)
    means = jnp.matmul(assigned.reshape(-1, k).T, posterior.reshape(-1, k), precision=HIGHEST)
    means = jnp.where(held[:, None] > 0, means / jnp.where(held > 0, held, 1)[:, None], jnp.nan)
    error = jnp.sum(share * (1 - jnp.max(posterior, axis=-1)))
    relative = 1 - jnp.sum(share * entropy) / np.log(max(k, 2)).astype(share.dtype)
    return Classification(jnp.where(some, entropy, jnp.nan), relative, means, held, error)
