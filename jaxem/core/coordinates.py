"""Unconstrained coordinates of a model: one real number for each free number that it holds.

Each constraint has a bijector for it (`jaxem.core.bijectors`); a model's coordinates are those of its parameters. What
sits on the edge of its set for good (a weight of zero, a probability of one) stays out: its coordinate is zero and
moves nothing. What is held has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxem.core.constraints import rebuilt, walk

Coordinates = list[Array]
Named = dict[str, Array]


def coordinates(model: Any) -> tuple[Named, Callable[[Named], Any]]:
    """Unconstrained coordinates of a model, and the way back: what an optimiser may move as it likes.

    A step along the gradient of a model's own pytree leaves the set of models: weights no longer sum to one, a variance
    is below zero. In coordinates every step is a model: logarithms of what is positive, log-odds of probabilities,
    log-ratios to the last entry of a simplex, the Cholesky factor of a covariance with the logarithms of its diagonal.

    What is zero for good (a weight, a transition) stays zero: its coordinate moves nothing. What is `held` has none.

    Args:
        model: a model, or a batch of them.

    Returns:
        `(free, model_at)`: a dict of arrays by the names of the parameters, `[*members, ...]`, which is a pytree like
        any other, for optax and for `jax.grad`; and a function of such a dict, which may be passed through `jit`.

    Raises:
        ValueError: from `model_at`, if names are missing or are none of the model's.

    >>> import jax, optax, jaxem as jem
    >>> x, start = jax.numpy.array([0.0, 1.0, 7.0, 9.0]), jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 5.0]))
    >>> free, model_at = jem.coordinates(start)
    >>> {name: values.round(2).tolist() for name, values in free.items()}
    {'weights': [0.0], 'components.rate': [0.0, 1.61]}
    >>> descent = optax.sgd(0.05)
    >>> @jax.jit
    ... def step(free, state):
    ...     slope = jax.grad(lambda free: -model_at(free).log_prob(x).sum())(free)
    ...     updates, state = descent.update(slope, state)
    ...     return optax.apply_updates(free, updates), state
    >>> state = descent.init(free)
    >>> for _ in range(300):
    ...     free, state = step(free, state)
    >>> model_at(free).components.rate.round(2).tolist()
    [0.5, 7.97]
    """
    names = [leaf.name for leaf in walk(model) if not leaf.still]
    return dict(zip(names, _moved(model), strict=True)), jax.tree_util.Partial(_model_at, model)


@jax.jit
def _moved(model: Any) -> Coordinates:
    """Those of what is not held."""
    return [free for free, leaf in zip(to_coordinates(model), walk(model), strict=True) if not leaf.still]


def _model_at(like: Any, free: Named) -> Any:
    leaves = list(walk(like))
    names = [leaf.name for leaf in leaves if not leaf.still]
    if free.keys() ^ names:
        wrong = min(free.keys() ^ names)
        raise ValueError(f"{wrong!r} {'is missing' if wrong in names else 'is no parameter'}: {', '.join(names)}")
    held = jnp.zeros(0)
    return from_coordinates([held if leaf.still else free[leaf.name] for leaf in leaves], like)


def to_coordinates(model: Any, like: Any = None) -> Coordinates:
    """Coordinates of every parameter of a model, in the order of its leaves.

    Logarithms of what is positive, log-ratios to the last entry of a simplex, the Cholesky factor of a covariance with
    the logarithm of its diagonal.

    Args:
        model: any.
        like: a model of the same structure that tells what is fixed; the model itself if left out.

    >>> import jaxem as jem
    >>> [c.shape for c in to_coordinates(jem.Mixture([0.2, 0.8], jem.Gaussian([[0.0], [1.0]], [[[1.0]], [[2.0]]])))]
    [(1,), (2, 1), (2, 1)]
    """
    each = zip(walk(model), walk(model if like is None else like), strict=True)
    return [old.bijector.free(leaf.values, old.values) for leaf, old in each]


def from_coordinates(free: Coordinates, like: Any) -> Any:
    """The model with these coordinates: the inverse of `to_coordinates`.

    Args:
        free: coordinates.
        like: a model of that structure; what is fixed in it stays as it is.

    >>> import jaxem as jem
    >>> model = jem.Mixture([0.2, 0.8], jem.Poisson([1.0, 2.0]))
    >>> bool(abs(from_coordinates(to_coordinates(model), model).components.rate - model.components.rate).max() < 1e-6)
    True
    """
    values = [old.bijector.values(one, old.values) for one, old in zip(free, walk(like), strict=True)]
    return rebuilt(like, values)


def logarithmic(model: Any) -> Coordinates:
    """One for each coordinate that is a logarithm, of a value, of odds or of a ratio; zero for others.

    >>> import jaxem as jem
    >>> [each.tolist() for each in logarithmic(jem.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))]
    [[0.0, 0.0], [1.0, 1.0, 0.0]]
    """
    each = zip(walk(model), to_coordinates(model), strict=True)
    return [
        jnp.broadcast_to(jnp.asarray(leaf.bijector.logarithms(leaf.values), free.dtype), free.shape)
        for leaf, free in each
    ]


def moving(model: Any, used: Any = None) -> Bool[Array, "p"]:
    """Which of the coordinates of one model a fit can move at all, in the order of `flat`.

    Args:
        model: any.
        used: for each parameter, in the order of its leaves, `[*members]` bool: which of them count; all that are in
            use if left out.

    >>> import jaxem as jem
    >>> moving(jem.Mixture([1.0, 0.0], jem.Poisson([1.0, 2.0]))).tolist()
    [False, True, False]
    """
    leaves = list(walk(model, jnp.ones(getattr(model, "batch_shape", ()), bool)))
    if used is not None:
        leaves = [leaf._replace(used=leaf.used & mine) for leaf, mine in zip(leaves, used, strict=True)]
    return jnp.concatenate([jnp.zeros(0, bool), *(leaf.moves().ravel() for leaf in leaves)])


def flat(model: Any, like: Any = None) -> tuple[Float[Array, "p"], Callable[[Array], Any]]:
    """All coordinates of a model as one vector, and the way back to a model; `like` as in `to_coordinates`."""
    vector, unravel = ravel_pytree(to_coordinates(model, like))
    return vector, lambda free: from_coordinates(unravel(free), model if like is None else like)
