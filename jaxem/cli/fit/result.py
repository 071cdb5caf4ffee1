"""Result of the main job: scores for every group and number of components (or states), and the chosen models."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.cli.fit.schedule import Slab, places
from jaxem.cli.table.groups import Grouped
from jaxem.core.compilation import program
from jaxem.core.constraints import free_parameters
from jaxem.distributions.base import work
from jaxem.evaluation import criteria
from jaxem.evaluation.selection import FAILED, choose
from jaxem.fitting.status import Status
from jaxem.latent.components import fixed_states, map_states

if TYPE_CHECKING:
    from jaxem.cli.fit.settings import Settings
from jaxem.latent.components import widen

CRITERIA = ("bic", "aic", "icl")


@dataclasses.dataclass
class Scores:
    """Arrays `[G, C]`: for each group and number of components; NaN where there is no fit.

    `entropy` is that of the posterior probabilities of the components, summed over rows, in nats.
    """

    status: np.ndarray
    steps: np.ndarray
    log_likelihood: np.ndarray
    entropy: np.ndarray
    bic: np.ndarray
    aic: np.ndarray
    icl: np.ndarray
    parameters: np.ndarray


@dataclasses.dataclass
class Outcome:
    """Result of a job.

    Attributes:
        grouped, settings: its arguments.
        scores: `[G, C]`.
        choice: `[G]` index into `settings.components`, -1 for none.
        models: the chosen models stacked in one of NumPy arrays `[G, K, ...]`, components by falling weight (states by
            the time spent in them), padded with some of weight zero; None if nothing was fitted.
        component, probability: `[N]` for each row, if requested: its most probable component (its state on the most
            probable path), and the probability of that; -1 and NaN where the group has no model.
        seconds, compile_seconds: wall time; and time of compilation, summed over workers.
        fits: number of fits.
        workers: number of threads.
        before: number of groups that an earlier run of the same job had finished.
        interrupted: whether it ended early.
    """

    grouped: Grouped
    settings: Settings
    scores: Scores
    choice: np.ndarray
    models: Any = None
    component: np.ndarray | None = None
    probability: np.ndarray | None = None
    seconds: float = 0.0
    compile_seconds: float = 0.0
    fits: int = 0
    workers: int = 1
    before: int = 0
    interrupted: bool = False

    @classmethod
    def empty(cls, grouped: Grouped, settings: Settings) -> Outcome:
        """Outcome before any fit: groups that cannot be fitted have their status, others are `interrupted` for now."""
        n, counts = grouped.n[:, None], np.array(settings.components)
        cases = [n < max(settings.min_rows, 1), grouped.lacks[:, None], ~grouped.varies[:, None], n < counts]
        codes = [int(Status.too_few_rows)] * 2 + [int(Status.no_variation), int(Status.too_few_rows)]
        status = np.select([np.broadcast_to(case, (len(n), len(counts))) for case in cases], codes, Status.interrupted)
        log_likelihood, entropy, bic, aic, icl = (np.full(status.shape, np.nan) for _ in range(5))
        steps, parameters = np.zeros((2, *status.shape), int)
        scores = Scores(status, steps, log_likelihood, entropy, bic, aic, icl, parameters)
        outcome = cls(grouped, settings, scores, np.full(len(n), -1))
        if settings.assign:
            outcome.component, outcome.probability = np.full(len(grouped.x), -1), np.full(len(grouped.x), np.nan)
        return outcome

    @property
    def fittable(self) -> np.ndarray:
        """`[G]` bool: groups for which some number of components remained to be fitted at the beginning."""
        return (self.scores.status == int(Status.interrupted)).any(axis=1)

    @property
    def status(self) -> np.ndarray:
        """`[G]` status codes: of the chosen fit; without one, of the smallest number of components."""
        return self._of_choice(self.scores.status)

    @property
    def components(self) -> np.ndarray:
        """`[G]` the chosen number of components, 0 for none."""
        return np.where(self.choice < 0, 0, np.array(self.settings.components)[self.choice])

    def chosen(self, name: str) -> np.ndarray:
        """`[G]` a score of the chosen fit."""
        return self._of_choice(getattr(self.scores, name))

    def model(self, group: int) -> Any:
        """The chosen model of one group.

        Raises:
            ValueError: the group has none.
        """
        if self.choice[group] < 0:
            raise ValueError(f"group {group} has no model: {Status(int(self.status[group])).sentence}")
        model = _one(jax.tree.map(lambda leaf: leaf[[group]], self.models), int(self.components[group]))
        with jax.enable_x64(self.settings.dtype == "float64"):
            return jax.tree.map(jnp.asarray, model)

    def _of_choice(self, scores: np.ndarray) -> np.ndarray:
        return scores[np.arange(len(scores)), np.maximum(self.choice, 0)]

    def store(self, slab: Slab, scores: Scores, choice: np.ndarray, models: Any, belonging: Any) -> None:
        """Store the result of a slab in its place."""
        groups = slab.groups
        possible = self.grouped.n[groups, None] >= np.array(self.settings.components)
        for field in dataclasses.fields(Scores):
            kept, new = getattr(self.scores, field.name), getattr(scores, field.name)
            kept[groups] = np.where(possible, new, kept[groups])
        self.choice[groups] = choice
        if self.models is None:
            total = len(self.choice)
            self.models = jax.tree.map(lambda leaf: np.full((total, *leaf.shape[1:]), np.nan, leaf.dtype), models)
        for all_models, some in zip(jax.tree.leaves(self.models), jax.tree.leaves(models), strict=True):
            all_models[groups] = some
        if belonging is not None and self.component is not None and self.probability is not None:
            rows, index = places(self.grouped, slab)
            self.component[rows], self.probability[rows] = (unstacked(part, index) for part in belonging)


def unstacked(values: np.ndarray, index: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Values for the rows of a slab, `[size, length]` or `[size, sequences, length]`, at some places."""
    return values[index if values.ndim == 3 else (index[0], index[2])]


def summarise(
    results: list[tuple[Any, ...]], x: Any, weight: np.ndarray, settings: Settings, groups: int, n: np.ndarray
) -> tuple[Scores, np.ndarray, Any, Any]:
    """Scores of a slab, the choice, the chosen models and where each row belongs.

    Args:
        results: for each number of components, in order: models `[size, K, ...]`, log-likelihood, steps, status, and
            the number of free parameters at the start (see `free_numbers`).
        x, weight: what was fitted, `[size, ...]` (see `schedule.stack`).
        settings: criterion of choice.
        groups: how many of `size` are not padding.
        n: `[groups]` number of observed rows.
    """
    entropy = np.stack([np.asarray(entropies(models, x, weight)) for models, *_ in results], axis=1)
    scores, picked, models = scored(results, entropy[:groups], settings, n)
    assignment = None
    if settings.assign:
        component, probability = (np.asarray(part) for part in belonging(models, x))
        none = (picked < 0).reshape(-1, *(1 for _ in component.shape[1:]))
        assignment = np.where(none, -1, component), np.where(none, np.nan, probability)
    return scores, picked[:groups], jax.tree.map(lambda leaf: leaf[:groups], models), assignment


def scored(
    results: list[tuple[Any, ...]], entropy: np.ndarray, settings: Settings, n: np.ndarray
) -> tuple[Scores, np.ndarray, Any]:
    """Scores, the choice for all models of a slab (padding among them), and the chosen models.

    Args:
        results, settings, n: as for `summarise`.
        entropy: `[groups, C]`.
    """
    counts, groups = settings.components, len(n)
    results = [(widen(models, max(counts)), *rest) for models, *rest in results]
    size = len(results[0][1])
    columns = list(zip(*results, strict=True))[1:]
    log_likelihood, steps, status, free = (np.stack(part, axis=1)[:groups] for part in columns)
    log_likelihood, entropy = log_likelihood.astype(float), entropy.astype(float)
    rows = n[:, None].astype(float)
    scores = Scores(
        status=status,
        steps=steps,
        log_likelihood=log_likelihood,
        entropy=entropy,
        bic=np.asarray(criteria.bic(log_likelihood, free, rows)),
        aic=np.asarray(criteria.aic(log_likelihood, free)),
        icl=np.asarray(criteria.icl(log_likelihood, free, rows, entropy)),
        parameters=free,
    )
    scores = _failures_are_nan(scores)
    possible = n[:, None] >= np.array(counts)
    choice = choose(getattr(scores, settings.select), np.where(possible, status, int(Status.too_few_rows)))
    picked = np.concatenate([choice, np.zeros(size - groups, int)])
    models = jax.tree.map(
        lambda *leaves: np.stack(leaves)[picked, np.arange(len(picked))], *[models for models, *_ in results]
    )
    return scores, picked, _by_share(models)


def free_numbers(starts: Any, capacity: int) -> np.ndarray:
    """`[G]` numbers of free parameters of starts `[G, R, K, ...]`; all in one shape, to compile it once.

    Not of the fitted models: an estimate that has reached zero was free.
    """
    groups, restarts = starts.batch_shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(groups * restarts, *leaf.shape[2:]), starts)
    return np.asarray(free_parameters(widen(flat, capacity))).reshape(groups, restarts).max(axis=1)


def _by_share(models: Any) -> Any:
    """Sort components by falling weight, states by time spent in them, so that unused ones come last."""
    share = np.array(models.occupancy())
    share[:, : fixed_states(models)] = np.inf
    order = np.argsort(-share, axis=1, kind="stable")

    def sort(a: np.ndarray, axis: int) -> np.ndarray:
        shape = [1] * a.ndim
        shape[0], shape[axis] = order.shape
        return np.take_along_axis(a, order.reshape(shape), axis)

    return map_states(sort, models)


def _one(models: Any, k: int) -> Any:
    """First of stacked models, with its first k components."""
    first = map_states(lambda a, axis: np.take(a, np.arange(k), axis), models)
    return jax.tree.map(lambda leaf: leaf[0], first)


def _failures_are_nan(scores: Scores) -> Scores:
    failed = np.isin(scores.status, FAILED)
    for name in ("log_likelihood", "entropy", *CRITERIA):
        setattr(scores, name, np.where(failed, np.nan, getattr(scores, name)))
    return scores


def _work(models: Any, x: Any, *given: Any) -> float:
    """Numbers computed, for `jaxem.core.compilation`: each model reads rows of its own."""
    return work(models, x) / models.batch_shape[0]


@program(_work)
def entropies(models: Any, x: Any, weight: Any) -> jax.Array:
    """`[size]` posterior entropy of each model's hidden variables, in nats."""
    return jax.vmap(criteria.entropy)(models, x, weight)


@program(_work)
def belonging(models: Any, x: Any) -> tuple[jax.Array, jax.Array]:
    """Most probable component of each row (state on the most probable path), and its probability."""

    def one(model: Any, x: Any) -> tuple[jax.Array, jax.Array]:
        chosen = model.decode(x)
        return chosen, jnp.take_along_axis(model.posterior(x), chosen[..., None], axis=-1)[..., 0]

    return jax.vmap(one)(models, x)
