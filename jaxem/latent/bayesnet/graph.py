"""The graph of a Bayesian network, and its tables in the order of the variables."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

Graph = tuple[tuple[str, tuple[str, ...]], ...]


def as_graph(graph: Any) -> Graph:
    """Variables and the names of their parents, from a dict or a networkx `DiGraph`.

    Raises:
        ValueError: a cycle, a parent that is no variable, or no variables.

    >>> as_graph({"a": ["b"], "b": []})
    (('a', ('b',)), ('b', ()))
    """
    if hasattr(graph, "predecessors"):
        pairs = [(node, graph.predecessors(node)) for node in graph.nodes]
    else:
        pairs = list(graph.items()) if isinstance(graph, Mapping) else list(graph)
    found = {str(name): tuple(str(parent) for parent in parents) for name, parents in pairs}
    if not found:
        raise ValueError("BayesNet: graph has no variables")
    for name, parents in found.items():
        for parent in parents:
            if parent not in found:
                raise ValueError(f"BayesNet: {parent!r} is a parent of {name!r}, but no variable of the graph")
        if len(set(parents)) < len(parents):
            raise ValueError(f"BayesNet: a parent of {name!r} is there twice: {', '.join(parents)}")
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        raise ValueError(f"BayesNet: the graph has a cycle: {' -> '.join(error.args[1])}") from None
    return tuple(found.items())


def probs_of(table: Any) -> Any:
    """The array of a table, whether it is one already or not."""
    return getattr(table, "probs", table)


def tables_of(tables: Any, owners: tuple[str, ...]) -> dict[str, Array]:
    """Tables in the order of the variables, as floats of one type."""
    if not isinstance(tables, Mapping):
        tables = dict(zip(owners, tables, strict=True))
    tables = {str(name): table for name, table in tables.items()}
    if set(tables) != set(owners):
        wrong = sorted(set(tables) ^ set(owners))[0]
        raise ValueError(
            f"BayesNet: {wrong!r} has {'a table, but none is needed' if wrong in tables else 'no table'}; "
            f"there must be one for each of {', '.join(owners)}"
        )
    given = [probs_of(tables[name]) for name in owners]
    arrays = [jnp.asarray(table) for table in given]
    typed = [a.dtype for a, g in zip(arrays, given, strict=True) if hasattr(g, "dtype") and a.dtype.kind == "f"]
    dtype = jnp.result_type(*typed) if typed else jnp.result_type(float)
    for name, array in zip(owners, arrays, strict=True):
        if not array.ndim:
            raise ValueError(f"BayesNet: the table of {name!r} is a number; it must hold one for each category")
    return {name: array.astype(dtype) for name, array in zip(owners, arrays, strict=True)}
