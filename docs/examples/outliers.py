"""Two wild rows: what a Gaussian makes of them, and what a heavy tail does.

In 1882 Simon Newcomb timed light on its way over 7,442 metres and back, 66 times. Two of the times are far off (-44 and
-2, in billionths of a second above 24,800). A Gaussian has no choice but to widen until they are likely, and to move
towards them. A Student's t is a Gaussian whose rows have precisions of their own; the E-step infers them, and the two
wild rows turn out to count for little. Laplace's distribution goes with the median.

    python docs/examples/outliers.py
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)

NEWCOMB = """28 26 33 24 34 -44 27 16 40 -2 29 22 24 21 25 30 23 29 31 19 24 20 36 32 36 28 25 21 28 29 37 25 28 26 30
             32 36 26 30 22 36 23 27 27 28 27 31 27 26 33 26 32 32 24 39 28 24 25 32 25 29 27 28 29 16 23"""
X = np.array([float(time) for time in NEWCOMB.split()])
ROWS = X[:, None]  # a Gaussian and a t read rows of D columns, here one
WILD = np.array([-44.0, -2.0])


def main() -> None:
    """Three fits to all 66 rows, and one Gaussian without the two."""
    assert (len(X), round(X.mean(), 2), round(X.std(ddof=1), 2)) == (66, 26.21, 10.75)  # as published

    gaussian = jem.fit(jem.Gaussian([0.0], [[1.0]]), ROWS)
    t = jem.fit(jem.StudentT([26.0], [[100.0]], 8.0), ROWS, tol=1e-10)
    laplace = jem.fit(jem.Laplace(0.0, 1.0), X, tol=1e-10)
    trimmed = jem.fit(jem.Gaussian([0.0], [[1.0]]), ROWS[~np.isin(X, WILD)])

    places = {
        "Gaussian": (gaussian, gaussian.model.mean[0], jnp.sqrt(gaussian.model.covariance[0, 0])),
        "Student's t": (t, t.model.location[0], jnp.sqrt(t.model.scatter[0, 0])),
        "Laplace": (laplace, laplace.model.location, laplace.model.scale),
        "Gaussian without the two": (trimmed, trimmed.model.mean[0], jnp.sqrt(trimmed.model.covariance[0, 0])),
    }
    for name, (fit, place, scale) in places.items():
        sys.stdout.write(
            f"{name:25} location {place:6.2f}  scale {scale:5.2f}  log-likelihood {fit.log_likelihood:8.2f}"
            f"  BIC {jem.bic(fit.log_likelihood, jem.free_parameters(fit.model), len(X)):7.1f}\n"
        )

    # What the E-step makes of each row: the precision that it is expected to have, E[u | x].
    dof, location, scatter = t.model.dof, t.model.location[0], t.model.scatter[0, 0]
    counts = np.asarray((dof + 1) / (dof + (X - location) ** 2 / scatter))
    wild = [float(counts[row == X][0]) for row in WILD]
    sys.stdout.write(f"degrees of freedom {dof:.2f}; the wild rows count {wild[0]:.4f} and {wild[1]:.4f}\n")

    # Few degrees of freedom: the tail is heavy. The t stands where a Gaussian does that was told what to leave out.
    assert t.converged
    assert dof < 4
    assert abs(location - trimmed.model.mean[0]) < 0.5 < abs(gaussian.model.mean[0] - trimmed.model.mean[0])
    assert max(wild) < 0.1
    assert np.median(counts) > 0.9
    # One parameter more, and more than thirty nats.
    assert t.log_likelihood - gaussian.log_likelihood > 30
    # The fit of a Laplace is the median and the mean absolute deviation from it.
    np.testing.assert_allclose(laplace.model.location, np.median(X), atol=1e-6)
    np.testing.assert_allclose(laplace.model.scale, np.abs(X - np.median(X)).mean(), rtol=1e-8)
    # If the degrees of freedom are known, they can be held.
    held = jem.fit(jem.StudentT([26.0], [[100.0]], 4.0, held=("dof",)), ROWS)
    assert held.model.dof == 4
    assert held.log_likelihood < t.log_likelihood


if __name__ == "__main__":
    main()
