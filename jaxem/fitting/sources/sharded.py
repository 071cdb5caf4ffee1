"""Rows, or steps of a few long sequences, sharded over devices: each takes the E-step of its own, and sums are reduced.

Once in a pass the log-likelihood and all expected statistics, packed into one array, are summed over the devices
(`psum`, and no other collective: it is the one that every backend does well); every device computes the rest for
itself, from the same numbers. The devices may belong to one process or to several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxem.core import semirings
from jaxem.core.pytree import module, replace, static
from jaxem.core.summation import BLOCK, placed
from jaxem.data.prepare import mesh_of
from jaxem.data.sequences import Sequences
from jaxem.distributions.base import Labelled, Statistics, add, over_parts
from jaxem.solvers.em import RowSource, expectation, in_chunks, no_rows


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sharding of the data.

    Attributes:
        mesh: the devices.
        axis: of the mesh, or several, over which the data are sharded.
        steps: whether steps of each sequence are sharded, instead of rows (or sequences).
    """

    mesh: Mesh
    axis: str | tuple[str, ...]
    steps: bool = False

    def spec(self, leaf: Any) -> P:
        """PartitionSpec of an array with an entry for each row (or sequence), or for each step."""
        if not self.steps:
            return P(self.axis)
        return P(None, self.axis) if leaf.ndim > 1 else P()

    def spread(self, data: Any) -> Any:
        """Data, sharded over the devices."""
        return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(self.mesh, self.spec(leaf))), data)

    def everywhere(self, values: Any) -> Any:
        """Arrays replicated on every device; a number stays a number."""
        whole = NamedSharding(self.mesh, P())
        return jax.tree.map(lambda v: jax.device_put(v, whole) if isinstance(v, jax.Array) else v, values)

    def together(self, sums: list[Array], extremes: list[Array]) -> tuple[list[Array], list[Array]]:
        """Sums and maxima over the devices, in one message: for maxima each device has a place of its own."""
        packed, unpack = ravel_pytree((sums, [placed(leaf, self.axis) for leaf in extremes]))
        sums, places = unpack(jax.lax.psum(packed, self.axis))
        return sums, [jnp.max(leaf, axis=0) for leaf in places]

    def from_first(self, arrays: Any) -> Any:
        """Arrays of the first device, on all."""
        first = jax.lax.axis_index(self.axis) == 0
        return jax.tree.map(lambda leaf: _sum(jnp.where(first, leaf, jnp.zeros_like(leaf)), self.axis), arrays)

    def own(self, over: Any) -> Any:
        """A sum over what is hidden, for one device: where it draws, each draws something else."""
        return semirings.apart(over, jax.lax.axis_index(self.axis))


@module
class ShardedRows(RowSource):
    """Data sharded over devices.

    Attributes:
        x: as a model takes it; or precomputed by the model for each device, with a leading axis of devices.
        row: one row with its weight, replicated on all devices; None if x is not precomputed.
        layout: the sharding.
    """

    x: Any
    row: Any
    layout: Layout = static()

    def expectation(self, model: Any, weight: Float[Array, "n"], over: Any) -> tuple[Array, Statistics]:
        """E-step of each device, summed."""

        def one(model: Any, row: Any, x: Any, weight: Array) -> tuple[Array, Statistics]:
            row = self.layout.from_first(_first(x, weight)) if row is None else row
            log_likelihood, statistics = expectation(model, x, weight, self.layout.own(over))
            # Sums can be added directly if all devices keep them about one reference.
            return over_parts(self.layout.together, (log_likelihood, add(no_rows(model, *row), statistics)))

        return self._per_device(one, P(), weight, model, self.row)

    def prepared(self, model: Any, weight: Float[Array, "n"]) -> tuple[ShardedRows, Array]:
        """Precomputed data, as in `fit` on one device; and the number of observations."""

        def one(model: Any, x: Any, weight: Array) -> Any:
            seen = model.observe(x)
            data = x if in_chunks(model, x, weight) else model.expand(seen)
            rows = jax.lax.psum(model.observations(seen, weight), self.layout.axis)
            return jax.tree.map(lambda leaf: leaf[None], data), self.layout.from_first(_first(x, weight)), rows

        x, row, rows = self._per_device(one, (P(self.layout.axis), P(), P()), weight, model)
        return replace(self, x=x, row=row), rows

    def sample(self, weight: Float[Array, "n"], spacing: int) -> tuple[Any, Array]:
        """Every `spacing`-th row with its weight, on all devices: a sample that shows what rows are like.

        For sequences single steps; they stay on their devices, because a few sequences may have many.
        """
        x = replace(self, x=self.x.x if isinstance(self.x, Labelled) else self.x)
        if not isinstance(x.x, Sequences):
            return x._per_device(partial(_subsample, spacing, self.layout.axis), P(), weight)
        spread = P(self.layout.axis)
        return x._per_device(
            partial(_steps_alone, 1 if self.layout.steps else spacing, self.layout.axis), spread, weight
        )

    def _per_device(self, function: Callable[..., Any], out: Any, weight: Array, *known: Any) -> Any:
        """`function(*known, x, weight)` on each device's part; `known` is replicated."""
        layout, made = self.layout, self.row is not None

        def one(known: Any, x: Any, weight: Array) -> Any:
            if made:
                x = jax.tree.map(lambda leaf: leaf[0], x)
            elif layout.steps:
                x = _own_steps(x, layout.axis)
            return function(*known, x, weight)

        specs = P(layout.axis) if made else jax.tree.map(layout.spec, self.x)
        # Unchecked: the checker rejects a loop whose carry starts constant and then depends on rows.
        each = jax.shard_map(
            one, mesh=layout.mesh, in_specs=(P(), specs, layout.spec(weight)), out_specs=out, check_vma=False
        )
        return each(known, self.x, weight)


def _first(x: Any, weight: Float[Array, "n"]) -> Any:
    """The first row, or the first step of the first sequence, with its weight."""
    x, weight = jax.tree.map(lambda leaf: leaf[:1], (x.x if isinstance(x, Labelled) else x, weight))
    if not isinstance(x, Sequences):
        return x, weight
    seen = x.seen[:, :1]
    return Sequences.batch(x.values[:, :1], jnp.ones(1, jnp.int32), seen, x.patterns), weight


def _subsample(spacing: int, axis: Any, x: Any, weight: Array) -> Any:
    """Every `spacing`-th row: each device contributes its own to a sum over devices."""
    rows = jnp.arange(0, len(weight) * jax.lax.axis_size(axis), spacing, dtype=jnp.int32)
    here = rows - len(weight) * jax.lax.axis_index(axis)
    mine = (here >= 0) & (here < len(weight))

    def picked(leaf: Array) -> Array:
        rows = jnp.take(leaf, here, axis=0, mode="clip")
        return _sum(jnp.where(mine.reshape(-1, *(1 for _ in leaf.shape[1:])), rows, jnp.zeros_like(rows)), axis)

    return jax.tree.map(picked, (x, weight))


def _steps_alone(spacing: int, axis: Any, x: Sequences, weight: Array) -> Any:
    """Steps of every `spacing`-th sequence."""
    # Its place among all depends on how many come on earlier devices.
    first = -(jax.lax.axis_index(axis) * len(weight)) % spacing
    weight = jnp.where((jnp.arange(len(weight), dtype=first.dtype) - first) % spacing == 0, weight, 0)
    steps, weight = x.alone(), jnp.repeat(weight, x.steps)
    # Sums go by blocks: with whole blocks on each device no step leaves it.
    short = -len(weight) % BLOCK
    steps = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, short)] + [(0, 0)] * (leaf.ndim - 1), mode="edge"), steps)
    return replace(steps, axis=None), jnp.pad(weight, (0, short))


def _sum(leaf: Array, axis: Any) -> Array:
    """Sum over devices of values that only one device has; booleans are summed as integers."""
    return jax.lax.psum(leaf.astype(jnp.int32), axis) > 0 if leaf.dtype == bool else jax.lax.psum(leaf, axis)


def _own_steps(x: Any, axis: Any) -> Any:
    """The steps of one device, as sequences that continue over the devices of an axis."""
    if isinstance(x, Labelled):
        return Labelled(_own_steps(x.x, axis), x.labels)
    before = jax.lax.axis_index(axis) * x.steps
    return replace(x, length=jnp.clip(x.length - before, 0, x.steps), axis=axis)


def layout_of(model: Any, x: Any) -> Layout | None:
    """Sharding of the rows of x, or of the steps of its sequences, over several devices; None if there is none.

    Raises:
        ValueError: sharded steps of a model that needs them on one device.
    """
    values = getattr(x, "values", x)
    mesh = mesh_of(values)
    if mesh is None:
        return None
    mesh = Mesh(mesh.devices, mesh.axis_names)  # with Auto axes, which leave shardings to the compiler
    for at, axis in enumerate((*values.sharding.spec, None)[: 2 if isinstance(x, Sequences) else 1]):
        if axis is not None and np.prod([mesh.shape[name] for name in np.atleast_1d(axis)]) > 1:
            if at and not model.shards_time:
                raise ValueError(
                    f"the steps of x are spread over devices; {type(model).__name__} needs all steps of a sequence on "
                    "one: spread sequences"
                )
            return Layout(mesh, axis, steps=bool(at))
    return None


def dealt(model: Any, data: Any, weight: Array, devices: Sequence[Any]) -> tuple[Any, Array, Layout]:
    """Data and weights sharded over devices, padded to a multiple of their number with rows of weight zero or steps.

    Rows and sequences are spread; of a model that can (`shards_time`), with fewer sequences than devices, their steps.

    Raises:
        ValueError: no devices, or traced values.
    """
    if not len(devices):
        raise ValueError("devices is empty; name at least one, or leave it out")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(data)):
        raise ValueError("devices cannot be named inside jit; put x on them before, with a NamedSharding")
    x = data.x if isinstance(data, Labelled) else data
    steps = isinstance(x, Sequences) and model.shards_time and len(x) < len(devices)
    layout = Layout(Mesh(np.array(devices), ("devices",)), "devices", steps)
    short = -(x.steps if steps else len(weight)) % len(devices)

    def longer(leaf: Array) -> Array:
        if not steps or leaf.ndim > 1:
            return jnp.pad(leaf, [(0, 0)] * steps + [(0, short)] + [(0, 0)] * (leaf.ndim - 1 - steps), mode="edge")
        return leaf

    weight = weight if steps else jnp.pad(weight, (0, short))
    return *layout.spread((jax.tree.map(longer, data), weight)), layout
