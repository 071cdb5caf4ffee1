"""Whatever holds numbers is read the same at every door: gaps as NaN, and floats of the model's type."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import jaxem as jem
from jaxem.data.arrays import numbers
from jaxem.data.prepare import as_floats, as_labels
from jaxem.data.problems import as_problems
from jaxem.data.sequences import as_sequences
from jaxem.distributions.base import type_of
from jaxem.fitting.many import batching
from jaxem.fitting.regularisation import regulariser

NAN = np.nan
PLAIN = np.array([[1.0, NAN], [2.0, 5.0], [NAN, 7.0], [3.0, 0.0]])
MASKED = np.ma.array([[1.0, -99.0], [2.0, 5.0], [-99.0, 7.0], [3.0, 0.0]], mask=np.isnan(PLAIN))
MODEL = jem.Mixture([0.5, 0.5], jem.DiagonalGaussian([[0.0, 1.0], [3.0, 3.0]], [[1.0, 1.0], [1.0, 4.0]]))
NARROW = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), MODEL)
KEY = jax.random.key(0)

GAPS: dict[str, Any] = {
    "masked": MASKED,
    "masked integers": MASKED.astype(int),
    "masked objects": MASKED.astype(object),
    "rows of masked arrays": list(MASKED),
    "None in lists": [[1, None], [2, 5], [None, 7], [3, 0]],
    "objects": np.array([[1, None], [2.0, Decimal(5)], [NAN, Fraction(7)], [True + 2, np.int8(0)]], dtype=object),
    "polars": pl.DataFrame({"a": [1, 2, None, 3], "b": [None, 5.0, 7.0, 0.0]}),
    "polars decimals": pl.DataFrame({"a": [1, 2, None, 3], "b": [None, Decimal("5"), Decimal("7"), Decimal("0")]}),
    "Arrow": pa.table({"a": [1, 2, None, 3], "b": pa.array([None, 5, 7, 0], pa.float32())}),
    "a batch of Arrow": pa.record_batch({"a": [1, 2, None, 3], "b": [None, 5, 7, 0]}),
    "columns of polars": [pl.Series([1, None]), pl.Series([2, 5]), pl.Series([None, 7]), pl.Series([3, 0])],
    "structured": np.array(
        [(1.0, NAN), (2.0, 5.0), (NAN, 7.0), (3.0, 0.0)], dtype=[("a", np.float64), ("b", np.float32)]
    ),
    "big-endian": PLAIN.astype(">f8"),
    "long double": PLAIN.astype(np.longdouble),
    "half": PLAIN.astype(np.float16),
    "bfloat16": PLAIN.astype(ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("kind", GAPS)
def test_gaps_and_types_of_every_kind_read_the_same(kind: str) -> None:
    read = as_floats(GAPS[kind], np.dtype(np.float64))
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, PLAIN)
    assert as_floats(GAPS[kind], np.dtype(np.float32)).dtype == np.float32


def test_frames_of_pandas() -> None:
    pd = pytest.importorskip("pandas")
    for a, b in (("Int64", "Float64"), ("Int64", "Float32"), ("float64", "object")):
        frame = pd.DataFrame({"a": pd.array([1, 2, None, 3], a), "b": pd.array([None, 5, 7, 0], b)})
        np.testing.assert_array_equal(numbers(frame), PLAIN)
    flags = pd.DataFrame({"a": [1.5, 2.0], "b": [True, False]})
    np.testing.assert_array_equal(numbers(flags), [[1.5, 1.0], [2.0, 0.0]])
    np.testing.assert_array_equal(numbers(pd.Series([True, None], dtype="boolean")), [1.0, NAN])
    np.testing.assert_array_equal(as_labels(pd.Series([1, None], dtype="Int64")), [1, -1])
    with pytest.raises(
        TypeError, match="x: column 'b' holds values of type str, 'oops' in row 1; it must hold numbers"
    ):
        numbers(pd.DataFrame({"a": [1.0, 2.0], "b": [1, "oops"]}))


def test_columns_and_rows_that_hold_something_else_are_named() -> None:
    cases: dict[str, Any] = {
        "x: column 'b' holds values of type str, 'oops' in row 1": pl.DataFrame({"a": [1, 2], "b": [None, "oops"]}),
        r"x holds values of type str, 'oops' in row 1, column 0": [[1.0, None], ["oops", 2.0]],
        r"x holds values of type <U4, 'oops' in row 2": np.array(["1", "2", "oops"]),
        "numbers written as text: turn .*astype": np.array([["1.5", "2"]]),
        r"x holds values of type list, an array in row 0": np.array([[1.0], None], dtype=object),
        "datetime64.* for example days": np.array(["2020-01-01"], "datetime64[D]"),
        "timedelta64.* for example days": np.array([1], "timedelta64[s]"),
        "its real and imaginary parts|their real and imaginary parts": np.array([1j]),
        "x is a dict; pass its columns as one array": {"a": [1.0]},
        "x is a generator; pass an array": (i for i in range(3)),
        "x is 'data.csv'; .* read the file first": "data.csv",
        "x is None; it must be an array": None,
        "x is a LazyFrame, which has not been read yet": pl.LazyFrame({"a": [1.0]}),
    }
    for words, x in cases.items():
        with pytest.raises(TypeError, match=words):
            numbers(x)
    with pytest.raises(ValueError, match=r"different shapes, \(2,\) and \(1,\); its rows must be alike"):
        numbers([[1.0, 2.0], [3.0]])


def test_a_sparse_matrix_is_not_filled_silently() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="x is a sparse matrix"):
        numbers(sparse.csr_array(np.eye(2)))


@pytest.mark.slow
def test_every_door_honours_a_mask() -> None:
    seen = jem.incomplete(jnp.asarray(PLAIN))
    assert isinstance(jem.incomplete(MASKED), jem.Incomplete)
    for verb in ("log_prob", "posterior", "predict", "impute"):
        np.testing.assert_array_equal(getattr(MODEL, verb)(MASKED), getattr(MODEL, verb)(seen))
    started = [jem.Mixture.start(KEY, jem.DiagonalGaussian, x, 2).components.mean for x in (MASKED, PLAIN)]
    np.testing.assert_array_equal(*started)
    fits = [jem.fit(MODEL, x, max_steps=2).log_likelihood for x in (MASKED, PLAIN)]
    np.testing.assert_array_equal(*fits)
    (batch,) = jem.batches(MASKED)
    np.testing.assert_array_equal(batch, PLAIN)
    xs, _, _ = as_problems([MASKED, MASKED[:2]], None, None)
    np.testing.assert_array_equal(xs[1], PLAIN[:2])
    np.testing.assert_array_equal(as_problems(np.ma.stack([MASKED, MASKED]), None, None)[0][1], PLAIN)
    sequences = jem.Sequences.from_list([MASKED, MASKED[:2]])
    np.testing.assert_array_equal(sequences.values[0], PLAIN)
    assert sequences.patterns > 0
    with pytest.raises(ValueError, match="x holds values that are not finite"):
        jem.kmeans(0, MASKED, 2)
    with pytest.raises(ValueError, match="x has missing cells in row 0; Dirichlet reads rows that are whole"):
        jem.fit(jem.Dirichlet([1.0, 2.0]), np.ma.array([[0.5, 0.5]], mask=[[True, False]]))
    with pytest.raises(ValueError, match="weight has entries that are negative or not finite, nan in row 1"):
        jem.fit(MODEL, PLAIN, weight=np.ma.array([1.0, 9.0, 1.0, 1.0], mask=[False, True, False, False]))


def test_a_mask_of_steps_and_nan_in_sequences_are_the_same_as_a_mask() -> None:
    values = np.ma.array([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]], mask=[[False, True, False], [False] * 3])
    for made in (
        jem.Sequences(values, [3, 2]),
        jem.Sequences.from_list([values[0], values[1, :2]]),
        as_sequences([[1.0, None, 3.0], [4.0, 5.0]]),
    ):
        np.testing.assert_array_equal(made.seen, [[True, False, True], [True, True, False]])
        assert not made.patterns


def test_three_axes_are_sequences_of_one_length() -> None:
    cube = np.arange(12.0).reshape(2, 3, 2)
    for read in (as_sequences(cube), as_sequences(cube, (2,))):
        np.testing.assert_array_equal(read.values, cube)
        assert read.length.tolist() == [3, 3]
    assert as_sequences(cube[..., :1], ()).values.shape == (2, 3)
    assert as_sequences(cube[0], ()).values.shape == (3, 2)
    assert as_sequences(cube[0], (2,)).values.shape == (1, 3, 2)
    assert as_sequences(np.zeros((4, 3)), ()).values.shape == (4, 3)
    assert as_sequences(np.array([np.zeros(2), np.zeros(3)], dtype=object)).length.tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"may be one sequence or 4 of one step; pass x\[:, 0\] for the former"):
        as_sequences(np.zeros((4, 1)), ())
    with pytest.raises(ValueError, match=r"pass one sequence \[T, ...\], several of one length"):
        as_sequences(np.zeros((2, 2, 3, 2)), (2,))


@pytest.mark.slow
def test_an_hmm_starts_from_an_array_of_three_axes_and_reads_what_it_draws() -> None:
    x = np.array([0.0, 1.0, 9.0, 8.0, 9.0, 1.0]).reshape(1, -1, 1)
    model = jem.HMM.start(0, "gaussian", x, 2)
    assert model.log_prob(x).shape == (1,)
    np.testing.assert_array_equal(model.log_prob(x[0]), model.log_prob(x))
    assert model.log_prob(model.sample(0, 1, 6)).shape == (1,)


def test_a_list_of_arrays_is_sequences_inside_jit() -> None:
    lists = [jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0])]
    inside = jax.jit(lambda arrays: as_sequences(arrays, ()).values)(lists)
    assert inside.shape == (2, 3)
    np.testing.assert_array_equal(inside[1, :1], [4.0])


def test_labels_that_are_not_known() -> None:
    for labels in (
        [1, None, 0],
        np.ma.array([1, 7, 0], mask=[0, 1, 0]),
        pl.Series([1, None, 0]),
        pa.array([1, None, 0]),
    ):
        np.testing.assert_array_equal(as_labels(labels), [1, -1, 0])
    np.testing.assert_array_equal(as_labels([[1], None, [0, 1]], steps=2), [[1, -1], [-1, -1], [0, 1]])
    _, _, labels = as_problems([np.zeros(2), np.zeros(3)], None, [[0, 1], None])
    np.testing.assert_array_equal(np.concatenate(labels), [0, 1, -1, -1, -1])
    _, _, labels = as_problems(np.zeros((2, 3)), None, [None, [0, 1, -1]])
    np.testing.assert_array_equal(labels, [[-1] * 3, [0, 1, -1]])


def test_the_type_is_the_models() -> None:
    x = np.array([[0.5, 1.0], [2.0, 3.0]])  # float32 holds these as they are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in (x, x.astype(np.float32), x.astype(np.float16), x[:, ::-1].astype(">f4")[:, ::-1]):
            assert MODEL.read(each).dtype == np.float64
            assert NARROW.read(each).dtype == np.float32
    with pytest.warns(UserWarning, match=r"x is float64 and the model float32, so numbers are rounded"):
        assert NARROW.read(x + 1e-9).dtype == np.float32
    with pytest.warns(UserWarning, match=r"x is int64 and the model float32"):
        NARROW.read(np.full((1, 2), 2**24 + 1))
    x = np.arange(24.0).reshape(12, 2) % 7
    weight = np.linspace(0.1, 0.9, 12)
    fits = [jem.fit(model, x, weight=weight, max_steps=1) for model in (MODEL, NARROW)]
    assert [fit.log_likelihood.dtype.name for fit in fits] == ["float64", "float32"]
    np.testing.assert_allclose(*(fit.log_likelihood for fit in fits), rtol=1e-5)


def test_a_model_has_one_type_the_widest_that_it_was_given() -> None:
    narrow = jem.Poisson(np.array([1.0, 2.0], np.float32))
    assert type_of(jem.Mixture([0.5, 0.5], narrow)) == np.float32
    mixed = jem.Mixture(np.array([0.5, 0.5]), narrow)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(mixed)} == {"float64"}
    product = jem.Product((jem.Poisson(np.float32(1.0)), jem.Poisson(np.float64(1.0))))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(product)} == {"float64"}
    assert type_of(jem.Poisson(np.float16(1.0))) == np.float32


def test_problems_of_different_types_keep_their_digits() -> None:
    xs, _, _ = as_problems([np.array([0, 1, 2]), np.array([0.5, 1.5])], None, None)
    models = jem.Poisson(jnp.array([1.0, 1.0]))
    fits = jem.fit_many(models, [np.array([0, 1, 2]), np.array([2.0, 1.0])], max_steps=5)
    np.testing.assert_allclose(fits.model.rate, [1.0, 1.5])
    padded = batching.batched(jem.Poisson(1.0), xs, None, None, 1)
    np.testing.assert_array_equal(padded[0].x[1, :2], [0.5, 1.5])


@pytest.mark.slow
def test_each_problem_has_its_own_tolerance() -> None:
    x = np.array([0.0, 2.0, 8.0, 12.0, 3.0, 1.0, 5.0])
    starts = [jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 9.0]))] * 2
    tols = [1e-2, 1e-10]
    fits = jem.fit_many(starts, [x, x], tol=tols)
    assert fits.steps.tolist() == [int(jem.fit(starts[0], x, tol=tol).steps) for tol in tols]
    assert fits.steps[0] < fits.steps[1]


def test_pseudo_statistics_of_another_type_are_made_the_models() -> None:
    model = jem.Poisson(np.float32(2.0))
    floor = model.floor(jnp.zeros(1, jnp.float32), jnp.ones(1, jnp.float32))
    prior = jax.tree.map(lambda leaf: np.ones(leaf.shape), floor)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(regulariser(floor, prior, model, None, jnp.ones(1)))} == {
        "float32"
    }
