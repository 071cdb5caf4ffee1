"""The lane engine: what it returns is what `fit` returns, whatever shapes and threads it goes through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.data.padding import padded_lengths
from jaxem.fitting.many import fit_many, queue

pytestmark = pytest.mark.slow


def ragged(rng: np.random.Generator, problems: int = 12) -> list[np.ndarray]:
    """Two clusters of 5 to 30 rows each."""
    return [
        np.concatenate([rng.normal(size=(rng.integers(5, 30), 2)), rng.normal(size=(rng.integers(5, 30), 2)) + 4])
        for _ in range(problems)
    ]


def member(models: jem.Mixture, index: int) -> jem.Mixture:
    return jax.tree.map(lambda leaf: leaf[index], models)


def assert_same(fits: jem.Fit, index: int, one: jem.Fit) -> None:
    np.testing.assert_allclose(fits.log_likelihood[index], one.log_likelihood, rtol=1e-10)
    assert int(fits.steps[index]) == int(one.steps)
    assert int(fits.status[index]) == int(one.status)
    for ours, theirs in zip(jax.tree.leaves(member(fits.model, index)), jax.tree.leaves(one.model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("prior", [None, jem.priors.Weak(1.0)])
def test_ragged_lists_with_restarts_equal_one_fit_at_a_time(rng: np.random.Generator, prior: object) -> None:
    xs = ragged(rng)
    starts = jem.start_many(jax.random.key(0), jem.Gaussian, xs, 2, restarts=3)
    fits = jem.fit_many(starts, xs, prior=prior, lanes=4)
    for index in (0, 5, 11):
        assert_same(fits, index, jem.fit(member(starts, index), xs[index], prior=prior))


def test_more_problems_than_lanes_fewer_and_one(rng: np.random.Generator) -> None:
    xs = np.stack([rng.normal(size=(20, 1)) + rng.choice([0, 5], (20, 1)) for _ in range(40)])
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2)
    wide, narrow = jem.fit_many(starts, xs, lanes=256), jem.fit_many(starts, xs, lanes=16)
    np.testing.assert_allclose(wide.log_likelihood, narrow.log_likelihood, rtol=1e-12)
    alone = jem.fit_many(jax.tree.map(lambda leaf: leaf[:1], starts), xs[:1])
    np.testing.assert_allclose(alone.log_likelihood, wide.log_likelihood[:1], rtol=1e-12)


def test_lanes_one_after_the_other_on_threads_give_the_same(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    xs = ragged(rng, 7)
    starts = jem.start_many(jax.random.key(0), jem.Gaussian, xs, 2)
    together = jem.fit_many(starts, xs)
    monkeypatch.setattr(queue, "LARGE", 0)
    monkeypatch.setattr(fit_many.os, "cpu_count", lambda: 2)
    apart = jem.fit_many(starts, xs)
    assert apart.log_likelihood.dtype == together.log_likelihood.dtype
    np.testing.assert_allclose(apart.log_likelihood, together.log_likelihood, rtol=1e-10)
    np.testing.assert_array_equal(apart.status, together.status)


def test_one_bad_problem_changes_no_other(rng: np.random.Generator) -> None:
    xs = np.stack([rng.normal(size=(24, 2)) for _ in range(6)])
    starts = jem.start_many(jax.random.key(0), jem.DiagonalGaussian, xs, 2)
    good = jem.fit_many(starts, xs)
    spoilt = xs.copy()
    spoilt[2, 3] = np.inf
    bad = jem.fit_many(starts, spoilt)
    assert bad.status_name[2] in {"nonfinite", "impossible_data"}
    assert not bad.converged[2]
    others = np.array([0, 1, 3, 4, 5])
    for ours, theirs in zip(jax.tree.leaves(bad.model), jax.tree.leaves(good.model), strict=True):
        np.testing.assert_array_equal(ours[others], theirs[others])


def test_weights_and_labels_go_with_their_problem(rng: np.random.Generator) -> None:
    xs = ragged(rng, 4)
    weight = [rng.integers(0, 3, len(x)).astype(float) for x in xs]
    labels = [np.where(np.arange(len(x)) < 3, 1, -1) for x in xs]
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2, weight=weight, labels=labels)
    fits = jem.fit_many(starts, xs, weight=weight, labels=labels)
    for index in range(4):
        one = jem.fit(member(starts, index), xs[index], weight=weight[index], labels=labels[index])
        assert_same(fits, index, one)


def test_active_components_are_as_if_there_were_no_others(rng: np.random.Generator) -> None:
    xs = np.stack([rng.normal(size=(30, 2)) for _ in range(5)])
    three = jem.start_many(jax.random.key(1), jem.Gaussian, xs, 4, active=np.full(5, 3))
    exact = jem.start_many(jax.random.key(1), jem.Gaussian, xs, 3)
    a, b = jem.fit_many(three, xs), jem.fit_many(exact, xs)
    np.testing.assert_array_equal(a.model.weights[:, 3], 0)
    # The fourth seed is drawn after the first three, so those are the same.
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-12)


def test_a_second_call_compiles_nothing(rng: np.random.Generator) -> None:
    xs = [x[:20] for x in ragged(rng, 6)]
    starts = jem.start_many(jax.random.key(0), jem.Gaussian, xs, 2)
    jem.fit_many(starts, xs, tol=1e-7)
    events: list[str] = []

    def listen(event: str, seconds: float, **details: object) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jem.fit_many(starts, xs, tol=1.01e-7, max_steps=999)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert events == []


def test_stop_leaves_what_is_done_and_names_the_rest(rng: np.random.Generator) -> None:
    xs = np.stack([rng.normal(size=(40, 1)) + 9.0 * (np.arange(40)[:, None] < 15) for _ in range(64)])
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2)
    calls = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 6

    seen: list[tuple[int, int]] = []
    fits = jem.fit_many(starts, xs, lanes=4, stop=stop, progress=lambda *counts: seen.append(counts))
    interrupted = np.asarray(fits.status) == jem.Status.interrupted
    assert 0 < interrupted.sum() < 64
    assert seen[-1] == (64 - int(interrupted.sum()), 64) or seen[-1][0] <= 64 - int(interrupted.sum())
    whole = jem.fit_many(starts, xs, lanes=4)
    np.testing.assert_allclose(fits.log_likelihood[~interrupted], whole.log_likelihood[~interrupted])
    assert not np.asarray(fits.converged)[interrupted].any()


def test_progress_counts_up_to_all(rng: np.random.Generator) -> None:
    xs = ragged(rng, 9)
    seen: list[tuple[int, int]] = []
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2, restarts=2)
    jem.fit_many(starts, xs, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_late_flags_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    xs = np.stack([rng.normal(size=(25, 1)) for _ in range(30)])
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2)
    prompt = jem.fit_many(starts, xs, lanes=8)
    monkeypatch.setattr(queue, "SIDE_BY_SIDE", queue.SIDE_BY_SIDE._replace(late=1))
    late = jem.fit_many(starts, xs, lanes=8)
    np.testing.assert_allclose(late.log_likelihood, prompt.log_likelihood, rtol=1e-12)
    np.testing.assert_array_equal(late.steps, prompt.steps)


def test_padded_lengths_waste_least() -> None:
    assert padded_lengths([10, 12, 200, 210], shapes=2).tolist() == [16, 216]
    assert padded_lengths([5] * 10, shapes=4).tolist() == [8]
    lengths = np.random.default_rng(0).integers(1, 300, 200)
    chosen = padded_lengths(lengths, shapes=3)
    assert len(chosen) == 3
    assert chosen[-1] >= lengths.max()

    def padding(shapes: np.ndarray) -> int:
        return int((shapes[np.searchsorted(shapes, lengths)] - lengths).sum())

    sizes = np.unique(-(-lengths // 8) * 8)
    best = min(padding(np.array([a, b, sizes[-1]])) for a in sizes for b in sizes if a < b < sizes[-1])
    assert padding(chosen) == best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xs": [np.zeros((3, 1)), np.zeros((0, 1))]}, r"xs\[1\] has no rows"),
        ({"xs": np.zeros((3, 4, 1))}, "xs holds 3 problems and models 2"),
        ({"xs": np.zeros((2, 4, 3))}, "x has shape"),
        ({"weight": np.ones((2, 3))}, "weight has shape"),
        ({"tol": -1.0}, "tol is -1"),
        ({"max_steps": -1}, "max_steps is -1"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    models = jem.Mixture(jnp.full((2, 1), 1.0), jem.SphericalGaussian(jnp.zeros((2, 1, 1)), jnp.ones((2, 1))))
    arguments: dict[str, object] = {"models": models, "xs": np.zeros((2, 4, 1)), **change}
    with pytest.raises(ValueError, match=message):
        jem.fit_many(**arguments)  # type: ignore[arg-type]
