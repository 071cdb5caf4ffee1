"""A radial basis function network, and Gaussian-mixture regression: a curve with its own uncertainty.

The noise grows to the right. A network of eight units, each with a linear output, finds the curve and how wide the data
are about it in every place; a Gaussian process of the usual kind has one width for all. A mixture of Gaussians over
input and response together, asked for the response given the input, is the same model without roles.

And the same on published data: 442 patients, ten measurements, how far their diabetes had gone a year later (Efron,
Hastie, Johnstone and Tibshirani 2004). Of the variance of patients left out, two units explain 0.52, kernel ridge
regression 0.52, a straight line 0.50. More units need a prior: eight explain 0.29, and 0.50 with `jem.priors.Weak(10)`.

    python docs/examples/rbf.py [picture.png]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold

import jaxem as jem

jax.config.update("jax_enable_x64", True)


def patients() -> None:
    """The network beside a line and a kernel method, on patients that they have not seen."""
    inputs, response = load_diabetes(return_X_y=True)
    errors, peers = [], (KernelRidge(kernel="rbf", alpha=0.3, gamma=0.01), LinearRegression())
    for learned, left in KFold(5, shuffle=True, random_state=0).split(inputs):
        z = (inputs - inputs[learned].mean(0)) / inputs[learned].std(0)
        y = (response - response[learned].mean()) / response[learned].std()
        # Patients of weight zero are not there, and one compiled shape serves all five parts.
        weight = np.isin(np.arange(442), learned).astype(float)
        start = jem.RBFNetwork.start(jax.random.key(0), z, y, 2, weight=weight, restarts=4)
        fit = jem.fit(start, start.rows(z, y), weight=weight)
        means = [fit.model.predict(z[left]).mean]
        means += [peer.fit(z[learned], y[learned]).predict(z[left]) for peer in peers]
        errors.append([np.sum((y[left] - mean) ** 2) for mean in (*means, np.zeros(len(left)))])
    *left_over, all_of_it = np.sum(errors, axis=0)
    network, ridge, line = 1 - np.array(left_over) / all_of_it
    sys.stdout.write(f"explained: {network:.2f} by two units, {ridge:.2f} by kernel ridge, {line:.2f} by a line\n")
    assert network > ridge - 0.01
    assert network > line


def main() -> None:
    """The network against the curve that made the data, and the mixture that it is."""
    rng = np.random.default_rng(1)
    z, grid = rng.uniform(0, 10, 300), np.linspace(0.3, 9.7, 100)
    y = 3 * np.sin(z) + (0.1 + 0.1 * z) * rng.normal(size=300)

    network = jem.RBFNetwork.start(jax.random.key(0), z, y, 8)
    rows = network.rows(z, y)
    fit = jem.fit(network, rows, max_steps=100)
    prediction = fit.model.predict(grid)

    # Every unit is a Gaussian over input and response: its output is the slope, its noise what the slope leaves.
    units, outputs = fit.model.components.parts
    slope, across = outputs.coefficients[:, 0], outputs.coefficients[:, 0] * units.variance
    mean = jnp.stack([units.mean[:, 0], outputs.intercept + slope * units.mean[:, 0]], axis=-1)
    covariance = jnp.array([[units.variance, across], [across, outputs.variance + slope * across]])
    joint = jem.Mixture(fit.model.weights, jem.Gaussian(mean, jnp.moveaxis(covariance, -1, 0)))
    np.testing.assert_allclose(joint.log_prob(rows), fit.model.log_prob(rows), rtol=1e-9)
    given = jem.conditional(joint, [0], grid)
    np.testing.assert_allclose(given.mean, prediction.mean, rtol=1e-9)
    np.testing.assert_allclose(given.quantile(0.1), prediction.quantile(0.1), rtol=1e-9)

    error, width = np.sqrt(np.mean((prediction.mean - 3 * np.sin(grid)) ** 2)), np.sqrt(prediction.variance)
    sys.stdout.write(
        f"error {error:.3f}; deviation {width[:20].mean():.2f} on the left, {width[-20:].mean():.2f} right\n"
    )
    assert error < 0.35  # a tenth of the curve's height, from noise of 0.1 to 1.1
    assert width[-20:].mean() > 2 * width[:20].mean()
    seen = fit.model.predict(z)
    held = (seen.quantile(0.05) < y) & (y < seen.quantile(0.95))
    np.testing.assert_allclose(held.mean(), 0.9, atol=0.04)
    if len(sys.argv) > 1:
        seen.plot(y).figure.savefig(sys.argv[1], dpi=150)


if __name__ == "__main__":
    main()
    patients()
