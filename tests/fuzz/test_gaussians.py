"""Mixtures of Gaussians and of factor models, with gaps, of any scale, nearly singular: against dense long doubles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from fuzz.budget import cases, generator
from jaxem.core.pytree import replace

pytestmark = pytest.mark.slow

BATCH, ROWS, MEMBERS, COLUMNS = 100, 6, 3, 3
Wide = np.longdouble
Rng = np.random.Generator


def scales(rng: Rng, single: bool) -> np.ndarray:
    """`[B, 1, D]`: those of the columns of each problem."""
    most = 9 if single else 12
    return 10.0 ** (rng.uniform(-most, most, (BATCH, 1, 1)) + rng.uniform(-3, 3, (BATCH, 1, COLUMNS)))


def gaussians(rng: Rng, scale: np.ndarray, dtype: Any) -> tuple[jem.Gaussian, np.ndarray]:
    """Covariances whose correlation matrices have smallest eigenvalues down to a thousand roundings."""
    narrow = 10.0 ** rng.uniform(np.log10(1e3 * jnp.finfo(dtype).eps), 0, (BATCH, MEMBERS, 1))
    root = rng.normal(size=(BATCH, MEMBERS, COLUMNS, COLUMNS))
    root[..., -1] *= narrow**0.5
    covariance = root @ np.swapaxes(root, -1, -2)
    covariance += (
        1e2 * jnp.finfo(dtype).eps * np.eye(COLUMNS) * np.trace(covariance, axis1=-2, axis2=-1)[..., None, None]
    )
    covariance = (covariance * scale[..., None] * scale[..., None, :]).astype(dtype)
    mean = (rng.normal(size=(BATCH, MEMBERS, COLUMNS)) * 3 * scale).astype(dtype)
    return jem.Gaussian(mean, covariance), covariance.astype(Wide)


def factor_models(rng: Rng, scale: np.ndarray, dtype: Any) -> tuple[jem.FactorAnalysis, np.ndarray]:
    loadings = (rng.normal(size=(BATCH, MEMBERS, COLUMNS, 1)) * scale[..., None]).astype(dtype)
    least = np.log10(1e3 * jnp.finfo(dtype).eps)
    noise = (10.0 ** rng.uniform(least, 0, (BATCH, MEMBERS, COLUMNS)) * scale**2).astype(dtype)
    mean = (rng.normal(size=(BATCH, MEMBERS, COLUMNS)) * 3 * scale).astype(dtype)
    wide = loadings.astype(Wide)
    covariance = wide * np.swapaxes(wide, -1, -2) + noise.astype(Wide)[..., None] * np.eye(COLUMNS)
    return jem.FactorAnalysis(mean, loadings, noise), covariance


def draw(rng: Rng, make: Any, dtype: Any) -> tuple[jem.Mixture, np.ndarray, np.ndarray]:
    """Mixtures `[B]`, their covariances, and `[B, n, D]` rows of which cells are missing, some far out."""
    scale = scales(rng, dtype == np.float32)
    members, covariance = make(rng, scale, dtype)
    weights = rng.dirichlet(np.ones(MEMBERS), BATCH)
    weights = np.where(rng.random((BATCH, 1)) < 0.2, np.array([0.0, 0.25, 0.75]), weights)
    tiny = np.array([1e-30 if dtype == np.float32 else 1e-300, 0.5, 0.5])
    weights = np.where(rng.random((BATCH, 1)) < 0.2, tiny, weights)
    which = rng.integers(MEMBERS, size=(BATCH, ROWS))
    far = rng.choice([1, 1, 30, 1e3], (BATCH, ROWS, 1))
    mean = np.take_along_axis(np.asarray(members.mean), which[..., None], 1)
    x = (mean + far * scale * rng.normal(size=(BATCH, ROWS, COLUMNS))).astype(dtype)
    x[:, 1] = x[:, 0]  # ties
    x[rng.random(x.shape) < 0.3 * (rng.random((BATCH, 1, 1)) < 0.5)] = np.nan
    return jem.Mixture(weights.astype(dtype), members), covariance, x


def dense(model: jem.Mixture, covariance: np.ndarray, x: np.ndarray, eps: float) -> dict[str, np.ndarray]:
    """Everything that is asked, from the covariance of the cells that are there; and how much is known of it."""
    mean, x = (
        np.asarray(model.components.mean).astype(Wide)[:, :, None],
        x.astype(Wide)[:, None],
    )
    there = ~np.isnan(x)
    both = there[..., None] & there[..., None, :]
    unit = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))[:, :, None]
    correlation = np.where(both, covariance[:, :, None] / (unit[..., None] * unit[..., None, :]), np.eye(COLUMNS))
    apart = np.where(there, (x - mean) / unit, 0)
    root = cholesky(correlation)
    solved = backward(root, forward(root, apart))
    distance = (apart * solved).sum(-1)
    log_det = 2 * np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1) + 2 * np.where(there, np.log(unit), 0).sum(-1)
    each = -(distance + log_det + there.sum(-1) * np.log(2 * Wide(np.pi))) / 2
    with np.errstate(divide="ignore"):
        terms = np.log(np.asarray(model.weights).astype(Wide))[..., None] + each
    top = terms.max(1, keepdims=True)
    value = (top + np.log(np.exp(terms - top).sum(1, keepdims=True)))[:, 0]
    posterior = np.exp(terms - value[:, None])
    whole = covariance[:, :, None] / (unit[..., None] * unit[..., None, :])
    expected = mean + unit * (np.where(there[..., None, :], whole, 0) @ solved[..., None])[..., 0]
    filled = (posterior[..., None] * np.where(there, x, expected)).sum(1)
    least = np.linalg.eigvalsh(correlation.astype(float))[..., 0]
    # Inputs are exact, so an answer is known to some roundings times the condition of the correlations.
    known = np.where(np.isfinite(terms), (1 + distance) / least + np.abs(log_det), 0).max(1)
    # So are the logs of responsibilities, which may be known to less than a digit.
    loose = np.expm1(np.minimum(64 * eps * known, 50))[:, None] / (64 * eps)
    steep = np.sqrt(distance / least) * (loose + 1 / least)
    spread = np.abs(expected - filled[:, None]) * loose[..., None]
    doubt = (np.abs(expected - mean) + unit) / least[..., None] + np.abs(mean) + spread
    return {
        "log_prob": value, "posterior": np.moveaxis(posterior, 1, -1), "filled": filled, "known": known,
        # The slope in units of one standard deviation of each column.
        "slope": (posterior[..., None] * solved).sum(2), "steep": (posterior * steep).sum(2), "unit": unit[:, :, 0],
        "steepest": np.sqrt(distance / least).sum(2), "doubt": (posterior[..., None] * doubt).sum(1),
    }  # fmt: skip


def cholesky(a: np.ndarray) -> np.ndarray:
    root = np.zeros_like(a)
    for i in range(COLUMNS):
        for j in range(i + 1):
            rest = a[..., i, j] - (root[..., i, :j] * root[..., j, :j]).sum(-1)
            root[..., i, j] = np.sqrt(rest) if i == j else rest / root[..., j, j]
    return root


def forward(root: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = np.zeros(np.broadcast_shapes(root.shape[:-1], b.shape), Wide)
    for i in range(COLUMNS):
        x[..., i] = (b[..., i] - (root[..., i, :i] * x[..., :i]).sum(-1)) / root[..., i, i]
    return x


def backward(root: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = np.zeros_like(b)
    for i in reversed(range(COLUMNS)):
        x[..., i] = (b[..., i] - (root[..., i + 1 :, i] * x[..., i + 1 :]).sum(-1)) / root[..., i, i]
    return x


@jax.jit
def answers(model: jem.Mixture, x: Any) -> dict[str, jax.Array]:
    def one(model: jem.Mixture, x: Any) -> dict[str, jax.Array]:
        at = lambda mean: replace(model, components=replace(model.components, mean=mean)).log_prob(x).sum()
        slope = jax.grad(at)(model.components.mean)
        return {
            "log_prob": model.log_prob(x),
            "posterior": model.posterior(x),
            "filled": model.impute(x),
            "slope": slope,
        }

    return jax.vmap(one)(model, x)


@pytest.mark.parametrize("make", [gaussians, factor_models])
def test_mixtures_of_rows_with_gaps_are_dense_ones(make: Any, dtype: jnp.dtype) -> None:
    rng, eps = generator(f"{make.__name__} {dtype.name}"), float(jnp.finfo(dtype).eps)
    for _ in range(-(-cases(100) // BATCH)):
        model, covariance, x = draw(rng, make, np.dtype(dtype.name))
        right = {name: np.asarray(value, float) for name, value in dense(model, covariance, x, eps).items()}
        found = jax.tree.map(np.asarray, answers(model, jem.Incomplete(jnp.asarray(x), 2**COLUMNS)))
        known = 64 * eps * right["known"]
        for name, value in found.items():
            assert value.dtype == dtype, name
            assert np.isfinite(value).all(), f"{name}: {np.argwhere(~np.isfinite(value))[:3].tolist()}"
        check("log_prob", found["log_prob"], right["log_prob"], known, x)
        check("posterior", found["posterior"], right["posterior"], np.minimum(known, 1)[..., None], x)
        check("filled", found["filled"], right["filled"], 256 * eps * right["doubt"], x)
        # A responsibility times the inverse of a variance may underflow.
        lost = 1e-20 * right["steepest"][..., None]
        steep = 64 * eps * right["steep"][..., None] + lost
        check("slope", found["slope"].astype(float) * right["unit"], right["slope"], steep, x)


def check(name: str, found: np.ndarray, right: np.ndarray, known: np.ndarray, x: np.ndarray) -> None:
    wrong = np.abs(found - right)
    over = wrong - np.broadcast_to(known, wrong.shape)
    at = np.unravel_index(int(np.argmax(over)), over.shape)
    assert over[at] <= 0, (
        f"{name} of problem {at}: {found[at]!r}, right is {right[at]!r}: off by {wrong[at]:.3g}, of "
        f"{np.broadcast_to(known, wrong.shape)[at]:.3g} allowed; row {x[at[0]].tolist()}"
    )
