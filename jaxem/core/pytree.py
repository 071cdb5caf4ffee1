"""Frozen dataclasses that are pytrees, as all objects of jaxem are."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

from jaxem.core.constraints import parameter

T = TypeVar("T")


def static(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is part of the type (a size, a name), not a leaf: a change recompiles."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static, parameter))
def module(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and register it as a pytree whose fields are its children.

    Unflattening does not run `__init__`: checks and conversions happen once, where a person builds
    the object, and never on the tracers and placeholders that JAX puts through a pytree.

    Every `Distribution` gets one field more, `restriction`: see `jaxem.hold` and `jaxem.tie`.
    """
    if hasattr(cls, "restriction") and "restriction" not in getattr(cls, "__dataclass_fields__", {}):
        cls.__annotations__["restriction"] = Any
        cls.restriction = dataclasses.field(default=None, kw_only=True, repr=False)  # type: ignore[attr-defined]
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if f.name not in meta)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    def auxiliary(node: Any) -> tuple[Any, ...]:
        return tuple(getattr(node, name) for name in meta)

    def flatten(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(node, name) for name in data), auxiliary(node)

    def flatten_with_keys(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple((key, getattr(node, key.name)) for key in keys), auxiliary(node)

    def unflatten(aux: Any, children: Any) -> Any:
        node = object.__new__(cls)
        for name, value in zip(data, children, strict=True):
            object.__setattr__(node, name, value)
        for name, value in zip(meta, aux, strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def unchecked(cls: type[T], fields: dict[str, Any]) -> T:
    """A `cls` with these fields; unlike the constructor it checks and converts nothing."""
    new = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(new, name, value)
    return new


def replace(node: T, **changes: Any) -> T:
    """A copy of `node` with some fields changed; unlike the constructor it checks nothing."""
    names = (field.name for field in dataclasses.fields(node))  # type: ignore[arg-type]
    return unchecked(type(node), {name: changes.get(name, getattr(node, name)) for name in names})


def select(condition: jax.Array, yes: T, no: T) -> T:
    """`yes` where the scalar `condition` holds, else `no`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jax.lax.select(jax.numpy.broadcast_to(condition, a.shape), a, b), yes, no)


def apart_as(like: jax.Array, values: T) -> T:
    """The same values, marked as varying over devices where `like` is (inside `jax.shard_map`).

    The derivative with respect to a value common to all devices is summed over them, and a loop whose carry becomes
    device-local must start with a device-local carry. Outside `shard_map` this does nothing.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes or not like.size:
        return values
    either = like.ravel()[0] == 0
    return jax.tree.map(lambda leaf: jax.numpy.where(either, leaf, leaf), values)
