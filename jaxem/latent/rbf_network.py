"""Radial basis function networks: units on the inputs, each with an output, fitted as one mixture."""

from __future__ import annotations

from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array

from jaxem.core.arguments import whole
from jaxem.data.prepare import as_floats
from jaxem.distributions.gaussian import SphericalGaussian, TiedGaussian
from jaxem.distributions.joint import JointFamily
from jaxem.distributions.product import Product, sized
from jaxem.distributions.registry import structure
from jaxem.distributions.regression import LinearRegression
from jaxem.distributions.words import as_family
from jaxem.latent.mixture import Mixture
from jaxem.latent.prediction import Prediction, as_inputs, predict


@structure
class RBFNetwork(Mixture):
    """A network of normalised Gaussian units: a mixture over inputs and response, read as a regression.

    log p(z, y) = log sum_k weights_k N(z | unit k) N(y | output of k)
    E[y | z] = sum_k h_k(z) output_k(z),  h_k(z) = weights_k N(z | unit k) / sum_j weights_j N(z | unit j)

    EM places the units and finds the outputs by weighted least squares in the same likelihood. An output is a number
    (Moody and Darken 1989) or a linear function of the inputs (Xu, Jordan and Hinton 1995).

    Args:
        weights: `[..., K]`.
        components: `Product((units, outputs))` for numbers, `Joint((units, outputs))` for linear functions; units are
            Gaussians of any kind over the inputs.

    Raises:
        ValueError: as `Mixture`.

    >>> import jaxem as jem
    >>> units = jem.SphericalGaussian([[-1.0], [1.0]], [0.1, 0.1])
    >>> network = jem.RBFNetwork([0.5, 0.5], jem.Product((units, jem.TiedGaussian([[3.0], [5.0]], [[1.0]]))))
    >>> network.predict([-1.0, 0.0, 1.0]).mean.round(3).tolist()
    [3.0, 4.0, 5.0]
    """

    @classmethod
    def start(  # type: ignore[override]
        cls,
        key: Any,
        inputs: Any,
        response: Any,
        units: int,
        *,
        linear: bool = True,
        family: Any = SphericalGaussian,
        weight: Any = None,
        restarts: int | None = None,
    ) -> Self:
        """A network to start from; fit it to `rows(inputs, response)`.

        Args:
            key: a JAX random key, or a whole number as its seed.
            inputs: `[n, P]`, or `[n]` if there is one.
            response: `[n]`.
            units: K.
            linear: is each output a linear function of the inputs, with a variance of its own? Else it is a number,
                and all share one variance.
            family: of the units: `SphericalGaussian`, `DiagonalGaussian` or `Gaussian`.
            weight, restarts: as in `Mixture.start`.

        Raises:
            ValueError: as `Mixture.start`.

        >>> import jax, jaxem as jem
        >>> z = jax.numpy.linspace(0.0, 1.0, 20)
        >>> network = jem.RBFNetwork.start(jax.random.key(0), z, z**2, 3)
        >>> fit = jem.fit(network, jem.RBFNetwork.rows(z, z**2))
        >>> bool(abs(fit.model.predict([0.8]).mean[0] - 0.64) < 0.03)
        True
        """
        x = cls.rows(inputs, response)
        family = as_family(family)
        kind = JointFamily(family, LinearRegression)
        if not linear:
            kind = Product.of(sized(getattr(family, "family", family), columns=x.shape[1] - 1), TiedGaussian)
        return super().start(key, kind, x, whole(units, "units"), weight=weight, restarts=restarts)

    @staticmethod
    def rows(inputs: Any, response: Any) -> Array:
        """Inputs and response side by side, `[n, P + 1]`: what `fit` reads."""
        inputs = as_inputs(inputs)
        return jnp.concatenate([inputs, jnp.asarray(as_floats(response), inputs.dtype)[:, None]], axis=1)

    def predict(self, x: Any) -> Prediction:  # type: ignore[override]
        """The response, given inputs `[n, P]` (or `[n]`): mean, variance, quantiles."""
        return predict(self, x)
