"""Profile-likelihood intervals: where the best fit with a given value of a function falls short by a given amount."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from jaxem.core.coordinates import flat
from jaxem.data.prepare import prepare
from jaxem.distributions.base import Labelled, check_model
from jaxem.fitting.checks import check_labelled, hidden_states
from jaxem.fitting.regularisation import regularisers
from jaxem.fitting.result import Fit
from jaxem.solvers.objective import columns, value_and_gradient

MARCH = 60
"""Values of the function tried for one end."""
CLIMB = 30
"""Newton steps for one of them."""
SETTLED = 1e-9
"""Of the likelihood's fall: what an end, and a maximum given a value, may be short of."""


@dataclasses.dataclass(frozen=True)
class ProfileInterval:
    """A likelihood-ratio interval.

    Attributes:
        estimate: the function at the maximum.
        lower, upper: its ends; NaN where none was found: see `status`.
        level: the probability with which it should hold the truth.
        status: of the lower and of the upper end: `"ok"`; `"no_end"`, the likelihood never falls that far on that side;
            `"stuck"`, the maximum given a value of the function could not be followed as far as that.
        at: the models at both ends, None where there is none.

    >>> import jaxem as jem
    >>> jem.profile_interval(jem.Poisson(4.0), [3.0, 5.0], lambda model: model.rate).status
    ('ok', 'ok')
    """

    estimate: float
    lower: float
    upper: float
    level: float
    status: tuple[str, str]
    at: tuple[Any, Any] = dataclasses.field(repr=False)


class _Point(NamedTuple):
    """The objective at coordinates z with its derivatives, and the function with its own."""

    z: np.ndarray
    value: float
    gradient: np.ndarray
    information: np.ndarray
    function: float
    slope: np.ndarray
    curvature: np.ndarray


def profile_interval(
    fit: Any,
    x: Any,
    function: Callable[[Any], Any],
    level: float = 0.95,
    *,
    weight: Any = None,
    prior: Any = None,
    labels: Any = None,
) -> ProfileInterval:
    """The values c of a function of the model for which the likelihood, maximised under function = c, is not too low.

    2 (l(maximum) - l(maximum under function = c)) <= the chi-squared quantile with one degree of freedom (Venzon and
    Moolgavkar 1988). Unlike estimate +- two standard errors it does not depend on the scale on which the function is
    written, and follows a likelihood that is not a parabola. Newton's method for the end itself fails where the
    likelihood is flat (of the weight of a mixture it finds one end in two): here the constrained maximum is followed in
    steps of c, each by Newton's method with a line search, until the likelihood has fallen; then the end is bracketed.

    Args:
        fit: a `Fit` of one model, or the model, near its maximum.
        x, weight, prior, labels: what it was fitted to.
        function: of a model, giving one number, in terms that JAX can differentiate:
            `lambda model: model.weights[0]`.
        level: between 0 and 1.

    Raises:
        ValueError: a level outside (0, 1), a function whose result is no number, or a model that is not near a maximum.

    >>> import jaxem as jem
    >>> x = jem.Poisson(4.0).sample(0, 50)
    >>> ends = profile_interval(jem.fit(jem.Poisson(1.0), x, tol=1e-12), x, lambda model: model.rate)
    >>> bool(ends.lower < x.mean() < ends.upper), ends.status
    (True, ('ok', 'ok'))
    """
    model = fit.model if isinstance(fit, Fit) else fit
    check_model(model, x, "fit")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1")
    if np.shape(jax.eval_shape(function, model)) != ():
        raise ValueError("function must give one number for a model, such as lambda model: model.weights[0]")
    check_labelled(model, labels)
    x, weight, labels = prepare(model.read(x), weight, labels, hidden_states(model))
    data = x if labels is None else Labelled(x, labels)
    pseudo = regularisers(model, x, weight, prior)[1]

    def look(at: np.ndarray) -> _Point:
        z = jnp.asarray(at, weight.dtype)
        value, *derivatives = _objective(z, model, data, weight, pseudo)
        number, *others = _of_function(function, z, model)
        gradient, information, slope, curvature = (np.asarray(each, float) for each in (*derivatives, *others))
        return _Point(at, float(value), gradient, information, float(number), slope, curvature)

    fall = NormalDist().inv_cdf((1 + level) / 2) ** 2 / 2
    top = _climbed(look, look(np.asarray(flat(model)[0], float)), None, fall)
    if top is None:
        raise ValueError(
            "the model is not at a maximum of the likelihood; fit it with a smaller tol, or fewer components"
        )
    (low, lower), (high, upper) = (_end(look, top, fall, side) for side in (-1, 1))

    def model_at(end: _Point | None) -> Any:
        return None if end is None else flat(model)[1](jnp.asarray(end.z, weight.dtype))

    first, last = (np.nan if end is None else end.function for end in (lower, upper))
    return ProfileInterval(top.function, first, last, level, (low, high), (model_at(lower), model_at(upper)))


@jax.jit
def _objective(z: Array, model: Any, x: Any, weight: Array, pseudo: Any) -> tuple[Array, Array, Array]:
    """The objective, its gradient and its information: one program, whatever the function."""
    model_at = flat(model)[1]

    def gradient(z: Array) -> tuple[Array, Array]:
        _, value, slope = value_and_gradient(model_at(z), x, weight, pseudo)
        return ravel_pytree(slope)[0], value

    slope, value = gradient(z)
    return value, slope, -columns(lambda z: gradient(z)[0], z)


@partial(jax.jit, static_argnums=0)
def _of_function(function: Callable[[Any], Any], z: Array, model: Any) -> tuple[Array, Array, Array]:
    """The function of the model, its gradient and its Hessian."""

    def of(z: Array) -> Array:
        return jnp.asarray(function(flat(model)[1](z)), z.dtype)

    return of(z), jax.grad(of)(z), columns(jax.grad(of), z)


def _climbed(look: Callable[..., _Point], start: _Point, target: float | None, fall: float) -> _Point | None:
    """The maximum from `start`, where the function is `target` if that is given; None if it was not reached."""
    now, price = start, 0.0
    for _ in range(CLIMB):
        short = 0.0 if target is None else target - now.function
        free = (now.slope != 0) | (np.abs(now.information).sum(0) > 0)
        hessian = now.information + price * now.curvature if target is not None else now.information
        values, vectors = np.linalg.eigh((hessian + hessian.T)[np.ix_(free, free)] / 2)
        # A step that climbs, whatever the curvature.
        values = np.maximum(np.abs(values), 1e-10 * max(np.abs(values).max(initial=0), 1e-300))
        gradient, slope = vectors.T @ now.gradient[free], vectors.T @ now.slope[free]
        if target is not None:
            worth = float((slope / values) @ slope)
            if not worth > 0:  # at an edge, where no step moves the function
                return None
            price = float((slope / values) @ gradient - short) / worth
        step = np.zeros(len(now.z))
        step[free] = vectors @ ((gradient - price * slope) / values if target is not None else gradient / values)
        gain = float((now.gradient - (price * now.slope if target is not None else 0)) @ step)
        missed = abs(price * short) if target is not None else 0.0
        if abs(gain) + missed < SETTLED * fall:
            return now
        now_merit, scale, next_point = _merit(now, target, price), 1.0, None
        while scale > 1e-4:
            tried = look(now.z + scale * step)
            if np.isfinite(tried.value) and _merit(tried, target, price) >= now_merit - 1e-12 * abs(now.value):
                next_point = tried
                break
            scale /= 2
        if next_point is None:
            return None
        now = next_point
    return None


def _merit(point: _Point, target: float | None, price: float) -> float:
    """The objective, less a penalty for missing the target that outweighs what a miss gains."""
    return point.value - (0.0 if target is None else 2 * abs(price) * abs(target - point.function))


def _end(look: Callable[..., _Point], top: _Point, fall: float, side: int) -> tuple[str, _Point | None]:
    """Where the profile has fallen by `fall` on one side; with the reason if it is nowhere."""
    free = np.abs(top.information).sum(0) > 0
    direction = np.zeros(len(top.z))
    direction[free] = np.linalg.lstsq(top.information[np.ix_(free, free)], top.slope[free], rcond=None)[0]
    spread = float(np.sqrt(max(direction @ top.slope, 0)))
    if not spread > 0:
        return "no_end", None
    inside, outside = top, None
    step, wanted = spread * np.sqrt(2 * fall), top.value - fall
    for _ in range(MARCH):
        target = inside.function + side * step if outside is None else _between(inside, outside, wanted, top)
        # Along the path of maxima, to first order.
        guess = look(inside.z + _along(inside, target - inside.function))
        found = _climbed(look, guess, target, fall) if np.isfinite(guess.value) else None
        if found is None or found.value > inside.value + 1e-6 * fall:
            if outside is not None:
                return "stuck", None
            step /= 4
            if step < 1e-6 * spread:
                # As far as it goes; the function has an edge there, or the maximum could not be followed.
                return ("no_end" if inside.value > wanted else "stuck"), None
            continue
        if abs(found.value - wanted) < 1e-7 * fall:
            return "ok", found
        if found.value > wanted:
            inside = found
        else:
            outside = found
    return "stuck", None


def _along(point: _Point, change: float) -> np.ndarray:
    free = np.abs(point.information).sum(0) > 0
    direction = np.zeros(len(point.z))
    slope = point.slope[free]
    values, vectors = np.linalg.eigh((point.information + point.information.T)[np.ix_(free, free)] / 2)
    values = np.maximum(np.abs(values), 1e-10 * max(np.abs(values).max(initial=0), 1e-300))
    direction[free] = vectors @ ((vectors.T @ slope) / values)
    worth = float(direction @ point.slope)
    return direction * (change / worth) if worth > 0 else np.zeros(len(point.z))


def _between(inside: _Point, outside: _Point, wanted: float, top: _Point) -> float:
    """A value of the function between two: linear in the root of the fall, well inside of the bracket."""
    a, b = (np.sqrt(max(top.value - point.value, 0.0)) for point in (inside, outside))
    share = (np.sqrt(top.value - wanted) - a) / (b - a) if b > a else 0.5
    share = float(np.clip(share, 0.02, 0.98))
    return inside.function + share * (outside.function - inside.function)
