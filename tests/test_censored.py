"""Censored rows: log-probabilities against SciPy, the laws of EM on mixed rows, published and brute-force maxima."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

import jaxem as jem
from families import coordinates, move, perturbed
from jaxem.distributions.base import add
from jaxem.distributions.statistics import truncated

pytestmark = pytest.mark.slow

INF = np.inf


def mixed(x: np.ndarray, seed: int = 0, reach: float = 0.0) -> np.ndarray:
    """Rows of which a fifth each are seen, censored on the right, on the left, in an interval, in a tiny one."""
    kind = np.random.default_rng(seed).integers(0, 5, len(x))[:, None]
    ends = [(x, x), (0.8 * x, np.full_like(x, INF)), (np.full_like(x, reach), 1.2 * x), (0.7 * x, 1.3 * x)]
    ends.append((x, x * (1 + 1e-9)))
    return np.select([kind == k for k in range(5)], [np.stack(pair, axis=-1) for pair in ends])


BASES = {
    "exponential": (jem.Exponential([0.2, 0.5]), 0.0),
    "weibull": (jem.Weibull([1.5, 3.0], [4.0, 9.0]), 0.0),
    "lognormal": (jem.LogNormal([1.0, 2.0], [0.6, 0.4]), -INF),
    "gaussian": (jem.DiagonalGaussian([[3.0], [8.0]], [[4.0], [2.0]]), -INF),
}
bases = pytest.mark.parametrize("name", BASES)
ROWS = {name: mixed(np.random.default_rng(5).gamma(3, 2, size=40) + 0.5, reach=low) for name, (_, low) in BASES.items()}


def known(base: Any, k: int) -> Any:
    p = [np.asarray(leaf).reshape(-1)[k] for leaf in jax.tree.leaves(base)]
    return {
        jem.Exponential: lambda: scipy.stats.expon(scale=1 / p[0]),
        jem.Weibull: lambda: scipy.stats.weibull_min(p[0], scale=p[1]),
        jem.LogNormal: lambda: scipy.stats.lognorm(p[1], scale=np.exp(p[0])),
        jem.DiagonalGaussian: lambda: scipy.stats.norm(p[0], np.sqrt(p[1])),
    }[type(base)]()


def log_probs(law: Any, rows: np.ndarray) -> np.ndarray:
    """By the tail that is smaller; a tiny interval by the density in its middle."""
    lower, upper = rows.T
    low, high = np.where(np.isfinite(lower), lower, upper), np.where(np.isfinite(upper), upper, lower)
    middle = low + (high - low) / 2
    with np.errstate(all="ignore"):
        tiny = law.logpdf(middle) + np.log(upper - lower)
        left = np.log(law.cdf(upper) - law.cdf(lower))
        right = np.log(law.sf(lower) - law.sf(upper))
    mass = np.where(upper - lower < 1e-6 * abs(middle), tiny, np.where(law.cdf(middle) < 0.5, left, right))
    return np.where(lower == upper, law.logpdf(lower), mass)


@bases
def test_log_probabilities(name: str) -> None:
    base, _ = BASES[name]
    rows, model = ROWS[name], jem.Censored(base)
    found = model.log_prob(rows)
    for k in range(2):
        np.testing.assert_allclose(found[k], log_probs(known(base, k), rows), rtol=1e-6, atol=1e-7)
    single = jem.Censored(jax.tree.map(jnp.float32, base)).log_prob(rows.astype(np.float32))
    assert single.dtype == jnp.float32
    wide = rows.astype(np.float32).astype(float)
    np.testing.assert_allclose(single, model.log_prob(wide), rtol=2e-5, atol=2e-5)


def test_far_tails() -> None:
    """Where a difference of probabilities is 0 - 0 or 1 - 1."""
    gaussian = jem.Censored(jem.DiagonalGaussian([0.0], [1.0]))
    rows = [[40.0, INF], [-INF, -40.0], [40.0, 40.1], [-40.1, -40.0], [-INF, INF]]
    tail = scipy.stats.norm.logsf(40)
    between = tail + np.log1p(-np.exp(scipy.stats.norm.logsf(40.1) - tail))
    np.testing.assert_allclose(gaussian.log_prob(rows), [tail, tail, between, between, 0], rtol=1e-12)
    wait = jem.Censored(jem.Weibull(2.0, 1.0))
    rows = [[30.0, INF], [30.0, 30.001], [0.0, 1e-9], [-INF, 1e-9], [0.0, INF]]
    expected = [-900, -900 + np.log(-np.expm1(30.0**2 - 30.001**2)), *[2 * np.log(1e-9)] * 2, 0]
    np.testing.assert_allclose(wait.log_prob(rows), expected, rtol=1e-10)
    for model in (gaussian, wait):
        slope = jax.jit(jax.grad(lambda model: model.log_prob(jnp.array(rows)).sum()))(model)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_impossible_rows_and_bases() -> None:
    model = jem.Censored(jem.Weibull(2.0, 1.0))
    rows = jnp.array([[2.0, 1.0], [-2.0, -1.0], [0.0, 0.0], [INF, INF], [-1.0, 0.0], [1.0, 2.0]])
    assert model.inside(rows).tolist() == [False] * 5 + [True]
    assert np.isneginf(model.log_prob(rows)[:5]).all()
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(jax.grad(lambda m: m.log_prob(rows)[5])(model)))
    assert model.log_prob([[jnp.nan, jnp.nan]]) == 0
    for base in (jem.Poisson(1.0), jem.Gaussian([0.0, 0.0], np.eye(2))):
        with pytest.raises(TypeError, match="knows intervals"):
            jem.Censored(base)


def test_moments_of_a_truncated_gaussian() -> None:
    """Against quadrature, in the tails and in the middle, wide and narrow."""
    ends = [(-1.0, 2.0), (0.3, 0.9), (5.0, 5.01), (-9.0, -8.0), (6.0, INF), (-INF, -6.0), (-INF, 1.0), (1.0, 1.0)]
    lower, upper = jnp.array(ends).T
    interval = truncated.Interval(lower, upper, upper - lower)
    one = jax.vmap(lambda w: truncated.normal_moments(interval, jnp.zeros(()), jnp.ones(()), w))(jnp.eye(len(ends)))
    for k, (a, b) in enumerate(ends[:-1]):
        c, d = max(a, -14.0), min(b, 14.0)
        mass, first, second = (
            scipy.integrate.quad(lambda z, p=p: z**p * np.exp(-z * z / 2), c, d, epsrel=1e-12)[0] for p in range(3)
        )
        np.testing.assert_allclose([one.first[k, 0], one.second[k, 0]], [first / mass, second / mass], rtol=1e-8)
    np.testing.assert_allclose([one.first[-1, 0], one.second[-1, 0]], 1)


@jax.jit
def step(model: Any, x: Any, weight: Any, prior: Any) -> tuple[Any, Any]:
    log_prob, pullback = model.e_step(x)
    objective = (weight * log_prob).sum() + model.expected_log_prob(prior)
    return objective, model.m_step(add(pullback(weight), prior))


@bases
def test_em_on_mixed_rows(name: str, rng: np.random.Generator) -> None:
    """Q touches the log-likelihood with one slope and lies below it; EM climbs; the M-step is a maximum."""
    base, _ = BASES[name]
    model, x = jem.Mixture([0.4, 0.6], jem.Censored(base)), jnp.asarray(ROWS[name])
    weight = jnp.asarray(rng.choice([0.5, 1.0, 2.0], len(x)))
    direction = {path: rng.normal(size=leaf.shape) for path, leaf in coordinates(model).items()}

    @jax.jit
    def compared(other: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        log_prob, pullback = model.e_step(x)
        statistics = pullback(weight)

        def gap(t: jax.Array) -> jax.Array:
            moved = move(other, {path: t * d for path, d in direction.items()})
            gained = (weight * (moved.log_prob(x) - log_prob)).sum()
            return gained - moved.expected_log_prob(statistics) + model.expected_log_prob(statistics)

        value, slope = jax.value_and_grad(gap)(jnp.zeros(()))
        best = model.m_step(statistics).expected_log_prob(statistics)
        return value, slope, best, other.expected_log_prob(statistics)

    touching, slope, best, _ = compared(model)
    assert abs(touching) < 1e-10
    assert abs(slope) < 1e-8
    for size in (1e-3, 0.05, 0.3, 1.0):
        for _ in range(4):
            above, _, _, q = compared(perturbed(model, rng, size))
            assert above > 0
            assert q < best

    floor, last = model.floor(x, weight), -INF
    for _ in range(12):
        objective, model = step(model, x, weight, floor)
        assert objective >= last - 1e-11 * abs(objective)
        last = objective
    assert np.isfinite(last)


GEHAN = [10, 7, 32, 23, 22, 6, 16, 34, 32, 25, 11, 20, 19, 6, 17, 35, 6, 13, 9, 6, 10]
EVENT = [1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0]


def remissions() -> np.ndarray:
    weeks = np.array(GEHAN, float)
    return np.stack([weeks, np.where(EVENT, weeks, INF)], axis=1)


def test_remission_times() -> None:
    """Weeks in remission under 6-mercaptopurine (Freireich et al. 1963; Gehan 1965): EM's own iterates, and its end."""
    x, model, mean = remissions(), jem.Censored(jem.Exponential(0.1)), 10.0
    for _ in range(8):
        model = model.m_step(model.e_step(x)[1](jnp.ones(len(x))))
        mean = (359 + 12 * mean) / 21
        np.testing.assert_allclose(1 / model.base.rate, mean, rtol=1e-13)
    found = jem.fit(model, x, tol=1e-15)
    np.testing.assert_allclose(found.model.base.rate, 9 / 359, atol=1e-10)
    np.testing.assert_allclose(found.log_likelihood, -42.174880300368535, atol=1e-10)
    np.testing.assert_allclose(jem.em_rate(found.model, x), 12 / 21, rtol=1e-6)


@pytest.mark.parametrize("name", ["weibull", "lognormal"])
def test_maximum_likelihood_by_brute_force(name: str) -> None:
    kind = {"weibull": jem.Weibull, "lognormal": jem.LogNormal}[name]
    for x in (remissions(), ROWS[name]):
        found = jem.fit(jem.Censored(kind(1.0, 2.0)), x, tol=1e-13)
        assert found.status_name == "converged"

        def parameters(p: np.ndarray) -> list[float]:
            return [np.exp(p[0]) if name == "weibull" else p[0], np.exp(p[1])]

        def fall(p: np.ndarray, x: np.ndarray = x) -> float:
            return -log_probs(known(kind(*parameters(p)), 0), x).sum()

        best = scipy.optimize.minimize(fall, [0.5, 0.5], method="Nelder-Mead", options={"fatol": 1e-11, "xatol": 1e-8})
        np.testing.assert_allclose(found.log_likelihood, -best.fun, atol=1e-7)
        np.testing.assert_allclose(jax.tree.leaves(found.model), parameters(best.x), rtol=1e-4)


@pytest.mark.parametrize("family", [jem.Weibull, jem.DiagonalGaussian])
def test_a_mixture_from_its_own_start(family: Any) -> None:
    """Two kinds of lifetimes, a third of them still running: the start is sensible and EM finds both, in float32."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(10, 1, 300), rng.normal(30, 3, 300)])
    stopped = rng.uniform(5, 70, 600)
    rows = np.stack([np.minimum(x, stopped), np.where(x < stopped, x, INF)], axis=1).astype(np.float32)
    start = jem.Mixture.start(jax.random.key(0), jem.Censored.of(family), rows, 2, restarts=2)
    found = jem.fit(start, rows)
    assert found.status_name == "converged"
    centres = found.model.components.base
    centres = centres.scale if family is jem.Weibull else centres.mean[:, 0]
    np.testing.assert_allclose(np.sort(centres), [10, 30], rtol=0.06)
    np.testing.assert_allclose(found.model.weights, 0.5, atol=0.06)
    part = jem.Product.of(jem.sized(jem.Censored.of(family), columns=2), jem.Poisson)
    table = np.concatenate([rows, np.float32(rng.poisson(3, (600, 1)))], axis=1)
    assert jem.Mixture.start(jax.random.key(0), part, table, 2).components.event_shape == (3,)


def test_all_rows_censored() -> None:
    """Nothing was seen to end: an exponential goes on slowing down, a Weibull without events stays where it is."""
    x = np.array([[1.0, INF], [4.0, INF]])
    weibull = jem.fit(jem.Censored(jem.Weibull(2.0, 3.0)), x)
    assert jax.tree.leaves(weibull.model) == [2.0, 3.0]
    slow = jem.fit(jem.Censored(jem.Exponential(1.0)), x, max_steps=30)
    assert 0 < slow.model.base.rate < 0.05
    assert (np.diff(slow.trace[: int(slow.steps) + 1]) >= 0).all()


def test_it_can_be_saved(tmp_path: Any) -> None:
    model = jem.Mixture([0.4, 0.6], jem.Censored(BASES["weibull"][0]))
    jem.save(tmp_path / "model.safetensors", model)
    again = jem.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.components.base.scale, model.components.base.scale)
    assert model.sample(jax.random.key(0), 5).shape == (5, 2)
    np.testing.assert_allclose(model.components.centre().T, [model.components.base.centre()] * 2)
