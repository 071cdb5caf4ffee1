"""Models to files and back: safetensors, with what they are in words."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.pytree import unchecked
from jaxem.core.restriction import Restriction
from jaxem.distributions.base import Distribution
from jaxem.distributions.registry import CLASSES
from jaxem.io.atomic import write

FORMAT = "jaxem 1"
HOW = "@jem.family(word, about) above the class of a family, @jem.structure above that of a latent structure"


def save(path: str | os.PathLike[str], model: Any) -> None:
    """Write `model` to `path`: its arrays as safetensors, its structure in the header.

    The file appears whole or not at all.

    Raises:
        TypeError: something in the model is of a class that is not registered (`jem.family`, `jem.structure`).

    >>> import tempfile, os, jaxem as jem
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> jem.save(path, jem.Poisson([1.0, 2.0]))
    >>> jem.load(path).rate.tolist()
    [1.0, 2.0]
    """
    from safetensors.numpy import save as to_bytes

    tensors: dict[str, np.ndarray] = {}
    structure = _describe(model, "model", tensors)
    header = {"format": FORMAT, "structure": json.dumps(structure)}
    write(Path(path), to_bytes(tensors, metadata=header))


def load(path: str | os.PathLike[str]) -> Any:
    """The model that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not from jaxem, or a tensor is missing, superfluous, of another type or
            shape than the structure says, or holds what its parameter may not (NaN among it).

    >>> import tempfile, os, jaxem as jem
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> jem.save(path, jem.Bernoulli([0.25]))
    >>> jem.load(path).probs.tolist()
    [0.25]
    """
    return _read(path, checked=True)


def load_unchecked(path: str | os.PathLike[str]) -> Any:
    """What `save` wrote, to the bit and in NumPy arrays: numbers that no model may hold, as of a failed fit, too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not from jaxem.
    """
    return _read(path, checked=False)


def _read(path: str | os.PathLike[str], checked: bool) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: the header names the format {header.get('format')!r}; jaxem wrote {FORMAT!r}")
    try:
        structure = json.loads(header["structure"])
    except (KeyError, ValueError):
        raise ValueError(f"{path}: the header does not describe a model") from None
    model = _build(structure, "model", tensors, path, checked)
    if tensors:
        raise ValueError(f"{path}: tensors that belong to nothing: {', '.join(sorted(tensors))}")
    return model


def _describe(node: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(node, tuple):
        return [_describe(part, f"{name}.{i}", tensors) for i, part in enumerate(node)]
    if isinstance(node, (jax.Array, np.ndarray)):
        tensors[name] = np.asarray(node, order="C")  # ascontiguousarray would make a vector of a number
        return {"shape": list(node.shape), "dtype": str(node.dtype)}
    if isinstance(node, dict) and name.endswith(".restriction.held"):
        return {"entries": {key: _describe(part, f"{name}.{key}", tensors) for key, part in node.items()}}
    if node is None or isinstance(node, (int, str)):
        return {"value": node}
    if _class(type(node).__name__) is not type(node):
        kind, own = type(node).__name__, isinstance(node, Distribution)
        remedy = f"register it: {HOW}" if own else "only jaxem's own models and registered classes can be saved"
        raise TypeError(f"{name} is a {kind}; {remedy}")
    given = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}  # type: ignore[arg-type]
    if given.get("restriction", ...) is None:
        del given["restriction"]
    fields = {field: _describe(value, f"{name}.{field}", tensors) for field, value in given.items()}
    return {"class": type(node).__name__, "fields": fields}


def _build(structure: Any, name: str, tensors: dict[str, np.ndarray], path: Any, checked: bool) -> Any:
    if isinstance(structure, list):
        return tuple(_build(part, f"{name}.{i}", tensors, path, checked) for i, part in enumerate(structure))
    if not isinstance(structure, dict):
        raise ValueError(f"{path}: the header does not describe {name}")
    if "value" in structure:
        return structure["value"]
    if "entries" in structure:
        return {
            key: _build(part, f"{name}.{key}", tensors, path, checked) for key, part in structure["entries"].items()
        }
    if "shape" in structure:
        tensor = _tensor(structure, name, tensors, path)
        return jnp.asarray(tensor) if checked else tensor
    cls, fields = _class(structure.get("class", "")), structure.get("fields")
    if cls is None:
        raise ValueError(
            f"{path}: {name} is a {structure.get('class')!r}, which is not registered; import the module that "
            f"defines it, with {HOW}"
        )
    if not isinstance(fields, dict) or not _fits(set(fields), cls):
        raise ValueError(f"{path}: {name} is a {structure.get('class')!r} with other fields than jaxem's")
    values = {field: _build(part, f"{name}.{field}", tensors, path, checked) for field, part in fields.items()}
    if not checked:
        return unchecked(cls, values)
    try:
        return cls(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {name}: {error}") from None


def _class(name: str) -> type | None:
    """The class of that name: a registered model, or what a model says of its parameters."""
    return Restriction if name == Restriction.__name__ else CLASSES.get(name)


def _fits(given: set[str], cls: Any) -> bool:
    """Whether these are the fields of a class; those with a default are younger than some files."""
    fields = dataclasses.fields(cls)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    return needed <= given <= {field.name for field in fields}


def _tensor(structure: dict[str, Any], name: str, tensors: dict[str, np.ndarray], path: Any) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"{path}: the tensor {name} is missing")
    tensor = tensors.pop(name)
    if list(tensor.shape) != structure["shape"] or str(tensor.dtype) != structure.get("dtype"):
        raise ValueError(
            f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}; the header says {structure.get('dtype')} "
            f"{structure['shape']}"
        )
    return tensor
