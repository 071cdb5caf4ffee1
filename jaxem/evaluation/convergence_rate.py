"""Convergence rate of EM: the fraction of an error that is left after a step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.arguments import whole
from jaxem.core.coordinates import flat
from jaxem.data.prepare import prepare
from jaxem.distributions.base import Labelled, Statistics, check_model
from jaxem.fitting.checks import check_labelled, hidden_states
from jaxem.fitting.regularisation import regularisers
from jaxem.solvers.em import em_step


def em_rate(
    model: Any, x: Any, *, weight: Any = None, prior: Any = None, labels: Any = None, iterations: int = 200
) -> Float[Array, ""]:
    """Convergence rate of EM: the largest eigenvalue of the Jacobian of the EM map at a maximum.

    Close to the maximum every EM step leaves this fraction of the error. It is also the largest fraction of missing
    information (Dempster, Laird and Rubin 1977): near 0 where the data almost determine the hidden variables, near 1
    where they do not. Found by power iteration, with the Jacobian applied by `jax.jvp`, in unconstrained coordinates.

    Args:
        model: a fitted model: the rate is local, and meaningful at a maximum only.
        x, weight, prior, labels: as in `fit`.
        iterations: of the power method; each is one and a half passes over the data.

    Returns:
        A number; above one where the model is not at a maximum.

    >>> import jax, jaxem as jem
    >>> x = jem.Mixture([0.4, 0.6], jem.Poisson([2.0, 9.0])).sample(jax.random.key(0), 500)
    >>> fit = jem.fit(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 5.0])), x, tol=1e-9)
    >>> bool(0.05 < em_rate(fit.model, x) < 0.9)
    True
    """
    check_model(model, x)
    check_labelled(model, labels)
    x, weight, labels = prepare(model.read(x), weight, labels, hidden_states(model))
    data = x if labels is None else Labelled(x, labels)
    return _em_rate(model, data, weight, prior, whole(iterations, "iterations"))


@partial(jax.jit, static_argnums=4)
def _em_rate(model: Any, x: Any, weight: Array, prior: Any, iterations: int) -> Array:
    pseudo: Statistics = regularisers(model, x, weight, prior)[1]
    free, model_at = flat(model)

    def image(free: Array) -> Array:
        return flat(em_step(model_at(free), x, weight, pseudo)[0], model)[0]

    return linalg.largest_eigenvalue(lambda v: jax.jvp(image, (free,), (v,))[1], free, iterations)
