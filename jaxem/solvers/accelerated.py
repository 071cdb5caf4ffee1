"""Acceleration of a monotone solver: fewer steps to the same place, and never downhill.

Each step of the inner solver starts at a trial model. If the objective there has not fallen below that of the current
model, the trial becomes the current model; else the step was lost, and unaccelerated ones are taken instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jaxem.core import bijectors
from jaxem.core.arguments import said_of
from jaxem.core.constraints import Leaf, walk
from jaxem.core.coordinates import flat, to_coordinates
from jaxem.core.pytree import module, replace, select
from jaxem.distributions.base import Statistics
from jaxem.solvers.base import Solver
from jaxem.solvers.em import EM

EXPLORATORY, CANDIDATE, FALLBACK = range(3)


class Proposal(NamedTuple):
    """The next model on trial, what becomes of it, and what the scheme remembers until then.

    Attributes:
        ahead: `[p]` coordinates of the model.
        kind: 0, 1 or 2, for the three that can be made here.
        memory: a pytree, always of the same shapes.
    """

    ahead: Float[Array, "p"]
    kind: Int[Array, ""]
    memory: Any

    @classmethod
    def exploratory(cls, ahead: Float[Array, "p"], memory: Any) -> Proposal:
        """A model on the way to another: never carried."""
        return cls(ahead, jnp.full((), EXPLORATORY, jnp.int32), memory)

    @classmethod
    def candidate(cls, ahead: Float[Array, "p"], memory: Any) -> Proposal:
        """A model that is carried from now on if the objective has not fallen."""
        return cls(ahead, jnp.full((), CANDIDATE, jnp.int32), memory)

    @classmethod
    def fallback(cls, ahead: Float[Array, "p"], memory: Any) -> Proposal:
        """A plain step from the model that is carried: taken in any case, so that a failure is seen."""
        return cls(ahead, jnp.full((), FALLBACK, jnp.int32), memory)


@module
class Trial:
    """State of an accelerated solver.

    Attributes:
        like: the initial model, to which all coordinates are relative: they mean the same in every step, whatever
            becomes of a probability on the way, and what it holds fixed stays fixed.
        log_likelihood, objective: of the current model; -inf before they are known.
        gain: of an unaccelerated step from the current model, to first order.
        slowness: remaining gain in units of `gain`: the largest recent estimate.
        ahead: `[p]` coordinates of the trial model.
        tried, move: `[q]` the place (`_place`) of the last trial, and the unaccelerated step from there.
        kind, memory: as proposed with that model.
    """

    like: Any
    log_likelihood: Float[Array, ""]
    objective: Float[Array, ""]
    gain: Float[Array, ""]
    slowness: Float[Array, ""]
    ahead: Float[Array, "p"]
    tried: Float[Array, "q"]
    move: Float[Array, "q"]
    kind: Int[Array, ""]
    memory: Any


class Accelerated(Solver):
    """Base class of accelerated solvers: judges their trial models.

    What you write: a frozen pytree with a field `solver`, and

    - `remember(at)`: what is remembered before the first step, from coordinates `at`;
    - `propose(memory, taken, tried, image)`: the next `Proposal`, after the plain step that led from `tried` to
      `image`; `taken` says whether `tried` is the model that is carried now.

    What you get: models that never fall, whatever is proposed; the place in `fit` and `fit_many` of any solver.
    """

    solver: Any

    def __post_init__(self) -> None:
        if isinstance(self.solver, type):
            object.__setattr__(self, "solver", self.solver())
        if not isinstance(self.solver, Solver):
            raise TypeError(f"{type(self).__name__}: solver is {said_of(self.solver)}; pass one, such as jem.EM()")
        if type(self.solver).init not in (Solver.init, EM.init) or not self.solver.monotone:
            raise ValueError(
                f"{type(self).__name__}: it accelerates a solver that never falls and carries nothing from step to "
                f"step, such as EM(), not {type(self.solver).__name__}"
            )

    @property
    def check_every(self) -> int:
        """Twelve steps: gains come in bursts, between which single ones look like the end."""
        return 12

    def remember(self, at: Float[Array, "p"]) -> Any:
        raise NotImplementedError

    def propose(
        self, memory: Any, taken: Bool[Array, ""], tried: Float[Array, "p"], image: Float[Array, "p"]
    ) -> Proposal:
        raise NotImplementedError

    def remaining_gain(self, state: Trial) -> Array:
        """Gain of an unaccelerated step times `slowness`; times ten, because estimates differ between trials."""
        return WARY * state.gain * state.slowness

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Trial:
        """Initial state: the model itself is the first trial."""
        at, never = flat(model)[0], jnp.full((), -jnp.inf, weight.dtype)
        here, ones = _place(model), jnp.ones_like(never)
        return Trial(model, never, never, -never, ones, at, here, here, *Proposal.fallback(at, self.remember(at))[1:])

    def step(self, model: Any, state: Trial, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One unaccelerated step from the trial; the objective stays as it is while no trial is accepted."""
        known = jnp.isfinite(state.objective)
        here, model_at = flat(model, state.like)
        trial = select(known, model_at(state.ahead), model)
        # Where a coordinate is too large, the model holds the nearest value inside its set.
        tried = jnp.where(known, flat(trial, state.like)[0], here)
        plain = self.solver.init(model, x, weight, prior)
        stepped, plain, log_likelihood = self.solver.step(trial, plain, x, weight, prior)
        objective = log_likelihood + trial.expected_log_prob(prior)
        # NaN compares as False; but a fallback is accepted even then, for the stopping rule to see.
        taken = (state.kind == FALLBACK) | ((state.kind == CANDIDATE) & (objective >= state.objective))
        image = flat(stepped, state.like)[0]
        ahead, kind, memory = self.propose(state.memory, taken, tried, image)
        gain, place = jnp.asarray(self.solver.remaining_gain(plain), objective.dtype), _place(trial)
        move = _place(stepped) - place
        slowness = jnp.where(known, _slowness(state, place, move, jnp.where(taken, gain, state.gain)), 1)
        accepted = Trial(state.like, log_likelihood, objective, gain, slowness, ahead, place, move, kind, memory)
        rejected = replace(accepted, log_likelihood=state.log_likelihood, objective=state.objective, gain=state.gain)
        came_in = jnp.where(known, state.log_likelihood, log_likelihood)
        return select(taken, trial, model), select(taken, accepted, rejected), came_in


def _place(model: Any) -> Float[Array, "q"]:
    """Numbers whose differences measure the distance of two models.

    Not coordinates: one that diverges towards an edge would dominate, though less and less depends on it. Square roots
    of probabilities converge there (their distance is Hellinger's), and so do logarithms of what is negligible beside
    the largest.
    """
    each = zip(walk(model), to_coordinates(model), strict=True)
    return ravel_pytree([_settling(leaf, free) for leaf, free in each])[0]


def _settling(leaf: Leaf, free: Array) -> Any:
    values = leaf.values
    if leaf.bijector is bijectors.SIMPLEX:
        return jnp.sqrt(values)
    if leaf.bijector is bijectors.UNIT_INTERVAL:
        return jnp.sqrt(values), jnp.sqrt(1 - values)
    if leaf.bijector in (bijectors.POSITIVE, bijectors.FROM_ZERO):
        least = float(jnp.finfo(values.dtype).eps) ** 0.5 * jnp.max(values)
        return jnp.log(jnp.where(least > 0, values + least, 1))
    return free


def _slowness(state: Trial, tried: Array, move: Array, gain: Array) -> Array:
    """Remaining gain in units of the last unaccelerated step's.

    Between two trials such steps shorten by the distance divided by this number (they vanish at the maximum). Most
    trials see only fast directions, so the largest estimate is kept for as long as gains do not fall.
    """
    distance, shorter = jnp.sum((tried - state.tried) ** 2), jnp.sum((move - state.move) ** 2)
    seen = jnp.sqrt(distance / jnp.where(shorter > 0, shorter, jnp.inf))
    falls = (state.gain > 0) & (gain < state.gain)
    kept = state.slowness * jnp.where(falls, gain / jnp.where(falls, state.gain, 1), 1) ** FORGETS
    return jnp.maximum(jnp.where(jnp.isfinite(seen), seen, 1), jnp.maximum(kept, 1))


WARY = 10.0
FORGETS = 0.25
"""Decay of the remembered slowness: gains that fall by ten let it fall by ten to this power."""
