"""Nothing finished is lost: whatever cuts a call short, the same call goes on and ends with the same bits."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem as jem
from jaxem.core.pytree import module
from jaxem.fitting.many import checkpoint, fit_many, queue
from jaxem.fitting.many.fingerprint import fingerprint

pytestmark = pytest.mark.slow


@module
class Wandering(jem.StochasticEM):
    """Keeps a random key in its state, where it could be lost."""

    def init(self, model: Any, x: Any, weight: jax.Array, prior: Any) -> jax.Array:
        return self.key

    def step(self, model: Any, state: jax.Array, x: Any, weight: jax.Array, prior: Any) -> Any:
        now, after = jax.random.split(state)
        model, _, log_likelihood = jem.StochasticEM(now).step(model, jnp.zeros((), jnp.int32), x, weight, prior)
        return model, after, log_likelihood


def problems(count: int = 12, gaps: bool = False) -> tuple[Any, list[np.ndarray]]:
    """A few rows each, of two lengths, and two starts for each problem; with gaps, a cell is missing in some."""
    rng = np.random.default_rng(3)
    xs = [rng.normal(size=(rng.choice([9, 30]), 2)) for _ in range(count)]
    starts = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2, restarts=2)
    for x in xs[::4] if gaps else []:
        x[3, 0] = np.nan
    return starts, xs


def fit(starts: Any, xs: Any, **options: Any) -> jem.Fit:
    return jem.fit_many(starts, xs, Wandering(jax.random.key(1)), **{"max_steps": 60, "lanes": 4, **options})


def assert_same_bits(ours: Any, theirs: Any) -> None:
    for mine, yours in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(mine, yours)


def after(calls: int, act: Callable[[], Any]) -> Callable[[], bool]:
    """For `stop`: acts in one of the calls."""
    made = []

    def stop() -> bool:
        made.append(1)
        return len(made) == calls and bool(act())

    return stop


@pytest.fixture(autouse=True)
def _save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


def test_a_stopped_call_goes_on_to_the_same_bits_and_then_returns_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, xs = problems(gaps=True)  # those with gaps are a queue of their own
    whole = fit(starts, xs)
    stopped = fit(starts, xs, checkpoint=tmp_path, stop=after(5, lambda: True))
    assert 0 < (np.asarray(stopped.status) == jem.Status.interrupted).sum() < 12
    seen: list[int] = []
    assert_same_bits(fit(starts, xs, checkpoint=tmp_path, progress=lambda done, total: seen.append(done)), whole)
    assert seen == sorted(seen)
    assert seen[-1] == 12

    def never(*args: Any, **sizes: Any) -> None:
        raise AssertionError("it was done")

    monkeypatch.setattr(queue, "run_lanes", never)
    assert_same_bits(fit(starts, xs, checkpoint=tmp_path), whole)


def test_flags_that_were_not_read_yet_and_fewer_lanes_are_saved_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, xs = problems(16)
    late = queue.SIDE_BY_SIDE._replace(late=1, narrower=(2, 4), tail=4)
    monkeypatch.setattr(queue, "SIDE_BY_SIDE", late)
    monkeypatch.setattr(queue, "MANY", 4)
    whole = fit(starts, xs, lanes=32)
    # By the last call only a few of the slowest lanes are left; the second is in the middle of all.
    for calls in (2, 1):
        fit(starts, xs, lanes=32, checkpoint=tmp_path, stop=after(calls, lambda: True))
    assert_same_bits(fit(starts, xs, lanes=32, checkpoint=tmp_path), whole)


def test_ctrl_c_leaves_the_state_of_all_threads_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, xs = problems()
    monkeypatch.setattr(queue, "LARGE", 0)
    monkeypatch.setattr(fit_many.os, "cpu_count", lambda: 2)
    whole = fit(starts, xs)
    monkeypatch.setattr(checkpoint, "SECONDS", 1e9)  # only what Ctrl-C saves
    main = threading.main_thread().ident
    assert main is not None
    with pytest.raises(KeyboardInterrupt):
        fit(starts, xs, checkpoint=tmp_path, stop=after(9, lambda: signal.pthread_kill(main, signal.SIGINT)))
    saved = sorted(int(step.name) for step in tmp_path.glob("queue_*/[1-9]*"))
    assert len(saved) == 2
    assert_same_bits(fit(starts, xs, checkpoint=tmp_path), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xs": None}, "xs has changed"),
        ({"weight": [np.ones(len(x)) for x in problems()[1]]}, "weight has changed"),
        ({"prior": jem.priors.Weak()}, "prior has changed"),
        ({"solver": Wandering(jax.random.key(2))}, "solver has changed"),
        ({"tol": 1e-5, "lanes": 3}, "tol was 1e-06 and is 1e-05, lanes was 4 and is 3"),
    ],
)
def test_another_call_is_refused_and_told_what_changed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    starts, xs = problems()
    arguments: dict[str, Any] = {"solver": Wandering(jax.random.key(1)), "lanes": 4, "checkpoint": tmp_path}
    jem.fit_many(starts, xs, **arguments, stop=lambda: True)
    if "xs" in change:
        other = [x.copy() for x in xs]
        other[7][0, 0] = np.nextafter(other[7][0, 0], 9)
        change = {"xs": other}
    with pytest.raises(ValueError, match=f"made by another call: {message}; pass another folder"):
        jem.fit_many(**{"models": starts, "xs": xs, **arguments, **change})


def test_a_full_disk_is_one_line_and_spoils_nothing(tmp_path: Path) -> None:
    starts, xs = problems()
    whole, limits = fit(starts, xs), resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may get longer than this: for whoever writes, that is a full disk.
    full = after(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1])))
    try:
        with pytest.raises(OSError, match=r"^checkpoint '.*queue_0' cannot be used: File too large; [^\n]*$"):
            fit(starts, xs, checkpoint=tmp_path, stop=full)
        with pytest.raises(OSError, match=r"^checkpoint '.*' cannot be used: File too large; [^\n]*$"):
            fit(starts, xs, checkpoint=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [step.name for step in tmp_path.glob("queue_0/[0-9]")] == ["3"]
    assert_same_bits(fit(starts, xs, checkpoint=tmp_path), whole)


def test_a_folder_that_cannot_be_is_told_before_anything_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, xs = problems()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot be used: Not a directory"):
        fit(starts, xs, checkpoint=tmp_path / "file" / "folder", stop=pytest.fail)
    (tmp_path / "call.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds a call\.json that is not jaxem's"):
        fit(starts, xs, checkpoint=tmp_path, stop=pytest.fail)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"needs the package safetensors: pip install 'jaxem\[checkpoint\]'"):
        fit(starts, xs, checkpoint=tmp_path / "another", stop=pytest.fail)


CHILD = """
import sys
import jax
import numpy as np
from jaxem.fitting.many import batching
from test_checkpoint import checkpoint, fit, fit_many, problems, queue
checkpoint.SECONDS, checkpoint.SHARE = 0, 1e9
queue.LARGE, fit_many.os.cpu_count = 0, lambda: 2  # two threads
batching.SHAPE = 0  # both lengths
starts, xs = problems(gaps=True)
fits = fit(starts, xs, lanes=2, checkpoint=sys.argv[1])
whole = fit(starts, xs, lanes=2)
for ours, theirs in zip(jax.tree.leaves(fits), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(ours, theirs)
print("the same, from so many queues:", len(list(checkpoint.Path(sys.argv[1]).glob("queue_*"))))
"""


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    folder, rng = tmp_path / "checkpoint", np.random.default_rng(0)
    program = [sys.executable, "-W", "error", "-c", CHILD, str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(jem.__file__).parents[1])]),
        "JAX_ENABLE_X64": "1",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def saves() -> set[Path]:
        return set(folder.glob("queue_*/[1-9]*"))

    for _ in range(3):
        before = saves()
        child = subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not saves() - before:
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))  # in the middle of a save, or between two
        assert child.poll() is None, "it came to its end before it could be killed"
        child.kill()
        child.communicate()
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("the same, from so many queues: "), done.stderr
    assert int(done.stdout.split()[-1]) >= 6


def test_a_fingerprint_sees_what_functions_enclose_and_nothing_of_where_they_are() -> None:
    def solver(rate: float) -> jem.Gradient:
        return jem.Gradient(optax.adam(rate), batch_size=4, key=jax.random.key(0))

    assert fingerprint(solver(0.1)) == fingerprint(solver(0.1)) != fingerprint(solver(0.2))
    x = np.arange(6.0)
    different = [x, x[::-1], x.astype(np.float32), x.reshape(2, 3), [x], (x,), list(x), None, "None", jem.Poisson(x)]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert fingerprint(x[::-1]) == fingerprint(x[::-1].copy()) == fingerprint(jnp.asarray(x[::-1]))
