"""Expectation-maximisation, one step at a time: EM and its hard, annealed and stochastic variants."""

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
"""Rows in a chunk of the E-step; the responsibilities of more rows are never held at once."""

BYTES = 1 << 28
"""Bytes of responsibilities and features in a chunk on an accelerator, where a chunk costs some twenty launches, 60
microseconds, whatever its size. (Reckoned; not measured.)"""


@module
class EM(Solver):
    """Expectation-maximisation (Dempster, Laird and Rubin 1977).

    Each step computes expected statistics under the current model and maximises Q; a prior adds its
    pseudo-statistics first, and the objective is the log-likelihood plus the log-prior.

    >>> import jaxem as jem
    >>> jem.EM()
    EM()
    """

    smooth: ClassVar[bool] = True

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Array:
        """Initial state: the gain of the last step, zero so far."""
        return jnp.full((), jnp.inf, weight.dtype)

    def remaining_gain(self, state: Any) -> Array | float:
        """Gain of the last step, to first order."""
        return 0.0 if state is None else state

    def step(
        self, model: Any, state: Any, x: Any, weight: Float[Array, "n"], prior: Statistics
    ) -> tuple[Any, Any, Array]:
        """One step: `(the next model, its gain, log-likelihood of the model that came in)`.

        Within a solver that does not use the gain the state stays None.
        """
        new, log_likelihood, gain = em_step(model, x, weight, prior, self.over)
        return new, None if state is None else gain, log_likelihood


@module
class HardEM(EM):
    """Classification EM: every row belongs wholly to its most probable component (Celeux and Govaert 1992).

    It maximises sum_i max_z log p(x_i, z), reported as the log-likelihood: k-means for spherical Gaussians
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

    At temperature T responsibilities are proportional to p(x, z)^(1/T), and T log sum_z p(x, z)^(1/T) is
    reported as the log-likelihood of a row. After the last temperature it is EM, and the stopping rule starts.

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
        """Number of steps at temperatures, before EM."""
        return len(self.temperatures)

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> tuple[Array, Array]:
        """Initial state: number of steps, and gain of the last."""
        return jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, weight.dtype)

    def remaining_gain(self, state: tuple[Array, Array]) -> Array:
        """Gain of the last step, to first order."""
        return state[1]

    def step(
        self, model: Any, state: tuple[Array, Array], x: Any, weight: Float[Array, "n"], prior: Statistics
    ) -> tuple[Any, tuple[Array, Array], Array]:
        """One step of EM at the temperature of the step."""
        steps, _ = state
        annealing = steps < len(self.temperatures)
        temperature = jnp.where(annealing, self.temperatures[jnp.minimum(steps, len(self.temperatures) - 1)], 1)
        sharpness = (1 / temperature).astype(weight.dtype)
        new, log_likelihood, gain = em_step(model, x, weight, prior, partial(tempered, sharpness))
        return new, (steps + 1, gain), log_likelihood


@module
class StochasticEM(Solver):
    """EM with hidden variables drawn from their posterior, row by row (Celeux and Diebolt 1985).

    It wanders about the maximum instead of settling, and can leave a poor local one; the best model visited
    is returned after `max_steps`. It reports the exact log-likelihood.

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
    def check_every(self) -> int:
        """Looks of the stopping rule are far apart, because single steps need not climb."""
        return 25

    def remaining_gain(self, state: Any) -> Array | float:
        """Infinity: the remaining gain is unknown, and the fit goes on to the step limit."""
        return math.inf

    def init(self, model: Any, x: Any, weight: Array, prior: Statistics) -> Array:
        """Initial state: the number of steps."""
        return jnp.zeros((), jnp.int32)

    def step(
        self, model: Any, state: Array, x: Any, weight: Float[Array, "n"], prior: Statistics
    ) -> tuple[Any, Array, Array]:
        """One step of EM with one draw of the hidden variables."""
        drawn = Sampled(jax.random.fold_in(self.key, state))
        new, log_likelihood, _ = em_step(model, x, weight, prior, drawn)
        return new, state + 1, log_likelihood


def em_step(model: Any, x: Any, weight: Array, prior: Statistics, over: Any = log_sum) -> tuple[Any, Array, Array]:
    """One E- and M-step: the new model, the log-likelihood of the old one, and the gain.

    To that counts what shares next to zero, of which the step itself gains nothing, would gain as they grow. `over` is
    as in `expectation`.
    """
    log_likelihood, statistics = expectation(model, x, weight, over)
    counted = add(statistics, prior)
    new = model.m_step(counted)
    return new, log_likelihood, gain(model, new, counted) + lift(model, new, counted)


def gain(model: Any, new: Any, counted: Statistics) -> Array:
    """Gain, in nats to first order, of the step from a model to the maximum of Q: half of slope times step.

    The slope of Q along the step is taken at both ends; at the maximum it is only rounding, which both have in
    common and which cancels. So this keeps its digits where a difference of two log-likelihoods, or of two Q, has
    none left: it is accurate to far below the rounding of their sums.
    """
    step = jax.tree.map(jnp.subtract, new, model)

    def slope(at: Any) -> Array:
        return jax.jvp(lambda model: model.expected_log_prob(counted), (at,), (step,))[1]

    return jnp.abs(slope(model) - slope(new)) / 2


class RowSource:
    """Base class of rows that compute their own E-step: sharded over devices, or already reduced batch by batch.

    What you write: `expectation(model, weight, over)`, as the function of that name; for `fit` also
    `prepared(model, weight)` (see `fitting.loop`) and `sample(weight, spacing)`, some rows with their weights. What you
    get: every solver that uses x in no other way.
    """

    def expectation(self, model: Any, weight: Array, over: Any) -> tuple[Array, Statistics]:
        raise NotImplementedError

    def prepared(self, model: Any, weight: Array) -> tuple[Any, Array]:
        raise NotImplementedError

    def sample(self, weight: Array, spacing: int) -> tuple[Any, Array]:
        raise NotImplementedError


def expectation(model: Any, x: Any, weight: Float[Array, "n"], over: Any = log_sum) -> tuple[Array, Statistics]:
    """E-step: log-likelihood and expected statistics of weighted rows; `over` is the sum over hidden variables.

    Statistics add over rows, so a large x that has not been precomputed is processed in chunks, and nothing of size
    rows x components is held.
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
        # The last chunk reaches back over rows already counted, so that all have one shape.
        row_weight = jnp.where(start + jnp.arange(size, dtype=start.dtype) >= i * size, row_weight, 0)
        part, more = _expectation(model, rows, row_weight, over)
        return two_sum(high, low, part), add(statistics, more)

    nothing = no_rows(model, *jax.tree.map(lambda leaf: leaf[:1], (x, weight)))
    zero = jnp.zeros((), weight.dtype)
    (high, low), statistics = jax.lax.fori_loop(0, -(-n // size), chunk, ((zero, zero), nothing))
    return high + low, statistics


def no_rows(model: Any, x: Any, weight: Array) -> Statistics:
    """Zero statistics about a reference near some rows: the initial value of a sum.

    The reference is a constant, because a sum does not depend on it, and the scale of a single row, zero, has no
    derivative.
    """
    return scale(jax.lax.stop_gradient(model).floor(*jax.lax.stop_gradient((x, weight))), 0)


def in_chunks(model: Any, x: Any, weight: Array) -> bool:
    """Whether x is an array of rows, not precomputed yet, too large for one chunk.

    The size of a symbol (in `jax.export`) is unknown: such rows are one chunk.
    """
    n, rows = weight.shape[0], x.x if isinstance(x, Labelled) else x
    return isinstance(n, int) and n > chunk_rows(model, x) and isinstance(rows, (jax.Array, ByRow))


def chunk_rows(model: Any, x: Any) -> int:
    """Rows in a chunk: on a CPU more for incomplete rows, which are sorted in every pass."""
    if jax.default_backend() == "cpu":
        return 16 * CHUNK if isinstance(x.x if isinstance(x, Labelled) else x, Incomplete) else CHUNK
    members = model.child.batch_shape[-1] if isinstance(model, Latent) else 1
    leaves = jax.tree.leaves(model)
    # A row has a responsibility for each member, and about as many features as a member has parameters.
    numbers = members + sum(leaf.size for leaf in leaves) / members
    return max(CHUNK, int(BYTES / (numbers * max(leaf.dtype.itemsize for leaf in leaves))))


def _expectation(model: Any, x: Any, weight: Array, over: Any) -> tuple[Array, Statistics]:
    # A family has no hidden variables to sum over.
    log_prob, pullback = model.e_step(x, over) if isinstance(model, Hidden) else model.e_step(x)
    # A row of weight zero adds nothing even if it is impossible: 0 x -inf would be NaN.
    counts = (weight > 0) | jnp.isfinite(log_prob)
    return total(jnp.where(counts, weight * jnp.where(counts, log_prob, 0), 0)), pullback(weight)
