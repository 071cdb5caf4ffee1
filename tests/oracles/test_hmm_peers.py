"""Hidden Markov models of others: published optima, and hmmlearn from the same start, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.core.pytree import replace
from oracles.test_published import case

pytestmark = pytest.mark.slow

hmmlearn = pytest.importorskip("hmmlearn.hmm")


def test_umbrella_world() -> None:
    """Russell and Norvig, with the lattice printed in Wikipedia's article on forward-backward."""
    pi, move = np.array([0.5, 0.5]), np.array([[0.7, 0.3], [0.3, 0.7]])
    seen = np.log([[0.9, 0.2], [0.9, 0.2], [0.1, 0.8], [0.9, 0.2], [0.9, 0.2]])
    found = jem.chains.forward_backward(np.log(pi), np.log(move), seen)
    np.testing.assert_allclose(found.log_normalizer, -3.3725020443321743, rtol=1e-12)
    first = [0.8673388895754848, 0.8204190536236755, 0.30748357600661774, 0.8204190536236754, 0.8673388895754847]
    np.testing.assert_allclose(found.marginals[:, 0], first, rtol=1e-12)
    counts = [[2.0801861886591504, 0.7354743841703023], [0.7354743841703023, 0.44886504300024416]]
    np.testing.assert_allclose(found.transitions, counts, rtol=1e-12)
    path, score = jem.chains.viterbi(np.log(pi), np.log(move), seen)
    assert path.tolist() == [0, 0, 1, 0, 0]
    np.testing.assert_allclose(score, -4.459, atol=5e-4)


@pytest.mark.parametrize("states", [2, 3])
def test_earthquakes(states: int) -> None:
    """Zucchini, MacDonald and Langrock 2016: the optimum, and Baum-Welch's first steps towards it."""
    known = case("earthquakes_poisson_hmm_free_pi")
    x = np.array(known["data"]["x"], float)
    start, expected = known["start"][str(states)], known["expected"]["computed"]
    off = (1 - start["A_diag"]) / (states - 1)
    model = jem.HMM(
        np.full(states, 1 / states),
        np.full((states, states), off) + (start["A_diag"] - off) * np.eye(states),
        jem.Poisson(np.array(start["lam"], float)),
    )
    fit = jem.fit(model, x, tol=1e-12, max_steps=4000)
    best = expected[str(states)]
    assert fit.converged
    np.testing.assert_allclose(-fit.log_likelihood, best["mllk"], atol=1e-6)
    np.testing.assert_allclose(fit.model.emission.rate, best["lam"], rtol=1e-4)
    np.testing.assert_allclose(fit.model.transition, best["A"], rtol=1e-3, atol=1e-5)
    trace = next(value for name, value in expected.items() if name.startswith(f"trace_{states}state"))
    np.testing.assert_allclose(-np.asarray(fit.trace)[1 : len(trace)], trace[1:], atol=1e-5)


@pytest.mark.parametrize("states", [2, 3])
def test_fetal_lamb(states: int) -> None:
    """Leroux and Puterman 1992."""
    known = case("fetal_lamb_poisson_hmm")
    best = known["expected"]["computed"]["free_pi"][str(states)]
    x = np.array(known["data"]["x"], float)
    initial = np.full(states, 1 / states)
    move = np.full((states, states), 0.2 / (states - 1)) + (0.8 - 0.2 / (states - 1)) * np.eye(states)
    rates = [0.2, 4.0] if states == 2 else [0.2, 1.0, 4.0]
    fit = jem.fit(jem.HMM(initial, move, jem.Poisson(rates)), x, tol=1e-12, max_steps=4000)
    np.testing.assert_allclose(fit.log_likelihood, best["ll"], atol=1e-5)
    np.testing.assert_allclose(fit.model.emission.rate, best["lam"], rtol=1e-3)


@pytest.mark.parametrize("which", ["one_series", "three_series"])
def test_speed_and_accuracy(which: str) -> None:
    """Visser and Speekenbrink 2010, JSS 36(7): response times as one series, and as the three they are."""
    known = case("depmix_speed_gaussian_hmm")
    best = known["expected"]["computed"][which]
    x = np.array(known["data"]["rt"])[:, None]
    ends = np.cumsum(known["data"]["lengths_alt"])[:-1] if which == "three_series" else []
    model = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Gaussian([[5.5], [6.4]], np.full((2, 1, 1), 0.05)))
    fit = jem.fit(model, jem.Sequences.from_list(np.split(x, ends)), tol=1e-12, max_steps=2000)
    np.testing.assert_allclose(fit.log_likelihood, best["ll"], atol=1e-5)
    np.testing.assert_allclose(fit.model.emission.mean[:, 0], best["mu"], rtol=1e-4)
    np.testing.assert_allclose(np.sqrt(fit.model.emission.covariance[:, 0, 0]), best["sd"], rtol=1e-4)
    np.testing.assert_allclose(fit.model.transition, best["A"], rtol=1e-3)


STATES, LENGTHS = 3, (40, 25, 60)
INITIAL = np.array([0.5, 0.3, 0.2])
MOVE = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])


def steps(
    model: jem.HMM, x: np.ndarray, lengths: tuple[int, ...] = LENGTHS, keep: Callable[[jem.HMM], jem.HMM] = lambda m: m
) -> list[float]:
    """The log-likelihood before each of ten steps of plain EM: no prior, no floor."""
    sequences = jem.Sequences.from_list(np.split(x, np.cumsum(lengths)[:-1]))

    @jax.jit
    def step(model: jem.HMM) -> tuple[jem.HMM, jax.Array]:
        log_prob, pullback = model.e_step(sequences)
        return keep(model.m_step(pullback(jnp.ones(len(lengths))))), log_prob.sum()

    history = []
    for _ in range(10):
        model, log_likelihood = step(model)
        history.append(float(log_likelihood))
    return history


def theirs(peer: Any, x: np.ndarray, lengths: tuple[int, ...] = LENGTHS) -> list[float]:
    """hmmlearn's log-likelihood before each of its ten steps."""
    peer.init_params, peer.monitor_.tol = "", -np.inf
    peer.startprob_, peer.transmat_ = INITIAL, MOVE
    return list(peer.fit(x, lengths).monitor_.history)


def rows(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(sum(LENGTHS), 2)) + np.repeat(rng.integers(0, 3, 25), 5)[:, None] * 2.0


@pytest.mark.parametrize("kind", ["full", "diag", "spherical", "tied"])
def test_gaussian_steps_are_hmmlearns(kind: str, rng: np.random.Generator) -> None:
    x = rows(rng)
    mean = np.array([[0.0, 0.0], [2.0, 1.0], [4.0, 4.0]])
    eye = np.broadcast_to(np.eye(2), (3, 2, 2))
    emission = {
        "full": lambda: (jem.Gaussian(mean, eye), eye),
        "diag": lambda: (jem.DiagonalGaussian(mean, np.ones((3, 2))), np.ones((3, 2))),
        "spherical": lambda: (jem.SphericalGaussian(mean, np.ones(3)), np.ones(3)),
        "tied": lambda: (jem.TiedGaussian(mean, np.eye(2)), np.eye(2)),
    }[kind]()
    peer = hmmlearn.GaussianHMM(STATES, kind, min_covar=0, covars_prior=0, covars_weight=kind in ("diag", "spherical"))
    peer.means_, peer.covars_ = mean, emission[1]
    np.testing.assert_allclose(steps(jem.HMM(INITIAL, MOVE, emission[0]), x), theirs(peer, x), rtol=1e-8)


def test_counts_and_categories_are_hmmlearns(rng: np.random.Generator) -> None:
    counts = rng.poisson(np.repeat(rng.choice([1.0, 4.0, 9.0], 25), 5))
    rate = np.array([1.0, 5.0, 10.0])
    poisson = hmmlearn.PoissonHMM(STATES)
    poisson.lambdas_ = rate[:, None]
    ours = steps(jem.HMM(INITIAL, MOVE, jem.Poisson(rate)), counts)
    np.testing.assert_allclose(ours, theirs(poisson, counts[:, None]), rtol=1e-8)

    categories = np.minimum(counts // 3, 3)
    probs = np.array([[0.7, 0.1, 0.1, 0.1], [0.2, 0.4, 0.3, 0.1], [0.1, 0.1, 0.3, 0.5]])
    categorical = hmmlearn.CategoricalHMM(STATES)
    categorical.emissionprob_ = probs
    ours = steps(jem.HMM(INITIAL, MOVE, jem.Categorical(probs)), categories)
    np.testing.assert_allclose(ours, theirs(categorical, categories[:, None]), rtol=1e-8)


def test_mixture_emissions_are_hmmlearns(rng: np.random.Generator) -> None:
    """With fixed variances: hmmlearn 0.3.3 takes them about the means of the step before, which is not an M-step."""
    x = rows(rng)
    mean = rng.normal(size=(3, 2, 2)) + np.array([0.0, 2.0, 4.0])[:, None, None]
    weights = np.array([[0.5, 0.5], [0.3, 0.7], [0.6, 0.4]])
    peer = hmmlearn.GMMHMM(STATES, 2, covariance_type="diag", min_covar=0, params="stmw")
    peer.weights_, peer.means_, peer.covars_ = weights, mean, np.ones((3, 2, 2))
    model = jem.HMM(INITIAL, MOVE, jem.Mixture(weights, jem.DiagonalGaussian(mean, np.ones((3, 2, 2)))))

    def keep(model: jem.HMM) -> jem.HMM:
        components = replace(model.emission.components, variance=jnp.ones((3, 2, 2)))
        return replace(model, emission=replace(model.emission, components=components))

    np.testing.assert_allclose(steps(model, x, keep=keep), theirs(peer, x), rtol=1e-8)


@pytest.mark.parametrize(("implementation", "answer"), [("log", np.log(0.5) - 800), ("scaling", np.log(0.5) - 1200)])
def test_what_hmmlearn_answers_where_evidence_turns(implementation: str, answer: float) -> None:
    """Forty times what the one state hardly ever says, then sixty times what the other does not: 400 nats are lost."""
    rare = np.exp(-20.0)
    hmm = hmmlearn.CategoricalHMM(2, implementation=implementation, init_params="")
    hmm.startprob_, hmm.transmat_ = np.array([0.5, 0.5]), np.eye(2)
    hmm.emissionprob_ = np.array([[rare, 1 - rare], [1 - rare, rare]])
    x = np.repeat([0, 1], [40, 60])
    np.testing.assert_allclose(hmm.score(x[:, None]), answer, rtol=1e-6)
    ours = jem.HMM([0.5, 0.5], np.eye(2), jem.Categorical(hmm.emissionprob_))
    np.testing.assert_allclose(ours.log_prob(x.astype(float))[0], np.log(0.5) - 800, rtol=1e-6)
