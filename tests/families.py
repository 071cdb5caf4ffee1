"""Every implementation, with an example of it: the laws run on all of them, see `laws/table.py`.

A new family adds one line to `SINGLES`, and a mixture of it joins by itself; a new latent structure adds one to
`STRUCTURES`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem as jem
from jaxem.core import constraints
from jaxem.distributions.constrained_m_step import restrained

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One family, which mixtures mix.

    Attributes:
        name: of the test.
        make: (rng, K) -> K members with parameters inside their domain.
        family: how `Mixture.start` takes it.
        support: the rows that a member can produce, if they can be listed or put on a grid: `(rows, volume of one)`.
        cell: the same of the last column alone, where any cell may be missing.
        moves: "scale" if x times a number is of the same family again, "location" if x plus a number is.
    """

    name: str
    make: Callable[[Rng, int], Any]
    family: Any
    support: tuple[np.ndarray, float] | None = None
    cell: tuple[np.ndarray, float] | None = None
    moves: tuple[str, ...] = ()

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

    def model(self, seed: int = 0) -> jem.Mixture:
        """What the laws of all models speak of."""
        return self.mixture(3, seed)

    def data(self, n: int, seed: int = 0) -> Any:
        """As many rows as it reads at once."""
        return self.rows(n, 3, seed)

    def __repr__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A latent structure that is more than a mixture of a family.

    Attributes:
        name: of the test.
        model: seed -> one with parameters inside their domain.
        data: (n, seed) -> n rows or sequences.
        cell: as for a family.
    """

    name: str
    model: Callable[..., Any]
    data: Callable[..., Any]
    cell: tuple[np.ndarray, float] | None = None
    family: None = None

    def __repr__(self) -> str:
        return self.name


def some(x: Any, at: Any) -> Any:
    """Some of the rows or sequences."""
    return jax.tree.map(lambda leaf: leaf[at], x)


def kinds(model: Any) -> set[type]:
    """The classes of a model and of all that it holds."""
    if isinstance(model, jem.Distribution):
        held = [getattr(model, field.name) for field in dataclasses.fields(model)]  # type: ignore[arg-type]
        return {type(model)}.union(*map(kinds, held))
    return set().union(*map(kinds, model)) if isinstance(model, (tuple, list)) else set()


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


@partial(jax.jit, static_argnums=2)
def sample(model: Any, key: jax.Array, n: int) -> jax.Array:
    return model.sample(key, n)


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


def bayes_net(rng: Rng, k: int) -> jem.BayesNet:
    tables = {"a": rng.dirichlet(np.ones(2), k), "b": rng.dirichlet(np.ones(3), (k, 2))}
    return jem.BayesNet({"a": [], "b": ["a"], "c": ["a", "b"]}, tables | {"c": rng.dirichlet(np.ones(2), (k, 2, 3))})


def product(rng: Rng, k: int) -> jem.Product:
    return jem.Product((diagonal(1)(rng, k), poisson(rng, k), gaussian(2)(rng, k)))


def independent(rng: Rng, k: int) -> jem.Independent:
    return jem.Independent(jem.Bernoulli(rng.uniform(0.1, 0.9, (k, 4))))


def independent_counts(rng: Rng, k: int) -> jem.Independent:
    return jem.Independent(jem.Poisson(rng.uniform(1, 9, (k, 2))))


def linear_regression(rng: Rng, k: int) -> jem.LinearRegression:
    return jem.LinearRegression(rng.normal(size=(k, 2)), rng.normal(size=k) * 2, rng.uniform(0.3, 2, k))


def logistic_regression(rng: Rng, k: int) -> jem.LogisticRegression:
    return jem.LogisticRegression(rng.normal(size=(k, 2)), rng.normal(size=k))


def poisson_regression(rng: Rng, k: int) -> jem.PoissonRegression:
    return jem.PoissonRegression(rng.normal(size=(k, 2)) / 2, rng.uniform(0, 2, k))


def joint(rng: Rng, k: int) -> jem.Joint:
    return jem.Joint((spherical(2)(rng, k), linear_regression(rng, k)))


def nested(rng: Rng, k: int) -> jem.Mixture:
    weights = rng.dirichlet(np.full(2, 5.0), k)
    return jem.Mixture(weights, jem.Gaussian(rng.normal(size=(k, 2, 1)) * 2, covariances(rng, k, 2, 1)))


def nested_counts(rng: Rng, k: int) -> jem.Mixture:
    return jem.Mixture(rng.dirichlet(np.full(2, 5.0), k), jem.Poisson(rng.uniform(1, 9, (k, 2))))


def student(d: int) -> Callable[[Rng, int], jem.StudentT]:
    return lambda rng, k: jem.StudentT(rng.normal(size=(k, d)) * 2, covariances(rng, k, d), rng.uniform(4, 9, k))


def laplace(rng: Rng, k: int) -> jem.Laplace:
    return jem.Laplace(rng.normal(size=k) * 2, rng.uniform(0.3, 2, k))


def factor_analysis(rng: Rng, k: int) -> jem.FactorAnalysis:
    return jem.FactorAnalysis(rng.normal(size=(k, 4)) * 2, rng.normal(size=(k, 4, 1)), rng.uniform(0.3, 2, (k, 4)))


def ppca(rng: Rng, k: int) -> jem.PPCA:
    return jem.PPCA(rng.normal(size=(k, 3)) * 2, rng.normal(size=(k, 3, 1)), rng.uniform(0.3, 2, k))


def exponential(rng: Rng, k: int) -> jem.Exponential:
    return jem.Exponential(rng.uniform(0.3, 1, k))


def gamma(rng: Rng, k: int) -> jem.Gamma:
    shape = rng.uniform(5, 20, k)
    return jem.Gamma(shape, shape / rng.uniform(5, 30, k))


def lognormal(rng: Rng, k: int) -> jem.LogNormal:
    return jem.LogNormal(rng.uniform(1.5, 3, k), rng.uniform(0.2, 0.5, k))


def inverse_gaussian(rng: Rng, k: int) -> jem.InverseGaussian:
    return jem.InverseGaussian(rng.uniform(5, 20, k), rng.uniform(20, 100, k))


def weibull(rng: Rng, k: int) -> jem.Weibull:
    return jem.Weibull(rng.uniform(3, 6, k), rng.uniform(10, 30, k))


def censored(make: Callable[[Rng, int], Any]) -> Callable[[Rng, int], jem.Censored]:
    return lambda rng, k: jem.Censored(make(rng, k))


def geometric(rng: Rng, k: int) -> jem.Geometric:
    return jem.Geometric(rng.uniform(0.2, 0.8, k))


def negative_binomial(rng: Rng, k: int) -> jem.NegativeBinomial:
    return jem.NegativeBinomial(rng.uniform(1, 9, k), rng.uniform(0.5, 2, k))


def multinomial(rng: Rng, k: int) -> jem.Multinomial:
    return jem.Multinomial(rng.dirichlet(np.ones(3), k), 6)


def beta(rng: Rng, k: int) -> jem.Beta:
    return jem.Beta(rng.uniform(4, 12, k), rng.uniform(4, 12, k))


def dirichlet(rng: Rng, k: int) -> jem.Dirichlet:
    return jem.Dirichlet(rng.uniform(4, 12, (k, 3)))


def von_mises(rng: Rng, k: int) -> jem.VonMises:
    return jem.VonMises(rng.uniform(-3, 3, k), rng.uniform(0.5, 9, k))


def zero_inflated(rng: Rng, k: int) -> jem.Mixture:
    parts = jem.PointMass(np.zeros((k, 1))), jem.Poisson(rng.uniform(1, 9, (k, 1)))
    return jem.Mixture(rng.dirichlet(np.full(2, 5.0), k), jem.Either(parts))


def _grid(*axes: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


_FINE = np.linspace(-20, 20, 401)
LINE = (_FINE[:, None], 0.1)
PLANE = (_grid(_FINE, _FINE), 0.01)
COUNTS = np.arange(60.0)


def _above_zero(end: float, width: float) -> tuple[np.ndarray, float]:
    """The middles of cells, which are right where a density begins with a jump."""
    return np.arange(width / 2, end, width), width


def _seen(support: tuple[np.ndarray, float]) -> tuple[np.ndarray, float]:
    """The same numbers, as a censored family reads what was seen exactly."""
    return np.stack([support[0].reshape(-1)] * 2, axis=-1), support[1]


WAITS, LIFETIMES = _above_zero(70, 1e-3), _above_zero(100, 1e-2)

SIX = (np.array([(a, b, 6.0 - a - b) for a in range(7) for b in range(7 - a)]), 1)
CIRCLE = (np.linspace(-np.pi, np.pi, 400, endpoint=False), np.pi / 200)
SHARES = _above_zero(1, 1 / 400)
TRIANGLE = np.array([(a, b, 1 - a - b) for a in SHARES[0] for b in SHARES[0] if a + b < 1 - 1e-9])

REAL, BINARY, BOTH = (np.linspace(-60, 60, 2401), 0.05), (np.arange(2.0), 1), ("location", "scale")

_MIXED = jem.Product.of(jem.DiagonalGaussian, jem.Poisson, jem.sized(jem.Gaussian, columns=2))

FAMILIES = [
    Example("gaussian", gaussian(2), jem.Gaussian, PLANE, REAL, BOTH),
    Example("gaussian-5", gaussian(5), jem.Gaussian, None, REAL, BOTH),
    Example("tied", tied(2), jem.TiedGaussian, PLANE, REAL, BOTH),
    Example("diagonal", diagonal(2), jem.DiagonalGaussian, PLANE, REAL, BOTH),
    Example("diagonal-10", diagonal(10), jem.DiagonalGaussian, None, REAL, BOTH),
    Example("spherical", spherical(2), jem.SphericalGaussian, PLANE, REAL, BOTH),
    Example("poisson", poisson, jem.Poisson, (COUNTS, 1)),
    Example("product", product, _MIXED, None, REAL),
    Example("independent", independent, jem.Independent.of(jem.Bernoulli), (_grid(*[np.arange(2.0)] * 4), 1), BINARY),
]
"""What is observed."""

SINGLES: list[Example] = [
    Example("bernoulli", bernoulli, jem.Bernoulli, (np.arange(2.0), 1)),
    Example("binomial", binomial, jem.sized(jem.Binomial, total_count=6), (np.arange(7.0), 1)),
    Example("categorical", categorical, jem.sized(jem.Categorical, categories=4), (np.arange(4.0), 1)),
    Example("independent-poisson", independent_counts, jem.Independent.of(jem.Poisson), (_grid(COUNTS, COUNTS), 1)),
    Example("student-t", student(2), jem.StudentT, None, REAL, BOTH),
    Example("laplace", laplace, jem.Laplace, None, None, BOTH),
    Example("factor-analysis", factor_analysis, jem.sized(jem.FactorAnalysis, factors=1), None, REAL, BOTH),
    Example("ppca", ppca, jem.sized(jem.PPCA, factors=1), None, REAL, BOTH),
    Example("linear-regression", linear_regression, jem.LinearRegression),
    Example("logistic-regression", logistic_regression, jem.LogisticRegression),
    Example("poisson-regression", poisson_regression, jem.PoissonRegression),
    Example("joint", joint, None),
    Example("exponential", exponential, jem.Exponential, WAITS, None, ("scale",)),
    Example("gamma", gamma, jem.Gamma, _above_zero(400, 0.05), None, ("scale",)),
    Example("lognormal", lognormal, jem.LogNormal, _above_zero(500, 0.05), None, ("scale",)),
    Example("inverse-gaussian", inverse_gaussian, jem.InverseGaussian, _above_zero(1000, 0.05), None, ("scale",)),
    Example("weibull", weibull, jem.Weibull, LIFETIMES, None, ("scale",)),
    Example("censored-exponential", censored(exponential), jem.Censored.of(jem.Exponential), _seen(WAITS)),
    Example("censored-gaussian", censored(diagonal(1)), jem.Censored.of(jem.DiagonalGaussian), _seen(LINE)),
    Example("censored-weibull", censored(weibull), jem.Censored.of(jem.Weibull), _seen(LIFETIMES)),
    Example("geometric", geometric, jem.Geometric, (np.arange(150.0), 1)),
    Example("negative-binomial", negative_binomial, jem.NegativeBinomial, (np.arange(800.0), 1)),
    Example("multinomial", multinomial, jem.sized(jem.Multinomial, total_count=6), SIX),
    Example("beta", beta, jem.Beta, SHARES),
    Example("dirichlet", dirichlet, jem.Dirichlet, (TRIANGLE, 1 / 400**2)),
    Example("von-mises", von_mises, jem.VonMises, CIRCLE),
    Example("zero-inflated", zero_inflated, None, (COUNTS, 1)),
    Example("bayes-net", bayes_net, None, (_grid(np.arange(2.0), np.arange(3.0), np.arange(2.0)), 1), BINARY),
]
"""One by one."""


NESTED = [
    Example("mixtures", nested, None, LINE),
    Example("count-mixtures", nested_counts, None, (COUNTS, 1)),
]
"""Mixtures as components of mixtures."""

MIXTURES = FAMILIES + NESTED + SINGLES
"""Of every family."""


def hmm(rng: Rng, k: int, members: tuple[int, ...] = ()) -> jem.HMM:
    emission = jem.Poisson(rng.uniform(1, 9, (*members, k)))
    return jem.HMM(rng.dirichlet(np.full(k, 3.0), members), rng.dirichlet(np.full(k, 3.0), (*members, k)), emission)


def state_space(rng: Rng) -> jem.LinearGaussianSSM:
    return jem.LinearGaussianSSM(
        rng.normal(size=2), covariances(rng, 2), rng.normal(size=(2, 2)) * 0.5, covariances(rng, 2),
        rng.normal(size=(2, 2)), rng.normal(size=2) + 3, covariances(rng, 2),
    )  # fmt: skip


def experts(rng: Rng) -> jem.MixtureOfExperts:
    gate = jem.SoftmaxGate(rng.normal(size=(1, 2)), rng.normal(size=1))
    return jem.MixtureOfExperts(gate, linear_regression(rng, 2))


def network(rng: Rng) -> jem.RBFNetwork:
    return jem.RBFNetwork(rng.dirichlet(np.full(2, 5.0)), joint(rng, 2))


def made(make: Callable[[Rng], Any]) -> Callable[..., Any]:
    return lambda seed=0: make(np.random.default_rng(seed))


def rows_of(make: Callable[[Rng], Any]) -> Callable[..., jax.Array]:
    return lambda n, seed=0: sample(made(make)(seed), jax.random.key(seed), n)


def half_hidden(n: int, seed: int = 0) -> jax.Array:
    """Rows of a network, of which every third does not tell one variable."""
    x = rows_of(_one_net)(n, seed)
    return x.at[1::3, 1].set(jnp.nan)


def sequences_of(make: Callable[[Rng], Any], steps: int = 4) -> Callable[..., jem.Sequences]:
    """Of every length up to `steps`."""

    def data(n: int, seed: int = 0) -> jem.Sequences:
        values = made(make)(seed).sample(jax.random.key(seed), n, steps=steps)
        return jem.Sequences(values, 1 + np.arange(n) % steps)

    return data


def _clusters(rng: Rng) -> jem.Mixture:
    return jem.Mixture(rng.dirichlet(np.full(2, 5.0)), hmm(rng, 2, (2,)))


_one_net, _chain = (lambda rng: jax.tree.map(lambda leaf: leaf[0], bayes_net(rng, 1))), (lambda rng: hmm(rng, 3))


def held_and_tied(rng: Rng) -> jem.Mixture:
    """A share, a mean and half of another held, and one variance for all."""
    model = jem.Mixture(rng.dirichlet(np.full(3, 5.0)), diagonal(2)(rng, 3))
    model = jem.hold(model, {"weights": [1, 0, 0], "components.mean": [[1, 1], [1, 0], [0, 0]]})
    return jem.tie(model, "components.variance")


def stationary(rng: Rng) -> jem.HMM:
    """A chain from its stationary start; two of its states share a rate, and the third holds its own."""
    model = jem.HMM(rng.dirichlet(np.full(3, 5.0)), rng.dirichlet(np.full(3, 5.0), 3), poisson(rng, 3))
    model = jem.tie(jem.tie(model, "initial", to="stationary"), "emission.rate", members=[0, 2])
    return jem.hold(model, {"emission.rate": [0, 1, 0]})


STRUCTURES = [
    Structure("hmm", made(_chain), sequences_of(_chain)),
    Structure("mixture-of-hmms", made(_clusters), sequences_of(_chain)),
    Structure("state-space", made(state_space), sequences_of(state_space)),
    Structure("network-of-tables", made(_one_net), half_hidden, BINARY),
    Structure("experts", made(experts), rows_of(experts)),
    Structure("rbf-network", made(network), rows_of(network)),
    Structure("held-and-tied", made(held_and_tied), rows_of(held_and_tied), REAL),
    Structure("stationary", made(stationary), sequences_of(stationary)),
]
"""What is hidden."""


def perturbed(model: Any, rng: Rng, size: float = 0.2) -> Any:
    """Another model of the same kind, whose every parameter has moved and stayed inside its domain."""
    return move(model, {name: step * size for name, step in direction(model, rng).items()})


def direction(model: Any, rng: Rng) -> dict[str, np.ndarray]:
    """Any one in which a model can `move`."""
    return {name: rng.normal(size=np.shape(leaf)) for name, leaf in coordinates(model).items()}


def coordinates(model: Any) -> dict[str, Any]:
    """The leaves of a model by the path to them."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}


@jax.jit
def move(model: Any, step: dict[str, Any]) -> Any:
    """The model moved along `step` in coordinates in which every step is feasible.

    Positive numbers move by a factor, probabilities by their logits, and a covariance S = L L^T to L exp(step) L^T.
    """
    limits = {jax.tree_util.keystr(path): limit for path, limit, _ in constraints.leaves(model)}

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        return MOVES[limits[name]](leaf, jnp.asarray(step[name], leaf.dtype))

    new = jax.tree_util.tree_map_with_path(moved, model)
    tied = any(leaf.restricted for leaf in constraints.walk(model))
    return restrained(new, model) if tied else new


def _by_a_factor(leaf: jax.Array, change: jax.Array) -> jax.Array:
    return leaf * jnp.exp(change)


def _by_logits(leaf: jax.Array, change: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(jnp.log(leaf) - jnp.log1p(-leaf) + change)


def _by_log_ratios(leaf: jax.Array, change: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.log(leaf) + change, axis=-1)


def _by_bending(leaf: jax.Array, change: jax.Array) -> jax.Array:
    symmetric = change + jnp.swapaxes(change, -1, -2)
    bend = jnp.eye(leaf.shape[-1], dtype=leaf.dtype).reshape((1,) * (leaf.ndim - 2) + leaf.shape[-2:]) + symmetric
    # (1 + A) S (1 + A)^T is positive definite for a small A, and reaches every direction.
    return jnp.einsum("...ij,...jk,...lk->...il", bend, leaf, bend)


MOVES = {
    constraints.real: jnp.add,
    constraints.vector: jnp.add,
    constraints.matrix: jnp.add,
    constraints.loadings: jnp.add,
    constraints.positive: _by_a_factor,
    constraints.positive_vector: _by_a_factor,
    constraints.non_negative: _by_a_factor,
    constraints.from_zero: _by_a_factor,
    constraints.unit_interval: _by_logits,
    constraints.simplex: _by_log_ratios,
    constraints.positive_definite: _by_bending,
    constraints.positive_semidefinite: _by_bending,
    constraints.held: lambda leaf, change: leaf,
}
