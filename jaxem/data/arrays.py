"""Arrays of numbers from frames, masked arrays, lists with gaps, and numbers of any type."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Set
from decimal import Decimal
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

GAPS = ("NoneType", "NAType", "NaTType", "MaskedConstant")
"""Names of the types that stand for a missing value in Python, pandas and NumPy."""
NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating, Decimal, Fraction)
PLAIN = frozenset(np.dtype(name) for name in ("float32", "float64", "int32", "int64", "bool"))
"""Types that JAX reads as they are: the common case, which skips all other checks."""
OTHERWISE = "it must hold numbers (None, NaN or a mask where nothing was seen)"


def numbers(x: Any, name: str = "x") -> Any:
    """`x` as an array of floats, integers or booleans that JAX can read; NaN where a cell is missing.

    A cell is missing where a masked array is masked, and where it is None or pandas' NA: integers with such cells
    become floats. Frames (pandas, polars, pyarrow, structured arrays) are read column by column. NumPy does all of it
    and compiles nothing; arrays of JAX, traced ones among them, pass unchanged.

    Args:
        x: anything that holds numbers.
        name: of the argument, for messages.

    Raises:
        TypeError: it holds anything but numbers; column and row are named.
        ValueError: a list of arrays of different shapes.

    >>> numbers([1, None, 3]).tolist(), numbers(np.ma.masked_equal([1, -99], -99)).tolist()
    ([1.0, nan, 3.0], [1.0, nan])
    """
    if type(x) is np.ndarray and x.dtype in PLAIN:
        return x
    if isinstance(x, jax.Array):
        if x.dtype not in PLAIN and not _is_real(x.dtype):
            raise TypeError(f"{name} holds values of type {x.dtype}; {OTHERWISE}")
        return x
    if isinstance(x, np.ma.MaskedArray):
        return _unmasked(x, name)
    if (columns := _named_columns(x)) is not None:
        return _side_by_side(columns, len(x), name)
    array = np.asarray(x) if isinstance(x, np.ndarray) else _array(x, name)
    if array.dtype.kind == "O":
        array = _from_objects(array, name)
    return array.astype(_readable(array, name), copy=False) if isinstance(array, np.ndarray) else array


def float_type(dtype: Any) -> np.dtype:
    """Default floating-point type for numbers of this type, where no model determines it.

    float32 stays, narrower types are widened to it, and all others, integers among them, take JAX's default: float64
    if `jax_enable_x64` is on, else float32.

    >>> float_type(np.float16).name
    'float32'
    """
    if jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize <= 4:
        return np.dtype(np.float32)
    return np.dtype(jnp.result_type(float))


def as_dtype(number: Any, dtype: Any) -> Array:
    """A number as an array of this type on the device; unless it is traced, nothing is compiled."""
    if isinstance(number, jax.Array):
        return number.astype(dtype)
    return jax.device_put(np.asarray(number, dtype), may_alias=False)


def _is_real(dtype: Any) -> bool:
    # To NumPy a timedelta is an integer, too.
    some = any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    return some and not jnp.issubdtype(dtype, np.timedelta64)


def _readable(x: np.ndarray, name: str) -> np.dtype:
    """Nearest type that JAX can read: of this machine's byte order, 4 or 8 bytes."""
    dtype = x.dtype
    if not _is_real(dtype):
        raise TypeError(f"{name} holds values of type {_describe_type(x)}")
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float32 if dtype.itemsize < 8 else np.float64)
    return np.dtype(np.int32) if dtype.kind == "V" else dtype.newbyteorder("=")


def _describe_type(x: np.ndarray) -> str:
    """Error message for values that are no numbers: which type, where, and what to do."""
    kind = x.dtype.kind
    if kind == "c":
        return f"{x.dtype}; it must hold real numbers: their real and imaginary parts are two columns"
    if kind in "mM":
        unit = "x / np.timedelta64(1, 'D')" if kind == "m" else "(x - x.min()) / np.timedelta64(1, 'D')"
        return f"{x.dtype}; it must hold numbers, for example days: {unit}"
    if not x.size:
        return f"{x.dtype}; {OTHERWISE}"
    at = next((at for at, value in np.ndenumerate(x) if not _is_numeral(value)), None)
    if at is None:
        return f"{x.dtype}; these are numbers written as text: turn them into numbers with x.astype(float)"
    return f"{x.dtype}, {x[at].item()!r} in {place(at)}; {OTHERWISE}"


def _is_numeral(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def place(at: tuple[int, ...]) -> str:
    """Position of an entry in words; rows and columns are counted from zero."""
    if len(at) > 2:
        return f"entry {at}"
    return ", ".join(f"{axis} {i}" for axis, i in zip(("row", "column"), at, strict=False)) or "it"


def _unmasked(x: np.ma.MaskedArray, name: str) -> np.ndarray:
    """The array with NaN for masked cells."""
    if x.dtype.names:
        return _side_by_side([(column, x[column]) for column in x.dtype.names], len(x), name)
    mask = np.ma.getmaskarray(x)
    if not mask.any():
        return numbers(x.data, name)
    if x.dtype.kind == "O":
        return numbers(np.where(mask, np.array(None), x.data), name)
    data = numbers(x.data, name)
    return np.where(mask, np.nan, data.astype(float_type(data.dtype)))  # type: ignore[return-value]


def _named_columns(x: Any) -> list[tuple[Any, Any]] | None:
    """Names and columns of a frame (pandas-like, polars, Arrow, or a structured array); None for anything else."""
    if isinstance(x, np.ndarray):
        return [(name, x[name]) for name in x.dtype.names] if x.dtype.names else None
    if isinstance(x, (list, tuple)):
        return None
    if hasattr(x, "iloc") and hasattr(x, "columns"):
        return [(name, x.iloc[:, i]) for i, name in enumerate(x.columns)]
    if hasattr(x, "get_columns"):
        return [(column.name, column) for column in x.get_columns()]
    if hasattr(x, "column_names") and hasattr(x, "columns"):
        return list(zip(x.column_names, x.columns, strict=True))
    return None


def _side_by_side(columns: list[tuple[Any, Any]], rows: int, name: str) -> np.ndarray:
    """Columns as one array `[rows, columns]`, of a type that holds them all."""
    read = [numbers(column, f"{name}: column {label!r}") for label, column in columns]
    for (label, _), values in zip(columns, read, strict=True):
        if values.ndim != 1:
            raise TypeError(f"{name}: column {label!r} holds arrays; it must hold a number in each row")
    return np.stack(read, axis=1) if read else np.zeros((rows, 0))


def _array(x: Any, name: str) -> Any:
    """`x`, neither an array yet nor a frame, as an array."""
    if isinstance(x, (list, tuple)):
        return _from_list(x, name)
    if hasattr(x, "to_numpy"):
        # A column of pandas or polars; of Arrow, which would rather fail than copy.
        x = x.dictionary_decode() if hasattr(x, "dictionary_decode") else x
        return x.to_numpy(zero_copy_only=False) if type(x).__module__.startswith("pyarrow") else x.to_numpy()
    kind = type(x).__name__
    if isinstance(x, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} is {x!r}; it must be an array of numbers: read the file first")
    if hasattr(x, "todense"):
        raise TypeError(f"{name} is a sparse matrix ({kind}); pass all of its cells: {name}.todense()")
    if hasattr(x, "collect") and hasattr(x, "collect_schema"):
        raise TypeError(f"{name} is a {kind}, which has not been read yet; pass {name}.collect()")
    if isinstance(x, Mapping):
        raise TypeError(f"{name} is a {kind}; pass its columns as one array: np.column_stack(list({name}.values()))")
    if isinstance(x, (Iterator, Set)):
        raise TypeError(f"{name} is a {kind}; pass an array, or list({name})")
    array = _as_array(x, name)
    if array.dtype.kind == "O" and not array.ndim:
        raise TypeError(f"{name} is {'None' if x is None else 'a ' + kind}; it must be an array of numbers")
    return array


def _from_list(x: Any, name: str) -> Any:
    """A list of numbers, or of rows, as an array."""
    # Masked arrays and columns of frames in a list are read one by one: NumPy would lose their masks.
    if any(hasattr(kind, "to_numpy") or issubclass(kind, np.ma.MaskedArray) for kind in set(map(type, x))):
        apart = [np.ndim(each) > 0 or each is np.ma.masked for each in x]
        x = [numbers(each, f"{name}[{i}]") if apart[i] else each for i, each in enumerate(x)]
    return _as_array(x, name)


def _as_array(x: Any, name: str) -> Any:
    try:
        return np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(x)
    except ValueError as error:
        shapes = list(dict.fromkeys(np.shape(each) for each in x if not isinstance(each, (list, tuple))))
        shapes = shapes or [(size,) for size in dict.fromkeys(len(each) for each in x if hasattr(each, "__len__"))]
        if len(shapes) < 2:
            raise ValueError(f"{name} is no array of numbers: {error}") from None
        raise ValueError(
            f"{name} is a list of arrays of different shapes, {shapes[0]} and {shapes[1]}; its rows must be alike: "
            "join arrays with np.concatenate, or pass them to fit_many, each a problem of its own"
        ) from None
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} is a {type(x).__name__} that is no array of numbers: {error}") from error


def _from_objects(x: np.ndarray, name: str) -> np.ndarray:
    """Python's own numbers, possibly with missing values among them, as floats."""
    values = x.ravel().tolist()
    kinds = set(map(type, values))
    gaps = {kind for kind in kinds if kind.__name__ in GAPS}
    wrong = {kind for kind in kinds - gaps if not issubclass(kind, NUMBERS)}
    if wrong:
        first = next(i for i, value in enumerate(values) if type(value) in wrong)
        at, value = tuple(int(i) for i in np.unravel_index(first, x.shape)), values[first]
        shown = "an array" if np.ndim(value) else repr(value)
        raise TypeError(f"{name} holds values of type {type(value).__name__}, {shown} in {place(at)}; {OTHERWISE}")
    floats = [np.nan if type(value) in gaps else float(value) for value in values]
    return np.array(floats, float).reshape(x.shape)
