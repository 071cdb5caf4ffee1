"""Missing cells: what leaving rows out does to an answer, and what EM makes of the same table.

Delays of one aircraft. The delay on arrival is erased for most flights that left late, as if a recorder failed in a
hurry: whether a cell is there depends on what was seen in its row ("missing at random"; Rubin 1976, Biometrika 63:581).
Flights that are left out then are not like the others, so means and correlations of the rest are wrong. EM takes the
exact likelihood of what was seen: nothing is left out, nothing is invented.
"""

import sys

import jax
import numpy as np

import jaxem as jem
from jaxem import datasets

jax.config.update("jax_enable_x64", True)


def delays() -> np.ndarray:
    """Minutes late at departure and at arrival, of the aircraft with the most flights."""
    flights = datasets.flights().drop_nulls(["dep_delay", "arr_delay"])
    busiest = flights["tailnum"].mode().sort()[0]
    rows = flights.filter(flights["tailnum"] == busiest).select("dep_delay", "arr_delay").to_numpy().astype(float)
    return np.cbrt(rows)  # so that they are not all tail


def fitted(x: np.ndarray, weight: np.ndarray) -> jem.Fit:
    """One Gaussian: mean and covariance by maximum likelihood."""
    return jem.fit(jem.Gaussian(np.zeros(2), np.eye(2)), x, weight=weight, tol=1e-10)


def main() -> None:
    """Erase, fit, compare, fill in."""
    truth = delays()
    rng = np.random.default_rng(0)
    erased = truth.copy()
    erased[(truth[:, 0] > 0) & (rng.random(len(truth)) < 0.8), 1] = np.nan

    gone = np.isnan(erased[:, 1])

    everything = np.ones(len(truth))
    fits = {
        "all the data": fitted(truth, everything),
        "rows left out": fitted(truth, np.where(gone, 0.0, 1.0)),
        "EM": fitted(erased, everything),
    }
    for name, fit in fits.items():
        mean, covariance = np.asarray(fit.model.mean), np.asarray(fit.model.covariance)
        correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        sys.stdout.write(f"{name:14} mean on arrival {mean[1]:+.3f}  correlation {correlation:.3f}\n")
    aim, dropped, em = (np.asarray(fit.model.mean)[1] for fit in fits.values())
    assert abs(dropped - aim) > 0.3
    assert abs(em - aim) < 0.1

    # The gaps, filled with their conditional mean; and with draws, which keep the spread.
    model = fits["EM"].model
    means, draws = model.impute(erased), model.impute(erased, jax.random.key(0))
    error = np.sqrt(np.mean((np.asarray(means)[gone, 1] - truth[gone, 1]) ** 2))
    naive = np.sqrt(np.mean((np.nanmean(erased[:, 1]) - truth[gone, 1]) ** 2))
    sys.stdout.write(f"filled in with an error of {error:.2f}, by the column's mean {naive:.2f}\n")
    assert error < 0.7 * naive
    assert np.std(means[gone, 1]) < 0.9 * np.std(draws[gone, 1])

    # Components, states, mixed columns: a gap is a gap everywhere.
    start = jem.Mixture.start(jax.random.key(1), jem.Gaussian, erased, 2)
    mixture = jem.fit(start, erased)
    assert mixture.converged
    assert mixture.log_likelihood > fits["EM"].log_likelihood


if __name__ == "__main__":
    main()
