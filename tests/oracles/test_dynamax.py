"""dynamax: the same steps where its priors can be switched off, and what it answers where probabilities underflow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem

pytestmark = pytest.mark.slow

peer = pytest.importorskip("dynamax.hidden_markov_model", reason="dynamax is installed for Python 3.11 only")

STATES, SEQUENCES, STEPS, TIMES = 3, 4, 60, 10


@pytest.fixture
def data(rng: np.random.Generator) -> np.ndarray:
    """Counts that change their level every ten steps."""
    level = np.repeat(rng.integers(1, 8, (SEQUENCES, STEPS // 10)), 10, axis=1)
    return rng.poisson(level).astype(float)


@pytest.fixture
def chain(rng: np.random.Generator) -> dict[str, jax.Array]:
    return {
        "initial_probs": jnp.asarray(rng.dirichlet(np.ones(STATES))),
        "transition_matrix": jnp.asarray(rng.dirichlet(np.full(STATES, 3.0), STATES)),
    }


FLAT = {"initial_probs_concentration": 1.0, "transition_matrix_concentration": 1.0, "emission_prior_concentration": 1.0}


def ours(chain: dict[str, jax.Array], emission: jem.Distribution, x: np.ndarray) -> jem.Fit:
    model = jem.HMM(chain["initial_probs"], chain["transition_matrix"], emission)
    return jem.fit(model, jem.Sequences(jnp.asarray(x), np.full(SEQUENCES, STEPS)), tol=0.0, max_steps=TIMES)


@pytest.fixture(autouse=True)
def _its_own_promotions() -> object:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_categories_step_by_step(data: np.ndarray, chain: dict[str, jax.Array], rng: np.random.Generator) -> None:
    x, probs = np.minimum(data, 3), rng.dirichlet(np.ones(4), STATES)
    hmm = peer.CategoricalHMM(STATES, 1, 4, **FLAT)
    start = hmm.initialize(jax.random.key(0), emission_probs=jnp.asarray(probs)[:, None], **chain)
    _, trace = hmm.fit_em(*start, jnp.asarray(x, int)[..., None], num_iters=TIMES, verbose=False)
    mine = np.asarray(ours(chain, jem.Categorical(probs), x).trace)
    # Its trace has the constant of its prior besides.
    np.testing.assert_allclose(trace - trace[0], mine[:TIMES] - mine[0], rtol=1e-10)


def test_counts_after_ten_steps(data: np.ndarray, chain: dict[str, jax.Array]) -> None:
    rates = np.array([1.0, 3.0, 7.0])
    hmm = peer.PoissonHMM(STATES, 1, emission_prior_rate=0.0, **FLAT)
    start = hmm.initialize(jax.random.key(0), emission_rates=jnp.asarray(rates)[:, None], **chain)
    found, _ = hmm.fit_em(*start, jnp.asarray(data)[..., None], num_iters=TIMES, verbose=False)
    mine = ours(chain, jem.Poisson(rates), data).model
    np.testing.assert_allclose(found.emissions.rates[:, 0], mine.emission.rate, rtol=1e-8)
    np.testing.assert_allclose(found.transitions.transition_matrix, mine.transition, rtol=1e-8)
    np.testing.assert_allclose(found.initial.probs, mine.initial, rtol=1e-8)


TURNS = np.where(np.arange(100)[:, None] < 40, [[-20.0, 0.0]], [[0.0, -20.0]])


@pytest.mark.parametrize(
    ("initial", "transition", "seen", "truth", "its"),
    [
        ([1.0, 0.0], [[0.5, 0.5], [0.5, 0.5]], [[-1000.0, 0.0]], -1000.0, 0.0),
        ([1.0, 0.0], np.eye(2), [[0.0, 0.0], [-np.inf, 0.0]], -np.inf, 0.0),
        ([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], [[0.0, 0.0], [-200.0, -200.0]], -200.0, -200.0),
        ([1.0, 0.0], [[1 - 1e-9, 1e-9], [0.0, 1.0]], [[0.0, -np.inf], [-np.inf, 0.0]], np.log(1e-9), np.log(1e-9)),
        ([0.5, 0.5], np.eye(2), TURNS, np.log(0.5) - 800, -35.2319),
    ],
    ids=["improbable", "impossible", "an event of -200 nats", "a rare transition", "evidence that turns"],
)
def test_what_it_answers_where_probabilities_underflow(
    initial: list[float], transition: np.ndarray, seen: np.ndarray, truth: float, its: float, dtype: type
) -> None:
    """Three of these are finite and wrong, in either float type."""
    parts = [jnp.asarray(part, dtype) for part in (initial, transition, seen)]
    np.testing.assert_allclose(peer.hmm_filter(*parts).marginal_loglik, its, rtol=1e-5)
    exact = jem.chains.log_normalizer(jnp.log(parts[0]), jnp.log(parts[1]), parts[2])
    np.testing.assert_allclose(exact, truth, rtol=1e-6)
