"""Linear Gaussian state-space models: the hidden state of each step is a vector that depends on the one before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxem.chains import kalman
from jaxem.chains.kalman import Observed, System
from jaxem.core import linalg
from jaxem.core.arguments import as_key, whole
from jaxem.core.compilation import program
from jaxem.core.constraints import (
    check_parameters,
    is_held,
    matrix,
    parameter,
    parameters,
    positive_semidefinite,
    told,
    vector,
)
from jaxem.core.linalg import matmul, outer, transpose
from jaxem.core.pytree import module, replace, static
from jaxem.data.prepare import prepare
from jaxem.data.sequences import Sequences, as_sequences
from jaxem.distributions.base import Distribution, Labelled, Pullback, convert_parameters, type_of, work
from jaxem.distributions.gaussian import FLOOR, Gaussian
from jaxem.distributions.registry import structure
from jaxem.distributions.statistics import quantiles
from jaxem.distributions.statistics.base import Referenced
from jaxem.distributions.statistics.moments import has_weight


@module
class Regression(Referenced):
    """Sums of a linear regression y = coefficients f + noise, about the coefficients of the model that made them.

    Residuals, and not products of y: a noise that is small beside what is regressed keeps its digits.

    Attributes:
        rows: `[...]` sum of w.
        residual: `[..., D, D]` sum of w E r r^T, with r = y - coefficients f.
        cross: `[..., D, F]` sum of w E r f^T.
        features: `[..., F, F]` sum of w E f f^T.
        coefficients: `[..., D, F]`.
    """

    sums = ("rows", "residual", "cross", "features")

    rows: Array
    residual: Array
    cross: Array
    features: Array
    coefficients: Array

    def about(self, coefficients: Float[Array, "*batch d f"]) -> Self:
        """The statistics of the same rows about other coefficients."""
        change = coefficients - self.coefficients
        crossed = matmul(self.cross, transpose(change))
        residual = self.residual - crossed - transpose(crossed) + self._explained(change)
        cross = self.cross - matmul(change, self.features)
        return replace(self, residual=residual, cross=cross, coefficients=coefficients)

    def _explained(self, change: Float[Array, "*batch d f"]) -> Float[Array, "*batch d d"]:
        return matmul(matmul(change, self.features), transpose(change))

    def expected_log_prob(self, coefficients: Array, noise: Array) -> Float[Array, "*batch"]:
        """Q: -1/2 [rows log det noise + trace(noise^-1 residual)]."""
        white = linalg.whitening(noise)
        spread = jnp.sum(matmul(white, self.about(coefficients).residual) * white, axis=(-1, -2))
        return -self.rows * linalg.half_log_det(white) - 0.5 * spread

    def solved(self, coefficients: Array, noise: Array, free: slice) -> tuple[Array, Array]:
        """The coefficients that fit best, of which only those of some features are `free`, and the noise about them.

        Without rows they are the ones that came in.
        """
        now, some = self.about(coefficients), has_weight(self.rows)[..., None, None]
        change = jnp.zeros_like(coefficients)
        if free.start < free.stop:
            white = linalg.whitening(now.features[..., free, free])
            best = matmul(matmul(now.cross[..., free], transpose(white)), white)
            change = change.at[..., free].set(jnp.where(some, best, 0))
        # What taking the explained part away may have lost: it keeps the residual above zero.
        lost = 8 * float(jnp.finfo(noise.dtype).eps) * linalg.diagonal(now._explained(change))
        residual = now.about(coefficients + change).residual + linalg.diagonal_matrix(lost)
        around = linalg.symmetrize(residual) / jnp.where(some, self.rows[..., None, None], 1)
        return coefficients + change, jnp.where(some, around, noise)


@module
class StateSpaceStatistics:
    """Expected sums over sequences, as three regressions.

    Attributes:
        initial: of the first state, on a one.
        transition: of each state, on the one before.
        emission: of what is seen at a step, on its state and a one. A cell that was not seen, beside one that was,
            stands there as it is expected.
    """

    initial: Regression
    transition: Regression
    emission: Regression


@structure
class LinearGaussianSSM(Distribution):
    """Linear Gaussian state-space models: the hidden Markov model whose state is a vector of H numbers.

    z_1 ~ N(initial_mean, initial_covariance)
    z_t = transition z_t-1 + N(0, transition_noise)
    x_t = emission z_t + emission_bias + N(0, emission_noise)

    One row of such a model is a sequence: `log_prob` has one number for each, and weights are weights of sequences. A
    cell that is NaN, and a step that is masked, was not seen. EM is that of Shumway and Stoffer (1982).

    A single sequence tells nothing of how much first states differ: `initial_covariance` then shrinks towards zero,
    slowly, unless it is held, together with something that fixes the scale of the states (`transition_noise`).

    Where nothing at all is known of first states, as of a level or of seasons, they are `diffuse`, and need no large
    number for a variance. The density over their first values is then flat, and

    log p(x) = log of the integral of p(x | first values) over all of them
             = limit for k to infinity of log p(x | variance k) + q / 2 log(2 pi k)

    with q diffuse values that the data tell (Durbin and Koopman 2012, section 7.2, whose constant is less by
    q / 2 log(2 pi)): of a level, log p(x_2 .. x_T | x_1). Of what the data do not tell nothing is counted; smoothed
    covariances are infinite there, and expected squares leave it out. A diffuse start has nothing to fit:
    `initial_mean` and `initial_covariance` are held. Only draws of `sample` set out from them.

    In float32 results hold three digits for variances of first states from 1 to 1e7, derivatives included, with data
    that tell them. Of sequences too short for that, derivatives are known to rounding beside one over the noise only.
    An initial covariance in mixed directions, whose eigenvalues differ by a factor of 1e6 or more, does not exist
    there: rounding its entries changes it, and all that is told with it. Use `diffuse`, or float64.

    Args:
        initial_mean: `[..., H]`.
        initial_covariance: `[..., H, H]`, symmetric positive semidefinite, as are the other two: where nothing is noise
            they are zero, and stay so.
        transition: `[..., H, H]`: the new state is this times the old.
        transition_noise: `[..., H, H]`.
        emission: `[..., D, H]`.
        emission_bias: `[..., D]`, in the units of x.
        emission_noise: `[..., D, D]`, in squared units of x.
        held: names of parameters that no fit changes.
        diffuse: of which states is nothing known at the start: one bool for each, or True for all.

    Raises:
        ValueError: shapes that do not match, covariances that are none, names in `held` that are no parameters, or
            another number of bools in `diffuse` than of states.

    >>> import jaxem as jem
    >>> one = [[1.0]]
    >>> level = jem.LinearGaussianSSM([0.0], one, one, one, one, [0.0], one, held=("transition", "emission"))
    >>> level.log_prob([[0.0, 1.0], [2.0]]).round(2).tolist(), level.smooth([0.0, 1.0]).mean.round(4).tolist()
    ([-2.84, -2.27], [[[0.2], [0.6]]])
    >>> from_nothing = jem.LinearGaussianSSM([0.0], one, one, one, one, [0.0], one, diffuse=(True,))
    >>> from_nothing.log_prob([0.0, 3.0]).round(2).tolist(), from_nothing.smooth([0.0, 3.0]).mean.round(4).tolist()
    ([-2.97], [[[1.0], [2.0]]])
    """

    initial_mean: Float[Array, "*batch h"] = parameter(vector)
    initial_covariance: Float[Array, "*batch h h"] = parameter(positive_semidefinite)
    transition: Float[Array, "*batch h h"] = parameter(matrix)
    transition_noise: Float[Array, "*batch h h"] = parameter(positive_semidefinite)
    emission: Float[Array, "*batch d h"] = parameter(matrix)
    emission_bias: Float[Array, "*batch d"] = parameter(vector)
    emission_noise: Float[Array, "*batch d d"] = parameter(positive_semidefinite)
    held: tuple[str, ...] = static(default=())
    given_held: ClassVar[bool] = True
    diffuse: tuple[bool, ...] = static(default=())

    def __post_init__(self) -> None:
        convert_parameters(self)
        check_parameters(self)
        object.__setattr__(self, "diffuse", _mask(self.diffuse, self.emission.shape[-1]))
        held = tuple(self.held)
        if any(self.diffuse):
            held += tuple(name for name in ("initial_mean", "initial_covariance") if name not in held)
        object.__setattr__(self, "held", held)
        unknown = [name for name in self.held if name not in parameters(self)]
        if unknown:
            raise ValueError(
                f"LinearGaussianSSM: held names {unknown[0]!r}; parameters are {', '.join(parameters(self))}"
            )
        members, (size, hidden) = self.batch_shape, self.emission.shape[-2:]
        square, noise = (*members, hidden, hidden), (*members, size, size)
        wanted = {
            "initial_mean": (*members, hidden),
            "initial_covariance": square,
            "transition": square,
            "transition_noise": square,
            "emission": (*members, size, hidden),
            "emission_bias": (*members, size),
            "emission_noise": noise,
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"LinearGaussianSSM: {name} has shape {getattr(self, name).shape}; with an initial_mean of shape "
                    f"{self.initial_mean.shape} and an emission of shape {self.emission.shape} it must be {shape}"
                )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the members: that of `initial_mean` without its last axis."""
        return self.initial_mean.shape[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one step, `(D,)`."""
        return self.emission_bias.shape[-1:]

    @classmethod
    def start(cls, key: Any, x: Any, states: int, *, weight: Any = None, restarts: int | None = None) -> Self:
        """A model to start from, scaled to the data: states that forget at random rates, seen in random mixtures.

        Args:
            key: a JAX random key.
            x: sequences.
            states: H.
            weight: `[S]` weights of the sequences.
            restarts: how many starts; the model then has a leading axis of this length.

        Raises:
            ValueError: states or restarts below one.

        >>> import jax, jaxem as jem
        >>> jem.LinearGaussianSSM.start(jax.random.key(0), [[1.0, 2.0, 4.0]], 2).transition.shape
        (2, 2)
        """
        if states < 1 or (restarts is not None and restarts < 1):
            raise ValueError(f"states is {states} and restarts {restarts}; both must be at least one")
        key, states = as_key(key), whole(states, "states")
        x, weight, _ = prepare(as_sequences(x), weight, None)
        return _start(key, x, weight, cls, states, restarts)

    def read(self, x: Any) -> Sequences:
        return as_sequences(x, self.event_shape, type_of(self))

    def observe(self, x: Any) -> Observed:
        """Sequences (see `Sequences.from_list`), a list of arrays, or one array, which is one sequence.

        Raises:
            ValueError: steps of another size than the emission's, or known states.
        """
        if isinstance(x, Observed):
            return x
        if isinstance(x, Labelled):
            raise ValueError("LinearGaussianSSM: its states are vectors; labels cannot name them")
        x = self.read(x)
        values = x.values[..., None] if x.values.ndim == 2 and self.event_shape == (1,) else x.values
        if values.shape[2:] != self.event_shape:
            raise ValueError(f"x has steps of shape {values.shape[2:]}; this model reads steps of {self.event_shape}")
        return _observed(replace(x, values=values.astype(self.emission.dtype)))

    def observations(self, x: Any, weight: Array) -> Array:
        """The weight of the steps of which anything was seen."""
        return jnp.sum(weight * _steps(self.observe(x)))

    def log_prob(self, x: Any) -> Float[Array, "*batch s"]:
        """The log-probability of each sequence, `[*batch_shape, S]`, in nats, by the Kalman filter."""
        return _log_prob(self, self.observe(x))

    def e_step(self, x: Any) -> tuple[Array, Pullback]:
        """`(log_prob, pullback)`; `pullback(weight [*batch_shape, S])` gives `StateSpaceStatistics`."""
        x = self.observe(x)
        log_prob, expected = self._each(kalman.expectations)(self._system(), x)

        def pullback(weight: Array) -> StateSpaceStatistics:
            def total(leaf: Array) -> Array:
                spread = (*self.batch_shape, *(1,) * (leaf.ndim - weight.ndim), weight.shape[-1])
                return jnp.sum(leaf * weight.reshape(spread), axis=-1)

            def counted(steps: Array) -> Array:
                return jnp.sum(linalg.lead(steps.astype(weight.dtype), weight.ndim) * weight, axis=-1)

            hidden, size = self.emission.shape[-1], self.emission.shape[-2]
            moved, seen, rows = total(expected.moved), total(expected.seen), jnp.sum(weight, axis=-1)
            initial = Regression(
                rows,
                total(expected.first),
                total(expected.shift)[..., None],
                rows[..., None, None],
                self.initial_mean[..., None],
            )
            if any(self.diffuse):
                initial = initial * 0
            return StateSpaceStatistics(
                initial,
                _sums(counted(x.length - 1), moved, hidden, self.transition),
                _sums(counted(_steps(x)), seen, size, self._emission()),
            )

        return log_prob, pullback

    def m_step(self, statistics: StateSpaceStatistics) -> Self:
        """Three regressions: coefficients that fit best, and the noise about them; what is held stays.

        Without sequences, or without a step that another follows, parameters stay as they are.
        """
        hidden = self.emission.shape[-1]
        columns = slice(hidden if is_held(self, "emission") else 0, hidden + (not is_held(self, "emission_bias")))
        initial = statistics.initial.solved(
            self.initial_mean[..., None], self.initial_covariance, slice(0, int(not is_held(self, "initial_mean")))
        )
        moved = statistics.transition.solved(
            self.transition, self.transition_noise, slice(0, hidden * (not is_held(self, "transition")))
        )
        seen = statistics.emission.solved(self._emission(), self.emission_noise, columns)
        found = {
            "initial_mean": initial[0][..., 0],
            "initial_covariance": initial[1],
            "transition": moved[0],
            "transition_noise": moved[1],
            "emission": seen[0][..., :hidden],
            "emission_bias": seen[0][..., hidden],
            "emission_noise": seen[1],
        }
        return replace(self, **{name: value for name, value in found.items() if not is_held(self, name)})

    def expected_log_prob(self, statistics: StateSpaceStatistics) -> Float[Array, "*batch"]:
        """The expected log-probability of states and data together: that of three regressions."""
        return (
            statistics.initial.expected_log_prob(self.initial_mean[..., None], self.initial_covariance)
            + statistics.transition.expected_log_prob(self.transition, self.transition_noise)
            + statistics.emission.expected_log_prob(self._emission(), self.emission_noise)
        )

    def expected_statistics(self) -> StateSpaceStatistics:
        """The mean statistics of one sequence of two steps."""
        one = jnp.ones_like(self.initial_mean[..., 0])
        start, next_ = self.initial_mean, matmul(self.transition, self.initial_mean[..., None])[..., 0]
        first = self.initial_covariance + outer(start, start)
        spread = matmul(matmul(self.transition, self.initial_covariance), transpose(self.transition))
        second = spread + self.transition_noise + outer(next_, next_)
        emission = self._emission()
        return StateSpaceStatistics(
            Regression(
                one, self.initial_covariance, jnp.zeros_like(start)[..., None], one[..., None, None], start[..., None]
            ),
            Regression(one, self.transition_noise, jnp.zeros_like(first), first, self.transition),
            Regression(
                2 * one,
                2 * self.emission_noise,
                jnp.zeros_like(emission),
                _bordered(first + second, start + next_, 2 * one),
                emission,
            ),
        )

    def floor(self, x: Any, weight: Array) -> StateSpaceStatistics:
        """No rows, and for the emission a diagonal scatter of `FLOOR` times the squared scale of each column.

        With noise in what is seen the likelihood is bounded, whatever becomes of the states. A noise that is held needs
        none, and may be zero.
        """
        nothing = jax.tree.map(jnp.zeros_like, self.expected_statistics())
        scatter = FLOOR[self.emission.dtype.itemsize] * _spread(self.observe(x), weight) ** 2
        scatter = jnp.zeros_like(scatter) if is_held(self, "emission_noise") else scatter
        emission = Regression(
            nothing.emission.rows,
            jnp.broadcast_to(linalg.diagonal_matrix(scatter), self.emission_noise.shape),
            nothing.emission.cross,
            nothing.emission.features,
            self._emission(),
        )
        return StateSpaceStatistics(
            replace(nothing.initial, coefficients=self.initial_mean[..., None]),
            replace(nothing.transition, coefficients=self.transition),
            emission,
        )

    def is_degenerate(self, floor: StateSpaceStatistics) -> Array:
        """Whether the noise of some column, given those before it, is no more than the floor of a single step."""
        pivot = linalg.diagonal(linalg.cholesky(self.emission_noise)) ** 2
        return jnp.any(pivot < linalg.diagonal(floor.emission.residual), axis=-1) & (
            not is_held(self, "emission_noise")
        )

    def coincides(self) -> Array:
        """Whether no state shows: from an emission of zero EM finds none, whatever the data."""
        return ~jnp.any(self.emission != 0, axis=(-2, -1)) & (not is_held(self, "emission"))

    def roundings(self, pseudo: StateSpaceStatistics) -> Array:
        """The error of a log-probability in units of rounding, larger where a step's noise is small beside the data.

        Half of the digits are taken to be there in any case.
        """
        eps, size = float(jnp.finfo(self.emission.dtype).eps), self.emission.shape[-2]
        moved = matmul(matmul(self.emission, self.transition_noise), transpose(self.emission))
        white = linalg.whitening(linalg.symmetrize(self.emission_noise + moved))
        squared = linalg.diagonal(pseudo.emission.residual) / FLOOR[self.emission.dtype.itemsize]
        apart = jnp.sqrt(jnp.sum(white**2 * squared[..., None, :], axis=(-1, -2)))
        return jnp.clip(jnp.max(apart), size, eps**-0.5)

    def inside(self, x: Any) -> Array:
        """Whether each sequence is of finite numbers, `[S]` bool."""
        return jnp.all(jnp.isfinite(self.observe(x).values), axis=(0, 1))

    def filter(self, x: Any) -> Gaussian:
        """The state of each step given what was seen up to that step.

        Args:
            x: sequences.

        Returns:
            `Gaussian` with `batch_shape [*batch_shape, S, T]`; zeros beyond a length.
        """
        return _states(self, self.observe(x), kalman.filtered)

    def smooth(self, x: Any) -> Gaussian:
        """The state of each step given the whole sequence.

        Args:
            x: sequences.

        Returns:
            `Gaussian` with `batch_shape [*batch_shape, S, T]`; zeros beyond a length.
        """
        return _states(self, self.observe(x), kalman.smoothed)

    def forecast(self, x: Any, steps: int) -> tuple[Gaussian, Gaussian]:
        """Forecasts of the steps after each sequence.

        Args:
            x: sequences.
            steps: how many steps ahead.

        Returns:
            `(states, emission)`: the predictive distributions of the state and of what is seen, each a `Gaussian`
            with `batch_shape [*batch_shape, S, steps]`.
        """
        return _forecast(self, self.observe(x), steps)

    def impute(self, x: Any, key: Array | None = None) -> Sequences:
        """Sequences with every gap filled, cells and whole steps; what was seen stays as it is.

        With the mean of what was not seen given all that was, or, with a key, with a draw of all of it together.

        Args:
            x: sequences.
            key: a JAX random key, for draws.

        Raises:
            ValueError: the model is a batch of several.

        >>> import jax.numpy as jnp, jaxem as jem
        >>> one = [[1.0]]
        >>> level = jem.LinearGaussianSSM([0.0], one, one, one, one, [0.0], one, diffuse=(True,))
        >>> level.impute([1.0, jnp.nan, 2.0]).values.round(4).tolist()
        [[[1.0], [1.5], [2.0]]]
        """
        if self.batch_shape:
            raise ValueError(f"impute needs one model; this is a batch of shape {self.batch_shape}")
        x = self.read(x)
        data = self.observe(x)
        filled = jnp.moveaxis(_complete(self, data, key), -1, 0).reshape(x.values.shape)
        seen = jnp.moveaxis(data.seen, -1, 0).reshape(x.values.shape)
        return replace(x, values=jnp.where(seen, x.values, filled.astype(x.values.dtype)), mask=None, patterns=0)

    def sample(self, key: Array, n: int, steps: int = 100) -> Float[Array, "*batch n t d"]:
        """`n` sequences from each member, `[*batch_shape, n, steps, D]`.

        Args:
            key: a JAX random key.
            n: how many sequences.
            steps: how long each is.
        """
        return _sample(self, key, n, whole(steps, "steps"))

    def _system(self) -> System:
        return System(*(getattr(self, name) for name in parameters(self)), diffuse=self.diffuse)

    def _emission(self) -> Float[Array, "*batch d f"]:
        """The coefficients of the state and of a one."""
        return jnp.concatenate([self.emission, self.emission_bias[..., None]], axis=-1)

    def _each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a system and observed data, for every member."""
        for _ in self.batch_shape:
            function = jax.vmap(function, in_axes=(0, None))
        return function


def _mask(diffuse: Any, states: int) -> tuple[bool, ...]:
    """A bool for each state; `()` if none is diffuse.

    Raises:
        ValueError: another number of them, or no bools.
    """
    if isinstance(diffuse, (bool, np.bool_)):
        diffuse = (diffuse,) * states
    mask = tuple(np.asarray(diffuse).tolist()) if len(diffuse) else ()
    if not all(isinstance(each, bool) for each in mask) or len(mask) not in (0, states):
        raise ValueError(
            f"LinearGaussianSSM: diffuse is {diffuse}; it must be True or False, or one of them for each of "
            f"{states} states"
        )
    return mask if any(mask) else ()


def _steps(x: Observed) -> Array:
    """The number of steps of which anything was seen, `[S]`."""
    return jnp.sum(jnp.any(x.seen, axis=1), axis=0, dtype=x.values.dtype)


def _bordered(second: Array, first: Array, rows: Array) -> Array:
    """Sums of products of features with one more, which is one: `[[second, first], [first^T, rows]]`."""
    right = jnp.concatenate([first, rows[..., None]], axis=-1)[..., None]
    return jnp.concatenate([jnp.concatenate([second, first[..., None, :]], axis=-2), right], axis=-1)


def _sums(rows: Array, second: Array, size: int, coefficients: Array) -> Regression:
    """A regression from the sums of products of `size` residuals and the features."""
    return Regression(
        rows, second[..., :size, :size], second[..., :size, size:], second[..., size:, size:], coefficients
    )


def _spread(x: Observed, weight: Float[Array, "s"]) -> Float[Array, "d"]:
    """The spread of each column over the cells that were seen."""
    cells = jnp.moveaxis(jnp.where(x.seen, weight[None, None], 0), 1, 0).reshape(x.values.shape[1], -1)
    values = jnp.moveaxis(x.values, 1, 0).reshape(cells.shape)
    return jax.vmap(lambda column, weight: quantiles.scale(column[None], weight)[0])(values, cells)


def _sequences_first(values: Array, members: int) -> Array:
    """`[..., T, (...), S]` as `[..., S, T, (...)]`."""
    return jnp.moveaxis(values, -1, members)


def _start_work(key: Array, x: Sequences, *given: Any) -> float:
    return 30.0 * x.values.size


@program(_start_work, static_argnums=(3, 4, 5))
def _start(key: Array, x: Sequences, weight: Array, cls: Any, states: int, restarts: int | None) -> LinearGaussianSSM:
    values = x.values if x.values.ndim == 3 else x.values[..., None]
    seen = kalman.observed(values, x.seen, x.length)
    cell = jnp.where(seen.seen, weight[None, None], 0)
    count = jnp.maximum(jnp.sum(cell, axis=(0, 2)), jnp.finfo(cell.dtype).tiny)
    mean = jnp.sum(cell * seen.values, axis=(0, 2)) / count
    variance = jnp.maximum(_spread(seen, weight) ** 2, jnp.finfo(cell.dtype).tiny)
    rates, directions = jax.random.split(key)
    members, dtype = (restarts or 1,), cell.dtype
    rate = jax.random.uniform(rates, (*members, states), dtype, minval=0.3, maxval=0.97)
    direction = jax.random.normal(directions, (*members, len(mean), states), dtype)
    direction = direction / jnp.sqrt(jnp.sum(direction**2, axis=-1, keepdims=True))
    model = cls(
        jnp.zeros_like(rate),
        linalg.diagonal_matrix(jnp.ones_like(rate)),
        linalg.diagonal_matrix(rate),
        linalg.diagonal_matrix(1 - rate**2),
        # Half of the variance is the states', half is noise.
        direction * jnp.sqrt(variance / 2)[None, :, None],
        jnp.broadcast_to(mean, (*members, len(mean))),
        jnp.broadcast_to(linalg.diagonal_matrix(variance / 2), (*members, len(mean), len(mean))),
    )
    return model if restarts is not None else jax.tree.map(lambda leaf: leaf[0], model)


@partial(jax.jit, inline=True)
def _observed(x: Sequences) -> Observed:
    """One program."""
    return kalman.observed(x.values, x.seen, x.length)


@program(work)
def _log_prob(model: LinearGaussianSSM, x: Observed) -> Array:
    return told(model, model._each(kalman.log_normalizer)(model._system(), x))


@program(work, static_argnums=2)
def _states(model: LinearGaussianSSM, x: Observed, function: Callable[..., Any]) -> Gaussian:
    moments = model._each(function)(model._system(), x)[1:3]
    return Gaussian(*(_sequences_first(moment, len(model.batch_shape)) for moment in moments))


@program(work, static_argnums=2)
def _forecast(model: LinearGaussianSSM, x: Observed, steps: int) -> tuple[Gaussian, Gaussian]:
    # What comes is steps that were not seen.
    more = ((0, steps), (0, 0), (0, 0))
    longer = Observed(jnp.pad(x.values, more), jnp.pad(x.seen, more), x.length + steps)
    states, members = _states(model, longer, kalman.filtered), len(model.batch_shape)
    ahead = x.length[:, None] + jnp.arange(steps, dtype=jnp.int32)[None]
    ahead = ahead.reshape((1,) * members + ahead.shape + (1,))
    mean = jnp.take_along_axis(states.mean, ahead, axis=-2)
    covariance = jnp.take_along_axis(states.covariance, ahead[..., None], axis=-3)
    emission, bias, noise = (
        jnp.expand_dims(part, (members, members + 1))
        for part in (model.emission, model.emission_bias, model.emission_noise)
    )
    seen = linalg.symmetrize(matmul(matmul(emission, covariance), transpose(emission)) + noise)
    level = matmul(emission, mean[..., None])[..., 0] + bias
    # Nothing is known of a part of a state, so nothing of what it adds to.
    return Gaussian(mean, covariance), Gaussian(level, jnp.where(jnp.isnan(seen), jnp.inf, seen))


@jax.jit
def _complete(model: LinearGaussianSSM, x: Observed, key: Array | None) -> Float[Array, "t d s"]:
    """Every cell, seen or not: its mean, or a draw (Durbin and Koopman 2002)."""
    system = model._system()
    if key is None:
        return kalman.completed(system, x)
    system = kalman.started(system)
    drawn = kalman.draws(key, system, x.values.shape[-1], len(x.values))[1]
    return drawn + kalman.completed(kalman.centred(system), kalman.without(x, drawn))


@partial(jax.jit, static_argnums=(2, 3))
def _sample(model: LinearGaussianSSM, key: Array, n: int, steps: int) -> Array:
    def one(key: Array, system: System) -> Array:
        return jnp.moveaxis(kalman.draws(key, system, n, steps)[1], -1, 0)

    for _ in model.batch_shape:
        one = jax.vmap(one)
    keys = jax.random.split(key, model.batch_shape) if model.batch_shape else key
    return one(keys, model._system())
