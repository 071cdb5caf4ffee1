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


def aicc(log_likelihood: Any, parameters: Any, rows: Any) -> Any:
    """AIC corrected for small samples, AIC + 2 p (p + 1) / (n - p - 1) (Hurvich and Tsai 1989); inf without n > p + 1.

    Args:
        log_likelihood, parameters, rows: as for `bic`.

    >>> round(float(aicc(-10.0, 3, 100)), 4)
    26.25
    """
    left = np.asarray(rows) - parameters - 1
    more = 2 * parameters * (parameters + 1) / np.where(left > 0, left, 1)
    return aic(log_likelihood, parameters) + np.where(left > 0, more, np.inf)


def caic(log_likelihood: Any, parameters: Any, rows: Any) -> Any:
    """Consistent AIC, -2 log L + p (log n + 1) (Bozdogan 1987).

    Args:
        log_likelihood, parameters, rows: as for `bic`.

    >>> round(float(caic(-10.0, 3, 100)), 4)
    36.8155
    """
    return bic(log_likelihood, parameters, rows) + parameters


def sabic(log_likelihood: Any, parameters: Any, rows: Any) -> Any:
    """Sample-size adjusted BIC, -2 log L + p log((n + 2) / 24) (Sclove 1987).

    Args:
        log_likelihood, parameters, rows: as for `bic`.

    >>> round(float(sabic(-10.0, 3, 100)), 4)
    24.3408
    """
    return bic(log_likelihood, parameters, (np.asarray(rows) + 2) / 24)


def nec(log_likelihood: Any, of_one: Any, entropy: Any) -> Any:
    """Normalised entropy criterion, E / (log L - log L of one component) (Celeux and Soromenho 1996).

    One component has 1 by definition (Biernacki, Celeux and Govaert 1999). NaN where more components gain nothing.

    Args:
        log_likelihood: of K components, `[...]`.
        of_one: of one component, `[...]`.
        entropy: as for `icl`.

    >>> round(float(nec(-10.0, -30.0, 2.0)), 4)
    0.1
    """
    gain = np.asarray(log_likelihood) - of_one
    return np.where(gain > 0, entropy / np.where(gain > 0, gain, 1), np.nan)


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
