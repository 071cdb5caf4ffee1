"""Inputs and a response modelled together, and rows of a series beside their past."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.data.missing import some_columns
from jaxem.data.prepare import as_floats
from jaxem.distributions.base import Rows
from jaxem.distributions.product import Product
from jaxem.distributions.registry import structure


@structure
class Joint(Product):
    """Inputs and a response that depends on them, as two families, of which the second reads all columns.

    log p(z, y) = log p(z | parts[0]) + log p(y | z, parts[1])

    Args:
        parts: a family of the inputs, and a regression with the same `batch_shape`.

    Raises:
        ValueError: widths or batch shapes that do not match.

    >>> import jaxem as jem
    >>> model = jem.Joint((jem.SphericalGaussian([0.0], 1.0), jem.LinearRegression([2.0], 1.0, 1.0)))
    >>> model.log_prob([[0.0, 1.0]]).round(4).tolist()
    [-1.8379]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = [part.event_shape[0] for part in self.parts]
        if len(widths) != 2 or widths[1] != widths[0] + 1:
            raise ValueError(
                f"Joint: parts read {widths} columns; the second must read those of the first and one more"
            )

    @property
    def _widths(self) -> list[int]:
        return [*self.parts[0].event_shape, 1]

    def observe_incomplete(self, x: Any) -> Rows:
        """Observed data with missing cells: the first part reads all columns but the last."""
        return Rows((self.parts[0].observe(some_columns(x, slice(0, -1))), self.parts[1].observe(x)))

    def check(self, x: Any, weight: Array, alone: bool) -> None:
        self.parts[1].check(x, weight, alone)

    def _blocks(self, x: Float[Array, "n d"]) -> list[Array]:
        return [x[:, :-1], x]

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, P + 1]`."""
        (first, second), response = jax.random.split(key), self.parts[1]
        return response.sample(second, n, self.parts[0].sample(first, n))  # type: ignore

    def rows_like(self, key: Array, x: Float[Array, "n d"]) -> Float[Array, "*batch n d"]:
        """Inputs, too: the model says how they are distributed."""
        return self.sample(key, len(x))


@dataclasses.dataclass(frozen=True)
class JointFamily:
    """A `Joint` still to be fitted: what `start` takes."""

    inputs: Any
    response: Any

    def start(self, x: Any, weight: Array) -> Joint:
        """Members fitted to weighted rows, each part to what it reads."""
        return Joint((self.inputs.start(x[:, :-1], weight), self.response.start(x, weight)))

    def seeding_features(self, x: Array, weight: Array) -> Array:
        """Rows as points between which a distance means something."""
        return self.response.seeding_features(x, weight)


def lagged(x: Any, order: int = 1) -> Float[Array, "t d"]:
    """Rows of an autoregression: the last `order` values, the most recent first, and then the value itself.

    An `HMM` on such rows with the emission `LinearRegression` is an autoregressive hidden Markov model (Hamilton 1989).

    Args:
        x: `[T]`, one series.
        order: how many values back.

    Returns:
        `[T - order, order + 1]`. A row of which a value is missing (NaN) has a missing response, so that it says
        nothing and still takes its time: what `missing="drop"` does elsewhere, with the clock going on.

    Raises:
        ValueError: not one series, or an order that is not from 1 to T - 1.

    >>> import jaxem as jem
    >>> jem.lagged([1.0, 2.0, 4.0, 8.0], 2).tolist()
    [[2.0, 1.0, 4.0], [4.0, 2.0, 8.0]]
    >>> jem.lagged([1.0, 2.0, float("nan"), 8.0, 16.0]).tolist()
    [[1.0, 2.0], [2.0, nan], [nan, nan], [8.0, 16.0]]
    """
    series = as_floats(x)
    if series.ndim != 1 or not 1 <= order < len(series):
        raise ValueError(f"lagged: x has shape {series.shape} and order is {order}; it takes one longer series")
    last = len(series) - order
    inputs = jnp.stack([series[order - k : order - k + last] for k in range(1, order + 1)], axis=1)
    response = series[order:]
    if jnp.issubdtype(series.dtype, jnp.floating):
        response = jnp.where(jnp.isnan(inputs).any(axis=1), jnp.nan, response)
    return jnp.concatenate([inputs, response[:, None]], axis=1)
