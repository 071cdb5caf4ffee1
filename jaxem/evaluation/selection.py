"""Selection of a model: families, numbers of components and restarts in one call, with every criterion for each."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.core.arguments import as_key, optional, whole
from jaxem.core.constraints import free_parameters
from jaxem.data.missing import incomplete
from jaxem.data.padding import SHAPE
from jaxem.data.prepare import as_floats, stacked
from jaxem.data.problems import as_problems
from jaxem.data.sequences import Sequences
from jaxem.data.sequences import stacked as stacked_sequences
from jaxem.distributions.registry import FAMILIES
from jaxem.distributions.words import as_family
from jaxem.evaluation import criteria
from jaxem.fitting.many.fit_many import fit_many
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.latent.components import fixed_states, map_states
from jaxem.latent.starts import start_many
from jaxem.solvers.em import EM

CRITERIA = ("bic", "aic", "aicc", "caic", "sabic", "icl", "nec", "cv")
FAILED = np.array([status for status in Status if status.failed])
DEGENERATE = np.array([status for status in Status if status.degenerate])


def choose(criterion: np.ndarray, status: np.ndarray) -> np.ndarray:
    """`[B]` index of the smallest criterion of `[B, C]`; -1 if every fit failed.

    A degenerate fit (collapsed, vanished) is chosen only if there is no sound one: its likelihood depends on
    its floor more than on the data.
    """
    value = np.where(np.isin(status, FAILED) | np.isnan(criterion), np.inf, criterion)
    sound = np.where(np.isin(status, DEGENERATE), np.inf, value)
    any_sound = np.isfinite(sound).any(axis=1)
    return np.where(any_sound, sound.argmin(axis=1), np.where(np.isfinite(value).any(axis=1), value.argmin(axis=1), -1))


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Fits of every candidate to B data sets, and the best of each by a criterion.

    Attributes:
        candidates: C pairs of a family's name and a number of components (states).
        fits: of each candidate, with a leading axis B.
        scores: by name, `[B, C]`: `log_likelihood`, `p` (free parameters), `status`, and the criteria, of which smaller
            is better, but for `cv`: the log-likelihood of rows that were left out.
        choice: `[B]`, which candidate; -1 where all failed.
        criterion: by which.

    >>> import jaxem as jem
    >>> jem.select(0, "poisson", [1.0, 2.0, 2.0, 3.0], components=[1], restarts=1)
    Selection(1 candidates by bic: poisson 1)
    """

    candidates: tuple[tuple[str, int], ...]
    fits: tuple[Fit, ...]
    scores: dict[str, np.ndarray]
    choice: np.ndarray
    criterion: str

    def __repr__(self) -> str:
        named = [f"{self.candidates[i][0]} {self.candidates[i][1]}" if i >= 0 else "none" for i in self.choice[:3]]
        chosen = ", ".join(named)
        more = f", ... ({len(self.choice)} data sets)" if len(self.choice) > 3 else ""
        return f"Selection({len(self.candidates)} candidates by {self.criterion}: {chosen}{more})"

    @property
    def fit(self) -> Fit:
        """The best, of one data set.

        Raises:
            ValueError: every candidate failed, or there are several data sets.
        """
        if len(self.choice) != 1:
            raise ValueError(f"there are {len(self.choice)} data sets; best_of(i) is the best fit of one")
        return self.best_of(0)

    def best_of(self, problem: int) -> Fit:
        """The best fit of one of the data sets."""
        which = int(self.choice[problem])
        if which < 0:
            names = {Status(int(code)).name for code in self.scores["status"][problem]}
            raise ValueError(f"no candidate could be fitted to data set {problem}: {', '.join(sorted(names))}")
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[problem]), self.fits[which])

    def table(self) -> Any:
        """A polars frame with a line for each data set and candidate; `chosen` is true in one line of each set."""
        import polars

        problems, count = self.scores["p"].shape
        columns = {
            "problem": np.repeat(np.arange(problems), count),
            "family": [family for family, _ in self.candidates] * problems,
            "components": [k for _, k in self.candidates] * problems,
            **{name: values.ravel() for name, values in self.scores.items() if name != "status"},
            "status": [Status(int(code)).name for code in self.scores["status"].ravel()],
            "chosen": (np.arange(count) == self.choice[:, None]).ravel(),
        }
        frame = polars.DataFrame(columns)
        return frame.drop("problem") if problems == 1 else frame


def select(
    key: Any,
    families: Any,
    x: Any,
    components: Iterable[int] = range(1, 7),
    *,
    restarts: int = 8,
    criterion: str = "bic",
    folds: int | None = None,
    weight: Any = None,
    prior: Any = None,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    method: str = "mixed",
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> Selection:
    """Mixtures of every family with every number of components, each from several starts, and the best of them.

    Of `Sequences` hidden Markov models. A candidate that failed or is degenerate (see `Status`) is chosen only where
    there is no sound one.

    With n observations, p free parameters, log-likelihood l and posterior entropy E (`jaxem.entropy`): BIC
    -2 l + p log n, AIC -2 l + 2 p, AICc AIC + 2 p (p + 1) / (n - p - 1), CAIC -2 l + p (log n + 1), sample-size
    adjusted BIC -2 l + p log((n + 2) / 24), ICL BIC + 2 E, NEC E / (l - l of one component), and the cross-validated
    log-likelihood.

    Args:
        key: a JAX random key or a seed.
        families: one as `Mixture.start` takes it, several, or a dict of them by name.
        x: rows or `Sequences`.
        components: the numbers to try.
        restarts: starts of each.
        criterion: one of `"bic"`, `"aic"`, `"aicc"`, `"caic"`, `"sabic"`, `"icl"`, `"nec"`, `"cv"`.
        folds: parts into which rows are dealt at random for `cv`, each left out once; 5 if it is the criterion.
        weight, prior, solver, tol, max_steps: as in `fit`.
        method: of the starts, as in `Mixture.start`.

    Raises:
        ValueError: another criterion, numbers below one, or fewer folds than two.

    Warns:
        UserWarning: the chosen number is the largest that was tried (or the smallest, above one).

    McLachlan and Peel 2000, chapter 6; Biernacki, Celeux and Govaert 1999 (NEC); Smyth 2000 (cross-validation).

    >>> import jax, jaxem as jem
    >>> x = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 20.0])).sample(0, 200)
    >>> best = select(1, "poisson", x, components=[1, 2, 3], restarts=2)
    >>> best, best.fit.model.components.rate.shape
    (Selection(3 candidates by bic: poisson 2), (2,))
    """
    one = [x] if not isinstance(x, Sequences) else jax.tree.map(lambda leaf: leaf[None], x)
    xs = one if isinstance(x, Sequences) else [_rows(x)]
    each = None if weight is None else [np.asarray(weight)]
    return select_many(
        key, families, xs, components, restarts=restarts, criterion=criterion, folds=folds, weight=each, prior=prior,
        solver=solver, method=method, tol=tol, max_steps=max_steps,
    )  # fmt: skip


def _rows(x: Any) -> Any:
    x = as_floats(x)
    return getattr(x, "values", x)


def select_many(
    key: Any,
    families: Any,
    xs: Any,
    components: Iterable[int] = range(1, 7),
    *,
    restarts: int = 8,
    criterion: str = "bic",
    folds: int | None = None,
    weight: Any = None,
    prior: Any = None,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    method: str = "mixed",
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> Selection:
    """`select` for B data sets at once, each of which gets its own best candidate.

    Args:
        key, families, components, restarts, criterion, folds, prior, solver, method, tol, max_steps: as in `select`.
        xs, weight: as in `fit_many`.

    Returns:
        A `Selection` whose arrays have a leading axis B; `best_of(i)` is the best fit of one.

    Raises:
        ValueError: as `select`.

    >>> import jax, jaxem as jem
    >>> sets = [jem.Poisson(4.0).sample(0, 50), jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 20.0])).sample(1, 80)]
    >>> best = select_many(2, "poisson", sets, components=[1, 2, 3], restarts=2)
    >>> [best.best_of(i).model.components.rate.shape for i in range(2)]
    [(1,), (2,)]
    """
    key, named = as_key(key), _named(families)
    counts = [whole(k, "components") for k in ([components] if isinstance(components, int) else components)]
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is {criterion!r}; it must be one of {', '.join(CRITERIA)}")
    if not counts:
        raise ValueError("components is empty; it must hold one number at least")
    folds = optional(folds, "folds", 2) if folds is not None or criterion != "cv" else 5
    restarts = whole(restarts, "restarts")
    given, weights, _ = as_problems(xs, weight, None)
    x, padded = _padded(given, weights)
    how = {"solver": solver, "prior": prior, "tol": tol, "max_steps": max_steps}
    fits, candidates, scores = [], [], []
    for number, (name, family) in enumerate(named.items()):
        for k in counts:
            at = jax.random.fold_in(jax.random.fold_in(key, number), k)
            starts = _starts(at, family, given, weights, k, _capacity(x, padded, counts, restarts), restarts, method)
            fit = fit_many(starts, given, weight=weights, **how)
            cv = _cross_validated(at, starts, given, padded, x, folds, how)
            scores.append({"p": _free(starts), "cv": cv, **_scores(fit, x, padded)})
            fits.append(dataclasses.replace(fit, model=_cut(fit.model, k)))
            candidates.append((name, k))
    table = _criteria(candidates, {name: np.stack([one[name] for one in scores], axis=1) for name in scores[0]})
    choice = choose(table[criterion] * (-1 if criterion == "cv" else 1), table["status"])
    _warn_of_ends(np.array([k for _, k in candidates])[choice[choice >= 0]], counts)
    return Selection(tuple(candidates), tuple(fits), table, choice, criterion)


def _named(families: Any) -> dict[str, Any]:
    if isinstance(families, Mapping):
        return {str(name): as_family(family) for name, family in families.items()}
    several = families if isinstance(families, (list, tuple)) else [families]
    named: dict[str, Any] = {}
    for family in several:
        made = as_family(family)
        words = [word for word, spec in FAMILIES.items() if spec.family is made or spec.family is family]
        words = [family] if isinstance(family, str) else words
        name = words[0] if words else getattr(made, "__name__", type(made).__name__)
        named[name if name not in named else f"{name}_{len(named)}"] = made
    return named


def _padded(xs: Any, weight: Any) -> tuple[Any, np.ndarray]:
    """All data sets in one array, and weights, zero for padding: for scores, which are one pass."""
    if isinstance(xs, list):
        chains = isinstance(xs[0], Sequences)
        longest = max(x.steps if chains else len(x) for x in xs)
        x, weight, _ = (stacked_sequences if chains else stacked)(xs, longest, weight, None)
    else:
        x = xs
        shape = xs.length.shape if isinstance(xs, Sequences) else getattr(xs, "values", xs).shape[:2]
        weight = np.ones(shape) if weight is None else np.asarray(weight)
    return (x if isinstance(x, Sequences) else incomplete(as_floats(x))), np.asarray(weight)


def _capacity(x: Any, weight: np.ndarray, counts: list[int], restarts: int) -> int | None:
    """Components of one compiled shape for all numbers of them, where compiling costs more than what is not in use."""
    if isinstance(x, Sequences):  # a state that is not in use would be a structural zero
        return None
    most = max(counts)
    return most if weight.size * restarts * (most * len(counts) - sum(counts)) < SHAPE * (len(counts) - 1) else None


def _starts(
    key: Any, family: Any, xs: Any, weight: Any, k: int, capacity: int | None, restarts: int, method: str
) -> Any:
    begin = partial(start_many, key, family, xs, weight=weight, restarts=restarts, method=method)
    return begin(k) if capacity is None else begin(capacity, active=np.full(len(xs), k, np.int32))


def _free(starts: Any) -> np.ndarray:
    """`[B]` free parameters; of the starts, because an estimate that has reached an edge was free."""
    members = starts.batch_shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), starts)
    return np.asarray(free_parameters(flat)).reshape(members).max(axis=1).astype(float)


def _cut(models: Any, k: int) -> Any:
    """The first k components, of which the others are not in use."""
    size = models.child.batch_shape[-1]
    if size == k or fixed_states(models) > k:
        return models
    models = jax.tree.map(np.asarray, models)
    return jax.tree.map(jnp.asarray, map_states(lambda a, axis: np.take(a, np.arange(k), axis), models))


def _scores(fit: Fit, x: Any, weight: np.ndarray) -> dict[str, np.ndarray]:
    entropy, rows = _entropy_and_rows(fit.model, x, jnp.asarray(weight, fit.log_likelihood.dtype))
    failed = np.isin(np.asarray(fit.status), FAILED)
    log_likelihood = np.where(failed, np.nan, np.asarray(fit.log_likelihood, float))
    return {
        "log_likelihood": log_likelihood,
        "entropy": np.where(failed, np.nan, np.asarray(entropy, float)),
        "rows": np.asarray(rows, float),
        "status": np.asarray(fit.status),
    }


@jax.jit
def _entropy_and_rows(models: Any, x: Any, weight: Array) -> tuple[Array, Array]:
    def one(model: Any, x: Any, weight: Array) -> tuple[Array, Array]:
        data = model.observe(x)
        return model.entropy(data, weight), model.observations(data, weight)

    return jax.vmap(one)(models, x, weight)


def _cross_validated(
    key: Any, starts: Any, xs: Any, weight: np.ndarray, x: Any, folds: int | None, how: dict[str, Any]
) -> np.ndarray:
    """`[B]` log-likelihood of the rows of each fold under the fit to the others; NaN without folds."""
    if folds is None:
        return np.full(len(weight), np.nan)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    fold = np.full(weight.shape, -1)
    for row, at in zip(fold, weight > 0, strict=True):
        row[at] = rng.permutation(np.arange(at.sum()) % folds)
    total = np.zeros(len(weight))
    for left_out in range(folds):
        kept = np.where(fold == left_out, 0, weight)
        each = [w[: len(one)] for w, one in zip(kept, xs, strict=True)] if isinstance(xs, list) else kept
        fit = fit_many(starts, xs, weight=each, **how)
        held_out = np.where(fold == left_out, weight, 0)
        value = np.asarray(_log_likelihood(fit.model, x, jnp.asarray(held_out, fit.log_likelihood.dtype)), float)
        total += np.where(np.isin(np.asarray(fit.status), FAILED), np.nan, value)
    return total


@jax.jit
def _log_likelihood(models: Any, x: Any, weight: Array) -> Array:
    def one(model: Any, x: Any, weight: Array) -> Array:
        return jnp.sum(jnp.where(weight > 0, weight * model.log_prob(model.observe(x)), 0))

    return jax.vmap(one)(models, x, weight)


def _criteria(candidates: list[tuple[str, int]], scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    value, p, n, entropy = (scores[name] for name in ("log_likelihood", "p", "rows", "entropy"))
    alone = np.full_like(value, np.nan)
    for i, (family, _) in enumerate(candidates):
        ones = [j for j, other in enumerate(candidates) if other == (family, 1)]
        alone[:, i] = value[:, ones[0]] if ones else np.nan
    single = np.array([k == 1 for _, k in candidates])
    return {
        "log_likelihood": value,
        "p": p,
        "bic": criteria.bic(value, p, n),
        "aic": criteria.aic(value, p),
        "aicc": criteria.aicc(value, p, n),
        "caic": criteria.caic(value, p, n),
        "sabic": criteria.sabic(value, p, n),
        "icl": criteria.icl(value, p, n, entropy),
        "nec": np.where(single, 1.0, criteria.nec(value, alone, entropy)),
        "cv": scores["cv"],
        "status": scores["status"],
    }


def _warn_of_ends(chosen: np.ndarray, counts: list[int]) -> None:
    most, least = max(counts), min(counts)
    for end, word, there in ((most, "largest", most > least), (least, "smallest", most > least > 1)):
        if there and (many := int((chosen == end).sum())):
            of = "" if len(chosen) == 1 else f" for {many} of {len(chosen)} data sets"
            warnings.warn(
                f"the chosen number of components, {end}, is the {word} that was tried{of}; try "
                f"{'more' if word == 'largest' else 'fewer'}, or another family",
                stacklevel=3,
            )
