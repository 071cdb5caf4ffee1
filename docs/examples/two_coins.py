"""Two coins, and nobody wrote down which was tossed: hard EM, one soft step, and many.

Each round is tossed with one of two coins of unknown bias. Two tutorials are worked through: five rounds of five
tosses, and the five rounds of ten tosses of Do and Batzoglou (Nature Biotechnology 26, 2008, figure 1).

    python docs/examples/two_coins.py
"""

import sys

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)  # published to 8 digits

FIVE_TOSSES = np.array([3, 2, 1, 3, 2])  # heads in each round
TEN_TOSSES = np.array([5, 9, 8, 4, 7])


def coins(tosses: int, p1: float, p2: float) -> jem.Mixture:
    """Two coins with these probabilities of heads, of which both tutorials hold the choice at one half each."""
    return jem.hold(jem.Mixture([0.5, 0.5], jem.Binomial(tosses, [p1, p2])), "weights")


def heads(fit: jem.Fit) -> np.ndarray:
    """P1 and P2."""
    return np.asarray(fit.model.components.probs)


def say(what: str, found: np.ndarray) -> None:
    """One line."""
    sys.stdout.write(f"{what:34} P1 = {found[0]:.4f}  P2 = {found[1]:.4f}\n")


def five_tosses() -> None:
    """Rounds of 3, 2, 1, 3, 2 heads; the guess is P1 = 0.2 and P2 = 0.7."""
    start = coins(5, 0.2, 0.7)

    # Hard: each round belongs to the likelier coin. Coin 1 gets rounds 2, 3 and 5, coin 2 the rounds of three heads.
    assert start.predict(FIVE_TOSSES).tolist() == [1, 0, 0, 1, 0]
    hard = heads(jem.fit(start, FIVE_TOSSES, jem.HardEM(), max_steps=1))
    np.testing.assert_allclose(hard, [5 / 15, 6 / 10], rtol=1e-12)
    say("five tosses, one hard step:", hard)

    # Soft: each round is shared out. The tutorial rounds the shares, and so gets 4.22 heads and 7.98 tails for coin 1.
    share = np.asarray(start.posterior(FIVE_TOSSES))[:, 0]
    rounded = share.round(2)
    assert rounded.tolist() == [0.14, 0.61, 0.94, 0.14, 0.61]
    np.testing.assert_allclose([rounded @ FIVE_TOSSES, rounded @ (5 - FIVE_TOSSES)], [4.22, 7.98], rtol=1e-12)
    assert round(4.22 / (4.22 + 7.98), 2) == 0.35
    # Unrounded there are 7.96 tails, and P1 is 0.3465.
    np.testing.assert_allclose([share @ FIVE_TOSSES, share @ (5 - FIVE_TOSSES)], [4.21898, 7.95532], atol=5e-6)
    soft = heads(jem.fit(start, FIVE_TOSSES, max_steps=1))
    np.testing.assert_allclose(soft, [0.3465478, 0.52870588], atol=5e-8)
    say("five tosses, one soft step:", soft)

    # The tutorial stops there. EM goes on until both coins are one, with the share of heads of all 25 tosses: these
    # rounds differ less than those of even a single coin would, so nothing in them tells two coins apart.
    end = jem.fit(start, FIVE_TOSSES, tol=1e-13)
    assert end.converged
    np.testing.assert_allclose(heads(end), 11 / 25, atol=1e-4)
    assert FIVE_TOSSES.var() < 5 * 0.44 * 0.56
    say(f"five tosses, {end.steps} soft steps:", heads(end))


def ten_tosses() -> None:
    """Do and Batzoglou: 5, 9, 8, 4, 7 heads; the guess is 0.6 and 0.5."""
    start = coins(10, 0.6, 0.5)
    share = np.asarray(start.posterior(TEN_TOSSES))[:, 0]
    assert share.round(2).tolist() == [0.45, 0.80, 0.73, 0.35, 0.65]
    for steps, published, exact in (
        (1, [0.71, 0.58], (0.71301224, 0.58133931)),
        (10, [0.80, 0.52], (0.79674415, 0.51965866)),
    ):
        found = heads(jem.fit(start, TEN_TOSSES, tol=0.0, max_steps=steps))
        assert found.round(2).tolist() == published
        np.testing.assert_allclose(found, exact, atol=5e-9)
        say(f"ten tosses, step {steps}:", found)

    end = jem.fit(start, TEN_TOSSES, tol=1e-13)
    np.testing.assert_allclose(heads(end), [0.7967890669, 0.5195831201], atol=1e-6)
    say(f"ten tosses, {end.steps} steps:", heads(end))

    # Released, the mixture learns how often each coin is taken as well.
    free = jem.fit(jem.release(start), TEN_TOSSES, tol=1e-13)
    assert free.log_likelihood > end.log_likelihood
    say(f"the same, P(coin 1) = {free.model.weights[0]:.2f} learnt:", heads(free))


if __name__ == "__main__":
    five_tosses()
    ten_tosses()
