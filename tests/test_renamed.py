"""Former names go on working, and say what the new ones are."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import jaxem as jem


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
