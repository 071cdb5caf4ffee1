"""Fits over batches that are read again for every step: what `fit` finds on the whole, in little memory."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import jaxem as jem
from jaxem.fitting import regularisation
from jaxem.fitting.sources.streamed import Pairwise
from jaxem.fitting.sources.summary import DatasetSummary
from test_compilation import compilations

pytestmark = pytest.mark.slow

SOLVERS = {
    "EM": jem.EM(),
    "HardEM": jem.HardEM(),
    "AnnealedEM": jem.AnnealedEM([4.0, 2.0]),
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Anderson": jem.Anderson(jem.EM()),
    "Gradient": jem.Gradient(optax.adam(0.05)),
}


def rows(n: int = 700, dtype: Any = float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, 2)) + 3.0 * rng.integers(0, 2, size=(n, 1)) + 100).astype(dtype)


def start(x: np.ndarray, restarts: int | None = None, family: Any = jem.Gaussian) -> jem.Mixture:
    return jem.Mixture.start(jax.random.key(1), family, x[:50], 2, restarts=restarts)


def assert_same(found: jem.Fit, wanted: jem.Fit, rtol: float = 1e-9) -> None:
    assert found.status_name == wanted.status_name
    assert (int(found.steps), int(found.passes)) == (int(wanted.steps), int(wanted.passes))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-9)


class Parts:
    """Batches of rows between some places, that remember how often they were read."""

    def __init__(self, x: Any, places: list[int], weight: np.ndarray | None = None) -> None:
        self.x, self.weight, self.places, self.reads = x, weight, [*places, len(x)], 0

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        for a, b in zip(self.places[:-1], self.places[1:], strict=True):
            yield self.x[a:b] if self.weight is None else (self.x[a:b], self.weight[a:b])


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_of_one_look_ends_where_fit_does(name: str) -> None:
    solver, family = SOLVERS[name], jem.Gaussian if name == "EM" else jem.SphericalGaussian
    x, weight = rows(), np.random.default_rng(1).uniform(0, 2, 700)
    given = {"prior": jem.priors.Weak(), "max_steps": 6}
    # Ragged, one of them empty, and one without weight.
    weight[300:400] = 0
    batches = Parts(x, [0, 128, 128, 300, 400, 640], weight)
    model = start(x, family=family)
    found = jem.fit_stream(model, batches, solver, **given)
    assert_same(found, jem.fit(model, x, solver, weight=weight, **given))
    assert batches.reads == 1 + int(found.passes)


def test_restarts_share_each_batch_and_the_best_is_returned() -> None:
    x = rows()
    models = start(x, 3, jem.SphericalGaussian)
    assert_same(jem.fit_stream(models, jem.batches(x, rows=256)), jem.fit(models, x))


def test_missing_cells_and_rows_of_which_nothing_was_seen() -> None:
    x = rows()
    x[50:350:7, 0] = np.nan
    x[::101] = np.nan
    model = start(rows(), family=jem.DiagonalGaussian)
    wanted = jem.fit(model, x, prior=jem.priors.Weak(), max_steps=4)
    assert_same(jem.fit_stream(model, jem.batches(x, rows=200), prior=jem.priors.Weak(), max_steps=4), wanted)


def test_sequences_of_any_lengths_with_gaps_and_weights() -> None:
    rng = np.random.default_rng(2)
    sequences = [rng.normal(size=(int(steps), 2)) for steps in rng.integers(2, 9, size=19)]
    sequences[3][1] = np.nan
    sequences[17][0, 1] = np.nan
    sequences[18] = rng.normal(size=(30, 2))
    weight = rng.uniform(0, 2, 19)
    weight[18] = 0
    model = jem.HMM.start(jax.random.key(0), jem.DiagonalGaussian, jem.Sequences.from_list(sequences), 2)
    found = jem.fit_stream(model, Parts(sequences, [0, 6, 12], weight), max_steps=4)
    assert_same(found, jem.fit(model, sequences, weight=weight, max_steps=4))


def test_a_bayesian_network_with_hidden_cells() -> None:
    net = jem.BayesNet({"a": [], "b": ["a"]}, {"a": [0.3, 0.7], "b": [[0.5, 0.5], [0.2, 0.8]]})
    x = np.array(net.sample(jax.random.key(0), 50))
    x[:20:3, 0], x[30::4, 1], x[7] = np.nan, np.nan, np.nan
    assert_same(jem.fit_stream(net, jem.batches(x, rows=16), max_steps=4), jem.fit(net, x, max_steps=4))


def test_what_says_how_wide_the_data_are_is_the_same_rows_as_for_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinned while they are read, without knowing how many there will be."""
    monkeypatch.setattr(regularisation, "SCALE_ROWS", 40)
    monkeypatch.setattr("jaxem.fitting.sources.summary.SCALE_ROWS", 40)
    for n in (39, 40, 41, 160, 161, 700):
        x = np.arange(float(n))
        found = DatasetSummary(jem.Poisson(1.0), None)
        for batch in jem.batches(x, rows=23):
            found.add(batch)
        np.testing.assert_array_equal(found.sampled()[0], x[:: regularisation.spacing(n)])


def test_files_give_the_rows_that_are_in_them(tmp_path: Path) -> None:
    x = rows(1000, np.float32)
    x[5, 1] = np.nan
    weight = np.linspace(0, 1, 1000, dtype=np.float32)
    table = pa.table({"b": pa.array(x[:, 1], from_pandas=True), "w": weight, "a": x[:, 0], "t": ["text"] * 1000})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=77)
    pa.feather.write_feather(table, tmp_path / "t.arrow", chunksize=300)
    with pa.ipc.new_stream(tmp_path / "s.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=300)
    np.save(tmp_path / "x.npy", x)
    for name in ("t.parquet", "t.arrow", "s.arrow"):
        read = list(jem.batches(tmp_path / name, ["a", "b"], weight="w", rows=128))
        assert [len(part) for part, _ in read] == [128] * 7 + [104]
        assert read[0][0].dtype == np.float32
        np.testing.assert_array_equal(np.concatenate([part for part, _ in read]), x)
        np.testing.assert_array_equal(np.concatenate([weights for _, weights in read]), weight)
    twice = jem.batches([tmp_path / "t.parquet", tmp_path / "t.arrow"], ["a"], rows=1500)
    assert [len(part) for part in twice] == [1500, 500]
    mapped = jem.batches(tmp_path / "x.npy", rows=600)
    np.testing.assert_array_equal(np.concatenate(list(mapped)), x)
    whole_numbers = pa.table({"a": pa.array([1, None, 3]), "b": [True, False, True], "w": [2, 0, 1]})
    pq.write_table(whole_numbers, tmp_path / "i.parquet")
    (read,) = jem.batches(tmp_path / "i.parquet", weight="w")
    np.testing.assert_array_equal(read[0], [[1, 1], [np.nan, 0], [3, 1]])
    np.testing.assert_array_equal(read[1], [2, 0, 1])
    with pytest.raises(ValueError, match=r"column t of .*t.parquet holds string; it must hold numbers"):
        list(jem.batches(tmp_path / "t.parquet", ["t"]))
    with pytest.raises(ValueError, match=r"has no column c; it has b, w, a, t"):
        jem.batches(tmp_path / "t.parquet", ["c"])
    with pytest.raises(ValueError, match=r"must all be of one kind, of .parquet"):
        jem.batches(tmp_path / "t.csv")


def test_a_second_fit_compiles_nothing() -> None:
    x = rows()
    jem.fit_stream(start(x), jem.batches(x, rows=300), max_steps=2)
    with compilations() as found:
        jem.fit_stream(start(x), jem.batches(x[::-1], rows=300), max_steps=2, tol=1e-3)
    assert found[0] == 0


def test_a_few_batches_are_held_however_many_there_are() -> None:
    """The arrays that a generator made and that are still alive when it makes the next."""
    made, most, bytes_on_device = list[weakref.ref](), 0, 0

    class Many:
        def __iter__(self) -> Iterator[np.ndarray]:
            nonlocal most, bytes_on_device
            rng = np.random.default_rng(0)
            for _ in range(60):
                batch = rng.normal(size=(500, 2))
                made.append(weakref.ref(batch))
                most = max(most, sum(one() is not None for one in made))
                bytes_on_device = max(bytes_on_device, sum(array.nbytes for array in jax.live_arrays()) - before)
                yield batch
                del batch

    model = start(rows(), family=jem.SphericalGaussian)
    before = sum(array.nbytes for array in jax.live_arrays())
    found = jem.fit_stream(model, Many(), max_steps=2)
    assert len(made) == 60 * (1 + int(found.passes))
    assert most <= 3
    # A batch and its weights are 12 kB; the rows that stand for all, 30,000 of them, are gone when the steps begin.
    assert bytes_on_device < 60_000


def test_float32_sums_of_millions_of_rows_are_right() -> None:
    """Against float64."""
    x = np.random.default_rng(0).normal(size=2_500_000).astype(np.float32)

    class Doubled:
        def __iter__(self) -> Iterator[np.ndarray]:
            for part in np.split(x, 50):
                yield part
                yield part

    model = jem.DiagonalGaussian(np.zeros(1, np.float32), np.ones(1, np.float32))
    found = jem.fit_stream(model, Doubled(), max_steps=1)
    wide = x.astype(float)
    assert found.log_likelihood.dtype == jnp.float32
    variance = wide.var()
    exact = -0.5 * 2 * len(x) * (np.log(2 * np.pi * variance) + 1)
    assert abs(float(found.log_likelihood) / exact - 1) < 2e-7
    assert abs(float(found.model.variance[0]) / variance - 1) < 1e-6
    assert abs(float(found.model.mean[0]) - wide.mean()) < 1e-7


def test_sums_in_pairs_lose_little() -> None:
    tenth, sums = np.float32(0.1), Pairwise(lambda a, b: a + b)
    for _ in range(100_000):
        sums.add(tenth)
    assert abs(float(sums.total()) / (100_000 * float(tenth)) - 1) < 1e-6


def test_online_learns_in_one_pass_and_can_do_so_from_a_generator() -> None:
    x = rows(20_000)
    batches = Parts(x, list(range(0, 20_000, 1500)))
    solver = jem.OnlineEM(50)
    found = jem.fit_stream(start(x), batches, solver)
    best = jem.fit(start(x), x)
    assert batches.reads == int(found.passes) == 2
    assert (found.status_name, int(found.steps), found.trace) == ("max_steps_reached", 1, None)
    assert 0 < float(best.log_likelihood - found.log_likelihood) < 5e-3 * len(x)
    np.testing.assert_allclose(found.log_likelihood, found.model.log_prob(x).sum(), rtol=1e-12)
    once = jem.fit_stream(start(x), (batch for batch in batches), solver)
    jax.tree.map(np.testing.assert_array_equal, once.model, found.model)
    assert np.isnan(once.log_likelihood)
    assert int(once.passes) == 1
    broken = iter([x[:500], x[500:600] * np.nan, x[:9] * np.inf])
    assert jem.fit_stream(start(x), broken, solver).status_name == "nonfinite"


def test_solvers_that_look_more_than_once_are_refused() -> None:
    x = rows(100)
    for solver in (jem.LBFGS(), jem.Newton(), jem.Gradient(optax.adam(0.1), batch_size=10)):
        with pytest.raises(ValueError, match=r"fit_stream takes solvers that look at all rows once a step"):
            jem.fit_stream(start(x), [x], solver)


def test_what_cannot_be_read_again_is_refused() -> None:
    x = rows(100)
    model = start(x)
    with pytest.raises(TypeError, match=r"can be read once only, and each step reads them again; pass a list"):
        jem.fit_stream(model, (batch for batch in [x]))
    for wrong in (x, "t.parquet", 3):
        with pytest.raises(TypeError, match=r"such as jem.batches"):
            jem.fit_stream(model, wrong)
    shared = iter([x, x])

    class Used:
        def __iter__(self) -> Iterator[Any]:
            return (batch for batch in shared)

    with pytest.raises(ValueError, match=r"gave 200 rows that count at first and 0 when they were read again"):
        jem.fit_stream(model, Used())


def test_what_is_wrong_with_a_batch_is_said_with_its_number() -> None:
    x = rows(100)
    model = start(x)
    wrong = {
        r"batches\[1\]: its rows have shape \(3,\)": np.ones((5, 3)),
        r"batches\[1\]: x holds values of type <U1": np.array([["a", "b"]]),
        r"batches\[1\]: weight has entries that are negative": (x, -np.ones(100)),
        r"batches\[1\]: weight has shape \(3,\); with 100 rows": (x, np.ones(3)),
    }
    for message, batch in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            jem.fit_stream(model, [x, batch])
    for nothing in ([], [x[:0]]):
        with pytest.raises(ValueError, match=r"batches hold no rows; a fit needs at least one"):
            jem.fit_stream(model, nothing)
    with pytest.raises(ValueError, match=r"batches hold 100 rows, none with a weight and something seen"):
        jem.fit_stream(model, [(x, np.zeros(100))])
    partly = jem.Mixture([0.5, 0.5], jem.Dirichlet([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match=r"batches\[1\]: x has missing cells in row 1; Dirichlet reads rows"):
        jem.fit_stream(partly, [np.full((2, 2), 0.5), np.array([[0.5, 0.5], [np.nan, 0.5]])])


def test_what_reading_raises_comes_as_it_is_and_the_thread_ends() -> None:
    x = rows(100)

    class Broken:
        def __iter__(self) -> Iterator[np.ndarray]:
            yield x
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        jem.fit_stream(start(x), Broken())
    import threading

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jaxem-reading")]


PROCESS = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
import jaxem as jem
from test_stream import rows, start
x = rows()
x[::3, 1] = float("nan")
mine = x[:250] if sys.argv[1] == "0" else x[250:]
batches = jem.batches(mine, rows=100)
fit = jem.fit_stream(start(rows()), batches, prior=jem.priors.Weak(), max_steps=4, processes=True)
print(json.dumps([fit.status_name, *(leaf.tolist() for leaf in jax.tree.leaves((fit.log_likelihood, fit.model)))]))
try:
    jem.fit_stream(start(rows()), batches if sys.argv[1] == "0" else [], processes=True)
except ValueError as error:
    print(error)
"""


def test_processes_with_rows_of_their_own_find_what_one_finds_with_all() -> None:
    x = rows()
    x[::3, 1] = np.nan
    wanted = jem.fit(start(rows()), x, prior=jem.priors.Weak(), max_steps=4)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    cache = str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
    commands = [[sys.executable, "-c", PROCESS, str(me), port, cache] for me in range(2)]
    started = [
        subprocess.Popen(command, cwd=Path(__file__).parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command in commands
    ]
    for process in started:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        result, refused = out.splitlines()[-2:]
        words, *numbers = json.loads(result)
        assert words == wanted.status_name
        for ours, theirs in zip(numbers, jax.tree.leaves((wanted.log_likelihood, wanted.model)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
        assert refused == "process 1 has no rows that count; every process needs batches of its own"
