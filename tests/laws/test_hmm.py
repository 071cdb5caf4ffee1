"""A hidden Markov model over every family is the sum over its paths, climbs under EM, and is one model among others."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table import law

import jaxem as jem
from families import FAMILIES, MIXTURES, NESTED, Example, coordinates, e_step, m_step, perturbed

pytestmark = pytest.mark.slow

LENGTHS = (4, 1, 3)


def hmm(example: Example, k: int = 3, seed: int = 0) -> jem.HMM:
    rng = np.random.default_rng(seed + 7)
    return jem.HMM(rng.dirichlet(np.full(k, 3.0)), rng.dirichlet(np.full(k, 3.0), k), example.members(k, seed))


def pieces(example: Example, lengths: Any = LENGTHS, seed: int = 0) -> list[np.ndarray]:
    return np.split(np.asarray(example.rows(sum(lengths), seed=seed)), np.cumsum(lengths)[:-1])


def enumerated(model: jem.HMM, x: Any) -> tuple[float, np.ndarray]:
    """The log-likelihood of one sequence and its posterior marginals, over all paths."""
    seen = np.asarray(model.emission.log_prob(jnp.asarray(x))).T
    steps, states = seen.shape
    every = np.array(list(itertools.product(range(states), repeat=steps)))
    score = np.log(model.initial)[every[:, 0]] + seen[np.arange(steps), every].sum(1)
    score = score + np.log(model.transition)[every[:, :-1], every[:, 1:]].sum(1)
    weight = np.exp(score - score.max())
    marginals = np.stack([np.bincount(every[:, t], weight, states) for t in range(steps)]) / weight.sum()
    return float(score.max() + np.log(weight.sum())), marginals


@law(MIXTURES)
def test_it_is_the_sum_over_all_paths(example: Example) -> None:
    model, parts = hmm(example), pieces(example)
    sequences = jem.Sequences.from_list(parts)
    log_prob, posterior = model.log_prob(sequences), sequences.split(model.posterior(sequences))
    for i, part in enumerate(parts):
        value, marginals = enumerated(model, part)
        np.testing.assert_allclose(log_prob[i], value, rtol=1e-10)
        np.testing.assert_allclose(posterior[i], marginals, atol=1e-10)


@law(MIXTURES)
def test_em_climbs_and_reports_the_objective_of_its_model(example: Example) -> None:
    sequences = jem.Sequences.from_list(pieces(example, (12, 5, 9)))
    fit = jem.fit(hmm(example, 2, seed=3), sequences, max_steps=8, tol=0.0)
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert fit.steps >= 2
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(fit.log_likelihood, fit.model.log_prob(sequences).sum(), rtol=1e-10)


@law(MIXTURES)
def test_m_step_is_a_maximum_of_q(example: Example, rng: np.random.Generator) -> None:
    model, sequences = hmm(example), jem.Sequences.from_list(pieces(example, (9, 1, 5)))
    _, statistics = e_step(model, sequences, jnp.ones(3))
    best = m_step(model, statistics)
    for size in (0.01, 0.3):
        other = jem.HMM(best.initial, best.transition, perturbed(best.emission, rng, size))
        assert other.expected_log_prob(statistics) < best.expected_log_prob(statistics)
    moved = np.abs(np.asarray(best.transition) + rng.uniform(0, 0.1, best.transition.shape))
    other = jem.HMM(best.initial, moved / moved.sum(1, keepdims=True), best.emission)
    assert other.expected_log_prob(statistics) < best.expected_log_prob(statistics)


GAUSSIAN, POISSON = FAMILIES[0], next(e for e in FAMILIES if e.name == "poisson")


def test_one_state_is_the_family_alone() -> None:
    example = GAUSSIAN
    model = jem.HMM([1.0], [[1.0]], example.members(1))
    x = example.rows(6)
    np.testing.assert_allclose(model.log_prob(x)[0], model.emission.log_prob(x).sum(), rtol=1e-12)


def test_equal_rows_of_the_transition_are_a_mixture() -> None:
    mixture = GAUSSIAN.mixture(3)
    model = jem.HMM(mixture.weights, jnp.broadcast_to(mixture.weights, (3, 3)), mixture.components)
    x = GAUSSIAN.rows(9)
    np.testing.assert_allclose(model.log_prob(x)[0], mixture.log_prob(x).sum(), rtol=1e-12)
    np.testing.assert_allclose(model.posterior(x)[0], mixture.posterior(x), atol=1e-12)


def test_sequences_together_are_each_alone() -> None:
    model, parts = hmm(POISSON), pieces(POISSON, (4, 1, 9, 2))
    together = model.log_prob(parts)
    for i, part in enumerate(parts):
        np.testing.assert_allclose(together[i], model.log_prob(part)[0], rtol=1e-12)
        np.testing.assert_array_equal(model.decode(parts)[i][: len(part)], model.decode(part)[0])


def test_what_was_not_seen_says_nothing() -> None:
    """A NaN and a mask are the same; the gap still takes its time."""
    model, x = hmm(GAUSSIAN), np.asarray(GAUSSIAN.rows(6))
    gap = x.copy()
    gap[2] = np.nan
    by_nan = jem.Sequences.from_list([gap])
    by_mask = jem.Sequences.from_list([x], mask=[np.arange(6) != 2])
    exact = enumerated_with_gap(model, x, 2)
    for sequences in (by_nan, by_mask):
        np.testing.assert_allclose(model.log_prob(sequences)[0], exact, rtol=1e-11)
        np.testing.assert_allclose(model.posterior(sequences)[0].sum(-1), 1, rtol=1e-12)
        fit = jem.fit(model, sequences, max_steps=3, tol=0.0)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.model))
    gradient = jax.grad(lambda model: model.log_prob(by_nan).sum())(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def enumerated_with_gap(model: jem.HMM, x: np.ndarray, gap: int) -> float:
    seen = np.asarray(model.emission.log_prob(jnp.asarray(x))).T.copy()
    seen[gap] = 0
    return float(jem.chains.log_normalizer(np.log(model.initial), np.log(model.transition), seen))


def test_weights_are_repetitions() -> None:
    parts = pieces(POISSON, (6, 9, 7))
    repeated = [parts[0], parts[2], parts[2]]
    a = jem.fit(hmm(POISSON, 2), jem.Sequences.from_list(parts), weight=[1, 0, 2], max_steps=6, tol=0.0)
    b = jem.fit(hmm(POISSON, 2), jem.Sequences.from_list(repeated), max_steps=6, tol=0.0)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(a.model.transition, b.model.transition, rtol=1e-8)


def test_known_states_are_kept() -> None:
    parts = pieces(GAUSSIAN, (5, 3))
    sequences = jem.Sequences.from_list(parts)
    labels = np.array([[0, -1, 1, -1, 2], [-1, 2, -1, -1, -1]])
    posterior = hmm(GAUSSIAN).posterior(jem.Labelled(sequences, jnp.asarray(labels)))
    for s, t in zip(*np.nonzero(labels >= 0), strict=True):
        np.testing.assert_allclose(posterior[s, t], np.eye(3)[labels[s, t]], atol=1e-12)
    fit = jem.fit(hmm(GAUSSIAN), sequences, labels=[labels[0], labels[1, :3]], max_steps=3, tol=0.0)
    assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-9).all()


def test_zeros_stay_zero() -> None:
    """Left to right, under EM with a prior that would fill them."""
    model = jem.HMM([1.0, 0.0, 0.0], [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1.0]], POISSON.members(3))
    prior = jem.priors.Structured(
        {
            "initial": jem.priors.Dirichlet(2.0),
            "transition": jem.priors.Dirichlet(2.0),
            "emission": jem.priors.Gamma(2.0, 0.5),
        }
    )
    fit = jem.fit(model, pieces(POISSON, (12, 8)), prior=prior, max_steps=10, tol=0.0)
    np.testing.assert_array_equal(np.asarray(fit.model.transition) == 0, np.asarray(model.transition) == 0)
    np.testing.assert_array_equal(fit.model.initial, [1, 0, 0])
    assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-9).all()
    gradient = jax.grad(lambda model: model.log_prob(pieces(POISSON, (12, 8))).sum())(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_impossible_data_is_not_converged() -> None:
    model = jem.HMM([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], jem.Bernoulli([0.0, 1.0]))
    assert model.log_prob(np.array([0.0, 1.0]))[0] == -np.inf
    fit = jem.fit(model, np.array([0.0, 1.0]))
    assert fit.status_name == "impossible_data"
    assert not fit.converged


def test_a_sticky_prior_stays() -> None:
    parts = pieces(POISSON, (30, 20))
    plain = jem.fit(hmm(POISSON, 2), parts, max_steps=20)
    prior = jem.priors.Structured({"transition": jem.priors.Dirichlet(1 + 200 * jnp.eye(2))})
    sticky = jem.fit(hmm(POISSON, 2), parts, prior=prior, max_steps=20)
    assert jnp.diagonal(sticky.model.transition).min() > max(0.9, float(jnp.diagonal(plain.model.transition).min()))


def test_a_weak_prior_climbs() -> None:
    """The one that scales itself to the data reads steps as rows."""
    parts = pieces(GAUSSIAN, (30, 20))
    fit = jem.fit(hmm(GAUSSIAN, 2), parts, prior=jem.priors.Weak(), max_steps=20)
    assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-9).all()
    assert abs(fit.objective - fit.log_likelihood) > 1e-3


def test_a_mixture_of_them_is_a_model() -> None:
    """Clusters of sequences, with no code of their own."""
    rng = np.random.default_rng(0)
    components = jem.HMM(
        rng.dirichlet(np.ones(2), 3), rng.dirichlet(np.ones(2), (3, 2)), jem.Poisson(rng.uniform(1, 9, (3, 2)))
    )
    model = jem.Mixture([0.2, 0.3, 0.5], components)
    parts = pieces(POISSON, (6, 3, 9, 2))
    each = [jax.tree.map(lambda leaf, k=k: leaf[k], components).log_prob(parts) for k in range(3)]
    np.testing.assert_allclose(
        model.log_prob(jem.Sequences.from_list(parts)),
        np.log(np.einsum("k,ks->s", np.asarray(model.weights), np.exp(np.stack(each)))),
        rtol=1e-10,
    )
    fit = jem.fit(model, jem.Sequences.from_list(parts), max_steps=6, tol=0.0)
    assert (np.diff(np.asarray(fit.trace)[: int(fit.steps) + 1]) > -1e-9).all()


def test_emissions_may_be_mixtures() -> None:
    example = next(e for e in NESTED if e.name == "mixtures")
    model, x = hmm(example), example.rows(5)
    np.testing.assert_allclose(model.log_prob(x)[0], enumerated(model, x)[0], rtol=1e-10)


def test_many_are_each_what_one_is() -> None:
    """fit_many over ragged sets of ragged sequences = fit, one after the other."""
    problems = [pieces(POISSON, lengths, seed=i) for i, lengths in enumerate([(9, 4, 6), (12,), (5, 5), (7, 3, 2)])]
    problems = [jem.Sequences.from_list(parts) for parts in problems]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(hmm(POISSON, 2, seed=i) for i in range(4)))
    fits = jem.fit_many(starts, problems, tol=1e-5, max_steps=60)
    for i, sequences in enumerate(problems):
        one = jem.fit(jax.tree.map(lambda leaf, i=i: leaf[i], starts), sequences, tol=1e-5, max_steps=60)
        np.testing.assert_allclose(fits.log_likelihood[i], one.log_likelihood, rtol=1e-9)
        assert int(fits.steps[i]) == int(one.steps)
        assert fits.status_name[i] == one.status_name
        np.testing.assert_allclose(fits.model.transition[i], one.model.transition, atol=1e-6)


def test_a_start_finds_well_separated_states(rng: np.random.Generator) -> None:
    truth = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], jem.Gaussian([[0.0], [8.0]], np.ones((2, 1, 1))))
    x = truth.sample(jax.random.key(1), 5, steps=200)
    x = [sequence[: 200 - 10 * i] for i, sequence in enumerate(np.asarray(x))]
    sequences = jem.Sequences.from_list(x)
    for method in ("kmeans++", "random"):
        starts = jem.HMM.start(jax.random.key(0), jem.Gaussian, list(x), 2, restarts=3, method=method)
        assert starts.batch_shape == (3,)
        fit = jem.fit(starts, sequences)
        assert fit.converged
        order = np.argsort(fit.model.emission.mean[:, 0])
        np.testing.assert_allclose(fit.model.emission.mean[order, 0], [0, 8], atol=0.3)
        np.testing.assert_allclose(fit.model.transition[order][:, order], truth.transition, atol=0.06)
    np.testing.assert_allclose(truth.stationary(), [2 / 3, 1 / 3], rtol=1e-10)


def test_a_labelled_start_knows_the_states() -> None:
    parts = [np.array([0.0, 1.0, 9.0, 8.0]), np.array([9.0, 0.0])]
    labels = [np.array([1, -1, 0, -1]), np.array([-1, -1])]
    start = jem.HMM.start(jax.random.key(0), jem.Poisson, jem.Sequences.from_list(parts), 2, labels=labels)
    assert start.emission.rate[0] > start.emission.rate[1]


def test_a_forecast_is_the_chain_run_on() -> None:
    model, parts = hmm(GAUSSIAN), pieces(GAUSSIAN, (4, 2))
    states, emission = model.forecast(parts, 3)
    last = np.asarray(model.posterior(parts))[[0, 1], [3, 1]]
    for h in range(3):
        last = last @ np.asarray(model.transition)
        np.testing.assert_allclose(states[:, h], last, atol=1e-12)
    x = GAUSSIAN.rows(1)
    longer = model.log_prob([np.concatenate([parts[0], x])])[0] - model.log_prob([parts[0]])[0]
    np.testing.assert_allclose(emission.log_prob(x)[0, 0, 0], longer, rtol=1e-10)


def test_float32_stays_float32() -> None:
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), hmm(GAUSSIAN))
    sequences = jem.Sequences.from_list([part.astype(np.float32) for part in pieces(GAUSSIAN, (6, 3))])
    made = jem.fit(model, sequences, max_steps=3), model.posterior(sequences), model.sample(jax.random.key(0), 2, 3)
    made += (
        model.stationary(),
        model.forecast(sequences, 2),
        jem.HMM.start(jax.random.key(0), jem.Gaussian, sequences, 2),
    )
    types = {leaf.dtype for leaf in jax.tree.leaves(made) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert types == {jnp.dtype("float32")}


def test_it_can_be_saved(tmp_path: Any) -> None:
    model = hmm(GAUSSIAN)
    jem.save(tmp_path / "m.safetensors", model)
    for path, leaf in coordinates(jem.load(tmp_path / "m.safetensors")).items():
        np.testing.assert_array_equal(leaf, coordinates(model)[path])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jem.HMM([0.5, 0.4], np.eye(2), jem.Poisson([1.0, 2.0])), "HMM: initial does not sum to one"),
        (lambda: jem.HMM([0.5, 0.5], [[1, 0], [0.5, 0.4]], jem.Poisson([1.0, 2.0])), "HMM: transition does not sum"),
        (lambda: jem.HMM([0.5, 0.5], [[1, 0], [1.5, -0.5]], jem.Poisson([1.0, 2.0])), "transition has negative"),
        (lambda: jem.HMM([0.5, 0.5], [[1, 0], [np.nan, 1]], jem.Poisson([1.0, 2.0])), "transition has entries that"),
        (lambda: jem.HMM([0.5, 0.5], np.eye(3), jem.Poisson([1.0, 2.0])), r"transition has shape \(3, 3\)"),
        (lambda: jem.HMM([0.5, 0.5], np.eye(2), jem.Poisson(1.0)), r"emission has batch shape \(\)"),
        (lambda: jem.Sequences.from_list([]), "sequences is empty"),
        (lambda: jem.Sequences.from_list([[1.0], []]), r"sequences\[1\] has no steps"),
        (lambda: jem.Sequences.from_list([[[1.0]], [[1.0, 2.0]]]), r"sequences\[1\] has steps of shape \(2,\)"),
        (lambda: jem.Sequences(np.zeros((2, 3)), [3, 4]), "length goes from 3 to 4; with 3 steps"),
        (lambda: jem.Sequences(np.zeros((2, 3)), [3]), r"length has shape \(1,\)"),
        (lambda: jem.fit(hmm(POISSON), [[1.0, 2.0], [3.0]], labels=[[0]]), "labels has shape"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_text_is_refused() -> None:
    with pytest.raises(TypeError, match=r"sequences\[1\] holds values of type"):
        jem.Sequences.from_list([[1.0], ["a"]])
