"""What people of the field tried and found right, and must go on being so: each against an answer of its own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import scipy.optimize
import scipy.stats as ss
from typer.testing import CliRunner

import jaxem as jem
from jaxem import chains
from jaxem.cli import app
from jaxem.core import linalg
from jaxem.core.constraints import parameter, positive, vector
from jaxem.core.pytree import module, replace
from jaxem.distributions.base import Family

pytestmark = pytest.mark.slow
Rng = np.random.Generator


# Chains


@pytest.mark.parametrize("method", ["scan", "blocked", "associative"])
def test_eighty_random_chains_are_the_sum_over_their_paths(method: str, rng: Rng) -> None:
    """With steps that were not seen, resets, and zeros in initial and transition."""
    steps, states, many = 5, 3, 80
    every = np.array(list(itertools.product(range(states), repeat=steps)))
    initial, transition = rng.dirichlet(np.ones(states), many), rng.dirichlet(np.ones(states), (many, states))
    for p in (initial, transition):
        p[..., 0] = np.where(rng.random(p.shape[:-1]) < 0.3, 0, p[..., 0])
        p /= p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        initial, transition = np.log(initial), np.log(transition)
    seen = rng.normal(size=(many, steps, states)) * 4
    mask, reset = rng.random((many, steps)) < 0.8, rng.random((many, steps)) < 0.2
    said = np.where(mask[..., None], seen, 0)
    score = initial[:, every[:, 0]] + said[:, np.arange(steps), every].sum(-1)
    for t in range(1, steps):
        moved = transition[:, every[:, t - 1], every[:, t]]
        score = score + np.where(reset[:, t, None], initial[:, every[:, t]], moved)
    weight = np.exp(score - score.max(1, keepdims=True))
    exact = score.max(1) + np.log(weight.sum(1))
    marginals = np.einsum("cp,pts->cts", weight / weight.sum(1, keepdims=True), np.eye(states)[every])
    spoilt = np.where(mask[..., None], seen, np.nan)

    @jax.jit
    @jax.vmap
    def found(*given: Any) -> Any:
        *potentials, mask, reset = given
        both = chains.forward_backward(*potentials, mask=mask, reset=reset, method=method)
        return both, chains.viterbi(*potentials, mask=mask, reset=reset)[1]

    both, best = found(initial, transition, spoilt, mask, reset)
    np.testing.assert_allclose(both.log_normalizer, exact, rtol=4e-15, atol=4e-15)
    np.testing.assert_allclose(both.marginals, marginals, atol=4e-15)
    np.testing.assert_allclose(best, score.max(1), rtol=4e-15, atol=4e-15)


# Derivatives through fits


def experts() -> tuple[Any, Any]:
    gate = jem.SoftmaxGate([[1.0]], [0.2])
    model = jem.MixtureOfExperts(gate, jem.LinearRegression([[1.0], [-1.0]], [0.0, 3.0], [0.3, 0.5]))
    return model, model.sample(jax.random.key(0), 60)


def level() -> tuple[Any, Any]:
    one = jnp.eye(1)
    fixed = ("initial_mean", "initial_covariance", "transition", "emission", "emission_bias")
    model = jem.LinearGaussianSSM(jnp.zeros(1), one, one, 0.3 * one, one, jnp.zeros(1), 0.5 * one, held=fixed)
    x = model.sample(jax.random.key(1), 6, steps=20)
    return model, jem.Sequences(x, np.full(6, 20))


@pytest.mark.parametrize("problem", [experts, level])
def test_the_derivative_through_a_fit_is_what_refits_differ_by(problem: Any) -> None:
    model, x = problem()
    weight = jnp.linspace(0.5, 1.5, len(x))

    @jax.jit
    def number(weight: jax.Array) -> jax.Array:
        fit = jem.fit(model, x, jem.SQUAREM(jem.EM()), weight=weight, tol=1e-15, max_steps=3000)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(fit.model))

    slope = jax.jit(jax.grad(number))(weight)
    for at in (0, 3):
        refits = (number(weight.at[at].add(1e-4)) - number(weight.at[at].add(-1e-4))) / 2e-4
        np.testing.assert_allclose(slope[at], refits, rtol=1e-4, atol=1e-6)


# Scales, sizes and shapes of data


def test_scales_from_tiny_to_huge_are_the_same_fit(rng: Rng) -> None:
    x = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(6, 2, (40, 2))])
    found = {}
    for scale in (1e-8, 1e-3, 1.0, 1e3, 1e8):
        start = jem.Mixture.start(jax.random.key(0), jem.Gaussian, x * scale, 2)
        fit = jem.fit(start, x * scale, tol=1e-9)
        assert fit.converged
        found[scale] = float(fit.log_likelihood) + x.size * np.log(scale), fit.model.posterior(x * scale)
    for log_likelihood, posterior in found.values():
        np.testing.assert_allclose(log_likelihood, found[1.0][0], rtol=1e-7)
        np.testing.assert_allclose(posterior, found[1.0][1], atol=1e-5)


def test_many_ragged_weighted_labelled_gappy_fits_are_each_what_it_is_alone(rng: Rng) -> None:
    sizes = (30, 17, 24)
    xs = [rng.normal(size=(n, 2)) + 4 * rng.integers(0, 2, (n, 1)) for n in sizes]
    for x in xs:
        x[2, 0], x[5] = np.nan, np.nan
    weights = [rng.uniform(0.5, 2, n) for n in sizes]
    labels = [np.where(np.arange(n) % 5 == 0, np.arange(n) % 2, -1) for n in sizes]
    start = jem.Mixture([0.5, 0.5], jem.Gaussian([[0.0, 0.0], [4.0, 4.0]], np.stack([np.eye(2)] * 2)))
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), start)
    many = jem.fit_many(starts, xs, weight=weights, labels=labels, tol=1e-8)
    for i, x in enumerate(xs):
        one = jem.fit(start, x, weight=weights[i], labels=labels[i], tol=1e-8)
        assert many.status_name[i] == one.status_name
        np.testing.assert_allclose(many.log_likelihood[i], one.log_likelihood, rtol=1e-9)
        np.testing.assert_allclose(many.model.components.mean[i], one.model.components.mean, atol=1e-6)


def test_a_large_problem_beside_many_small_ones(rng: Rng) -> None:
    sizes = [100_000, *rng.integers(20, 60, 300)]
    xs = [rng.normal(size=(n, 1)) + 5 * rng.integers(0, 2, (n, 1)) for n in sizes]
    start = jem.Mixture([0.5, 0.5], jem.DiagonalGaussian([[0.0], [5.0]], np.ones((2, 1))))
    many = jem.fit_many(jax.tree.map(lambda leaf: jnp.stack([leaf] * len(xs)), start), xs)
    assert many.converged.all()
    for i in (0, 1, 150, 300):
        one = jem.fit(start, xs[i])
        np.testing.assert_allclose(many.log_likelihood[i], one.log_likelihood, rtol=1e-9)
        np.testing.assert_allclose(many.model.components.mean[i], one.model.components.mean, atol=1e-6)


# Families at their limits


def test_a_gaussian_of_intervals_has_its_brute_force_maximum(rng: Rng) -> None:
    """Nobody was seen exactly: rows are intervals of different widths, some without an end."""
    middle, width = rng.normal(3, 2, 200), rng.uniform(0.1, 3, 200)
    x = np.stack([middle - width, middle + rng.uniform(0, 1, 200) * width], axis=1)
    x[::5, 1], x[3::7, 0] = np.inf, -np.inf

    def loss(p: np.ndarray) -> float:
        low, high = ss.norm.cdf(x[:, 0], p[0], np.exp(p[1])), ss.norm.cdf(x[:, 1], p[0], np.exp(p[1]))
        return -np.log(high - low).sum()

    best = scipy.optimize.minimize(loss, [2.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11})
    start = jem.Censored(jem.DiagonalGaussian([0.0], [1.0]))
    fit = jem.fit(start, x, jem.SQUAREM(jem.EM()), tol=1e-12, max_steps=5000)
    np.testing.assert_allclose(fit.log_likelihood, -best.fun, rtol=1e-8)
    np.testing.assert_allclose(fit.model.base.mean[0], best.x[0], atol=1e-4)


def test_a_negative_binomial_ends_as_a_poisson_where_that_is_best(rng: Rng) -> None:
    """Counts that vary less than a Poisson's: its supremum is at an endless shape."""
    x = rng.binomial(20, 0.4, 300).astype(float)
    fit = jem.fit(jem.NegativeBinomial(5.0, 1.0), x, jem.SQUAREM(jem.EM()), tol=1e-10, max_steps=5000)
    np.testing.assert_allclose(fit.model.mean, x.mean(), rtol=1e-6)
    np.testing.assert_allclose(fit.log_likelihood, ss.poisson(x.mean()).logpmf(x).sum(), atol=0.05)


def test_without_zeros_nothing_is_inflated(rng: Rng) -> None:
    x = 1.0 + rng.poisson(4.0, 200)
    start = jem.Mixture([0.3, 0.7], jem.Either((jem.PointMass([0.0]), jem.Poisson([2.0]))))
    fit = jem.fit(start, x)
    np.testing.assert_allclose(fit.model.weights, [0, 1], atol=1e-12)
    np.testing.assert_allclose(fit.log_likelihood, ss.poisson(x.mean()).logpmf(x).sum(), rtol=1e-9)


@pytest.mark.parametrize("concentration", [1e-6, 1e8])
def test_von_mises_near_uniform_and_near_a_point(concentration: float) -> None:
    x = np.array([0.5, 0.5 + 1e-4, 0.5 - 1e-4])
    found = jem.VonMises(0.5, concentration).log_prob(x)
    if concentration < 1:
        np.testing.assert_allclose(found, -np.log(2 * np.pi), atol=2e-6)
    else:
        np.testing.assert_allclose(found, ss.norm.logpdf(x, 0.5, 1e-4), atol=1e-6)


# Models that users write


def test_annotators_who_err_by_dawid_and_skene(rng: Rng) -> None:
    """The true class is hidden; each of four annotators has a confusion matrix; many did not look at many rows."""
    truth = rng.integers(0, 3, 200)
    x = np.where(rng.random((200, 4)) < 0.7, truth[:, None], rng.integers(0, 3, (200, 4))).astype(float)
    x[rng.random(x.shape) < 0.3] = np.nan
    confusion = 0.6 * np.eye(3)[:, None] + 0.4 * rng.dirichlet(np.ones(3), (3, 4))
    model = jem.Mixture(np.full(3, 1 / 3), jem.Independent(jem.Categorical(confusion)))
    after = jem.fit(model, x, max_steps=1, tol=0.0).model
    # One step, written out.
    told = np.eye(4)[np.where(np.isnan(x), 3, x).astype(int)][..., :3]
    joint = np.exp(np.einsum("nac,kac->nk", told, np.log(confusion)))
    share = joint / joint.sum(1, keepdims=True)
    counts = np.einsum("nk,nac->kac", share, told)
    np.testing.assert_allclose(after.weights, share.mean(0), rtol=1e-9)
    np.testing.assert_allclose(after.components.base.probs, counts / counts.sum(-1, keepdims=True), rtol=1e-9)


def test_topics_of_documents_by_hofmann(rng: Rng) -> None:
    """PLSA is a network document -> topic -> word in which the topic is hidden; a row for each pair, with its count."""
    documents, topics, words = 5, 2, 6
    counts = rng.poisson(3.0, (documents, words)).astype(float)
    of, emits = rng.dirichlet(np.ones(topics), documents), rng.dirichlet(np.ones(words), topics)
    tables = {"d": np.full(documents, 1 / documents), "z": of, "w": emits}
    model = jem.BayesNet({"d": [], "z": ["d"], "w": ["z"]}, tables)
    d, w = np.indices(counts.shape).reshape(2, -1)
    x = np.stack([d, np.full(d.size, np.nan), w], axis=1)
    after = jem.fit(model, x, weight=counts.ravel(), max_steps=1, tol=0.0).model
    tables = {name: after.tables[after.table_of[i]].probs for i, name in enumerate("dzw")}
    joint = of[:, :, None] * emits[None]
    expected = counts[:, None] * joint / joint.sum(1, keepdims=True)
    np.testing.assert_allclose(tables["z"], expected.sum(2) / expected.sum((1, 2))[:, None], rtol=1e-9)
    np.testing.assert_allclose(tables["w"], expected.sum(0) / expected.sum((0, 2))[:, None], rtol=1e-9)


@module
class PlackettLuce(Family):
    """Orders of items: the next is chosen in proportion to its worth. EM adds an exponential race (Caron, Doucet)."""

    scalar = False
    worth: Any = parameter(vector)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.worth.shape[-1:]

    def _left(self, columns: Any) -> Any:
        """Of each row, how much is left at each choice; and who is still in the race."""
        order = columns.T.astype(jnp.int32)
        chosen = jax.nn.one_hot(order, self.event_shape[0], dtype=self.worth.dtype)
        there = jnp.cumsum(chosen[:, ::-1], axis=1)[:, ::-1]
        return there, jnp.einsum("nti,...i->...nt", there, self.worth, precision="highest")

    def log_density(self, columns: Any) -> Any:
        _, left = self._left(columns)
        return jnp.sum(jnp.log(self.worth)) - jnp.sum(jnp.log(left), axis=-1)

    def statistics(self, x: Any, weight: Any) -> Any:
        there, left = self._left(self.observe(x).columns)
        return jnp.sum(weight), jnp.einsum("n,nti,nt->i", weight, there, 1 / left, precision="highest")

    def expected_log_prob(self, statistics: Any) -> Any:
        return jnp.sum(statistics[0] * jnp.log(self.worth) - statistics[1] * self.worth)

    def m_step(self, statistics: Any) -> Any:
        return replace(self, worth=statistics[0] / statistics[1])

    def floor(self, x: Any, weight: Any) -> Any:
        return jnp.zeros((), self.worth.dtype), jnp.zeros_like(self.worth)


def test_orders_of_items_by_plackett_and_luce(rng: Rng) -> None:
    worth = np.array([1.0, 2.0, 4.0, 0.5])
    orders = np.argsort(-(np.log(worth) + rng.gumbel(size=(400, 4))), axis=1).astype(float)
    fit = jem.fit(PlackettLuce(jnp.ones(4)), orders, tol=1e-11)

    def loss(p: np.ndarray) -> float:
        each = np.exp(p)[orders.astype(int)]
        return -(np.log(each) - np.log(each[:, ::-1].cumsum(1)[:, ::-1])).sum()

    best = scipy.optimize.minimize(loss, np.zeros(4))
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(fit.log_likelihood, -best.fun, rtol=1e-8)
    found = fit.model.worth / fit.model.worth.sum()
    np.testing.assert_allclose(found, np.exp(best.x) / np.exp(best.x).sum(), rtol=1e-3)


def test_states_that_last_a_while() -> None:
    """A semi-Markov chain with durations of one to three steps, as states in a row; against all segmentations."""
    last = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])  # P(duration = 1, 2, 3), in either state
    rates, other = np.array([2.0, 8.0]), np.array([1, 0])
    # State (s, r): r more steps to go. From (s, 0) the other begins anew.
    initial = (0.5 * last).ravel()
    transition = np.zeros((6, 6))
    for s in range(2):
        transition[3 * s, 3 * other[s] : 3 * other[s] + 3] = last[other[s]]
        transition[3 * s + 1, 3 * s] = transition[3 * s + 2, 3 * s + 1] = 1
    x = np.array([1.0, 3.0, 9.0, 7.0, 2.0])
    found = jem.HMM(initial, transition, jem.Poisson(np.repeat(rates, 3))).log_prob(x)[0]
    seen = ss.poisson.logpmf(x[:, None], rates)

    def total(t: int, s: int) -> float:
        """The probability of x from t on, if a segment of s begins there; the last one may go on beyond the end."""
        if t >= len(x):
            return 1.0
        return sum(
            p * np.exp(seen[t : t + d, s].sum()) * total(t + d, other[s])
            for d, p in zip((1, 2, 3), last[s], strict=True)
        )

    np.testing.assert_allclose(found, np.log(0.5 * (total(0, 0) + total(0, 1))), rtol=1e-12)


@module
class Neural(Family):
    """A response whose mean is a small neural network of its input; a row is both."""

    scalar = False
    inner: Any = parameter(vector)
    outer: Any = parameter(vector)
    scale: Any = parameter(positive)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    def log_density(self, columns: Any) -> Any:
        hidden = jnp.tanh(self.inner[..., None] * linalg.lead(columns[0], self.inner.ndim + 1))
        mean = jnp.sum(self.outer[..., None] * hidden, axis=-2)
        off = (linalg.lead(columns[1], mean.ndim) - mean) / self.scale[..., None]
        return -0.5 * (off**2 + math.log(2 * math.pi)) - jnp.log(self.scale[..., None])


def test_emissions_by_a_neural_network(rng: Rng) -> None:
    """A mixture of two curves: its density is the one written out, and its gradient that of finite differences."""
    z = rng.uniform(-2, 2, 200)
    y = np.where(rng.random(200) < 0.5, np.tanh(2 * z), -np.tanh(z)) + 0.1 * rng.normal(size=200)
    members, x = (
        Neural(rng.normal(size=(2, 3)), rng.normal(size=(2, 3)) * 0.3, np.full(2, 0.3)),
        np.stack([z, y], axis=1),
    )

    def loss(members: Neural) -> jax.Array:
        return -jem.Mixture([0.5, 0.5], members).log_prob(x).mean()

    slope = jax.jit(jax.grad(loss))(members)
    by = replace(members, inner=members.inner.at[0, 1].add(1e-6))
    np.testing.assert_allclose(slope.inner[0, 1], (loss(by) - loss(members)) / 1e-6, rtol=1e-4, atol=1e-7)
    inner, outer, scale = map(np.asarray, (members.inner, members.outer, members.scale))
    mean = np.sum(outer * np.tanh(inner * z[:, None, None]), axis=2)
    np.testing.assert_allclose(loss(members), -np.log(ss.norm.pdf(y[:, None], mean, scale).mean(1)).mean(), rtol=1e-10)


# Tables


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_tables_as_people_have_them(encoding: str, tmp_path: Path, rng: Rng) -> None:
    """A byte order mark, several keys, empty cells; and what is not UTF-8 is told in a line."""
    sizes = [f"{size:.2f}" if i % 11 else "" for i, size in enumerate(rng.normal(5, 1, 120))]
    text = "stadt,linie,x\n" + "".join(f"{['Bonn', 'Köln'][i % 2]},{i % 3},{c}\n" for i, c in enumerate(sizes))
    table, out = tmp_path / "t.csv", tmp_path / "out"
    table.write_bytes(text.encode(encoding))
    options = ["--by", "stadt,linie", "--columns", "x", "--missing", "drop", "--components", "1", "--out", str(out)]
    done = CliRunner().invoke(app.app, ["fit", str(table), *options])
    if encoding == "latin-1":
        assert (done.exit_code, "cannot be read as CSV (invalid utf-8" in done.stderr) == (2, True)
        return
    assert done.exit_code == 0, done.output
    models = pl.read_parquet(out / "models.parquet")
    assert models.height == 6
    assert models["stadt"].to_list() == ["Bonn"] * 3 + ["Köln"] * 3
    wanted = np.mean([float(c) for i, c in enumerate(sizes) if c and i % 6 == 0])
    np.testing.assert_allclose(np.ravel(models["mean"][0].to_list()), wanted, atol=0.05)
