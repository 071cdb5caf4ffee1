"""Statuses mean what they say: each has its line in docs/debugging.md, and `converged` is said of a maximum only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxem as jem
from jaxem.fitting.stopping import NEGLIGIBLE, Look, Trend

TABLE = Path(__file__).parents[1] / "docs" / "debugging.md"


def test_the_table_and_the_enumeration_agree() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*)\|", TABLE.read_text(), re.MULTILINE)
    model = dict(rows)
    assert len(rows) == len(model)
    assert set(model) == {status.name for status in jem.Status}
    for status in jem.Status:
        assert status.sentence.endswith(".")
        assert status is jem.Status.running or status.failed == (model[status.name].strip() == "no"), status.name


OVERLAPPING = np.random.default_rng(0)
OVERLAPPING = np.r_[OVERLAPPING.normal(-1, 1, 150), OVERLAPPING.normal(1.5, 1, 150)][:, None]


def overlapping(dtype: Any) -> tuple[Any, Any]:
    start = jem.Mixture(
        jnp.asarray([0.5, 0.5], dtype), jem.Gaussian(jnp.asarray([[-1.0], [1.0]], dtype), jnp.ones((2, 1, 1), dtype))
    )
    return start, jnp.asarray(OVERLAPPING, dtype)


def test_float32_goes_as_far_as_float64() -> None:
    """Gains there are far below what float32 resolves of the log-likelihood, half way up."""
    single, double = jem.fit(*overlapping(jnp.float32)), jem.fit(*overlapping(jnp.float64))
    assert single.status_name == double.status_name == "converged"
    assert abs(int(single.steps) - int(double.steps)) < 5
    assert single.log_likelihood > -550.5802 - 300 * 1e-6
    np.testing.assert_allclose(single.model.weights, [0.0807, 0.9193], atol=1e-3)


def test_no_tolerance_is_too_fine_for_a_word() -> None:
    """Without any tolerance it ends where float32 does: at a fixed point, or where nothing more is resolved."""
    fit = jem.fit(*overlapping(jnp.float32), jem.SQUAREM(jem.EM()), tol=0.0, max_steps=5000)
    assert fit.status_name in ("converged", "precision_exhausted", "max_steps_reached")
    assert fit.log_likelihood > -550.5804


def remaining(gains: np.ndarray, tolerance: float) -> tuple[int, float]:
    """When the rule stops, and what is left to gain then."""
    trend = Trend.begun(jnp.zeros(()))
    step = jax.jit(
        lambda trend, gain, since: trend.after(
            Look(jnp.ones(()), jnp.ones(()), gain, since, jnp.asarray(tolerance), jnp.zeros(())), jem.EM()
        )
    )
    for since, gain in enumerate(gains):
        trend, answer = step(trend, jnp.asarray(gain), jnp.asarray(since, jnp.int32))
        if answer.arrived:
            return since, trend.remaining().item()
    return len(gains), np.nan


@pytest.mark.parametrize("rate", [0.1, 0.9, 0.999])
def test_what_is_left_is_a_geometric_series(rate: float) -> None:
    """Gains of steps v rate^(2 t) leave v / (1 - rate)."""
    left = rate ** (2 * np.arange(20_000.0)) / (1 - rate)
    since, told = remaining(left * (1 - rate), 1e-6)
    # Once to learn how fast they fall, and once to see that it stays so.
    assert since <= max(np.argmax(left <= 1e-6), 4) + 2 * 0.35 / (1 - rate)
    np.testing.assert_allclose(told, left[since], rtol=1e-3)


@pytest.mark.parametrize("share", [1e-1, 1e-3, 1e-5])
def test_something_slow_comes_to_light(share: float) -> None:
    t = np.arange(20_000.0)
    fast, slow = 0.5 ** (2 * t), share * 0.995 ** (2 * t)
    left = fast / 0.5 + slow / 0.005
    since, _ = remaining(fast + slow, 1e-6)
    assert left[since] < 5e-6


def test_a_gain_of_nothing_is_the_end() -> None:
    assert remaining(np.array([1.0, NEGLIGIBLE * 1e-7]), 1e-6)[0] == 1


COLUMNS = jax.random.normal(jax.random.key(0), (40, 1)) + 0.3 * jax.random.normal(jax.random.key(1), (40, 3))
SAME = {
    "counts": (jem.Mixture([0.5, 0.5], jem.Poisson([3.0, 3.0])), jnp.array([0.0, 1.0, 7.0, 9.0])),
    "shares": (jem.Mixture([0.3, 0.7], jem.Poisson([3.0, 3.0])), jnp.array([0.0, 1.0, 7.0, 9.0])),
    "line": (jem.Mixture([0.5, 0.5], jem.Gaussian(jnp.zeros((2, 1)), jnp.ones((2, 1, 1)))), OVERLAPPING),
    "factors": (jem.FactorAnalysis([0.0, 0.0, 0.0], [[0.0], [0.0], [0.0]], [1.0, 1.0, 1.0]), COLUMNS),
    "components": (jem.PPCA([0.0, 0.0, 0.0], [[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]], 1.0), COLUMNS),
    "experts": (
        jem.MixtureOfExperts(
            jem.SoftmaxGate([[0.0]], [0.0]), jem.LinearRegression([[1.0], [1.0]], [0.0, 0.0], [1.0, 1.0])
        ),
        COLUMNS[:, :2],
    ),
    "states": (
        jem.LinearGaussianSSM([0.0], [[1.0]], [[0.9]], [[1.0]], [[0.0]], [0.0], [[1.0]]),
        jem.Sequences.from_list([np.array([[0.0], [1.0], [2.5], [2.0], [1.0], [-1.0]])]),
    ),
    "chain": (
        jem.HMM([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], jem.Poisson([3.0, 3.0])),
        jem.Sequences.from_list([np.array([0.0, 1.0, 7.0, 9.0, 8.0, 0.0])]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_a_start_that_cannot_move_has_not_converged(name: str) -> None:
    start, x = SAME[name]
    fit = jem.fit(start, x)
    assert fit.status_name == "components_coincide"
    assert not fit.converged


@pytest.mark.slow
def test_one_of_many_stands_still() -> None:
    starts = jax.tree.map(
        lambda *leaf: jnp.stack(leaf), SAME["counts"][0], jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 8.0]))
    )
    fits = jem.fit_many(starts, jnp.stack([SAME["counts"][1]] * 2))
    assert fits.status_name.tolist() == ["components_coincide", "converged"]
    assert fits.converged.tolist() == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("base", [jem.Exponential(0.01), jem.Weibull(1.0, 900.0), jem.LogNormal(7.0, 1.0)], ids=repr)
def test_nothing_ended(base: Any) -> None:
    x = jnp.array([[900.0, jnp.inf], [1200.0, jnp.inf], [1500.0, jnp.inf]])
    fit = jem.fit(jem.Censored(base), x)
    assert fit.status_name == "no_events"
    assert jem.fit(jem.Censored(base), x.at[0, 1].set(1000.0), max_steps=2).status_name != "no_events"


def test_nothing_was_seen() -> None:
    start = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 8.0]))
    x = jnp.array([0.0, 1.0, 7.0, 9.0])
    assert jem.fit(start, jnp.full(4, jnp.nan)).status_name == "no_data"
    assert jem.fit(start, x, weight=jnp.zeros(4)).status_name == "no_data"


@pytest.mark.slow
def test_more_centres_than_points() -> None:
    x = jnp.array([[0.0], [0.0], [1.0], [1.0]])
    assert jem.Status(int(jem.kmeans(jax.random.key(0), x, 3).status)).name == "components_coincide"
    assert jem.Status(int(jem.kmeans(jax.random.key(0), x, 2).status)).name == "converged"


INF = np.inf
INTERVALS = {
    "nothing ended": ([[900, INF], [1200, INF], [1500, INF]], True, True),
    "nothing began": ([[0, 900], [0, 1200], [0, 1500]], True, True),
    "one interval": ([[1, 900], [1, 900], [1, 900]], True, False),
    "a number in common": ([[100, 900], [0, 1200], [300, INF]], True, False),
    "early ended, late did not": ([[0, 900], [1200, INF], [1300, INF]], True, False),
    "late ended, early did not": ([[300, INF], [0, 900], [950, 1200]], False, False),
    "one was seen": ([[100, 100], [200, 200], [300, INF]], False, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERVALS)
def test_censored_so_that_nothing_is_likeliest(name: str) -> None:
    """Two parameters have no maximum where a point, or no order at all, explains every row; a rate has one there."""
    rows, scale, rate = INTERVALS[name]
    x = jnp.array(rows, float)
    for base, never in ((jem.Weibull(1.0, 900.0), scale), (jem.Exponential(0.01), rate)):
        fit = jem.fit(jem.Censored(base), x, tol=1e-3, max_steps=200)
        assert (fit.status_name == "no_events") == never, base
        assert not (never and fit.converged)


@pytest.mark.slow
def test_a_part_of_which_nothing_is_known() -> None:
    """A censored column beside others, and a column of which no cell was seen."""
    start = jem.Product((jem.Censored(jem.Exponential(0.01)), jem.Poisson(1.0)))
    x = np.array([[900.0, INF, 1.0], [1200.0, INF, 2.0], [1500.0, INF, 3.0]])
    assert jem.fit(start, x, max_steps=50).status_name == "no_events"
    x[0, 1] = 950.0
    assert jem.fit(start, x, max_steps=50).status_name == "converged"
    plane = jem.Gaussian(jnp.zeros(2), jnp.eye(2))
    assert jem.fit(plane, np.array([[1.0, np.nan], [2.0, np.nan], [4.0, np.nan]])).status_name == "no_data"
    assert jem.fit(plane, np.array([[1.0, np.nan], [2.0, 5.0], [4.0, 7.0], [5.0, 5.0]])).status_name == "converged"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_five_of_1588_ended(seed: int) -> None:
    """The maximum from the equation of the shape alone: the default tolerance finds it to a hundredth."""
    rng = np.random.default_rng(seed)
    ended, lasted = rng.uniform(50, 250, 5), rng.uniform(20, 250, 35)
    weight = np.r_[np.ones(5), rng.multinomial(1583, np.ones(35) / 35)].astype(float)
    time, events = np.r_[ended, lasted], np.arange(40) < 5

    def slope(shape: float) -> float:
        power = weight * time**shape
        return (power @ np.log(time)) / power.sum() - 1 / shape - np.log(ended).mean()

    shape = scipy.optimize.brentq(slope, 0.05, 50, xtol=1e-13)
    scale = ((weight @ time**shape) / 5) ** (1 / shape)
    x = np.stack([time, np.where(events, time, INF)], axis=1)
    for solver in (jem.EM(), jem.SQUAREM(jem.EM())):
        fit = jem.fit(jem.Censored(jem.Weibull(1.0, 300.0)), x, solver, weight=weight)
        assert fit.status_name == "converged"
        np.testing.assert_allclose([fit.model.base.shape, fit.model.base.scale], [shape, scale], rtol=1e-2)


@pytest.mark.slow
def test_what_grows_off_an_edge_has_not_arrived() -> None:
    """A category of 1e-200 that each step multiplies by e^27: its second step gains 1e-180, further ones 62 nats."""
    x = np.array([[3, 0]] * 5 + [[3, 1]] * 2 + [[50, 0], [50, 1]] * 3, float)

    def start(rare: float) -> Any:
        members = jem.Product((jem.Poisson([3.0, 50.0]), jem.Categorical([[1 - rare, rare], [0.5, 0.5]])))
        return jem.Mixture([0.5, 0.5], members)

    expected = jem.fit(start(0.3), x, tol=1e-10).log_likelihood
    for solver in (jem.EM(), jem.SQUAREM(jem.EM()), jem.Anderson(jem.EM())):
        fit = jem.fit(start(1e-200), x, solver)
        assert fit.status_name == "converged"
        np.testing.assert_allclose(fit.log_likelihood, expected, atol=2e-5)
