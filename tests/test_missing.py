"""Cells that were not seen: a model says its marginal of the others, and EM climbs the log-likelihood of those."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as ss

import jaxem as jem
from families import covariances
from jaxem.distributions.base import add

pytestmark = pytest.mark.slow

NAN = np.nan


def gappy(rng: np.random.Generator, n: int, d: int, share: float = 0.3) -> np.ndarray:
    """Rows with gaps in every column; the first row is whole and the second wholly missing."""
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 5
    x[rng.random(x.shape) < share] = NAN
    x[0], x[1] = 1.0, NAN
    return x


def marginal(mean: np.ndarray, covariance: np.ndarray, row: np.ndarray) -> float:
    seen = ~np.isnan(row)
    if not seen.any():
        return 0.0
    return ss.multivariate_normal.logpdf(row[seen], mean[seen], covariance[np.ix_(seen, seen)])


def normals(rng: np.random.Generator, k: int, d: int) -> dict[str, tuple[Any, np.ndarray]]:
    """Members of every Gaussian family, and their covariance matrices."""
    mean, full, variance = rng.normal(size=(k, d)) + 5, covariances(rng, k, d), rng.uniform(0.5, 2, (k, d))
    return {
        "full": (jem.Gaussian(mean, full), full),
        "tied": (jem.TiedGaussian(mean, full[0]), np.broadcast_to(full[0], full.shape)),
        "diagonal": (jem.DiagonalGaussian(mean, variance), np.eye(d) * variance[:, None]),
        "spherical": (jem.SphericalGaussian(mean, variance[:, 0]), np.eye(d) * variance[:, :1, None]),
    }


@pytest.mark.parametrize("d", [2, 10])
@pytest.mark.parametrize("kind", ["full", "tied", "diagonal", "spherical"])
def test_gaussians_are_their_marginals(kind: str, d: int, rng: np.random.Generator) -> None:
    """Of values, of moments and of what is filled in: against each row by hand."""
    model, covariance = normals(rng, 2, d)[kind]
    x = gappy(rng, 15, d)
    weight = rng.uniform(0.5, 2, (2, 15))
    expected = np.array([[marginal(model.mean[k], covariance[k], row) for row in x] for k in range(2)])
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-10)
    moments = jax.jit(lambda model, x: model.e_step(x)[1](jnp.asarray(weight)))(model, jem.incomplete(x))
    for k in range(2):
        first, second = np.zeros(d), np.zeros((d, d))
        for row, w in zip(x, weight[k], strict=True):
            if np.isnan(row).all():
                continue
            filled, rest = conditional(np.asarray(model.mean[k]), covariance[k], row)
            first += w * (filled - model.mean[k])
            second += w * (np.outer(filled - model.mean[k], filled - model.mean[k]) + rest)
        np.testing.assert_allclose(moments.first[k], first, rtol=1e-9, atol=1e-9)
        second = second if moments.second.ndim == 3 else np.diag(second)
        np.testing.assert_allclose(moments.second[k], second, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moments.rows[k], weight[k] @ ~np.isnan(x).all(axis=1), rtol=1e-12)


def conditional(mean: np.ndarray, covariance: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and covariance of a whole row, given what was seen of it."""
    seen = ~np.isnan(row)
    gain = covariance[:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
    filled = np.where(seen, row, mean + gain @ (row - mean)[seen])
    return filled, covariance - gain @ covariance[seen]


def others(rng: np.random.Generator, k: int, d: int) -> dict[str, tuple[Any, np.ndarray]]:
    """Members with a covariance of few factors, or a scatter, and what that is."""
    mean, full = rng.normal(size=(k, d)) + 5, covariances(rng, k, d)
    analysis = jem.FactorAnalysis(mean, rng.normal(size=(k, d, 2)), rng.uniform(0.3, 2, (k, d)))
    components = jem.PPCA(mean, rng.normal(size=(k, d, 1)), rng.uniform(0.3, 2, k))
    return {
        "analysis": (analysis, np.asarray(analysis.covariance)),
        "components": (components, np.asarray(components.covariance)),
        "tails": (jem.StudentT(mean, full, rng.uniform(2, 8, k)), full),
    }


@pytest.mark.parametrize("kind", ["analysis", "components", "tails"])
def test_factors_and_tails_are_their_marginals(kind: str, rng: np.random.Generator) -> None:
    """Values by hand, means that fill gaps, the slope of Q (Fisher's identity), and a step that climbs."""
    model, scatter = others(rng, 2, 4)[kind]
    x, weight = gappy(rng, 20, 4), jnp.asarray(rng.uniform(0.5, 2, (2, 20)))
    mean = np.asarray(model.centre())

    def by_hand(k: int, row: np.ndarray) -> float:
        seen = ~np.isnan(row)
        if kind != "tails" or not seen.any():
            return marginal(mean[k], scatter[k], row)
        shape = scatter[k][np.ix_(seen, seen)]
        return ss.multivariate_t(mean[k][seen], shape, df=float(model.dof[k])).logpdf(row[seen])

    expected = np.array([[by_hand(k, row) for row in x] for k in range(2)])
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-10, atol=1e-13)

    @jax.jit
    def step(model: Any, x: Any) -> Any:
        value = lambda model: jnp.sum(weight * model.log_prob(x))
        statistics = model.e_step(x)[1](weight)
        of_q = jax.grad(lambda model: model.expected_log_prob(statistics).sum())(model)
        return value(model), jax.grad(value)(model), of_q, value(model.m_step(statistics)), statistics

    before, gradient, of_q, after, statistics = step(model, jem.incomplete(x))
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(of_q), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    assert after > before
    counted = statistics.moments.spread_rows if kind == "tails" else statistics.rows
    np.testing.assert_allclose(counted, np.asarray(weight) @ ~np.isnan(x).all(axis=1), rtol=1e-12)
    one = jax.tree.map(lambda leaf: leaf[0], model)
    filled = [conditional(mean[0], scatter[0], row)[0] for row in x]
    np.testing.assert_allclose(one.impute(x), filled, rtol=1e-9)


CASES = ["gaussian", "diagonal", "mixed", "columns", "factors", "tails"]


@pytest.mark.parametrize("case", CASES)
def test_em_climbs_what_was_seen(case: str, rng: np.random.Generator) -> None:
    """In mixtures: monotone, tangent to the log-likelihood, and whole missing rows change nothing."""
    x = gappy(rng, 40, 3)
    if case == "columns":
        x = np.where(np.isnan(x), NAN, x > 5)
    if case == "mixed":
        x[:, 2] = np.abs(np.round(x[:, 2]))
    family = {
        "gaussian": jem.Gaussian,
        "diagonal": jem.DiagonalGaussian,
        "mixed": jem.Product.of(jem.sized(jem.Gaussian, columns=2), jem.Poisson),
        "columns": jem.Bernoulli,
        "factors": jem.sized(jem.FactorAnalysis, factors=1),
        "tails": jem.StudentT,
    }[case]
    start = jem.Mixture.start(jax.random.key(0), family, x, 2)
    fit = jem.fit(start, x, tol=1e-9, max_steps=300)
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(x).sum(), rtol=1e-10)
    whole, without = (jem.fit(start, rows, tol=0.0, max_steps=8) for rows in (x, np.delete(x, 1, 0)))
    np.testing.assert_allclose(without.trace, whole.trace, rtol=1e-11)

    rows = start.observe(x)
    statistics = start.e_step(rows)[1](jnp.ones(40))
    gradient = jax.jit(jax.grad(lambda model: model.log_prob(rows).sum()))(start)
    of_q = jax.jit(jax.grad(lambda model: model.expected_log_prob(statistics)))(start)
    # A row of which nothing was seen still has a component: weights are left out.
    for ours, theirs in zip(jax.tree.leaves(gradient.components), jax.tree.leaves(of_q.components), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)


def vectors(columns: int) -> dict[str, Any]:
    """Two members of each family that knows its marginals."""
    mean, eye = np.stack([np.zeros(columns), np.ones(columns)]), np.broadcast_to(np.eye(columns), (2, columns, columns))
    loadings, ones = mean[..., None] + 0.5, np.ones(2)
    return {
        "gaussian": jem.Gaussian(mean, eye),
        "tied": jem.TiedGaussian(mean, eye[0]),
        "diagonal": jem.DiagonalGaussian(mean, np.ones_like(mean)),
        "spherical": jem.SphericalGaussian(mean, ones),
        "tails": jem.StudentT(mean, eye, 8 * ones),
        "factors": jem.FactorAnalysis(mean, loadings, np.ones_like(mean)),
        "ppca": jem.PPCA(mean, loadings, ones),
    }


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", vectors(1))
def test_infinite_cells_are_impossible(name: str, missing: bool, rng: np.random.Generator) -> None:
    """Whatever else was seen of the row, and without a word on the other rows."""
    x, model = rng.normal(size=(30, 6)), jem.Mixture([0.5, 0.5], vectors(6)[name])
    if missing:
        x[::4, 1] = NAN
    wanted = np.asarray(model.log_prob(x))
    x[4, 0], x[7, -1], x[9] = np.inf, -np.inf, np.inf
    bad = np.isin(np.arange(30), [4, 7, 9])
    found = np.asarray(model.log_prob(x))
    np.testing.assert_array_equal(found[bad], -np.inf)
    np.testing.assert_allclose(found[~bad], wanted[~bad], rtol=1e-9)
    assert jem.fit(model, x, max_steps=2).status_name == "impossible_data"


def test_integrating_out_by_hand_is_the_same_fit(rng: np.random.Generator) -> None:
    """A categorical cell that is missing is the sum over its values, each as a row of its own."""
    x = rng.integers(0, 3, (30, 2)).astype(float)
    x[:5, 1] = NAN
    parts = [jem.Categorical(rng.dirichlet(np.ones(3), 2)) for _ in range(2)]
    model = jem.Mixture([0.4, 0.6], jem.Product(parts))
    by_hand = [
        sum(np.exp(model.log_prob(np.array([[row[0], c]]))[0]) for c in range(3)) if np.isnan(row[1]) else
        np.exp(model.log_prob(row[None])[0])
        for row in x
    ]  # fmt: skip
    np.testing.assert_allclose(model.log_prob(x), np.log(by_hand), rtol=1e-12)


def test_every_pattern_of_four_columns_in_every_block_size(rng: np.random.Generator) -> None:
    patterns = np.array(list(itertools.product([False, True], repeat=4)))
    model, covariance = normals(rng, 1, 4)["full"]
    for repeats in (1, 3, 40):
        seen = np.repeat(patterns, repeats, axis=0)[rng.permutation(16 * repeats)]
        x = np.where(seen, rng.normal(size=seen.shape) + 5, NAN)
        expected = [marginal(np.asarray(model.mean[0]), covariance[0], row) for row in x]
        np.testing.assert_allclose(model.log_prob(x)[0], expected, rtol=1e-10)


def test_more_columns_than_bits_in_a_word(rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 40))
    x[1, :39], x[2, 3], x[3, 35], x[4, 35] = NAN, NAN, NAN, NAN
    model = jem.Gaussian(np.zeros(40), covariances(rng, 40))
    expected = [marginal(np.zeros(40), np.asarray(model.covariance), row) for row in x]
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-9)


def test_float32_and_an_offset(rng: np.random.Generator) -> None:
    x = np.round(gappy(rng, 60, 3) * 64).astype(np.float32) / 64
    fits = []
    for offset in (0, 10_000):
        start = jem.Gaussian(np.full(3, 5.0 + offset, np.float32), np.eye(3, dtype=np.float32))
        fits.append(jem.fit(start, x + np.float32(offset)))
    here, there = fits
    assert here.log_likelihood.dtype == jnp.float32
    np.testing.assert_allclose(there.log_likelihood, here.log_likelihood, rtol=1e-3)
    np.testing.assert_allclose(there.model.covariance, here.model.covariance, rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(there.model.mean - 10_000, here.model.mean, atol=4e-3)


def test_hidden_markov_models_with_gaps(rng: np.random.Generator) -> None:
    """A step half seen says half; a step not seen at all takes its time."""
    x = gappy(rng, 6, 2)
    x[2:] = rng.normal(size=(4, 2)) + 5
    x[3, 0], x[4, 1] = NAN, NAN
    model = jem.HMM([0.6, 0.4], [[0.8, 0.2], [0.3, 0.7]], normals(rng, 2, 2)["full"][0])
    emission = np.exp(np.asarray(model.emission.log_prob(x)))
    total = 0.0
    for path in itertools.product(range(2), repeat=6):
        p = model.initial[path[0]] * np.prod([model.transition[a, b] for a, b in itertools.pairwise(path)])
        total += p * np.prod([emission[k, t] for t, k in enumerate(path)])
    sequences = jem.Sequences.from_list([x, x[2:]])
    np.testing.assert_allclose(model.log_prob(sequences)[0], np.log(total), rtol=1e-10)
    np.testing.assert_array_equal(sequences.seen[0], [True, False, True, True, True, True])
    posterior = model.posterior(sequences)[0]
    imputed = model.impute(sequences)
    assert not np.isnan(imputed.values[0]).any()
    np.testing.assert_array_equal(np.where(np.isnan(x), 0, imputed.values[0]), np.nan_to_num(x))
    np.testing.assert_allclose(imputed.values[0, 1], posterior[1] @ model.emission.mean, rtol=1e-10)
    start = jem.HMM.start(jax.random.key(0), jem.Gaussian, sequences, 2)
    many = jem.fit_many(jax.tree.map(lambda leaf: leaf[None], start), [sequences], max_steps=20)
    alone = jem.fit(start, sequences, max_steps=20)
    np.testing.assert_allclose(many.log_likelihood[0], alone.log_likelihood, rtol=1e-9)


def test_many_problems_some_with_gaps(rng: np.random.Generator) -> None:
    xs = [gappy(rng, n, 2)[:, :] for n in (20, 24, 30)] + [rng.normal(size=(25, 2))]
    starts = jem.start_many(jax.random.key(0), jem.Gaussian, xs, 2)
    fits = jem.fit_many(starts, xs, max_steps=40)
    for i, x in enumerate(xs):
        alone = jem.fit(jax.tree.map(lambda leaf, i=i: leaf[i], starts), x, max_steps=40)
        np.testing.assert_allclose(fits.log_likelihood[i], alone.log_likelihood, rtol=1e-9)
        assert fits.status_name[i] == alone.status_name


def test_gaps_are_no_error_where_nan_is(rng: np.random.Generator) -> None:
    """Problems of one array and of several lengths, under `jax_debug_nans`; what is computed is checked."""
    xs = [gappy(rng, n, 2) for n in (20, 24, 24)]
    start = jem.Mixture([0.5, 0.5], jem.Gaussian([[-1.0, 0.0], [1.0, 0.0]], [np.eye(2)] * 2))
    for data in (xs, np.stack(xs[1:])):
        starts = jax.tree.map(lambda leaf, same=data: jnp.stack([leaf] * len(same)), start)
        expected = jem.fit_many(starts, data, max_steps=10)
        with jax.debug_nans(True):
            fits = jem.fit_many(starts, data, max_steps=10)
        np.testing.assert_array_equal(fits.log_likelihood, expected.log_likelihood)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jnp.log(-jnp.ones(1))


def test_means_fill_gaps_given_the_rest_of_the_row(rng: np.random.Generator) -> None:
    components, covariance = normals(rng, 2, 3)["full"]
    model = jem.Mixture([0.3, 0.7], components)
    x = gappy(rng, 12, 3)
    filled = np.asarray(model.impute(x))
    posterior = np.asarray(model.posterior(x))
    for row, done, r in zip(x, filled, posterior, strict=True):
        each = [conditional(np.asarray(components.mean[k]), covariance[k], row)[0] for k in range(2)]
        np.testing.assert_allclose(done, r @ np.array(each), rtol=1e-9)
    np.testing.assert_array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])


@pytest.mark.parametrize("kind", ["full", "components", "tails"])
def test_draws_fill_gaps_by_their_conditional_distribution(kind: str, rng: np.random.Generator) -> None:
    model = jem.Mixture([0.3, 0.7], (normals(rng, 2, 2) | others(rng, 2, 2))[kind][0])
    row = np.array([5.5, NAN])
    draws = np.asarray(model.impute(np.tile(row, (20_000, 1)), jax.random.key(1)))
    np.testing.assert_array_equal(draws[:, 0], 5.5)
    grid = np.linspace(-45, 55, 20_001)
    density = np.exp(model.log_prob(np.stack([np.full(20_001, 5.5), grid], axis=1)))
    cumulated = np.cumsum(density) / density.sum()
    assert ss.ks_1samp(draws[:, 1], lambda y: np.interp(y, grid, cumulated)).pvalue > 0.001


@pytest.mark.parametrize("kind", ["full", "components", "tails"])
def test_float32_is_filled_with_float32(kind: str, rng: np.random.Generator) -> None:
    model = jax.tree.map(lambda leaf: leaf[0].astype(jnp.float32), (normals(rng, 1, 2) | others(rng, 1, 2))[kind][0])
    x = np.array([[5.5, NAN], [NAN, NAN]], np.float32)
    for filled in (model.impute(x), model.impute(x, jax.random.key(0))):
        assert filled.dtype == jnp.float32
        assert np.isfinite(filled).all()


def test_categories_are_filled_by_the_most_probable() -> None:
    parts = (
        jem.Categorical([[0.1, 0.9], [0.8, 0.2]]),
        jem.Categorical([[0.9, 0.1], [0.2, 0.8]]),
        jem.Poisson([1.0, 8.0]),
    )
    model = jem.Mixture([0.5, 0.5], jem.Product(parts))
    x = np.array([[1.0, NAN, NAN], [NAN, 1.0, 9.0]])
    filled = model.impute(x)
    assert filled[:, :2].tolist() == [[1, 0], [0, 1]]
    r = model.posterior(x)[0]
    np.testing.assert_allclose(filled[0, 2], r @ np.array([1.0, 8.0]), rtol=1e-12)
    drawn = np.asarray(model.impute(np.tile(x[:1], (4000, 1)), jax.random.key(0)))
    assert abs(drawn[:, 2].mean() - filled[0, 2]) < 0.2
    assert set(np.unique(drawn[:, 1])) == {0, 1}


def test_nothing_missing_is_nothing_filled() -> None:
    model = jem.Gaussian([0.0], [[1.0]])
    assert model.impute([[3.0]]).tolist() == [[3.0]]
    with pytest.raises(ValueError, match="impute needs one model; this is a batch of shape"):
        jem.Gaussian([[0.0]], [[[1.0]]]).impute([[3.0]])


def test_pseudo_rows_weights_and_labels_go_along(rng: np.random.Generator) -> None:
    x = gappy(rng, 30, 2)
    weight = rng.uniform(0, 2, 30)
    labels = np.where(np.arange(30) < 8, np.arange(30) % 2, -1)
    start = jem.Mixture.start(jax.random.key(0), jem.Gaussian, x, 2, weight=weight, labels=labels)
    fit = jem.fit(start, x, weight=weight, labels=labels, prior=jem.priors.Weak(1.0), max_steps=50)
    assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-9).all()
    twice = np.concatenate([x, x])
    doubled = jem.fit(start, twice, weight=np.tile(weight / 2, 2), labels=np.tile(labels, 2), max_steps=50)
    plain = jem.fit(start, x, weight=weight, labels=labels, max_steps=50)
    np.testing.assert_allclose(doubled.log_likelihood, plain.log_likelihood, rtol=1e-9)
    statistics = [start.e_step(jem.incomplete(part))[1](jnp.ones(len(part))) for part in (x, x[:13], x[13:])]
    together, added = start.m_step(statistics[0]), start.m_step(add(*statistics[1:]))
    np.testing.assert_allclose(added.components.covariance, together.components.covariance, rtol=1e-10)


def test_families_of_whole_rows_say_so(rng: np.random.Generator) -> None:
    x = np.array([[0.3, 0.7], [NAN, NAN], [0.4, NAN]])
    model = jem.Dirichlet([1.0, 2.0])
    with pytest.raises(ValueError, match="x has missing cells in row 2; Dirichlet reads rows that are whole"):
        jem.fit(model, x)
    np.testing.assert_allclose(jem.fit(model, x[:2], max_steps=0).log_likelihood, model.log_prob(x[:1])[0], rtol=1e-12)
