"""One problem padded to one of few lengths, so that the next of nearly the same length is the same program."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxem.core.pytree import replace
from jaxem.data.missing import Incomplete
from jaxem.data.padding import bucket
from jaxem.data.sequences import Sequences

RATIO = 2.5
"""Of one padded number of rows to the next: six of them cover 100 to 10,000."""


def padded_rows(x: Any, weight: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Rows (sequences and their steps) with more of weight zero, and labels of -1; data of other kinds as they are.

    All of it by NumPy, which compiles nothing.

    >>> x, weight, _ = padded_rows(np.ones((100, 2)), np.ones(100), None)
    >>> x.shape, float(weight.sum())
    ((128, 2), 100.0)
    """
    if isinstance(x, Sequences):
        shape = bucket(len(x)), bucket(x.steps, RATIO, multiple=8)
        padded: Any = x.padded(*shape, masked=x.mask is not None)
    elif isinstance(x, Incomplete):
        shape = (bucket(len(x), RATIO, multiple=8),)
        padded = replace(x, values=_longer(x.values, shape, mode="edge"))
    elif isinstance(x, (jax.Array, np.ndarray)):
        shape = (bucket(len(x), RATIO, multiple=8),)
        padded = _longer(x, shape, mode="edge")
    else:
        return x, weight, labels
    labels = None if labels is None else _longer(labels, shape, constant_values=-1)
    return _on_device((padded, _longer(weight, shape[:1]), labels))


def padded_members(models: Any) -> Any:
    """Models with one leading axis, the last of them repeated up to a power of two."""
    if not models.batch_shape:
        return models
    (count,) = models.batch_shape
    return _on_device(jax.tree.map(lambda leaf: _longer(leaf, (bucket(count),), mode="edge"), models))


def is_local(*data: Any) -> bool:
    """Whether all arrays are known and on one CPU."""
    leaves = jax.tree.leaves(data)
    return not any(isinstance(leaf, Tracer) or (isinstance(leaf, jax.Array) and _is_far(leaf)) for leaf in leaves)


def _is_far(leaf: jax.Array) -> bool:
    return len(leaf.devices()) > 1 or next(iter(leaf.devices())).platform != "cpu"


def _longer(array: Any, shape: tuple[int, ...], **how: Any) -> np.ndarray:
    """The array with its first axes as long as this."""
    array = np.asarray(array)
    short = [(0, length - own) for length, own in zip(shape, array.shape, strict=False)]
    return np.pad(array, short + [(0, 0)] * (array.ndim - len(short)), **how)


def _on_device(data: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=False), data)
