"""What a person passes as data, made ready: arrays, weights, labels."""

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
"""Times the largest number that counts: what lies beyond could overflow."""


def prepare(x: Any, weight: Any, labels: Any, components: int | None = None) -> tuple[Any, Array, Array | None]:
    """Rows (`Incomplete` if cells are NaN, or `Sequences`), a weight for each, labels; ignored rows made harmless.

    A row of weight zero may hold anything, NaN among it: if it is far beyond the rows that count it is overwritten by
    the one of largest weight, so nothing that it could overflow is left. (If it is not, it stays: what it would add is
    the derivative with respect to its weight.) A row of which nothing was seen has weight zero.

    Raises:
        TypeError: x does not hold numbers.
        ValueError: weight or labels do not fit x, or hold what they may not.
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
        weight = jnp.ones(n, values.dtype, device=_sharding(values, 1))
        if not isinstance(values, Tracer) and not has_nan(values):
            return x, weight, labels
    weight = _with_auto_mesh(as_weight(weight, (n,), f"{n} rows"))
    return *_harmless(x, beside(values, weight, values.dtype)), labels


def _harmless(x: Any, weight: Array) -> tuple[Any, Array]:
    """Rows and weights, zero where nothing was seen; what counts for nothing and could overflow is overwritten."""
    values: Any = getattr(x, "values", x)
    if weight.shape[0] == 0:  # which may be a symbol, in `jax.export`
        return x, weight
    values, counts, lib = _with_library(values, weight)
    counts = lib.where(unseen_rows(values), 0, counts)
    heaviest, size = lib.argmax(counts), lib.max(lib.abs(values).reshape(counts.shape[0], -1), axis=1)
    # NaN is not at most anything.
    ignored = (counts <= 0) & ~(size <= OVERFLOW_FACTOR * lib.max(lib.where((counts > 0) & ~lib.isnan(size), size, 0)))

    def harmless(leaf: Array) -> Array:
        leaf = lib.asarray(leaf)
        kept = lib.where(ignored.reshape(-1, *(1 for _ in leaf.shape[1:])), leaf[heaviest][None], leaf)
        # Put there, not computed: cells that were not seen are no error under `jax_debug_nans`.
        return jax.device_put(kept, may_alias=False) if lib is np else kept

    if lib is jnp or ignored.any():
        x = jax.tree.map(harmless, x)
    rows = incomplete(x) if isinstance(x, (jax.Array, np.ndarray)) else x
    return rows, beside(getattr(x, "values", x), counts, weight.dtype)


def _with_library(values: Array, weight: Array) -> tuple[Any, Any, Any]:
    """Both, and the library for a look at them: NumPy if they are known and here, as it compiles nothing."""
    if not any(isinstance(array, Tracer) for array in (values, weight)):
        here = as_numpy_if_local(values), as_numpy_if_local(weight)
        if all(isinstance(array, np.ndarray) for array in here):
            return *here, np
    return values, weight, jnp


def beside(x: Any, values: Any, dtype: Any) -> Array:
    """Values for each row of an array (for each step of its sequences), on the devices where those are."""
    values = values.astype(dtype, copy=False) if isinstance(values, np.ndarray) else values
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


def _with_auto_mesh(data: Any) -> Any:
    """Data on the same devices, of a mesh that leaves to the compiler how what comes of them is spread (Auto).

    With another kind each array would have to say so.
    """

    def eased(leaf: Any) -> Any:
        mesh = mesh_of(leaf)
        if mesh is None or all(kind == AxisType.Auto for kind in mesh.axis_types):
            return leaf
        return jax.device_put(leaf, NamedSharding(Mesh(mesh.devices, mesh.axis_names), leaf.sharding.spec))

    return jax.tree.map(eased, data)


def as_weight(weight: Any, shape: tuple[Any, ...], rows: str, name: str = "weight") -> Any:
    """Weights as an array of this shape, all of them finite and zero or above.

    Args:
        weight: what was passed.
        shape: that it must have.
        rows: what it belongs to, for messages: `"3 rows"`.
        name: of the argument, for messages.
    """
    weight = numbers(weight, name)
    if weight.shape != shape:
        raise ValueError(f"{name} has shape {weight.shape}; with {rows} it must be {shape}")
    check_weight(weight, name)
    return weight


def check_weight(weight: Any, name: str = "weight") -> None:
    """Raise ValueError unless all weights are finite and zero or above. Traced values cannot be looked at."""
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
    """Labels as an array, -1 where none is known: where a masked array is masked, where None stands, or NA.

    Args:
        labels: what was passed: integers, and if `steps` are given a list of them for each sequence.
        name: of the argument, for messages.
        steps: to how many steps those of a sequence are padded.
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
    found = numbers(labels, name)
    return found.astype(np.int32) if not found.size else found


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
    """`x` as a float array on the device, NaN where a cell was not seen (masked, None, NA).

    Args:
        x: anything that holds numbers: see `arrays.numbers`.
        dtype: that of the model which reads them; if left out that of x, as `arrays.float_type` has it.
        name: of the argument, for messages.

    Raises:
        TypeError: x does not hold numbers.

    Warns:
        UserWarning: where 64-bit types are on, but the model's are not, and numbers are rounded.
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
    """Rows `[n]` or `[n, D]`, one at least, as floats: for those who do not know of any model yet.

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
    """Have numbers lost digits?"""
    return not np.array_equal(narrow.astype(np.float64), x.astype(np.float64, copy=False), equal_nan=True)


def stack(arrays: Sequence[Any], length: int | np.integer, fill: float = 0) -> np.ndarray:
    """Arrays of different lengths as one, `[len(arrays), length, ...]`, padded with `fill`."""
    arrays = [np.asarray(array) for array in arrays]
    out = np.full((len(arrays), length, *arrays[0].shape[1:]), fill, np.result_type(*arrays))
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


def presence(lengths: Sequence[int] | np.ndarray, length: int | np.integer, dtype: Any) -> np.ndarray:
    """One for rows that are there, zero for padding: `[len(lengths), length]`."""
    return (np.arange(length) < np.asarray(lengths)[:, None]).astype(dtype)


def stacked(
    arrays: Sequence[np.ndarray], length: int, weight: Sequence[Any] | None, labels: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows of several problems as one array, padded to a length with rows of weight zero; weights; labels, if known."""
    there = presence([len(array) for array in arrays], length, float)
    if weight is not None:
        there = there * stack([np.asarray(w, float) for w in weight], length)
    return stack(arrays, length), there, None if labels is None else stack(labels, length, fill=-1)
