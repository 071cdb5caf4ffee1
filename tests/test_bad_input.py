"""Wrong arguments end in one sentence that names the argument, and not in a traceback of JAX's."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.core.arguments import as_key, whole
from jaxem.data.problems import as_problems
from jaxem.distributions.registry import FAMILIES
from jaxem.distributions.words import as_family
from jaxem.evaluation.race import as_solvers
from jaxem.fitting.checks import check_limits
from jaxem.solvers.words import as_solver

X = np.array([[0.0, 1.0], [2.0, 3.0], [5.0, 1.0]])
MODEL = jem.Mixture([0.5, 0.5], jem.SphericalGaussian([[0.0, 0.0], [3.0, 3.0]], [1.0, 1.0]))
MODELS = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), MODEL)
KEY = jax.random.key(0)


def start(**options: Any) -> Any:
    arguments = {"family": jem.Gaussian, "x": X, "components": 2} | options
    return jem.Mixture.start(KEY, arguments.pop("family"), arguments.pop("x"), arguments.pop("components"), **arguments)


CASES = [
    ("Gaussian: covariance", lambda: jem.Gaussian([0.0], [1.0])),
    ("Gaussian: covariance", lambda: jem.Gaussian([0.0], [[-1.0]])),
    ("Gaussian: covariance", lambda: jem.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.4, 1.0]])),
    ("Gaussian: covariance", lambda: jem.Gaussian([0.0, 0.0], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])),
    ("Gaussian: mean", lambda: jem.Gaussian([np.nan], [[1.0]])),
    ("TiedGaussian: covariance", lambda: jem.TiedGaussian([[0.0], [1.0]], [[[1.0]], [[1.0]]])),
    ("DiagonalGaussian: variance", lambda: jem.DiagonalGaussian([0.0], [0.0])),
    ("DiagonalGaussian: variance", lambda: jem.DiagonalGaussian([0.0, 1.0], [1.0])),
    ("SphericalGaussian: variance", lambda: jem.SphericalGaussian([0.0, 1.0], -1.0)),
    ("Bernoulli: probs", lambda: jem.Bernoulli(1.5)),
    ("Binomial: probs", lambda: jem.Binomial(3, -0.5)),
    ("Binomial: total_count", lambda: jem.Binomial(0, 0.5)),
    ("Binomial: total_count", lambda: jem.Binomial(2.5, 0.5)),
    ("Categorical: probs", lambda: jem.Categorical([0.5, 0.4])),
    ("Categorical: probs", lambda: jem.Categorical([1.5, -0.5])),
    ("Categorical: probs", lambda: jem.Categorical(0.5)),
    ("Poisson: rate", lambda: jem.Poisson(-1.0)),
    ("Poisson: rate", lambda: jem.Poisson(np.inf)),
    ("Product: parts", lambda: jem.Product((jem.Poisson(1.0), jem.Poisson([1.0, 2.0])))),
    ("Product: parts", lambda: jem.Product(())),
    ("Independent: base", lambda: jem.Independent(jem.Poisson(1.0))),
    ("Mixture: weights", lambda: jem.Mixture([0.5, 0.6], jem.Poisson([1.0, 2.0]))),
    ("Mixture: weights", lambda: jem.Mixture([1.0], jem.Poisson([1.0, 2.0]))),
    ("x has shape", lambda: MODEL.log_prob(np.zeros((4, 3)))),
    ("x has shape", lambda: jem.fit(MODEL, np.zeros((4, 3)))),
    ("x has no rows", lambda: jem.fit(MODEL, np.zeros((0, 2)))),
    ("x is a single number", lambda: jem.fit(MODEL, 3.0)),
    ("weight has shape", lambda: jem.fit(MODEL, X, weight=np.ones(2))),
    ("weight has entries", lambda: jem.fit(MODEL, X, weight=[1.0, -1.0, 1.0])),
    ("weight has entries", lambda: jem.fit(MODEL, X, weight=[1.0, np.nan, 1.0])),
    ("labels has shape", lambda: jem.fit(MODEL, X, labels=[0, 1])),
    ("labels holds values of type float", lambda: jem.fit(MODEL, X, labels=[0.0, 1.0, -1.0])),
    ("labels go from -1 to 2", lambda: jem.fit(MODEL, X, labels=[0, 2, -1])),
    ("tol is -1", lambda: jem.fit(MODEL, X, tol=-1.0)),
    ("tol is nan", lambda: jem.fit(MODEL, X, tol=np.nan)),
    ("max_steps is -1", lambda: jem.fit(MODEL, X, max_steps=-1)),
    ("prior has the structure", lambda: jem.fit(MODEL, X, prior=np.zeros(2))),
    ("components is 0", lambda: start(components=0)),
    ("restarts", lambda: start(restarts=0)),
    ("method is 'best'", lambda: start(method="best")),
    ("labels go from -1 to 5", lambda: start(labels=[5, -1, -1])),
    ("weight has shape", lambda: start(weight=np.ones(7))),
    ("x has shape .* 3 columns", lambda: start(family=jem.Product.of(*[jem.Poisson] * 3))),
    (r"x has shape \(2, 3, 2\).*: join the rows .* fit_many", lambda: jem.fit(MODEL, np.zeros((2, 3, 2)))),
    (r"x has shape \(2, 3, 2\); it must be rows", lambda: start(x=np.zeros((2, 3, 2)))),
    ("x has no columns", lambda: start(x=np.zeros((4, 0)))),
    ("x has no rows", lambda: start(x=np.zeros((0, 2)))),
    ("x has no rows", lambda: jem.kmeans(0, [], 2)),
    ("x is a list of arrays of different shapes", lambda: jem.fit(MODEL, [X, X[:1]])),
    ("weight has entries .* -1 in row 1", lambda: jem.fit(MODEL, X, weight=[1.0, -1.0, 1.0])),
    (r"weight has shape \(2,\); with 3 rows", lambda: jem.kmeans(0, X, 2, weight=[1.0, 1.0])),
    (r"weight has shape \(2,\); with 3 rows", lambda: jem.entropy(MODEL, X, [1.0, 1.0])),
    ("labels name hidden states, and a Poisson has none", lambda: jem.fit(jem.Poisson(1.0), [1.0], labels=[0])),
    (r"tol has shape \(3,\); it must be one number", lambda: check_limits(np.ones(3), 9)),
    (r"tol has shape \(3,\); it must be one number, or 2", lambda: jem.fit_many(MODELS, [X, X], tol=np.ones(3))),
    ("max_steps is 2.5; it must be a whole number", lambda: check_limits(1e-6, 2.5)),
    ("max_steps is inf", lambda: check_limits(1e-6, np.inf)),
    ("components is 2.5; it must be a whole number, at least one", lambda: whole(2.5, "components")),
    ("states is 0", lambda: jem.HMM.start(0, jem.Poisson, [[1.0, 2.0]], 0)),
    ("n is -1; it must be a whole number, zero or above", lambda: MODEL.sample(0, -1)),
    (r"key holds keys of shape \(3,\); pass one", lambda: MODEL.sample(jax.random.split(KEY, 3), 2)),
    ("key is .*; as a seed it must lie between", lambda: MODEL.sample(2**70, 2)),
    ("family: there is no 'gausian'; did you mean 'gaussian'", lambda: start(family="gausian")),
    ("solver: there is no 'squarm'; did you mean 'squarem'", lambda: jem.fit(MODEL, X, "squarm")),
    (r"there is no 'adam'; it needs a learning rate: jem.Gradient\(optax.adam", lambda: jem.fit(MODEL, X, "adam")),
    ("solvers has em twice", lambda: jem.compare(MODEL, X, ["em", "em"])),
    ("a Dirichlet is no prior of a Mixture of SphericalGaussian", lambda: jem.fit(
        MODEL, X, prior=jem.priors.Dirichlet(2.0))),
    ("a Structured is no prior of a Mixture of SphericalGaussian where it names 'emission'; it has weights, components",
        lambda: jem.fit(MODEL, X, prior=jem.priors.Structured({"emission": None}))),
    ("a Structured is no prior of a Poisson where it names 'rate'; it has no parts",
        lambda: jem.fit(jem.Poisson(1.0), [1.0], prior=jem.priors.Structured({"rate": None}))),
    ("xs is empty", lambda: as_problems([], None, None)),
    ("labels holds 1 problems and models 2", lambda: jem.fit_many(MODELS, [X, X], labels=[[0, 1, 0]])),
    (r"labels\[1\] has shape \(2,\)", lambda: jem.fit_many(MODELS, [X, X], labels=[None, [0, 1]])),
    (r"weight\[0\] has shape \(2,\); with the 3 rows of xs\[0\]", lambda: jem.fit_many(
        MODELS, [X, X], weight=[[1.0, 1.0], None])),
    (r"models\[1\] is of another kind", lambda: jem.fit_many([MODEL, jem.Poisson(1.0)], [X, X])),
]  # fmt: skip


@pytest.mark.parametrize(("words", "call"), CASES, ids=[f"{i}-{words}" for i, (words, _) in enumerate(CASES)])
def test_value_error_names_the_argument(words: str, call: Any) -> None:
    with pytest.raises(ValueError, match=words):
        call()


OTHERS = [
    ("model is the class Gaussian; it must be a model", lambda: jem.fit(jem.Gaussian, X)),
    ("model is a ndarray and x a Mixture; pass the model first", lambda: jem.fit(X, MODEL)),
    ("x is a Mixture, a model like the first argument", lambda: jem.fit(MODEL, MODEL)),
    ("model is None; it must be a model", lambda: jem.fit_stream(None, [X])),
    ("models is the class Poisson", lambda: jem.fit_many(jem.Poisson, [X])),
    (r"models\[1\] is 3; it must be a model", lambda: jem.fit_many([MODEL, 3], [X, X])),
    ("model is a dict", lambda: jem.compare({}, X, {"EM": jem.EM()})),
    ("model is a list", lambda: jem.em_rate([MODEL], X)),
    ("model is the class Mixture", lambda: jem.entropy(jem.Mixture, X)),
    ("model is a str|model is 'line'", lambda: jem.predict("line", X)),
    ("solver is a dict; pass a solver such as", lambda: jem.fit(MODEL, X, {})),
    ("solver is None", lambda: jem.fit_many(MODEL, [X], None)),
    ("solver is the class OnlineEM, which needs arguments", lambda: jem.fit_stream(MODEL, [X], jem.OnlineEM)),
    ("solver is the function adam of optax; call it", lambda: jem.fit(MODEL, X, optax.adam)),
    (r"solvers\['b'\] is 1; pass a solver", lambda: jem.compare(MODEL, X, {"a": "em", "b": 1})),
    ("solvers is 'em'; name each", lambda: as_solvers("em")),
    ("SQUAREM: solver is 3; pass one", lambda: jem.SQUAREM(3)),
    ("Gradient: transformation is 0.1; pass one of optax", lambda: jem.Gradient(0.1)),
    ("prior is the class Weak; pass one", lambda: jem.fit(MODEL, X, prior=jem.priors.Weak)),
    ("prior is 'weak'; pass one", lambda: jem.fit_many(MODELS, [X, X], prior="weak")),
    ("tol is 'small'; it must be a number", lambda: check_limits("small", 9)),
    ("max_steps is '9'; it must be a whole number", lambda: check_limits(1e-6, "9")),
    ("key is an array of shape .* pass jax.random.key", lambda: jem.Mixture.start(X, 0, jem.Gaussian, 2)),
    ("key is None; pass jax.random.key", lambda: MODEL.sample(None, 3)),
    ("key is a Generator; pass jax.random.key", lambda: jem.kmeans(np.random.default_rng(0), X, 2)),
    ("StochasticEM: key is 'a'; pass", lambda: jem.StochasticEM("a")),
    ("n is '3'; it must be a whole number", lambda: jem.Poisson(1.0).sample(0, "3")),
    ("components is None; it must be a whole number", lambda: whole(None, "components")),
    ("family is the class Mixture", lambda: start(family=jem.Mixture)),
    (r"family is the class Product, which needs its parts: jem.Product.of", lambda: start(family=jem.Product)),
    ("family is 3; pass a family such as", lambda: start(family=3)),
    ("xs is a dict; pass the data of the problems alone", lambda: jem.fit_many(MODELS, {"a": X})),
    (r"xs\[1\] holds values of type <U1", lambda: jem.fit_many(MODELS, [X, np.array([["a", "b"]])])),
    ("inputs is 'z'; it must be", lambda: jem.predict(jem.LinearRegression([1.0], 0.0, 1.0), "z")),
    ("weight is 'w'; it must be", lambda: jem.fit(MODEL, X, weight="w")),
    ("log_likelihood is a masked array; pass its data", lambda: jem.chains.viterbi(
        np.zeros(2), np.zeros((2, 2)), np.ma.zeros((3, 2)))),
    ("source is 3; it must be an array of rows", lambda: jem.batches(3)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "call"), OTHERS, ids=[f"{i}-{words}" for i, (words, _) in enumerate(OTHERS)])
def test_type_error_names_the_argument(words: str, call: Any) -> None:
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize("x", [np.array([["a", "b"]]), np.array([[1j, 0]]), np.array([["a", 1.0]], dtype=object)])
def test_what_is_not_numbers_is_a_type_error(x: np.ndarray) -> None:
    for call in (lambda: jem.fit(MODEL, x), lambda: MODEL.log_prob(x), lambda: start(x=x)):
        with pytest.raises(TypeError, match="x holds"):
            call()


def test_what_is_meant_is_taken() -> None:
    """Words, classes and seeds stand for what they name."""
    assert as_solver(jem.EM) == as_solver("EM") or isinstance(as_solver("EM"), jem.EM)
    assert isinstance(as_solver(jem.SQUAREM).solver, jem.EM)
    assert isinstance(as_solver("L-BFGS"), jem.LBFGS)
    adam = optax.adam(0.1)
    assert as_solver(adam).transformation is adam
    assert list(as_solvers(["em", jem.SQUAREM(jem.EM)])) == ["em", "SQUAREM(solver=EM())"]
    for key in (3, np.int64(3), np.uint8(3), jax.numpy.asarray(3), jax.random.key(3)):
        assert (as_key(key) == jax.random.key(3)).all()
    old = jax.random.PRNGKey(3)
    assert (as_key(old) == old).all()
    assert [whole(value, "n") for value in (3, 3.0, np.int8(3), jax.numpy.asarray(3))] == [3] * 4
    np.testing.assert_array_equal(jem.Poisson(5.0).sample(1, 4), jem.Poisson(5.0).sample(jax.random.key(1), 4))


def test_a_family_by_its_word_its_class_and_a_member_is_the_same() -> None:
    for word, family in ((word, spec.family) for word, spec in FAMILIES.items()):
        if isinstance(family, type):
            assert as_family(word) == as_family(family) == as_family(family.__name__) == jem.sized(family)
        else:
            assert as_family(word.replace("_", "-").upper()) == family
    assert (
        as_family("gaussian, poisson")
        == jem.Product.of(jem.Gaussian, jem.Poisson)
        == jem.Product.of("gaussian", "poisson")
    )
    assert as_family(jem.Binomial(6, [0.1, 0.9])) == jem.sized(jem.Binomial, total_count=6)
    assert as_family(jem.Categorical([0.2, 0.3, 0.5])) == jem.sized(jem.Categorical, categories=3)
    assert jem.sized("categorical", categories=3) == jem.sized(jem.Categorical, categories=3)
    assert as_family(jem.Independent(jem.Poisson([1.0, 2.0]))) == jem.Independent.of(jem.Poisson)
