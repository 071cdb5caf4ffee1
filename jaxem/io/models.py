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

from jaxem.core import restriction
from jaxem.core.pytree import unchecked
from jaxem.distributions import (
    bernoulli,
    categorical,
    censored,
    dirichlet,
    either,
    exponential,
    factor_analysis,
    gamma,
    gaussian,
    glm,
    joint,
    laplace,
    lognormal,
    point_mass,
    poisson,
    product,
    regression,
    softmax,
    student_t,
    von_mises,
    weibull,
)
from jaxem.io.atomic import write
from jaxem.latent import bayesnet, hmm, mixture, mixture_of_experts, rbf_network, state_space

FORMAT = "jaxem 1"


CLASSES = {
    cls.__name__: cls
    for cls in (
        gaussian.Gaussian,
        gaussian.TiedGaussian,
        gaussian.DiagonalGaussian,
        gaussian.SphericalGaussian,
        student_t.StudentT,
        laplace.Laplace,
        factor_analysis.FactorAnalysis,
        factor_analysis.PPCA,
        bernoulli.Bernoulli,
        bernoulli.Binomial,
        categorical.Categorical,
        poisson.Poisson,
        bernoulli.Geometric,
        poisson.NegativeBinomial,
        categorical.Multinomial,
        point_mass.PointMass,
        dirichlet.Beta,
        dirichlet.Dirichlet,
        von_mises.VonMises,
        either.Either,
        exponential.Exponential,
        gamma.Gamma,
        lognormal.LogNormal,
        gamma.InverseGaussian,
        weibull.Weibull,
        censored.Censored,
        regression.LinearRegression,
        glm.LogisticRegression,
        glm.PoissonRegression,
        joint.Joint,
        product.Product,
        product.Independent,
        bayesnet.BayesNet,
        mixture.Mixture,
        softmax.SoftmaxGate,
        mixture_of_experts.MixtureOfExperts,
        rbf_network.RBFNetwork,
        hmm.HMM,
        state_space.LinearGaussianSSM,
        restriction.Restriction,
    )
}


def save(path: str | os.PathLike[str], model: Any) -> None:
    """Write `model` to `path`: its arrays as safetensors, its structure in the header.

    The file appears whole or not at all.

    Raises:
        TypeError: something in the model is not one of jaxem's own models.

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
    if type(node).__name__ not in CLASSES or not dataclasses.is_dataclass(node):
        raise TypeError(f"{name} is a {type(node).__name__}; only jaxem's own models can be saved")
    given = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
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
    cls = CLASSES.get(structure.get("class", ""))
    fields = structure.get("fields")
    if cls is None or not isinstance(fields, dict) or not _fits(set(fields), cls):
        raise ValueError(f"{path}: {name} is a {structure.get('class')!r} with other fields than jaxem's")
    values = {field: _build(part, f"{name}.{field}", tensors, path, checked) for field, part in fields.items()}
    if not checked:
        return unchecked(cls, values)
    try:
        return cls(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {name}: {error}") from None


def _fits(given: set[str], cls: Any) -> bool:
    """Are these the fields of a class? Those with a default are younger than some files."""
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
