"""Former names go on working, and say what the new ones are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import jaxem as jem
from jaxem.core.pytree import module


def test_former_names_warn_and_give_the_same() -> None:
    fit = jem.fit(jem.Poisson(1.0), jnp.array([1.0, 3.0]))
    with pytest.warns(DeprecationWarning, match="status_name"):
        assert fit.words == fit.status_name == "converged"
    with pytest.warns(DeprecationWarning, match="status_message"):
        assert fit.reason == fit.status_message
    with pytest.warns(DeprecationWarning, match="max_linesearch_steps"):
        assert jem.LBFGS(most=7).max_linesearch_steps == 7
    flat = jem.priors.Dirichlet(2.0)
    with pytest.warns(DeprecationWarning, match=r'Structured\({"weights": ..., "components": ...}\)'):
        assert jem.priors.OfMixture(weights=flat).priors == {"weights": flat, "components": None}
    with pytest.warns(DeprecationWarning, match="OfHMM"):
        assert jem.priors.OfHMM(transition=flat).priors["transition"] is flat
    with pytest.warns(DeprecationWarning, match="OfBayesNet"):
        assert jem.priors.OfBayesNet(flat).priors == {"tables": flat}


def test_a_solver_with_former_names_is_one() -> None:
    with pytest.warns(DeprecationWarning, match="is now") as told:

        @module
        class Slow(jem.Solver):
            window: int = 3
            passes = 2

            def left(self, state: Any) -> float:
                return 0.5

            def spent(self, state: Any, calls: Any) -> Any:
                return 7 * calls

            def step(self, model: Any, state: Any, x: Any, weight: Any, prior: Any) -> Any:
                return jem.EM().step(model, state, x, weight, prior)

    renamed = {"left": "remaining_gain", "window": "check_every", "passes": "passes_per_step", "spent": "total_passes"}
    assert {str(one.message) for one in told} == {f"Slow.{old} is now {new}" for old, new in renamed.items()}
    slow = Slow()
    assert (slow.remaining_gain(None), slow.check_every, slow.passes_per_step) == (0.5, 3, 2)
    assert slow.total_passes(None, jnp.array(2)) == 14
    with pytest.warns(DeprecationWarning, match="EM.batches is now minibatch"):
        assert jem.EM().batches is False
    with pytest.raises(AttributeError, match="EM has no attribute 'speed'"):
        _ = jem.EM().speed
