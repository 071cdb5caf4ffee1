"""Where a start sets out from: sizes that the data tell, and rows that no member can produce."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from families import MIXTURES, Example

KEY = jax.random.key(0)
SEEN = np.array([0.0, 2, 1, 2, 0, 1, np.nan, 2])


@pytest.mark.slow
def test_categories_and_totals_are_read_from_the_rows() -> None:
    weight = np.r_[np.ones(8), 0]
    x = np.r_[SEEN, 9]  # of weight zero: it tells nothing
    mixture = jem.Mixture.start(KEY, jem.Categorical, x, 2, weight=weight)
    assert mixture.components.probs.shape == (2, 3)
    assert jem.Mixture.start(KEY, jem.Binomial, SEEN, 2).components.total_count == 2
    assert jem.Mixture.start(KEY, jem.sized(jem.Binomial, total_count=7), SEEN, 2).components.total_count == 7
    chain = jem.HMM.start(KEY, jem.Categorical, [SEEN[:5], SEEN[5:]], 2)
    assert chain.emission.probs.shape == (2, 3)
    many = jem.start_many(KEY, jem.Categorical, [SEEN[:4], np.array([0.0, 4.0, 1.0])], 2)
    assert many.components.probs.shape == (2, 2, 5)
    sequences = [jem.Sequences.from_list([SEEN[:3]]), jem.Sequences.from_list([np.array([3.0, 0]), np.array([1.0])])]
    assert jem.start_many(KEY, jem.Categorical, sequences, 2).emission.probs.shape == (2, 2, 4)
    table = np.stack([SEEN, np.arange(8.0)], axis=1)[:6]
    product = jem.Mixture.start(KEY, jem.Product.of(jem.Categorical, jem.Poisson), table, 2)
    assert product.components.parts[0].probs.shape == (2, 3)


@pytest.mark.parametrize("family", [jem.Categorical, jem.Binomial])
def test_sizes_are_not_known_inside_jit(family: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot be read from rows inside jit.*pass jem.sized"):
        jax.jit(lambda x: jem.Mixture.start(KEY, family, x, 2))(jnp.ones(5))


SHARES = [[0.5, 0.6, 0.2], [-0.5, 1.0, 0.5], [0.0, 0.5, 0.5], [np.inf, 0.5, 0.5]]
OUTSIDE: dict[str, list[Any]] = {
    "gaussian": [[np.inf, 0.0], [-np.inf, np.inf]],
    "gaussian-5": [[np.inf] * 5],
    "tied": [[np.inf, 0.0]],
    "diagonal": [[np.inf, 0.0]],
    "diagonal-10": [[np.inf] * 10],
    "spherical": [[np.inf, 0.0]],
    "poisson": [-1.0, 2.5, np.inf],
    "product": [[0.0, -1.0, 0.0, 0.0], [np.inf, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, -np.inf]],
    "independent": [[2.0, 0.0, 1.0, 0.0], [0.0, 0.5, 1.0, 1.0]],
    "mixtures": [[np.inf]],
    "count-mixtures": [-1.0, 2.5],
    "bernoulli": [-1.0, 0.5, 2.0, np.inf],
    "binomial": [-1.0, 2.5, 7.0, np.inf],
    "categorical": [-1.0, 0.5, 4.0, np.inf],
    "independent-poisson": [[1.0, -1.0], [2.5, 3.0], [np.inf, 1.0]],
    "student-t": [[np.inf, 0.0]],
    "laplace": [np.inf, -np.inf],
    "factor-analysis": [[0.0, np.inf, 0.0, 1.0]],
    "ppca": [[0.0, np.inf, 0.0]],
    "linear-regression": [[0.0, 0.0, np.inf], [np.inf, 0.0, 1.0]],
    "logistic-regression": [[0.0, 0.0, 0.5], [1.0, 0.0, 2.0], [np.inf, 0.0, 1.0]],
    "poisson-regression": [[0.0, 0.0, -1.0], [0.0, 1.0, 2.5], [np.inf, 0.0, 1.0], [0.0, 0.0, np.inf]],
    "joint": [[0.0, 0.0, np.inf], [np.inf, 0.0, 1.0]],
    "exponential": [-1.0, np.inf],
    "gamma": [-1.0, 0.0, np.inf],
    "lognormal": [-1.0, 0.0, np.inf],
    "inverse-gaussian": [-1.0, 0.0, np.inf],
    "weibull": [-1.0, 0.0, np.inf],
    "censored-exponential": [[3.0, 2.0], [-1.0, -1.0], [-2.0, -1.0], [np.inf, np.inf]],
    "censored-gaussian": [[3.0, 2.0], [np.inf, np.inf]],
    "censored-weibull": [[3.0, 2.0], [-1.0, -1.0], [-2.0, -1.0], [np.inf, np.inf]],
    "geometric": [-1.0, 2.5, np.inf],
    "negative-binomial": [-1.0, 2.5, np.inf],
    "multinomial": [[-1.0, 4.0, 3.0], [2.5, 1.5, 2.0], [np.inf, 0.0, 1.0]],
    "beta": [-1.0, 0.0, 1.0, 2.0, np.inf],
    "dirichlet": SHARES,
    "von-mises": [np.inf],
    "zero-inflated": [-1.0, 2.5, np.inf],
    "bayes-net": [[2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, -1.0, 1.0]],
}
"""Of every family rows that no member can produce."""


@pytest.mark.slow
def test_sequences_may_have_weights() -> None:
    """They were taken for a table with gaps."""
    x = jem.Sequences.from_list([[0.0, 1.0], [2.0, 3.0, 4.0]])
    model = jem.HMM.start(KEY, jem.Poisson, x, 2, weight=[1.0, 2.0])
    again = jem.Sequences.from_list([[0.0, 1.0], [2.0, 3.0, 4.0], [2.0, 3.0, 4.0]])
    found, right = jem.fit(model, x, weight=[1.0, 2.0], max_steps=3), jem.fit(model, again, max_steps=3)
    np.testing.assert_allclose(found.model.emission.rate, right.model.emission.rate, rtol=1e-9)


def test_every_family_has_rows_that_it_cannot_produce() -> None:
    assert OUTSIDE.keys() == {example.name for example in MIXTURES}


@pytest.mark.parametrize("example", MIXTURES, ids=repr)
@pytest.mark.slow
def test_a_row_outside_the_support_is_ignored_by_a_start_and_told_by_a_fit(example: Example) -> None:
    rows, good = np.asarray(OUTSIDE[example.name]), np.asarray(example.rows(40))
    every, model = np.concatenate([rows, good]), example.model()
    inside = np.asarray(model.inside(every))
    assert not inside[: len(rows)].any(), rows[inside[: len(rows)]]
    assert inside[len(rows) :].all()
    if example.name == "bayes-net":
        with pytest.raises(ValueError, match="its categories are the whole numbers"):
            jem.fit(model, every)
        return
    if example.family is not None:
        model = jem.Mixture.start(KEY, example.family, every, 2)
        # In place of each a row of no weight.
        padded, weight = np.concatenate([good[: len(rows)], good]), np.r_[np.zeros(len(rows)), np.ones(len(good))]
        alone = jem.Mixture.start(KEY, example.family, padded, 2, weight=weight)
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(alone), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert jem.fit(model, every, max_steps=2).status_name == "impossible_data"


@pytest.mark.slow
@pytest.mark.parametrize("family", [jem.Poisson, jem.Gamma, jem.Beta, jem.Binomial])
def test_rows_of_which_none_is_possible_are_told_by_a_fit(family: Any) -> None:
    rows = np.full(6, -1.0)
    assert jem.fit(jem.Mixture.start(KEY, family, rows, 2), rows).status_name == "impossible_data"
