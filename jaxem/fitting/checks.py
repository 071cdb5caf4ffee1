"""Checks of the arguments of a fit, before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxem.core.arguments import said_of, whole
from jaxem.data.arrays import numbers
from jaxem.distributions.base import Family

NUMERIC = (bool, int, float, np.generic, np.ndarray, jax.Array)


def hidden_states(model: Any) -> int | None:
    """Number of hidden states that `labels` may name; None if the model has none."""
    return model.child.batch_shape[-1] if hasattr(model, "child") else None


def check_starts(model: Any) -> None:
    """Raise ValueError for more than one axis of starts."""
    if len(model.batch_shape) > 1:
        raise ValueError(f"model has batch shape {model.batch_shape}; fit takes one model, or one axis of starts")


def check_labelled(model: Any, labels: Any) -> None:
    """Raise ValueError for labels of a family, which has no components to name."""
    if labels is not None and isinstance(model, Family):
        raise ValueError(f"labels name hidden states, and a {type(model).__name__} has none; leave them out")


def check_limits(tol: Any, max_steps: Any, shape: tuple[int, ...] = ()) -> int:
    """The number of steps; ValueError for limits out of range, a `tol` that is not one number or of this `shape`."""
    if isinstance(tol, float) and tol >= 0:
        return whole(max_steps, "max_steps", 0)
    if not isinstance(tol, Tracer):
        if tol is None or isinstance(tol, str):
            raise TypeError(f"tol is {tol!r}; it must be a number, zero or above")
        given = numbers(tol, "tol")
        if given.shape not in ((), shape):
            wanted = f"one number, or {shape[0]}" if shape else "one number"
            raise ValueError(f"tol has shape {given.shape}; it must be {wanted}")
        if not (np.asarray(given) >= 0).all():
            raise ValueError(f"tol is {tol}; it must be zero or above")
    return whole(max_steps, "max_steps", 0)


def check_prior(prior: Any) -> None:
    """Raise TypeError for a value that cannot be a prior of any model."""
    if isinstance(prior, type) or not all(isinstance(leaf, NUMERIC) for leaf in jax.tree.leaves(prior)):
        raise TypeError(f"prior is {said_of(prior)}; pass one such as jem.priors.Weak(), or pseudo-statistics")


def check_rows(model: Any, x: Any) -> None:
    """Raise ValueError if there are no rows or their columns are not the model's."""
    if jax.tree.leaves(x)[0].shape[0] == 0:
        raise ValueError("x has no rows; a fit needs at least one")
    jax.eval_shape(model.observe, x)
