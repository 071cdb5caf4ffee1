"""Expectation-maximisation, one step at a time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxem.core.arguments import as_key
from jaxem.core.pytree import module
from jaxem.core.semirings import Sampled, log_sum, maximum, tempered
from jaxem.core.summation import total, two_sum
from jaxem.data.missing import ByRow, Incomplete
from jaxem.distributions.base import Labelled, Statistics, add, scale
from jaxem.latent.base import Hidden, Latent
from jaxem.solvers.base import Solver
from jaxem.solvers.edges import lift

CHUNK = 8_192
"""Rows in one pass of the E-step: more than this and the responsibilities are made, used and dropped chunk by chunk."""

BYTES = 1 << 28
"""On an accelerator, as many rows as need so much for their responsibilities and features: there a chunk costs some
twenty launches, 60 microseconds, whatever its size. (Reckoned; not measured.)"""


@module
class EM(Solver):
    """Expectation-maximisation (Dempster, Laird and Rubin 1977).

    Each step takes expected statistics under the current model and maximises; with a prior it adds the prior's
    pseudo-statistics first, and climbs the log-likelihood plus the prior.

    >>> import jaxem as jem
    >>> jem.EM()
    EM()
    """

    smooth: ClassVar[bool] = True

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Array:
        """What a step is known to gain: nothing is, yet."""
        return jnp.full((), jnp.inf, weight.dtype)

    def left(self, state: Any) -> Array | float:
        """What the step gained, to first order."""
        return 0.0 if state is None else state

    def step(
        self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics
    ) -> tuple[Any, Any, Array]:
        """One step: `(the next model, what it gains, log-likelihood of the model that came in)`.

        Within a solver that has no use for it the state is None, and stays so.
        """
        new, log_likelihood, gain = em_step(model, x, weight, prior, self.over)
        return new, None if state is None else gain, log_likelihood


@module
class HardEM(EM):
    """Every row belongs wholly to its most probable component (Celeux and Govaert 1992: classification EM).

    It climbs sum_i max_z log p(x_i, z), which is what it reports as the log-likelihood: k-means for spherical Gaussians
    of equal weights and one variance, Viterbi training for hidden Markov models.

    >>> import jax, jaxem as jem
    >>> start = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 9.0]))
    >>> jem.fit(start, jax.numpy.array([0.0, 2.0, 8.0, 12.0]), jem.HardEM()).model.components.rate.tolist()
    [1.0, 10.0]
    """

    over: ClassVar[Any] = staticmethod(maximum)


@module
class AnnealedEM(Solver):
    """EM on flattened posteriors, which sharpen step by step (Ueda and Nakano 1998).

    At temperature T responsibilities are proportional to p(x, z)^(1/T), and T log sum_z p(x, z)^(1/T) is what it
    reports as the log-likelihood of a row. After the last temperature it is EM, and the stopping rule begins to look.

    Args:
        temperatures: `[A]`, one for each of the first steps; falling, above zero.

    Raises:
        ValueError: a temperature that is not above zero.

    >>> import jaxem as jem
    >>> jem.AnnealedEM([4.0, 2.0]).warmup
    2
    """

    temperatures: Array
    smooth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        temperatures = jnp.asarray(self.temperatures, jnp.result_type(float))
        if temperatures.ndim != 1 or (not isinstance(temperatures, Tracer) and not (temperatures > 0).all()):
            raise ValueError(
                f"AnnealedEM: temperatures is {self.temperatures}; it must be a list of numbers above zero"
            )
        object.__setattr__(self, "temperatures", temperatures)

    @property
    def warmup(self) -> int:
        """Steps that are not EM's yet."""
        return len(self.temperatures)

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> tuple[Array, Array]:
        """How many steps were taken, and what the last gained."""
        return jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, weight.dtype)

    def left(self, state: tuple[Array, Array]) -> Array:
        """What the step gained, to first order."""
        return state[1]

    def step(
        self, model: Any, state: tuple[Array, Array], x: Any, weight: Float[Array, "n"], prior: Statistics
    ) -> tuple[Any, tuple[Array, Array], Array]:
        """As that of `EM`, at the temperature of the step."""
        steps, _ = state
        annealing = steps < len(self.temperatures)
        temperature = jnp.where(annealing, self.temperatures[jnp.minimum(steps, len(self.temperatures) - 1)], 1)
        sharpness = (1 / temperature).astype(weight.dtype)
        new, log_likelihood, gain = em_step(model, x, weight, prior, partial(tempered, sharpness))
        return new, (steps + 1, gain), log_likelihood


@module
class StochasticEM(Solver):
    """What is hidden is drawn from its posterior, row by row, and then taken as known (Celeux and Diebolt 1985).

    It wanders about the top instead of settling, and can leave a poor place that holds EM: the best model that it came
    by is returned, after `max_steps`. What it reports is the exact log-likelihood.

    Args:
        key: a JAX random key.

    >>> import jax, jaxem as jem
    >>> start = jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 9.0]))
    >>> fit = jem.fit(start, jax.numpy.array([0.0, 2.0, 8.0, 12.0]), jem.StochasticEM(jax.random.key(0)), max_steps=20)
    >>> fit.model.components.rate.tolist()
    [1.0, 10.0]
    """

    key: Any
    monotone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", as_key(self.key, "StochasticEM: key"))

    @property
    def window(self) -> int:
        """It does not climb step by step."""
        return 25

    def left(self, state: Any) -> Array | float:
        """Nobody knows: it goes on to the step limit, and does not converge by chance."""
        return math.inf

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Array:
        """How many steps were taken."""
        return jnp.zeros((), jnp.int32)

    def step(
        self, model: Any, state: Array, x: Any, weight: Float[Array, "n"], prior: Statistics
    ) -> tuple[Any, Array, Array]:
        """As that of `EM`, of one draw."""
        drawn = Sampled(jax.random.fold_in(self.key, state))
        new, log_likelihood, _ = em_step(model, x, weight, prior, drawn)
        return new, state + 1, log_likelihood


def em_step(model: Any, x: Any, weight: Array, prior: Statistics, over: Any = log_sum) -> tuple[Any, Array, Array]:
    """The model after an E- and an M-step, the log-likelihood of the one before, and what the step gains.

    To that counts what shares next to zero, of which the step itself gains nothing, would gain as they grow. `over` is
    as in `expectation`.
    """
    log_likelihood, statistics = expectation(model, x, weight, over)
    counted = add(statistics, prior)
    new = model.m_step(counted)
    return new, log_likelihood, gain(model, new, counted) + lift(model, new, counted)


def gain(model: Any, new: Any, counted: Statistics) -> Array:
    """What the step from a model to the maximum of Q gains, in nats, to first order: half of slope times step.

    The slope of Q along the step is taken at both ends, and at the maximum it is nothing but rounding, which both have
    in common. So this keeps its digits where a difference of two log-likelihoods, or of two Q, has none left: it is
    good to far below the rounding of their sums.
    """
    step = jax.tree.map(jnp.subtract, new, model)

    def slope(at: Any) -> Array:
        return jax.jvp(lambda model: model.expected_log_prob(counted), (at,), (step,))[1]

    return jnp.abs(slope(model) - slope(new)) / 2


class RowSource:
    """Rows that are not all here: on other devices, or gone by, batch by batch. They know how to take their E-step.

    What you write: `expectation(model, weight, over)`, as the function of that name. What you get: every solver that
    asks for nothing else of x.
    """

    def expectation(self, model: Any, weight: Array, over: Any) -> tuple[Array, Statistics]:
        raise NotImplementedError


def expectation(model: Any, x: Any, weight: Float[Array, "n"], over: Any = log_sum) -> tuple[Array, Statistics]:
    """The log-likelihood and the expected statistics of weighted rows: the E-step, `over` what is hidden.

    Statistics add over rows, so a large x that has not been observed yet goes through in chunks, and nothing of size
    rows x components is kept.
    """
    if isinstance(x, RowSource):
        return x.expectation(model, weight, over)
    n, size = weight.shape[0], chunk_rows(model, x)
    if not in_chunks(model, x, weight):
        return _expectation(model, x, weight, over)

    def chunk(i: Array, carry: Any) -> Any:
        (high, low), statistics = carry
        start = jnp.minimum(i * size, n - size)
        rows, row_weight = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), (x, weight))
        # The last chunk reaches back over rows that have been counted, so that all have one shape.
        row_weight = jnp.where(start + jnp.arange(size, dtype=start.dtype) >= i * size, row_weight, 0)
        part, more = _expectation(model, rows, row_weight, over)
        return two_sum(high, low, part), add(statistics, more)

    nothing = no_rows(model, *jax.tree.map(lambda leaf: leaf[:1], (x, weight)))
    zero = jnp.zeros((), weight.dtype)
    (high, low), statistics = jax.lax.fori_loop(0, -(-n // size), chunk, ((zero, zero), nothing))
    return high + low, statistics


def no_rows(model: Any, x: Any, weight: Array) -> Statistics:
    """What a sum of statistics begins with: nothing, about a reference near some rows.

    Constants, because a sum does not depend on what it is kept about; and the scale of a single row, zero, has no
    derivative.
    """
    return scale(jax.lax.stop_gradient(model).floor(*jax.lax.stop_gradient((x, weight))), 0)


def in_chunks(model: Any, x: Any, weight: Array) -> bool:
    """Is x an array of rows, not observed yet, that is too large to go through in one piece?

    How many a symbol stands for (in `jax.export`) nobody knows: those go through in one piece.
    """
    n, rows = weight.shape[0], x.x if isinstance(x, Labelled) else x
    return isinstance(n, int) and n > chunk_rows(model, x) and isinstance(rows, (jax.Array, ByRow))


def chunk_rows(model: Any, x: Any) -> int:
    """How many rows make a chunk: on a CPU more of those with gaps, which are sorted in every pass."""
    if jax.default_backend() == "cpu":
        return 16 * CHUNK if isinstance(x.x if isinstance(x, Labelled) else x, Incomplete) else CHUNK
    members = model.child.batch_shape[-1] if isinstance(model, Latent) else 1
    leaves = jax.tree.leaves(model)
    # A row has a responsibility for each member, and about as many features as a member has parameters.
    numbers = members + sum(leaf.size for leaf in leaves) / members
    return max(CHUNK, int(BYTES / (numbers * max(leaf.dtype.itemsize for leaf in leaves))))


def _expectation(model: Any, x: Any, weight: Array, over: Any) -> tuple[Array, Statistics]:
    # A family has nothing hidden to sum over.
    log_prob, pullback = model.e_step(x, over) if isinstance(model, Hidden) else model.e_step(x)
    # A row of weight zero adds nothing even where it is impossible: 0 x -inf would be NaN.
    counts = (weight > 0) | jnp.isfinite(log_prob)
    return total(jnp.where(counts, weight * jnp.where(counts, log_prob, 0), 0)), pullback(weight)
