"""Information criteria for the number of components. Smaller is better."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array

from jaxem.distributions.base import check_model


def aic(log_likelihood: Any, parameters: Any) -> Any:
    """Akaike's information criterion, -2 log L + 2 p.

    Args:
        log_likelihood: of the data alone, in nats, `[...]`.
        parameters: number of free parameters (`jaxem.core.constraints.free_parameters`), `[...]`.

    >>> aic(-10.0, 3)
    26.0
    """
    return -2 * log_likelihood + 2 * parameters


def bic(log_likelihood: Any, parameters: Any, rows: Any) -> Any:
    """Bayesian information criterion, -2 log L + p log n (Schwarz 1978).

    Args:
        log_likelihood: of the data alone, in nats, `[...]`.
        parameters: number of free parameters, `[...]`.
        rows: n, the sum of the row weights, `[...]`.

    >>> round(float(bic(-10.0, 3, 100)), 4)
    33.8155
    """
    return -2 * log_likelihood + parameters * np.log(rows)


def icl(log_likelihood: Any, parameters: Any, rows: Any, entropy: Any) -> Any:
    """Integrated completed likelihood, BIC + 2 x posterior entropy (Biernacki, Celeux, Govaert 2000).

    Args:
        log_likelihood, parameters, rows: as for `bic`.
        entropy: posterior entropy, summed over rows, in nats (see `entropy`), `[...]`.

    >>> round(float(icl(-10.0, 3, 100, 2.0)), 4)
    37.8155
    """
    return bic(log_likelihood, parameters, rows) + 2 * entropy


def entropy(model: Any, x: Any, weight: Any = None) -> Array:
    """Posterior entropy of the hidden variables: sum_i w_i H(hidden | x_i), in nats.

    For a mixture that is -sum_i w_i sum_k r_ik log r_ik; for a hidden Markov model the entropy of whole paths. It is
    log Z minus the expected sum of the potentials.

    Args:
        model: a mixture or another latent structure.
        x: `[n]` or `[n, D]` rows, or sequences.
        weight: `[n]` weights of rows (of sequences); one each if left out.

    Returns:
        `[*batch_shape]`.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 1.0]))
    >>> entropy(model, [0.0, 1.0]).round(4).item()
    1.3863
    """
    check_model(model, x)
    return model.entropy(x, weight)
