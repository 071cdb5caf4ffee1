"""The value `Uncertainty`: what is known of a fitted model's parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import gammaincc
from jaxtyping import Array, Bool, Float, Int

from jaxem.core import linalg
from jaxem.core.arguments import said_of
from jaxem.core.pytree import module, static
from jaxem.uncertainty import delta, large, tables
from jaxem.uncertainty.information import Plan, inverse_root
from jaxem.uncertainty.status import ErrorStatus


@module
class Test:
    """A test of a hypothesis.

    Attributes:
        statistic: of chi-squared.
        degrees: of freedom.
        p_value: probability of a statistic as large as that, if the hypothesis holds.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> errors = jem.uncertainty(jem.Poisson(4.0), jnp.array([2.0, 3.0, 5.0, 6.0]))
    >>> test = errors.wald(lambda model: model.rate, 2.0)
    >>> test.statistic.round(3).item(), test.degrees.item(), test.p_value.round(3).item()
    (4.0, 1, 0.046)
    """

    statistic: Float[Array, "*b"]
    degrees: Int[Array, "*b"]
    p_value: Float[Array, "*b"]


@module
class Uncertainty:
    """What is known of a model's parameters. From `uncertainty_many` every field has a leading axis.

    Attributes:
        model: where it is told for: the maximum, up to `distance`, with probabilities next to an edge put there.
        covariance: `[p, p]` of the coordinates (`jaxem.coordinates`), zero for those that nothing moves and NaN where
            there is no regular maximum.
        observed_information: `[p, p]`, minus the Hessian of log-likelihood plus log-prior in coordinates.
        complete_information: `[p, p]`, the same if nothing were hidden or missing.
        moves: `[p]` bool: coordinates that a fit can move and the data say anything of.
        status: an `ErrorStatus` code; see `status_name` and `status_message`.
        distance: from the model to the maximum, in standard errors, after polishing.
        plan: how it was computed.
        largest_missing: largest fraction of missing information, of a model with more than 256 coordinates; or None.
        rows: of a model with more than 256 coordinates, the data, from which errors are computed when they are asked
            for, a system of equations each; then `covariance` and both informations are None. Else None.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> errors = jem.uncertainty(jem.Poisson(4.0), jnp.array([2.0, 3.0, 5.0, 6.0]))
    >>> errors.standard_error.rate.round(3).item(), errors.status_name
    (1.0, 'ok')
    >>> lower, upper = errors.interval(0.95)
    >>> lower.rate.round(2).item(), upper.rate.round(2).item()
    (2.45, 6.53)
    >>> errors.delta(lambda model: jnp.log(model.rate)).round(3).item()
    0.25
    """

    model: Any
    covariance: Float[Array, "*b p p"] | None
    observed_information: Float[Array, "*b p p"] | None
    complete_information: Float[Array, "*b p p"] | None
    moves: Bool[Array, "*b p"]
    status: Int[Array, "*b"]
    distance: Float[Array, "*b"]
    largest_missing: Any = None
    rows: Any = None
    plan: Plan = static(default=Plan())

    @property
    def kind(self) -> str:
        """`"observed"`, `"opg"` or `"sandwich"`."""
        return self.plan.kind

    @property
    def _lead(self) -> int:
        return self.status.ndim

    @property
    def _value(self) -> tuple[Any, Any]:
        return self.model, self.covariance

    @property
    def standard_error(self) -> Any:
        """Standard errors as a model of the same class: `errors.standard_error.components.mean` is `[K, D]`.

        The length of d theta / dz L, with L L' the covariance. NaN for what is held or at an edge, for loadings of two
        factors or more, and everywhere where there is no regular maximum.
        """
        if self.rows is None:
            return delta.standard_errors(self._value, self._lead)
        found = self._by_systems(delta.parameters)
        return jax.tree.unflatten(jax.tree.structure(self.model), delta.identified(self.model, found))

    def interval(self, level: float = 0.95, scale: str = "natural") -> tuple[Any, Any]:
        """`(lower, upper)`: two models, the ends of an interval of each parameter.

        Args:
            level: the probability that such an interval covers the truth, between 0 and 1.
            scale: `"natural"`: by the logarithm of what is above zero and of variances, by the log-odds of
                probabilities, plain for all others; or `"plain"`: estimate -+ q standard errors throughout.

        Raises:
            ValueError: a level outside (0, 1), another scale.
        """
        if scale not in ("natural", "plain"):
            raise ValueError(f"scale is {scale!r}; it must be 'natural' or 'plain'")
        return delta.intervals(self.model, self.standard_error, checked_level(level), scale == "plain", self._lead)

    def covariance_of(self, function: Callable[[Any], Any]) -> Float[Array, "*b q q"]:
        """`[q, q]` covariance of any differentiable function of the model, whose results are flattened.

        Args:
            function: of a model, to numbers, arrays or a pytree of them, q in all.
        """
        return self._covariances(checked_function(function))[1]

    def delta(self, function: Any) -> Any:
        """Standard errors of any differentiable function of the model, shaped like its result: the delta method.

        NaN where nothing that is estimated has an effect.

        Args:
            function: of a model, to numbers, arrays or a pytree of them.
        """
        function = checked_function(function)
        return delta.deltas(function, self._value, self._lead) if self.rows is None else self._by_systems(function)

    def wald(self, function: Callable[[Any], Any], value: Any = 0.0) -> Test:
        """Wald's test that a function of the model is `value`: d' C^-1 d, with d the difference and C its covariance.

        Args:
            function: of a model, q numbers in all.
            value: under the hypothesis; it broadcasts against the result.

        Returns:
            A `Test` with q degrees of freedom; NaN where the function has no regular covariance (two results that
            always move together, or one that nothing moves).
        """
        here, covariance = self._covariances(checked_function(function))
        try:
            value = jnp.concatenate([jnp.ravel(jnp.asarray(leaf, here.dtype)) for leaf in jax.tree.leaves(value)])
            value = jnp.broadcast_to(value.reshape(*(1,) * self._lead, -1), here.shape)
        except ValueError:
            raise ValueError(
                f"value holds {value.size} numbers and the function {here.shape[-1]}; they must be as many, or one"
            ) from None
        return _wald(here - value, covariance)

    @property
    def missing_information(self) -> Float[Array, "*b p"]:
        """`[p]` fractions of missing information, falling; the first is the rate of EM (`jaxem.em_rate`).

        Eigenvalues of 1 - W I_o W', where W' W is the inverse of the complete information (Dempster, Laird and Rubin
        1977; Meng and Rubin 1991): how much of what one would know of some combination of parameters, if nothing were
        hidden, the data do not tell. NaN at the end for coordinates that nothing moves. Of more than 256 coordinates,
        the largest alone.
        """
        if self.rows is not None:
            return self.largest_missing[None]
        return _missing(self.observed_information, self.complete_information, self.moves, self._lead)

    @property
    def missing_each(self) -> Any:
        """Fraction of missing information of each parameter, shaped like the model.

        1 - [I_c^-1]_kk / [I_o^-1]_kk in natural parameters, whatever `kind` is. NaN for more than 256 coordinates.
        """
        if self.rows is not None:
            return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), self.model)
        return _missing_each(self, self._lead)

    @property
    def coordinates(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names of the p coordinates: the parameter, and the place in it: `("components.mean", (0, 1))`.

        Of shares of one, and of what is positive or between zero and one, it is the entry whose log-ratio (logarithm,
        log-odds) the coordinate is; of a covariance the entry of its Cholesky factor.
        """
        return tables.coordinate_names(self._first)

    @property
    def status_name(self) -> Any:
        """Name of the status, or an array of names."""
        names = np.array([ErrorStatus(int(code)).name for code in np.ravel(self.status)], dtype=object)
        return names[0] if self._lead == 0 else names.reshape(self.status.shape)

    @property
    def status_message(self) -> Any:
        """Status as a sentence, or a list of sentences."""
        each = zip(np.ravel(self.status), np.ravel(self.distance), strict=True)
        sentences = [ErrorStatus(int(code)).sentence(float(distance)) for code, distance in each]
        return sentences[0] if self._lead == 0 else sentences

    def table(self, level: float = 0.95) -> Any:
        """A polars frame with a row for each number of the model.

        Columns: `problem` (of many), `parameter`, `component`, `i`, `j` (its place in the parameter), `estimate`,
        `se`, `lower`, `upper`, `missing` (fraction of information), `edge` (is it a probability of zero or one?). Of a
        symmetric matrix the lower triangle.

        Raises:
            ImportError: polars is not installed.
            ValueError: a level outside (0, 1).
        """
        return tables.frame(tables.rows(self, level))

    def _by_systems(self, function: Callable[[Any], Any]) -> Any:
        found = large.spread(function, self.plan, self.model, self.rows, self.moves) + self._nowhere
        return large.shaped(found, jax.eval_shape(function, self.model))

    def _covariances(self, function: Callable[[Any], Any]) -> tuple[Array, Array]:
        if self.rows is None:
            return delta.covariances(function, self._value, self._lead)
        here, covariance = large.covariance(function, self.plan, self.model, self.rows, self.moves)
        return here, covariance + self._nowhere

    @property
    def _nowhere(self) -> Array:
        return jnp.where(self.status < int(ErrorStatus.not_a_maximum), 0, jnp.nan).astype(self.distance.dtype)

    @property
    def _first(self) -> Any:
        return jax.tree.map(lambda leaf: leaf[(0,) * self._lead], self.model)

    def __repr__(self) -> str:
        if isinstance(self.status, Tracer) or not hasattr(self.status, "ndim"):
            return "Uncertainty(...)"
        return tables.text(self)


def checked_level(level: Any) -> Array:
    """The level as an array; ValueError unless it is between 0 and 1."""
    if not isinstance(level, Tracer) and not (np.ndim(level) == 0 and 0 < float(level) < 1):
        raise ValueError(f"level is {level}; it must be above 0 and below 1, such as 0.95")
    return jnp.asarray(level, jnp.result_type(float))


def checked_function(function: Any) -> Callable[[Any], Any]:
    """The function; TypeError for anything else."""
    if not callable(function):
        raise TypeError(
            f"function is {said_of(function)}; pass a function of the model, such as lambda m: m.weights[0]"
        )
    return function


@jax.jit
def _wald(difference: Float[Array, "*b q"], covariance: Float[Array, "*b q q"]) -> Test:
    def one(difference: Array, covariance: Array) -> Test:
        root, regular = inverse_root(covariance, jnp.ones(difference.shape, bool))
        statistic = jnp.sum(linalg.matmul(root, difference) ** 2)
        statistic = jnp.where(regular & jnp.all(jnp.isfinite(covariance)), statistic, jnp.nan)
        degrees = jnp.full((), difference.size, jnp.int32)
        half = jnp.full((), difference.size / 2, statistic.dtype)
        return Test(statistic, degrees, gammaincc(half, statistic / 2))

    return delta.over(one, difference.ndim - 1)(difference, covariance)


@partial(jax.jit, static_argnums=3)
def _missing(observed: Array, complete: Array, moves: Array, lead: int) -> Array:
    def one(observed: Array, complete: Array, moves: Array) -> Array:
        white, known = inverse_root(complete, moves)
        fraction = jnp.diag(moves.astype(observed.dtype)) - linalg.matmul(
            linalg.matmul(white, observed), linalg.transpose(white)
        )
        # What does not move is apart from all others, and lowest.
        lowest = -2 - jnp.sum(jnp.abs(fraction))
        fraction = linalg.symmetrize(fraction) + jnp.diag(jnp.where(moves, 0, lowest))
        values = linalg.eigenvalues(fraction)
        places = jnp.arange(moves.size, dtype=jnp.int32)
        return jnp.where(known & (places < jnp.sum(moves, dtype=jnp.int32)), values, jnp.nan)

    return delta.over(one, lead)(observed, complete, moves)


@partial(jax.jit, static_argnums=1)
def _missing_each(errors: Uncertainty, lead: int) -> Any:
    def one(errors: Uncertainty) -> Any:
        errors_of = []
        both: tuple[Any, Any] = errors.complete_information, errors.observed_information
        for information in both:
            root, regular = inverse_root(information, errors.moves)
            covariance = jnp.where(regular, linalg.matmul(linalg.transpose(root), root), jnp.nan)
            errors_of.append(delta.of_parameters(errors.model, covariance))
        fractions = [1 - (complete / observed) ** 2 for complete, observed in zip(*errors_of, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(errors.model), fractions)

    return delta.over(one, lead)(errors)
