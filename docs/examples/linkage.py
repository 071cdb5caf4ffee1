"""EM for a model of your own: genetic linkage (Dempster, Laird and Rubin 1977), the example that EM became known by.

Of 197 animals 125, 18, 20 and 34 fall into four classes, whose probabilities 1/2 + p/4, (1 - p)/4, (1 - p)/4 and p/4
depend on one number p. The first class is two in one, 1/2 and p/4: which of the two an animal is in is hidden. Some
twenty lines say this, and every solver, batches of problems and the race between solvers come with it:

    python docs/examples/linkage.py
"""

import sys
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import jaxem as jem
from jaxem.core.constraints import parameter, unit_interval
from jaxem.core.pytree import module, replace
from jaxem.latent.base import log_potential

jax.config.update("jax_enable_x64", True)  # the table has nine digits

ROWS = np.arange(4)  # one row for each class, weighted with the number of animals in it
COUNTS = np.array([125.0, 18.0, 20.0, 34.0])
# Table 1 of the paper, from p = 0.5. Its last digit is rounded up here and there.
PUBLISHED = [0.608247423, 0.624321051, 0.626488879, 0.626777323, 0.626815632, 0.626820719, 0.626821395, 0.626821484]
LIMIT = (15 + 53809**0.5) / 394  # where the derivative of the log-likelihood is zero: 197 p^2 - 15 p - 68 = 0


# The five cells: FIXED + SLOPE p.
FIXED = np.array([0.5, 0, 0.25, 0.25, 0])
SLOPE = np.array([0, 0.25, -0.25, -0.25, 0.25])


@module
class Linkage(jem.Latent):
    """Five hidden cells of probability 1/2, p/4, (1 - p)/4, (1 - p)/4, p/4; the first two look the same."""

    p: Array = parameter(unit_interval)
    seen: jem.Categorical  # [..., 5, 4]: the class that each cell is seen as

    @property
    def child(self) -> jem.Categorical:
        return self.seen

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.p.shape

    def potentials(self) -> Array:
        return log_potential(FIXED + SLOPE * self.p[..., None])

    def log_normalizer(self, potentials: Array, evidence: Array, add: Any, x: Any) -> Array:
        return add(potentials[..., None] + evidence, -2)

    def with_counts(self, counts: Array, child: Any) -> Self:
        # p is the share of the animals in cells that have it. What a cell looks like is given, so `child` is not used.
        with_p, without = counts[..., 1] + counts[..., 4], counts[..., 2] + counts[..., 3]
        return replace(self, p=with_p / (with_p + without))

    def is_degenerate(self, floor: Any) -> Array:
        return jnp.zeros(self.batch_shape, bool)  # there is no variance that could


def linkage(p: Any) -> Linkage:
    """The model at p, or one for each p: cell 0 and cell 1 are both seen as class 0."""
    return Linkage(p, jem.Categorical(np.broadcast_to(np.eye(4)[[0, 0, 1, 2, 3]], (*np.shape(p), 5, 4))))


@jax.jit
def em_step(model: Linkage) -> Linkage:
    """What jem.EM() does in a step, in full."""
    _, pullback = model.e_step(ROWS)
    return model.m_step(pullback(COUNTS))


def main() -> None:
    """The published table, then what comes with the model."""
    model, error = linkage(0.5), 0.5 - LIMIT
    for step, published in enumerate(PUBLISHED, start=1):
        model = em_step(model)
        before, error = error, float(model.p) - LIMIT
        assert abs(float(model.p) - published) < 1e-9
        sys.stdout.write(
            f"step {step}  p = {model.p:.9f}  published {published:.9f}  of the error left {error / before:.4f}\n"
        )
    # Louis (1982): 57.8 of the 435.3 units of information are hidden. That share of the error is left by a step.
    assert abs(error / before - 57.8 / 435.3) < 1e-4

    # Every solver goes to the same place.
    solvers = {
        "EM": jem.EM(),
        "SQUAREM": jem.SQUAREM(jem.EM()),
        "gradient ascent": jem.Gradient(optax.sgd(1.0)),
        "L-BFGS": jem.LBFGS(),
    }
    race = jem.compare(linkage(0.5), ROWS, solvers, weight=COUNTS, tol=1e-14)
    for run in race.runs:
        assert run.fit.converged, run.fit.status_message
        assert abs(float(run.fit.model.p) - LIMIT) < 1e-6
        sys.stdout.write(f"{run.name:15}  p = {run.fit.model.p:.9f}  {run.fit.passes:3} passes over the data\n")

    # Many families at once: a leading axis of p, and counts for each. A row of the table is the same problem again.
    counts = np.random.default_rng(0).multinomial(197, [0.65, 0.1, 0.1, 0.15], 200).astype(float)
    counts[0] = COUNTS
    fits = jem.fit_many(linkage(np.full(200, 0.5)), np.tile(ROWS, (200, 1)), weight=counts, tol=1e-14)
    assert fits.converged.all()
    a, b, c, d = counts.T
    linear = a - 2 * b - 2 * c - d  # the derivative is zero where n p^2 - (a - 2b - 2c - d) p - 2d = 0
    exact = (linear + np.sqrt(linear**2 + 8 * 197 * d)) / (2 * 197)
    np.testing.assert_allclose(fits.model.p, exact, atol=1e-6)
    sys.stdout.write(f"200 problems     p from {fits.model.p.min():.3f} to {fits.model.p.max():.3f}\n")


if __name__ == "__main__":
    main()
