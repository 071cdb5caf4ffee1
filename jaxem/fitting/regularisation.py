"""Pseudo-statistics that a fit adds to those of the rows: the floor and the prior."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.distributions.base import Labelled, Statistics, add
from jaxem.priors import kind
from jaxem.solvers.em import RowSource

SCALE_ROWS = 65_536
"""Number of evenly spaced rows, at most, that determine the scale of the data (see `spacing`)."""


def regulariser(floor: Statistics, prior: Any, model: Any, x: Any, weight: Array) -> Statistics:
    """Pseudo-statistics of every M-step: the floor plus the prior.

    Raises:
        ValueError: a prior that was made for another kind of model.
    """
    if prior is None:
        return floor
    x = x.x if isinstance(x, Labelled) else x  # a prior scales itself to the rows, whatever their labels
    message = (
        f"a {type(prior).__name__} is no prior of a {kind(model)}; pass one that is made for it (see jaxem.priors)"
    )
    try:
        made = prior.statistics(model, x, weight) if hasattr(prior, "statistics") else prior
    except AttributeError as error:
        raise ValueError(f"prior: {message}: {error}") from error
    given, wanted = jax.tree.structure(made), jax.tree.structure(floor)
    if given != wanted:
        raise ValueError(f"prior has the structure {given}, and the statistics of this model are {wanted}: {message}")
    for mine, its in zip(jax.tree.leaves(made), jax.tree.leaves(floor), strict=True):
        if np.broadcast_shapes(np.shape(mine), its.shape) != its.shape:
            raise ValueError(f"prior has pseudo-statistics of shape {np.shape(mine)}, and the model's are {its.shape}")
    return add(floor, jax.tree.map(lambda mine, its: jnp.asarray(mine, its.dtype), made, floor))


class Blank(NamedTuple):
    """Layout of a trace before the first step.

    Attributes:
        length: number of steps plus one.
        refused: whether `jax_debug_nans` is on. Then -inf stands for steps not reached.
    """

    length: int
    refused: bool

    @classmethod
    def of(cls, max_steps: Any) -> Blank:
        return cls(int(max_steps) + 1, bool(jax.config.jax_debug_nans))  # type: ignore

    def filled(self, dtype: Any) -> Array:
        return jnp.full(self.length, -jnp.inf if self.refused else jnp.nan, dtype)


def regularisers(model: Any, x: Any, weight: Array, prior: Any) -> tuple[Statistics, Statistics]:
    """The floor, and the floor plus the prior: they need the scale of the data only, not every row."""
    every = spacing(weight.shape[0])
    if isinstance(x, RowSource):
        x, weight = x.sample(weight, every)
    else:
        x, weight = jax.tree.map(lambda leaf: leaf[::every], (x, weight))
    floor = model.floor(x, weight)
    return floor, regulariser(floor, prior, model, x, weight)


def spacing(n: Any) -> int:
    """Stride at which n rows are subsampled to at most `SCALE_ROWS`.

    A power of two, so that a streaming reader that halves its sample as it grows keeps exactly the same rows. 1
    where n is a symbol (in `jax.export`).

    >>> [spacing(n) for n in (1, 65_536, 65_537, 200_000)]
    [1, 1, 2, 4]
    """
    return 1 << (-(-n // SCALE_ROWS) - 1).bit_length() if isinstance(n, int) else 1
