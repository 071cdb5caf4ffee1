"""Directions are not numbers: 359 degrees and 1 degree lie next to each other.

Two herds: one walks north (0 degrees), the other south-west (225 degrees). Seen as numbers the northern herd is two, at
the ends of the scale; on the circle it is one.
"""

import sys

import jax
import numpy as np

import jaxem as jem

DEGREE = np.pi / 180
TRUTH = jem.Mixture([0.7, 0.3], jem.VonMises([0.0, 225 * DEGREE], [8.0, 4.0]))


def main() -> None:
    """Fit directions as what they are, and as numbers."""
    x = np.asarray(TRUTH.sample(jax.random.key(0), 1000)) % (2 * np.pi)
    start = jem.Mixture([0.5, 0.5], jem.VonMises([1.0, 4.0], [1.0, 1.0]))
    fit = jem.fit(start, x)
    order = np.argsort(-fit.model.weights)
    herds = fit.model.components
    for k in order:
        sys.stdout.write(
            f"{float(fit.model.weights[k]):.0%} walk to {float(herds.mean[k] / DEGREE) % 360:3.0f} degrees, "
            f"concentration {float(herds.concentration[k]):.1f}\n"
        )

    # The directions are found to a few degrees, whichever way the scale is cut.
    off = np.asarray(herds.mean[order] - TRUTH.components.mean)
    assert np.abs(np.sin(off / 2)).max() < np.sin(5 * DEGREE / 2)
    np.testing.assert_allclose(fit.model.weights[order], TRUTH.weights, atol=0.04)
    turned = jem.fit(start, x - 20 * np.pi)
    np.testing.assert_allclose(turned.log_likelihood, fit.log_likelihood, rtol=1e-4)

    # Two Gaussians have to choose: a wide one that covers both ends, or one end. They are much worse.
    start = jem.Mixture([0.5, 0.5], jem.DiagonalGaussian([[1.0], [4.0]], [[1.0], [1.0]]))
    numbers = jem.fit(start, x)
    sys.stdout.write(
        f"log-likelihood {fit.log_likelihood:.0f} on the circle, {numbers.log_likelihood:.0f} as numbers\n"
    )
    assert fit.log_likelihood > numbers.log_likelihood + 200


if __name__ == "__main__":
    main()
