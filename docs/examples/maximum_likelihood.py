"""Maximum likelihood in four steps: write the likelihood, take logs, differentiate, solve.

For a Gaussian the last step has a closed form. It is what one M-step computes and what gradient ascent climbs to; the
data are the 29 densities of the Earth (water = 1) that Cavendish measured in 1798.

    python docs/examples/maximum_likelihood.py
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxem as jem

jax.config.update("jax_enable_x64", True)  # zero to 12 digits

CAVENDISH = """5.50 5.61 4.88 5.07 5.26 5.55 5.36 5.29 5.58 5.65 5.57 5.53 5.62 5.29 5.44 5.34 5.79 5.10 5.27 5.39
               5.42 5.47 5.63 5.34 5.46 5.30 5.75 5.68 5.85"""
X = np.array([float(density) for density in CAVENDISH.split()])
ROWS = X[:, None]  # a Gaussian reads rows of D columns, here one


def likelihood(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Step 1. Rows are independent, so the density of all of them is a product."""
    return jnp.prod(jnp.exp(-((X - mean) ** 2) / (2 * variance)) / jnp.sqrt(2 * jnp.pi * variance))


def log_likelihood(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Step 2. The logarithm turns the product into a sum; its top is in the same place."""
    return jnp.sum(-0.5 * jnp.log(2 * jnp.pi * variance) - (X - mean) ** 2 / (2 * variance))


def slope(mean: float, variance: float) -> tuple[float, float]:
    """Step 3, by hand: the derivative by the mean, and that by the variance."""
    off = X - mean
    return off.sum() / variance, (off**2).sum() / (2 * variance**2) - len(X) / (2 * variance)


def solution() -> tuple[float, float]:
    """Step 4. Both derivatives are zero here: the mean, and the mean squared deviation from it (n below, not n - 1)."""
    mean = X.sum() / len(X)
    return mean, ((X - mean) ** 2).sum() / len(X)


def main() -> None:
    """Four ways to one pair of numbers."""
    mean, variance = solution()
    assert round(mean, 3) == 5.448  # the published mean of these 29

    # The four steps hold together: at a guess the derivative is JAX's, at the solution it is zero.
    value_and_slope = jax.jit(jax.value_and_grad(log_likelihood, (0, 1)))
    value, derivative = value_and_slope(5.0, 1.0)
    np.testing.assert_allclose(value, np.log(jax.jit(likelihood)(5.0, 1.0)), rtol=1e-12)
    np.testing.assert_allclose(derivative, slope(5.0, 1.0), rtol=1e-12)
    top, derivative = value_and_slope(mean, variance)
    np.testing.assert_allclose(derivative, 0, atol=1e-10)

    # Nothing is hidden, so EM has nothing to iterate: one M-step, from any start, is the closed form.
    start = jem.Gaussian([5.0], [[1.0]])
    step = jem.fit(start, ROWS, max_steps=1)
    np.testing.assert_allclose(step.model.mean[0], mean, rtol=1e-12)
    # Not to the last digit: a 1e-8 of one row's scatter is always added, so that no Gaussian shrinks to a point.
    np.testing.assert_allclose(step.model.covariance[0, 0], variance, rtol=1e-8)
    np.testing.assert_allclose(step.log_likelihood, top, rtol=1e-12)
    # Models are pytrees: the gradient by all parameters is again a model, and here it is zero.
    gradient = jax.grad(lambda model: model.log_prob(ROWS).sum())(step.model)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-5)

    # Gradient ascent does not know the closed form. It climbs the same function to the same top, in more steps.
    sys.stdout.write(f"closed form      mean {mean:.6f}  variance {variance:.6f}  log-likelihood {top:.6f}\n")
    fits = {
        "one M-step": step,
        "gradient ascent": jem.fit(start, ROWS, jem.Gradient(optax.adam(0.1)), tol=1e-12),
        "L-BFGS": jem.fit(start, ROWS, jem.LBFGS(), tol=1e-12),
    }
    for name, fit in fits.items():
        found = fit.model.mean[0], fit.model.covariance[0, 0]
        np.testing.assert_allclose(found, (mean, variance), rtol=1e-5)
        sys.stdout.write(
            f"{name:16} mean {found[0]:.6f}  variance {found[1]:.6f}  log-likelihood {fit.log_likelihood:.6f}"
            f"  steps {fit.steps}\n"
        )


if __name__ == "__main__":
    main()
