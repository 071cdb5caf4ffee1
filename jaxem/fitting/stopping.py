"""When a fit has arrived: by what is still to be gained, not by the last gain, and only as far as the float type sees.

There are two rules. A smooth solver knows to first order what each of its steps gains, far below the rounding of the
objective: `Trend`. Of any other the objective itself is looked at, now and then: `Windows`.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import jax.numpy as jnp
from jaxtyping import Array

from jaxem.core.pytree import module, replace, select
from jaxem.solvers.base import Solver

PATIENCE = 256
"""Steps without progress after which what is left is taken for rounding."""


class Look(NamedTuple):
    """What a rule is told of a step.

    Attributes:
        objective: of the model that came in, and
        before: of the one before.
        remaining: what the solver knows to be left to gain (`Solver.remaining_gain`).
        since: steps after the warm-up of the solver.
        tolerance: what may be left, in nats.
        rounding: what the float type can resolve of the objective: a sum over rows of sums over columns.
    """

    objective: Array
    before: Array
    remaining: Array | float
    since: Array
    tolerance: Array
    rounding: Array


class Answer(NamedTuple):
    """What a rule says.

    Attributes:
        fell: the objective did, by more than rounding.
        arrived: no more than the tolerance is left.
        exhausted: more is left, but the float type cannot resolve it.
    """

    fell: Array
    arrived: Array
    exhausted: Array


HALF = 0.5
"""How fast the gains fall is measured anew each time that they have fallen by so much."""
WARY = 10.0
"""How wary of gains that fall ever more slowly: see `Trend.remaining`."""
UNKNOWN = 100.0
"""By what the first estimate, which no second confirms, may be short."""
NEGLIGIBLE = 1e-5
"""A gain of so many tolerances needs no rate: a hundred thousand such steps would not matter."""


@module
class Trend:
    """How the gains of a smooth solver fall.

    Near a maximum the gain of a step is a sum over directions, each of which falls at a rate of its own. So their sum
    falls ever more slowly, and a rate says least of what is slow. It is measured over as many steps as a gain takes to
    halve, which no rounding hides.

    Attributes:
        value: what the step from the model gains; negative before the first.
        anchor: what the step gained since which that has not halved.
        since: steps from there.
        time, before: steps in which gains fell by e, when they last halved and the time before; zero if not known.
        turns: how often they turned from rising to falling, or back, since the anchor.
        rising: did they rise?
    """

    value: Array
    anchor: Array
    since: Array
    time: Array
    before: Array
    turns: Array
    rising: Array

    @classmethod
    def begun(cls, like: Array) -> Self:
        """Before the first step."""
        none, zero, count = jnp.full_like(like, -1), jnp.zeros_like(like), jnp.zeros((), jnp.int32)
        return cls(none, none, count, zero, zero, count, jnp.zeros((), bool))

    def after(self, look: Look, solver: Solver) -> tuple[Self, Answer]:
        """With one more step, and what that says."""
        new = select(look.since >= 0, self._with(jnp.asarray(look.remaining, self.value.dtype)), self)
        looks = look.since > 0
        # A gain that rises has not arrived, however small; and one of rounding's own rounding moves nothing any more.
        still = float(jnp.finfo(new.value.dtype).eps) * look.rounding
        least = jnp.maximum(NEGLIGIBLE * look.tolerance, still)
        # The first step comes from anywhere, so the second tells no rate.
        predicted = (new.remaining() <= look.tolerance) & (look.since > 1)
        little = (predicted | (new.value <= least)) & (~new.rising | (new.value <= still))
        rounding = (new.since >= PATIENCE) & (new.turns >= PATIENCE // 8)
        fell = look.objective - look.before < -256 * look.rounding
        return new, Answer(looks & fell, looks & little, looks & rounding)

    def _with(self, value: Array) -> Self:
        rising = value > self.value
        turned = (self.since > 0) & (rising != self.rising)
        now = replace(
            self, value=value, since=self.since + 1, rising=rising, turns=self.turns + turned.astype(jnp.int32)
        )
        none, zero = jnp.zeros_like(self.since), jnp.zeros_like(value)
        here = replace(now, anchor=value, since=none, turns=none)
        halved = replace(here, time=now._time(), before=self.time)
        # It climbs out of somewhere: what was known is of no use.
        grown = (self.value < 0) | (HALF * value >= self.anchor)
        return select(grown, replace(here, time=zero, before=zero), select(value <= HALF * self.anchor, halved, now))

    def _time(self) -> Array:
        """Steps in which a gain falls by e, as seen since the anchor; infinite if it has not fallen."""
        falls = (self.value > 0) & (self.value < self.anchor)
        share = jnp.where(falls, self.value, HALF) / jnp.where(falls, self.anchor, 1)
        return jnp.where(falls, self.since.astype(share.dtype) / -jnp.log(share), jnp.inf)

    def remaining(self) -> Array:
        """What is still to be gained.

        If a gain of v falls by e in `time` steps, v / (1 - e^(-1 / (2 time))) is left: gains go with the square of the
        distance. If that time grows by a factor g from one halving to the next, something slower comes to light of
        which the gains show little yet; it is taken for 1 / (1 - WARY (g - 1)) times as much.
        """
        time = jnp.maximum(jnp.where(self.since > 0, self._time(), 0), self.time)
        known, twice = self.time > 0, self.before > 0
        growth = jnp.where(known, time / jnp.where(known, self.time, 1), 1)
        earlier = jnp.where(twice, self.time / jnp.where(twice, self.before, 1), 1 + 0.9 / WARY)
        trust = jnp.where(known, 1 - WARY * (jnp.maximum(growth, earlier) - 1), 1 / UNKNOWN)
        told = (time > 0) & (time < jnp.inf) & (trust > 0)
        share = -jnp.expm1(-0.5 / jnp.where(told, time, 1)) * trust
        return jnp.where(told, self.value / jnp.where(told, share, 1), jnp.inf)


@module
class Windows:
    """What the objective gains between two looks.

    It has arrived when Aitken's prediction of what is still to be gained, gain x rate / (1 - rate), with the larger of
    the last two rates, is below the tolerance; or when the gain is rounding, if the solver knows what is left. But not
    while more than the tolerance is known to be left.

    Attributes:
        anchor: the objective at the last look.
        gain, rate: the last gain between two looks, and its ratio to the gain before.
        quiet: steps in which the looks saw no gain but rounding.
    """

    anchor: Array
    gain: Array
    rate: Array
    quiet: Array

    @classmethod
    def begun(cls, like: Array) -> Self:
        """Before the first step."""
        return cls(jnp.full_like(like, -jnp.inf), jnp.full_like(like, jnp.inf), jnp.ones_like(like), _none())

    def after(self, look: Look, solver: Solver) -> tuple[Windows, Answer]:
        """With one more step, and what that says if it ends a window."""
        ends = look.since % solver.check_every == 0
        looks = ends & (look.since > 0)
        gain = look.objective - self.anchor
        ratio = jnp.abs(gain / jnp.where(self.gain == 0, 1, self.gain))  # rise and fall in turn are no progress
        rate = jnp.where((look.since <= solver.check_every) | (self.gain == 0), 1, ratio)
        size = gain if solver.monotone else jnp.abs(gain)
        if solver.check_every > 1:
            # Gains that come in bursts have ended when two windows in a row were quiet.
            size = jnp.maximum(size, jnp.abs(self.gain))
        slower = jnp.maximum(rate, self.rate)
        shrinks = slower < 1
        remaining = jnp.where(shrinks, size * slower / jnp.where(shrinks, 1 - slower, 1), jnp.inf)
        rounding = looks & (size <= 4 * look.rounding)
        quiet = jnp.where(rounding, self.quiet + solver.check_every, _none())
        knows = type(solver).remaining_gain is not Solver.remaining_gain
        done = looks & ((remaining <= look.tolerance) | (knows & rounding)) & (look.remaining <= look.tolerance)
        exhausted = rounding & (quiet >= PATIENCE if knows else solver.monotone)
        new = select(ends, Windows(look.objective, gain, rate, quiet), self)
        fell = gain < -256 * look.rounding if solver.monotone else jnp.zeros((), bool)
        return new, Answer(looks & fell, done, exhausted & solver.monotone)


def _none() -> Array:
    return jnp.zeros((), jnp.int32)
