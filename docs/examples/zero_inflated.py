"""More zeros than a Poisson has: a point mass beside it, or a rate that differs from row to row.

Articles that 915 doctoral students of biochemistry published in the last three years of their studies (Long 1990,
Social Forces 68:1297). A mixture of two families, a `PointMass` at zero and a `Poisson`, is the zero-inflated Poisson
(Lambert 1992, Technometrics 34:1); a negative binomial is a Poisson whose rate is gamma distributed.
"""

import sys

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)

ARTICLES = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 19])
STUDENTS = np.array([275, 246, 178, 84, 67, 27, 17, 12, 1, 2, 1, 1, 2, 1, 1])  # a weight for each number of articles


def main() -> None:
    """Fit three models to one table, and look at how many zeros each expects."""
    inflated = jem.Mixture([0.5, 0.5], jem.Either((jem.PointMass([0.0]), jem.Poisson([1.0]))))
    starts = {
        "Poisson": jem.Poisson(1.0),
        "zero-inflated Poisson": inflated,
        "negative binomial": jem.NegativeBinomial(1.0, 1.0),
    }
    fits = {name: jem.fit(start, ARTICLES, weight=STUDENTS, tol=1e-12) for name, start in starts.items()}
    for name, fit in fits.items():
        zeros = STUDENTS.sum() * np.exp(fit.model.log_prob([0.0])[0])
        aic = jem.aic(fit.log_likelihood, jem.free_parameters(fit.model))
        sys.stdout.write(
            f"{name:22} log-likelihood {fit.log_likelihood:.4f}  AIC {aic:.1f}  zeros {zeros:.1f} of 275\n"
        )

    # The log-likelihoods that Stata prints for the models without covariates.
    np.testing.assert_allclose(fits["Poisson"].log_likelihood, -1742.5735, atol=5e-5)
    np.testing.assert_allclose(fits["negative binomial"].log_likelihood, -1609.9367, atol=5e-5)

    # The zero-inflated Poisson expects all of the zeros; its rate / (1 - exp(-rate)) is the mean of the other rows.
    fit = fits["zero-inflated Poisson"]
    rate = fit.model.components.parts[1].rate[0]
    positive = (STUDENTS * ARTICLES).sum() / STUDENTS[1:].sum()
    np.testing.assert_allclose(rate / -np.expm1(-rate), positive, rtol=1e-6)
    np.testing.assert_allclose(np.exp(fit.model.log_prob([0.0])[0]), 275 / 915, rtol=1e-6)
    # Which of the zeros never try: the same for all of them, because a zero is all that is known.
    never = fit.model.posterior([0.0, 1.0])[:, 0]
    sys.stdout.write(f"A student without articles belongs to the point mass with probability {never[0]:.3f}.\n")
    assert 0 < never[0] < 1
    assert never[1] == 0


if __name__ == "__main__":
    main()
