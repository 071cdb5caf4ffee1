"""What a sum over paths is: that of all K^T paths, whatever underflows; its derivatives are posteriors."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem import chains
from jaxem.chains import batching, normalizer, scan_exact, scan_scaled
from jaxem.chains.best_path import best_score
from jaxem.chains.chain import Chain
from jaxem.core import semirings
from jaxem.core.pytree import replace

pytestmark = pytest.mark.slow

Rng = np.random.Generator
INF = np.inf


def chain(rng: Rng, steps: int, states: int, each: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-potentials; with `each`, a transition for each step."""
    shape = (steps - 1, states) if each else (states,)
    transition = np.log(rng.dirichlet(np.ones(states), shape))
    return np.log(rng.dirichlet(np.ones(states))), transition, rng.normal(size=(steps, states)) * 3


def paths(initial: Any, transition: Any, seen: Any, reset: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Every path and its log-potential."""
    steps, states = np.shape(seen)
    every = np.array(list(itertools.product(range(states), repeat=steps)))
    score = np.asarray(initial)[every[:, 0]] + np.asarray(seen)[np.arange(steps), every].sum(1)
    for t in range(1, steps):
        move = transition if np.ndim(transition) == 2 else transition[t - 1]
        starts = reset is not None and reset[t]
        score = score + (initial[every[:, t]] if starts else move[every[:, t - 1], every[:, t]])
    return every, score


def log_sum(values: np.ndarray) -> float:
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum())) if np.isfinite(top) else -INF


shapes = pytest.mark.parametrize(("steps", "states"), [(1, 3), (6, 1), (5, 3), (3, 9)])
METHODS = ["scan", "blocked", "associative"]
methods = pytest.mark.parametrize("method", METHODS)
each_or_one = pytest.mark.parametrize("each", [False, True])


@jax.jit
def everything(*potentials: Any) -> Any:
    return (
        chains.log_normalizer(*potentials),
        *(chains.forward_backward(*potentials, per_step=per_step) for per_step in (False, True)),
        chains.viterbi(*potentials),
        chains.filter(*potentials),
    )


@shapes
@each_or_one
def test_everything_is_that_of_all_paths(steps: int, states: int, each: bool, rng: Rng) -> None:
    potentials = chain(rng, steps, states, each)
    every, score = paths(*potentials)
    weight = np.exp(score - log_sum(score))
    marginals = np.stack([np.bincount(every[:, t], weight, states) for t in range(steps)])
    moves = np.zeros((max(steps - 1, 0), states, states))
    for t in range(steps - 1):
        np.add.at(moves[t], (every[:, t], every[:, t + 1]), weight)
    normalizer, summed, apart, (path, best), (value, filtered) = everything(*potentials)
    np.testing.assert_allclose(normalizer, log_sum(score), rtol=1e-12)
    np.testing.assert_allclose(summed.marginals, marginals, atol=1e-12)
    np.testing.assert_allclose(summed.transitions, moves.sum(0), atol=1e-12)
    np.testing.assert_allclose(apart.transitions, moves, atol=1e-12)
    np.testing.assert_allclose(best, score.max(), rtol=1e-12)
    np.testing.assert_array_equal(path, every[np.argmax(score)])
    np.testing.assert_allclose(value, log_sum(score), rtol=1e-12)
    np.testing.assert_allclose(filtered[-1], marginals[-1], atol=1e-12)


@each_or_one
def test_derivatives_are_those_of_the_plain_recursion(each: bool, rng: Rng) -> None:
    """Reverse, forward, and second order in every way that JAX has."""
    potentials = tuple(map(jnp.asarray, chain(rng, 5, 3, each)))

    def plain(*potentials: jax.Array) -> jax.Array:
        initial, transition, seen = potentials
        return normalizer.plain(Chain(initial[:, None], transition[..., None], seen[..., None]), semirings.log_sum)[0]

    ours, theirs = (
        jax.jit(
            lambda *p, f=f: (jax.grad(f, (0, 1, 2))(*p), jax.hessian(f, (1, 2))(*p), jax.jacrev(jax.grad(f, 2))(*p))
        )(*potentials)
        for f in (chains.log_normalizer, plain)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_batch_is_a_loop(rng: Rng) -> None:
    """Under vmap, over any of the arguments, in value and gradient; and in two dimensions."""
    initial, transition, seen = (jnp.stack(p) for p in zip(*(chain(rng, 6, 3) for _ in range(4)), strict=True))
    length, whole = jnp.array([6, 1, 4, 5]), jnp.array(6)
    run = jax.jit(jax.value_and_grad(chains.log_normalizer, (0, 1, 2)))
    loop = [run(initial[i], transition[i], seen[i], length[i]) for i in range(4)]
    for a, b in zip(
        jax.tree.leaves(jax.jit(jax.vmap(run))(initial, transition, seen, length)),
        jax.tree.leaves(jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)
    shared = jax.jit(jax.vmap(run, (None, None, 0)))(initial[0], transition[0], seen)
    np.testing.assert_allclose(shared[1][1][2], run(initial[0], transition[0], seen[2], whole)[1][1], atol=1e-12)
    square = jax.jit(jax.vmap(jax.vmap(chains.log_normalizer, (None, 0, None)), (0, None, 0)))
    here, there = square(initial, transition, seen)[3, 1], run(initial[3], transition[1], seen[3], whole)[0]
    np.testing.assert_allclose(here, there, rtol=1e-12)
    path, score = jax.jit(jax.vmap(chains.viterbi))(initial, transition, seen)
    alone = jax.jit(chains.viterbi)(initial[2], transition[2], seen[2])
    np.testing.assert_allclose(score[2], alone[1], rtol=1e-12)
    np.testing.assert_array_equal(path[2], alone[0])


forward_backward = jax.jit(chains.forward_backward)


def test_padding_masks_and_resets(rng: Rng) -> None:
    initial, transition, seen = chain(rng, 7, 3)
    bad = seen.copy()
    bad[4:] = np.nan
    short = forward_backward(initial, transition, seen[:4])
    padded = forward_backward(initial, transition, bad, 4)
    np.testing.assert_allclose(padded.log_normalizer, short.log_normalizer, rtol=1e-14)
    np.testing.assert_allclose(padded.marginals[:4], short.marginals, rtol=1e-14)
    np.testing.assert_array_equal(padded.marginals[4:], 0)
    np.testing.assert_allclose(padded.transitions, short.transitions, rtol=1e-14)
    gradient = jax.grad(lambda seen: chains.log_normalizer(initial, transition, seen, 4))(jnp.asarray(bad))
    np.testing.assert_array_equal(gradient[4:], 0)
    assert chains.viterbi(initial, transition, bad, 4)[0].tolist()[4:] == [-1] * 3

    mask = np.array([True, False, True, True, False, True, True])
    missing = np.where(mask[:, None], seen, 0)
    hidden = np.where(mask[:, None], seen, np.nan)
    np.testing.assert_allclose(
        chains.log_normalizer(initial, transition, hidden, mask=mask),
        chains.log_normalizer(initial, transition, missing),
        rtol=1e-14,
    )

    reset = np.array([False, False, True, False, False, True, False])
    every, score = paths(initial, transition, seen, reset)
    together = forward_backward(initial, transition, seen, reset=reset)
    np.testing.assert_allclose(together.log_normalizer, log_sum(score), rtol=1e-12)
    parts = [forward_backward(initial, transition, seen[a:b]) for a, b in ((0, 2), (2, 5), (5, 7))]
    np.testing.assert_allclose(together.marginals, np.concatenate([p.marginals for p in parts]), atol=1e-12)
    np.testing.assert_allclose(together.transitions, sum(p.transitions for p in parts), atol=1e-12)
    path, best = jax.jit(chains.viterbi)(initial, transition, seen, reset=reset)
    np.testing.assert_allclose(best, score.max(), rtol=1e-12)
    np.testing.assert_array_equal(path, every[np.argmax(score)])


def test_draws_come_from_the_posterior(rng: Rng) -> None:
    potentials = chain(rng, 4, 3)
    every, score = paths(*potentials)
    draws = np.asarray(chains.sample_posterior(jax.random.key(0), *potentials, n=20_000))
    exact = np.exp(score - log_sum(score))
    counted = np.bincount(draws @ 3 ** np.arange(3, -1, -1), minlength=81) / len(draws)
    assert np.abs(counted - exact[np.argsort(every @ 3 ** np.arange(3, -1, -1))]).max() < 0.015


# Where a filter that scales by one number a step returns a finite wrong answer: dynamax 0.0 and -0.69 for the first
# two, hmmlearn "scaling" another path for the fourth. `(initial, transition, evidence, truth)`; the first two are
# probabilities.
TURNS = np.where(np.arange(100)[:, None] < 40, [[-20.0, 0.0]], [[0.0, -20.0]])
HOSTILE = {
    "only the unlikely state is possible": ([1, 0], [[0.5, 0.5], [0.5, 0.5]], [[-1000, 0]], -1000.0),
    "no path": ([1, 0], [[1, 0], [0, 1]], [[0, 0], [-INF, 0]], -INF),
    "an event of -200 nats": ([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], [[0, 0], [-200, -200]], -200.0),
    "evidence that turns": ([0.5, 0.5], [[1, 0], [0, 1]], TURNS, np.log(0.5) - 800),
    "a rare transition": ([1, 0], [[1 - 1e-9, 1e-9], [0, 1]], [[0, -INF], [-INF, 0]], np.log(1e-9)),
    "a gap beyond every float": ([0.5, 0.5], [[1, 0], [0, 1]], [[0, -1e15], [-1e16, 0]], np.log(0.5) - 1e15),
}


@partial(jax.jit, static_argnums=0)
def slope_and_best(method: str, *potentials: jax.Array) -> Any:
    value = partial(chains.log_normalizer, method=method)
    return jax.value_and_grad(value, 2)(*potentials), chains.viterbi(*potentials)[1]


@methods
@pytest.mark.parametrize("name", HOSTILE)
def test_what_underflows_is_not_lost(name: str, method: str, dtype: Any) -> None:
    initial, transition, seen, truth = HOSTILE[name]
    with np.errstate(divide="ignore"):
        potentials = [jnp.asarray(p, dtype) for p in (np.log(initial), np.log(transition), np.asarray(seen, float))]
    (value, gradient), best = slope_and_best(method, *potentials)
    np.testing.assert_allclose(value, truth, rtol=2e-7 if dtype == jnp.float32 else 1e-12)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(1), np.isfinite(truth), atol=1e-5)
    best = float(best)
    assert best <= truth + 1e-6 * abs(truth) or best == truth
    assert best >= truth - len(seen) * np.log(2) - 1e-6 * abs(truth) or best == truth


def test_left_to_right_with_gaps_over_700_nats(rng: Rng, dtype: Any) -> None:
    """Ten states that are only left forwards; most steps are hundreds of nats less likely in the state they need."""
    states, steps = 10, 40
    transition = np.eye(states) * 0.5 + np.eye(states, k=1) * 0.5
    transition[-1, -1] = 1
    with np.errstate(divide="ignore"):
        log_initial, log_transition = np.log(np.eye(states)[0]), np.log(transition)
    seen = -rng.uniform(0, 900, size=(steps, states))
    exact = log_initial + seen[0]
    for t in range(1, steps):
        exact = np.array([log_sum(exact + log_transition[:, j]) for j in range(states)]) + seen[t]
    found = chains.log_normalizer(*(jnp.asarray(p, dtype) for p in (log_initial, log_transition, seen)))
    np.testing.assert_allclose(found, log_sum(exact), rtol=1e-12 if dtype == jnp.float64 else 1e-6)


def test_two_hundred_thousand_steps_in_float32(rng: Rng) -> None:
    """Right to a hundredth of a nat, and the posteriors sum to one at every step."""
    steps = 200_000
    transition = np.log(np.array([[0.95, 0.05], [0.1, 0.9]]))
    seen = (rng.normal(size=(steps, 2)) * 2).astype(np.float32)
    seen -= np.float32(seen.mean())
    initial = np.log(np.array([0.5, 0.5]))
    exact = chains.log_normalizer(initial, transition, seen.astype(float))
    single = chains.forward_backward(initial.astype(np.float32), transition.astype(np.float32), seen)
    assert single.log_normalizer.dtype == jnp.float32
    assert abs(float(single.log_normalizer) - float(exact)) < 0.01 + 6e-8 * abs(float(exact))
    np.testing.assert_allclose(single.marginals.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(single.transitions.sum(), steps - 1, rtol=1e-5)


@pytest.mark.parametrize("states", [3, 9])
def test_ways_agree(states: int, rng: Rng, dtype: Any) -> None:
    """One scale for all states, where that is exact, and an exponent for each; evidence swings by thousands."""
    initial, transition, _ = chain(rng, 30, states)
    transition[0, 0] = -30.0
    seen = rng.normal(size=(30, states, 20)) * 10.0 ** rng.integers(0, 4, size=(30, 1, 1))
    seen[4] = -INF
    seen[4, 0] = 0
    start = jnp.asarray(rng.random((30, 20)) < 0.1)
    one = Chain(
        *(jnp.asarray(p, dtype) for p in (initial[:, None], transition[..., None], seen)),
        jnp.asarray(rng.integers(1, 31, 20), jnp.int32),
        start,
    )
    assert scan_scaled.is_dense(one)
    fine = {"rtol": 1e-11, "atol": 1e-11} if dtype == jnp.float64 else {"rtol": 2e-5, "atol": 2e-5}
    ways = [jax.jit(lambda c, way=way: normalizer._posterior_by(way, c))(one) for way in (scan_scaled, scan_exact)]
    for a, b in zip(*map(jax.tree.leaves, ways), strict=True):
        np.testing.assert_allclose(a, b, **fine)


@jax.jit
def by_its_method(one: Chain) -> tuple[Any, Any]:
    return normalizer.expectations(one), normalizer.filtered(one)


@each_or_one
@pytest.mark.parametrize("steps", [2, 3, 50])
def test_methods_agree(steps: int, each: bool, rng: Rng, dtype: Any) -> None:
    """With padding, resets and a structural zero; sequences of all lengths, one of them impossible."""
    initial, transition, _ = chain(rng, steps, 3, each)
    transition[..., 0, 2] = -INF
    seen = rng.normal(size=(steps, 3, 5)) * 4
    seen[0, :, 3] = -INF
    start = jnp.asarray(rng.random((steps, 5)) < 0.2).at[0].set(False)
    length = jnp.asarray([1, 2, steps, steps, steps - 1], jnp.int32)
    parts = (jnp.asarray(p, dtype) for p in (initial[:, None], transition[..., None], seen))
    one = Chain(*parts, length, start)
    fine = {"rtol": 1e-11, "atol": 1e-11} if dtype == jnp.float64 else {"rtol": 2e-5, "atol": 2e-5}
    (wanted, ahead), *others = (by_its_method(replace(one, method=method)) for method in METHODS)
    there = ((np.arange(steps)[:, None] < np.asarray(length)) & np.isfinite(wanted[0]))[:, None]
    for found, filtered in others:
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(a, b, **fine)
        np.testing.assert_allclose(filtered[0], ahead[0], **fine)
        np.testing.assert_allclose(np.where(there, filtered[1], 0), np.where(there, ahead[1], 0), **fine)


@methods
def test_a_thousand_steps_far_below_every_float(method: str, rng: Rng, dtype: Any) -> None:
    """Against the recursion in log space, with transitions that are dense and that are not."""
    run = jax.jit(partial(chains.forward_backward, method=method))
    for rare in (1e-3, 1e-60):
        transition = np.log(np.array([[1 - rare, rare], [rare, 1 - rare]]))
        seen = np.where(rng.random((1_000, 1)) < 0.5, [[-50.0, 0.0]], [[0.0, -50.0]])
        exact = np.log([0.5, 0.5]) + seen[0]
        for t in range(1, len(seen)):
            exact = np.array([log_sum(exact + transition[:, j]) for j in range(2)]) + seen[t]
        found = run(*(jnp.asarray(p, dtype) for p in (np.log([0.5, 0.5]), transition, seen)))
        fine = 1e-12 if dtype == jnp.float64 else 3e-6
        np.testing.assert_allclose(found.log_normalizer, log_sum(exact), rtol=fine)
        np.testing.assert_allclose(found.marginals.sum(1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("method", ["scan", "blocked", "associative"])
def test_evidence_beyond_all_rounding(method: str, dtype: Any) -> None:
    """A state that nothing enters, whose covariance has collapsed: rows are -1e36 there, and one is 108."""
    initial = jnp.array([-1.0, -9.0], dtype)
    moves = jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]], dtype)
    evidence = jnp.stack([jnp.full(4, -5.0, dtype), jnp.full(4, -1e36, dtype)], 1).at[2, 1].set(108)
    value, slope = jax.value_and_grad(chains.log_normalizer, 2)(initial, moves, evidence, method=method)
    np.testing.assert_allclose(value, -21, rtol=1e-6)
    np.testing.assert_allclose(slope, [[1, 0]] * 4, atol=1e-6)


def test_a_million_steps_take_little_memory() -> None:
    """Beside the data, a step of Baum-Welch holds 3.25 times as much, and nothing of steps x states x states."""
    steps, states = 1_000_000, 4
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((states,), (states, states), (steps, states))]

    def counts(*potentials: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = chains.forward_backward(*potentials)
        return found.log_normalizer, found.transitions

    needed = jax.jit(counts).lower(*shapes).compile().memory_analysis()
    assert needed.temp_size_in_bytes + needed.output_size_in_bytes < 4 * steps * states * 4


@pytest.mark.parametrize("shift", [-70.0, -30.0, 30.0, 70.0, 1e4])
def test_potentials_need_not_be_normalised(shift: float, rng: Rng, dtype: Any) -> None:
    """A constant more on every transition is that constant, once a step, more in the answer."""
    initial, transition, seen = chain(rng, 20, 3)
    transition[1, 2] = -35.0
    potentials = [jnp.asarray(p, dtype) for p in (initial, transition, seen)]
    shifted = forward_backward(potentials[0], jnp.asarray(transition + shift, dtype), potentials[2])
    plain = forward_backward(*potentials)
    fine = 1e-12 if dtype == jnp.float64 else 1e-6
    wanted = float(plain.log_normalizer) + 19 * shift
    np.testing.assert_allclose(shifted.log_normalizer, wanted, rtol=fine, atol=fine * 19 * abs(shift))
    np.testing.assert_allclose(shifted.marginals, plain.marginals, atol=fine * max(10.0, abs(shift)))


def test_blocks_of_sequences_are_all_of_them(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    initial, transition, _ = chain(rng, 6, 3)
    one = Chain(
        jnp.asarray(initial)[:, None],
        jnp.asarray(transition)[..., None],
        jnp.asarray(rng.normal(size=(6, 3, 7))),
        jnp.asarray(rng.integers(1, 7, 7), jnp.int32),
    )
    together = normalizer.expectations(one)
    monkeypatch.setattr(batching, "BLOCK", 3)
    for a, b in zip(*map(jax.tree.leaves, (together, normalizer.expectations(one))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@methods
def test_not_a_number_is_not_a_number(method: str, rng: Rng) -> None:
    initial, transition, seen = chain(rng, 5, 3)
    value = jax.jit(partial(chains.log_normalizer, method=method))
    for bad in (np.nan, np.inf):
        spoilt = seen.copy()
        spoilt[2, 1] = bad
        assert np.isnan(value(initial, transition, spoilt))


def test_any_sum_may_be_taken(rng: Rng) -> None:
    """The recursion with `maximum` for its sum is the best path, and that is what the rule says too."""
    initial, transition, seen = chain(rng, 6, 3)
    one = Chain(jnp.asarray(initial)[:, None], jnp.asarray(transition)[..., None], jnp.asarray(seen)[..., None])
    np.testing.assert_allclose(normalizer.plain(one, semirings.maximum), best_score(one), rtol=1e-12)
    used = jax.grad(lambda seen: best_score(replace(one, log_likelihood=seen))[0])(one.log_likelihood)
    np.testing.assert_array_equal(jnp.argmax(used[..., 0], axis=1), chains.viterbi(initial, transition, seen)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_likelihood": np.zeros(3)}, r"log_likelihood has shape \(3,\); it must be \[steps, states\]"),
        ({"log_initial": np.zeros(3)}, r"log_initial has shape \(3,\); with 2 states"),
        ({"log_transition": np.zeros((2, 3))}, r"log_transition has shape \(2, 3\); with 2 states and 4 steps"),
        ({"length": 5}, "length is 5; with 4 steps"),
        ({"method": "fast"}, "method is 'fast'; it must be one of auto, scan, blocked, associative"),
        ({"mask": np.ones(3)}, r"mask has shape \(3,\)"),
        ({"reset": np.ones(3)}, r"reset has shape \(3,\)"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    good = {"log_initial": np.zeros(2), "log_transition": np.zeros((2, 2)), "log_likelihood": np.zeros((4, 2))}
    with pytest.raises(ValueError, match=message):
        chains.log_normalizer(**{**good, **change})
