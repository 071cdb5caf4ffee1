"""Fingerprints of the arguments of a call: equal in every process, and different when anything relevant is."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)


def fingerprint(value: Any) -> str:
    """Hash of arrays, models, solvers, and structures of them; functions count by their code and closures.

    >>> import jaxem as jem
    >>> fingerprint(jem.Poisson(2.0)) == fingerprint(jem.Poisson(2.0)), fingerprint(jem.Poisson(3.0))[:7]
    (True, 'sha256:')
    """
    digest = hashlib.sha256()
    for part in _parts(value, set()):
        digest.update(part)
        digest.update(b"\0")
    return f"sha256:{digest.hexdigest()[:20]}"


def _parts(value: Any, seen: set[int]) -> Iterator[bytes | memoryview]:
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        yield str(value.dtype).encode()
        yield from _parts(jax.random.key_data(value), seen)
    elif hasattr(value, "__array__"):
        array = np.ascontiguousarray(value)
        yield f"array {array.dtype} {np.shape(value)}".encode()
        yield array.reshape(-1).view(np.uint8).data
    elif id(value) not in seen:  # a function may enclose itself
        yield _name(value).encode()
        for inner in _contents(value):
            yield from _parts(inner, seen | {id(value)})


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _contents(value: Any) -> Any:
    """Contents of an object, in a fixed order."""
    if isinstance(value, (list, tuple)):
        return len(value), *value
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, types.FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__code__, value.__defaults__, value.__kwdefaults__, enclosed
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, type):
        return ()
    # For wrappers such as jit the wrapped function; else the attributes.
    return [getattr(value, "__wrapped__", None) or getattr(value, "__dict__", None)]
