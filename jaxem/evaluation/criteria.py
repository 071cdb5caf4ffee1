"""How many components: information criteria. Smaller is better."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array

from jaxem.distributions.base import check_model


def aic(log_likelihood: Any, parameters: Any) -> Any:
    """Akaike's criterion, -2 log L + 2 p.

    Args:
        log_likelihood: of the data alone, in nats, `[...]`.
        parameters: free numbers in the model (`jaxem.core.constraints.free_parameters`), `[...]`.

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
    """How undecided a model is about what is hidden: sum_i w_i H(hidden | x_i), in nats.

    For a mixture that is -sum_i w_i sum_k r_ik log r_ik; for a hidden Markov model the entropy of whole paths. It is
    log Z less the expected sum of the potentials.

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
