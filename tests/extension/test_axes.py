"""Axes are named where a parameter is declared: nothing else is taken for hidden states."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

import jaxem as jem
from extension.semi_markov import SemiMarkov
from jaxem.core.constraints import parameter, simplex
from jaxem.core.pytree import module
from jaxem.latent.base import Latent
from jaxem.latent.components import map_states, widen


@module
class Lasting(Latent):
    """Its child is not its last field, and there are as many durations as states."""

    initial: Float[Array, "*batch k"] = parameter(simplex, axes=("state",))
    emission: Any
    durations: Float[Array, "*batch k d"] = parameter(simplex, axes=("state", "duration"))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.initial.shape[:-1]

    @property
    def child(self) -> Any:
        return self.emission


def swapped(a: np.ndarray, axis: int) -> np.ndarray:
    return np.take(a, [1, 0], axis)


def stacked(model: Any) -> Any:
    """Two problems: as they are for the tables, in numpy."""
    return jax.tree.map(lambda leaf: np.stack([leaf, leaf]), model)


def test_durations_are_not_states() -> None:
    models = stacked(Lasting([0.3, 0.7], jem.Poisson([1.0, 2.0]), [[0.9, 0.1], [0.4, 0.6]]))
    other = map_states(swapped, models)
    np.testing.assert_array_equal(other.initial[1], models.initial[1, ::-1])
    np.testing.assert_array_equal(other.emission.rate[1], models.emission.rate[1, ::-1])
    np.testing.assert_array_equal(other.durations[1], models.durations[1, ::-1])  # rows change places, columns do not
    wide = widen(models, 3)
    np.testing.assert_array_equal(wide.initial[0], np.append(models.initial[0], 0))
    np.testing.assert_array_equal(wide.durations[0], models.durations[0][[0, 1, 1]])


def test_every_child_follows() -> None:
    duration = jem.Categorical([[0.2, 0.8], [0.6, 0.4]])
    models = stacked(SemiMarkov([0.3, 0.7], [[0.0, 1.0], [0.9, 0.1]], duration, jem.Poisson([1.0, 3.5]), 2))
    other = map_states(swapped, models)
    np.testing.assert_array_equal(other.transition[0], [[0.1, 0.9], [1.0, 0.0]])
    np.testing.assert_array_equal(other.duration.probs[0], models.duration.probs[0, ::-1])
    np.testing.assert_array_equal(other.emission.rate[0], [3.5, 1.0])
