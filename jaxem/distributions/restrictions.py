"""Restrictions of parameters, which a fit leaves alone or keeps equal: `hold`, `tie`, `release`.

A held or tied model is a model. Its restriction is a field of it, so that it goes wherever the model goes: into a
mixture, through `fit` and `fit_many` with any solver, into a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxem.core import bijectors
from jaxem.core.constraints import Leaf, held, name_of, simplex, walk
from jaxem.core.pytree import replace
from jaxem.core.restriction import RULES, Restriction
from jaxem.distributions.base import check_model

ALIKE = (bijectors.REAL, bijectors.POSITIVE, bijectors.FROM_ZERO, bijectors.UNIT_INTERVAL, bijectors.SIMPLEX)
"""Parameters of which single entries can be held."""


def hold(model: Any, *names: str | Mapping[str, Any]) -> Any:
    """The model with these parameters held at their values: no fit changes them.

    Every solver keeps to it, `free_parameters` (and so AIC and BIC) does not count what is held, and the derivative of
    a fit is that given what is held. EM's M-step is the maximum of Q over what is left: in closed form for shares of
    counts, families of one parameter, and all of a Gaussian's mean or covariance; else by Newton's method, no step of
    which lowers Q.

    Args:
        model: a model, or a batch of them.
        names: as in `jem.coordinates(model)`: `"weights"`, `"emission.mean"`; the name of a part holds all of it. Or a
            dict from such names to masks: True where an entry is held. A mask broadcasts against the parameter, members
            first: `{"components.mean": [[True], [False]]}` holds the mean of the first of two components,
            `{"transition": mask}` single transitions. Of a covariance, all of a member's or nothing.

    Returns:
        A model of the same class; `model` itself is as it was.

    Raises:
        ValueError: a name that is none of the model's (the message has those that are), a mask that does not fit.
        TypeError: no model, or names that are neither text nor a dict.

    Source: the expected counts of what is free are those of the model as it is, so the E-step stays (Dempster, Laird
    and Rubin 1977, section 3); the two coins are those of Do and Batzoglou (2008), whose choice is known to be fair.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> coins = jem.hold(jem.Mixture([0.5, 0.5], jem.Binomial(10, [0.6, 0.5])), "weights")
    >>> fit = jem.fit(coins, jnp.array([5.0, 9.0, 8.0, 4.0, 7.0]))
    >>> fit.model.weights.tolist(), fit.model.components.probs.round(2).tolist(), jem.free_parameters(coins)
    ([0.5, 0.5], [0.8, 0.52], 2)
    """
    check_model(model)
    for name, mask in _masks(names):
        found = _leaves(model, name, "hold")
        for leaf in found:
            _check_leading(leaf, found)
            model = _changed(model, leaf, lambda node, field, leaf=leaf, mask=mask: _hold(node, field, leaf, mask))
    return model


def tie(model: Any, *groups: str | Sequence[str], members: Sequence[int] | None = None, to: str | None = None) -> Any:
    """The model with parameters that are equal, and stay so.

    Args:
        model: a model, or a batch of them.
        groups: a name, as in `jem.coordinates(model)`, ties a parameter among its members, which are the states of an
            HMM and the components of a mixture: `"emission.variance"`. A tuple of names ties parameters of one shape
            and kind to each other: `("parts.0.rate", "parts.1.rate")`. Their values become their mean.
        members: of a name, the members that share a value, `[0, 2]`; all if left out. Call again for other members.
        to: `"stationary"`, with the name of an initial distribution: it is the stationary one of the `transition`
            beside it.

    Returns:
        A model of the same class; `model` itself is as it was.

    Raises:
        ValueError: names that are none of the model's; parameters whose shapes or kinds do not agree (the message has
            both); a parameter without members; one that is tied to others already.
        TypeError: no model, or groups that are neither text nor sequences of it.

    Every solver keeps to it, and what is equal counts once in `free_parameters`. EM's M-step is the maximum of Q over
    what is left, found by Newton's method from whichever is higher, the model as it is or the M-step without the tie.

    Source: tied parameters as in Rabiner (1989), section IV.E; a stationary start as in Hamilton (1994), section 22.2.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> x = jnp.array([0.0, 1.0, 2.0, 9.0, 11.0])
    >>> two = jem.Mixture([0.5, 0.5], jem.DiagonalGaussian([[1.0], [10.0]], [[1.0], [1.0]]))
    >>> fit = jem.fit(jem.tie(two, "components.variance"), x)
    >>> fit.model.components.variance.round(3).tolist(), jem.free_parameters(fit.model)
    ([[0.8], [0.8]], 4)
    """
    check_model(model)
    if not groups:
        raise TypeError("tie needs the name of a parameter, or a tuple of names that are to be equal")
    for group in groups:
        names = (group,) if isinstance(group, str) else tuple(group)
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"tie: {group!r} is neither the name of a parameter nor a tuple of such names")
        found = [_one(model, name) for name in names]
        if to is not None:
            model = _tie_to(model, found, to)
        else:
            model = _tie_members(model, found[0], members) if len(found) == 1 else _tie_names(model, found, members)
    return model


def release(model: Any, *names: str) -> Any:
    """The model with nothing held or tied, or with these parameters free.

    Args:
        model: a model, or a batch of them.
        names: of parameters, or of parts of the model; all of it if left out. A parameter that others follow lets go of
            them, too. What a model holds by its own argument (`held` of a `StudentT`) is released as well.

    Raises:
        ValueError: a name that is none of the model's.

    >>> import jaxem as jem
    >>> model = jem.hold(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0])), "weights", "components.rate")
    >>> jem.free_parameters(model), jem.free_parameters(jem.release(model, "weights")), jem.free_parameters(
    ...     jem.release(model))
    (0, 1, 3)
    """
    check_model(model)
    for name in names or ("",):
        for leaf in _leaves(model, name, "release"):
            model = _untied(model, leaf.name)
            model = _changed(model, leaf, _release)
    return model


def _masks(names: Sequence[Any]) -> list[tuple[str, Any]]:
    """Names and what is held of each: None is all."""
    if not names:
        raise TypeError("hold needs the names of parameters, or a dict from names to masks")
    found: list[tuple[str, Any]] = []
    for one in names:
        if isinstance(one, str):
            found.append((one, None))
        elif isinstance(one, Mapping):
            found += list(one.items())
        else:
            raise TypeError(f"hold: {one!r} is neither the name of a parameter nor a dict from names to masks")
    return found


def _leaves(model: Any, name: str, verb: str) -> list[Leaf]:
    """The parameters of that name, or below it."""
    own = [leaf for leaf in walk(model) if hasattr(leaf.path[-1], "name") and leaf.declared is not held]
    found = [leaf for leaf in own if not name or leaf.name == name or leaf.name.startswith(f"{name}.")]
    if not found:
        have = ", ".join(leaf.name for leaf in own)
        raise ValueError(f"{verb}: {name!r} is no parameter of this {type(model).__name__}; it has {have}")
    return found


def _check_leading(leaf: Leaf, beside: Sequence[Leaf]) -> None:
    """Refuse to hold a parameter that follows another, unless that one is held with it."""
    if leaf.follows and leaf.follows[0] not in {other.name for other in beside}:
        raise ValueError(f"hold: {leaf.name} is tied to {leaf.follows[0]}; hold that one, or release the tie first")


def _one(model: Any, name: str) -> Leaf:
    found = _leaves(model, name, "tie")
    if len(found) > 1:
        raise ValueError(f"tie: {name!r} is not one parameter; it has {', '.join(leaf.name for leaf in found)}")
    return found[0]


def _changed(model: Any, leaf: Leaf, change: Callable[[Any, str], Any]) -> Any:
    """The model with the node that owns a parameter changed: `change(node, name of the field)`."""
    return _at(model, leaf.path[:-1], lambda node: change(node, leaf.path[-1].name))


def _at(node: Any, path: Sequence[Any], change: Callable[[Any], Any]) -> Any:
    """A copy of a pytree with what lies at a path changed."""
    if not path:
        return change(node)
    key, rest = path[0], path[1:]
    if isinstance(key, jax.tree_util.GetAttrKey):
        return replace(node, **{key.name: _at(getattr(node, key.name), rest, change)})
    if isinstance(key, jax.tree_util.DictKey):
        return {**node, key.key: _at(node[key.key], rest, change)}
    return type(node)(_at(part, rest, change) if i == key.idx else part for i, part in enumerate(node))


def _hold(node: Any, field: str, leaf: Leaf, mask: Any) -> Any:
    mask = None if mask is None else _mask(leaf, mask)
    restriction = node.restriction or Restriction({})
    before = restriction.held.get(field, ...)
    if before is None or mask is ...:
        return node
    if mask is not None and before is not ...:
        mask = jnp.maximum(mask, before)
    if mask is not None and leaf.first is not None:
        mask = _together(mask, leaf, leaf.first)
    whole = mask is not None and not isinstance(mask, Tracer) and bool((np.asarray(mask) > 0).all())
    masks = {**restriction.held, field: None if whole else mask}
    return replace(node, restriction=replace(restriction, held=masks))


def _mask(leaf: Leaf, mask: Any) -> Any:
    """A mask as the model keeps it; `...` if it holds nothing."""
    shape, mask = jnp.shape(leaf.values), jnp.asarray(mask)
    try:
        mask = jnp.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"hold: the mask of {leaf.name} has shape {mask.shape}; it must broadcast to {shape}"
        ) from None
    mask = mask.astype(leaf.values.dtype)
    if isinstance(mask, Tracer):
        return mask
    given = np.asarray(mask)
    if not np.isin(given, (0, 1)).all():
        raise ValueError(f"hold: the mask of {leaf.name} has entries that are neither True nor False")
    if leaf.declared.bijector not in ALIKE and (given.any((-1, -2)) != given.all((-1, -2))).any():
        raise ValueError(
            f"hold: the mask of {leaf.name} holds some entries of a matrix and not others; a {leaf.declared.name} "
            "matrix is held altogether or not at all"
        )
    return mask if given.any() else ...


def _together(mask: Array, leaf: Leaf, first: tuple[int, ...]) -> Array:
    """Masks in which what is held of one tied member is held of all."""
    axis = mask.ndim - leaf.declared.event_ndim - 1
    same = np.equal.outer(first, first)
    groups = [jnp.max(jnp.compress(row, mask, axis=axis), axis=axis) for row in same]
    return jnp.stack(groups, axis=axis)


def _tie_members(model: Any, leaf: Leaf, members: Sequence[int] | None) -> Any:
    axis = np.ndim(leaf.values) - leaf.declared.event_ndim - 1
    if axis < 0:
        raise ValueError(
            f"tie: {leaf.name} has shape {np.shape(leaf.values)}, which is one {leaf.declared.name} and has no members "
            "to tie; name two parameters, as a tuple, to tie them to each other"
        )
    size = leaf.values.shape[axis]
    chosen = sorted({int(i) for i in (range(size) if members is None else members)})
    if not chosen or chosen[0] < 0 or chosen[-1] >= size:
        raise ValueError(f"tie: members is {members}; {leaf.name} has the members 0 to {size - 1}")
    first = list(leaf.first or range(size))
    merged = {first[i] for i in chosen}
    first = tuple(min(merged) if one in merged else one for one in first)

    _check_moving(leaf)
    if leaf.follows:
        raise ValueError(f"tie: {leaf.name} is tied to {leaf.follows[0]}; tie the members of that one")

    def tied(node: Any, field: str) -> Any:
        restriction = node.restriction or Restriction({})
        shared = {**dict(restriction.shared), field: first}
        masks = dict(restriction.held)
        if masks.get(field) is not None:
            masks[field] = _together(masks[field], leaf, first)
        new = replace(restriction, held=masks, shared=tuple(sorted(shared.items())))
        return replace(node, restriction=new, **{field: _averaged(leaf, first, axis)})

    return _changed(model, leaf, tied)


def _averaged(leaf: Leaf, first: tuple[int, ...], axis: int) -> Array:
    """The mean over each group; of what is held in part, the value of its first member."""
    if leaf.mask is not None:
        return jnp.take(leaf.values, np.asarray(first), axis=axis)
    same = np.equal.outer(first, first)
    weights = jnp.asarray(same / same.sum(1, keepdims=True), leaf.values.dtype)
    values = jnp.moveaxis(leaf.values, axis, -1)
    return jnp.moveaxis(jnp.einsum("...i,ji->...j", values, weights, precision="highest"), -1, axis)


def _check_moving(leaf: Leaf) -> None:
    if leaf.still and leaf.follows is None:
        raise ValueError(f"tie: {leaf.name} is held; release it first, or tie it and then hold it")


def _tie_names(model: Any, found: list[Leaf], members: Any) -> Any:
    source, *others = found
    if members is not None:
        raise ValueError(f"tie: members is {members}; it goes with the name of one parameter, not with {len(found)}")
    for leaf in others:
        if leaf.name == source.name:
            raise ValueError(f"tie: {leaf.name} is named twice")
        same_kind = leaf.declared.name == source.declared.name
        if np.shape(leaf.values) != np.shape(source.values) or not same_kind:
            raise ValueError(
                f"tie: {source.name} ({source.declared.name}, shape {np.shape(source.values)}) and {leaf.name} "
                f"({leaf.declared.name}, shape {np.shape(leaf.values)}) cannot be equal"
            )
        if leaf.mask is not None or leaf.first is not None:
            raise ValueError(
                f"tie: {leaf.name} is held in part or tied among its members; name it first, or release it first"
            )
    for leaf in found:
        _check_alone(model, leaf)
    value = source.values if source.mask is not None else sum(leaf.values for leaf in found) / len(found)
    for leaf in found:
        model = _changed(model, leaf, lambda node, field: replace(node, **{field: value}))
    return _follow(model, [(leaf.path, source.path) for leaf in others], "equal")


def _check_alone(model: Any, leaf: Leaf) -> None:
    _check_moving(leaf)
    led = any(other.follows and other.follows[0] == leaf.name for other in walk(model))
    if leaf.follows or led:
        raise ValueError(f"tie: {leaf.name} is tied to another parameter already; release it first, then name all")


def _tie_to(model: Any, found: list[Leaf], to: str) -> Any:
    (leaf, *more) = found
    if to not in RULES or to == "equal":
        raise ValueError(f"tie: to is {to!r}; it must be 'stationary'")
    beside = {other.path: other for other in walk(model)}
    source = beside.get((*leaf.path[:-1], jax.tree_util.GetAttrKey("transition")))
    if more or leaf.declared is not simplex or source is None or source.declared is not simplex:
        raise ValueError(
            f"tie: {leaf.name} is no initial distribution with a transition matrix beside it; to='stationary' goes "
            "with the `initial` of an HMM"
        )
    _check_alone(model, leaf)
    value = RULES[to](source.values)
    model = _changed(model, leaf, lambda node, field: replace(node, **{field: value}))
    return _follow(model, [(leaf.path, source.path)], to)


def _follow(model: Any, pairs: list[tuple[Any, Any]], rule: str) -> Any:
    """The model in which the first of each pair of paths follows the second: said where both are below."""
    depth = min(_common(a, b) for a, b in pairs)
    above = pairs[0][0][:depth]
    while depth and not hasattr(_reach(model, above), "restriction"):
        depth, above = depth - 1, above[:-1]

    def told(node: Any) -> Any:
        restriction = node.restriction or Restriction({})
        more = tuple((name_of(a[depth:]), name_of(b[depth:]), rule) for a, b in pairs)
        return replace(node, restriction=replace(restriction, follows=restriction.follows + more))

    return _at(model, above, told)


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    return next(i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)


def _reach(node: Any, path: Sequence[Any]) -> Any:
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            node = getattr(node, key.name)
        else:
            node = node[key.key if isinstance(key, jax.tree_util.DictKey) else key.idx]
    return node


def _release(node: Any, field: str) -> Any:
    if field in getattr(node, "held", ()):
        node = dataclasses.replace(node, held=tuple(name for name in node.held if name != field))
    restriction = node.restriction
    if restriction is None:
        return node
    masks = {name: mask for name, mask in restriction.held.items() if name != field}
    shared = tuple(one for one in restriction.shared if one[0] != field)
    return replace(node, restriction=_or_none(replace(restriction, held=masks, shared=shared)))


def _or_none(restriction: Restriction) -> Restriction | None:
    return restriction if restriction.held or restriction.tied else None


def _untied(model: Any, name: str) -> Any:
    """The model in which that parameter follows none, and none follows it."""
    path = next(leaf.path for leaf in walk(model) if leaf.name == name)
    for depth in range(len(path)):
        node = _reach(model, path[:depth])
        restriction = getattr(node, "restriction", None)
        if restriction is not None and restriction.follows:
            kept = tuple(one for one in restriction.follows if name_of(path[depth:]) not in one[:2])
            new = replace(node, restriction=_or_none(replace(restriction, follows=kept)))
            model = _at(model, path[:depth], lambda _, new=new: new)
    return model
