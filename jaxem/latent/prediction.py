"""Predictions of a response, given inputs: a mixture for each row, with mean, variance and quantiles."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.linalg import matmul
from jaxem.core.pytree import module, static
from jaxem.data.prepare import as_floats
from jaxem.distributions.base import check_model, type_of
from jaxem.distributions.gaussian import Gaussian
from jaxem.distributions.product import Product
from jaxem.distributions.regression import LinearRegression, Regression
from jaxem.distributions.statistics.design_matrix import design
from jaxem.latent.base import log_potential
from jaxem.latent.mixture import Mixture
from jaxem.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALVINGS = {4: 40, 8: 80}
"""Of the bracket of a quantile, by bytes of a float."""


@module
class Prediction:
    """A response given inputs: for each row a mixture of K possibilities.

    Attributes:
        inputs: `[n, P]`.
        weights: `[..., n, K]`, how probable each component is, given the inputs.
        means, variances: `[..., n, K]`, of the response in each.
        normal: are the components Gaussian, so that there are quantiles?

    >>> import jaxem as jem
    >>> line = jem.LinearRegression([2.0], 1.0, 4.0)
    >>> prediction = jem.predict(line, [[0.0], [3.0]])
    >>> prediction.mean.tolist(), prediction.variance.tolist(), prediction.quantile(0.5).round(6).tolist()
    ([1.0, 7.0], [4.0, 4.0], [1.0, 7.0])
    """

    inputs: Array
    weights: Array
    means: Array
    variances: Array
    normal: bool = static(default=True)

    @property
    def mean(self) -> Float[Array, "*batch n"]:
        """The expected response."""
        return jnp.sum(self.weights * self.means, axis=-1)

    @property
    def variance(self) -> Float[Array, "*batch n"]:
        """The variance of the response, within components and between them."""
        between = (self.means - self.mean[..., None]) ** 2
        return jnp.sum(self.weights * (self.variances + between), axis=-1)

    def quantile(self, level: float) -> Float[Array, "*batch n"]:
        """The value below which the response lies with probability `level`, by bisection between the components'.

        Args:
            level: between 0 and 1.

        Raises:
            ValueError: a level outside (0, 1), or components that are not Gaussian.
        """
        if not self.normal:
            raise ValueError("Prediction: the components are not Gaussian, so their mixture has no quantiles here")
        if not 0 < level < 1:
            raise ValueError(f"Prediction: level is {level}; it must be between 0 and 1")
        return _quantile(self, level)

    def plot(self, response: Any = None, ax: Axes | None = None) -> Axes:
        """Draw the mean and the band that holds nine responses of ten: over the input, or over the mean if several.

        Args:
            response: `[n]`, what was observed.
            ax: where to draw; a new figure if left out.

        Returns:
            The axes.
        """
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        mean = np.asarray(self.mean)
        single = self.inputs.shape[-1] == 1
        place = np.asarray(self.inputs)[:, 0] if single else mean
        order = np.argsort(place)
        if self.normal:
            low, high = (np.asarray(self.quantile(level)) for level in (0.05, 0.95))
        else:
            width = 1.645 * np.sqrt(np.asarray(self.variance))
            low, high = mean - width, mean + width
        ax.fill_between(place[order], low[order], high[order], color=PALETTE[5], alpha=0.3, lw=0)
        ax.plot(place[order], mean[order], color=PALETTE[0], lw=1.8)
        if response is not None:
            ax.plot(place, np.asarray(response), ".", color=PALETTE[7], ms=4)
        ax.set_xlabel("input" if single else "predicted mean")
        ax.set_ylabel("response")
        ax.spines[["top", "right"]].set_visible(False)
        return ax


@jax.jit
def _quantile(prediction: Prediction, given: Any) -> Array:
    weights, spread = prediction.weights, jnp.sqrt(prediction.variances)
    level = jnp.asarray(given, spread.dtype)
    each = prediction.means + spread * ndtri(level)

    def halve(_: Array, limits: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = limits
        middle = low + (high - low) / 2
        below = jnp.sum(weights * ndtr((middle[..., None] - prediction.means) / spread), axis=-1) < level
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # The quantile of a mixture lies between the least and the largest of its components'.
    limits = jnp.min(each, axis=-1), jnp.max(each, axis=-1)
    low, high = jax.lax.fori_loop(0, HALVINGS[spread.dtype.itemsize], halve, limits)
    return low + (high - low) / 2


def predictive(log_weights: Float[Array, "*batch k n"], experts: Any, inputs: Array) -> Prediction:
    """The prediction of experts whose log-probabilities, up to a constant, are known for each row."""
    mean, variance = experts.moments(inputs) if isinstance(experts, Regression) else _constant(experts, len(inputs))
    parts = jax.nn.softmax(log_weights, axis=-2), mean, variance
    weights, mean, variance = (jnp.moveaxis(part, -2, -1) for part in parts)
    counts = isinstance(experts, Regression) and not isinstance(experts, LinearRegression)
    return Prediction(inputs, weights, mean, variance, not counts)


def _constant(gaussian: Any, n: int) -> tuple[Array, Array]:
    """Mean and variance of a Gaussian response that does not depend on the inputs."""
    one = gaussian.expected_statistics()
    mean, variance = one.reference[..., 0], one.second.reshape(one.rows.shape)
    return tuple(jnp.broadcast_to(part[..., None], (*part.shape, n)) for part in (mean, variance))  # type: ignore


def as_inputs(inputs: Any, model: Any = None) -> Float[Array, "n p"]:
    """Inputs as floats of the model's type, `[n, P]`; a single column may be given as `[n]`."""
    inputs = as_floats(inputs, None if model is None else type_of(model), "inputs")
    if inputs.ndim not in (1, 2):
        raise ValueError(f"inputs has shape {inputs.shape}; it must be [n, P], or [n] if there is one input")
    return inputs[:, None] if inputs.ndim == 1 else inputs


def predict(model: Any, inputs: Any) -> Prediction:
    """The prediction of a response, given inputs, by a regression, a mixture of regressions, experts or units.

    The components of a mixture of regressions have the same weights everywhere; a `MixtureOfExperts` weighs them by its
    gate, an `RBFNetwork` by how near the inputs are to its units.

    Args:
        model: such a model.
        inputs: `[n, P]`, or `[n]` if there is one.

    Raises:
        TypeError: a model that has no response.

    >>> import jaxem as jem
    >>> lines = jem.Mixture([0.5, 0.5], jem.LinearRegression([[1.0], [-1.0]], [0.0, 0.0], [1.0, 1.0]))
    >>> jem.predict(lines, [0.0, 2.0]).variance.tolist()
    [1.0, 5.0]
    """
    check_model(model, inputs)
    inputs = as_inputs(inputs, model)
    if hasattr(model, "gate"):
        return predictive(model.gate.log_prob(inputs), model.experts, inputs)
    if not isinstance(model, Mixture):
        if not isinstance(model, Regression):
            raise TypeError(f"predict: a {type(model).__name__} has no response to predict")
        one = jax.tree.map(lambda leaf: leaf[None], model) if not model.batch_shape else model
        return predictive(jnp.zeros((1, len(inputs)), inputs.dtype), one, inputs)
    components = model.components
    log_weights = log_potential(model.weights)[..., None] + jnp.zeros((*model.weights.shape, len(inputs)), inputs.dtype)
    if isinstance(components, Product):
        units, components = components.parts
        log_weights = log_weights + units.log_prob(inputs)
    elif not isinstance(components, Regression):
        raise TypeError(f"predict: a Mixture of {type(components).__name__} has no response to predict")
    return predictive(log_weights, components, inputs)


def conditional(model: Mixture, given: Any, x: Any) -> Prediction:
    """Gaussian-mixture regression: the distribution of some columns of a mixture, given the others.

    p(others | given) is again a mixture: each component has its own linear regression, and its weight is how probable
    the given columns are under it (Ghahramani and Jordan 1994).

    Args:
        model: a mixture of Gaussians of any kind.
        given: the places of the columns that are known.
        x: `[n, G]`, those columns, in that order.

    Returns:
        A `Prediction` of the other columns in their order: `[n]` if there is one, `[D - G, n]` if there are several
        (each by itself).

    Raises:
        ValueError: columns that the model does not have, or none left to predict; x of another width.

    >>> import jaxem as jem
    >>> model = jem.Mixture([1.0], jem.Gaussian([[0.0, 1.0]], [[[1.0, 0.5], [0.5, 1.0]]]))
    >>> prediction = jem.conditional(model, [0], [[2.0]])
    >>> prediction.mean.tolist(), prediction.variance.tolist()
    ([2.0], [0.75])
    """
    known, size, x = [int(column) for column in given], model.event_shape[0], as_inputs(x, model)
    others = [column for column in range(size) if column not in known]
    if not others or not known or not set(known) <= set(range(size)) or len(set(known)) < len(known):
        raise ValueError(f"conditional: given is {known}; it must name some of the columns 0 to {size - 1}, not all")
    if x.shape[1] != len(known):
        raise ValueError(f"conditional: x has {x.shape[1]} columns; given names {len(known)}")
    if not hasattr(model.components, "mean") or not hasattr(model.components, "expected_statistics"):
        raise ValueError(f"conditional: the components are {type(model.components).__name__}; they must be Gaussian")
    return _conditional(model, jnp.asarray(x, model.weights.dtype), tuple(known), tuple(others))


@partial(jax.jit, static_argnums=(2, 3))
def _conditional(model: Mixture, x: Array, known: tuple[int, ...], others: tuple[int, ...]) -> Prediction:
    components: Any = model.components
    mean, covariance = components.mean, components.expected_statistics().second
    if covariance.ndim == mean.ndim:
        covariance = linalg.diagonal_matrix(covariance)
    seen, rest = np.array(known), np.array(others)
    marginal = Gaussian(mean[..., seen], covariance[..., seen[:, None], seen])
    across = covariance[..., rest[:, None], seen]
    white = linalg.whitening(marginal.covariance)
    half = matmul(across, linalg.transpose(white))
    slopes = matmul(half, white)
    # About the centre of x: far from zero a product with x itself would lose what differs between the rows.
    about = design(x, jnp.ones(len(x), bool))
    offset = linalg.lead(about.centre, marginal.mean.ndim) - marginal.mean
    means = about.linear(mean[..., rest] + matmul(slopes, offset[..., None])[..., 0], slopes)
    variances = linalg.diagonal(covariance[..., rest[:, None], rest]) - jnp.sum(half**2, axis=-1)
    weights = jax.nn.softmax(log_potential(model.weights)[..., None] + marginal.log_prob(x), axis=-2)
    parts = weights[..., None, :], means, jnp.broadcast_to(variances[..., None], means.shape)
    # Components, columns, rows as columns, rows, components.
    members = len(model.batch_shape)
    moved = [jnp.moveaxis(jnp.broadcast_to(part, means.shape), members, -1) for part in parts]
    weights, means, variances = [part.squeeze(members) for part in moved] if len(others) == 1 else moved
    return Prediction(x, weights, means, variances)
