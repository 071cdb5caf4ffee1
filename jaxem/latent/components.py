"""Components of fitted models: padded, taken one by one, put into another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxem.core.constraints import Constraint, leaves
from jaxem.distributions.either import Either, EitherFamily


def is_per_component(constraint: Constraint, values: Any) -> bool:
    """Has this parameter of the members of stacked models, `[G, ...]`, an axis of hidden states after the first?"""
    return values.ndim - constraint.event_ndim >= 2


def map_states(change: Any, models: Any) -> Any:
    """`change(array, axis)` applied to every axis of stacked models that counts hidden states.

    All axes of a model's own parameters do (weights, transitions), and the second of its members' parameters. Where
    members are of different families, it counts those of one family: the change must leave the others in their place.
    """

    def along(values: Any, axes: Sequence[int]) -> Any:
        for axis in axes:
            values = change(values, axis)
        return values

    def member(path: Any, limit: Constraint, values: Any) -> Any:
        if not is_per_component(limit, values):
            return values
        first, fixed = _first_state(models, path), fixed_states(models)
        if fixed and first < fixed:
            return values
        padded = np.concatenate([values[:, :1]] * first + [values], axis=1)
        return change(padded, 1)[:, first:]

    own, members = _own_and_members(models)
    changed = [along(values, range(1, values.ndim)) for _, _, values in own]
    changed += [member(*leaf) for leaf in members]
    return jax.tree.unflatten(jax.tree.structure(models), changed)


def fixed_states(models: Any) -> int:
    """How many of the first states are of a family of their own, and so keep their place."""
    return _fixed(models.child)


def _fixed(family: Any) -> int:
    """All families of `Either` but the last have one member each."""
    return len(family.parts) - 1 if isinstance(family, (Either, EitherFamily)) else 0


def _first_state(models: Any, path: Any) -> int:
    """The first state that a parameter is about."""
    return next(key.idx for key in path if hasattr(key, "idx")) if fixed_states(models) else 0


def map_own(change: Any, models: Any) -> Any:
    """`change(array)` applied to a model's own parameters, and not to its members'."""
    own, members = _own_and_members(models)
    changed = [change(values) for _, _, values in own] + [values for _, _, values in members]
    return jax.tree.unflatten(jax.tree.structure(models), changed)


def _own_and_members(models: Any) -> tuple[list[Any], list[Any]]:
    """The leaves of a latent structure (its child is its last field), and those of its child."""
    flat = leaves(models)
    own = len(flat) - len(jax.tree.leaves(models.child))
    return flat[:own], flat[own:]


def widen(models: Any, capacity: int) -> Any:
    """The same models with components (states) added up to `capacity` that no row can be in."""
    k = models.child.batch_shape[-1]
    if k == capacity:
        return models

    def longer(a: np.ndarray, axis: int) -> np.ndarray:
        return np.concatenate([a, np.repeat(np.take(a, [-1], axis), capacity - k, axis)], axis)

    def unused(own: np.ndarray) -> np.ndarray:
        # Weights and transitions are distributions along their last axis.
        return np.where(np.arange(capacity) < k, own, 0)

    return map_own(unused, map_states(longer, models))


def narrow(starts: Any, capacity: int) -> Any:
    """Models `[G, R, K, ...]` cut to their first components, of which the others are not in use."""
    groups, restarts = starts.batch_shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(groups * restarts, *leaf.shape[2:]), starts)
    cut = map_states(lambda a, axis: np.take(a, np.arange(capacity), axis), flat)
    return jax.tree.map(lambda leaf: leaf.reshape(groups, restarts, *leaf.shape[1:]), cut)
