"""A fit has a derivative: choose the strength of a prior by the gradient of a held-out log-likelihood.

Eight columns and twenty-five rows: without a prior the variances fit the noise. How many pseudo-rows should each
component see? Instead of refitting for every guess, the fit itself is differentiated at the place where it ends
(implicit differentiation: none of its steps is stored), and gradient ascent walks to the strength.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxem as jem

jax.config.update("jax_enable_x64", True)  # a derivative is as exact as the maximum

COLUMNS = 8
MEANS = jnp.stack([jnp.zeros(COLUMNS), jnp.full(COLUMNS, 2.0)])
TRUTH = jem.Mixture([0.4, 0.6], jem.DiagonalGaussian(MEANS, jnp.ones((2, COLUMNS))))
TRAIN, HELD_OUT = TRUTH.sample(jax.random.key(7), 25), TRUTH.sample(jax.random.key(8), 500)


@jax.jit
@jax.value_and_grad
def held_out(log_rows: jax.Array) -> jax.Array:
    """Nats for each row that the fit has not seen, and their slope; `exp(log_rows)` pseudo-rows for each component."""
    prior = jem.priors.Weak(jnp.exp(log_rows))
    fit = jem.fit(TRUTH, TRAIN, jem.SQUAREM(jem.EM()), prior=prior, tol=1e-15, max_steps=2000)
    return jnp.mean(fit.model.log_prob(HELD_OUT))


def main() -> None:
    """Ascend, and check the derivative against refits and the end against a grid."""
    start = jnp.log(0.2)
    (above, _), (below, _) = held_out(start + 1e-4), held_out(start - 1e-4)
    np.testing.assert_allclose(held_out(start)[1], (above - below) / 2e-4, rtol=1e-5)

    ascent = optax.sgd(4.0)
    place, state = start, ascent.init(start)
    for turn in range(31):
        value, slope = held_out(place)
        if turn % 10 == 0:
            sys.stdout.write(f"pseudo-rows {jnp.exp(place):7.3f}  held out {value:.5f}  slope {slope:+.5f}\n")
        change, state = ascent.update(-slope, state)
        place = place + change

    # No strength on a grid does better; next to no prior does worse.
    best, grid = float(held_out(place)[0]), [float(held_out(jnp.log(rows))[0]) for rows in np.geomspace(0.01, 100, 25)]
    assert best > max(grid) - 1e-4
    assert best > grid[0] + 0.1
    sys.stdout.write(f"With a hundredth of a pseudo-row it is {grid[0]:.5f}.\n")


if __name__ == "__main__":
    main()
