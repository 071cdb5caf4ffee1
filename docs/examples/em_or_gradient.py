"""EM or gradient? Six solvers climb one log-likelihood from one start; who wins depends on how much is hidden.

Run it with a file name to keep the picture:

    python docs/examples/em_or_gradient.py race.png
"""

import sys

import jax
import jax.numpy as jnp
import optax

import jaxem as jem

jax.config.update("jax_enable_x64", True)  # a race to the last digits

SOLVERS = {
    "EM": jem.EM(),
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Anderson": jem.Anderson(jem.EM()),
    "L-BFGS": jem.LBFGS(),
    "Adam 0.03": jem.Gradient(optax.adam(0.03)),
    "gradient ascent": jem.Gradient(optax.sgd(0.5)),
}


def race(apart: float) -> jem.Race:
    """Two Gaussians in the plane, so far apart; all solvers start from the same rough guess."""
    truth = jem.Mixture([0.4, 0.6], jem.Gaussian([[0.0, 0.0], [apart, 0.0]], jnp.stack([jnp.eye(2)] * 2)))
    x = truth.sample(jax.random.key(0), 2_000)
    guess = jem.Mixture([0.5, 0.5], jem.Gaussian([[-0.5, 0.5], [apart + 0.5, -0.5]], jnp.stack([2 * jnp.eye(2)] * 2)))
    return jem.compare(guess, x, SOLVERS, max_steps=3_000)


def main(picture: str | None = None) -> None:
    """Little hidden: EM has arrived before a gradient has its step size. Much hidden: EM crawls, acceleration runs."""
    clear, blurred = race(4.0), race(1.8)

    # Every EM step shrinks the gap by the share of the information that is hidden: near nothing, or nearly all of it.
    assert blurred.runs[0].fit.steps > 5 * clear.runs[0].fit.steps

    # Acceleration wraps EM, never goes down, and takes a fraction of its passes where EM is slow.
    em, *fast = blurred.runs[:3]
    assert all(float(run.fit.passes) < 0.5 * float(em.fit.passes) for run in fast)

    # How fast EM is, is known at the top: the largest fraction of information that is missing there.
    sys.stdout.write(f"EM's own rate: {clear.rate:.3f} and {blurred.rate:.3f}\n")
    assert clear.rate < 0.8 < 0.95 < blurred.rate
    for one in (clear, blurred):
        sys.stdout.write(f"{one.table()}\n")

    if picture is not None:
        blurred.plot().savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:2])
