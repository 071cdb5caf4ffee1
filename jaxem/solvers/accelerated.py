"""Acceleration of any monotone solver: fewer steps to the same place, and never downhill.

A step is one of the other solver, from a model that is on trial. If the objective there has not fallen below that of
the model that is carried, the trial becomes that; else a step was lost, and plain ones are taken instead.
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
    """What an accelerated solver carries.

    Attributes:
        like: where it began. What is fixed there is fixed for good, and all coordinates are relative to it: they mean
            the same in every step, whatever becomes of a probability on the way.
        log_likelihood, objective: of the model that is carried; -inf before they are known.
        gain: what a plain step from that model gains, to first order.
        slowness: how many such steps the rest is worth: the most that was seen of late.
        ahead: `[p]` coordinates of the model on trial.
        tried, move: `[q]` the place (`_place`) of the last model that was on trial, and the plain step from there.
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
    """Trials and what becomes of them.

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
    def window(self) -> int:
        """Gains come in bursts: one by one they would look like the end."""
        return 12

    def remember(self, at: Float[Array, "p"]) -> Any:
        raise NotImplementedError

    def propose(
        self, memory: Any, taken: Bool[Array, ""], tried: Float[Array, "p"], image: Float[Array, "p"]
    ) -> Proposal:
        raise NotImplementedError

    def left(self, state: Trial) -> Array:
        """What a plain step gains, times what the rest is worth; and ten times that, as no two trials see the same."""
        return WARY * state.gain * state.slowness

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Trial:
        """The model itself is on trial first."""
        at, never = flat(model)[0], jnp.full((), -jnp.inf, weight.dtype)
        here, ones = _place(model), jnp.ones_like(never)
        return Trial(model, never, never, -never, ones, at, here, here, *Proposal.fallback(at, self.remember(at))[1:])

    def step(self, model: Any, state: Trial, x: Any, weight: Float[Array, "n"], prior: Statistics) -> Any:
        """One plain step from the trial; the objective stands still while none is taken."""
        known = jnp.isfinite(state.objective)
        here, model_at = flat(model, state.like)
        trial = select(known, model_at(state.ahead), model)
        # Of what lies too far out to be a number the model holds the closest number inside.
        tried = jnp.where(known, flat(trial, state.like)[0], here)
        plain = self.solver.init(model, x, weight, prior)
        stepped, plain, log_likelihood = self.solver.step(trial, plain, x, weight, prior)
        objective = log_likelihood + trial.expected_log_prob(prior)
        # NaN is not at least anything; but if a plain step led there, that is for the stopping rule to see.
        taken = (state.kind == FALLBACK) | ((state.kind == CANDIDATE) & (objective >= state.objective))
        image = flat(stepped, state.like)[0]
        ahead, kind, memory = self.propose(state.memory, taken, tried, image)
        gain, place = jnp.asarray(self.solver.left(plain), objective.dtype), _place(trial)
        move = _place(stepped) - place
        slowness = jnp.where(known, _slowness(state, place, move, jnp.where(taken, gain, state.gain)), 1)
        found = Trial(state.like, log_likelihood, objective, gain, slowness, ahead, place, move, kind, memory)
        kept = replace(found, log_likelihood=state.log_likelihood, objective=state.objective, gain=state.gain)
        came_in = jnp.where(known, state.log_likelihood, log_likelihood)
        return select(taken, trial, model), select(taken, found, kept), came_in


def _place(model: Any) -> Float[Array, "q"]:
    """Numbers whose differences say how far apart two models are.

    Not coordinates: one that runs off to an edge would count for ever more, though less and less depends on it. Roots
    of probabilities stand still there (their distance is Hellinger's), and so do logarithms of what is next to nothing
    beside the largest.
    """
    each = zip(walk(model), to_coordinates(model), strict=True)
    return ravel_pytree([_settling(leaf, free) for leaf, free in each])[0]


def _settling(leaf: Leaf, free: Array) -> Any:
    values = leaf.values
    if leaf.bijector is bijectors.SIMPLEX:
        return jnp.sqrt(values)
    if leaf.bijector is bijectors.UNIT_INTERVAL:
        return jnp.sqrt(values), jnp.sqrt(1 - values)
    if leaf.bijector is bijectors.POSITIVE:
        least = float(jnp.finfo(values.dtype).eps) ** 0.5 * jnp.max(values)
        return jnp.log(jnp.where(least > 0, values + least, 1))
    return free


def _slowness(state: Trial, tried: Array, move: Array, gain: Array) -> Array:
    """How many plain steps of the last size the rest is worth.

    From one trial to the next plain steps shorten by the distance divided by that (they vanish at the maximum). Most
    trials see what is fast only, so the slowest is remembered for as long as gains do not fall.
    """
    distance, shorter = jnp.sum((tried - state.tried) ** 2), jnp.sum((move - state.move) ** 2)
    seen = jnp.sqrt(distance / jnp.where(shorter > 0, shorter, jnp.inf))
    falls = (state.gain > 0) & (gain < state.gain)
    kept = state.slowness * jnp.where(falls, gain / jnp.where(falls, state.gain, 1), 1) ** FORGETS
    return jnp.maximum(jnp.where(jnp.isfinite(seen), seen, 1), jnp.maximum(kept, 1))


WARY = 10.0
FORGETS = 0.25
"""Gains that fall by ten let the slowest be forgotten by this power of ten."""
