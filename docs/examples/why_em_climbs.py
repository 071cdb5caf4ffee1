"""Why EM never goes down: L = Q - H, M-steps raise Q, and H cannot rise.

One mean of a mixture is unknown, so that all of it can be drawn over one axis: the log-likelihood L, and for each step
the bound Q(.|old) - H(old|old), which touches L at the old mean. Run it with a file name to keep the picture:

    python docs/examples/why_em_climbs.py climb.png
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem as jem
from jaxem.palette import PALETTE

jax.config.update("jax_enable_x64", True)  # an equation, to the last digits

GRID = np.linspace(-3.0, 6.0, 361)
OLD, NEW = -2, -1  # where the two means of a step stand, behind the grid


def model(mean: Any) -> jem.Mixture:
    """All is known but the mean of the second of two Gaussians."""
    return jem.Mixture([0.5, 0.5], jem.SphericalGaussian(jnp.array([0.0, mean])[:, None], jnp.ones(2)))


@jax.jit
def em_step(old: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """The next mean; and L, Q and H at every mean of the grid, at the old mean and at the next.

    L(mean) = log p(x). Q(mean|old) is the expected log p(x, z), where the component z of each row is known as well as
    the old mean knows it. H(mean|old) is the expected log p(z|x).
    """
    log_prob, pullback = model(old).e_step(x)
    statistics, share = pullback(jnp.ones_like(log_prob)), model(old).posterior(x)
    new = model(old).m_step(statistics).components.mean[1, 0]

    def at(mean: jax.Array) -> tuple[jax.Array, ...]:
        there = model(mean)
        return (
            there.log_prob(x).sum(),
            there.expected_log_prob(statistics),
            jnp.sum(share * jnp.log(there.posterior(x))),
        )

    return new, *jax.vmap(at)(jnp.append(GRID, jnp.array([old, new])))


def main(picture: str | None = None) -> None:
    """Follow EM from step to step, and check at each why it climbs."""
    x = model(3.0).sample(jax.random.key(1), 60)
    steps, old = [], -1.0
    for _ in range(20):
        new, climbed, q, h = (np.asarray(part) for part in em_step(old, x))
        # p(x) = p(x, z) / p(z|x), so L = Q - H at every mean, whatever the old one is.
        np.testing.assert_allclose(climbed, q - h, rtol=1e-12)
        # H is largest at the old mean: what is drawn from one distribution looks most likely under that one (Gibbs).
        assert (h <= h[OLD] + 1e-10).all()
        # So Q - H(old|old) is nowhere above L, and touches it at the old mean.
        bound = q - h[OLD]
        assert (bound <= climbed + 1e-10).all()
        assert abs(bound[OLD] - climbed[OLD]) < 1e-10
        # The M-step goes to the top of Q, and L rises by at least what Q rises.
        assert (q <= q[NEW] + 1e-10).all()
        assert climbed[NEW] - climbed[OLD] >= q[NEW] - q[OLD] - 1e-10
        steps.append((old, float(new), climbed, q, h))
        old = float(new)

    for old, new, climbed, q, h in steps[:5]:
        rises = f"Q rises by {q[NEW] - q[OLD]:.4f}, H falls by {h[OLD] - h[NEW]:.4f}"
        sys.stdout.write(f"mean {old:.4f} to {new:.4f}: {rises}, L rises by {climbed[NEW] - climbed[OLD]:.4f}\n")
    # -H(old|old) is how undecided the model is about z, in nats.
    np.testing.assert_allclose(-steps[0][4][OLD], jem.entropy(model(steps[0][0]), x), rtol=1e-12)
    # The last step stays where it is, on the top of L.
    old, new, climbed, _, _ = steps[-1]
    assert abs(new - old) < 1e-8
    assert (climbed <= climbed[NEW] + 1e-10).all()

    if picture is not None:
        draw(steps).savefig(picture, dpi=110)


def draw(steps: list[Any]) -> Any:
    """Left L and the bounds of the first steps, right what the second step is made of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(GRID, steps[0][2][:OLD], color=PALETTE[7], lw=2.5, label="L, the log-likelihood")
    for (old, new, climbed, q, h), colour, line in zip(
        steps, PALETTE[:4], ("--", "-.", ":", (0, (6, 1, 1, 1))), strict=False
    ):
        bound = q - h[OLD]
        left.plot(GRID, bound[:OLD], color=colour, ls=line, lw=1.8, label=f"Q - H(old|old), old = {old:.2f}")
        left.plot([old], [climbed[OLD]], "o", color=colour, ms=7)
        left.plot([new, new], [bound[NEW], climbed[NEW]], color=colour, lw=1)
    left.set(ylim=(-300, -100), title="Each bound touches L at the old mean")
    left.legend(frameon=False, fontsize=9)

    old, new, climbed, q, h = steps[1]
    for rise, colour, line, name, height in (
        (climbed - climbed[OLD], PALETTE[7], "-", "L(mean) - L(old)", 106),
        (q - q[OLD], PALETTE[1], "-.", "Q(mean|old) - Q(old|old)", -2),
        (h[OLD] - h, PALETTE[0], "--", "H(old|old) - H(mean|old)", 121),
    ):
        right.plot(GRID, rise[:OLD], color=colour, ls=line, lw=1.8)
        right.annotate(name, (6.4, height), ha="right", color=colour, fontsize=9)
    for mean, name in ((old, " old"), (new, " new")):
        right.axvline(mean, color="#c9ced6", lw=1, zorder=0)
        right.annotate(name, (mean, -116), fontsize=9)
    right.set(ylim=(-120, 145), title="The second step: L rises by what Q rises, and more")
    for ax in (left, right):
        ax.set(xlabel="the unknown mean", ylabel="nats")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:2])
