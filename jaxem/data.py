"""What a person passes as data, made ready: arrays, weights, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxem.missing import Incomplete, at_hand, has_nan, incomplete, unseen_rows
from jaxem.pytree import replace

TAME = 1e3
"""Times the largest number that counts: what lies beyond could overflow."""


def ready(x: Any, weight: Any, labels: Any, components: int | None = None) -> tuple[Any, Array, Array | None]:
    """Rows (`Incomplete` if cells are NaN, or `Sequences`), a weight for each, labels; ignored rows made harmless.

    A row of weight zero may hold anything, NaN among it: if it is far beyond the rows that count it is overwritten by
    the one of largest weight, so nothing that it could overflow is left. (If it is not, it stays: what it would add is
    the derivative with respect to its weight.) A row of which nothing was seen has weight zero.

    Raises:
        TypeError: x does not hold numbers.
        ValueError: weight or labels do not fit x, or hold what they may not.
    """
    x, weight, labels = _eased((x, weight, labels))
    values: Any = getattr(x, "values", x)
    if values.ndim == 0:
        raise ValueError("x is a single number; it must be rows, [n] or [n, D]")
    n = values.shape[0]
    if labels is not None:
        # One for each row; one for each step of a sequence.
        of_steps = hasattr(x, "length")
        shape: Any = values.shape[:2] if of_steps else (n,)
        if of_steps and isinstance(labels, (list, tuple)):
            labels = stack([np.asarray(known) for known in labels], shape[1], fill=-1)
        if np.shape(labels) != shape:
            raise ValueError(f"labels has shape {np.shape(labels)}; with this x it must be {shape}")
        check_labels(labels, components)
        labels = beside(values, labels, jnp.int32)
    if weight is None:
        weight = jnp.ones(n, values.dtype, device=_sharding(values, 1))
        if not isinstance(values, Tracer) and not has_nan(values):
            return x, weight, labels
    if np.shape(weight) != (n,):
        raise ValueError(f"weight has shape {np.shape(weight)}; with {n} rows it must be ({n},)")
    check_weight(weight)
    weight = beside(values, weight, values.dtype)
    return *_harmless(x, weight), labels


def _harmless(x: Any, weight: Array) -> tuple[Any, Array]:
    """Rows and weights, zero where nothing was seen; what counts for nothing and could overflow is overwritten."""
    values: Any = getattr(x, "values", x)
    if not len(weight):
        return x, weight
    values, counts, lib = _with_library(values, weight)
    counts = lib.where(unseen_rows(values), 0, counts)
    heaviest, size = lib.argmax(counts), lib.max(lib.abs(values).reshape(len(counts), -1), axis=1)
    # NaN is not at most anything.
    ignored = (counts <= 0) & ~(size <= TAME * lib.max(lib.where((counts > 0) & ~lib.isnan(size), size, 0)))

    def harmless(leaf: Array) -> Array:
        leaf = lib.asarray(leaf)
        return jnp.asarray(lib.where(ignored.reshape(-1, *(1 for _ in leaf.shape[1:])), leaf[heaviest][None], leaf))

    if lib is jnp or ignored.any():
        x = jax.tree.map(harmless, x)
    return incomplete(x), beside(getattr(x, "values", x), counts, weight.dtype)


def _with_library(values: Array, weight: Array) -> tuple[Any, Any, Any]:
    """Both, and the library for a look at them: NumPy if they are known and here, as it compiles nothing."""
    if not any(isinstance(array, Tracer) for array in (values, weight)):
        here = at_hand(values), at_hand(weight)
        if all(isinstance(array, np.ndarray) for array in here):
            return *here, np
    return values, weight, jnp


def beside(x: Any, values: Any, dtype: Any) -> Array:
    """Values for each row of an array (for each step of its sequences), on the devices where those are."""
    values, sharding = jnp.asarray(values, dtype), _sharding(x, np.ndim(values))
    return values if sharding is None else jax.device_put(values, sharding)


def _sharding(x: Any, ndim: int) -> NamedSharding | None:
    """How the first axes of an array are spread over devices, if they are."""
    mesh = mesh_of(x)
    return None if mesh is None else NamedSharding(mesh, P(*x.sharding.spec[:ndim]))


def mesh_of(x: Any) -> Mesh | None:
    """The devices that an array is spread over, if it is."""
    sharding = x.sharding if isinstance(x, jax.Array) and not isinstance(x, Tracer) else None
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def _eased(data: Any) -> Any:
    """Data on the same devices, of a mesh that leaves to the compiler how what comes of them is spread (Auto).

    With another kind each array would have to say so.
    """

    def eased(leaf: Any) -> Any:
        mesh = mesh_of(leaf)
        if mesh is None or all(kind == AxisType.Auto for kind in mesh.axis_types):
            return leaf
        return jax.device_put(leaf, NamedSharding(Mesh(mesh.devices, mesh.axis_names), leaf.sharding.spec))

    return jax.tree.map(eased, data)


def check_weight(weight: Any) -> None:
    """Raise ValueError unless all weights are finite and zero or above. Traced values cannot be looked at."""
    if not isinstance(weight, Tracer) and not (((weight := at_hand(weight)) >= 0) & (weight < np.inf)).all():
        raise ValueError("weight has entries that are negative or not finite; a weight must be zero or above")


def check_labels(labels: Any, components: int | None) -> None:
    """Raise ValueError unless labels are integers from -1 (unknown) to the last component."""
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels holds values of type {labels.dtype}; it must hold integers")
    if isinstance(labels, Tracer) or not labels.size:
        return
    labels = at_hand(labels)
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or (components is not None and high >= components):
        last = "the last component" if components is None else components - 1
        raise ValueError(f"labels go from {low} to {high}; they must be -1 (unknown) or from 0 to {last}")


def as_floats(x: Any) -> Any:
    """`x` as a float array: floats keep their type, integers and booleans take the default float.

    Raises:
        TypeError: x does not hold numbers.
    """
    if isinstance(x, Incomplete):
        return replace(x, values=as_floats(x.values))
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        if x.dtype.kind not in "biuf":
            raise TypeError(f"x holds values of type {x.dtype}; it must hold numbers")
    if jnp.issubdtype(x.dtype, jnp.floating):
        # Copied once: `jnp.asarray` passes NumPy data through a second copy.
        return x if isinstance(x, jax.Array) else jax.device_put(x, may_alias=False)
    return jnp.asarray(x, jnp.result_type(float))


def stack(arrays: Sequence[Any], length: int | np.integer, fill: float = 0) -> np.ndarray:
    """Arrays of different lengths as one, `[len(arrays), length, ...]`, padded with `fill`."""
    first = np.asarray(arrays[0])
    out = np.full((len(arrays), length, *first.shape[1:]), fill, first.dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


def presence(lengths: Sequence[int] | np.ndarray, length: int | np.integer, dtype: Any) -> np.ndarray:
    """One for rows that are there, zero for padding: `[len(lengths), length]`."""
    return (np.arange(length) < np.asarray(lengths)[:, None]).astype(dtype)


def stacked(
    arrays: Sequence[Any], length: int, weight: Sequence[Any] | None, labels: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows of several problems as one array, padded to a length with rows of weight zero; weights; labels, if known."""
    there = presence([len(array) for array in arrays], length, float)
    if weight is not None:
        there = there * stack([np.asarray(w, float) for w in weight], length)
    known = None if labels is None else stack([np.asarray(each) for each in labels], length, fill=-1)
    return stack([np.asarray(array) for array in arrays], length), there, known
