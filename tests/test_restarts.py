"""Of several starts: where they set out from, and which of them is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.fitting.fit import best_restart

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
    assert (collapsed.words, sound.words) == ("covariance_collapsed", "converged")
    assert collapsed.objective > sound.objective + 1
    many = jax.tree.map(lambda leaf: leaf[None], models)
    for fit in (
        jem.fit(models, x),
        jax.tree.map(lambda leaf: leaf[0], jem.fit_many(many, x[None])),
        jem.fit_stream(models, jem.batches(x, rows=50)),
    ):
        assert fit.words == "converged"
        np.testing.assert_allclose(fit.objective, sound.objective, rtol=1e-9)


def test_if_all_have_collapsed_the_highest_is_returned_and_its_status_says_so() -> None:
    x, models = rows(), starts((0.0, 7.0), (-2.0, 7.0))
    each = [jem.fit(jax.tree.map(lambda leaf, i=i: leaf[i], models), x) for i in range(2)]
    fit = jem.fit(models, x)
    assert fit.words == "covariance_collapsed"
    np.testing.assert_allclose(fit.objective, max(one.objective for one in each), rtol=1e-9)
