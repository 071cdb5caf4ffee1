"""The GPU kernel, interpreted: what holds for every way through a chain holds for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem import chains
from jaxem.chains import kernel, normalizer
from jaxem.chains.chain import Chain
from jaxem.core.pytree import replace
from laws.test_chains import HOSTILE, INF, Rng, chain

pytestmark = pytest.mark.slow

forward_backward = jax.jit(partial(normalizer._posterior_by, kernel))


def test_what_underflows_is_not_lost(dtype: Any) -> None:
    """All hostile chains side by side, in one run; beyond their ends is NaN."""
    steps = max(len(seen) for *_, seen, _ in HOSTILE.values())
    initial, transition, seen, truth = zip(*HOSTILE.values(), strict=True)
    evidence = np.full((steps, 2, len(truth)), np.nan)
    for s, part in enumerate(seen):
        evidence[: len(part), :, s] = part
    with np.errstate(divide="ignore"):
        potentials = (
            np.log(np.array(initial, float)).T,
            np.log(np.array(transition, float).transpose(1, 2, 0)),
            evidence,
        )
    length = np.array([len(part) for part in seen], np.int32)
    value, used = forward_backward(Chain(*(jnp.asarray(p, dtype) for p in potentials), jnp.asarray(length)))
    np.testing.assert_allclose(value, truth, rtol=2e-7 if dtype == jnp.float32 else 1e-12)
    possible = np.isfinite(truth)
    np.testing.assert_allclose(used.marginals.sum(1), (np.arange(steps)[:, None] < length) & possible, atol=1e-5)
    np.testing.assert_allclose(used.transition.sum((0, 1)), (length - 1) * possible, rtol=1e-5)


@pytest.mark.parametrize(("states", "each", "own", "dtype"), [(3, False, False, "float64"), (2, True, True, "float32")])
def test_it_agrees_with_the_scan(states: int, each: bool, own: bool, dtype: str, rng: Rng) -> None:
    """With transitions of their own or shared, for each step or for all.

    More sequences than a program takes, of all lengths, with resets and a structural zero, one impossible, one NaN.
    """
    steps, sequences = 6, kernel.LANES + 3
    initial, transition, _ = chain(rng, steps, states, each)
    transition[..., 0, 1] = -INF
    seen = rng.normal(size=(steps, states, sequences)) * 4
    seen[0, :, 3] = -INF
    seen[2, 1, 4] = np.nan
    length = np.array([1, 2, steps, steps, steps, *rng.integers(1, steps + 1, sequences - 5)], np.int32)
    potentials = initial[:, None], transition[..., None], seen
    if own:
        potentials = potentials[0], transition[..., None] + rng.normal(size=(*transition.shape, sequences)), seen
    start = jnp.asarray(rng.random((steps, sequences)) < 0.2).at[0].set(False)
    one = Chain(*(jnp.asarray(p, dtype) for p in potentials), jnp.asarray(length), start, "kernel")
    found, wanted = (jax.jit(normalizer.expectations)(replace(one, method=method)) for method in ("kernel", "scan"))
    assert np.isnan(found[0][4])
    assert found[0][3] == -INF
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        there = np.arange(sequences) != 4
        fine = 1e-11 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(a[..., there], b[..., there], rtol=fine, atol=fine)


def test_a_long_chain_loses_no_digits(rng: Rng) -> None:
    """More steps than are summed without compensation, in float32."""
    initial, transition, seen = (jnp.asarray(p, jnp.float32) for p in chain(rng, 3_000, 2))
    run = jax.jit(lambda method: chains.forward_backward(initial, transition, seen, method=method), static_argnums=0)
    found, wanted = run("kernel"), run("scan")
    np.testing.assert_allclose(found.log_normalizer, wanted.log_normalizer, rtol=1e-6)
    np.testing.assert_allclose(found.transitions, wanted.transitions, rtol=2e-6)
    np.testing.assert_allclose(found.marginals, wanted.marginals, atol=2e-6)


def test_batches_and_gradients(rng: Rng) -> None:
    initial, transition, _ = map(jnp.asarray, chain(rng, 5, 2))
    seen = jnp.asarray(rng.normal(size=(3, 5, 2)))

    def run(method: str) -> Any:
        value = jax.value_and_grad(partial(chains.log_normalizer, method=method), (0, 1, 2))
        return jax.jit(jax.vmap(value, (None, None, 0)))(initial, transition, seen)

    for a, b in zip(*map(jax.tree.leaves, (run("kernel"), run("scan"))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("each", [False, True])
def test_it_lowers_for_cuda(each: bool, rng: Rng, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, as far as the program that one would compile: two kernels, and no loop left to the host."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    initial, transition, _ = chain(rng, 4, 2, each)
    parts = initial[:, None], transition[..., None], rng.normal(size=(4, 2, 300))
    length, start = jnp.full(300, 4, jnp.int32), jnp.zeros((4, 300), bool)
    one = Chain(*(jnp.asarray(p, dtype) for p in parts), length, start, "kernel")
    # A function of its own: what was traced for the CPU must not be found again.
    text = jax.jit(lambda one: normalizer.expectations(one)).trace(one).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 2
    assert "stablehlo.while" not in text


def test_it_says_which_chains_it_takes() -> None:
    many = kernel.STATES + 1
    with pytest.raises(ValueError, match=f"it takes up to 8 states, and these are {many}: use 'auto'"):
        chains.log_normalizer(np.zeros(many), np.zeros((many, many)), np.zeros((4, many)), method="kernel")
