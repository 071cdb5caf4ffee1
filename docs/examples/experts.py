"""A mixture of experts: several regressions, and a gate that says where each of them holds.

A straight line up to a threshold and another beyond it. A mixture of regressions sees two lines everywhere; the gate
learns which of them speaks for which inputs, so that the prediction has one mean, and a band that opens only where
both have a say. The quantiles are those of the predictive mixture.

    python docs/examples/experts.py [picture.png]
"""

import sys

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)


def data(n: int = 300) -> np.ndarray:
    """Demand that falls with temperature until 15 degrees (heating) and rises above it (cooling)."""
    rng = np.random.default_rng(0)
    temperature = rng.uniform(-5, 35, n)
    heating, cooling = np.maximum(15 - temperature, 0), np.maximum(temperature - 15, 0)
    return np.column_stack([temperature, 40 + 2.0 * heating + 1.5 * cooling + rng.normal(size=n) * 2])


def main() -> None:
    """Fit, compare with two lines without a gate, predict."""
    x = data()
    start = jem.MixtureOfExperts.start(jax.random.key(0), jem.LinearRegression, x, 2)
    fit = jem.fit(start, x, max_steps=200)
    ungated = jem.fit(jem.Mixture([0.5, 0.5], fit.model.experts), x)
    bic = {}
    for name, each in {"two lines": ungated, "two lines and a gate": fit}.items():
        bic[name] = jem.bic(each.log_likelihood, jem.free_parameters(each.model), len(x))
        sys.stdout.write(f"{name:22} log-likelihood {each.log_likelihood:8.1f}  BIC {bic[name]:7.1f}\n")
    assert bic["two lines and a gate"] < bic["two lines"] - 50

    slopes = np.sort(fit.model.experts.coefficients[:, 0])
    border = -fit.model.gate.intercept[0] / fit.model.gate.coefficients[0, 0]
    sys.stdout.write(f"slopes {slopes[0]:+.2f} and {slopes[1]:+.2f}, even odds at {border:.1f} degrees\n")
    np.testing.assert_allclose(slopes, [-2.0, 1.5], atol=0.1)
    np.testing.assert_allclose(border, 15, atol=1.5)

    prediction = fit.model.predict([0.0, 15.0, 30.0])
    np.testing.assert_allclose(prediction.mean, [70, 40, 62.5], atol=1.5)
    seen = fit.model.predict(x[:, 0])
    held = (seen.quantile(0.05) < x[:, 1]) & (x[:, 1] < seen.quantile(0.95))
    sys.stdout.write(f"the band of nine in ten holds {held.mean():.0%} of the rows\n")
    np.testing.assert_allclose(held.mean(), 0.9, atol=0.04)
    if len(sys.argv) > 1:
        seen.plot(x[:, 1]).figure.savefig(sys.argv[1], dpi=150)


if __name__ == "__main__":
    main()
