"""Log-probabilities of counts against 40-digit arithmetic, from no count to a thousand million, in both types."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import jaxem as jem
from jaxem.core.double_double import MOST, log_words

pytestmark = pytest.mark.slow

TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
MOSTS = {"few": 2.5, "some": 3.3, "many": 9.0}
"""Powers of ten of the largest counts: read by words in both types, in one of them, in none."""

log_gamma = mp.loggamma


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Any:
    with mp.workdps(40):
        yield


def exactly(array: Any) -> list[mp.mpf]:
    return [mp.mpf(float(value)) for value in np.ravel(array)]


def off(found: Any, exact: list[mp.mpf], least: float = 1.0) -> float:
    """The largest error relative to what is right, or to `least`."""
    pairs = zip(exactly(found), exact, strict=True)
    return max(float(abs(a - b) / max(mp.mpf(least), abs(b))) for a, b in pairs)


@partial(jax.jit, static_argnums=0)
def log_prob(make: Callable[..., Any], x: Any, *parameters: Any) -> Any:
    """Of each row under parameters of its own."""

    def one(x: Any, *parameters: Any) -> Any:
        return make(*parameters).e_step(x[None])[0][0]

    return jax.vmap(one)(x, *parameters)


@partial(jax.jit, static_argnums=0)
def slopes(make: Callable[..., Any], x: Any, *parameters: Any) -> Any:
    """By each parameter, and once more by the first."""

    def one(x: Any, *parameters: Any) -> Any:
        def value(*parameters: Any) -> Any:
            return make(*parameters).e_step(x[None])[0][0]

        places = tuple(range(len(parameters)))
        return jax.grad(value, places)(*parameters), jax.jacfwd(jax.grad(value))(*parameters)

    return jax.vmap(one)(x, *parameters)


def counts(rng: np.random.Generator, most: float, n: int = 120) -> np.ndarray:
    x = np.floor(10.0 ** rng.uniform(-0.5, most, n))
    x[:5] = [0, 1, 2, 3, 10.0**most // 1]
    return x


def about(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Means some deviations from counts, and some anywhere."""
    near = np.abs(x + rng.choice([0, 1, 5], len(x)) * np.sqrt(x + 1) * rng.normal(size=len(x))) + 1e-9
    return np.where(rng.random(len(x)) < 0.8, near, 10.0 ** rng.uniform(-12, 10, len(x)))


@pytest.mark.parametrize("most", MOSTS.values(), ids=MOSTS)
def test_poisson(most: float, dtype: Any, rng: np.random.Generator) -> None:
    x = counts(rng, most).astype(dtype)
    rate = about(rng, x).astype(dtype)
    rows = list(zip(exactly(x), exactly(rate), strict=True))
    exact = [k * mp.log(m) - m - log_gamma(k + 1) for k, m in rows]
    assert off(log_prob(jem.Poisson, x, rate), exact) < TOLERANCE[dtype.name]
    (first,), second = slopes(jem.Poisson, x, rate)
    assert off(first, [(k - m) / m for k, m in rows], 1e-30) < TOLERANCE[dtype.name]
    assert off(second * rate, [-k / m for k, m in rows], 1) < 2 * TOLERANCE[dtype.name]


@pytest.mark.parametrize("total", [1, 20, 1000, 10**6, 10**9 + 1])
def test_binomial(total: int, dtype: Any, rng: np.random.Generator) -> None:
    x = np.floor((total + 1) * rng.beta(0.3, 0.3, 100)).astype(dtype)
    x[:4] = [0, 1, min(2, total), np.floor(total * 0.999)]
    x = np.where(x.astype(float) > total, 0, x).astype(dtype)
    share = x.astype(float) / total
    near = share + rng.choice([0, 1, 5], 100) * np.sqrt(share * (1 - share) / total) * rng.normal(size=100)
    p = np.where(rng.random(100) < 0.7, near, 10.0 ** rng.uniform(-12, 0, 100)).clip(1e-12, 1 - 1e-7).astype(dtype)
    p[2] = 2.4 / max(total, 3)
    rows, n = list(zip(exactly(x), exactly(p), strict=True)), mp.mpf(total)
    ways = [log_gamma(n + 1) - log_gamma(k + 1) - log_gamma(n - k + 1) for k, _ in rows]
    exact = [w + k * mp.log(q) + (n - k) * mp.log(1 - q) for w, (k, q) in zip(ways, rows, strict=True)]
    make = partial(jem.Binomial, total)
    assert off(log_prob(make, x, p), exact) < TOLERANCE[dtype.name]
    assert off(slopes(make, x, p)[0][0], [k / q - (n - k) / (1 - q) for k, q in rows], 1e-30) < TOLERANCE[dtype.name]


@pytest.mark.parametrize("most", [2.5, 9.0])
def test_negative_binomial(most: float, dtype: Any, rng: np.random.Generator) -> None:
    x = counts(rng, most).astype(dtype)
    mean, shape = about(rng, x).astype(dtype), (10.0 ** rng.uniform(-6, 12, len(x))).astype(dtype)
    rows = list(zip(exactly(x), exactly(mean), exactly(shape), strict=True))
    exact = [
        log_gamma(r + k) - log_gamma(r) - log_gamma(k + 1) + r * mp.log(r / (r + m)) + k * mp.log(m / (r + m))
        for k, m, r in rows
    ]
    assert off(log_prob(jem.NegativeBinomial, x, mean, shape), exact) < TOLERANCE[dtype.name]
    (by_mean, by_shape), _ = slopes(jem.NegativeBinomial, x, mean, shape)
    assert off(by_mean, [(k - m) / m * r / (r + m) for k, m, r in rows], 1e-30) < TOLERANCE[dtype.name]
    exact = [r * (mp.digamma(r + k) - mp.digamma(r) + mp.log(r / (r + m)) + (m - k) / (r + m)) for k, m, r in rows]
    assert off(by_shape * shape, exact, 1e-2) < 3 * TOLERANCE[dtype.name]


@pytest.mark.parametrize("most", MOSTS.values(), ids=MOSTS)
def test_multinomial(most: float, dtype: Any, rng: np.random.Generator) -> None:
    n, size = 60, 4
    x = np.floor(10.0 ** rng.uniform(-0.5, most - 0.7, (n, size)) * rng.choice([0, 1, 1e-3], (n, size))).astype(dtype)
    share = (x + 0.5) / (x + 0.5).sum(1, keepdims=True)
    p = np.where(rng.random((n, 1)) < 0.7, share, rng.dirichlet(np.ones(size), n)).astype(dtype)
    p[0] = np.where(x[0] > 0, p[0], 0)  # what cannot be, and is not
    p[1], x[1] = [0, 0.5, 0.25, 0.25], [1, 2, 3, 4]  # and what is, all the same

    def exact(x: np.ndarray, p: np.ndarray) -> mp.mpf:
        counted, probs = exactly(x), exactly(p)
        terms = [k * mp.log(q) - log_gamma(k + 1) for k, q in zip(counted, probs, strict=True) if k > 0]
        return log_gamma(sum(counted) + 1) + sum(terms)

    found = log_prob(jem.Multinomial, x, p)
    assert found[1] == -np.inf
    rows = [i for i in range(n) if i != 1]
    assert off(found[np.array(rows)], [exact(x[i], p[i]) for i in rows]) < TOLERANCE[dtype.name]
    ((slope,), _) = slopes(jem.Multinomial, x, p)
    at = p > 0
    np.testing.assert_allclose(slope[at], (x[at].astype(float) / p[at]), rtol=TOLERANCE[dtype.name])
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("most", [2.5, 9.0])
def test_poisson_regression(most: float, dtype: Any, rng: np.random.Generator) -> None:
    """Of a log-rate that is known exactly."""
    x = counts(rng, most).astype(dtype)
    level = np.log(about(rng, x)).astype(dtype)
    rows = list(zip(exactly(x), exactly(level), strict=True))
    exact = [k * m - mp.exp(m) - log_gamma(k + 1) for k, m in rows]
    make, table = partial(jem.PoissonRegression, np.zeros(1, dtype)), np.stack([0 * x, x], axis=1)
    assert off(log_prob(make, table, level), exact) < TOLERANCE[dtype.name]
    (slope,), _ = slopes(make, table, level)
    size = np.maximum(x.astype(float), np.exp(level.astype(float)))
    assert off(
        np.asarray(slope, float) / size,
        [(k - mp.exp(m)) / mp.mpf(float(s)) for (k, m), s in zip(rows, size, strict=True)],
    ) < (10 * TOLERANCE[dtype.name])


def test_logistic_regression(dtype: Any, rng: np.random.Generator) -> None:
    """Of log-odds that are known exactly."""
    level = (rng.choice([-1, 1], 60) * 10.0 ** rng.uniform(-6, 3, 60)).astype(dtype)
    y = (np.arange(60) % 2).astype(dtype)
    exact = [-mp.log1p(mp.exp(-m if k else m)) for k, m in zip(y, exactly(level), strict=True)]
    make = partial(jem.LogisticRegression, np.zeros(1, dtype))
    assert off(log_prob(make, np.stack([0 * y, y], axis=1), level), exact) < TOLERANCE[dtype.name]


@pytest.mark.parametrize("most", [2.0, 5.0, 9.0])
def test_beta(most: float, dtype: Any, rng: np.random.Generator) -> None:
    n = 100
    a, b = (10.0 ** rng.uniform(-2, most, (2, n))).astype(dtype)
    mean = a.astype(float) / (a.astype(float) + b)
    spread = np.sqrt(mean * (1 - mean) / (a.astype(float) + b + 1))
    near = mean + rng.choice([0, 1, 5], n) * spread * rng.normal(size=n)
    x = np.where(rng.random(n) < 0.8, near, rng.uniform(0, 1, n)).clip(1e-12, 1 - 1e-7).astype(dtype)
    rows = list(zip(exactly(x), exactly(a), exactly(b), strict=True))
    exact = [
        log_gamma(p + q) - log_gamma(p) - log_gamma(q) + (p - 1) * mp.log(y) + (q - 1) * mp.log1p(-y)
        for y, p, q in rows
    ]
    assert off(log_prob(jem.Beta, x, a, b), exact) < TOLERANCE[dtype.name]
    (by_a, by_b), _ = slopes(jem.Beta, x, a, b)
    exact = [mp.digamma(p + q) - mp.digamma(p) + mp.log(y) for y, p, q in rows]
    assert off(by_a * a, [p * s for (_, p, _), s in zip(rows, exact, strict=True)], 1) < 3 * TOLERANCE[dtype.name]
    exact = [mp.digamma(p + q) - mp.digamma(q) + mp.log1p(-y) for y, p, q in rows]
    assert off(by_b * b, [q * s for (_, _, q), s in zip(rows, exact, strict=True)], 1) < 3 * TOLERANCE[dtype.name]


@pytest.mark.parametrize("most", [2.0, 5.0, 9.0])
@pytest.mark.parametrize("least", [-12.0, 0.0])
def test_dirichlet(most: float, least: float, dtype: Any, rng: np.random.Generator) -> None:
    """Of the shares of rows, whose sum is one but for rounding."""
    n, size = 150, 3
    a = 10.0 ** (rng.uniform(least, most, (n, 1)) + rng.choice([0, 0, -3], (n, size)))
    mean = a / a.sum(1, keepdims=True)
    spread = np.sqrt(mean * (1 - mean) / (a.sum(1, keepdims=True) + 1))
    near = np.abs(mean + rng.choice([0, 1, 3], (n, 1)) * spread * rng.normal(size=(n, size)))
    x = np.where(rng.random((n, 1)) < 0.8, near, rng.dirichlet(np.full(size, 0.3), n)).clip(1e-30)
    a, x = a.astype(dtype), (x / x.sum(1, keepdims=True)).astype(dtype)
    x[:3] = [[0.5, 0.25, 0.25], [1 - 2**-10, 2**-11, 2**-11], [1, 1e-20, 1e-20]]
    sums, totals = ([sum(exactly(row)) for row in rows] for rows in (x, a))
    rows = [  # a share, its concentration, and all of them, in the order of x
        (y / total, q, every)
        for x_row, a_row, total, every in zip(x, a, sums, totals, strict=True)
        for y, q in zip(exactly(x_row), exactly(a_row), strict=True)
    ]
    parts = [(q - 1) * mp.log(y) - log_gamma(q) for y, q, _ in rows]
    exact = [log_gamma(every) + sum(parts[size * i : size * (i + 1)]) for i, every in enumerate(totals)]
    assert off(log_prob(jem.Dirichlet, x, a), exact) < TOLERANCE[dtype.name]
    ((found,), _) = slopes(jem.Dirichlet, x, a)
    exact = [q * (mp.log(y) - mp.digamma(q) + mp.digamma(every)) for y, q, every in rows]
    assert off(found * a, exact, 1) < 3 * TOLERANCE[dtype.name]
    by_x = jax.jit(jax.vmap(jax.grad(lambda x, a: jem.Dirichlet(a).e_step(x[None])[0][0])))(x, a)
    exact = [(q - 1) - y * (every - size) for y, q, every in rows]
    largest = np.abs(np.array(exact, float)).reshape(n, size).max(1, keepdims=True).clip(1)
    found = np.asarray(by_x * x, float) / largest
    exact = [value / mp.mpf(each) for value, each in zip(exact, np.repeat(largest, size), strict=True)]
    assert off(found, exact, 1) < 5 * TOLERANCE[dtype.name]


LARGE: dict[str, Any] = {
    "negative-binomial": (lambda one: jem.NegativeBinomial(2e5 * one, 3 * one), lambda rng: rng.poisson(
        rng.gamma(7, 1e6 / 7, 400)
    )),
    "beta": (lambda one: jem.Beta(1e8 * one, 1e8 * one), lambda rng: rng.beta(3e8, 7e8, 400)),
    "dirichlet": (lambda one: jem.Dirichlet(1e8 * one * jnp.ones(3, one.dtype)), lambda rng: rng.dirichlet(
        [2e8, 3e8, 5e8], 400
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_float32_fits_of_large_numbers_are_those_of_float64(name: str, rng: np.random.Generator) -> None:
    """And where an M-step ends, Q is level: in units of what a row says."""
    make, draw = LARGE[name]
    x = draw(rng).astype(np.float32)

    @jax.jit
    def fitted(model: Any, x: Any) -> Any:
        def step(_: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
            log_prob, pullback = state[0].e_step(rows)
            statistics = pullback(jnp.ones_like(log_prob))
            return state[0].m_step(statistics), statistics

        rows = model.observe(x)
        model, statistics = jax.lax.fori_loop(0, 40, step, (model, model.expected_statistics()))
        slope = jax.grad(lambda model: model.expected_log_prob(statistics))(model)
        return model, jax.tree.map(lambda s, leaf: jnp.max(jnp.abs(s * jnp.sqrt(leaf))) / len(x), slope, model)

    (single, slopes), (double, _) = (fitted(make(jnp.ones((), dtype)), x.astype(dtype)) for dtype in (x.dtype, float))
    assert max(jax.tree.leaves(slopes)) < 0.01
    raised = jax.tree.map(lambda leaf: leaf.astype(float), single)
    found, right = (np.mean(model.log_prob(x.astype(float))) for model in (raised, double))
    np.testing.assert_allclose(found, right, atol=2e-5)


def test_a_few_successes_of_a_million() -> None:
    """`x log p + ... + three log Gammas` said -3.28 of it in float32."""
    model = jem.Binomial(1_000_000, np.float32(2.4e-6))
    np.testing.assert_allclose(model.log_prob(np.float32([2])), -1.34221, atol=1e-5)


def test_constants_do_not_lose_their_rests() -> None:
    """XLA adds constants to each other before it takes anything from them."""
    x, p = jnp.array([999_996_736.0], jnp.float32), np.float32(0.9999967)
    model = jem.Binomial(10**9 + 1, p)
    constant = jax.jit(lambda x: model.e_step(x)[0])(x)
    np.testing.assert_allclose(constant, log_prob(partial(jem.Binomial, 10**9 + 1), x, p[None]), rtol=1e-6)


def test_few_and_many_in_one_batch_agree(rng: np.random.Generator) -> None:
    """A problem with large counts sends all of its batch the other way: to the same numbers."""
    x = np.stack([rng.poisson(9, 20), np.full(20, 10**9)]).astype(float)
    rate = jnp.array([9.0, 1e9])
    together = jax.jit(jax.vmap(lambda rate, x: jem.Poisson(rate).e_step(x)[0]))(rate, x)
    alone = jnp.stack([jem.Poisson(m).log_prob(row) for m, row in zip(rate, x, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=1e-14)


def test_logarithms_as_two_floats(dtype: Any, rng: np.random.Generator) -> None:
    size = jnp.dtype(dtype).itemsize
    whole = rng.integers(1, MOST[size], 200)
    x = np.concatenate([whole, 10.0 ** rng.uniform(-30, 30, 100), rng.uniform(0.5, 2, 100)]).astype(dtype)
    high, low = jax.jit(log_words)(x)
    errors = [abs(a + b - mp.log(c)) for a, b, c in zip(exactly(high), exactly(low), exactly(x), strict=True)]
    assert float(max(errors)) < {4: 2.0**-34, 8: 2.0**-71}[size]
    assert float(max(errors[:200])) < {4: 2.0**-37, 8: 2.0**-73}[size]


@pytest.mark.parametrize("zero", [(jem.Poisson, 0.0, [0.0, 1.0]), (partial(jem.Binomial, 3), 0.0, [0.0, 1.0])])
def test_structural_zeros(zero: Any, dtype: Any) -> None:
    make, value, rows = zero
    x, parameter = np.asarray(rows, dtype), np.full(2, value, dtype)
    assert log_prob(make, x, parameter).tolist() == [0, -np.inf]
    (first,), second = slopes(make, x, parameter)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
