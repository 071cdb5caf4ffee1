"""Every family at hostile parameters and rows: log-probabilities and their slopes against 50-digit arithmetic.

The formulas are those of textbooks, not those of the library; slopes are differences of them, so small that nothing
of 40 digits is lost. A number is right if it is off by no more than `value` (`slope`) units of rounding, relative to
what is right or to one nat, whichever is larger; a slope is taken per relative change of a positive parameter, and per
scale of a location: what that promises is the table `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import jaxem as jem
from fuzz.budget import cases, generator

pytestmark = pytest.mark.slow

BATCH = 60
DIGITS, STEP = 110, mp.mpf(10) ** -30
Rng = np.random.Generator
Draw = Callable[[Rng, float], list[np.ndarray]]

log, exp, log_gamma = mp.log, mp.exp, mp.loggamma


@dataclasses.dataclass(frozen=True, eq=False)
class Checked:
    """A family, and what it promises.

    Attributes:
        name: of the test.
        make: parameters -> a family.
        draw: (rng, tiny) -> rows and parameters, `[BATCH, ...]` each.
        log_prob: (row, *parameters), lists of numbers -> the logarithm of the density; None outside the support.
        units: (row, *parameters) -> the size of a change of each; None for what has no slope.
        value, slope: units of rounding by which these may be off, in float32 and float64.
    """

    name: str
    make: Callable[..., Any]
    draw: Draw
    log_prob: Callable[..., Any]
    units: Callable[..., list[Any]]
    value: tuple[float, float]
    slope: tuple[float, float]

    def __repr__(self) -> str:
        return self.name


def scales(rng: Rng, low: float = -12, high: float = 12) -> np.ndarray:
    """Of all sizes; some are one, some powers of two."""
    kind = rng.integers(6, size=BATCH)
    size = 10.0 ** rng.uniform(low, high, BATCH)
    return np.where(kind == 0, 1.0, np.where(kind == 1, 2.0 ** np.round(np.log2(size)), size))


def probabilities(rng: Rng, tiny: float) -> np.ndarray:
    """Some of them zero, one, or nearly so."""
    some = rng.choice([0, 1, tiny, 0.5, 1 - 2.0**-20, 2.0**-20], BATCH)
    return np.where(rng.random(BATCH) < 0.4, some, rng.random(BATCH))


def simplices(rng: Rng, tiny: float, size: int = 3) -> np.ndarray:
    p = rng.dirichlet(np.full(size, 10.0 ** rng.uniform(-1, 1)), BATCH) + 1e-6
    kind = rng.integers(3, size=(BATCH, 1))
    rest = rng.random((BATCH, size)) < 0.4
    rest[:, 0] = False
    p = np.where(rest & (kind == 1), 0, np.where(rest & (kind == 2), tiny, p))
    return p / p.sum(1, keepdims=True)


def counts(rng: Rng, most: float) -> np.ndarray:
    x = np.floor(10.0 ** rng.uniform(-0.5, most, BATCH))
    return odd(rng, x, [0, 1, -1, 0.5])


def odd(rng: Rng, x: np.ndarray, values: list[float]) -> np.ndarray:
    """Some rows at the edge of the support, or outside it."""
    return np.where(rng.random(BATCH) < 0.15, rng.choice([*values, np.inf, -np.inf], BATCH), x)


def about(rng: Rng, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Rows at the mean, near it and far from it."""
    return mean + rng.choice([0, 0.1, 1, 3, 30], BATCH) * spread * rng.normal(size=BATCH)


def magnitude(rng: Rng) -> float:
    """A power of ten that is for a whole batch: counts that are few go another way than counts of which one is many."""
    return rng.choice([1.0, 3.0, 9.0])


def whole(x: Any) -> bool:
    return mp.isfinite(x) and x >= 0 and x == mp.floor(x)


def above_zero(x: Any) -> bool:
    return mp.isfinite(x) and x > 0


def times_log(n: Any, p: Any) -> Any:
    """Nothing if there are none; minus infinity, None, if there cannot be any."""
    return mp.mpf(0) if n == 0 else None if p == 0 else n * log(p)


def total(*parts: Any) -> Any:
    return None if any(part is None for part in parts) else sum(parts)


def own(*values: Any) -> list[Any]:
    return [abs(value) for value in values]


# Each: a draw, the formula, and what a change is measured by.


def draw_bernoulli(rng: Rng, tiny: float) -> list[np.ndarray]:
    return [odd(rng, rng.integers(2, size=BATCH).astype(float), [0.5, 2, -1]), probabilities(rng, tiny)]


def bernoulli(x: Any, p: Any) -> Any:
    return total(times_log(x, p), times_log(1 - x, 1 - p)) if x in (0, 1) else None


def draw_binomial(n: int) -> Draw:
    def draw(rng: Rng, tiny: float) -> list[np.ndarray]:
        x = np.floor((n + 1) * rng.beta(0.3, 0.3, BATCH)).clip(0, n)
        share = (x + rng.choice([0, 1, 5], BATCH) * np.sqrt(x + 1) * rng.normal(size=BATCH)) / n
        near = np.where((share > 0) & (share < 1), share, 0.3)
        return [
            odd(rng, x, [0, float(n), -1, 0.5, n + max(1, n // 1000)]),
            np.where(rng.random(BATCH) < 0.5, near, probabilities(rng, tiny)),
        ]

    return draw


def binomial(n: int, x: Any, p: Any) -> Any:
    if not whole(x) or x > n:
        return None
    ways = log_gamma(n + 1) - log_gamma(x + 1) - log_gamma(n - x + 1)
    return total(ways, times_log(x, p), times_log(n - x, 1 - p))


def draw_categorical(rng: Rng, tiny: float) -> list[np.ndarray]:
    return [odd(rng, rng.integers(3, size=BATCH).astype(float), [-1, 3, 0.5]), simplices(rng, tiny)]


def categorical(x: Any, *probs: Any) -> Any:
    return times_log(1, probs[int(x)]) if whole(x) and x < len(probs) else None


def draw_poisson(rng: Rng, tiny: float) -> list[np.ndarray]:
    x = counts(rng, magnitude(rng))
    safe = np.where(np.isfinite(x), np.abs(x), 1)
    near = np.abs(about(rng, safe, np.sqrt(safe + 1)))
    return [x, np.where(rng.random(BATCH) < 0.2, rng.choice([0, tiny, 1e12, 1e-12], BATCH), near)]


def poisson(x: Any, rate: Any) -> Any:
    return total(times_log(x, rate), -rate - log_gamma(x + 1)) if whole(x) else None


def draw_geometric(rng: Rng, tiny: float) -> list[np.ndarray]:
    return [counts(rng, magnitude(rng)), probabilities(rng, tiny)]


def geometric(x: Any, p: Any) -> Any:
    return total(times_log(1, p), times_log(x, 1 - p)) if whole(x) else None


def draw_negative_binomial(rng: Rng, tiny: float) -> list[np.ndarray]:
    x = counts(rng, magnitude(rng))
    safe, shape = np.where(np.isfinite(x), np.abs(x), 1), scales(rng)
    mean = np.abs(about(rng, safe, np.sqrt(safe + 1 + safe**2 / shape)))
    return [x, np.where(rng.random(BATCH) < 0.2, rng.choice([0, 1e12, 1e-12], BATCH), mean), shape]


def negative_binomial(x: Any, mean: Any, shape: Any) -> Any:
    if not whole(x):
        return None
    ways = log_gamma(shape + x) - log_gamma(shape) - log_gamma(x + 1)
    return total(ways, -shape * mp.log1p(mean / shape), times_log(x, mean / (mean + shape)))


def draw_multinomial(rng: Rng, tiny: float) -> list[np.ndarray]:
    probs, most = simplices(rng, tiny), magnitude(rng)
    x = np.floor(probs * 10.0 ** rng.uniform(0, most, (BATCH, 1)) + rng.choice([0, 0.7], (BATCH, 3)))
    return [np.where(rng.random((BATCH, 3)) < 0.03, rng.choice([-1, 0.5, 1, np.inf], (BATCH, 3)), x), probs]


def multinomial(*values: Any) -> Any:
    x, probs = values[:3], values[3:]
    if not all(map(whole, x)):
        return None
    each = [total(times_log(n, p), -log_gamma(n + 1)) for n, p in zip(x, probs, strict=True)]
    return total(log_gamma(sum(x) + 1), *each)


def draw_exponential(rng: Rng, tiny: float) -> list[np.ndarray]:
    rate = scales(rng)
    return [odd(rng, rng.exponential(size=BATCH) * scales(rng, -6, 3) / rate, [0, -1e-3]), rate]


def exponential(x: Any, rate: Any) -> Any:
    return log(rate) - rate * x if mp.isfinite(x) and x >= 0 else None


def draw_gamma(rng: Rng, tiny: float) -> list[np.ndarray]:
    shape, rate = scales(rng), scales(rng)
    near = about(rng, shape, np.sqrt(shape))
    x = np.where((near > 0) & (rng.random(BATCH) < 0.8), near, scales(rng)) / rate
    return [odd(rng, x, [0, -1.0]), shape, rate]


def gamma(x: Any, shape: Any, rate: Any) -> Any:
    return shape * log(rate) - log_gamma(shape) + (shape - 1) * log(x) - rate * x if above_zero(x) else None


def draw_lognormal(rng: Rng, tiny: float) -> list[np.ndarray]:
    # Narrower than rounding of the rows it has no neighbours.
    scale = scales(rng, -6 if tiny > 1e-99 else -8)
    location = rng.choice([0, 1, 10], BATCH) * rng.normal(size=BATCH)
    x = np.exp(np.clip(about(rng, location, scale), -60, 60))
    return [odd(rng, x, [0, -1.0, 1.0]), location, scale]


def lognormal(x: Any, location: Any, scale: Any) -> Any:
    return normal(log(x), location, scale) - log(x) if above_zero(x) else None


def normal(x: Any, location: Any, scale: Any) -> Any:
    return -(((x - location) / scale) ** 2) / 2 - log(2 * mp.pi) / 2 - log(scale)


def draw_inverse_gaussian(rng: Rng, tiny: float) -> list[np.ndarray]:
    mean, shape = scales(rng, -8, 8), scales(rng, -8, 8)
    x = about(rng, mean, mean * np.sqrt(mean / shape))
    return [odd(rng, np.where(x > 0, x, mean * scales(rng, -3, 3)), [0, -1.0]), mean, shape]


def inverse_gaussian(x: Any, mean: Any, shape: Any) -> Any:
    if not above_zero(x):
        return None
    return log(shape / (2 * mp.pi * x**3)) / 2 - shape * (x - mean) ** 2 / (2 * mean**2 * x)


def draw_weibull(rng: Rng, tiny: float) -> list[np.ndarray]:
    shape, scale = scales(rng, -6, 6), scales(rng)
    away = rng.choice([0, 0.1, 1, 3, 10], BATCH) * rng.normal(size=BATCH) / shape
    return [odd(rng, scale * np.exp(np.clip(away, -40, 40)), [0, -1.0]), shape, scale]


def weibull(x: Any, shape: Any, scale: Any) -> Any:
    return log(shape / scale) + (shape - 1) * log(x / scale) - (x / scale) ** shape if above_zero(x) else None


def draw_beta(rng: Rng, tiny: float) -> list[np.ndarray]:
    a, b = scales(rng, -12, 9), scales(rng, -12, 9)
    mean = a / (a + b)
    near = about(rng, mean, np.sqrt(mean * (1 - mean) / (a + b + 1)))
    x = np.where((near > 0) & (near < 1 - 1e-7), near, rng.random(BATCH) * (1 - 1e-7))
    return [odd(rng, x, [0, 1, 0.5, -0.5, 1.5, 1e-30]), a, b]


def beta(x: Any, a: Any, b: Any) -> Any:
    if not 0 < x < 1:
        return None
    return (a - 1) * log(x) + (b - 1) * log(1 - x) + log_gamma(a + b) - log_gamma(a) - log_gamma(b)


def draw_dirichlet(rng: Rng, tiny: float) -> list[np.ndarray]:
    each = np.stack([scales(rng, -12, 9) for _ in range(3)], axis=1)
    each = np.where(rng.random((BATCH, 1)) < 0.5, each, each[:, :1])
    mean, size = each / each.sum(1, keepdims=True), each.sum(1, keepdims=True)
    near = mean + rng.choice([0, 1, 3], (BATCH, 1)) * np.sqrt(mean / (size + 1)) * rng.normal(size=(BATCH, 3))
    x = np.where((near > 0).all(1, keepdims=True), near, rng.dirichlet(np.ones(3), BATCH)).clip(1e-30)
    x = x / x.sum(1, keepdims=True)
    x[rng.random(BATCH) < 0.1, 0] = rng.choice([0, 0.7, -1, np.inf])
    return [x, each]


def dirichlet(*values: Any) -> Any:
    x, each = values[:3], values[3:]
    if not all(map(above_zero, x)) or abs(sum(x) - 1) > 1e-5:
        return None
    parts = [(a - 1) * log(y / sum(x)) - log_gamma(a) for y, a in zip(x, each, strict=True)]
    return log_gamma(sum(each)) + sum(parts)


def draw_von_mises(rng: Rng, tiny: float) -> list[np.ndarray]:
    concentration = np.where(rng.random(BATCH) < 0.1, 0, scales(rng, -12, 2))
    mean = rng.choice([0, 1, -3, 3.1415, 100], BATCH) * rng.random(BATCH)
    spread = 1 / np.sqrt(np.maximum(concentration, 0.1))
    return [odd(rng, about(rng, mean, spread), [np.pi, -np.pi, 0]), mean, concentration]


def von_mises(x: Any, mean: Any, concentration: Any) -> Any:
    if not mp.isfinite(x):
        return None
    # log I0(k) by Bessel's function, or Hankel's series where k is so large that it is exact.
    k = concentration
    if k < 200:
        volume = log(mp.besseli(0, k))
    else:
        term = series = mp.mpf(1)
        for n in range(1, 60):
            term = term * (2 * n - 1) ** 2 / (8 * k * n)
            series += term
        volume = k - log(2 * mp.pi * k) / 2 + log(series)
    return k * mp.cos(x - mean) - volume - log(2 * mp.pi)


def draw_laplace(rng: Rng, tiny: float) -> list[np.ndarray]:
    scale, location = scales(rng), rng.choice([0, 1, 1e6], BATCH) * rng.normal(size=BATCH)
    x = np.where(rng.random(BATCH) < 0.1, location, about(rng, location, scale))
    return [odd(rng, x, [0.0]), location, scale]


def laplace(x: Any, location: Any, scale: Any) -> Any:
    return -log(2 * scale) - abs(x - location) / scale if mp.isfinite(x) else None


def draw_student(rng: Rng, tiny: float) -> list[np.ndarray]:
    scale, location = scales(rng), rng.choice([0, 1, 1e6], BATCH) * rng.normal(size=BATCH)
    x = np.where(rng.random(BATCH) < 0.1, location, about(rng, location, scale * scales(rng, -2, 4)))
    return [odd(rng, x, [0.0])[:, None], location[:, None], (scale**2)[:, None, None], scales(rng, -3, 12)]


def student(x: Any, location: Any, scatter: Any, dof: Any) -> Any:
    if not mp.isfinite(x):
        return None
    volume = log_gamma((dof + 1) / 2) - log_gamma(dof / 2) - log(dof * mp.pi * scatter) / 2
    return volume - (dof + 1) / 2 * mp.log1p((x - location) ** 2 / scatter / dof)


def of_trials(x: Any, p: Any) -> list[Any]:
    return [None, min(p, 1 - p)]


def of_counts(x: Any, *parameters: Any) -> list[Any]:
    return [None, *parameters]


def of_many(*values: Any) -> list[Any]:
    return [None] * 3 + list(values[3:])


def of_share(x: Any, a: Any, b: Any) -> list[Any]:
    return [min(x, 1 - x), a, b]


def of_logarithm(x: Any, location: Any, scale: Any) -> list[Any]:
    return [x * min(scale, 1), scale, scale]


def of_direction(x: Any, mean: Any, concentration: Any) -> list[Any]:
    return [1 / mp.sqrt(concentration + 1)] * 2 + [concentration]


def of_laplace(x: Any, location: Any, scale: Any) -> list[Any]:
    """At the location there is no slope."""
    return [scale if x != location else None] * 2 + [scale]


def of_student(x: Any, location: Any, scatter: Any, dof: Any) -> list[Any]:
    return [mp.sqrt(scatter)] * 2 + [scatter, dof]


PLAIN, PLACED, COUNTS = ((4, 4), (4, 4)), ((16, 16), (16, 16)), ((8, 45), (8, 45))
DENSITY = ((8, 45), (30, 90))
LOGARITHMS = ((32, 64), (64, 128))
FEW, MANY = 12, 10**9 + 1

FAMILIES = [
    Checked("bernoulli", jem.Bernoulli, draw_bernoulli, bernoulli, of_trials, *PLAIN),
    Checked("few-trials", partial(jem.Binomial, FEW), draw_binomial(FEW), partial(binomial, FEW), of_trials, *COUNTS),
    Checked(
        "many-trials", partial(jem.Binomial, MANY), draw_binomial(MANY), partial(binomial, MANY), of_trials, *COUNTS
    ),
    Checked("categorical", jem.Categorical, draw_categorical, categorical, of_counts, *PLAIN),
    Checked("poisson", jem.Poisson, draw_poisson, poisson, of_counts, *COUNTS),
    Checked("geometric", jem.Geometric, draw_geometric, geometric, of_trials, *PLAIN),
    Checked("negative-binomial", jem.NegativeBinomial, draw_negative_binomial, negative_binomial, of_counts, *DENSITY),
    Checked("multinomial", jem.Multinomial, draw_multinomial, multinomial, of_many, *COUNTS),
    Checked("exponential", jem.Exponential, draw_exponential, exponential, own, *PLACED),
    Checked("gamma", jem.Gamma, draw_gamma, gamma, own, *LOGARITHMS),
    Checked("lognormal", jem.LogNormal, draw_lognormal, lognormal, of_logarithm, *LOGARITHMS),
    Checked("inverse-gaussian", jem.InverseGaussian, draw_inverse_gaussian, inverse_gaussian, own, *LOGARITHMS),
    Checked("weibull", jem.Weibull, draw_weibull, weibull, own, *LOGARITHMS),
    Checked("beta", jem.Beta, draw_beta, beta, of_share, *DENSITY),
    Checked("dirichlet", jem.Dirichlet, draw_dirichlet, dirichlet, of_many, *DENSITY),
    Checked("von-mises", jem.VonMises, draw_von_mises, von_mises, of_direction, *LOGARITHMS),
    Checked("laplace", jem.Laplace, draw_laplace, laplace, of_laplace, *PLACED),
    Checked("student-t", jem.StudentT, draw_student, student, of_student, *LOGARITHMS),
]
"""What is promised: units of rounding of values, and of slopes, each in float32 and in float64.

Slopes by the shares of a Dirichlet row are right relative to the largest of the row only: see `test_digits.py`.
"""


@partial(jax.jit, static_argnums=0)
def answers(make: Callable[..., Any], x: Any, *parameters: Any) -> Any:
    """Of each row under parameters of its own: its log-probability, and the slopes of that."""

    def value(x: Any, *parameters: Any) -> Any:
        return make(*parameters).e_step(x[None])[0][0]

    return jax.vmap(jax.value_and_grad(value, tuple(range(1 + len(parameters)))))(x, *parameters)


def slope(log_prob: Callable[..., Any], values: list[Any], at: int, unit: Any) -> Any:
    """The change of the logarithm with one of its arguments, in its unit."""
    step = STEP * unit
    above, below = (log_prob(*values[:at], values[at] + change, *values[at + 1 :]) for change in (step, -step))
    return None if above is None or below is None else (above - below) / (2 * STEP)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_log_probabilities_and_slopes_are_those_of_the_formula(family: Checked, dtype: jnp.dtype) -> None:
    rng, limits = generator(f"{family.name} {dtype.name}"), np.finfo(dtype.name)
    which = 0 if dtype == jnp.float32 else 1
    wrong: list[tuple[float, str]] = []
    for _ in range(-(-cases(BATCH) // BATCH)):
        drawn = [array.astype(dtype.name) for array in family.draw(rng, 1e-30 if which == 0 else 1e-300)]
        values, slopes = answers(family.make, *drawn)
        assert values.dtype == dtype
        values = np.asarray(values)
        flat = np.concatenate([np.asarray(each).reshape(BATCH, -1) for each in slopes], axis=1)
        rows = np.concatenate([array.reshape(BATCH, -1) for array in drawn], axis=1)
        with mp.workdps(DIGITS):
            for row, found, found_slopes in zip(rows, values, flat, strict=True):
                wrong += check(family, row, found, found_slopes, limits, which)
    wrong.sort(reverse=True)
    assert not wrong, "\n".join([f"{len(wrong)} wrong:", *(text for _, text in wrong[:8])])


def check(
    family: Checked, row: np.ndarray, found: Any, slopes: np.ndarray, limits: Any, which: int
) -> list[tuple[float, str]]:
    eps, largest, given = mp.mpf(float(limits.eps)), mp.mpf(float(limits.max)), [mp.mpf(float(v)) for v in row]
    right = family.log_prob(*given)
    at = f"at {[float(v) for v in row]}"
    if right is None or right < -largest / 4:
        return [] if found == -np.inf else [(np.inf, f"{found!r}, right is {right or '-inf'} {at}")]
    if not np.isfinite(found):
        return [(np.inf, f"{found!r}, right is {mp.nstr(right, 12)} {at}")]
    wrong, off = [], abs(mp.mpf(float(found)) - right) / eps / max(1, abs(right))
    if off > family.value[which]:
        wrong.append((float(off), f"{found!r}, right is {mp.nstr(right, 12)}: {float(off):.3g} {at}"))
    for i, unit in enumerate(family.units(*given)):
        if not unit:
            continue
        exact = slope(family.log_prob, given, i, unit)
        if exact is None or abs(exact / unit) > largest / 100:
            continue
        if not np.isfinite(slopes[i]):
            wrong.append((np.inf, f"slope {i} is {slopes[i]}, right is {mp.nstr(exact / unit, 12)} {at}"))
        else:
            off = abs(mp.mpf(float(slopes[i])) * unit - exact) / eps / max(1, abs(exact))
            if off > family.slope[which]:
                shown = f"{float(slopes[i])!r}, right is {mp.nstr(exact / unit, 12)}"
                wrong.append((float(off), f"slope {i} is {shown}: {float(off):.3g} {at}"))
    return wrong
