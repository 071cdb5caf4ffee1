"""At the edge of what probabilities may be, solvers stop at different places: the derivative of a fit is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.core.pytree import replace

pytestmark = pytest.mark.slow

BITS = jem.Mixture([0.4, 0.6], jem.Independent(jem.Bernoulli([[0.7, 0.6, 0.4, 0.7], [0.4, 0.3, 0.7, 0.3]])))
ALWAYS = np.array([[1.0, 0.9, 0.1, 0.9], [0.3, 0.2, 0.8, 0.1]])
PROBS = dict(zip("abcd", BITS.components.base.probs.T, strict=True))
NET = jem.BayesNet(
    {"h": [], **{name: ["h"] for name in PROBS}},
    {"h": BITS.weights, **{name: jnp.stack([1 - p, p], axis=-1) for name, p in PROBS.items()}},
)
BRANCH = jem.HMM([0.5, 0.5], [[0.7, 0.3], [0.2, 0.8]], jem.Poisson([2.0, 9.0]))
STRAIGHT = replace(BRANCH, initial=jnp.array([1.0, 0.0]), transition=jnp.array([[0.8, 0.2], [0.0, 1.0]]))
SOLVERS = {"EM": jem.EM(), "SQUAREM": jem.SQUAREM(jem.EM()), "LBFGS": jem.LBFGS()}


def problem(which: str) -> tuple[Any, Any, Callable[[Any], jax.Array]]:
    """A start inside, data whose maximum has probabilities of zero or one, and something of all the others."""
    if which == "chain":
        x = jem.Sequences(STRAIGHT.sample(jax.random.key(3), 6, 12), np.full(6, 12))
        return BRANCH, x, lambda model: jnp.sum(jnp.cos(model.emission.rate)) + model.transition[0, 1]
    rng = np.random.default_rng(3)
    probs = ALWAYS[(rng.random(150) >= 0.5).astype(int)]
    x = jnp.asarray((rng.random((150, 4)) < probs).astype(float))
    if which == "probs":
        return BITS, x, lambda model: model.weights[0] + jnp.sum(jnp.sin(model.components.base.probs))
    hidden = jnp.concatenate([jnp.full((150, 1), jnp.nan), x], axis=1)
    return NET, hidden, lambda model: sum((jnp.sum(jnp.sin(t.probs[..., -1])) for t in model.tables), jnp.zeros(()))


@pytest.mark.parametrize("which", ["probs", "chain", "table"])
def test_the_derivative_is_the_same_by_whatever_solver(which: str) -> None:
    """That given the edge; and what refits differ by."""
    start, x, of = problem(which)
    weight = jnp.linspace(0.8, 1.2, len(x))
    along = jnp.zeros(len(x)).at[jnp.array([0, 2])].set(jnp.array([1.0, -0.5]))

    def fitted(solver: Any) -> Any:
        def told(weight: jax.Array) -> Any:
            fit = jem.fit(start, x, solver, weight=weight, tol=1e-11, max_steps=3000)
            return of(fit.model), fit

        return jax.jit(jax.value_and_grad(told, has_aux=True))

    em = fitted(SOLVERS["EM"])
    (_, fit), slope = em(weight)
    probs = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(fit.model) if jnp.max(leaf) <= 1])
    assert ((probs < 1e-6) | (probs > 1 - 1e-6)).any(), "the maximum of these data should be at an edge"
    refits = (em(weight + 1e-3 * along)[0][0] - em(weight - 1e-3 * along)[0][0]) / 2e-3
    np.testing.assert_allclose(slope @ along, refits, rtol=1e-3)  # a refit stops 1e-9 short
    for name in ("SQUAREM", "LBFGS"):
        (_, fit), other = fitted(SOLVERS[name])(weight)
        assert fit.status_name == "converged", name
        np.testing.assert_allclose(other, slope, rtol=1e-4, atol=1e-7, err_msg=name)


def test_a_chain_of_one_sequence_has_a_derivative_wherever_its_initial_ended() -> None:
    """EM ends at 1e-22 and SQUAREM at the smallest number there is."""
    truth = jem.HMM([1.0, 0.0], [[0.9, 0.1], [0.2, 0.8]], jem.Poisson([1.0, 9.0]))
    x = truth.sample(jax.random.key(0), 1, 80)
    start = replace(truth, initial=jnp.array([0.5, 0.5]))
    top = jem.fit(start, x[0], tol=1e-12).model

    def slope(smallest: float) -> Any:
        at = replace(top, initial=jnp.array([1.0 - smallest, smallest]))

        def of(x: Any) -> Any:
            fit = jem.fit(at, jem.Sequences(x, np.full(1, 80)), max_steps=0)
            return fit.model.emission.rate[0] + fit.model.transition[0, 1], fit

        return jax.grad(of, has_aux=True)(x)

    found = [slope(smallest) for smallest in (0.0, 2.3e-308, 1.5e-22, 1e-9)]
    for gradient, fit in found:
        assert fit.status_name in ("max_steps_reached", "converged")
        np.testing.assert_allclose(gradient, found[0][0], rtol=1e-5, atol=1e-10)
    assert np.abs(found[0][0]).max() > 1e-4


def test_what_is_needed_is_no_edge() -> None:
    """A probability of 3e-7 that ten million rows have told, and one that a prior keeps away from zero."""
    x, weight = jnp.array([0.0, 1.0]), jnp.array([1e7 - 3, 3.0])
    slope = jax.grad(lambda w: jem.fit(jem.Bernoulli(0.5), x, weight=w, tol=1e-12).model.probs)(weight)
    np.testing.assert_allclose(slope, [-3e-14, 1e-7], rtol=1e-6)
