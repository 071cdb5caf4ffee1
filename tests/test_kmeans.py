"""K-means: scikit-learn's, from the same start, to the last digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

import jaxem as jem

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_same_start_same_end_as_scikit_learn(seed: int, lost: int) -> None:
    """Columns in different units, weights, and (lost) centres that no row is nearest to."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 3)) * [1, 5, 0.1] + [0, 100, 1e4]
    centres, weight = x[rng.choice(300, 6, replace=False)].copy(), rng.uniform(0.1, 2, 300)
    centres[:lost] = np.array([[1e5] * 3, [-1e5] * 3])[:lost]
    theirs = KMeans(6, init=centres, n_init=1, tol=0, max_iter=500).fit(x, sample_weight=weight)
    ours = jem.kmeans(jax.random.key(0), x, 6, weight=weight, centres=centres, max_steps=500)
    np.testing.assert_allclose(ours.inertia, theirs.inertia_, rtol=1e-9)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.centres, theirs.cluster_centers_, rtol=1e-9)
    assert jem.Status(int(ours.status)).name == "converged"


def test_restarts_find_what_scikit_learn_finds() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 2)) + 8 * rng.integers(0, 3, (400, 2))
    ours = jem.kmeans(jax.random.key(1), x, 9)
    np.testing.assert_allclose(ours.inertia, KMeans(9, n_init=10, random_state=0).fit(x).inertia_, rtol=1e-6)
    narrow = jem.kmeans(jax.random.key(1), x.astype(np.float32), 9)
    assert narrow.inertia.dtype == jnp.float32
    np.testing.assert_allclose(narrow.inertia, ours.inertia, rtol=1e-4)


def test_fewer_places_than_centres() -> None:
    found = jem.kmeans(jax.random.key(0), jnp.repeat(jnp.array([1.0, 5.0, 9.0]), 4), 5)
    assert found.inertia == 0
    assert set(found.centres.ravel().tolist()) == {1.0, 5.0, 9.0}


def test_rows_of_weight_zero_do_not_count() -> None:
    x = jnp.array([[0.0], [1.0], [8.0], [9.0], [np.nan]])
    found = jem.kmeans(jax.random.key(0), x, 2, weight=[1, 1, 1, 1, 0])
    assert found.inertia == 1.0


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
def test_units_change_nothing(scale: float) -> None:
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(300, 2)) + 6 * rng.integers(0, 2, (300, 2))).astype(np.float32)
    one, other = (jem.kmeans(jax.random.key(0), s * x, 4, restarts=3) for s in (np.float32(1), np.float32(scale)))
    np.testing.assert_allclose(other.inertia / scale**2, one.inertia, rtol=1e-4)
    assert jem.Status(int(other.status)).name == "converged"


def test_rows_that_do_not_count_have_a_nearest_centre() -> None:
    found = jem.kmeans(jax.random.key(0), [[0.0], [1.0], [8.0], [9.0], [1e9]], 2, weight=[1, 1, 1, 1, 0])
    assert found.labels[4] == found.labels[3] != found.labels[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="x holds values that are not finite"):
        jem.kmeans(jax.random.key(0), [[0.0], [np.nan]], 1)
    x = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="k is 4; with 3 rows it must be from 1 to 3"):
        jem.kmeans(jax.random.key(0), x, 4)
    with pytest.raises(ValueError, match=r"centres has shape \(3, 2\); it must be \(2, 2\)"):
        jem.kmeans(jax.random.key(0), x, 2, centres=x)
    with pytest.raises(ValueError, match="restarts is 0"):
        jem.kmeans(jax.random.key(0), x, 2, restarts=0)
