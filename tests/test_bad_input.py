"""Wrong arguments end in one sentence that names the argument, and not in a traceback of JAX's."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import jaxem as jem

X = np.array([[0.0, 1.0], [2.0, 3.0], [5.0, 1.0]])
MODEL = jem.Mixture([0.5, 0.5], jem.SphericalGaussian([[0.0, 0.0], [3.0, 3.0]], [1.0, 1.0]))
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
]


@pytest.mark.parametrize(("words", "call"), CASES, ids=[f"{i}-{words}" for i, (words, _) in enumerate(CASES)])
def test_value_error_names_the_argument(words: str, call: Any) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("x", [np.array([["a", "b"]]), np.array([[1j, 0]]), np.array([[None, 1.0]])])
def test_what_is_not_numbers_is_a_type_error(x: np.ndarray) -> None:
    for call in (lambda: jem.fit(MODEL, x), lambda: MODEL.log_prob(x), lambda: start(x=x)):
        with pytest.raises(TypeError, match="x holds"):
            call()
