"""Bootstrap: how much estimates vary from one data set to another, by refits of data sets that are like this one."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxem.core.arguments import as_key, whole
from jaxem.data.prepare import as_weight
from jaxem.distributions.base import check_model
from jaxem.fitting.many.fit_many import fit_many
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.latent.base import Latent
from jaxem.solvers.em import EM
from jaxem.uncertainty.alignment import align as aligned

KINDS = ("parametric", "rows", "weights", "jackknife")
INTERVALS = ("percentile", "basic", "bca")
NUMBERS = 1 << 24
"""Weights, or numbers drawn, that are in memory at once: 128 MB. More replicates are fitted in turns of one shape."""
USABLE = np.array([not (status.failed or status.degenerate) for status in sorted(Status)])


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits of data sets like the original one.

    Attributes:
        model: the fit from which they set out.
        models: the refits, with a leading axis B, their components in the order of `model`.
        status: `[B]` codes of `jem.Status`; failed and degenerate refits count nowhere below.
        log_likelihood: `[B]`, of each refit's own data.
        agreement: `[B]`, the share of the original rows whose most probable component is that of `model`; NaN where
            there are no components, or where nothing was put in order. Far below one, components change their
            meaning from one refit to another, and standard errors of each say little.
        kind: of the bootstrap.
        multiplicity: `[B]`, of how many left-out rows each refit speaks: one each but in a jackknife of counted rows.

    >>> import jaxem as jem
    >>> jem.bootstrap(0, jem.Poisson(2.0), [1.0, 2.0, 3.0], kind="jackknife")
    Bootstrap(jackknife, 3 replicates)
    """

    model: Any
    models: Any
    status: np.ndarray
    log_likelihood: np.ndarray
    agreement: np.ndarray
    kind: str
    multiplicity: np.ndarray
    _jackknife: Callable[[], Bootstrap] = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        failures = "".join(f", {count} {name}" for name, count in self.failures.items())
        low = f", agreement {np.nanmin(self.agreement):.2f} or more" if np.isfinite(self.agreement).any() else ""
        return f"Bootstrap({self.kind}, {len(self.status)} replicates{failures}{low})"

    @property
    def usable(self) -> np.ndarray:
        """`[B]` bool: refits that neither failed nor are degenerate."""
        return USABLE[self.status]

    @property
    def failures(self) -> dict[str, int]:
        """How many refits are left out, by the names of their statuses."""
        return dict(Counter(Status(int(code)).name for code in self.status[~self.usable]))

    @property
    def standard_error(self) -> Any:
        """Standard deviation over refits, a pytree like the model: `standard_error.components.mean` is `[K, D]`.

        Of a jackknife sqrt((n - 1) / n sum of squared deviations) (Tukey 1958). NaN with fewer than two usable refits.
        """
        used, times = self.usable, self.multiplicity[self.usable]

        def spread(leaf: np.ndarray) -> np.ndarray:
            total = times.sum()
            if total < 2:
                return np.full(leaf.shape[1:], np.nan)
            values = leaf[used]
            weight = times.reshape(-1, *(1 for _ in leaf.shape[1:]))
            squares = (weight * (values - (weight * values).sum(0) / total) ** 2).sum(0)
            return np.asarray(np.sqrt(squares * ((total - 1) / total if self.kind == "jackknife" else 1 / (total - 1))))

        return _each(spread, self.models)

    def interval(self, level: float = 0.95, kind: str = "percentile") -> tuple[Any, Any]:
        """Two models, the lower and the upper ends of intervals.

        Args:
            level: the probability with which an interval should hold the truth.
            kind: `"percentile"` (quantiles of the refits); `"basic"` (2 estimate - quantiles); `"bca"` (quantiles
                corrected for bias and for a spread that changes with the parameter, Efron 1987, JASA 82:171; this takes
                a jackknife, one more refit for each row, once).

        Raises:
            ValueError: a level outside (0, 1), another kind, or an interval of a jackknife, which has no quantiles.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}; it must be between 0 and 1")
        if kind not in INTERVALS:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(INTERVALS)}")
        if self.kind == "jackknife":
            raise ValueError("a jackknife has no quantiles; take its standard_error, or another kind of bootstrap")
        ends = ((1 - level) / 2, (1 + level) / 2)
        if kind == "basic":
            upper, lower = self.interval(level)
            return tuple(_each(lambda end, at: 2 * at - end, end, self.model) for end in (lower, upper))  # type: ignore
        if kind == "percentile":
            return tuple(_each(lambda leaf, end=end: self._quantile(leaf, end), self.models) for end in ends)  # type: ignore
        each, trees = self._accelerated, (self.models, self.model)

        def end_of(end: float) -> Any:
            def corrected(leaf: np.ndarray, at: np.ndarray, refits: np.ndarray) -> np.ndarray:
                level = self._level(leaf, at, refits[each.usable], each.multiplicity[each.usable], end)
                return self._quantile(leaf, level)

            return _each(corrected, *trees, each.models)

        return end_of(ends[0]), end_of(ends[1])

    @cached_property
    def _accelerated(self) -> Bootstrap:
        return self._jackknife()

    def _quantile(self, leaf: np.ndarray, level: Any) -> np.ndarray:
        """Of each number of a parameter, at a level of its own."""
        values = np.sort(leaf[self.usable], axis=0)
        level = np.broadcast_to(np.asarray(level, float), values.shape[1:])
        if not len(values):
            return np.full(level.shape, np.nan)
        place = np.where(np.isnan(level), 0, level) * (len(values) - 1)
        low = np.floor(place).astype(int)
        low, high = (np.take_along_axis(values, at[None], axis=0)[0] for at in (low, np.ceil(place).astype(int)))
        return np.asarray(np.where(np.isnan(level), np.nan, low + (high - low) * (place - np.floor(place))))

    def _level(self, leaf: np.ndarray, at: np.ndarray, refits: np.ndarray, times: np.ndarray, end: float) -> np.ndarray:
        """Of which quantile the end of an interval is, corrected; NaN if all refits are on one side of the estimate."""
        values = leaf[self.usable]
        below = ((values < at).sum(0) + (values == at).sum(0) / 2) / max(len(values), 1)
        weight = times.reshape(-1, *(1 for _ in at.shape)).astype(float)
        off = (weight * refits).sum(0) / weight.sum() - refits
        squares = (weight * off**2).sum(0)
        bend = (weight * off**3).sum(0) / (6 * np.where(squares > 0, squares, np.nan) ** 1.5)
        normal = NormalDist()

        def level(below: float, bend: float) -> float:
            if not (0 < below < 1 and math.isfinite(bend)):
                return math.nan
            bias = normal.inv_cdf(below)
            shifted = bias + normal.inv_cdf(end)
            return normal.cdf(bias + shifted / (1 - bend * shifted)) if bend * shifted < 1 else math.nan

        return np.asarray(np.vectorize(level, otypes=[float])(below, bend))


class _Data(NamedTuple):
    """What every refit is given."""

    x: Any
    weight: np.ndarray | None
    prior: Any
    labels: Any
    how: dict[str, Any]


def bootstrap(
    key: Any,
    fit: Any,
    x: Any,
    replicates: int | None = 999,
    kind: str = "parametric",
    *,
    align: bool = True,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    tol: float = 1e-6,
    max_steps: int = 1000,
    progress: Any = False,
) -> Bootstrap:
    """Refits of data sets that are like x, all of them one call of `fit_many`, each from the fit itself.

    From the fit because a refit should find the same optimum of similar data: that keeps components apart, too. What
    is left of their order is settled by the rows that they take (`jem.align`), and how far that is the same
    classification is told: see `Bootstrap.agreement`.

    - `"parametric"`: rows drawn from the model, as many, with the inputs, gaps and lengths of x (`sample_like`);
    - `"rows"`: rows (whole sequences) drawn from x with replacement (Efron 1979), as weights;
    - `"weights"`: weights drawn from Dirichlet's distribution (Rubin 1981; the weighted likelihood bootstrap of Newton
      and Raftery 1994): smoother, as no row is ever lost;
    - `"jackknife"`: each row left out in turn; `replicates` is not used.

    The last three share the rows: they take `replicates` x n weights, 128 MB at a time, and no copy of x. Weights that
    are whole numbers count rows, and stand for so many; others are taken as the weights of a survey, and multiplied.

    Args:
        key: a JAX random key or a seed.
        fit: a `Fit` of one model, or the model.
        x: what it was fitted to.
        replicates: B.
        kind: as above.
        align: whether to put the components of each refit in the order of the fit.
        weight, prior, labels, solver, tol, max_steps: what the fit was given.
        progress: as in `fit_many`.

    Raises:
        TypeError: no fit and no model.
        ValueError: another kind; one sequence, or one row, drawn from itself; a parametric bootstrap with labels, or
            with weights that are no counts.

    >>> import jax, jaxem as jem
    >>> x = jem.Poisson(4.0).sample(0, 100)
    >>> told = bootstrap(1, jem.fit(jem.Poisson(1.0), x), x, 400, "rows")
    >>> bool(abs(told.standard_error.rate / (x.var() / 100) ** 0.5 - 1) < 0.15), told.failures
    (True, {})
    """
    model = fit.model if isinstance(fit, Fit) else fit
    check_model(model, x, "fit")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if model.batch_shape:
        raise ValueError(f"fit holds models of batch shape {model.batch_shape}; bootstrap takes one, such as {_ONE}")
    x = model.read(x)
    n = len(x)
    if kind != "parametric" and n < 2:
        what = "one sequence, which" if hasattr(x, "length") else "one row, which"
        raise ValueError(f'x holds {what} cannot be drawn from itself; take kind="parametric"')
    weight = None if weight is None else np.asarray(as_weight(weight, (n,), f"{n} rows"), float)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))).ravel().tolist())
    how = {"solver": solver, "tol": tol, "max_steps": max_steps, "progress": progress}
    data = _Data(x, weight, prior, labels, how)
    count = None if kind == "jackknife" else whole(replicates, "replicates", 2)
    if kind == "parametric":
        refits, times = _of_drawn_data(as_key(key), model, data, count), np.ones(count or 0)  # type: ignore[arg-type]
    elif kind == "jackknife":
        refits, times = _leave_one_out(model, data)
    else:
        refits, times = _of_weights(rng, model, data, count, kind), np.ones(count or 0)  # type: ignore[arg-type]
    models, agreement = refits.model, np.full(len(refits.status), np.nan)
    if align and isinstance(model, Latent):
        found = aligned(models, model, x, weight)
        models, agreement = found.models, found.agreement

    def jackknife() -> Bootstrap:
        return bootstrap(
            key, model, x, None, "jackknife", align=align, weight=weight, prior=prior, labels=labels, **how
        )

    status, log_likelihood = np.asarray(refits.status), np.asarray(refits.log_likelihood)
    return Bootstrap(model, models, status, log_likelihood, agreement, kind, times, jackknife)


_ONE = "jax.tree.map(lambda leaf: leaf[0], fits.model)"


def _each(function: Callable[..., Any], *trees: Any) -> Any:
    """`function` of the float64 numbers of each parameter."""
    return jax.tree.map(lambda *leaves: np.asarray(function(*(np.asarray(leaf, float) for leaf in leaves))), *trees)


def _turns(count: int, size: int) -> tuple[int, int]:
    """How many turns of how many replicates, of which each holds `size` numbers."""
    turns = -(-count * size // NUMBERS)
    return turns, -(-count // turns)


def _repeated(model: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape)), jax.device_get(model))


def _joined(fits: list[Fit], count: int) -> Fit:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *fits)


def is_counts(weight: np.ndarray | None) -> bool:
    """Whether weights count rows."""
    return weight is None or bool((weight == np.floor(weight)).all())


def repeated_rows(x: Any, weight: np.ndarray | None) -> Any:
    """Rows (sequences), each as often as it counts."""
    if weight is None:
        return x
    rows = np.repeat(np.arange(len(weight)), weight.astype(int))
    return jax.tree.map(lambda leaf: leaf[rows], x)


def _of_weights(rng: np.random.Generator, model: Any, data: _Data, count: int, kind: str) -> Fit:
    n = len(data.x)
    weight = np.ones(n) if data.weight is None else data.weight
    counted = is_counts(data.weight)
    base, times = (weight, np.ones(n)) if counted else ((weight > 0).astype(float), weight)

    def draw(size: int) -> np.ndarray:
        if kind == "rows":
            return rng.multinomial(int(base.sum()), base / base.sum(), size=size) * times
        each = rng.gamma(np.where(base > 0, base, 1), size=(size, n)) * (base > 0) * times
        return each * (weight.sum() / each.sum(1, keepdims=True))

    turns, size = _turns(count, n)
    return _joined([_shared(model, data, draw(size)) for _ in range(turns)], count)


def _shared(model: Any, data: _Data, weight: np.ndarray) -> Fit:
    starts = _repeated(model, len(weight))
    return fit_many(starts, data.x, weight=weight, prior=data.prior, labels=data.labels, shared=True, **data.how)


def _leave_one_out(model: Any, data: _Data) -> tuple[Fit, np.ndarray]:
    """A refit for each row that counts, and how many such rows it stands for."""
    n = len(data.x)
    weight = np.ones(n) if data.weight is None else data.weight
    (rows,) = np.nonzero(weight)
    less = np.ones(len(rows)) if is_counts(data.weight) else weight[rows]
    turns, size = _turns(len(rows), n)
    fits = []
    for turn in range(turns):
        mine = np.minimum(np.arange(turn * size, (turn + 1) * size), len(rows) - 1)
        each = np.tile(weight, (size, 1))
        each[np.arange(size), rows[mine]] -= less[mine]
        fits.append(_shared(model, data, each))
    return _joined(fits, len(rows)), weight[rows] / less


def _of_drawn_data(key: Any, model: Any, data: _Data, count: int) -> Fit:
    if data.labels is not None:
        raise ValueError('labels belong to the rows of x, and a parametric bootstrap draws others; take kind="rows"')
    if not is_counts(data.weight):
        raise ValueError('weight holds numbers that count no rows, of which none can be drawn; take kind="rows"')
    x = repeated_rows(data.x, data.weight)
    turns, size = _turns(count, sum(leaf.size for leaf in jax.tree.leaves(x)))
    fits = []
    for turn in range(turns):
        keys = jax.random.split(jax.random.fold_in(key, turn), size)
        fits.append(fit_many(_repeated(model, size), _drawn(model, keys, x), prior=data.prior, **data.how))
    return _joined(fits, count)


def _drawn(model: Any, keys: Any, x: Any) -> Any:
    return jax.vmap(lambda key: model.sample_like(key, x))(keys)
