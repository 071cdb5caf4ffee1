"""Bayesian networks in files and as graphs: the Bayesian interchange format (BIF), and networkx.

A network has categories by number; in a file they have names, so reading gives a pair: the network, and the names.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxem.latent.bayesnet import BayesNet

Categories = dict[str, list[str]]

_TOKEN = re.compile(r'"[^"]*"|[{}()\[\]|;,]|[^\s{}()\[\]|;,"]+')
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def read(path: str | os.PathLike[str]) -> tuple[BayesNet, Categories]:
    """Read the network in a BIF file (version 0.15, Cozman 1998), and the names of each variable's categories.

    Rows are divided by their sums, which are rounded in most files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something in the file is invalid; what, and of which variable.

    >>> import tempfile, os, jaxem as jem
    >>> path = os.path.join(tempfile.mkdtemp(), "rain.bif")
    >>> model = jem.BayesNet({"rain": [], "wet": ["rain"]}, {"rain": [0.8, 0.2], "wet": [[0.9, 0.1], [0.0, 1.0]]})
    >>> write(path, model, {"rain": ["no", "yes"]})
    >>> again, categories = read(path)
    >>> again.table("wet").tolist(), categories["rain"], categories["wet"]
    ([[0.9, 0.1], [0.0, 1.0]], ['no', 'yes'], ['0', '1'])
    """
    try:
        return _parsed(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(
    path: str | os.PathLike[str], model: BayesNet, categories: Mapping[str, Any] | None = None, name: str = "network"
) -> None:
    """Write a network to a BIF file; tables that are tied are written out for each variable.

    Args:
        path: of the file.
        model: one network.
        categories: `{variable: names of its categories}`; by default their numbers.
        name: of the network.

    Raises:
        ValueError: a batch of networks, or a wrong number of names.
    """
    if model.batch_shape:
        raise ValueError(f"a file holds one network; this is a batch of shape {model.batch_shape}")
    named = _named(model, categories)
    lines = [f"network {_quoted(name)} {{", "}"]
    for variable, names in named.items():
        words = ", ".join(map(_quoted, names))
        lines += [f"variable {_quoted(variable)} {{", f"  type discrete [ {len(names)} ] {{ {words} }};", "}"]
    for variable, parents in model.graph:
        table = np.asarray(model.table(variable), float)
        given = f" | {', '.join(map(_quoted, parents))}" if parents else ""
        lines.append(f"probability ( {_quoted(variable)}{given} ) {{")
        for places in itertools.product(*(range(len(named[parent])) for parent in parents)):
            values = ", ".join(map(repr, table[places].tolist()))
            row = ", ".join(_quoted(named[parent][i]) for parent, i in zip(parents, places, strict=True))
            lines.append(f"  ({row}) {values};" if parents else f"  table {values};")
        lines.append("}")
    Path(path).write_text("\n".join(lines) + "\n")


def to_networkx(model: BayesNet, categories: Mapping[str, Any] | None = None) -> Any:
    """Network as a networkx `DiGraph`: each node has its `parents` in order, its `probs` and its `categories`."""
    import networkx as nx

    graph, named = nx.DiGraph(), _named(model, categories)
    for name, parents in model.graph:
        graph.add_node(name, parents=list(parents), probs=np.asarray(model.table(name)), categories=named[name])
    graph.add_edges_from((parent, name) for name, parents in model.graph for parent in parents)
    return graph


def from_networkx(graph: Any) -> tuple[BayesNet, Categories]:
    """Network of a `DiGraph` whose nodes have `probs`, and `parents` in their order; and the names of the categories.

    Raises:
        ValueError: a node without `probs`, or whose `parents` are not those of its edges.
    """
    parents, tables, named = {}, {}, {}
    for name, told in graph.nodes(data=True):
        parents[name] = told.get("parents", list(graph.predecessors(name)))
        if "probs" not in told or sorted(parents[name]) != sorted(graph.predecessors(name)):
            what = "no `probs`" if "probs" not in told else "other `parents` than its edges say"
            raise ValueError(f"the node {name!r} has {what}")
        tables[name] = told["probs"]
        named[name] = list(told.get("categories", map(str, range(np.shape(tables[name])[-1]))))
    return BayesNet(parents, tables), named


def _named(model: BayesNet, categories: Mapping[str, Any] | None) -> Categories:
    """Name of each category of each variable."""
    named = {}
    for variable, size in zip(model.names, model.categories, strict=True):
        named[variable] = [str(name) for name in (categories or {}).get(variable, range(size))]
        if len(set(named[variable])) != size:
            raise ValueError(f"{variable!r} has {size} categories; their names are {named[variable]}")
    return named


def _quoted(word: str) -> str:
    """A word as a file may hold it."""
    return word if re.fullmatch(r"[^\s{}()\[\]|;,\"/]+", word) else f'"{word}"'


def _parsed(text: str) -> tuple[BayesNet, Categories]:
    tokens = (token.strip('"') if token[0] == '"' else token for token in _TOKEN.findall(_COMMENT.sub(" ", text)))
    categories: Categories = {}
    blocks: dict[str, tuple[list[str], list[list[str]]]] = {}
    for word in tokens:
        head = list(itertools.takewhile(lambda token: token != "{", tokens))
        body = _statements(tokens)
        if word == "variable":
            kinds = [statement for statement in body if statement[0] == "type"]
            if not head or not kinds or "{" not in kinds[0]:
                raise ValueError(f"variable {' '.join(head)} has no list of categories")
            inner = kinds[0][kinds[0].index("{") + 1 : -1]
            categories[head[0]] = [token for token in inner if token != ","]
        elif word == "probability":
            names = [token for token in head if token not in "(),|"]
            if not names:
                raise ValueError("a probability is of no variable")
            blocks[names[0]] = (names[1:], body)
        elif word != "network":
            raise ValueError(f"{word!r} is none of network, variable, probability")
    graph = {}
    for name in categories:
        if name not in blocks:
            raise ValueError(f"{name} has no probability")
        graph[name] = blocks[name][0]
    for name, (parents, _) in blocks.items():
        for other in (name, *parents):
            if other not in categories:
                raise ValueError(f"the probability of {name} speaks of {other}, which is no variable")
    tables = {name: _table(name, *blocks[name], categories) for name in categories}
    return BayesNet(graph, tables), categories


def _statements(tokens: Iterator[str]) -> list[list[str]]:
    """Statements between braces, up to the closing one: lists of words that ended with a semicolon."""
    found: list[list[str]] = []
    words: list[str] = []
    depth = 1
    for token in tokens:
        depth += (token == "{") - (token == "}")
        if not depth:
            return found
        if token == ";" and depth == 1:
            found.append(words)
            words = []
        else:
            words.append(token)
    raise ValueError("a brace is not closed")


def _table(name: str, parents: list[str], body: list[list[str]], categories: Categories) -> np.ndarray:
    sizes = [len(categories[parent]) for parent in parents]
    size = len(categories[name])
    table = np.full((*sizes, size), np.nan)
    rows = []
    for words in body:
        if words[0] == "table":
            # The variable itself varies slowest, its last parent fastest.
            values = _numbers(name, words[1:], table.size).reshape(size, *sizes)
            table = np.moveaxis(values, 0, -1)
        elif words[0] == "default":
            table[:] = _numbers(name, words[1:], size)
        elif words[0] == "(":
            rows.append(words)
    for words in rows:
        end = words.index(")")
        given = [word for word in words[1:end] if word != ","]
        known = [categories[parent] for parent in parents]
        if len(given) != len(parents) or any(word not in names for word, names in zip(given, known, strict=True)):
            raise ValueError(f"{name}: ({', '.join(given)}) is no row of its table; its parents are {parents}")
        at = tuple(names.index(word) for word, names in zip(given, known, strict=True))
        table[at] = _numbers(name, words[end + 1 :], size)
    total = table.sum(-1, keepdims=True)
    if not np.allclose(total, 1, atol=1e-3):  # NaN is close to nothing
        at = tuple(np.argwhere(~np.isclose(total[..., 0], 1, atol=1e-3))[0])
        row = ", ".join(categories[parent][i] for parent, i in zip(parents, at, strict=True))
        wrong = "is missing" if np.isnan(total[at]).any() else f"sums to {total[at][0]:.6g}"
        raise ValueError(f"{name}: its row ({row}) {wrong}")
    return table / total


def _numbers(name: str, words: list[str], count: int) -> np.ndarray:
    try:
        values = np.array([float(word) for word in words if word != ","])
    except ValueError:
        raise ValueError(f"{name}: {' '.join(words)} are not numbers") from None
    if len(values) != count:
        raise ValueError(f"{name}: there are {len(values)} numbers where {count} belong")
    return values
