"""Fits on eight virtual devices, each against the same fit on one.

A program of its own, because the number of devices is settled once in a process: `test_sharded.py` runs it, with
JAX_NUM_CPU_DEVICES=8, and reads a line of JSON for each check. With arguments it makes the checks that they name.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401  (the strictness of all tests)
import jaxem as jem
from jaxem.chains import sharded
from jaxem.chains.chain import Chain
from jaxem.chains.normalizer import log_normalizer
from jaxem.core.pytree import replace
from jaxem.fitting import fit as fitting
from jaxem.fitting import regularisation
from jaxem.solvers import em
from test_compilation import compilations

FIELDS = "log_initial", "log_transition", "log_likelihood"
CHECKS: dict[str, Callable[[], Iterator[Any]]] = {}
"""By name; a check yields what must not differ, as `(there, here, tolerance)`."""


def check(function: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
    CHECKS[function.__name__] = function
    return function


def mesh() -> Mesh:
    return jax.make_mesh((8,), ("rows",))


def spread(x: Any, *spec: Any, over: Mesh | None = None) -> jax.Array:
    return jax.device_put(x, NamedSharding(over or mesh(), P(*(spec or ("rows",)))))


def rows(n: int = 400, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) + 4.0 * rng.integers(0, 3, size=(n, 1))


def mixture() -> jem.Mixture:
    means = [[3.0, 3.5], [4.0, 4.5], [5.0, 4.0]]
    return jem.Mixture([0.3, 0.3, 0.4], jem.Gaussian(means, [(9 * np.eye(2)).tolist()] * 3))


def hmm(zeros: bool = False) -> jem.HMM:
    transition = (
        [[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]] if zeros else np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    )
    initial = [1.0, 0.0, 0.0] if zeros else [0.5, 0.3, 0.2]
    return jem.HMM(initial, transition, jem.DiagonalGaussian([[0.0], [2.0], [4.0]], [[1.0], [1.0], [1.0]]))


def collectives(run: Callable[[], Any]) -> list[tuple[str, int, bool]]:
    """Of each collective of the fit that `run` makes, as compiled: its kind, the numbers moved, and is it in a loop."""
    found = []
    compiled = fitting._fit

    def seen(*given: Any, **more: Any) -> Any:
        found.append(compiled.lower(*given, **more).compile().as_text())
        return compiled(*given, **more)

    fitting._fit = seen
    try:
        run()
    finally:
        fitting._fit = compiled
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    moved = re.findall(rf'= (.*?) ({kinds})(?:-start)?\(.*op_name="(.*?)"', found[-1])
    return [(kind, numbers(shape), "while/body" in name) for shape, kind, name in moved]


def numbers(shape: str) -> int:
    """How many there are in a shape such as `(f64[19]{0}, f64[2,3]{1,0})`."""
    return sum(
        int(np.prod([int(size) for size in sizes.split(",") if size])) for sizes in re.findall(r"\[(.*?)\]", shape)
    )


@check
def rows_of_a_full_mixture() -> Iterator[Any]:
    x, model = rows(), mixture()
    here, there = jem.fit(model, x), jem.fit(model, spread(x))
    yield there, here, 1e-12
    assert here.status_name == "converged"
    assert here.steps > 5
    assert there.model.components.mean.sharding.is_fully_replicated


@check
def one_message_in_a_pass() -> Iterator[Any]:
    x = spread(rows())
    found = collectives(lambda: jem.fit(mixture(), x))
    assert {kind for kind, _, _ in found} == {"all-reduce"}, found
    # The log-likelihood; of each component its weight, rows twice, first and second moments.
    assert [moved for _, moved, looped in found if looped] == [1 + 3 * (1 + 2 + 2 + 4)], found
    yield from ()


@check
def a_second_fit_compiles_nothing() -> Iterator[Any]:
    model = mixture()
    jem.fit(model, spread(rows(seed=1)))
    jem.fit(model, rows(), devices=jax.devices())
    with compilations() as found:
        jem.fit(model, spread(rows(seed=2)), tol=1e-3)
        jem.fit(model, rows(seed=3), devices=jax.devices(), tol=1e-3)
    assert found[0] == 0, found
    yield from ()


@check
def weights_labels_prior_restarts_and_a_rest() -> Iterator[Any]:
    n, rng = 403, np.random.default_rng(3)
    x, weight = rows(n), rng.uniform(0, 2, n) * (rng.uniform(size=n) > 0.1)
    labels = np.where(rng.uniform(size=n) < 0.1, np.argmin(np.abs(x[:, :1] - np.array([[0, 4, 8]])), axis=1), -1)
    starts = jem.Mixture.start(jax.random.key(0), jem.Gaussian, x, 3, restarts=3)
    given = {"weight": weight, "labels": labels, "prior": jem.priors.Weak(1.0)}
    yield jem.fit(starts, x, **given, devices=jax.devices()), jem.fit(starts, x, **given), 1e-12


@check
def missing_cells_in_chunks_and_few_rows_for_the_scale() -> Iterator[Any]:
    x = rows()
    x[np.random.default_rng(4).uniform(size=x.shape) < 0.1] = np.nan
    known = regularisation.SCALE_ROWS, em.CHUNK
    regularisation.SCALE_ROWS, em.CHUNK = 50, 2
    try:
        given = {"prior": jem.priors.Weak(1.0), "max_steps": 30}
        yield jem.fit(mixture(), spread(x), **given), jem.fit(mixture(), x, **given), 1e-12
    finally:
        regularisation.SCALE_ROWS, em.CHUNK = known


@check
def float32() -> Iterator[Any]:
    x, model = rows().astype(np.float32), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mixture())
    there, here = jem.fit(model, spread(x)), jem.fit(model, x)
    yield (there.model, there.log_likelihood), (here.model, here.log_likelihood), 1e-4
    assert there.objective.dtype == jnp.float32


@check
def other_solvers() -> Iterator[Any]:
    x = np.random.default_rng(5).poisson([[2.0], [9.0]], (2, 100)).astype(float).ravel()
    model, far = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 6.0])), spread(x)
    solvers = {"SQUAREM": jem.SQUAREM(jem.EM()), "Newton": jem.Newton()}
    solvers |= {
        "LBFGS": jem.LBFGS(),
        "Anderson": jem.Anderson(jem.EM()),
        "Gradient": jem.Gradient(optax.sgd(0.5)),
        "HardEM": jem.HardEM(),
        "AnnealedEM": jem.AnnealedEM([3.0, 2.0]),
    }
    for name, solver in solvers.items():
        there, here = jem.fit(model, far, solver), jem.fit(model, x, solver)
        assert there.status_name == here.status_name == "converged", name
        # Line searches and trials turn on the last digits, but not the top that they find.
        yield there.model, here.model, 1e-12 if name in ("HardEM", "AnnealedEM") else 1e-6
    draws = jem.fit(model, far, jem.StochasticEM(jax.random.key(0)), max_steps=20)
    assert abs(draws.log_likelihood - here.log_likelihood) < 0.01 * len(x)


@check
def sequences() -> Iterator[Any]:
    rng, model = np.random.default_rng(7), hmm()
    lengths = rng.integers(1, 30, 16)
    drawn = np.asarray(model.sample(jax.random.key(1), 16, 30))
    masks = [rng.uniform(size=length) > 0.2 for length in lengths]
    x = jem.Sequences.from_list([one[:length] for one, length in zip(drawn, lengths, strict=True)], masks)
    far = jax.tree.map(spread, x)
    labels = np.where(rng.uniform(size=x.values.shape[:2]) < 0.1, 1, -1)
    yield jem.fit(model, far, labels=labels), jem.fit(model, x, labels=labels), 1e-12


@check
def one_long_sequence_over_time() -> Iterator[Any]:
    steps, rng = 403, np.random.default_rng(8)
    drawn = np.asarray(hmm().sample(jax.random.key(2), 1, steps))[0]
    x = jem.Sequences.from_list([drawn], [rng.uniform(size=steps) > 0.1])
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), hmm(), hmm(zeros=True))
    given = {
        "labels": [np.where(rng.uniform(size=steps) < 0.1, 1, -1)],
        "prior": jem.priors.Structured({"transition": jem.priors.Dirichlet(1.1)}),
    }
    yield jem.fit(starts, x, **given, devices=jax.devices()), jem.fit(starts, x, **given), 1e-12
    found = collectives(lambda: jem.fit(starts, x, **given, devices=jax.devices()))
    # What is moved does not grow with the steps: of each start, a matrix of 3 x 3 from each of 8 devices.
    assert {kind for kind, _, _ in found} <= {"all-reduce", "all-gather"}, found
    assert max(moved for _, moved, _ in found) == 2 * 3 * 3 * 8, found


@check
def hostile_chains_over_time() -> Iterator[Any]:
    """What was seen turns after a lead of hundreds of nats; or no path is possible; or a sequence ends early."""
    steps, rng = 104, np.random.default_rng(9)
    turning = np.where(np.arange(steps)[:, None] < 40, [0.0, 20.0, -1.0], [20.0, 0.0, -1.0])
    random = rng.normal(size=(steps, 3))
    impossible = np.where(np.arange(steps)[:, None] == 50, -np.inf, random)
    seen = jnp.asarray(np.stack([turning, impossible, random, 9 * turning], axis=-1))
    length = jnp.array([steps, steps, 20, 41], jnp.int32)
    initial = jnp.log(jnp.array([0.5, 0.5, 0.0]))[:, None]
    moves = np.eye(3), [[0.9, 0.1, 0.0], [0.0, 0.5, 0.5], [0.2, 0.0, 0.8]], [[0.8, 0.1, 0.1]] * 3
    devices = Mesh(np.array(jax.devices()), ("rows",))

    def used(log_normalizer: Callable[[Chain], Any], chain: Chain) -> Any:
        """The log-normaliser, and how often each potential is used."""

        def value(*potentials: Any) -> Any:
            return log_normalizer(replace(chain, **dict(zip(FIELDS, potentials, strict=True))))

        found, backward = jax.vjp(value, *(getattr(chain, field) for field in FIELDS))
        return found, *backward(jnp.ones_like(found))

    def there(chain: Chain) -> Any:
        before = len(chain.log_likelihood) * jax.lax.axis_index("rows")
        own = replace(chain, length=jnp.clip(length - before, 0, len(chain.log_likelihood)))
        *sums, each = used(partial(sharded.log_normalizer, "rows"), own)
        return *jax.lax.psum(sums, "rows"), each

    def along(run: Callable[[Chain], Any], chain: Chain) -> Any:
        """How that changes if every step is seen a little differently."""
        seen = chain.log_likelihood
        return jax.jvp(lambda seen: run(replace(chain, log_likelihood=seen)), (seen,), (jnp.cos(7 * seen),))[1]

    here = partial(used, log_normalizer)
    for method, move in zip(("scan", "blocked", "scan"), moves, strict=True):
        chain = Chain(initial, jnp.log(jnp.asarray(move))[..., None], seen, length, method=method)
        specs = replace(jax.tree.map(lambda _: P(), chain), log_likelihood=P("rows"))
        out = P(), P(), P(), P("rows")
        spread_out = jax.shard_map(there, mesh=devices, in_specs=(specs,), out_specs=out, check_vma=False)
        yield jax.jit(spread_out)(chain), jax.jit(here)(chain), 1e-11
        if method == "blocked":
            finite = replace(chain, log_likelihood=jnp.maximum(seen, -9))
            yield jax.jit(partial(along, spread_out))(finite), jax.jit(partial(along, here))(finite), 1e-9


@check
def the_derivative_and_a_mesh_of_two_axes() -> Iterator[Any]:
    x = np.random.default_rng(5).poisson([[2.0], [9.0]], (2, 20)).astype(float).ravel()
    model, weight = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 6.0])), jnp.ones(40)
    two, labels = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "other")), np.where(np.arange(40) % 9, -1, 1)

    def top(x: Any, weight: Any) -> Any:
        return jem.fit(model, x, weight=weight, labels=labels, tol=1e-12).model.components.rate[0]

    by_both = jax.grad(top, (0, 1))(jnp.asarray(x), weight)
    yield jax.grad(top, 1)(spread(x, over=two), weight), by_both[1], 1e-9
    yield jax.grad(top, (0, 1))(spread(x, over=two), spread(weight, over=two)), by_both, 1e-9


@check
def what_cannot_be() -> Iterator[Any]:
    x, over_time = spread(rows()), jem.Sequences(spread(np.zeros((1, 80, 1)), None, "rows"), [80])
    devices = jax.devices()
    refused = {
        "takes rows in batches": lambda: jem.fit(mixture(), x, jem.OnlineEM(10)),
        "devices is empty": lambda: jem.fit(mixture(), rows(), devices=[]),
        "inside jit": lambda: jax.jit(lambda x: jem.fit(mixture(), x, devices=devices))(rows()),
        "only the sum over all paths": lambda: jem.fit(hmm(), over_time, jem.HardEM()),
        "needs all steps": lambda: jem.fit(
            jem.Mixture([0.5, 0.5], jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), hmm())), over_time
        ),
    }
    for words, run in refused.items():
        with pytest.raises(ValueError, match=words) as refusal:
            run()
        assert "\n" not in str(refusal.value)
    yield from ()


def difference(there: Any, here: Any) -> float:
    """The largest between two pytrees, relative to the largest number of a leaf."""
    assert jax.tree.structure(there) == jax.tree.structure(here)
    worst = 0.0
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        assert a.shape == b.shape
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not same.all():
            apart = np.abs(a[~same] - b[~same]) / np.max(np.abs(b[np.isfinite(b)]))
            assert not np.isnan(apart).any()
            worst = max(worst, float(np.max(apart)))
    return worst


@check
def e_steps_of_ones_own_shards_under_the_default_check() -> Iterator[Any]:
    """A program that sums over devices itself: counts are of its own rows, and loops run."""
    of_sequences = jem.Sequences(np.asarray(hmm().sample(jax.random.key(0), 16, 12)), np.full(16, 12))
    counts = jem.Mixture([0.3, 0.7], jem.Poisson([1.0, 4.0]))
    for model, x in (
        (counts, counts.sample(jax.random.key(0), 40)),
        (
            jem.Mixture([0.5, 0.5], jem.Mixture([[0.3, 0.7]] * 2, jem.Poisson([[1.0, 4.0], [2.0, 7.0]]))),
            rows(40)[:, 0] // 1 + 9,
        ),
        (hmm(), of_sequences),
        (hmm(zeros=True), of_sequences),
    ):
        weight = jnp.linspace(0.5, 1.5, len(x))

        def of(model: Any, x: Any, weight: Any) -> Any:
            log_prob, pullback = model.e_step(x)
            return jnp.sum(weight * log_prob), pullback(weight).counts

        def own(model: Any, x: Any, weight: Any, of: Any = of) -> Any:
            return jax.lax.psum(of(model, x, weight), "rows")

        specs = P(), P("rows"), P("rows")
        auto = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
        there = jax.jit(jax.shard_map(own, mesh=auto, in_specs=specs, out_specs=P()))(model, x, weight)
        yield there, jax.jit(of)(model, x, weight), 1e-12


def run(name: str) -> dict[str, Any]:
    """What a check found."""
    began = time.process_time()
    try:
        found = [(difference(there, here), tolerance) for there, here, tolerance in CHECKS[name]()]
        wrong = str([pair for pair in found if not pair[0] <= pair[1]] or "")
    except Exception:
        wrong, found = traceback.format_exc(), []
    worst = max((pair[0] for pair in found), default=None)
    return {"check": name, "wrong": wrong, "largest": worst, "seconds": round(time.process_time() - began, 1)}


if __name__ == "__main__":
    for name in sys.argv[1:] or CHECKS:
        print(json.dumps(run(name)), flush=True)  # noqa: T201
