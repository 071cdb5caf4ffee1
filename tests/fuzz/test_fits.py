"""Hostile mixtures fitted by EM and what accelerates it: what a status says, against long doubles without JAX."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, Self

import jax
import numpy as np
import pytest
from scipy.special import gammaln

import jaxem as jem
from fuzz.budget import cases, generator

pytestmark = pytest.mark.slow

BATCH, ROWS, MEMBERS, CATEGORIES = 100, 12, 2, 3
TOL, LONGER = 1e-6, 2_000
Wide = np.longdouble
SOLVERS = {
    "EM": jem.EM(),
    "SQUAREM": jem.SQUAREM(jem.EM()),
    "Anderson": jem.Anderson(jem.EM()),
}
SOUND = [int(status) for status in jem.Status if not (status.failed or status.degenerate)]


@dataclasses.dataclass
class Plain:
    """Mixtures `[B]` of a normal, a Poisson and a categorical column, of which some may be hidden altogether."""

    weights: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    rate: np.ndarray
    probs: np.ndarray

    @classmethod
    def of(cls, model: jem.Mixture) -> Self:
        normal, poisson, categorical = model.components.parts
        leaves = (model.weights, normal.mean[..., 0], normal.covariance[..., 0, 0], poisson.rate, categorical.probs)
        return cls(*(np.asarray(leaf).astype(Wide) for leaf in leaves))

    def model(self, dtype: Any) -> jem.Mixture:
        weights, mean, variance, rate, probs = (leaf.astype(dtype) for leaf in dataclasses.astuple(self))
        normal = jem.Gaussian(mean[..., None], variance[..., None, None])
        return jem.Mixture(weights, jem.Product((normal, jem.Poisson(rate), jem.Categorical(probs))))

    def columns(self, data: Data) -> list[np.ndarray]:
        """The terms of log p(x, z), each `[B, n, K]`; zero where a cell was not seen."""
        x, count, category = (data.x[:, :, None, i] for i in range(3))
        apart = (x - self.mean[:, None]) ** 2 / self.variance[:, None]
        rate = self.rate[:, None]
        here = np.nan_to_num(category).astype(int)[..., 0]
        probs = np.moveaxis(np.take_along_axis(self.probs, here[:, None], axis=-1), 1, 2)
        # Nothing of a count of zero depends on log(0).
        logs = np.where(count > 0, count * np.log(np.where((rate > 0) | (count > 0), rate, 1)), 0)
        found = [
            -apart / 2,
            np.where(np.isnan(x), 0, -np.log(2 * np.pi * self.variance)[:, None] / 2),
            logs,
            np.where(np.isnan(count), 0, -rate),
            np.broadcast_to(data.constant, apart.shape),
            np.where(np.isnan(category), 0, np.log(probs)),
        ]
        return [np.log(self.weights)[:, None], *(np.where(np.isnan(term), 0, term) for term in found)]

    def terms(self, data: Data) -> np.ndarray:
        """log p(x, z) `[B, n, K]`."""
        labelled = (data.labels[..., None] >= 0) & (data.labels[..., None] != np.arange(MEMBERS))
        return np.where(labelled, -np.inf, sum(self.columns(data)))

    def log_likelihood(self, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """`[B]`, and how large the numbers are of which it is the sum."""
        rows = np.logaddexp.reduce(self.terms(data), axis=-1)
        sizes = sum(np.abs(np.where(np.isfinite(term), term, 0)) for term in self.columns(data))
        counts = data.counts
        return (
            np.where(counts, data.weight * np.where(counts, rows, 0), 0).sum(-1),
            np.where(counts, data.weight * np.max(sizes, -1), 0).sum(-1),
        )

    def after(self, data: Data, tiny: float) -> Self:
        """One step of EM; a member, or a column of it, of which nothing was seen (no share above `tiny`) stays."""
        terms = self.terms(data)
        most = terms.max(-1, keepdims=True)
        mass = np.exp(terms - np.where(np.isfinite(most), most, 0))
        mass = np.where(data.counts[..., None] & (mass > tiny), mass, 0)
        mass *= data.weight[..., None] / np.where(data.counts[..., None], mass.sum(-1, keepdims=True), 1)
        seen = ~np.isnan(data.x)
        x = np.nan_to_num(data.x)

        def shared(total: np.ndarray, over: np.ndarray, old: np.ndarray) -> np.ndarray:
            return np.where(over > 0, total / np.where(over > 0, over, 1), old)

        whole = mass.sum(1)
        own = [(mass * seen[:, :, i, None]) for i in range(3)]
        mean = shared((own[0] * x[..., 0, None]).sum(1), own[0].sum(1), self.mean)
        variance = shared((own[0] * (x[..., 0, None] - mean[:, None]) ** 2).sum(1), own[0].sum(1), self.variance)
        rate = shared((own[1] * x[..., 1, None]).sum(1), own[1].sum(1), self.rate)
        is_category = x[..., 2, None] == np.arange(CATEGORIES)
        counted = (own[2][..., None] * is_category[:, :, None]).sum(1)
        probs = shared(counted, own[2].sum(1)[..., None], self.probs)
        # A normal that nobody sees, or on a single point, stays as it is.
        variance = np.where(variance > 0, variance, self.variance)
        return type(self)(shared(whole, whole.sum(-1, keepdims=True), self.weights), mean, variance, rate, probs)

    def some(self, which: np.ndarray) -> Self:
        return type(self)(*(leaf[which] for leaf in dataclasses.astuple(self)))

    def moves(self, new: Self) -> np.ndarray:
        """`[B]`, has any number changed but by rounding?"""
        each = zip(dataclasses.astuple(self), dataclasses.astuple(new), strict=True)
        return np.any([(np.abs(b - a) > 1e-16 * np.abs(a)).reshape(len(a), -1).any(-1) for a, b in each], axis=0)


def later(end: Plain, data: Data, tiny: float) -> np.ndarray:
    """The log-likelihoods after many more steps."""
    found = np.empty(len(end.rate), Wide)
    places = np.arange(len(found))
    for step in range(LONGER):
        new = end.after(data, tiny)
        if step % 50 == 0 and not (goes := end.moves(new)).all():
            found[places[~goes]] = new.some(~goes).log_likelihood(data.some(~goes))[0]
            new, data, places = new.some(goes), data.some(goes), places[goes]
        if not len(places):
            return found
        end = new
    found[places] = end.log_likelihood(data)[0]
    return found


@dataclasses.dataclass
class Data:
    """Rows `[B, n, 3]`, their weights and labels `[B, n]`."""

    x: np.ndarray
    weight: np.ndarray
    labels: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return (self.weight > 0) & ~np.isnan(self.x).all(-1)

    @functools.cached_property
    def constant(self) -> np.ndarray:
        """- log count!, which no parameter changes."""
        return -gammaln(self.x[..., 1, None].astype(float) + 1)

    def some(self, which: np.ndarray) -> Data:
        return Data(self.x[which], self.weight[which], self.labels[which])


def draw(rng: np.random.Generator, dtype: Any) -> tuple[Plain, Data]:
    """Starts and rows: one kind of column in two thirds of the problems, all three in the others."""

    def some(share: float, *shape: int) -> np.ndarray:
        return rng.random((BATCH, *shape)) < share

    most = 9 if dtype == np.float32 else 12
    scale = 10.0 ** rng.uniform(-most, most, (BATCH, 1))
    apart = 10.0 ** rng.uniform(-1, 1.5, (BATCH, 1))
    z = rng.integers(0, MEMBERS, (BATCH, ROWS))
    x = rng.normal(size=(BATCH, ROWS)) + apart * z + rng.choice([0.0, 30.0], (BATCH, 1))
    x = scale * np.where(some(0.2, 1), np.round(x), x)  # ties
    size = 10.0 ** rng.uniform(-2, 5, (BATCH, 1))
    count = rng.poisson(size * np.where(z == 1, 1 + apart, 1))
    category = np.minimum(rng.integers(0, CATEGORIES, (BATCH, ROWS)), np.where(some(0.3, 1), z, 2))
    rows = np.stack([x, count, category], axis=-1)
    shown = np.stack([some(1.1), *[some(0.0)] * 2], axis=-1)
    kind = rng.integers(0, 6, BATCH)
    shown = np.where((kind < 3)[:, None], np.arange(3) == kind[:, None], True)
    rows = np.where(shown[:, None], rows, np.nan)
    rows = np.where(some(0.3, 1, 1) & some(0.2, ROWS, 3), np.nan, rows).astype(dtype)
    weight = np.where(some(0.3, 1), 10.0 ** rng.uniform(-6, 6, (BATCH, ROWS)), 1.0)
    weight = np.where(some(0.3, 1) & some(0.3, ROWS), 0.0, weight)
    weight = np.where(some(0.1, 1), 10.0 ** rng.uniform(-12, 12, (BATCH, 1)), weight).astype(dtype)
    labels = np.where(some(0.3, 1) & some(0.3, ROWS), z, -1)
    first = rng.permuted(np.tile(np.arange(ROWS), (BATCH, 1)), axis=1)[:, :MEMBERS]

    def at(column: int) -> np.ndarray:
        """Of two rows; where those were not seen, the mean of what was."""
        there = rows[..., column].astype(float)
        seen = (~np.isnan(there)).sum(1, keepdims=True)
        mean = np.nan_to_num(there).sum(1, keepdims=True) / np.maximum(seen, 1)
        picked = np.take_along_axis(there, first, axis=1)
        return np.where(np.isnan(picked), mean, picked)

    weights = rng.dirichlet(np.ones(MEMBERS), BATCH)
    weights = np.where(some(0.1, 1), [1.0, 0.0], weights)
    probs = rng.dirichlet(np.ones(CATEGORIES), (BATCH, MEMBERS))
    without = np.where(np.arange(CATEGORIES) == 2, 0.0, probs)
    probs = np.where(some(0.15, 1, 1), without / without.sum(-1, keepdims=True), probs)
    spread = np.broadcast_to((scale * apart * 10.0 ** rng.uniform(-0.5, 0.5, (BATCH, MEMBERS))) ** 2, (BATCH, MEMBERS))
    start = Plain(weights, at(0), spread, at(1) + size * rng.uniform(0.5, 2, (BATCH, MEMBERS)), probs)
    # What the fit is given: rounded to its type, and exactly normalised there.
    return Plain.of(start.model(dtype)), Data(rows.astype(Wide), weight.astype(Wide), labels)


def check(solver: str, dtype: Any, start: Plain, data: Data) -> list[str]:
    """What is wrong with the fits of these problems, in words."""
    single = dtype == np.float32
    fits = jem.fit_many(
        start.model(dtype), data.x.astype(dtype), SOLVERS[solver], weight=data.weight.astype(dtype),
        labels=data.labels, tol=TOL,
    )  # fmt: skip
    end, words = Plain.of(fits.model), fits.status_name
    usable = ~np.isin(words, [status.name for status in jem.Status if status.failed])
    sound = np.isin(np.asarray(fits.status), SOUND)
    eps = float(np.finfo(dtype).eps)
    wrong = []

    def expect(what: str, holds: np.ndarray, whom: np.ndarray, *shown: np.ndarray) -> None:
        told = ([np.asarray(each[i], float).tolist() for each in shown] for i in range(BATCH))
        bad = whom & ~holds
        wrong.extend(f"{what}: case {i} ({words[i]}) {each}" for i, each in enumerate(told) if bad[i])

    leaves = [leaf.reshape(BATCH, -1) for leaf in dataclasses.astuple(end)]
    expect("finite", np.all([np.isfinite(leaf).all(-1) for leaf in leaves], axis=0), usable)
    expect("simplex", np.abs(end.weights.sum(-1) - 1) < 8 * eps, usable, end.weights)
    expect("simplex of a member", (np.abs(end.probs.sum(-1) - 1) < 8 * eps).all(-1), usable, end.probs)
    expect("no negative share", (end.weights >= 0).all(-1) & (end.probs >= 0).all((-1, -2)), usable)
    expect("variance above zero", (end.variance > 0).all(-1), usable, end.variance)
    expect("rate", (end.rate >= 0).all(-1), usable, end.rate)
    expect("zeros stay", ((end.weights == 0) | (start.weights > 0)).all(-1), usable, end.weights)
    expect("zeros of a member stay", ((end.probs == 0) | (start.probs > 0)).all((-1, -2)), usable, end.probs)
    height, size = end.log_likelihood(data)
    off = np.abs(np.asarray(fits.log_likelihood, Wide) - height)
    expect("log-likelihood", off <= 64 * eps * (size + np.abs(height)), usable, off, height, size)
    converged = np.asarray(fits.converged) & sound
    gain = np.zeros(BATCH)
    found = later(end.some(converged), data.some(converged), float(np.finfo(dtype).tiny))
    gain[converged] = (found - height[converged]) / data.weight[converged].sum(-1)
    rounding = 64 * eps * (size + np.abs(height)) / data.weight.sum(-1)
    expect("converged", gain <= 5 * TOL + (rounding if single else 0), converged, gain, fits.steps)
    return wrong


@pytest.mark.parametrize(("solver", "dtype"), list(itertools.product(SOLVERS, ["float64", "float32"])))
def test_fits(solver: str, dtype: str) -> None:
    rng = generator(f"fits {solver} {dtype}")
    wrong: list[str] = []
    with np.errstate(all="ignore"):
        for batch in range(-(-cases(200) // BATCH)):
            start, data = draw(rng, np.dtype(dtype))
            wrong += [f"batch {batch}: {each}" for each in check(solver, np.dtype(dtype), start, data)]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:40])
    assert jax.config.jax_enable_x64
