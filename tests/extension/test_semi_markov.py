"""A structure with two children, written in one file: it agrees with a sum over all that may be hidden."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from extension.semi_markov import SemiMarkov
from jaxem.core.pytree import replace

pytestmark = pytest.mark.slow
D = 3
SEQUENCES = [[0.0, 3.0, np.nan, 1.0, 5.0], [4.0, 0.0, 2.0], [2.0]]


def model_of(duration: Any = None, **fields: Any) -> SemiMarkov:
    duration = duration or jem.Categorical([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    own = {"initial": [0.3, 0.7], "transition": [[0.0, 1.0], [0.9, 0.1]], **fields}
    return SemiMarkov(own["initial"], own["transition"], duration, jem.Poisson([1.0, 3.5]), D)


def segmentations(model: SemiMarkov, x: np.ndarray) -> Iterator[tuple[list[tuple[int, int]], float]]:
    """All segments (state, steps) that cover x, the last perhaps beyond it, with their probability together with x."""
    initial, transition = np.asarray(model.initial), np.asarray(model.transition)
    last = np.exp(np.asarray(model.duration.log_prob(jnp.arange(D))))
    emits = np.exp(np.asarray(model.emission.log_prob(jnp.asarray(np.nan_to_num(x))))).T
    emits[np.isnan(x)] = 1

    def further(done: list[tuple[int, int]], at: int, p: float) -> Iterator[tuple[list[tuple[int, int]], float]]:
        if at >= len(x):
            yield done, p
            return
        for k, d in itertools.product(range(2), range(1, D + 1)):
            enters = transition[done[-1][0], k] if done else initial[k]
            yield from further([*done, (k, d)], at + d, p * enters * last[k, d - 1] * emits[at : at + d, k].prod())

    return further([], 0, 1.0)


def path_of(segments: list[tuple[int, int]], steps: int) -> tuple[int, ...]:
    return tuple(k for k, d in segments for _ in range(d))[:steps]


def counted(model: SemiMarkov, x: np.ndarray, allowed: Any = None) -> dict[str, Any]:
    """What is expected of one sequence, term by term."""
    found: dict[str, Any] = {
        "likelihood": 0.0,
        "posterior": np.zeros((len(x), 2)),
        "initial": np.zeros(2),
        "transition": np.zeros((2, 2)),
        "duration": np.zeros((2, D)),
        "seen": {},
    }
    for segments, p in segmentations(model, x):
        path = path_of(segments, len(x))
        if allowed is not None and any(a >= 0 and a != z for a, z in zip(allowed, path, strict=True)):
            continue
        found["likelihood"] += p
        found["initial"][segments[0][0]] += p
        for (i, _), (j, _) in itertools.pairwise(segments):
            found["transition"][i, j] += p
        for k, d in segments:
            found["duration"][k, d - 1] += p
        found["posterior"][np.arange(len(x)), path] += p
        *before, (state, steps) = segments
        seen = (*before, (state, steps - (sum(d for _, d in segments) - len(x))))  # up to the end of x
        found["seen"][seen] = found["seen"].get(seen, 0.0) + p
    return found | {k: found[k] / found["likelihood"] for k in ("posterior", "initial", "transition", "duration")}


@pytest.fixture(params=["categorical", "poisson"])
def model(request: pytest.FixtureRequest) -> SemiMarkov:
    return model_of(jem.Poisson([0.7, 1.2]) if request.param == "poisson" else None)


@pytest.fixture
def x() -> jem.Sequences:
    """What stands behind the end of a sequence is NaN."""
    sequences = jem.Sequences.from_list(SEQUENCES)
    return replace(sequences, values=jnp.where(sequences.there, sequences.values, jnp.nan))


def test_likelihood_posterior_and_path_are_those_of_all_segmentations(model: SemiMarkov, x: jem.Sequences) -> None:
    log_prob, posterior, path = model.log_prob(x), model.posterior(x), model.decode(x)
    for i, sequence in enumerate(SEQUENCES):
        want = counted(model, np.array(sequence))
        np.testing.assert_allclose(log_prob[i], np.log(want["likelihood"]), rtol=1e-12)
        np.testing.assert_allclose(posterior[i, : len(sequence)], want["posterior"], atol=1e-12)
        assert tuple(path[i, : len(sequence)].tolist()) == path_of(
            max(want["seen"], key=want["seen"].get), len(sequence)
        )
    assert not posterior[1, 3:].any()


def test_an_em_step_is_that_of_the_enumerated_counts(model: SemiMarkov, x: jem.Sequences) -> None:
    weight = np.array([1.0, 2.0, 0.5])
    _, pullback = model.e_step(x)
    stepped = model.m_step(pullback(jnp.asarray(weight)))
    each = [counted(model, np.array(sequence)) for sequence in SEQUENCES]
    total = {
        k: sum(w * one[k] for w, one in zip(weight, each, strict=True)) for k in ("initial", "transition", "duration")
    }
    np.testing.assert_allclose(stepped.initial, total["initial"] / total["initial"].sum(), rtol=1e-12)
    rows = total["transition"].sum(1, keepdims=True)
    np.testing.assert_allclose(stepped.transition, total["transition"] / rows, rtol=1e-12)
    duration = total["duration"] / total["duration"].sum(1, keepdims=True)
    if isinstance(model.duration, jem.Poisson):
        np.testing.assert_allclose(stepped.duration.rate, duration @ np.arange(D), rtol=1e-12)
    else:
        np.testing.assert_allclose(stepped.duration.probs, duration, rtol=1e-12)
    seen = [~np.isnan(sequence) for sequence in SEQUENCES]
    held = [w * one["posterior"][s] for w, one, s in zip(weight, each, seen, strict=True)]
    rows = np.concatenate([np.array(sequence)[s] for sequence, s in zip(SEQUENCES, seen, strict=True)])
    held = np.concatenate(held)
    np.testing.assert_allclose(stepped.emission.rate, rows @ held / held.sum(0), rtol=1e-12)
    q = [one.expected_log_prob(pullback(jnp.asarray(weight))) for one in (model, stepped)]
    assert q[1] > q[0]


def test_its_gradient_is_that_of_the_enumerated_likelihood(model: SemiMarkov, x: jem.Sequences) -> None:
    gradient = jax.grad(lambda model: model.log_prob(x).sum())(model)

    def last(m: SemiMarkov) -> Any:
        return jax.tree.leaves(m.duration)[0].ravel()[-1]

    def with_last(m: SemiMarkov, value: Any) -> SemiMarkov:
        moved = jax.tree.map(lambda a: a.ravel().at[-1].set(value).reshape(a.shape), m.duration)
        return replace(m, duration=moved)

    for get, put in [
        (lambda m: m.transition[0, 1], lambda m, v: replace(m, transition=m.transition.at[0, 1].set(v))),
        (lambda m: m.emission.rate[1], lambda m, v: replace(m, emission=jem.Poisson(m.emission.rate.at[1].set(v)))),
        (last, with_last),
    ]:
        step = 1e-5
        values = [
            sum(np.log(sum(p for _, p in segmentations(put(model, get(model) + h), np.array(s)))) for s in SEQUENCES)
            for h in (-step, step)
        ]
        np.testing.assert_allclose(get(gradient), (values[1] - values[0]) / (2 * step), rtol=1e-7)


def test_known_states_rule_out_the_others() -> None:
    model, sequence, labels = model_of(), np.array([0.0, 3.0, 1.0, 1.0]), [-1, 1, -1, 0]
    x = model.read(sequence)
    labelled = jem.Labelled(x, jnp.asarray([labels], jnp.int32))
    want = counted(model, sequence, labels)
    np.testing.assert_allclose(model.log_prob(labelled)[0], np.log(want["likelihood"]), rtol=1e-12)
    np.testing.assert_allclose(model.posterior(labelled)[0], want["posterior"], atol=1e-12)


def test_its_entropy_is_that_of_all_segmentations(x: jem.Sequences) -> None:
    model = model_of()
    p = np.array([p for _, p in segmentations(model, np.array(SEQUENCES[0]))])
    p = p[p > 0] / p.sum()
    np.testing.assert_allclose(jem.entropy(model, [SEQUENCES[0]]), -np.sum(p * np.log(p)), rtol=1e-10)


def test_durations_of_one_geometric_shape_are_a_hidden_markov_model() -> None:
    stay, x = np.array([0.3, 0.6]), [[1.0, 0.0, 4.0, 3.0], [2.0, 2.0]]
    switch = np.array([[0.0, 1.0], [1.0, 0.0]])
    model = SemiMarkov([0.4, 0.6], switch, jem.Geometric(1 - stay), jem.Poisson([1.0, 3.5]), 60)
    hmm = jem.HMM([0.4, 0.6], np.diag(stay) + switch * (1 - stay)[:, None], jem.Poisson([1.0, 3.5]))
    np.testing.assert_allclose(model.log_prob(x), hmm.log_prob(x), rtol=1e-10)
    np.testing.assert_allclose(model.posterior(x), hmm.posterior(x), atol=1e-10)


def drawn(rng: np.random.Generator, sequences: int, steps: int) -> list[np.ndarray]:
    """Sequences with stays of two or three steps in the first state, one or two in the second."""

    def one() -> np.ndarray:
        states: list[int] = []
        while len(states) < steps:
            k = len(states) and 1 - states[-1]
            states += [k] * int(rng.integers(2 - k, 4 - k))
        return rng.poisson(np.array([1.0, 8.0])[states[:steps]]).astype(float)

    return [one() for _ in range(sequences)]


def test_em_and_gradient_end_in_one_place_and_find_the_durations(rng: np.random.Generator) -> None:
    x = jem.Sequences.from_list(drawn(rng, 12, 20))
    start = model_of(
        jem.Categorical([[0.3, 0.3, 0.4], [0.4, 0.3, 0.3]]), initial=[0.5, 0.5], transition=[[0.0, 1.0], [1.0, 0.0]]
    )
    fit = jem.fit(start, x, tol=1e-10)
    trace = np.asarray(fit.trace)[: int(fit.steps)]
    assert fit.status_name == "converged"
    assert (np.diff(trace) > -1e-9).all()
    np.testing.assert_allclose(fit.model.duration.probs, [[0, 0.5, 0.5], [0.5, 0.5, 0]], atol=0.12)
    other = jem.fit(start, x, jem.LBFGS(), tol=1e-10)
    np.testing.assert_allclose(other.log_likelihood, fit.log_likelihood, atol=1e-4)
    fits = jem.fit_many(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start), [x, x], tol=1e-10)
    np.testing.assert_allclose(fits.log_likelihood, [fit.log_likelihood] * 2, rtol=1e-9)
    assert jem.free_parameters(start) == 1 + 4 + 2
    assert jem.fit(start, x, jem.HardEM(), max_steps=20).log_likelihood <= fit.log_likelihood
