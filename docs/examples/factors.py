"""A mixture of factor analysers: clusters in twenty columns, each with its own few directions.

Three clusters overlap; what tells them apart is which columns move together. A full covariance says that in 210
numbers, and there are fifty rows in a cluster to tell them from. A factor model says it with two loadings a column. It
is a family like any other, so a mixture of it (Ghahramani and Hinton 1996) is `jem.Mixture` of `jem.FactorAnalysis`.

    python docs/examples/factors.py
"""

import sys

import jax
import numpy as np

import jaxem as jem

COLUMNS, FACTORS, ROWS = 20, 2, 150


def truth() -> jem.Mixture:
    """Three clusters, each with loadings of its own."""
    rng = np.random.default_rng(1)
    mean, loadings = rng.normal(size=(3, COLUMNS)) * 0.8, rng.normal(size=(3, COLUMNS, FACTORS))
    return jem.Mixture(np.ones(3) / 3, jem.FactorAnalysis(mean, loadings, rng.uniform(0.3, 1.0, (3, COLUMNS))))


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of pairs of rows that two clusterings both put together, or both apart (Rand 1971)."""
    return float(np.mean((a[:, None] == a) == (b[:, None] == b)))


def main() -> None:
    """Draw rows, fit to the first of them, and compare on the others."""
    model = truth()
    x = np.asarray(model.sample(jax.random.key(0), ROWS + 1000))
    clusters = np.asarray(model.predict(x))

    start = jem.Mixture.start(
        jax.random.key(3), jem.sized(jem.FactorAnalysis, factors=FACTORS), x[:ROWS], 3, restarts=5
    )
    fit = jem.fit(start, x[:ROWS])
    found = np.asarray(fit.model.predict(x))

    # 20 means, 20 noises and 2 x 20 loadings for each cluster, less one for the rotation that data cannot tell.
    numbers = jem.free_parameters(fit.model)
    assert numbers == 2 + 3 * (20 + 20 + 40 - 1)
    held_out, best = (float(m.log_prob(x)[ROWS:].mean()) for m in (fit.model, model))
    sys.stdout.write(
        f"{numbers} numbers from {ROWS * COLUMNS}; on rows not seen {held_out:.2f} nats each, the truth {best:.2f}\n"
        f"pairs of rows on which the clusters agree with the truth: {agreement(found, clusters):.0%}\n"
    )
    assert best - 2 < held_out < best
    assert agreement(found, clusters) > 0.95

    # Where each row stands on each cluster's factors: [3, rows, 2]. They are the true ones, turned.
    factors, true = (np.asarray(m.components.transform(x)) for m in (fit.model, model))
    for k in range(3):
        rows = clusters == k
        turned = np.column_stack([factors[np.bincount(found[rows]).argmax()][rows], np.ones(rows.sum())])
        left = true[k][rows] - turned @ np.linalg.lstsq(turned, true[k][rows], rcond=None)[0]
        assert left.var() < 0.1 * true[k][rows].var()


if __name__ == "__main__":
    main()
