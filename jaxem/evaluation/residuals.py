"""Pseudo-residuals: rows as standard normal deviates, if the model is right."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from jaxem.core.arguments import as_key
from jaxem.core.pytree import module
from jaxem.core.semirings import log_sum, responsibilities
from jaxem.data.missing import cells
from jaxem.distributions.base import Family, as_rows, check_model, type_of
from jaxem.distributions.cumulative import Columnwise, Tails
from jaxem.latent.base import log_potential
from jaxem.latent.hmm import HMM
from jaxem.latent.mixture import Mixture
from jaxem.latent.mixture_of_experts import MixtureOfExperts

KINDS = ("ordinary", "forecast")


@module
class PseudoResiduals:
    """Rows as standard normal deviates; each `[n]`, or `[n, D]` where rows have D columns; of sequences `[S, T, ...]`.

    Attributes:
        lower, upper: the deviates of P(X < x) and P(X <= x), the same number where no value has a probability.
        mid: the deviate of their mean; with a key that of a number drawn between them.

    >>> import jaxem as jem
    >>> jem.pseudo_residuals(jem.Poisson(1.0), [0.0]).upper.round(3).tolist()
    [-0.337]
    """

    lower: Array
    mid: Array
    upper: Array


def pseudo_residuals(model: Any, x: Any, key: Any = None, kind: str = "ordinary") -> PseudoResiduals:
    """Each row as the standard normal deviate z = Phi^-1(P(X <= x)) that it is if the model is right.

    Of a mixture P(X <= x) = sum_k w_k F_k(x). Of a hidden Markov model the weights w_k of a step are the probabilities
    of its states given all other steps (`"ordinary"`: outliers) or given those before it (`"forecast"`: these are
    independent of each other). Of several columns each is given those before it, and so are the weights. A count is an
    interval of deviates (Zucchini, MacDonald and Langrock 2016, 6.2); a number drawn within it (Dunn and Smyth 1996,
    JCGS 5:236) is exactly normal. Of regressions it is the response, given the inputs; of censored rows the interval
    between their ends. Deviates are finite up to 37 standard deviations (13 in float32).

    Args:
        model: one family, `Mixture` (mixtures of mixtures among them), `MixtureOfExperts` or `HMM`, fitted.
        x: rows, or sequences, as `log_prob` takes them. Padding, and rows with a missing cell, have
            residuals of NaN.
        key: a JAX random key or a seed, to draw `mid`.
        kind: `"ordinary"` or `"forecast"`; without sequences they are the same.

    Raises:
        TypeError: another kind of model.
        ValueError: another kind of residual, or a model that is a batch of several.
        NotImplementedError: a family without a distribution function (see `Family.cdf`).

    >>> import jaxem as jem
    >>> model = jem.HMM([1.0, 0.0], [[0.9, 0.1], [0.2, 0.8]], jem.Poisson([1.0, 5.0]))
    >>> pseudo_residuals(model, [1.0, 0.0, 9.0], kind="forecast").mid.round(2).tolist()
    [[0.13, -0.97, 2.57]]
    """
    check_model(model, x)
    if kind not in KINDS:
        raise ValueError(f'kind is {kind!r}; it must be "ordinary" (given all other rows) or "forecast"')
    if model.batch_shape:
        raise ValueError(f"pseudo_residuals needs one model; this is a batch of shape {model.batch_shape}")
    data = model.read(x)
    if not isinstance(model, HMM):
        data = as_rows(cells(data), model.event_shape, type_of(model))
    return _residuals(model, data, None if key is None else as_key(key), kind)


@partial(jax.jit, static_argnames="kind")
def _residuals(model: Any, x: Any, key: Array | None, kind: str) -> PseudoResiduals:
    seen = None
    if isinstance(model, HMM):
        data = model.observe(x)
        seen = data.seen
        values = jnp.swapaxes(x.values, 0, 1).reshape(data.seen.size, *x.values.shape[2:])
        each = _mixed(_log_weights(model, data, kind), columnwise(model.emission, values))
    else:
        each = columnwise(model, x)
    share = 0.5 if key is None else jax.random.uniform(key, each.log_prob.shape, each.log_prob.dtype)
    between = jax.tree.map(lambda before, at: before + share * (at - before), each.before, each.at)
    residuals = PseudoResiduals(*(_deviate(tails) for tails in (each.before, between, each.at)))

    def arranged(leaf: Float[Array, "d n"]) -> Array:
        rows = leaf.T if leaf.shape[:1] == model.event_shape else leaf[0]
        if seen is None:
            return rows
        there = seen.reshape(*seen.shape, *(1 for _ in rows.shape[1:]))
        return jnp.swapaxes(jnp.where(there, rows.reshape(*seen.shape, *rows.shape[1:]), jnp.nan), 0, 1)

    return jax.tree.map(arranged, residuals)


def columnwise(model: Any, x: Array) -> Columnwise:
    """What a family, or a mixture of one, says of each column given those before it."""
    if isinstance(model, Mixture):
        return _mixed(log_potential(model.weights)[..., None], columnwise(model.components, x))
    if isinstance(model, MixtureOfExperts):
        return _mixed(model.gate.log_prob(x[:, :-1]), columnwise(model.experts, x))
    if isinstance(model, Family):
        return model.columnwise(x)
    raise TypeError(
        f"pseudo_residuals takes a family, a Mixture, a MixtureOfExperts or an HMM; a {type(model).__name__} has no "
        "distribution function"
    )


def _mixed(log_weights: Float[Array, "*batch k n"], each: Columnwise) -> Columnwise:
    """The mixture over axis -3: the columns before one change the weights of the components for it."""
    before = jnp.cumsum(each.log_prob, axis=-2)[..., :-1, :]
    before = jnp.concatenate([jnp.zeros_like(each.log_prob[..., :1, :]), before], axis=-2)
    terms = log_weights[..., None, :] + before
    weights, possible = responsibilities(terms, -3), jnp.any(terms > -jnp.inf, axis=-3)

    def mixture(leaf: Array) -> Array:
        return jnp.where(possible, jnp.sum(weights * leaf, axis=-3), jnp.nan)

    total = jnp.where(possible, log_sum(terms, -3), 0)
    mixed: tuple[Tails, Tails] = jax.tree.map(mixture, (each.before, each.at))
    return Columnwise(*mixed, jnp.where(possible, log_sum(terms + each.log_prob, -3) - total, -jnp.inf))


def _log_weights(model: HMM, x: Any, kind: str) -> Float[Array, "k n"]:
    """log p(state at a step | the steps before it), and with `"ordinary"` those after it; up to a constant."""
    evidence = model.time_first(model.evidence_of(x), x)
    initial, transition = model.potentials()
    steps = jnp.arange(evidence.shape[0], dtype=x.length.dtype)

    def forward(predicted: Array, evidence: Array) -> tuple[Array, Array]:
        filtered = _normalised(predicted + evidence)
        return log_sum(filtered[:, None] + transition[..., None], 0), predicted

    def backward(later: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        evidence, step = at
        # `later` is what the steps after this one say of its state: nothing from the last one on.
        later = jnp.where((step + 1 < x.length)[None], later, 0)
        return log_sum(transition[..., None] + _normalised(evidence + later)[None], 1), later

    start = jnp.broadcast_to(initial[:, None], evidence.shape[1:])
    _, weights = jax.lax.scan(forward, start, evidence)
    if kind == "ordinary":
        weights = weights + jax.lax.scan(backward, jnp.zeros_like(start), (evidence, steps), reverse=True)[1]
    return jnp.swapaxes(weights, 0, 1).reshape(len(initial), -1)


def _normalised(logs: Float[Array, "k s"]) -> Float[Array, "k s"]:
    most = jnp.max(logs, axis=0, keepdims=True)
    return logs - jnp.where(jnp.isfinite(most), most, 0)


def _deviate(tails: Tails) -> Array:
    """The standard normal deviate with these tails, from the smaller one."""
    return jnp.where(tails.below <= tails.above, ndtri(tails.below), -ndtri(tails.above))
