"""Components of fitted models: padded, taken one by one, put into another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.constraints import Constraint, leaves, named_axes, walk
from jaxem.distributions.either import Either, EitherFamily

Change = Callable[[np.ndarray, int], np.ndarray]


def is_per_component(constraint: Constraint, values: Any) -> bool:
    """Whether this parameter of the members of stacked models, `[G, ...]`, has an axis of members after the first.

    What the members share (one covariance) has none.
    """
    return values.ndim - constraint.event_ndim >= 2


def map_states(change: Change, models: Any) -> Any:
    """`change(array, axis)` applied to every axis of stacked models that counts hidden states.

    Of a model's own parameters these are the axes named so; of its members' parameters it is the axis of members. Where
    members are of different families, that counts those of one family: the change must leave the others in their place.
    """

    def own(name: str, values: Any) -> Any:
        for axis in _state_axes(models, name):
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

    return _mapped(own, member, models)


def _state_axes(models: Any, name: str) -> list[int]:
    """The axes of one of the model's own parameters that count hidden states."""
    axes = named_axes(models)[name]
    before = getattr(models, name).ndim - len(axes)
    return [before + place for place, axis in enumerate(axes) if axis == "state"]


def _mapped(own: Callable[[str, Any], Any], member: Callable[[Any, Constraint, Any], Any], models: Any) -> Any:
    """`own(name, values)` of a model's own parameters, and `member(path, constraint, values)` of its members'."""
    declared = named_axes(models)
    changed = [
        own(path[0].name, values) if path[0].name in declared else member(path, limit, values)
        for path, limit, values in leaves(models)
    ]
    return jax.tree.unflatten(jax.tree.structure(models), changed)


def fixed_states(models: Any) -> int:
    """The number of first states that are of a family of their own, and so keep their place."""
    return _fixed(models.child)


def _fixed(family: Any) -> int:
    """The number of such members of a family: all of `Either` but those of the last."""
    return len(family.parts) - 1 if isinstance(family, (Either, EitherFamily)) else 0


def _first_state(models: Any, path: Any) -> int:
    """The first state that a parameter is about."""
    return next(key.idx for key in path if hasattr(key, "idx")) if fixed_states(models) else 0


def _own_and_members(models: Any) -> tuple[list[Any], list[Any]]:
    """The leaves of a latent structure's own parameters, and those of its members."""
    declared, flat = named_axes(models), leaves(models)
    own = [leaf for leaf in flat if leaf[0][0].name in declared]
    return own, [leaf for leaf in flat if leaf[0][0].name not in declared]


def widen(models: Any, capacity: int) -> Any:
    """The models with components (states) added up to `capacity` that no row can be in."""
    k = models.child.batch_shape[-1]
    if k == capacity:
        return models

    def longer(a: np.ndarray, axis: int) -> np.ndarray:
        return np.concatenate([a, np.repeat(np.take(a, [-1], axis), capacity - k, axis)], axis)

    wide = map_states(longer, models)

    def unused(name: str, own: np.ndarray) -> np.ndarray:
        # A distribution over states is one along its last axis.
        over_states = own.ndim - 1 in _state_axes(wide, name)
        return np.where(np.arange(capacity) < k, own, 0) if over_states else own

    return _mapped(unused, lambda path, limit, values: values, wide)


def narrow(starts: Any, capacity: int) -> Any:
    """Models `[G, R, K, ...]` cut to their first components, of which the others are not in use."""
    groups, restarts = starts.batch_shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(groups * restarts, *leaf.shape[2:]), starts)
    cut = map_states(lambda a, axis: np.take(a, np.arange(capacity), axis), flat)
    return jax.tree.map(lambda leaf: leaf.reshape(groups, restarts, *leaf.shape[1:]), cut)


def reordered(model: Any, order: Any) -> Any:
    """A model, or a batch, with its components in another order: see `Latent.reordered`."""
    name, members, size = type(model).__name__, model.batch_shape, model.child.batch_shape[-1]
    if not any("state" in axes for axes in named_axes(model).values()):
        raise TypeError(f"{name} does not say which axes of its parameters count components, so it has no other order")
    if any(leaf.mask is not None or leaf.first is not None for leaf in walk(model)):
        raise ValueError(f"{name} holds or ties some components only; release them (jem.release) before reordering")
    order, places = np.asarray(order), np.arange(size)
    if order.shape[-1:] != (size,) or not np.array_equal(np.sort(order, axis=-1), np.broadcast_to(places, order.shape)):
        raise ValueError(f"order is {order.tolist()}; it must hold each number from 0 to {size - 1} once")
    if (order[..., : (fixed := fixed_states(model))] != places[:fixed]).any():
        raise ValueError(f"order moves one of the first {fixed} components, which are of families of their own")
    if order.shape[:-1] not in ((), members):
        raise ValueError(f"order has shape {order.shape}; with this model it must be {(*members, size)}")
    order = np.broadcast_to(order, (*members, size)).reshape(-1, size)

    def sort(a: np.ndarray, axis: int) -> np.ndarray:
        shape = [1] * a.ndim
        shape[0], shape[axis] = order.shape
        return np.take_along_axis(a, order.reshape(shape), axis)

    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(len(order), *leaf.shape[len(members) :]), model)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.reshape(*members, *leaf.shape[1:])), map_states(sort, flat))
