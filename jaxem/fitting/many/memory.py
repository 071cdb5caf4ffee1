"""Memory of a device: how many lanes fit, and how many problems beside them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax

from jaxem.fitting.many.batching import Batch
from jaxem.fitting.many.device import empty_lanes, member, prepare_lanes
from jaxem.fitting.many.queue import work

SHARE = 0.8
"""Fraction of the free memory that is used: sizes are estimates, and memory fragments."""
COPIES = 8, 3
"""Largest number of arrays of a lane in a step: of the size of a posterior, and of that times the columns."""


def free(device: Any) -> int | None:
    """Free bytes of a device's memory; None for the host's memory, which is not limited here."""
    stats = device.memory_stats() or {}
    if device.platform == "cpu" or "bytes_limit" not in stats:
        return None
    return int(SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))


def sizes(solver: Any, model: Any, batch: Batch, prior: Any, restarts: int) -> tuple[int, int]:
    """Bytes of a lane, and of a problem with its restarts, from shapes alone."""

    def one(leaf: Any, count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)

    starts = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((restarts, *leaf.shape), leaf.dtype), model)
    given = jax.tree.map(partial(one, count=1), (batch.x, batch.weight, batch.labels))
    problems, floor = jax.eval_shape(partial(prepare_lanes, restarts=restarts), solver, starts, *given, prior)
    lanes, results = jax.eval_shape(partial(empty_lanes, width=1), solver, starts, problems)
    expanded = problems.data if solver.minibatch else jax.eval_shape(_expand, starts, problems.data)
    posterior = work(model, batch.x, batch.weight) * batch.weight.dtype.itemsize
    copies = COPIES[0] + COPIES[1] * max((1, *model.event_shape))
    # Inputs, outputs, and temporaries: a lane's progress while it steps, all results while the best
    # are chosen.
    lane = 3 * _bytes(lanes) + _bytes(problems) + 2 * _bytes(expanded) + copies * posterior
    return lane, _bytes((given, problems, floor, starts)) + 3 * _bytes(results)


def shared_out(lane: int, problem: int, problems: int, most: int, room: int) -> tuple[int, int]:
    """Number of queues for the problems, and lanes of each.

    Lanes take what the problems leave, or half of the memory if the problems would leave less; then the problems that
    exceed the other half wait on the host. A power of two, so that a little more or less free memory
    compiles nothing.

    Args:
        lane, problem: bytes of one.
        problems: their number.
        most: largest useful number of lanes.
        room: bytes for all.

    >>> shared_out(lane=10, problem=1, problems=100, most=64, room=1000)
    (1, 64)
    >>> shared_out(lane=10, problem=1, problems=600, most=64, room=1000)
    (1, 32)
    >>> shared_out(lane=10, problem=1, problems=5000, most=64, room=1000)
    (8, 32)
    """
    lanes = min(most, max(1, max(room - problems * problem, room // 2) // lane))
    lanes = lanes if lanes == most else 1 << (lanes.bit_length() - 1)
    beside = max(room - lanes * lane, problem)
    return min(problems, -(-problems * problem // beside)), lanes


def _expand(models: Any, data: Any) -> Any:
    return member(models, 0).expand(member(data, 0))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
