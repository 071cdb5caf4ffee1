"""Programs of which the number of rows is left open: `jax.export` with a symbolic size."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax import export

import jaxem as jem

pytestmark = pytest.mark.slow

rng = np.random.default_rng(0)
MODELS = {
    "gaussians": (
        jem.Mixture([0.5, 0.5], jem.Gaussian([[0.0, 0.0], [3.0, 1.0]], [np.eye(2)] * 2)),
        np.concatenate([rng.normal(0, 1, (2400, 2)), rng.normal(3, 1, (2400, 2))])[rng.permutation(4800)],
    ),
    "poissons": (
        jem.Mixture([0.3, 0.7], jem.Poisson([1.0, 9.0])),
        rng.poisson(np.where(rng.random(4800) < 0.4, 2.0, 7.0)).astype(float),
    ),
}


def exported(function: Any, model: Any, x: np.ndarray) -> Any:
    (n,) = export.symbolic_shape("n")
    rows = jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
    return export.export(jax.jit(function))(model, rows).call


def e_step(model: Any, x: jax.Array) -> Any:
    log_prob, pullback = model.e_step(x)
    return log_prob, pullback(jax.numpy.ones_like(log_prob))


def fit(model: Any, x: jax.Array) -> Any:
    end = jem.fit(model, x, max_steps=50)
    return end.model, end.log_likelihood, end.steps, end.status


@pytest.mark.parametrize("function", [e_step, fit], ids=lambda function: function.__name__)
@pytest.mark.parametrize("which", MODELS)
def test_the_number_of_rows_may_be_a_symbol(which: str, function: Any) -> None:
    """Called with few rows and with so many that sums are taken in blocks, it is the plain program."""
    model, x = MODELS[which]
    call = exported(function, model, x)
    for n in (37, 4800):
        found, wanted = call(model, x[:n]), function(model, x[:n])
        for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
