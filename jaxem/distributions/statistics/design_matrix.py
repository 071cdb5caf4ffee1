"""The inputs of a regression as the loops read them, and the weighted sums over them that a fit needs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxem.core import linalg
from jaxem.core.linalg import HIGHEST
from jaxem.core.pytree import module, replace
from jaxem.core.summation import totals
from jaxem.distributions.statistics.moments import has_weight

UNROLLED = 4
"""Up to this many inputs (with the constant) the sums are written out."""


@module
class Design:
    """Inputs about a centre, which alone moves with an offset of all rows.

    Attributes:
        inputs: `[P, n]`, less the centre.
        centre: `[P]`, the mean of the inputs.
        products: `[(P + 1)(P + 2) / 2, n]`, of any two of (1, inputs), made once for several steps; or None.
    """

    inputs: Float[Array, "p n"]
    centre: Float[Array, "p"]
    products: Float[Array, "f n"] | None = None

    @property
    def wide(self) -> bool:
        """Whether there are too many inputs to write the sums out."""
        return len(self.inputs) >= UNROLLED

    def expand(self) -> Design:
        """The inputs with their products, where matrix multiplication needs them."""
        if not self.wide or self.products is not None:
            return self
        columns, (i, j) = self._with_one(), _pairs(len(self.inputs) + 1)
        return replace(self, products=columns[i] * columns[j])

    def linear(self, level: Float[Array, "*batch"], slopes: Float[Array, "*batch p"]) -> Float[Array, "*batch n"]:
        """The linear predictor level + slopes . (inputs - centre) of each row."""
        if self.wide:
            return level[..., None] + jnp.einsum("...p,pn->...n", slopes, self.inputs, precision=HIGHEST)
        each = [slopes[..., p, None] * linalg.lead(self.inputs[p], slopes.ndim) for p in range(len(self.inputs))]
        return sum(each, jnp.broadcast_to(level[..., None], (*level.shape, self.inputs.shape[1])))

    def sums(self, weight: Float[Array, "*batch n"]) -> Float[Array, "*batch q"]:
        """Weighted sums of (1, inputs)."""
        if self.wide:
            return jnp.einsum("...n,qn->...q", weight, self._with_one(), precision=HIGHEST)
        return jnp.stack(totals(weight, *(weight * linalg.lead(row, weight.ndim) for row in self.inputs)), axis=-1)

    def gram(self, weight: Float[Array, "*batch n"]) -> Float[Array, "*batch q q"]:
        """Weighted sums of (1, inputs)(1, inputs)^T."""
        size = len(self.inputs) + 1
        i, j = _pairs(size)
        if self.wide:
            sums = jnp.einsum("...n,fn->...f", weight, self.expand().products, precision=HIGHEST)
        else:
            weighted = [weight, *(weight * linalg.lead(row, weight.ndim) for row in self.inputs)]
            columns = self._with_one()
            lower = zip(i, j, strict=True)
            sums = jnp.stack(totals(*(weighted[a] * linalg.lead(columns[b], weight.ndim) for a, b in lower)), axis=-1)
        place = np.zeros((size, size), int)
        place[i, j] = place[j, i] = np.arange(len(i))
        return sums[..., place]

    def mean(self, weight: Float[Array, "n"]) -> Float[Array, "p"]:
        """The weighted mean of the inputs: unlike the centre, rows of weight zero have no say in it."""
        sums = self.sums(weight)
        return self.centre + sums[1:] / jnp.where(has_weight(sums[0]), sums[0], 1)

    def reach(self, weight: Float[Array, "*batch n"]) -> Float[Array, "2 p"]:
        """The range of inputs below the centre and above it, over rows with a weight for any member."""
        there = jnp.any(weight.reshape(-1, weight.shape[-1]) > 0, axis=0)
        return jnp.max(jnp.where(there, jnp.stack([-self.inputs, self.inputs]), -jnp.inf), axis=-1)

    def _with_one(self) -> Float[Array, "q n"]:
        return jnp.concatenate([jnp.ones_like(self.inputs[:1]), self.inputs])


def design(inputs: Float[Array, "n p"], usable: Bool[Array, "n"]) -> Design:
    """Inputs, rows first, about the mean of the usable rows; the others are put there."""
    count = jnp.maximum(jnp.sum(usable, dtype=inputs.dtype), 1)
    columns = jnp.where(usable[None], inputs.T, 0)
    centre = jnp.sum(columns, axis=1) / count
    return Design(jnp.where(usable[None], columns - centre[:, None], 0), centre)


def shared(weight: Float[Array, "n"]) -> Float[Array, "n"]:
    """Weights as shares of all rows; zeros if there are none."""
    total = jnp.sum(weight)
    return weight / jnp.where(has_weight(total), total, 1)


def _pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tril_indices(size)
