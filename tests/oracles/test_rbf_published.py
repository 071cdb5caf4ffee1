"""A network of radial basis functions beside kernel methods, on published data: 442 patients with diabetes.

Efron, Hastie, Johnstone and Tibshirani 2004, "Least angle regression", Annals of Statistics 32:407: ten measurements,
and how far the disease had gone a year later. scikit-learn ships the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold

import jaxem as jem

pytestmark = pytest.mark.slow

FOLDS = [test for _, test in KFold(5, shuffle=True, random_state=0).split(np.zeros(442))]


@pytest.fixture(scope="module")
def folds() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each fold: inputs and responses, in units of the spread of the rows learned from, and which those are."""
    inputs, response = load_diabetes(return_X_y=True)
    made = []
    for test in FOLDS:
        learned = np.setdiff1d(np.arange(442), test)
        z = (inputs - inputs[learned].mean(0)) / inputs[learned].std(0)
        made.append((z, (response - response[learned].mean()) / response[learned].std(), learned))
    return made


def explained(folds: list[Any], predict: Callable[..., np.ndarray]) -> float:
    """The share of the variance that predictions of rows left out explain: 1 is all, 0 is what the mean does."""
    left, spread = 0.0, 0.0
    for (z, y, learned), test in zip(folds, FOLDS, strict=True):
        left += np.sum((y - predict(z, y, learned))[test] ** 2)
        spread += np.sum(y[test] ** 2)
    return 1 - left / spread


def peer(model: Any) -> Callable[..., np.ndarray]:
    return lambda z, y, learned: model.fit(z[learned], y[learned]).predict(z)


def network(z: np.ndarray, y: np.ndarray, learned: np.ndarray) -> np.ndarray:
    # Rows of weight zero are not there: one shape, compiled once, for all folds.
    weight = np.isin(np.arange(442), learned).astype(float)
    start = jem.RBFNetwork.start(jax.random.key(0), z, y, 2, weight=weight, restarts=4)
    fit = jem.fit(start, start.rows(z, y), weight=weight)
    assert fit.converged
    return np.asarray(fit.model.predict(z).mean)


def test_it_predicts_as_well_as_kernel_methods(folds: list[Any]) -> None:
    """Seen: the network 0.520, kernel ridge regression 0.516, the Gaussian process 0.514, a straight line 0.500."""
    ours = explained(folds, network)
    process = explained(folds, peer(GaussianProcessRegressor(RBF(8.0) + WhiteKernel())))
    ridge = explained(folds, peer(KernelRidge(kernel="rbf", alpha=0.3, gamma=0.01)))
    line = explained(folds, peer(LinearRegression()))
    assert min(process, ridge, line) > 0.48
    assert ours > max(process, ridge) - 0.01
    assert ours > line
