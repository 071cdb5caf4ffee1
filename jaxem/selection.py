"""How many components: information criteria. Smaller is better."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array


def aic(log_likelihood: Any, parameters: Any) -> Any:
    """Akaike's criterion, -2 log L + 2 p.

    Args:
        log_likelihood: of the data alone, in nats, `[...]`.
        parameters: free numbers in the model (`jaxem.constraints.free_parameters`), `[...]`.

    >>> aic(-10.0, 3)
    26.0
    """
    return -2 * log_likelihood + 2 * parameters


def bic(log_likelihood: Any, parameters: Any, rows: Any) -> Any:
    """Schwarz's criterion, -2 log L + p log n (Schwarz 1978).

    Args:
        log_likelihood: of the data alone, in nats, `[...]`.
        parameters: free numbers in the model, `[...]`.
        rows: n, the sum of the row weights, `[...]`.

    >>> round(float(bic(-10.0, 3, 100)), 4)
    33.8155
    """
    return -2 * log_likelihood + parameters * np.log(rows)


def icl(log_likelihood: Any, parameters: Any, rows: Any, entropy: Any) -> Any:
    """The integrated completed likelihood, BIC + 2 x the entropy of the posteriors (Biernacki, Celeux, Govaert 2000).

    Args:
        log_likelihood, parameters, rows: as for `bic`.
        entropy: of the posteriors, summed over rows, in nats (see `entropy`), `[...]`.

    >>> round(float(icl(-10.0, 3, 100, 2.0)), 4)
    37.8155
    """
    return bic(log_likelihood, parameters, rows) + 2 * entropy


def entropy(model: Any, x: Any, weight: Any = None) -> Array:
    """-sum_i w_i sum_k r_ik log r_ik: how undecided the posteriors of a mixture are, in nats.

    Args:
        model: a mixture.
        x: `[n]` or `[n, D]` rows.
        weight: `[n]` row weights; one each if left out.

    Returns:
        `[*batch_shape]`.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 1.0]))
    >>> entropy(model, [0.0, 1.0]).round(4).item()
    1.3863
    """
    posterior = model.posterior(x)
    each = -jnp.sum(xlogy(posterior, posterior), axis=-1)
    return jnp.sum(each if weight is None else jnp.where(weight > 0, weight * each, 0), axis=-1)
