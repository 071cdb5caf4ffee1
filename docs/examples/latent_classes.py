"""Latent class analysis is a Bayesian network of two lines: a hidden class, and the answers that follow from it.

Stouffer and Toby (1951) asked 216 students what they would do in four conflicts between a friend and the law: hold on
to the rule (0) or to the friend (1)? Goodman (1974, Biometrika 61:215) found that two classes of people explain the
answers: those who always hold on to the rule, and those who weigh each case.
"""

import itertools
import sys

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)

CASES = ["A", "B", "C", "D"]
ANSWERS = np.array(list(itertools.product([0, 1], repeat=4)))
PEOPLE = np.array([42, 23, 6, 25, 6, 24, 7, 38, 1, 4, 1, 6, 2, 9, 2, 20])


def main() -> None:
    """Two classes: do they explain the table, who are they, and who belongs to which?"""
    x = dict(zip(CASES, ANSWERS.T, strict=True))
    # The two lines. The class is no column of x: it is hidden in all rows.
    graph = {"class": []} | {case: ["class"] for case in CASES}
    starts = jem.BayesNet.start(jax.random.key(0), graph, x, {"class": 2}, weight=PEOPLE, restarts=20)
    fit = jem.fit(starts, x, jem.SQUAREM(jem.EM()), weight=PEOPLE, tol=1e-10)

    # Against the table itself, as Goodman reports it: 2.72 with 6 degrees of freedom.
    deviance = 2 * (np.sum(PEOPLE * np.log(PEOPLE / PEOPLE.sum())) - float(fit.log_likelihood))
    free = len(PEOPLE) - 1 - jem.free_parameters(fit.model)
    sys.stdout.write(f"G2 = {deviance:.3f} with {free} degrees of freedom\n")
    assert abs(deviance - 2.720) < 1e-3
    assert free == 6

    order = np.argsort(fit.model.table("class"))
    share = np.asarray(fit.model.table("class"))[order]
    friend = np.stack([fit.model.table(case)[order, 1] for case in CASES], axis=1)
    for name, size, row in zip(("by the rule", "it depends"), share, friend, strict=True):
        sys.stdout.write(f"{name:12s} {size:5.1%} of the students; for the friend: {row.round(2).tolist()}\n")
    np.testing.assert_allclose(share, [0.279, 0.721], atol=5e-4)
    np.testing.assert_allclose(friend[0], [0.007, 0.060, 0.073, 0.231], atol=5e-4)

    # Who has answered A and C only? A question that was not put is a cell that is hidden.
    belongs = fit.model.posterior({"A": [0, 1], "C": [0, 1]})["class"][:, order[0]]
    sys.stdout.write(f"rule in A and C: {belongs[0]:.0%} by the rule; friend in both: {belongs[1]:.1%}\n")
    assert belongs[0] > 0.5 > 0.01 > belongs[1]


if __name__ == "__main__":
    main()
