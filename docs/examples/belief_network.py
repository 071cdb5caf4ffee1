"""Two bags of candies mixed up: a Bayesian network whose root nobody has seen.

Russell and Norvig (Artificial Intelligence: A Modern Approach, section 20.3) draw 1,000 candies, each with a flavour, a
wrapper and maybe a hole, from a mixture of two bags. Which bag it was is hidden. The book gives the first step of EM;
the top is a long way further, and an accelerated solver walks it in a third of the steps.
"""

import sys

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)

# wrapper red, hole, flavour cherry, and how many candies.
CANDIES = np.array(
    [
        [1, 1, 1, 273],
        [1, 0, 1, 93],
        [0, 1, 1, 104],
        [0, 0, 1, 90],
        [1, 1, 0, 79],
        [1, 0, 0, 100],
        [0, 1, 0, 94],
        [0, 0, 0, 167],
    ]
)
GRAPH = {"bag": [], "wrapper": ["bag"], "hole": ["bag"], "flavour": ["bag"]}
FIRST, SECOND = [0.4, 0.6], [0.6, 0.4]
X = dict(zip(["wrapper", "hole", "flavour"], CANDIES.T[:3], strict=True))


def main() -> None:
    """The book's step, the way to the top, and what a candy tells about its bag."""
    tables = {"bag": [0.6, 0.4]} | {name: [FIRST, SECOND] for name in ("wrapper", "hole", "flavour")}
    start = jem.BayesNet(GRAPH, tables)
    one = jem.fit(start, X, weight=CANDIES[:, 3], max_steps=1)
    told = [float(one.model.table("bag")[0])]
    told += [float(one.model.table(name)[bag, 1]) for bag in (0, 1) for name in ("flavour", "wrapper", "hole")]
    sys.stdout.write(f"after a step: {np.round(told, 4).tolist()}, log-likelihood {one.log_likelihood:.0f}\n")
    np.testing.assert_allclose(told, [0.6124, 0.6684, 0.6483, 0.6558, 0.3887, 0.3817, 0.3827], atol=5.1e-5)
    assert round(float(one.trace[0])) == -2044
    assert round(float(one.trace[1])) == -2021

    steps = {}
    for name, solver in {"EM": jem.EM(), "SQUAREM": jem.SQUAREM(jem.EM())}.items():
        fit = jem.fit(start, X, solver, weight=CANDIES[:, 3], tol=1e-9, max_steps=5000)
        steps[name] = int(fit.steps)
        sys.stdout.write(f"{name:8s} {fit.steps:5d} steps to {fit.log_likelihood:.5f}\n")
        np.testing.assert_allclose(fit.log_likelihood, -1979.36013, atol=2e-5)
    assert steps["SQUAREM"] < steps["EM"] / 2

    # Any cells may be seen and any hidden: of a candy in the dark only its hole can be felt.
    felt = fit.model.posterior({"hole": 1})
    sys.stdout.write(f"a hole: first bag {felt['bag'][0, 0]:.1%}, cherry {felt['flavour'][0, 1]:.1%}\n")
    best = fit.model.decode({"hole": 1})[0]
    sys.stdout.write(f"most probable of all: {dict(zip(GRAPH, best.tolist(), strict=True))}\n")
    assert best.tolist() == [0, 1, 1, 1]
    # The marginals, by the rule of Bayes.
    bag, hole = fit.model.table("bag"), fit.model.table("hole")[:, 1]
    np.testing.assert_allclose(felt["bag"][0], bag * hole / (bag @ hole), rtol=1e-9)


if __name__ == "__main__":
    main()
