"""Baum-Welch is EM: one update by the library, one written out from posteriors, one by counting every path.

The days were cold or hot, which is hidden; what is known is how many ice creams were eaten on each of 33 days, one to
three (the diary of Eisner's "An interactive spreadsheet for teaching the forward-backward algorithm", 2002).

    python docs/examples/baum_welch.py
"""

import itertools
import sys
from functools import partial

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)  # three answers, equal to 12 digits

DIARY = [int(day) - 1 for day in "233232322313311121113121112332322"]  # categories count from zero
SHORT = DIARY[:10]  # 2^10 paths can still be counted one by one
PAIRS = jax.jit(partial(jem.chains.forward_backward, per_step=True))  # the transitions into each day, not their sum


def guess() -> jem.HMM:
    """Eisner's: a day is mostly like the one before; on cold days he eats few ice creams, on hot ones many.

    (His chain also stops, from either state alike. Divided by what is left, 0.8 and 0.1 are 8/9 and 1/9.)
    """
    eaten = jem.Categorical([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    return jem.HMM([0.5, 0.5], [[8 / 9, 1 / 9], [1 / 9, 8 / 9]], eaten)


def parts(model: jem.HMM) -> list[np.ndarray]:
    """Initial and transition probabilities, and those of each number of ice creams."""
    return [np.asarray(part) for part in (model.initial, model.transition, model.emission.probs)]


def shares(counts: np.ndarray) -> np.ndarray:
    """Every M-step of this model: counts as shares of their row."""
    return counts / counts.sum(-1, keepdims=True)


def from_posteriors(model: jem.HMM, days: list[int]) -> list[np.ndarray]:
    """Baum's update: from gamma, the posterior of each day's state, and xi, that of each pair of days."""
    log_initial, log_transition = model.potentials()
    log_likelihood = model.emission.log_prob(days).T  # members lead, rows last; a chain wants [days, states]
    posterior = PAIRS(log_initial, log_transition, log_likelihood)
    gamma, xi = np.asarray(posterior.marginals), np.asarray(posterior.transitions)
    one_hot = np.eye(3)[days]
    return [gamma[0], shares(xi.sum(0)), shares(gamma.T @ one_hot)]


def by_counting(model: jem.HMM, days: list[int]) -> tuple[float, list[np.ndarray]]:
    """log p(days), and the same update with no algorithm at all: what each path uses, times its probability."""
    initial, transition, eaten = parts(model)
    total, used = 0.0, [np.zeros(2), np.zeros((2, 2)), np.zeros((2, 3))]
    for path in itertools.product(range(2), repeat=len(days)):
        moves = list(itertools.pairwise(path))
        meals = list(zip(path, days, strict=True))
        probability = initial[path[0]] * np.prod([transition[m] for m in moves]) * np.prod([eaten[m] for m in meals])
        total += probability
        used[0][path[0]] += probability
        for move in moves:
            used[1][move] += probability
        for meal in meals:
            used[2][meal] += probability
    return float(np.log(total)), [shares(counts) for counts in used]


def main() -> None:
    """Three ways to one step; then all the way up."""
    model, short, diary = guess(), np.array(SHORT, float), np.array(DIARY, float)
    step = jem.fit(model, short, jem.EM(), max_steps=1)
    log_likelihood, counted = by_counting(model, SHORT)
    np.testing.assert_allclose(step.trace[0], log_likelihood, rtol=1e-12)
    for by_em, written, by_hand in zip(parts(step.model), from_posteriors(model, SHORT), counted, strict=True):
        np.testing.assert_allclose(by_em, by_hand, rtol=1e-12)
        np.testing.assert_allclose(written, by_hand, rtol=1e-12)
    sys.stdout.write(f"ten days, {2**10} paths: one step by EM, by posteriors and by counting is the same\n")

    # The whole diary has 8,589,934,592 paths. EM climbs at every step.
    end = jem.fit(model, diary, jem.EM(), tol=1e-12)
    assert end.converged, end.status_message
    climbed = np.asarray(end.trace)[: int(end.steps) + 1]
    assert (np.diff(climbed) > 0).all()
    sys.stdout.write(f"33 days: log-likelihood {climbed[0]:.4f}, {climbed[1]:.4f}, ... {climbed[-1]:.4f}\n")
    _, transition, eaten = parts(end.model)
    for state, name in enumerate(("cold", "hot")):
        sys.stdout.write(f"{name:5} stays with probability {transition[state, state]:.3f}; 1, 2, 3 ice creams: ")
        sys.stdout.write(f"{' '.join(f'{p:.3f}' for p in eaten[state])}\n")


if __name__ == "__main__":
    main()
