"""A regression that switches: mixtures of lines, and an autoregression whose regime follows a Markov chain.

Emissions of carbon dioxide and gross national product of 28 countries in 1996: one line fits nobody, two lines find two
groups of countries (Hurn, Justel and Robert 2003). Then a series that changes its own dynamics: an autoregressive
hidden Markov model is an `HMM` on rows (the value before, the value).

    python docs/examples/switching_regression.py
"""

import sys

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)

GNP = """19.02 3.67 28.2 40.94 10.61 20.09 15.72 28.11 26.44 4.74 32.1 23.24 26.27 28.87 11.46 4.34 17.11 19.88 25.94
         24.51 3.23 10.16 14.35 25.71 44.35 2.83 19.6 2.41"""
CO2 = """14.7 3.9 20.8 9 8.3 16 7.6 7.4 10.2 10.8 10.5 10 5.8 10.2 7.3 5.5 9 7.2 8.8 16.6 8.8 5.2 5.9 5 5.5 2.7 9.3
         12.3"""
COUNTRIES = np.array([[float(word) for word in text.split()] for text in (GNP, CO2)]).T


def series(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A series that is pulled to its mean while calm, and swings from one side to the other while not."""
    rng = np.random.default_rng(0)
    swings, x = np.cumsum(rng.uniform(size=n) < 0.02) % 2, [0.0]
    for state in swings:
        x.append((-0.8 if state else 0.9) * x[-1] + rng.normal() * 0.5)
    return np.array(x), swings


def bic(fit: jem.Fit, rows: int) -> float:
    """Smaller is better."""
    return float(jem.bic(fit.log_likelihood, jem.free_parameters(fit.model), rows))


def main() -> None:
    """Two groups of countries, then two regimes."""
    start = jem.Mixture([0.25, 0.75], jem.LinearRegression([[-1.0], [1.0]], [8.0, 1.0], [4.0, 1.0]))
    fit = jem.fit(start, COUNTRIES, tol=1e-12)
    lines = fit.model.components
    for k in range(2):
        sys.stdout.write(
            f"{fit.model.weights[k]:4.0%} of the countries: CO2 = {lines.intercept[k]:.3f} "
            f"{lines.coefficients[k, 0]:+.3f} GNP, deviation {lines.variance[k] ** 0.5:.3f}\n"
        )
    # The published numbers, to the printed digits.
    np.testing.assert_allclose(fit.log_likelihood, -66.93977, atol=1e-5)
    np.testing.assert_allclose(lines.coefficients[:, 0], [-0.023344, 0.676596], atol=2e-5)
    one = jem.fit(jem.LinearRegression([0.0], 0.0, 1.0), COUNTRIES)
    assert bic(fit, 28) < bic(one, 28)

    x, swings = series(500)
    rows = jem.lagged(x)
    regimes = jem.LinearRegression([[0.5], [-0.5]], [0.0, 0.0], [1.0, 1.0])
    start = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], regimes)
    fit = jem.fit(start, rows)
    found = np.asarray(fit.model.decode(rows))[0]
    sys.stdout.write(
        f"x_t = {fit.model.emission.coefficients[0, 0]:+.2f} x_(t-1) or {fit.model.emission.coefficients[1, 0]:+.2f} "
        f"x_(t-1); {np.mean(found == swings):.0%} of the steps in the right regime\n"
    )
    np.testing.assert_allclose(fit.model.emission.coefficients[:, 0], [0.9, -0.8], atol=0.1)
    assert np.mean(found == swings) > 0.9
    # A row after the last: where it will be, weighed by the regimes.
    regime = fit.model.posterior(rows)[0, -1] @ fit.model.transition
    ahead = jem.predict(jem.Mixture(regime, fit.model.emission), x[-1:])
    assert ahead.quantile(0.05) < ahead.mean < ahead.quantile(0.95)


if __name__ == "__main__":
    main()
