"""What the main job found: a score for every group and number of components, and the chosen mixtures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import selection
from jaxem.constraints import free_parameters
from jaxem.fitting.status import Status
from jaxem.kinds import map_components
from jaxem.pytree import replace
from jaxem.tables import Grouped

if TYPE_CHECKING:
    from jaxem.job import Settings

CRITERIA = ("bic", "aic", "icl")
FAILED = np.array([status for status in Status if status.failed])
DEGENERATE = np.array(
    [Status.component_vanished, Status.covariance_collapsed, Status.log_likelihood_decreased]  # a model, but a poor one
)


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
    """Everything that the job found.

    Attributes:
        grouped, settings: what was asked.
        scores: `[G, C]`.
        choice: `[G]` index into `settings.components`, -1 for none.
        models: the chosen mixtures as a `Mixture` of NumPy arrays `[G, K, ...]`, components by falling weight, padded
            with components of weight zero; None if nothing was fitted.
        component, probability: `[N]` for each complete row, if asked for; -1 and NaN where the group has no model.
        seconds, compile_seconds: on the wall; and of compilation, summed over workers.
        fits: how many were made.
        interrupted: was it ended early?
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
    interrupted: bool = False

    @classmethod
    def empty(cls, grouped: Grouped, settings: Settings) -> Outcome:
        """Before any fit: what cannot be fitted says why, the rest is `interrupted` until its result is stored."""
        n, counts = grouped.n[:, None], np.array(settings.components)
        cases = [n < max(settings.min_rows, 1), ~grouped.varies[:, None], n < counts]
        codes = [int(Status.too_few_rows), int(Status.no_variation), int(Status.too_few_rows)]
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
        """`[G]` bool: groups for which some number of components was still to be fitted, when this was empty."""
        return (self.scores.status == int(Status.interrupted)).any(axis=1)

    @property
    def status(self) -> np.ndarray:
        """`[G]` codes: of the chosen fit; without one, of the smallest number of components."""
        return self._of_choice(self.scores.status)

    @property
    def components(self) -> np.ndarray:
        """`[G]` the chosen number of components, 0 for none."""
        return np.where(self.choice < 0, 0, np.array(self.settings.components)[self.choice])

    def chosen(self, name: str) -> np.ndarray:
        """`[G]` a score of the chosen fit."""
        return self._of_choice(getattr(self.scores, name))

    def model(self, group: int) -> Any:
        """The chosen mixture of one group.

        Raises:
            ValueError: the group has none.
        """
        if self.choice[group] < 0:
            raise ValueError(f"group {group} has no model: {Status(int(self.status[group])).sentence}")
        mixture = _one(jax.tree.map(lambda leaf: leaf[[group]], self.models), int(self.components[group]))
        with jax.enable_x64(self.settings.dtype == "float64"):
            return jax.tree.map(jnp.asarray, mixture)

    def _of_choice(self, scores: np.ndarray) -> np.ndarray:
        return scores[np.arange(len(scores)), np.maximum(self.choice, 0)]

    def store(self, groups: np.ndarray, scores: Scores, choice: np.ndarray, models: Any, rows: Any) -> None:
        """Put the result of a slab in its place."""
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
        if rows is not None and self.component is not None and self.probability is not None:
            for group, component, probability in zip(groups, *rows, strict=True):
                start, n = self.grouped.start[group], self.grouped.n[group]
                self.component[start : start + n] = component[:n]
                self.probability[start : start + n] = probability[:n]


def summarise(
    results: list[tuple[Any, ...]], x: np.ndarray, weight: np.ndarray, settings: Settings, groups: int, n: np.ndarray
) -> tuple[Scores, np.ndarray, Any, Any]:
    """Scores of a slab, the choice, the chosen models and where each row belongs.

    Args:
        results: for each number of components, in order: models `[size, K, ...]`, log-likelihood, steps, status.
        x: `[size, length, D]`.
        weight: `[size, length]`, one for rows, zero for padding.
        settings: how to choose.
        groups: how many of `size` are not padding.
        n: `[groups]` rows.
    """
    counts = settings.components
    entropy = np.stack([np.asarray(posterior(models, x, weight)[0]) for models, *_ in results], axis=1)[:groups]
    log_likelihood, steps, status = (np.stack(part, axis=1)[:groups] for part in list(zip(*results, strict=True))[1:])
    log_likelihood, entropy = log_likelihood.astype(float), entropy.astype(float)
    free = np.array([free_parameters(_one(models, k)) for k, (models, *_) in zip(counts, results, strict=True)])
    rows = n[:, None].astype(float)
    scores = Scores(
        status=status,
        steps=steps,
        log_likelihood=log_likelihood,
        entropy=entropy,
        bic=np.asarray(selection.bic(log_likelihood, free, rows)),
        aic=np.asarray(selection.aic(log_likelihood, np.broadcast_to(free, log_likelihood.shape))),
        icl=np.asarray(selection.icl(log_likelihood, free, rows, entropy)),
        parameters=np.broadcast_to(free, status.shape),
    )
    scores = _failures_are_nan(scores)
    possible = n[:, None] >= np.array(counts)
    choice = choose(getattr(scores, settings.select), np.where(possible, status, int(Status.too_few_rows)))
    picked = np.concatenate([choice, np.zeros(len(weight) - groups, int)])
    models = jax.tree.map(
        lambda *leaves: np.stack(leaves)[picked, np.arange(len(picked))], *[models for models, *_ in results]
    )
    models = _by_weight(models)
    belonging = None
    if settings.assign:
        _, component, probability = (np.asarray(part) for part in posterior(models, x, weight))
        none = choice[:, None] < 0
        belonging = np.where(none, -1, component[:groups]), np.where(none, np.nan, probability[:groups])
    return scores, choice, jax.tree.map(lambda leaf: leaf[:groups], models), belonging


def choose(criterion: np.ndarray, status: np.ndarray) -> np.ndarray:
    """`[G]` where the criterion is least; -1 if every fit failed.

    A degenerate fit (collapsed, vanished) is taken only if there is no sound one: its likelihood says more about the
    floor that it rests on than about the data.
    """
    value = np.where(np.isin(status, FAILED) | np.isnan(criterion), np.inf, criterion)
    sound = np.where(np.isin(status, DEGENERATE), np.inf, value)
    any_sound = np.isfinite(sound).any(axis=1)
    return np.where(any_sound, sound.argmin(axis=1), np.where(np.isfinite(value).any(axis=1), value.argmin(axis=1), -1))


def widen(models: Any, capacity: int) -> Any:
    """The same mixtures with components of weight zero added, up to `capacity`."""
    k = models.weights.shape[1]
    if k == capacity:
        return models
    repeated = map_components(lambda a: np.concatenate([a, np.repeat(a[:, -1:], capacity - k, axis=1)], axis=1), models)
    weights = np.where(np.arange(capacity) < k, repeated.weights, 0)
    return replace(repeated, weights=weights)


def narrow(starts: Any, capacity: int) -> Any:
    """Mixtures `[G, R, K, ...]` cut to their first components, of which the others are not in use."""
    groups, restarts, _ = starts.weights.shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(groups * restarts, *leaf.shape[2:]), starts)
    cut = map_components(lambda a: a[:, :capacity], flat)
    return jax.tree.map(lambda leaf: leaf.reshape(groups, restarts, *leaf.shape[1:]), cut)


def _by_weight(models: Any) -> Any:
    """Components in the order of falling weight, so that unused ones come last."""
    order = np.argsort(-models.weights, axis=1, kind="stable")
    return map_components(lambda a: np.take_along_axis(a, order.reshape(*order.shape, *(1,) * (a.ndim - 2)), 1), models)


def _one(models: Any, k: int) -> Any:
    """The first of stacked mixtures, with its first k components."""
    first = map_components(lambda a: a[:, :k], models)
    return jax.tree.map(lambda leaf: leaf[0], first)


def _failures_are_nan(scores: Scores) -> Scores:
    failed = np.isin(scores.status, FAILED)
    for name in ("log_likelihood", "entropy", *CRITERIA):
        setattr(scores, name, np.where(failed, np.nan, getattr(scores, name)))
    return scores


@jax.jit
def posterior(models: Any, x: Any, weight: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The entropy of the posterior `[size]`; each row's most probable component and its probability."""

    def one(model: Any, x: Any, weight: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        posterior = model.posterior(x)
        terms = jax.scipy.special.entr(posterior).sum(-1)
        entropy = jnp.sum(jnp.where(weight > 0, weight * terms, 0))
        return entropy, jnp.argmax(posterior, axis=-1), jnp.max(posterior, axis=-1)

    return jax.vmap(one)(models, x, weight)
