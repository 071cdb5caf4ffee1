"""Every implementation, with an example of it: the laws run on all of them.

A new family adds one line to `FAMILIES`, and a mixture of it joins by itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem as jem

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One implementation.

    Attributes:
        name: of the test.
        make: (rng, K) -> K members with parameters inside their domain.
        family: how `Mixture.start` takes it.
        support: the rows that a member can produce, if they can be listed or put on a grid: `(rows, volume of one)`.
    """

    name: str
    make: Callable[[Rng, int], Any]
    family: Any
    support: tuple[np.ndarray, float] | None = None

    def members(self, k: int = 3, seed: int = 0) -> Any:
        return self.make(np.random.default_rng(seed), k)

    def one(self, seed: int = 0) -> Any:
        """A single model, if this is a family: the member axis of K = 1 taken off."""
        return jax.tree.map(lambda leaf: leaf[0], self.members(1, seed))

    def mixture(self, k: int = 3, seed: int = 0) -> jem.Mixture:
        weights = np.random.default_rng(seed + 1).dirichlet(np.full(k, 5.0))
        return jem.Mixture(weights, self.members(k, seed))

    def rows(self, n: int, k: int = 3, seed: int = 0) -> jax.Array:
        """Rows drawn from `mixture(k, seed)`: the first of as many as most tests need, so that it compiles once."""
        return jnp.asarray(_drawn(self, max(n, 64), k, seed)[:n])

    def __repr__(self) -> str:
        return self.name


@functools.cache
def _drawn(example: Example, n: int, k: int, seed: int) -> np.ndarray:
    return np.asarray(example.mixture(k, seed).sample(jax.random.key(seed), n))


@jax.jit
def e_step(model: Any, x: Any, weight: Any) -> Any:
    """Log-probabilities and expected statistics, in one program."""
    log_prob, pullback = model.e_step(x)
    return log_prob, pullback(jnp.broadcast_to(weight, log_prob.shape))


@jax.jit
def m_step(model: Any, statistics: Any) -> Any:
    return model.m_step(statistics)


@jax.jit
def expected_log_prob(model: Any, statistics: Any) -> Any:
    return model.expected_log_prob(statistics)


def covariances(rng: Rng, *shape: int) -> np.ndarray:
    """Positive definite matrices of `[*shape[:-1], D, D]`, of different shapes and sizes."""
    root = rng.normal(size=(*shape, shape[-1] + 2)) / np.sqrt(shape[-1])
    return root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(shape[-1])


def gaussian(d: int) -> Callable[[Rng, int], jem.Gaussian]:
    return lambda rng, k: jem.Gaussian(rng.normal(size=(k, d)) * 2, covariances(rng, k, d))


def tied(d: int) -> Callable[[Rng, int], jem.TiedGaussian]:
    return lambda rng, k: jem.TiedGaussian(rng.normal(size=(k, d)) * 2, covariances(rng, d))


def diagonal(d: int) -> Callable[[Rng, int], jem.DiagonalGaussian]:
    return lambda rng, k: jem.DiagonalGaussian(rng.normal(size=(k, d)) * 2, rng.uniform(0.3, 2, (k, d)))


def spherical(d: int) -> Callable[[Rng, int], jem.SphericalGaussian]:
    return lambda rng, k: jem.SphericalGaussian(rng.normal(size=(k, d)) * 2, rng.uniform(0.3, 2, k))


def bernoulli(rng: Rng, k: int) -> jem.Bernoulli:
    return jem.Bernoulli(rng.uniform(0.1, 0.9, k))


def binomial(rng: Rng, k: int) -> jem.Binomial:
    return jem.Binomial(6, rng.uniform(0.1, 0.9, k))


def categorical(rng: Rng, k: int) -> jem.Categorical:
    return jem.Categorical(rng.dirichlet(np.ones(4), k))


def poisson(rng: Rng, k: int) -> jem.Poisson:
    return jem.Poisson(rng.uniform(1, 9, k))


def product(rng: Rng, k: int) -> jem.Product:
    return jem.Product((diagonal(1)(rng, k), poisson(rng, k), gaussian(2)(rng, k)))


def independent(rng: Rng, k: int) -> jem.Independent:
    return jem.Independent(jem.Bernoulli(rng.uniform(0.1, 0.9, (k, 4))))


def independent_counts(rng: Rng, k: int) -> jem.Independent:
    return jem.Independent(jem.Poisson(rng.uniform(1, 9, (k, 2))))


def nested(rng: Rng, k: int) -> jem.Mixture:
    weights = rng.dirichlet(np.full(2, 5.0), k)
    return jem.Mixture(weights, jem.Gaussian(rng.normal(size=(k, 2, 1)) * 2, covariances(rng, k, 2, 1)))


def nested_counts(rng: Rng, k: int) -> jem.Mixture:
    return jem.Mixture(rng.dirichlet(np.full(2, 5.0), k), jem.Poisson(rng.uniform(1, 9, (k, 2))))


def _grid(*axes: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


_FINE = np.linspace(-20, 20, 401)
LINE = (_FINE[:, None], 0.1)
PLANE = (_grid(_FINE, _FINE), 0.01)
COUNTS = np.arange(60.0)

_MIXED = jem.Product.of(jem.DiagonalGaussian, jem.Poisson, jem.sized(jem.Gaussian, columns=2))

FAMILIES = [
    Example("gaussian", gaussian(2), jem.Gaussian, PLANE),
    Example("gaussian-6", gaussian(6), jem.Gaussian),
    Example("tied", tied(2), jem.TiedGaussian, PLANE),
    Example("diagonal", diagonal(2), jem.DiagonalGaussian, PLANE),
    Example("diagonal-10", diagonal(10), jem.DiagonalGaussian),
    Example("spherical", spherical(2), jem.SphericalGaussian, PLANE),
    Example("bernoulli", bernoulli, jem.Bernoulli, (np.arange(2.0), 1)),
    Example("binomial", binomial, jem.sized(jem.Binomial, total_count=6), (np.arange(7.0), 1)),
    Example("categorical", categorical, jem.sized(jem.Categorical, categories=4), (np.arange(4.0), 1)),
    Example("poisson", poisson, jem.Poisson, (COUNTS, 1)),
    Example("product", product, _MIXED),
    Example("independent", independent, jem.Independent.of(jem.Bernoulli), (_grid(*[np.arange(2.0)] * 4), 1)),
    Example("independent-poisson", independent_counts, jem.Independent.of(jem.Poisson), (_grid(COUNTS, COUNTS), 1)),
]
"""What is observed."""

NESTED = [
    Example("mixtures", nested, None, LINE),
    Example("count-mixtures", nested_counts, None, (COUNTS, 1)),
]
"""Mixtures as components of mixtures."""

ALL = FAMILIES + NESTED
STARTED = [example for example in ALL if example.family is not None]
GAUSSIANS = [example for example in FAMILIES if hasattr(example.members(), "mean")]


def perturbed(model: Any, rng: Rng, size: float = 0.2) -> Any:
    """Another model of the same kind, whose every parameter has moved and stayed inside its domain."""
    return move(model, {name: rng.normal(size=np.shape(leaf)) * size for name, leaf in coordinates(model).items()})


def coordinates(model: Any) -> dict[str, Any]:
    """The leaves of a model by the path to them."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}


def move(model: Any, step: dict[str, Any]) -> Any:
    """The model moved along `step` in coordinates in which every step is feasible.

    Positive numbers move by a factor, probabilities by their logits, and a covariance S = L L^T to L exp(step) L^T.
    """

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        change = jnp.asarray(step[jax.tree_util.keystr(path)], leaf.dtype)
        owner = path[-1].name
        if owner == "mean":
            return leaf + change
        if owner in ("variance", "rate"):
            return leaf * jnp.exp(change)
        if owner == "weights" or (owner == "probs" and _is_simplex(model, path)):
            return jax.nn.softmax(jnp.log(leaf) + change, axis=-1)
        if owner == "probs":
            return jax.nn.sigmoid(jnp.log(leaf) - jnp.log1p(-leaf) + change)
        assert owner == "covariance", owner
        symmetric = change + jnp.swapaxes(change, -1, -2)
        bend = jnp.eye(leaf.shape[-1], dtype=leaf.dtype).reshape((1,) * (leaf.ndim - 2) + leaf.shape[-2:]) + symmetric
        # (1 + A) S (1 + A)^T is positive definite for a small A, and reaches every direction.
        return jnp.einsum("...ij,...jk,...lk->...il", bend, leaf, bend)

    return jax.tree_util.tree_map_with_path(moved, model)


def _is_simplex(model: Any, path: Any) -> bool:
    node = model
    for key in path[:-1]:
        node = node[key.idx] if hasattr(key, "idx") else getattr(node, key.name)
    return isinstance(node, jem.Categorical)
