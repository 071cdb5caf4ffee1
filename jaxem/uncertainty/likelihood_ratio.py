"""Likelihood-ratio tests: by bootstrap where the ratio is not chi-squared, as for numbers of components."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.arguments import as_key, whole
from jaxem.core.constraints import free_parameters, simplex, unit_interval, walk
from jaxem.core.incomplete import incomplete_gamma
from jaxem.data.prepare import as_weight
from jaxem.distributions.base import check_model
from jaxem.distributions.censored import Censored, CensoredFamily
from jaxem.distributions.either import Either, EitherFamily
from jaxem.distributions.product import Independent, IndependentFamily, Product, ProductFamily, sized
from jaxem.fitting.many.fit_many import fit_many
from jaxem.fitting.result import Fit
from jaxem.fitting.status import Status
from jaxem.latent.base import Latent
from jaxem.latent.hmm import HMM
from jaxem.latent.mixture import Mixture
from jaxem.latent.starts import start_many
from jaxem.solvers.em import EM
from jaxem.uncertainty.bootstrap import is_counts, repeated_rows

TURN = 50
"""Replicates that are fitted together: a test may end after any of them."""
FAILED = np.array([status for status in Status if status.failed])


@dataclasses.dataclass(frozen=True)
class LikelihoodRatioTest:
    """A test of a small model within a large one.

    Attributes:
        statistic: 2 (log-likelihood of the large model - that of the small one), zero or above.
        degrees: free parameters that the large one has more.
        p_value: of a bootstrap (1 + exceedances) / (1 + replicates); exceedances / replicates where it stopped early.
        replicates: `[B]` statistics of data drawn from the small model; empty for chi-squared.
        exceedances: how many of them are as large as the statistic.
        failures: replicates that count nowhere, because a fit of theirs failed.
        lost: searches (of replicates, or of the data) that ended below the small model's likelihood, which the large
            one can always have: where there are many, `restarts` are too few.
        small, large: the best fits to the data.

    >>> import jaxem as jem
    >>> small, large = jem.hold(jem.Gamma(1.0, 1.0), "shape"), jem.Gamma(1.0, 1.0)
    >>> jem.likelihood_ratio_test(0, small, large, [1.0, 2.0, 4.0], None).degrees
    1
    """

    statistic: float
    degrees: int
    p_value: float
    replicates: np.ndarray
    exceedances: int
    failures: int
    lost: int
    small: Fit = dataclasses.field(repr=False)
    large: Fit = dataclasses.field(repr=False)


def likelihood_ratio_test(
    key: Any,
    small: Any,
    large: Any,
    x: Any,
    replicates: int | None = 199,
    *,
    restarts: int = 8,
    exceedances: int | None = 10,
    weight: Any = None,
    prior: Any = None,
    family: Any = None,
    solver: Any = EM(),  # noqa: B008  (a value without state)
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> LikelihoodRatioTest:
    """Test of a small model within a large one, such as K components against K + 1.

    The ratio is not chi-squared there (Self and Liang 1987, JASA 82:605), so its distribution is that of data drawn
    from the small model (McLachlan 1987, Appl. Stat. 36:318), with the inputs, gaps and lengths of x. The data and
    every replicate get the same search: from the models given, and from `restarts` starts of `Mixture.start` (or
    `HMM.start`) for either. A search that is worse for one side tests the search, not the model. Replicates are drawn
    until `exceedances` of them are as large as the data's ratio (Besag and Clifford 1991, Biometrika 78:301): some
    dozens where the answer is clear.

    Args:
        key: a JAX random key or a seed.
        small, large: models, or fits of them.
        x: rows or sequences.
        replicates: how many at most; or None for the chi-squared distribution, for models with the same hidden states,
            the small one of which holds or ties parameters of the large one inside their range.
        restarts: random starts of each model, beside the one given.
        exceedances: after how many to stop; None for never.
        weight: counts of rows, `[n]` whole numbers.
        prior, solver, tol, max_steps: as in `fit`.
        family: of the components, as `Mixture.start` takes it, where the models do not tell.

    Raises:
        TypeError: no models.
        ValueError: a large model with no more parameters than the small one; weights that are no counts; chi-squared
            asked for where the ratio does not have that distribution.

    >>> import jax, jaxem as jem
    >>> x = jem.Poisson(4.0).sample(0, 60)
    >>> one, two = jem.Mixture([1.0], jem.Poisson([4.0])), jem.Mixture([0.5, 0.5], jem.Poisson([3.0, 5.0]))
    >>> told = likelihood_ratio_test(1, one, two, x, 39, restarts=1)
    >>> told.degrees, bool(told.p_value > 0.1)
    (2, True)
    """
    models = [each.model if isinstance(each, Fit) else each for each in (small, large)]
    for name, model in zip(("small", "large"), models, strict=True):
        check_model(model, x, name)
        if model.batch_shape:
            raise ValueError(f"{name} holds models of batch shape {model.batch_shape}; a test takes one")
    free = [int(free_parameters(model)) for model in models]
    if free[1] <= free[0]:
        raise ValueError(f"large has {free[1]} free parameters and small {free[0]}; it must have more")
    x = _counted(models[0].read(x), weight)
    key, how = as_key(key), {"prior": prior, "solver": solver, "tol": tol, "max_steps": max_steps}
    if replicates is None:
        _check_regular(*models)
        restarts = 0
    searches = [_search(model, restarts, family, how) for model in models]
    of_data, drawn = jax.random.split(key)
    fits, ratio, failed, lost = _ratios(searches, of_data, _alone(x))
    if failed[0]:
        names = ", ".join(fit.status_name[0] for fit in fits)
        raise ValueError(f"a model could not be fitted to the data: {names}")
    best = [jax.tree.map(lambda leaf: leaf[0], fit) for fit in fits]
    statistic = float(ratio[0])
    if replicates is None:
        half = jnp.asarray([(free[1] - free[0]) / 2, statistic / 2], float)
        p_value = float(incomplete_gamma(half[0], half[1])[1])
        return LikelihoodRatioTest(
            statistic, free[1] - free[0], p_value, np.zeros(0), 0, 0, int(lost.sum()), best[0], best[1]
        )
    most = whole(replicates, "replicates")
    drawn_from, found, failures, lost_all = best[0].model, np.zeros(0), 0, int(lost.sum())
    # Equal fits of one data set, or of two, may differ by what the tolerance leaves.
    close = 2 * tol * len(x)
    while len(found) + failures < most:
        turn = len(found) + failures
        of_turn, of_search = jax.random.split(jax.random.fold_in(drawn, turn))
        keys = jax.random.split(of_turn, min(TURN, most))
        xs = jax.vmap(lambda key: drawn_from.sample_like(key, x))(keys)
        _, ratios, failed, lost = _ratios(searches, of_search, xs)
        wanted = slice(0, most - turn)
        found = np.append(found, ratios[wanted][~failed[wanted]])
        failures, lost_all = failures + int(failed[wanted].sum()), lost_all + int(lost[wanted].sum())
        exceeding = np.cumsum(found >= statistic - close)
        if exceedances is not None and len(found) and exceeding[-1] >= exceedances:
            found = found[: int(np.argmax(exceeding >= exceedances)) + 1]
            break
    many = int((found >= statistic - close).sum())
    early = len(found) + failures < most
    p_value = many / len(found) if early else (1 + many) / (1 + len(found))
    return LikelihoodRatioTest(statistic, free[1] - free[0], p_value, found, many, failures, lost_all, *best)


def _counted(x: Any, weight: Any) -> Any:
    """Rows, each as often as it counts."""
    if weight is None:
        return x
    counts = np.asarray(as_weight(weight, (len(x),), f"{len(x)} rows"), float)
    if not is_counts(counts):
        raise ValueError("weight holds numbers that count no rows; a test draws as many rows as there are")
    return repeated_rows(x, counts)


def _alone(x: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], x)


def _check_regular(small: Any, large: Any) -> None:
    if type(small) is not type(large) or int(small.states) != int(large.states):
        raise ValueError(
            "the ratio of models with different numbers of hidden states is not chi-squared; pass replicates, for a "
            "bootstrap"
        )
    for leaf in walk(small):
        values = np.asarray(leaf.values)
        at_edge = leaf.constraint in (simplex, unit_interval) and ((values <= 0) | (values >= 1)).any()
        if at_edge and (leaf.still or leaf.mask is not None):
            raise ValueError(
                f"small holds {leaf.name} at an edge, where the ratio is not chi-squared; pass replicates instead"
            )


Search = Callable[[Any, Any], Fit]


def _search(model: Any, restarts: int, family: Any, how: dict[str, Any]) -> Search:
    """Fits of B data sets, the best of the model given and of random starts."""
    mixed = isinstance(model, (Mixture, HMM)) and restarts > 0
    made = None
    if mixed:
        made = _family_of(model.child) if family is None else family
    size = model.child.batch_shape[-1] if isinstance(model, Latent) else 1

    def search(key: Any, xs: Any) -> Fit:
        count = len(jax.tree.leaves(xs)[0])
        own = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, 1, *leaf.shape)), jax.device_get(model))
        if made is None or (size == 1 and isinstance(model, Mixture)):
            return fit_many(own, xs, **how)
        others = jax.device_get(start_many(key, made, xs, size, restarts=restarts))
        if jax.tree.structure(others) != jax.tree.structure(own):
            raise ValueError(
                "random starts are of another kind than the model (it may hold or tie parameters); pass restarts=0, or "
                "its family"
            )
        starts = jax.tree.map(lambda a, b: np.concatenate([a, b.astype(a.dtype)], axis=1), own, others)
        return fit_many(starts, xs, **how)

    return search


def _ratios(searches: list[Search], key: Any, xs: Any) -> tuple[list[Fit], np.ndarray, np.ndarray, np.ndarray]:
    """Both fits of each data set, twice the difference of their log-likelihoods, and whether one failed or was lost."""
    fits = [search(jax.random.fold_in(key, i), xs) for i, search in enumerate(searches)]
    failed = np.logical_or(*(np.isin(np.asarray(fit.status), FAILED) for fit in fits))
    low, high = (np.asarray(fit.log_likelihood, float) for fit in fits)
    with np.errstate(invalid="ignore"):
        return fits, np.where(failed, np.nan, 2 * np.maximum(high - low, 0)), failed, ~failed & (high < low)


def _family_of(members: Any) -> Any:
    """What `Mixture.start` takes to make members like these.

    Raises:
        TypeError: members that are models themselves.
    """
    if isinstance(members, Product) and type(members) is Product:
        return ProductFamily(tuple(_sized(part) for part in members.parts))
    if isinstance(members, Independent):
        return IndependentFamily(_sized(members.base))
    if isinstance(members, Either):
        return EitherFamily(tuple(_sized(part) for part in members.parts))
    if isinstance(members, Censored):
        return CensoredFamily(_sized(members.base))
    if isinstance(members, Latent) or (type(members) is not Product and isinstance(members, Product)):
        raise TypeError(
            f"starts of components that are {type(members).__name__} are not known; pass restarts=0, or their family"
        )
    return _sized(members)


def _sized(members: Any) -> Any:
    kind = type(members)
    sizes = {
        name: int(getattr(members, name)) for name in ("factors", *kind.told(np.zeros(0))) if hasattr(members, name)
    }
    return sized(kind, members.event_shape[0] if members.event_shape else 1, **sizes)
