"""No float32 product in TF32, which a GPU takes where none is named: seen in the programs that one would be given.

They are lowered for CUDA, which needs no GPU, on the ways through the code that an accelerator takes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from families import MIXTURES, Example, covariances
from jaxem.chains import normalizer
from jaxem.chains.chain import Chain
from jaxem.kmeans import _best_of, _nearest
from jaxem.latent import seeding
from jaxem.solvers.em import em_step

pytestmark = pytest.mark.slow

ROWS = 24


@pytest.fixture(autouse=True, scope="module")
def _on_an_accelerator() -> Iterator[None]:
    """The ways that it takes; nothing traced on one side is found again on the other.

    At JAX's own precision: dynamax, which other tests import, sets a better one for the whole process.
    """
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision("default"):
        patch.setattr(jax, "default_backend", lambda: "gpu")
        yield
    jax.clear_caches()


def single(tree: Any) -> Any:
    """In float32."""
    return jax.tree.map(lambda a: jnp.asarray(a, "float32") if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def products(function: Callable[..., Any], *args: Any) -> list[str]:
    """The products of float32 matrices in the program for CUDA, as it says them."""
    program = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    said = [line for line in program.splitlines() if re.search(r"stablehlo\.(dot|dot_general|convolution)\b", line)]
    return [line.strip() for line in said if "xf32>" in line]


def careless(function: Callable[..., Any], *args: Any) -> list[str]:
    """Those that do not say that both operands are to be taken with all their digits."""
    return [line for line in products(function, *args) if len(re.findall(r"\bHIGHEST\b", line)) != 2]


def unnamed(module: Path) -> list[str]:
    """Where a module multiplies arrays of JAX and names no precision."""
    found = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            named = any(keyword.arg == "precision" for keyword in node.keywords)
            if owner in {"jnp", "jax.numpy", "lax", "jax.lax"} and name in PRODUCTS and not named:
                found.append(f"{module.name}:{node.lineno} {owner}.{name}")
    return found


PRODUCTS = {"convolve", "dot", "dot_general", "einsum", "inner", "matmul", "matvec", "tensordot", "vdot", "vecdot"}


def test_every_product_in_the_source_names_its_precision(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("jnp.einsum('ij,j', a, b)\njnp.matmul(a, b, precision=HIGHEST)\njax.lax.dot(a, b)")
    assert unnamed(tmp_path / "bad.py") == ["bad.py:1 jnp.einsum", "bad.py:3 jax.lax.dot"]
    assert [line for module in Path(jem.__file__).parent.rglob("*.py") for line in unnamed(module)] == []


def test_the_search_finds_what_it_looks_for() -> None:
    a = jnp.ones((3, 3), jnp.float32)
    good = partial(jnp.matmul, precision="highest")
    assert products(good, a, a)
    assert not careless(good, a, a)
    assert careless(lambda a, b: a @ b, a, a)
    assert careless(partial(jnp.einsum, "ij,jk->ik", precision="high"), a, a)
    assert careless(lambda a: jax.lax.fori_loop(0, 3, lambda _, b: jnp.dot(b, good(a, a)), a), a)
    assert careless(lambda a: jnp.convolve(a[0], a[1]), a)


@pytest.mark.parametrize("example", MIXTURES, ids=repr)
def test_a_step_of_a_mixture(example: Example) -> None:
    model, x, weight = single((example.mixture(), example.rows(ROWS), np.ones(ROWS)))
    given = model, x, weight, model.floor(x, weight)
    assert not careless(em_step, *given)
    if example.name == "gaussian-5":
        assert products(em_step, *given)


@pytest.mark.parametrize("kind", [jem.DiagonalGaussian, jem.SphericalGaussian, jem.Gaussian])
def test_a_step_on_many_rows(kind: Any) -> None:
    """By features and by member, in chunks: what a large mixture does."""

    def make() -> jem.Mixture:
        mean = jnp.zeros((64, 16), jnp.float32)
        spread = {"DiagonalGaussian": mean + 1, "SphericalGaussian": mean[:, 0] + 1}
        covariance = jnp.broadcast_to(jnp.eye(16, dtype=jnp.float32), (64, 16, 16))
        return jem.Mixture(jnp.full(64, 1 / 64, jnp.float32), kind(mean, spread.get(kind.__name__, covariance)))

    model = jax.eval_shape(make)
    x, weight = jax.ShapeDtypeStruct((10_000_000, 16), jnp.float32), jax.ShapeDtypeStruct((10_000_000,), jnp.float32)
    prior = jax.eval_shape(lambda model, x, weight: model.floor(x, weight), model, x, weight)
    found = products(em_step, model, x, weight, prior)
    assert len(found) >= 2
    assert not careless(em_step, model, x, weight, prior)


METHODS = ("auto", "scan", "blocked", "associative", "kernel")
CHAINS = [
    (method, k, s) for method in METHODS for k, s in ((3, 1), (9, 1), (3, 20), (9, 20)) if (method, k) != ("kernel", 9)
]


@pytest.mark.parametrize("case", CHAINS)
def test_chains(case: tuple[str, int, int]) -> None:
    method, states, sequences = case
    shapes = (states, 1), (states, states, 1), (200, states, sequences)
    chain = Chain(*(jnp.zeros(shape, jnp.float32) for shape in shapes), method=method)
    assert not careless(normalizer.expectations, chain)


def sequences(size: int) -> jem.Sequences:
    rng = np.random.default_rng(0)
    return jem.Sequences.from_list([rng.normal(size=(length, size)).astype(np.float32) for length in (5, 3)])


def gaussians(rng: np.random.Generator, k: int = 2, d: int = 6) -> jem.Mixture:
    return single(jem.Mixture(np.full(k, 1 / k), jem.Gaussian(rng.normal(size=(k, d)), covariances(rng, k, d))))


def state_space(rng: np.random.Generator) -> jem.LinearGaussianSSM:
    return single(
        jem.LinearGaussianSSM(
            np.zeros(2),
            np.eye(2),
            np.eye(2) / 2,
            np.eye(2),
            rng.normal(size=(3, 2)),
            np.zeros(3),
            np.eye(3),
        )
    )


def step(model: Any, x: Any, weight: Any) -> Any:
    return em_step(model, x, weight, model.floor(x, weight))


def asked(rng: np.random.Generator) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """What else a fit may be of, and what is asked of a model afterwards: functions and their arguments."""
    x, one = np.float32(rng.normal(size=(ROWS, 6))), np.ones(ROWS, np.float32)
    gaps = jem.incomplete(np.where(rng.random(x.shape) < 0.2, np.float32(np.nan), x))
    mixture, chain = (
        gaussians(rng),
        jem.HMM(*single((np.full(2, 0.5), np.full((2, 2), 0.5))), gaussians(rng).components),
    )
    gate = jem.SoftmaxGate(np.ones((1, 2)), np.zeros(1))
    experts = single(jem.MixtureOfExperts(gate, jem.LinearRegression(np.ones((2, 2)), np.zeros(2), np.ones(2))))
    analysis = single(jem.FactorAnalysis(np.zeros(6), np.ones((6, 2)), np.ones(6)))
    key, both = jax.random.key(0), np.ones(2, np.float32)
    return {
        "gaps": (step, (mixture, gaps, one)),
        "chain": (step, (chain, sequences(6), both)),
        "state space": (step, (state_space(rng), sequences(3), both)),
        "experts": (step, (experts, x[:, :3], one)),
        "factors": (step, (analysis, x, one)),
        "posterior": (lambda model, x: (model.posterior(x), model.decode(x)), (mixture, x)),
        "filter and forecast": (
            lambda m, x: (m.filter(x), m.smooth(x), m.forecast(x, 2)),
            (state_space(rng), sequences(3)),
        ),
        "forecast of a chain": (lambda model, x: model.forecast(x, 2), (chain, sequences(6))),
        "impute": (lambda model, x: (model.impute(x), model.impute(x, key)), (mixture, gaps)),
        "transform": (lambda model, x: model.transform(x), (analysis, x)),
        "predict": (lambda model, x: model.predict(x).mean, (experts, x[:, :2])),
        "conditional": (lambda model, x: jem.conditional(model, [0, 1], x).mean, (mixture, x[:, :2])),
        "draws": (lambda model: model.sample(key, 5), (mixture,)),
        "k-means": (lambda c, x, w: _best_of(c, x, w, 5), (np.float32(rng.normal(size=(2, 3, 6))), x, one)),
        "nearest": (_nearest, (x, one, x[:3])),
        "seeds": (lambda x, w: seeding.seeds(key, x, w, None, 3, True), (x, one)),
        "start": (lambda x: jem.Mixture.start(key, jem.Gaussian, x, 2), (x,)),
        "start of factors": (lambda x: jem.Mixture.start(key, jem.sized(jem.FactorAnalysis, factors=2), x, 2), (x,)),
        "start of a chain": (lambda x: jem.HMM.start(key, jem.Gaussian, x, 2), (sequences(6),)),
        "derivative of a fit": (jax.grad(lambda x, m: jem.fit(m, x).model.components.mean.sum()), (x, mixture)),
    }


OFTEN = ["gaps", "state space", "conditional"]


@pytest.mark.parametrize("names", [OFTEN, None], ids=["often", "all"])
def test_structures_and_what_is_asked_of_them(names: list[str] | None, rng: np.random.Generator) -> None:
    everything = asked(rng)
    found = {name: careless(everything[name][0], *everything[name][1]) for name in names or everything}
    assert {name: lines for name, lines in found.items() if lines} == {}


SOLVERS = {
    "em": jem.EM(),
    "annealed": jem.AnnealedEM([2.0]),
    "squarem": jem.SQUAREM(jem.EM()),
    "anderson": jem.Anderson(jem.EM()),
    "gradient": jem.Gradient(optax.adam(0.1)),
    "lbfgs": jem.LBFGS(),
    "newton": jem.Newton(),
    "online": jem.OnlineEM(8),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name: str, rng: np.random.Generator) -> None:
    """The whole loop of a fit."""
    x = np.float32(rng.normal(size=(ROWS, 5)))
    assert not careless(lambda model, x: jem.fit(model, x, SOLVERS[name]), gaussians(rng, d=5), x)
