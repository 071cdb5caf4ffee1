"""Families of positive numbers: against SciPy, in any units, at the edge of the float types."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import families
import jaxem as jem
from families import coordinates, perturbed
from jaxem.distributions.base import add, scale

pytestmark = pytest.mark.slow

X = np.array([1e-6, 0.1, 0.5, 1.0, 2.0, 5.0, 50.0, 400.0])
PAIRS = [
    (jem.Exponential(0.7), scipy.stats.expon(scale=1 / 0.7)),
    (jem.Gamma(2.5, 0.7), scipy.stats.gamma(2.5, scale=1 / 0.7)),
    (jem.Gamma(0.3, 0.7), scipy.stats.gamma(0.3, scale=1 / 0.7)),
    (jem.Gamma(30.0, 0.7), scipy.stats.gamma(30, scale=1 / 0.7)),
    (jem.LogNormal(0.3, 0.7), scipy.stats.lognorm(0.7, scale=np.exp(0.3))),
    (jem.InverseGaussian(2.0, 3.0), scipy.stats.invgauss(2 / 3, scale=3)),
    (jem.Weibull(1.7, 2.0), scipy.stats.weibull_min(1.7, scale=2)),
]
FAMILIES = {
    jem.Exponential: (jem.Exponential(1.0), scipy.stats.expon),
    jem.Gamma: (jem.Gamma(1.0, 1.0), scipy.stats.gamma),
    jem.LogNormal: (jem.LogNormal(0.0, 1.0), scipy.stats.lognorm),
    jem.InverseGaussian: (jem.InverseGaussian(1.0, 1.0), scipy.stats.invgauss),
    jem.Weibull: (jem.Weibull(1.0, 1.0), scipy.stats.weibull_min),
}
EXAMPLES = [e for e in families.SINGLES if e.family in FAMILIES]
each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
examples = pytest.mark.parametrize("example", EXAMPLES, ids=repr)
fit = jax.jit(lambda model, x: jem.fit(model, x, tol=1e-12))


@pytest.mark.parametrize(("model", "known"), PAIRS, ids=lambda each: type(each).__name__)
def test_densities(model: Any, known: Any) -> None:
    np.testing.assert_allclose(model.log_prob(X), known.logpdf(X), rtol=1e-13)
    np.testing.assert_allclose(type(model)(*jax.tree.map(jnp.float32, jax.tree.leaves(model))).log_prob(np.float32(X)),
                               known.logpdf(X), rtol=1e-5, atol=1e-5)  # fmt: skip
    zero = -jnp.inf if model.support.name == "numbers above 0" else model.log_prob([0.0])[0]
    assert model.log_prob([-1.0, jnp.inf, 0.0]).tolist() == [-jnp.inf, -jnp.inf, zero]
    slopes = jax.grad(lambda model: model.log_prob(jnp.array([-1.0, jnp.inf, 0.0, 1.0]))[3])(model)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(slopes))


def test_a_gamma_with_a_huge_shape() -> None:
    """Its terms are of size 1e9 and cancel: in float32 nothing would be left of them."""
    model = jem.Gamma(jnp.float32(1e8), jnp.float32(1e5))
    x = np.float32(1000 + np.linspace(-0.3, 0.3, 7))
    np.testing.assert_allclose(model.log_prob(x), scipy.stats.norm.logpdf(x, 1000, 0.1), atol=2e-3)


@each
def test_maximum_likelihood(family: Any) -> None:
    start, known = FAMILIES[family]
    x = np.random.default_rng(0).gamma(3, 2, size=60)
    found, parameters = fit(start, x), known.fit(x, floc=0)
    assert found.status_name == "converged"
    best = known.logpdf(x, *parameters).sum()
    assert found.log_likelihood - best > -1e-6
    np.testing.assert_allclose(found.log_likelihood, best, rtol=1e-9)
    values = {
        jem.Exponential: lambda s: [1 / s],
        jem.Gamma: lambda a, s: [a, 1 / s],
        jem.LogNormal: lambda s, m: [np.log(m), s],
        jem.InverseGaussian: lambda m, s: [m * s, s],
        jem.Weibull: lambda k, s: [k, s],
    }[family](*(p for i, p in enumerate(parameters) if i != len(parameters) - 2))
    # SciPy seeks some of these by a simplex that stops at 1e-5.
    np.testing.assert_allclose(jax.tree.leaves(found.model), values, rtol=2e-5 if family is jem.Weibull else 1e-6)
    at_best = family(*values)
    np.testing.assert_allclose(at_best.log_prob(x).sum(), best, rtol=1e-12)


@examples
def test_expected_statistics_are_those_of_the_model(example: families.Example, rng: np.random.Generator) -> None:
    """An M-step on them gives the model back, whatever reads them; and so do many draws."""
    members, n = example.members(2), 40_000
    x = members.sample(jax.random.key(3), n)

    @jax.jit
    def refitted(model: Any) -> tuple[Any, Any]:
        drawn = model.statistics(x.reshape(-1), jnp.kron(jnp.eye(2), jnp.full((1, n), 1 / n)))
        return model.m_step(members.expected_statistics()), model.m_step(drawn)

    np.testing.assert_allclose(members.centre(), x.mean(-1), rtol=0.03)
    exact, by_draws = refitted(perturbed(members, rng, 0.05))
    for path, leaf in coordinates(members).items():
        np.testing.assert_allclose(coordinates(exact)[path], leaf, rtol=1e-9, err_msg=path)
        np.testing.assert_allclose(coordinates(by_draws)[path], leaf, rtol=0.05, err_msg=path)


UNITS = [(family, "float32", size) for family in FAMILIES for size in (1e15, 1e-15)]
UNITS += [(jem.Gamma, "float64", 1e30), (jem.InverseGaussian, "float64", 1e-30)]


@pytest.mark.parametrize(("family", "dtype", "size"), UNITS)
def test_in_any_units(family: Any, dtype: str, size: float) -> None:
    """Powers of two change no digit of the data: a fit in other units is the same fit, up to rounding of logarithms."""
    x = np.random.default_rng(1).gamma(3, 2, size=40).astype(dtype)
    factor = np.dtype(dtype).type(2.0 ** np.round(np.log2(size)))
    start = scaled(FAMILIES[family][0], np.float64(x.mean()), dtype)
    here, there = started(start, x), started(scaled(start, factor, dtype), x * factor)
    tolerance = 1e-10 if dtype == "float64" else 1e-3
    for a, b in zip(jax.tree.leaves(scaled(here, factor, dtype)), jax.tree.leaves(there), strict=True):
        assert np.isfinite(b)
        np.testing.assert_allclose(b, a, rtol=tolerance)


def scaled(model: Any, factor: Any, dtype: str) -> Any:
    """The model of data that are `factor` times as large."""
    powers = {"rate": -1, "mean": 1, "scale": 1, "shape": 1 if isinstance(model, jem.InverseGaussian) else 0}
    values = {path.strip("."): np.asarray(leaf, np.float64) for path, leaf in coordinates(model).items()}
    moved = {name: value * np.float64(factor) ** powers.get(name, 0) for name, value in values.items()}
    if isinstance(model, jem.LogNormal):
        moved = {"location": values["location"] + np.log(np.float64(factor)), "scale": values["scale"]}
    return type(model)(**{name: jnp.asarray(value, dtype) for name, value in moved.items()})


@jax.jit
def started(model: Any, x: Any) -> Any:
    """After some steps of EM with the floor: a stopping rule would see another float type's end."""
    weight = jnp.ones(len(x), x.dtype)
    floor = model.floor(x, weight)
    return jax.lax.fori_loop(0, 8, lambda _, m: jem.EM().step(m, None, x, weight, floor)[0], model)


@each
def test_rows_that_do_not_vary(family: Any) -> None:
    """All equal, or a single one: finite, and told."""
    for weight in (np.ones(20, np.float32), np.eye(20, dtype=np.float32)[3]):
        x = np.full(20, 5, np.float32)
        start = jem.Mixture.start(jax.random.key(0), family, x, 2, weight=weight)
        found = jem.fit(start, x, weight=weight, max_steps=60)
        assert found.status_name == ("converged" if family is jem.Exponential else "covariance_collapsed")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found.model, found.log_likelihood)))
        np.testing.assert_allclose(centre(found.model.components), 5, rtol=1e-4)


def centre(members: Any) -> Any:
    if isinstance(members, jem.Exponential):
        return 1 / members.rate
    if isinstance(members, jem.Gamma):
        return members.shape / members.rate
    return {
        jem.LogNormal: lambda: jnp.exp(members.location),
        jem.InverseGaussian: lambda: members.mean,
        jem.Weibull: lambda: members.scale,
    }[type(members)]()


@each
def test_m_steps_are_total(family: Any) -> None:
    """Rows of which nothing is left, or that lie enormously far from the member."""
    model = jax.tree.map(lambda leaf: jnp.full(2, leaf), FAMILIES[family][0])
    refitted = jax.jit(lambda x, weight: model.m_step(model.statistics(x, weight)))
    for x in ([1e-300, 1e-300], [1e-300, 1e300], [1e300, 1e300]):
        there = refitted(jnp.array(x), jnp.array([[1.0, 0.5], [0.0, 0.0]]))
        for new, old in zip(jax.tree.leaves(there), jax.tree.leaves(model), strict=True):
            assert np.isfinite(new).all()
            assert new[1] == old[1]
            assert new[0] > 0 or family is jem.LogNormal
    nothing = jax.tree.map(jnp.zeros_like, model.expected_statistics())
    seen = model.statistics(jnp.array([1.0, 3.0]), jnp.ones((2, 2)))
    again = jax.jit(model.m_step)
    np.testing.assert_allclose(jax.tree.leaves(again(add(nothing, seen))), jax.tree.leaves(again(seen)), rtol=1e-12)


def test_nearly_equal_rows_in_float32() -> None:
    """The spread of rows that agree to four digits: the mean of log x less the log of their mean has none left."""
    x = (1000 * (1 + 1e-4 * np.random.default_rng(2).normal(size=400))).astype(np.float32)
    spread = (x.astype(float) / x.mean(dtype=float)).std()
    for family, shape in ((jem.Gamma, spread**-2), (jem.InverseGaussian, 1000 * spread**-2)):
        start = jax.tree.map(jnp.float32, family(1.0, 1e-3) if family is jem.Gamma else family(1000.0, 1000.0))
        np.testing.assert_allclose(jem.fit(start, x).model.shape, shape, rtol=2e-3)


def test_the_weibull_of_a_prior() -> None:
    """Pseudo-rows are exact for any parameters: Q is the mean log-density of rows from the prior's Weibull."""
    prior, model = jem.Weibull(1.7, 3.0), jem.Weibull([1.1, 1.7, 4.0], [2.0, 3.0, 3.5])
    places = (np.arange(200_000) + 0.5) / 200_000
    rows = 3.0 * (-np.log1p(-places)) ** (1 / 1.7)
    exact = np.asarray(model.log_prob(rows)).mean(-1) + np.log(rows).mean()
    expected = scale(prior.expected_statistics(), 2.0)
    worth = np.array([jax.tree.map(lambda leaf, i=i: leaf[i], model).expected_log_prob(expected) for i in range(3)])
    # The constant of a Q is free: differences count.
    np.testing.assert_allclose(np.diff(worth) / 2, np.diff(exact), rtol=1e-3)
    found = jem.fit(model.__class__(9.0, 9.0), np.array([5.0]), prior=jem.priors.PseudoRows(1e7, prior), max_steps=100)
    np.testing.assert_allclose(jax.tree.leaves(found.model), [1.7, 3.0], rtol=1e-5)


def test_weibull_statistics_can_be_moved() -> None:
    """Exactly in the scale; nearly, where the shape has moved a little: what `OnlineEM` adds."""
    x = jnp.asarray(np.random.default_rng(0).weibull(2.0, size=200) * 5)
    here, there = jem.Weibull(2.0, 5.0), jem.Weibull(2.0, 7.0)
    seen = here.statistics(x, jnp.ones(200))
    moved, direct = seen.about(there.shape, there.scale), there.statistics(x, jnp.ones(200))
    for name in ("events", "log_times", "hazard", "slope"):
        np.testing.assert_allclose(getattr(moved, name), getattr(direct, name), rtol=1e-12, err_msg=name)
    near = jem.Weibull(2.1, 5.0)
    moved, direct = seen.about(near.shape, near.scale), near.statistics(x, jnp.ones(200))
    np.testing.assert_allclose(moved.hazard, direct.hazard, rtol=5e-3)
    assert moved.hazard > direct.hazard
    averaged = add(scale(seen, 0.5), scale(near.statistics(x, jnp.ones(200)), 0.5))
    np.testing.assert_allclose(jax.tree.leaves(near.m_step(averaged)), jax.tree.leaves(near.m_step(seen)), rtol=1e-2)


def test_a_fit_has_a_derivative() -> None:
    """With respect to a row: through a root that Newton found."""
    x = jnp.asarray(np.random.default_rng(0).gamma(3, 2, size=30))

    def shape(first: jax.Array) -> jax.Array:
        return jem.fit(jem.Weibull(2.0, 7.0), x.at[0].set(first), tol=1e-15).model.shape

    value_and_slope = jax.jit(jax.value_and_grad(shape))
    (above, _), (below, _) = value_and_slope(x[0] + 1e-4), value_and_slope(x[0] - 1e-4)
    np.testing.assert_allclose(value_and_slope(x[0])[1], (above - below) / 2e-4, rtol=1e-4)
