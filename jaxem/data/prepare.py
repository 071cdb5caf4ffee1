"""Preparation of the data that a person passes: arrays, weights, labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxem.core.pytree import replace
from jaxem.data.arrays import float_type, numbers, place
from jaxem.data.missing import Incomplete, as_numpy_if_local, has_nan, incomplete, unseen_rows

OVERFLOW_FACTOR = 1e3
"""A number of weight zero that is larger by this factor than all of positive weight could overflow."""


def prepare(x: Any, weight: Any, labels: Any, components: int | None = None) -> tuple[Any, Array, Array | None]:
    """Rows (`Incomplete` if cells are missing, or `Sequences`), weights and labels; ignored rows made harmless.

    A row of weight zero may hold anything, NaN included: if it is far larger than the rows that count it is replaced by
    the one of largest weight, so nothing can overflow. (If it is not, it stays, because it determines the derivative
    with respect to its weight.) A row without any observed cell gets weight zero.

    Raises:
        TypeError: x does not hold numbers.
        ValueError: weight or labels do not fit x, or hold invalid values.
    """
    x = _with_auto_mesh(x)
    values: Any = getattr(x, "values", x)
    if values.ndim == 0:
        raise ValueError("x is a single number; it must be rows, [n] or [n, D]")
    n = values.shape[0]
    if labels is not None:
        # One for each row; one for each step of a sequence.
        of_steps = hasattr(x, "length")
        shape: Any = values.shape[:2] if of_steps else (n,)
        labels = _with_auto_mesh(as_labels(labels, steps=shape[1] if of_steps else None))
        labels = labels[None] if of_steps and n == 1 and labels.ndim == 1 else labels
        if labels.shape != shape:
            raise ValueError(f"labels has shape {labels.shape}; with this x it must be {shape}")
        check_labels(labels, components)
        labels = beside(values, labels, jnp.int32)
    if weight is None:
        weight = _ones(values)
        if not isinstance(values, Tracer) and not has_nan(values):
            return x, weight, labels
    weight = _with_auto_mesh(as_weight(weight, (n,), f"{n} rows"))
    return *_harmless(x, beside(values, weight, values.dtype)), labels


def _ones(values: Any) -> Any:
    """A one for each row, on the devices of the rows; by NumPy, as it compiles nothing, where that is possible."""
    sharding = _sharding(values, 1)
    if isinstance(values, Tracer) or sharding is not None or not isinstance(values.shape[0], int):
        return jnp.ones(values.shape[0], values.dtype, device=sharding)
    return jax.device_put(np.ones(values.shape[0], values.dtype), may_alias=False)


def _harmless(x: Any, weight: Array) -> tuple[Any, Array]:
    """Rows and weights: zero weight for unobserved rows; ignored rows replaced where they could overflow."""
    values: Any = getattr(x, "values", x)
    if weight.shape[0] == 0:  # possibly a symbol, in `jax.export`
        return x, weight
    values, counts, lib = _with_library(values, weight)
    counts = lib.where(unseen_rows(values), 0, counts)
    heaviest, size = lib.argmax(counts), lib.max(lib.abs(values).reshape(counts.shape[0], -1), axis=1)
    # Written so that NaN counts as too large.
    ignored = (counts <= 0) & ~(size <= OVERFLOW_FACTOR * lib.max(lib.where((counts > 0) & ~lib.isnan(size), size, 0)))

    def harmless(leaf: Array) -> Array:
        leaf = lib.asarray(leaf)
        kept = lib.where(ignored.reshape(-1, *(1 for _ in leaf.shape[1:])), leaf[heaviest][None], leaf)
        # Selected, not computed: missing cells raise no error under `jax_debug_nans`.
        return jax.device_put(kept, may_alias=False) if lib is np else kept

    if lib is jnp or ignored.any():
        x = jax.tree.map(harmless, x)
    rows = incomplete(x) if isinstance(x, (jax.Array, np.ndarray)) else x
    return rows, beside(getattr(x, "values", x), counts, weight.dtype)


def _with_library(values: Array, weight: Array) -> tuple[Any, Any, Any]:
    """Both arrays, and the library to examine them with: NumPy for concrete local arrays, as it compiles nothing."""
    if not any(isinstance(array, Tracer) for array in (values, weight)):
        here = as_numpy_if_local(values), as_numpy_if_local(weight)
        if all(isinstance(array, np.ndarray) for array in here):
            return *here, np
    return values, weight, jnp


def beside(x: Any, values: Any, dtype: Any) -> Array:
    """`values` for each row of an array (each step of its sequences), on the devices of that array."""
    values = values.astype(dtype, copy=False) if isinstance(values, np.ndarray) else values
    values, sharding = jnp.asarray(values, dtype), _sharding(x, np.ndim(values))
    return values if sharding is None else jax.device_put(values, sharding)


def _sharding(x: Any, ndim: int) -> NamedSharding | None:
    """Sharding of the leading axes of an array; None if it lies on one device."""
    mesh = mesh_of(x)
    return None if mesh is None else NamedSharding(mesh, P(*x.sharding.spec[:ndim]))


def mesh_of(x: Any) -> Mesh | None:
    """Mesh over which an array is sharded; None if it is not."""
    sharding = x.sharding if isinstance(x, jax.Array) and not isinstance(x, Tracer) else None
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def _with_auto_mesh(data: Any) -> Any:
    """Data on the same devices, of a mesh whose axes are `Auto`: the compiler chooses the sharding of results.

    With explicit axes each array operation would have to declare its sharding.
    """

    def eased(leaf: Any) -> Any:
        mesh = mesh_of(leaf)
        if mesh is None or all(kind == AxisType.Auto for kind in mesh.axis_types):
            return leaf
        return jax.device_put(leaf, NamedSharding(Mesh(mesh.devices, mesh.axis_names), leaf.sharding.spec))

    return jax.tree.map(eased, data)


def as_weight(weight: Any, shape: tuple[Any, ...], rows: str, name: str = "weight") -> Any:
    """Weights as an array of this shape, all finite and at least zero.

    Args:
        weight: the argument.
        shape: required shape.
        rows: description of the rows, for messages: `"3 rows"`.
        name: of the argument, for messages.
    """
    weight = numbers(weight, name)
    if weight.shape != shape:
        raise ValueError(f"{name} has shape {weight.shape}; with {rows} it must be {shape}")
    check_weight(weight, name)
    return weight


def check_weight(weight: Any, name: str = "weight") -> None:
    """Raise ValueError unless all weights are finite and at least zero. Traced values cannot be checked."""
    if isinstance(weight, Tracer):
        return
    weight = as_numpy_if_local(weight)
    if not (fine := (weight >= 0) & (weight < np.inf)).all():
        at = tuple(int(i) for i in np.argwhere(~np.asarray(fine))[0])
        raise ValueError(
            f"{name} has entries that are negative or not finite, {float(weight[at]):g} in {place(at)}; a weight must "
            "be zero or above"
        )


def as_labels(labels: Any, name: str = "labels", steps: int | None = None) -> Any:
    """Labels as an array, -1 where unknown: masked, None or NA.

    Args:
        labels: integers, or if `steps` is given a list of them for each sequence.
        name: of the argument, for messages.
        steps: padded number of steps of a sequence.
    """
    if isinstance(labels, jax.Array):
        return labels
    if steps is not None and isinstance(labels, (list, tuple)) and any(np.ndim(each) for each in labels):
        known = [as_labels([] if each is None else each, f"{name}[{i}]") for i, each in enumerate(labels)]
        if any(len(each) > steps for each in known):
            first = next(i for i, each in enumerate(known) if len(each) > steps)
            raise ValueError(f"{name}[{first}] has {len(known[first])} steps; no sequence has more than {steps}")
        return stack(known, steps, fill=-1)
    if isinstance(labels, np.ma.MaskedArray):
        return labels.filled(-1) if labels.dtype.kind in "iu" else numbers(labels, name)
    for fill in ("fill_null", "fillna"):  # of polars and Arrow, and of pandas
        if hasattr(labels, fill):
            return as_labels(np.asarray(getattr(labels, fill)(-1)), name)
    if isinstance(labels, (list, tuple)) and any(each is None for each in labels):
        labels = [-1 if each is None else each for each in labels]
    read = numbers(labels, name)
    return read.astype(np.int32) if not read.size else read


def check_labels(labels: Any, components: int | None, name: str = "labels") -> None:
    """Raise ValueError unless labels are integers from -1 (unknown) to the last component."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} holds values of type {labels.dtype}; it must hold integers, -1 where none is known")
    if isinstance(labels, Tracer) or not labels.size:
        return
    labels = as_numpy_if_local(labels)
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or (components is not None and high >= components):
        last = "the last component" if components is None else components - 1
        raise ValueError(f"{name} go from {low} to {high}; they must be -1 (unknown) or from 0 to {last}")


def as_floats(x: Any, dtype: Any = None, name: str = "x") -> Any:
    """`x` as a float array on the device, NaN where a cell is missing (masked, None, NA).

    Args:
        x: anything that holds numbers: see `arrays.numbers`.
        dtype: that of the model; if left out, `arrays.float_type` of that of x.
        name: of the argument, for messages.

    Raises:
        TypeError: x does not hold numbers.

    Warns:
        UserWarning: numbers are rounded because the model's floats are narrower, although 64-bit types are enabled.
    """
    if isinstance(x, Incomplete):
        return replace(x, values=as_floats(x.values, dtype, name))
    x = numbers(x, name)
    dtype = float_type(x.dtype) if dtype is None else dtype
    if x.dtype == dtype:
        # Copied once: `jnp.asarray` passes NumPy data through a second copy.
        return x if isinstance(x, jax.Array) else jax.device_put(x, may_alias=False)
    if isinstance(x, Tracer) or not isinstance(here := as_numpy_if_local(x), np.ndarray):
        return x.astype(dtype)
    device = x.sharding if isinstance(x, jax.Array) else None
    with np.errstate(over="ignore"):
        converted = here.astype(dtype)
    if dtype == np.float32 and jnp.result_type(float) == np.float64 and _is_rounded(here, converted):
        warnings.warn(
            f"{name} is {here.dtype} and the model float32, so numbers are rounded; to keep their digits make the "
            "parameters of the model float64, and to be rid of this warning pass float32",
            stacklevel=2,
        )
    return jax.device_put(converted, device, may_alias=False)


def as_table(x: Any, name: str = "x") -> Any:
    """Rows `[n]` or `[n, D]`, at least one, as floats, where there is no model yet.

    Raises:
        TypeError: x does not hold numbers.
        ValueError: another number of axes, no rows or no columns.
    """
    x = as_floats(x, name=name)
    shape = getattr(x, "values", x).shape
    if len(shape) not in (1, 2):
        axes = "is a single number" if not shape else f"has shape {shape}"
        raise ValueError(
            f"{name} {axes}; it must be rows, [n] or [n, D] (several problems are for start_many, fit_many)"
        )
    if 0 in shape:
        raise ValueError(f"{name} has no {'columns' if shape[0] else 'rows'}; it needs one at least")
    return x


def _is_rounded(x: np.ndarray, narrow: np.ndarray) -> bool:
    """Whether conversion lost digits."""
    return not np.array_equal(narrow.astype(np.float64), x.astype(np.float64, copy=False), equal_nan=True)


def stack(arrays: Sequence[Any], length: int | np.integer, fill: float = 0) -> np.ndarray:
    """Arrays of different lengths as one, `[len(arrays), length, ...]`, padded with `fill`."""
    arrays = [np.asarray(array) for array in arrays]
    out = np.full((len(arrays), length, *arrays[0].shape[1:]), fill, np.result_type(*arrays))
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


def presence(lengths: Sequence[int] | np.ndarray, length: int | np.integer, dtype: Any) -> np.ndarray:
    """One for rows, zero for padding: `[len(lengths), length]`."""
    return (np.arange(length) < np.asarray(lengths)[:, None]).astype(dtype)


def stacked(
    arrays: Sequence[np.ndarray], length: int, weight: Sequence[Any] | None, labels: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows of several problems as one padded array, weights (zero for padding), and labels if known."""
    there = presence([len(array) for array in arrays], length, float)
    if weight is not None:
        there = there * stack([np.asarray(w, float) for w in weight], length)
    return stack(arrays, length), there, None if labels is None else stack(labels, length, fill=-1)
