"""What a parameter may be: declared once, on its field.

A constraint knows how many axes one value has, how many free numbers it is worth, what its coordinates are, and how to
say what is wrong with a value that a person passed in. `walk` goes through all parameters of a model, whatever is
nested in what, and knows of each whether a fit can move it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxem.core import bijectors, linalg
from jaxem.core.bijectors import Bijector

Check = Callable[[np.ndarray, float], str | None]

SOURCE = 1e-5
"""By how much probabilities may miss one, and a covariance its transpose, because they were rounded where they come
from: such values are made exact."""


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A set of allowed values.

    Attributes:
        name: the set, in words.
        event_ndim: axes of one value (0 number, 1 vector, 2 matrix); the axes before them are members.
        free: shape of one value -> free numbers in it, if none of it is fixed.
        check: (values, rounding) -> what is wrong with them, or None.
        bijector: between values and coordinates; without one, solvers that need coordinates refuse the model.
        exact: values that were rounded -> values that belong to the set; nothing else changes them.
        holds: values -> `[*members]` bool, do they belong to the set, but for what rounding may have done?
        edged: (values, distance) -> the same, with probabilities closer than that to zero or one put there.
    """

    name: str
    event_ndim: int
    free: Callable[..., int]
    check: Check
    bijector: Bijector | None = None
    exact: Callable[[Array], Array] = lambda values: values
    holds: Callable[[Array], Bool[Array, "..."]] | None = None
    edged: Callable[[Array, float], Array] = lambda values, distance: values


def _no_nan(values: np.ndarray, rounding: float) -> str | None:
    return None if np.isfinite(values).all() else "has entries that are not finite"


def _positive(values: np.ndarray, rounding: float) -> str | None:
    return _no_nan(values, rounding) or (None if (values > 0).all() else "has entries that are not above zero")


def _non_negative(values: np.ndarray, rounding: float) -> str | None:
    return _no_nan(values, rounding) or (None if (values >= 0).all() else "has negative entries")


def _unit_interval(values: np.ndarray, rounding: float) -> str | None:
    inside = (values >= 0) & (values <= 1)
    return _no_nan(values, rounding) or (None if inside.all() else "has entries outside [0, 1]")


def _simplex(values: np.ndarray, rounding: float) -> str | None:
    negative = _non_negative(values, rounding)
    if negative:
        return negative
    off = np.abs(values.sum(-1) - 1).max(initial=0.0)
    most = max(SOURCE, rounding * values.shape[-1])
    return None if off <= most else f"does not sum to one (off by {off:.2g})"


def _shares(values: Array) -> Array:
    """Zeros stay zeros; and where all are zero there is nothing to share."""
    total = jnp.sum(values, axis=-1, keepdims=True)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), values)


def _shares_at_edges(values: Array, distance: float) -> Array:
    return _shares(jnp.where(values < distance, 0, values))


def _at_edges(values: Array, distance: float) -> Array:
    return jnp.where(values < distance, 0, jnp.where(values > 1 - distance, 1, values))


def _positive_definite(values: np.ndarray, rounding: float) -> str | None:
    if bad := _no_nan(values, rounding):
        return bad
    if values.shape[-1] != values.shape[-2]:
        return f"is not square: its last two axes are {values.shape[-2]} and {values.shape[-1]}"
    size = np.abs(values).max(axis=(-1, -2), keepdims=True, initial=0.0)
    if (np.abs(values - np.swapaxes(values, -1, -2)) > max(SOURCE, rounding * 1e3) * size).any():
        return "is not symmetric"
    smallest = np.linalg.eigvalsh((values.astype(float) + np.swapaxes(values, -1, -2)) / 2).min(initial=np.inf)
    # A covariance that is singular within rounding is what a floor is for; a negative one is a mistake.
    return None if smallest > -rounding * 1e3 * size.max(initial=0.0) else "is not positive definite"


def _positive_semidefinite(values: np.ndarray, rounding: float) -> str | None:
    """Zeros alone are the covariance of what is known; they say nothing of how large rounding is in others."""
    some = np.moveaxis(values, (-1, -2), (0, 1)).any((0, 1)) if values.shape[-1] == values.shape[-2] else ...
    return _positive_definite(values[some], rounding)


LOOSE = 1e-4
"""How far values may be off that are said to hold: far beyond rounding, far below what steps of a gradient do."""


def _loose(values: Array) -> float:
    return max(LOOSE, 16 * float(jnp.finfo(values.dtype).eps))


def _holds_above(values: Array) -> Array:
    """Zero among them, to which a float of few digits rounds what is small."""
    return values >= 0


def _holds_all_above(values: Array) -> Array:
    return jnp.all(values >= 0, axis=-1)


def _holds_between(values: Array) -> Array:
    return (values >= -_loose(values)) & (values <= 1 + _loose(values))


def _holds_sum(values: Array) -> Array:
    return jnp.all(values >= -_loose(values), axis=-1) & (jnp.abs(jnp.sum(values, axis=-1) - 1) <= _loose(values))


def _holds_root(values: Array) -> Array:
    """Whether the triangular factor, whose pivots are lifted above zero, gives the matrix back."""
    factor = linalg.cholesky(jax.lax.stop_gradient(values))
    off = jnp.abs(linalg.matmul(factor, linalg.transpose(factor)) - values)
    size = jnp.sqrt(jnp.abs(linalg.diagonal(values)))
    least = 2 * float(jnp.finfo(values.dtype).tiny)  # to which the pivot of a zero is lifted
    return jnp.all(off <= _loose(values) * linalg.outer(size, size) + least, axis=(-1, -2))


def _entries(*shape: int) -> int:
    return int(np.prod(shape, dtype=int))


real = Constraint("real", 0, _entries, _no_nan, bijectors.REAL)
vector = Constraint("real vector", 1, _entries, _no_nan, bijectors.REAL)
matrix = Constraint("real matrix", 2, _entries, _no_nan, bijectors.REAL)
# What a rotation of the factors undoes is not known from data.
loadings = Constraint("matrix of loadings", 2, lambda size, k: size * k - k * (k - 1) // 2, _no_nan, bijectors.LOADINGS)
positive = Constraint("positive", 0, _entries, _positive, bijectors.POSITIVE, holds=_holds_above)
positive_vector = Constraint(
    "vector of positive numbers", 1, _entries, _positive, bijectors.POSITIVE, holds=_holds_all_above
)
non_negative = Constraint("non-negative", 0, _entries, _non_negative, bijectors.POSITIVE, holds=_holds_above)
# A rate of zero stays, because its rows then are zeros; from some zeros a fit moves on.
from_zero = dataclasses.replace(non_negative, bijector=bijectors.FROM_ZERO)
unit_interval = Constraint(
    "unit interval", 0, _entries, _unit_interval, bijectors.UNIT_INTERVAL, holds=_holds_between, edged=_at_edges
)
simplex = Constraint(
    "simplex", 1, lambda size: size - 1, _simplex, bijectors.SIMPLEX, _shares, _holds_sum, _shares_at_edges
)
positive_definite = Constraint(
    "positive definite", 2, lambda size, _: size * (size + 1) // 2, _positive_definite, bijectors.POSITIVE_DEFINITE,
    linalg.symmetrize, _holds_root,
)  # fmt: skip
positive_semidefinite = dataclasses.replace(
    positive_definite, name="positive semidefinite", check=_positive_semidefinite
)
held = Constraint("held as it is", 0, lambda: 0, _no_nan, bijectors.HELD)


def parameter(constraint: Constraint, axes: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is a parameter: a leaf, constrained as said.

    Args:
        constraint: what it may be.
        axes: what each axis after those of the members counts; `"state"` the hidden states of a latent structure. Who
            has none of these need not name any.
    """
    return dataclasses.field(metadata={"constraint": constraint, "axes": axes})


def named_axes(node: Any) -> dict[str, tuple[str, ...]]:
    """What the axes of the parameters of a model's own class count, by field name."""
    return {f.name: f.metadata["axes"] for f in dataclasses.fields(node) if "constraint" in f.metadata}


def parameter_tree(constraint: Constraint = real) -> Any:
    """A field that holds any pytree of arrays: a dict, an Equinox or Flax module, whose static leaves stay as they are.

    Every array in it is a parameter that all members share, each of whose numbers is in the constraint's set.
    """
    return dataclasses.field(metadata={"each": constraint})


def parameters(node: Any) -> dict[str, Constraint]:
    """The declared parameters of a model's own class, by field name."""
    return {f.name: f.metadata["constraint"] for f in dataclasses.fields(node) if "constraint" in f.metadata}


def is_held(node: Any, name: str) -> bool:
    """Whether no fit changes anything of this field: the model's own `held` names it, or `jaxem.hold` did."""
    restriction = getattr(node, "restriction", None)
    by_hold = restriction is not None and name in restriction.held and restriction.held[name] is None
    return by_hold or name in getattr(node, "held", ())


def name_of(path: tuple[Any, ...]) -> str:
    """Name of a parameter by the path to it: `components.mean`, `parts.0.rate`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


class Leaf(NamedTuple):
    """A parameter somewhere in a model.

    Attributes:
        path: as JAX says it.
        declared: what it may be.
        values: `[*members, *value]`.
        still: is it held, by its own model or with all that one of the models around it holds? What follows from
            another parameter counts as held.
        used: `[*members]`, which of them can be used at all; None if nobody asked.
        mask: shaped as the values, above zero where they are held; None if they are not.
        first: of each along the last axis of members that one whose value it has, where they are tied; or None.
        follows: the name of the parameter that it follows from, and how; or None.
    """

    path: tuple[Any, ...]
    declared: Constraint
    values: Any
    still: bool
    used: Bool[Array, "..."] | None
    mask: Any = None
    first: tuple[int, ...] | None = None
    follows: tuple[str, Callable[[Array], Array]] | None = None

    @property
    def name(self) -> str:
        """Name in `jem.coordinates`: `components.mean`, `parts.0.rate`."""
        return name_of(self.path)

    @property
    def restricted(self) -> bool:
        """Whether it is held, in part or as a whole, or tied."""
        return self.still or self.mask is not None or self.first is not None

    @property
    def constraint(self) -> Constraint:
        """What it may be, or that it is held."""
        return held if self.still else self.declared

    @property
    def bijector(self) -> Bijector:
        """Between its values and its coordinates."""
        if self.constraint.bijector is None:
            raise ValueError(
                f"{jax.tree_util.keystr(self.path)[1:]} is {self.declared.name!r}, a Constraint without a bijector; "
                "give it one (jaxem.core.bijectors), or use EM()"
            )
        bijector = self.constraint.bijector
        if self.still:
            return bijector
        if self.mask is not None:
            bijector = bijectors.entries_held(bijector, self.mask > 0)
        if self.first is not None:
            axis = jnp.ndim(self.values) - self.declared.event_ndim - 1
            bijector = bijectors.members_tied(bijector, self.first, axis)
        return bijector

    def moves(self) -> Bool[Array, "..."]:
        """Which of its coordinates a fit can move at all, `[*members, ...]`."""
        used = jnp.asarray(self.used)
        if self.first is not None:
            together = np.equal.outer(self.first, self.first)
            used = jnp.any(used[..., None, :] & jnp.asarray(together), axis=-1)
        inside = self.bijector.moving(jnp.asarray(self.values))
        return (
            inside if not inside.size else inside & used.reshape(*used.shape, *(1 for _ in inside.shape[used.ndim :]))
        )


Following = dict[str, tuple[str, Callable[[Array], Array]]]
"""By the names of parameters that follow from others: the other's name, and how."""


def walk(
    node: Any, used: Any = None, still: bool = False, path: tuple[Any, ...] = (), following: Following | None = None
) -> Iterator[Leaf]:
    """The parameters of a model and of all that it holds, in the order of its leaves.

    Args:
        node: a model.
        used: `[*batch_shape]` bool, which of its members can be used; None if that does not matter.
        still: is all of it held?
        path: to it.
        following: what models around it say of parameters that follow from others.
    """
    declared, restriction = parameters(node), getattr(node, "restriction", None)
    masks, shared = ({}, {}) if restriction is None else (restriction.held, dict(restriction.shared))
    following = {**(following or {}), **({} if restriction is None else restriction.following(path))}
    by_field = node.in_use(used) if used is not None and hasattr(node, "in_use") else {}
    for field in dataclasses.fields(node):
        if field.metadata.get("static"):
            continue
        name, value = field.name, getattr(node, field.name)
        here, rests = (*path, jax.tree_util.GetAttrKey(name)), still or is_held(node, name)
        mine = by_field.get(name, used)
        if name in declared:
            members = np.shape(value)[: np.ndim(value) - declared[name].event_ndim]
            leaf = Leaf(here, declared[name], value, rests, _aligned(mine, members), masks.get(name), shared.get(name))
            follows = following.get(leaf.name) if following else None
            yield leaf if follows is None else leaf._replace(still=True, follows=follows)
            continue
        free = field.metadata.get("each")
        parts = jax.tree_util.tree_flatten_with_path(value, is_leaf=None if free else dataclasses.is_dataclass)[0]
        each = mine if isinstance(mine, tuple) else (mine,) * len(parts)
        for (below, part), its in zip(parts, each, strict=True):
            if dataclasses.is_dataclass(part):
                members = getattr(part, "batch_shape", ())
                yield from walk(part, _aligned(its, members), rests, (*here, *below), following)
            else:
                # An array that is no parameter is a constant of the model.
                yield Leaf((*here, *below), free or held, part, rests or free is None, _aligned(its, ()))


def _aligned(used: Any, members: tuple[int, ...]) -> Any:
    """What is known of some members, for a part that has others: what members share is used if any of them is."""
    if used is None:
        return None
    while used.ndim > len(members):
        used = jnp.any(used, axis=-1)
    for axis, size in enumerate(used.shape):
        if size != members[axis]:
            used = jnp.any(used, axis=axis, keepdims=True)
    return jnp.broadcast_to(used.reshape(*used.shape, *(1 for _ in members[used.ndim :])), members)


def rebuilt(like: Any, values: list[Any]) -> Any:
    """A model like another, with these values of its parameters, in their order; what follows from others does."""
    own = list(walk(like))
    if any(leaf.follows for leaf in own):
        named = {leaf.name: one for leaf, one in zip(own, values, strict=True)}
        values = [
            one if leaf.follows is None else leaf.follows[1](named[leaf.follows[0]])
            for leaf, one in zip(own, values, strict=True)
        ]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def leaves(model: Any) -> list[tuple[tuple[Any, ...], Constraint, Any]]:
    """The parameters of a model and of all that it holds: path, constraint, values; in the order of its leaves."""
    return [(leaf.path, leaf.constraint, leaf.values) for leaf in walk(model)]


def normalized(model: Any) -> Any:
    """The model with every parameter exactly in its set, in its own type.

    Probabilities sum to one, covariances are symmetric, zeros stay zeros.

    >>> import jax.numpy as jnp, jaxem as jem
    >>> from jaxem.core.pytree import replace
    >>> model = replace(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0])), weights=jnp.array([0.5000003, 0.5]))
    >>> normalized(model).weights.sum().item()
    1.0
    """
    return _each(lambda leaf: leaf.declared.exact(leaf.values), model)


def at_edges(model: Any, distance: float) -> Any:
    """The model with all probabilities that are closer than that to zero or one put there, but for what is held.

    >>> import jaxem as jem
    >>> at_edges(jem.Mixture([1e-9, 1 - 1e-9], jem.Bernoulli([0.5, 1e-7])), 1e-6).weights.tolist()
    [0.0, 1.0]
    """

    def edged(leaf: Leaf) -> Any:
        return leaf.values if leaf.mask is not None else leaf.constraint.edged(leaf.values, distance)

    return _each(edged, model)


def _each(change: Callable[[Leaf], Any], model: Any) -> Any:
    return rebuilt(model, [change(leaf) for leaf in walk(model)])


def check_parameters(node: Any) -> None:
    """Raise ValueError, naming class and argument, if a concrete parameter is not what its field declares.

    What is off by the rounding of its source (probabilities from a table with seven digits) is made exact. Traced
    values cannot be looked at; inside `jit` a bad value ends as a status of the fit.
    """
    for name, constraint in parameters(node).items():
        value = getattr(node, name)
        if isinstance(value, Tracer):
            continue
        if value.ndim < constraint.event_ndim:
            raise ValueError(
                f"{type(node).__name__}: {name} has {value.ndim} axes; a {constraint.name} needs at least "
                f"{constraint.event_ndim}"
            )
        seen, rounding = np.asarray(value), float(np.finfo(value.dtype).eps)
        if wrong := constraint.check(seen, rounding):
            raise ValueError(f"{type(node).__name__}: {name} {wrong}; it must be {constraint.name}")
        if not is_exact(constraint, seen, rounding):
            object.__setattr__(node, name, constraint.exact(value))


def is_exact(constraint: Constraint, values: np.ndarray, rounding: float) -> bool:
    """Whether values are off by no more than the rounding of their own type."""
    if constraint is simplex:
        return bool((np.abs(values.sum(-1) - 1) <= rounding * max(8, values.shape[-1])).all())
    if constraint in (positive_definite, positive_semidefinite):
        return bool((values == np.swapaxes(values, -1, -2)).all())
    return True


def free_parameters(node: Any) -> Int[Array, "*batch"] | int:
    """How many free numbers a model holds: the coordinates that a fit from here can move.

    A simplex of K is worth K - 1, a covariance of D columns D (D + 1) / 2. What is zero for good is not free: a
    probability of zero or one, what belongs to a component without weight, to a state that no path reaches, to a row
    of a table that never occurs. Nor is what is `held`. An estimate that has ended exactly at zero looks the same: to
    count it, pass the model that the fit began with.

    Args:
        node: a model, or a batch of them. A parameter that several members of a batch share counts for each.

    Returns:
        A number; for a batch `[*batch_shape]`, and inside `jit` an array.

    >>> import jaxem as jem
    >>> jem.free_parameters(jem.Mixture([0.5, 0.5], jem.Poisson([1.0, 2.0])))
    3
    >>> jem.free_parameters(jem.Mixture([[0.5, 0.5], [1.0, 0.0]], jem.Poisson([[1.0, 2.0], [1.0, 2.0]]))).tolist()
    [3, 1]
    """
    counted = _free_parameters(node)
    return counted if counted.ndim or isinstance(counted, Tracer) else int(counted)


@jax.jit
def _free_parameters(model: Any) -> Int[Array, "*batch"]:
    batch = getattr(model, "batch_shape", ())
    total = jnp.zeros(batch, jnp.int32)
    for leaf in walk(model, jnp.ones(batch, bool)):
        if leaf.constraint.bijector is None:
            members = leaf.values.ndim - leaf.declared.event_ndim
            each = jnp.where(jnp.asarray(leaf.used), leaf.declared.free(*leaf.values.shape[members:]), 0)
        else:
            each = leaf.moves().astype(jnp.int32)
        total = total + _over(jnp.sum, each, batch).astype(jnp.int32)
    return total


def told(model: Any, log_prob: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Log-probabilities under a model; NaN if a parameter in use is not what its field declares.

    A constructor checks that, but nobody calls it for a model that comes out of arithmetic on a pytree: weights that
    sum to two would give each row log(2) too much.
    """
    batch = log_prob.shape[:-1]
    holds = jnp.ones(batch, bool)
    for leaf in walk(model, holds):
        if leaf.declared.holds is not None:
            holds = holds & _over(jnp.all, leaf.declared.holds(leaf.values) | ~jnp.asarray(leaf.used), batch)
    return jnp.where(holds[..., None], log_prob, jnp.nan)


def _over(reduce: Callable[..., Array], each: Array, batch: tuple[int, ...]) -> Array:
    """Something of each member (and more), over all that belong to one of a batch; what several share is of each."""
    alike = [a == b for a, b in zip(each.shape, batch, strict=False)]
    own = alike.index(False) if False in alike else len(alike)
    found = reduce(each, axis=tuple(range(own, each.ndim)))
    return found.reshape(*found.shape, *(1 for _ in batch[own:]))
