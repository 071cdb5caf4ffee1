"""Of several starts: where they set out from, and which of them is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.fitting.finish import best_restart
from jaxem.latent.seeding import apart

pytestmark = pytest.mark.slow

GOOD, LATE, POOR, FAILED = (
    int(jem.Status[word]) for word in ("converged", "max_steps_reached", "covariance_collapsed", "nonfinite")
)


def test_the_highest_of_the_soundest_is_kept() -> None:
    objective = jnp.array(
        [[1.0, 2.0, 9.0, 9.0], [1.0, 2.0, 9.0, 8.0], [jnp.nan, -7.0, -jnp.inf, 3.0], [5.0, 5.0, 5.0, 4.0]]
    )
    status = jnp.array(
        [
            [GOOD, LATE, POOR, FAILED],
            [FAILED, POOR, POOR, FAILED],
            [FAILED, POOR, FAILED, FAILED],
            [LATE, GOOD, GOOD, GOOD],
        ]
    )
    assert best_restart(objective, status).tolist() == [1, 2, 1, 0]
    # Within rounding it is the first, whatever the type.
    close = jnp.array([100.0, 100.0 + 1e-5], jnp.float32)
    assert best_restart(close, jnp.array([GOOD, GOOD])).tolist() == 0


def rows() -> np.ndarray:
    """Two clusters, and four rows that are the same: on them a component has no limit but its floor."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(-2, 1, 40), rng.normal(2, 1, 40), [7.0] * 4])[:, None]


def starts(*means: tuple[float, float]) -> jem.Mixture:
    spread = [[1.0 if abs(mean) < 5 else 1e-3 for mean in pair] for pair in means]
    return jem.Mixture(jnp.full((len(means), 2), 0.5), jem.SphericalGaussian(np.array(means)[..., None], spread))


def test_a_collapsed_fit_loses_against_a_sound_one_however_it_is_fitted() -> None:
    x, models = rows(), starts((0.0, 7.0), (-2.0, 2.0))
    collapsed, sound = (jem.fit(jax.tree.map(lambda leaf, i=i: leaf[i], models), x) for i in range(2))
    assert (collapsed.status_name, sound.status_name) == ("covariance_collapsed", "converged")
    assert collapsed.objective > sound.objective + 1
    many = jax.tree.map(lambda leaf: leaf[None], models)
    for fit in (
        jem.fit(models, x),
        jax.tree.map(lambda leaf: leaf[0], jem.fit_many(many, x[None])),
        jem.fit_stream(models, jem.batches(x, rows=50)),
    ):
        assert fit.status_name == "converged"
        np.testing.assert_allclose(fit.objective, sound.objective, rtol=1e-9)


def test_if_all_have_collapsed_the_highest_is_returned_and_its_status_says_so() -> None:
    x, models = rows(), starts((0.0, 7.0), (-2.0, 7.0))
    each = [jem.fit(jax.tree.map(lambda leaf, i=i: leaf[i], models), x) for i in range(2)]
    fit = jem.fit(models, x)
    assert fit.status_name == "covariance_collapsed"
    np.testing.assert_allclose(fit.objective, max(one.objective for one in each), rtol=1e-9)


def test_of_several_starts_every_second_is_of_rows_taken_at_random() -> None:
    assert apart("mixed", 5).tolist() == [True, False, True, False, True]
    key, x = jax.random.key(0), jnp.asarray(rows())
    mixed, far, any_rows = (
        jem.Mixture.start(key, jem.SphericalGaussian, x, 2, restarts=4, method=method).components.mean
        for method in ("mixed", "kmeans++", "random")
    )
    np.testing.assert_array_equal(mixed[::2], far[::2])
    np.testing.assert_array_equal(mixed[1::2], any_rows[1::2])
    assert not np.array_equal(far[1::2], any_rows[1::2])
    alone = (jem.Mixture.start(key, jem.SphericalGaussian, x, 2, method=method) for method in ("mixed", "kmeans++"))
    np.testing.assert_array_equal(*(start.components.mean for start in alone))


def blood(seed: int) -> np.ndarray:
    """Five measurements of 215 people: a tight cluster of the healthy, and two wide, elongated ones beside it."""
    rng = np.random.default_rng(seed)

    def cluster(n: int, mean: list[float], spread: list[float], bend: float) -> np.ndarray:
        turn = rng.normal(size=(5, 5)) * bend + np.eye(5)
        return np.asarray(mean) + (rng.normal(size=(n, 5)) @ turn.T) * np.asarray(spread)

    return np.concatenate(
        [
            cluster(150, [110, 9, 1.7, 1.3, 2.5], [8, 2, 0.4, 0.4, 2], 0.3),
            cluster(35, [95, 17, 4, 1, -0.1], [15, 5, 2, 0.4, 0.4], 0.6),
            cluster(30, [122, 3.6, 1, 13, 17], [9, 2, 0.5, 9, 14], 0.6),
        ]
    )


def test_a_mixture_of_starts_finds_what_either_misses() -> None:
    """Where clusters are of very different shapes, k-means++ misses; where there are many alike, random rows do."""
    rng = np.random.default_rng(0)
    corners = 12.0 * np.stack(np.meshgrid(*[range(3)] * 2), axis=-1).reshape(-1, 2)
    alike = [np.repeat(corners, 20, axis=0) + rng.normal(size=(180, 2)) for _ in range(6)]
    short = {}
    for name, family, xs, k in (
        ("blood", jem.Gaussian, [blood(seed) for seed in range(6)], 3),
        ("alike", jem.SphericalGaussian, alike, 9),
    ):
        xs, best = jnp.asarray(np.stack(xs)), {}
        for method in ("kmeans++", "random"):
            starts = jem.start_many(jax.random.key(3), family, xs, k, restarts=24, method=method)
            each = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), starts)
            fits = jem.fit_many(each, jnp.repeat(xs, 24, axis=0), max_steps=2000)
            sound = np.isin(np.asarray(fits.status), (GOOD, LATE))
            best[method] = np.where(sound, np.asarray(fits.objective), -np.inf).reshape(len(xs), 24)
        top = np.maximum(*(found.max(1) for found in best.values()))[:, None] - 0.5
        # Of six groups of four starts, in how many none arrives.
        groups = {method: found.reshape(-1, 6, 4) for method, found in best.items()}
        groups["mixed"] = np.concatenate([groups["kmeans++"][..., ::2], groups["random"][..., 1::2]], axis=-1)
        short[name] = {method: float((found.max(-1) < top).mean()) for method, found in groups.items()}
    assert short["blood"]["mixed"] < 0.5 * short["blood"]["kmeans++"], short
    assert short["alike"]["mixed"] <= short["alike"]["random"], short
    assert (
        sum(each["mixed"] for each in short.values())
        < min(sum(each[method] for each in short.values()) for method in ("kmeans++", "random")) + 0.05
    ), short
