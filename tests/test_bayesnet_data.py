"""What a Bayesian network reads: dicts, frames, texts; and which categories there are at all."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxem as jem

NAN = float("nan")
GRAPH = {"class": [], "A": ["class"], "B": ["class"], "C": ["class"]}
SIZES = {"A": 3, "B": 2, "C": 4}


def people(n: int = 60) -> dict[str, np.ndarray]:
    """Answers from one upward, of two hidden classes."""
    rng = np.random.default_rng(0)
    which = rng.random(n) < 0.4
    probs = {name: rng.dirichlet(np.ones(size), 2) for name, size in SIZES.items()}
    return {
        name: np.array([1 + rng.choice(SIZES[name], p=p[int(c)]) for c in which], float) for name, p in probs.items()
    }


@pytest.mark.slow
def test_codes_from_one_upward_have_no_category_zero() -> None:
    """As poLCA counts: 2 - 1 + 2 x ((3 - 1) + (2 - 1) + (4 - 1)) = 13 free numbers, not 19; and the same fit."""
    answers = people()
    start = jem.BayesNet.start(jax.random.key(0), GRAPH, answers, {"class": 2})
    assert jem.free_parameters(start) == 13
    assert [start.table(name)[..., 0].tolist() for name in SIZES] == [[0.0, 0.0]] * 3
    fit = jem.fit(start, answers)
    assert fit.converged
    assert jem.free_parameters(fit.model) == 13
    less = {name: column - 1 for name, column in answers.items()}
    tables = {"class": start.table("class")} | {name: start.table(name)[..., 1:] for name in SIZES}
    same = jem.fit(jem.BayesNet(GRAPH, tables), less)
    np.testing.assert_allclose(fit.log_likelihood, same.log_likelihood, rtol=1e-12)
    assert jem.free_parameters(same.model) == 13
    # With cells hidden nobody is imputed to have given an answer that does not exist.
    gaps = {name: np.where(np.arange(60) % 7 == i, NAN, column) for i, (name, column) in enumerate(answers.items())}
    partly = jem.fit(start, gaps, max_steps=20)
    assert jem.free_parameters(partly.model) == 13
    assert all((np.asarray(partly.model.posterior(gaps)[name])[:, 0] == 0).all() for name in SIZES)
    # Who says how many there are has them all.
    said = jem.BayesNet.start(jax.random.key(0), GRAPH, answers, {"class": 2, "A": 4, "B": 3, "C": 5})
    assert jem.free_parameters(said) == 19


TEXTS = {"weather": ["sun", "rain", None, "rain", "sun"], "wet": [0, 1, 1, None, 0]}
RAIN = {"weather": [], "wet": ["weather"]}
NET = jem.BayesNet(
    RAIN, {"weather": [0.4, 0.6], "wet": [[0.1, 0.9], [0.8, 0.2]]}, outcomes={"weather": ["rain", "sun"]}
)
CODES = np.array([[1, 0], [0, 1], [NAN, 1], [0, NAN], [1, 0]])


def pandas_frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(TEXTS)


FRAMES = {
    "dict": lambda: TEXTS,
    "pandas": pandas_frame,
    "pandas, nullable": lambda: pandas_frame().convert_dtypes(),
    "pandas, categories": lambda: pandas_frame().astype({"weather": "category"}),
    "polars": lambda: pl.DataFrame(TEXTS),
    "polars, as an enumeration": lambda: pl.DataFrame(TEXTS).with_columns(pl.col("weather").cast(pl.Categorical)),
    "arrow": lambda: pl.DataFrame(TEXTS).to_arrow(),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_are_read_by_name(kind: str) -> None:
    frame = FRAMES[kind]()
    np.testing.assert_array_equal(NET.log_prob(frame), NET.log_prob(CODES))
    np.testing.assert_array_equal(NET.posterior(frame)["weather"], NET.posterior(CODES)["weather"])
    np.testing.assert_array_equal(NET.decode(frame), NET.decode(CODES))
    assert jem.fit(NET, frame, max_steps=2).log_likelihood == jem.fit(NET, CODES, max_steps=2).log_likelihood
    start = jem.BayesNet.start(jax.random.key(0), RAIN, frame)
    assert dict(start.outcomes) == {"weather": ("rain", "sun")}
    np.testing.assert_array_equal(start.table("wet"), jem.BayesNet.start(jax.random.key(0), RAIN, CODES).table("wet"))


def test_a_column_that_is_missing_is_hidden() -> None:
    hidden = np.column_stack([np.full(5, NAN), CODES[:, 1]])
    for frame in (pl.DataFrame(TEXTS).select("wet"), {"wet": TEXTS["wet"]}):
        np.testing.assert_array_equal(NET.log_prob(frame), NET.log_prob(hidden))
        start = jem.BayesNet.start(jax.random.key(0), RAIN, frame, {"weather": ["rain", "sun"]})
        assert jem.fit(start, frame).log_likelihood == jem.fit(start, hidden).log_likelihood
        assert dict(start.outcomes) == {"weather": ("rain", "sun")}


def test_texts_are_saved_with_the_network(tmp_path: Any) -> None:
    jem.save(tmp_path / "net", NET)
    again = jem.load(tmp_path / "net")
    assert again.outcomes == NET.outcomes
    np.testing.assert_array_equal(again.log_prob(TEXTS), NET.log_prob(TEXTS))


def test_what_cannot_be_read_is_said() -> None:
    tables = {"weather": [0.4, 0.6], "wet": [[0.1, 0.9], [0.8, 0.2]]}
    wrong = [
        (lambda: NET.log_prob({"weather": ["rain", "snow"]}), "x: weather holds 'snow' in row 1, which is none of its "
         "categories; they are rain, sun"),
        (lambda: NET.log_prob({"wet": ["yes"]}), "x: wet holds 'yes' in row 0, which is none of its categories; the "
         "network has no texts for it: give `outcomes`"),
        (lambda: NET.log_prob(pl.DataFrame({"wet": [1], "day": [3]})), "'day' is no variable; they are weather, wet"),
        (lambda: NET.log_prob({"wet": [1, 2.5]}), "wet holds 2.5 in row 1"),
        (lambda: jem.BayesNet(RAIN, tables, outcomes={"wet": ["no"]}), "'wet' has 2 categories; its outcomes are"),
        (lambda: jem.BayesNet(RAIN, tables, outcomes={"day": ["no"]}), "outcomes speaks of 'day', which is no"),
        (lambda: jem.BayesNet.start(jax.random.key(0), RAIN, TEXTS, {"weather": 3}), "categories says that 'weather' "
         "has 3, and its column holds the texts ['rain', 'sun']; give all texts in place of the number"),
    ]  # fmt: skip
    for call, message in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    with pytest.raises(TypeError, match="x: wet holds a list in row 0; a cell is a number or a text"):
        NET.log_prob({"wet": np.array([[1], None], dtype=object)})


def test_rows_of_tables_that_never_occur() -> None:
    """A common ancestor says which categories two parents can have together."""
    graph = {"root": [], "left": ["root"], "right": ["root"], "both": ["left", "right"]}
    net = jem.BayesNet(
        graph, {"root": [0.2, 0.8], "left": np.eye(2), "right": np.eye(2), "both": np.full((2, 2, 3), 1 / 3)}
    )
    assert jem.free_parameters(net) == 1 + 0 + 0 + 2 * 2
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), net)
    assert jem.free_parameters(batch).tolist() == [5, 5]
    tied = jem.BayesNet(graph, {"root": [1.0, 0.0], "left": np.full((2, 2), 0.5), "both": np.full((2, 2, 2), 0.5)},
                        tied={"right": "left"})  # fmt: skip
    assert jem.free_parameters(tied) == 0 + 1 + 4
