"""Discrete Bayesian networks: categorical variables on a directed acyclic graph, any cell of any row hidden."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial, reduce
from graphlib import TopologicalSorter
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxem.core import semirings
from jaxem.core.arguments import as_key
from jaxem.core.constraints import SOURCE, told
from jaxem.core.linalg import HIGHEST, lead, matmul
from jaxem.core.pytree import replace, static
from jaxem.data import missing
from jaxem.data.prepare import check_weight
from jaxem.distributions.base import Labelled, Pullback
from jaxem.distributions.categorical import Categorical
from jaxem.distributions.registry import structure
from jaxem.latent.base import Hidden, log_potential
from jaxem.latent.bayesnet import elimination
from jaxem.latent.bayesnet.data import UNSEEN, Cells, Seen, columns_of, counted, sizes_of, sizes_promised, texts_of
from jaxem.latent.bayesnet.elimination import Factor
from jaxem.latent.bayesnet.graph import as_graph, probs_of, tables_of

CORNERS = 64
"""Configurations of seen variables up to which their counts are a matrix product, not a scatter."""
PIECE = 8_192
"""Rows of which log-probabilities, posteriors and explanations are found together."""
ANCESTORS = 1 << 16
"""Configurations of ancestors up to which they are looked at, to know which rows of a table can never occur."""


@structure
class BayesNet(Hidden):
    """A discrete Bayesian network: each variable is categorical given its parents; any cell of a row may be hidden.

    log p(seen) = log sum over what is hidden of prod over variables v of table_v[values of v's parents, value of v]

    The sum is taken by eliminating one hidden variable after the other, in log space; its derivative with respect to
    the log-tables is the expected number of times that each entry is used, so every solver of jaxem fits it (Lauritzen
    1995). Rows are `[n, V]` categories, numbered from zero, a column for each variable in the order of the graph, NaN
    where a cell is hidden; or a dict of columns by name, or a frame (pandas, polars, pyarrow), of which variables that
    are left out are hidden. There a cell may also be None, or a text: one of the `outcomes` of its variable.

    Args:
        graph: `{variable: [its parents]}`, each parent a key as well; or a networkx `DiGraph`.
        tables: `{variable: [..., *categories of its parents, C]}`, the parents in the order of the graph; every row on
            the simplex. A probability of zero stays zero.
        tied: `{variable: the variable whose table it uses}`; it has no table of its own, and both are counted in one.
        outcomes: `{variable: the texts of its categories, in the order of their numbers}`, of variables that have them.

    Raises:
        ValueError: a cycle (which is named), a parent that is no variable, tables that are missing or of the wrong
            shape, a row of a table that does not sum to one, or other texts than there are categories.

    Koller and Friedman (2009), Probabilistic Graphical Models, chapters 9 and 19.

    >>> import jaxem as jem
    >>> graph = {"rain": [], "sprinkler": ["rain"], "wet": ["rain", "sprinkler"]}
    >>> wet = [[[1.0, 0.0], [0.1, 0.9]], [[0.2, 0.8], [0.01, 0.99]]]
    >>> tables = {"rain": [0.8, 0.2], "sprinkler": [[0.6, 0.4], [0.99, 0.01]], "wet": wet}
    >>> model = jem.BayesNet(graph, tables)
    >>> model.posterior({"wet": 1})["rain"].round(4).tolist()
    [[0.6423, 0.3577]]
    >>> named = jem.BayesNet(graph, tables, outcomes={"wet": ["no", "yes"]})
    >>> named.posterior({"wet": ["yes", None]})["rain"].round(4).tolist()
    [[0.6423, 0.3577], [0.8, 0.2]]
    """

    graph: Any = static()
    tables: Any
    tied: Any = static(default=())
    outcomes: Any = static(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "graph", as_graph(self.graph))
        given = self.tied.items() if isinstance(self.tied, Mapping) else self.tied
        object.__setattr__(self, "tied", tuple((str(variable), str(owner)) for variable, owner in given))
        self._check_ties()
        arrays = tables_of(self.tables, self.owners)
        object.__setattr__(self, "tables", tuple(arrays.values()))
        self._check_shapes()
        for name, array in arrays.items():
            self._check_sums(name, array)
        object.__setattr__(self, "tables", tuple(Categorical(array) for array in arrays.values()))
        named = self.outcomes.items() if isinstance(self.outcomes, Mapping) else self.outcomes
        named = tuple((str(variable), tuple(str(text) for text in texts)) for variable, texts in named)
        object.__setattr__(self, "outcomes", named)
        self._check_outcomes()

    @property
    def names(self) -> tuple[str, ...]:
        """The variables."""
        return tuple(name for name, _ in self.graph)

    @property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """The parents of each variable, as numbers of variables."""
        number = {name: v for v, name in enumerate(self.names)}
        return tuple(tuple(number[parent] for parent in parents) for _, parents in self.graph)

    @property
    def owners(self) -> tuple[str, ...]:
        """The variables that have a table of their own."""
        using = dict(self.tied)
        return tuple(name for name in self.names if name not in using)

    @property
    def table_of(self) -> tuple[int, ...]:
        """The number of the table that each variable uses."""
        using, number = dict(self.tied), {name: i for i, name in enumerate(self.owners)}
        return tuple(number[using.get(name, name)] for name in self.names)

    @property
    def categories(self) -> tuple[int, ...]:
        """The number of categories of each variable."""
        return tuple(probs_of(self.tables[table]).shape[-1] for table in self.table_of)

    @property
    def work_per_row(self) -> int:
        """The entries of all tables."""
        sizes = self.categories
        return sum(math.prod(sizes[u] for u in (*parents, v)) for v, parents in enumerate(self.parents))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the members: that of a table without its variables."""
        shape = probs_of(self.tables[self.table_of[0]]).shape
        return shape[: len(shape) - 1 - len(self.parents[0])]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a row: a column for each variable."""
        return (len(self.graph),)

    def in_use(self, used: Array) -> dict[str, Any]:
        """Rows of tables that can be in use: whose parents can have these categories."""
        some = [self.tables[table].probs > 0 for table in self.table_of]
        rows = [used.reshape(*used.shape, *(1 for _ in p)) & self._occurs(p, some) for p in self.parents]
        users = [[rows[v] for v, table in enumerate(self.table_of) if table == i] for i in range(len(self.tables))]
        return {"tables": tuple(reduce(jnp.logical_or, of) for of in users)}

    def _occurs(self, parents: tuple[int, ...], some: list[Array]) -> Bool[Array, "*batch_parents"]:
        """Which categories some variables can have together, as far as they and their ancestors tell.

        `some` is where the table of each variable is not zero. Of many ancestors only the next are looked at.
        """
        sizes, scope = self.categories, list(parents)
        for v in scope:  # which grows on the way
            for parent in self.parents[v]:
                if parent not in scope and math.prod(sizes[u] for u in (*scope, parent)) <= ANCESTORS:
                    scope.append(parent)
        operands: list[Any] = []
        for v in scope:
            family = (*self.parents[v], v)
            # What is not looked at may be anything.
            away = tuple(i - len(family) for i, u in enumerate(family) if u not in scope)
            seen = jnp.any(some[v], axis=away) if away else some[v]
            operands += [seen.astype(jnp.float32), [..., *(u for u in family if u in scope)]]
        if not operands:
            return jnp.ones(self.batch_shape, bool)
        return jnp.einsum(*operands, [..., *parents], precision=HIGHEST) > 0

    def table(self, name: str) -> Float[Array, "*batch_parents_c"]:
        """The table of a variable, `[*batch_shape, *categories of its parents, C]`."""
        if name not in self.names:
            raise ValueError(f"BayesNet: {name!r} is no variable; they are {', '.join(self.names)}")
        return self.tables[self.table_of[self.names.index(name)]].probs

    @classmethod
    def start(
        cls,
        key: Any,
        graph: Any,
        x: Any,
        categories: Mapping[str, Any] | None = None,
        *,
        weight: Any = None,
        restarts: int | None = None,
        tied: Any = (),
    ) -> Self:
        """A network to start from: counts of the rows that show a variable with its parents, and a random row more.

        The random row of pseudo-counts is spread over the categories as they were seen, times noise: it tells hidden
        categories apart, and no probability is zero but those of categories that do not occur: numbers below the
        largest that were never seen, as zero is in a table that counts from one. What `categories` names has them all.

        The texts of a column become its `outcomes` in the order of the alphabet.

        Args:
            key: a JAX random key, or a whole number as its seed.
            graph: as for the network.
            x: `[n, V]` rows, a dict or a frame; NaN where hidden.
            categories: of variables that are never seen, or not seen in all their categories: one more than the
                largest seen, if left out. A number, or the texts of all of them in their order.
            weight: `[n]` row weights.
            restarts: how many starts; the model then has a leading axis of this length.
            tied: as for the network.

        Raises:
            ValueError: a variable that is never seen and not in `categories`, a category out of range, or a number of
                `categories` that is not that of the texts in a column.

        >>> import jax, jaxem as jem
        >>> x = [[float("nan"), 0, 0], [float("nan"), 1, 1]]
        >>> graph = {"class": [], "A": ["class"], "B": ["class"]}
        >>> jem.BayesNet.start(jax.random.key(0), graph, x, {"class": 2}).table("A").shape
        (2, 2)
        """
        key, graph = as_key(key), as_graph(graph)
        names = [name for name, _ in graph]
        promised, outcomes = sizes_promised(categories or {}, texts_of(x, names, dict(tied)))
        values = np.asarray(columns_of(x, names, outcomes))
        if restarts is not None and restarts < 1:
            raise ValueError(f"restarts is {restarts}; it must be at least one")
        check_weight(1 if weight is None else weight)
        rows = np.ones(len(values)) if weight is None else np.asarray(weight, float)
        using = dict(tied)
        sizes = sizes_of(names, values[rows > 0], promised, using)
        Cells(jnp.asarray(values), tuple((name, sizes[name]) for name in names), ()).check(weight)
        values, rows = values[rows > 0], rows[rows > 0]
        tables = {}
        for v, name in enumerate(names):
            if name in using:
                continue
            users = [name] + [other for other, owner in using.items() if owner == name]
            counts, seen = counted(graph, names, sizes, values, rows, users)
            if not promised.keys() & set(users):
                seen = np.where(seen > UNSEEN * len(users), seen, 0)
            draws = (restarts or 1, *counts.shape)
            noise = np.asarray(jax.random.exponential(jax.random.fold_in(key, v), draws, values.dtype))
            row = seen * noise
            table = counts + row / row.sum(-1, keepdims=True)
            tables[name] = jnp.asarray(table / table.sum(-1, keepdims=True), values.dtype)
        model = cls(graph, tables, tied, outcomes)
        return model if restarts is not None else jax.tree.map(lambda leaf: leaf[0], model)

    def read(self, x: Any) -> Any:
        """Rows as `Cells`; inside `jit`, where values are not known yet, any of them may be hidden.

        Raises:
            ValueError: the wrong number of columns, or a name that is no variable.
        """
        if isinstance(x, (Cells, Seen)):
            return x
        if isinstance(x, Labelled):
            raise ValueError("BayesNet: it takes no labels; write what is known into the columns of x")
        values = columns_of(x, self.names, dict(self.outcomes))
        hidden: Any = np.arange(len(self.names))
        if not isinstance(values, Tracer):
            seen = missing.as_numpy_if_local(values)
            hidden = np.flatnonzero((seen != seen).any(axis=0))  # NaN is not even itself
        return Cells(values, tuple(zip(self.names, self.categories, strict=True)), tuple(hidden.tolist()))

    def observe(self, x: Any) -> Seen:
        """`x` as categories, rows last, and where in its table each variable stands."""
        return x if isinstance(x, Seen) else _observe(self, self.read(x))

    def check(self, x: Any, weight: Array, alone: bool) -> None:
        """Raise ValueError for a cell that holds no category."""
        if isinstance(x, Cells):
            x.check(weight)

    def potentials(self) -> tuple[Array, ...]:
        """Log-tables; -inf, with zero gradient, where a probability is zero."""
        return tuple(log_potential(table.probs) for table in self.tables)

    def evidence_of(self, x: Seen) -> tuple[Array, ...]:
        """The evidence on each hidden cell: its possible categories, for each member."""
        members = self.batch_shape
        return tuple(jnp.broadcast_to(lead(each, len(members) + 2), (*members, *each.shape)) for each in x.indicators)

    def log_normalizer(
        self, potentials: tuple[Array, ...], evidence: tuple[Array, ...], add: Any, x: Seen
    ) -> Float[Array, "*batch n"]:
        """The log of the sum over all hidden cells of the product of the tables, for each row."""
        factors = [Factor((v,), indicator) for v, indicator in zip(x.hidden, evidence, strict=True)]
        for v, table in enumerate(self.table_of):
            factors.append(_factor((*self.parents[v], v), potentials[table], x, v))
        turns = elimination.order(tuple(factor.scope for factor in factors), self.categories)
        value = elimination.log_normalizer(factors, turns, add)
        # Where no factor has rows, all rows are alike.
        value = jnp.broadcast_to(value, (*self.batch_shape, len(x.possible)))
        # A row that is impossible uses nothing.
        return jnp.where(lead(x.possible, value.ndim) & (value > -jnp.inf), value, -jnp.inf)

    def e_step(self, x: Any, add: Any = semirings.log_sum) -> tuple[Array, Pullback]:
        """`(log_prob, pullback)`; `pullback(weight)` gives the expected counts of each table, shaped like it."""
        seen = self.observe(x)
        evidence = self.evidence_of(seen)
        log_prob, backward = jax.vjp(lambda own: self.log_normalizer(own, evidence, add, seen), self.potentials())
        return log_prob, lambda weight: backward(weight)[0]

    def m_step(self, statistics: tuple[Array, ...]) -> Self:
        """Each row of each table as the shares of its counts; a row without counts stays as it is."""
        tables = zip(self.tables, statistics, strict=True)
        return replace(self, tables=tuple(table.m_step(counts) for table, counts in tables))

    def expected_log_prob(self, statistics: tuple[Array, ...]) -> Float[Array, "*batch"]:
        """Q: <counts, log-tables>."""
        members = self.batch_shape
        each = [table.expected_log_prob(counts) for table, counts in zip(self.tables, statistics, strict=True)]
        return sum(value.reshape(*members, -1).sum(-1) for value in each)  # type: ignore[return-value]

    def log_prob(self, x: Any) -> Float[Array, "*batch n"]:
        """The log-probability of what is seen of each row, summed over what is hidden: `[*batch_shape, n]`, in nats."""
        return self._by_pieces(_log_prob, x)

    def posterior(self, x: Any) -> dict[str, Float[Array, "*batch n c"]]:
        """The probabilities of each variable given what is seen of a row, by name: `[*batch_shape, n, C]`.

        A row that is impossible has zeros throughout.
        """
        return dict(zip(self.names, self._by_pieces(_posterior, x), strict=True))

    def decode(self, x: Any) -> Int[Array, "*batch n v"]:
        """The most probable explanation: all hidden cells of a row jointly, the seen ones as they are.

        Of several that are equally probable one is taken. `[*batch_shape, n, V]` integers.
        """
        return self._by_pieces(_decode, x)

    def sample(self, key: Array, n: int) -> Float[Array, "*batch n v"]:
        """`n` rows from each member, `[*batch_shape, n, V]`, nothing hidden."""
        return _sample(self, key, n)

    def floor(self, x: Any, weight: Array) -> tuple[Array, ...]:
        """No floor: the M-step of tables is total."""
        return tuple(jnp.zeros_like(table.probs) for table in self.tables)

    def is_degenerate(self, floor: tuple[Array, ...]) -> Array:
        """Whether each member has collapsed: False, since tables cannot."""
        return jnp.zeros(self.batch_shape, bool)

    def inside(self, x: Any) -> Bool[Array, "n"]:
        """Whether each observed cell of a row holds a category of its variable, `[n]` bool."""
        values = columns_of(x, self.names, dict(self.outcomes))
        sizes = jnp.asarray(self.categories, values.dtype)[None]
        return jnp.all(jnp.isnan(values) | ((values == jnp.floor(values)) & (values >= 0) & (values < sizes)), axis=1)

    def _by_pieces(self, function: Any, x: Any) -> Any:
        if isinstance(x, Seen):
            return function(self, x)
        cells = self.read(x)
        cells.check()
        return _by_pieces(function, self, cells)

    def _check_ties(self) -> None:
        for variable, owner in self.tied:
            if variable not in self.names or owner not in self.owners:
                raise ValueError(f"BayesNet: tied says that {variable!r} uses the table of {owner!r}, which has none")

    def _check_shapes(self) -> None:
        """The axes of every table are members, parents and categories."""
        batches, sizes = {}, self.categories
        for v, (name, parents) in enumerate(zip(self.names, self.parents, strict=True)):
            shape = self.tables[self.table_of[v]].shape
            wanted = (*(sizes[parent] for parent in parents), sizes[v])
            if shape[max(len(shape) - len(wanted), 0) :] != wanted:
                raise ValueError(
                    f"BayesNet: the table of {name!r} has shape {shape}; with its parents it must end in {wanted}"
                )
            batches[name] = shape[: len(shape) - len(wanted)]
        if len(set(batches.values())) > 1:
            raise ValueError(f"BayesNet: the tables have different leading axes: {batches}")

    def _check_outcomes(self) -> None:
        sizes = dict(zip(self.names, self.categories, strict=True))
        for name, texts in self.outcomes:
            if name not in sizes:
                raise ValueError(f"BayesNet: outcomes speaks of {name!r}, which is no variable")
            if len(set(texts)) != sizes[name] or len(texts) != sizes[name]:
                raise ValueError(
                    f"BayesNet: {name!r} has {sizes[name]} categories; its outcomes are {list(texts)}, where each must "
                    "have a text of its own"
                )

    def _check_sums(self, name: str, array: Array) -> None:
        if isinstance(array, Tracer):
            return
        values = np.asarray(array)
        rounding = max(SOURCE, float(np.finfo(values.dtype).eps) * values.shape[-1])
        off = np.abs(values.sum(-1) - 1)
        bad = ~((off <= rounding) & (values >= 0).all(-1))
        if bad.any():
            at = tuple(np.argwhere(bad)[0].tolist())
            parents = [self.names[parent] for parent in self.parents[self.names.index(name)]]
            given = ", ".join(f"{p} = {i}" for p, i in zip(parents, at[len(at) - len(parents) :], strict=True))
            raise ValueError(
                f"BayesNet: the table of {name!r}{' at ' + given if given else ''} is {values[at].tolist()}, which "
                f"sums to {values[at].sum():.6g}; a row must be zero or above and sum to one"
            )


@jax.jit
def _observe(model: BayesNet, x: Cells) -> Seen:
    dtype = probs_of(model.tables[0]).dtype
    columns, n = x.values.T, len(x)
    hidden = jnp.isnan(columns)
    sizes = model.categories
    limits = jnp.asarray(sizes, jnp.int32)[:, None]
    codes = jnp.where(hidden, 0, columns).astype(jnp.int32)
    inside = (codes.astype(columns.dtype) == columns) & (codes >= 0) & (codes < limits)
    always = [v for v in range(len(codes)) if v not in x.hidden]
    possible = jnp.all(inside[jnp.asarray(always, jnp.int32)], axis=0) if always else jnp.ones(n, bool)
    clipped = jnp.clip(codes, 0, limits - 1)
    place, corner = [], []
    for v, parents in enumerate(model.parents):
        seen = [u for u in (*parents, v) if u not in x.hidden]
        shape = tuple(sizes[u] for u in seen)
        entries = math.prod(shape)
        index = sum((clipped[u] * math.prod(shape[i + 1 :]) for i, u in enumerate(seen)), jnp.zeros(n, jnp.int32))
        place.append(index if seen else None)
        ones = (jnp.arange(entries, dtype=jnp.int32)[:, None] == index[None]).astype(dtype)
        corner.append(ones if seen and entries <= CORNERS else None)
    indicators = []
    for v in x.hidden:
        may = (jnp.arange(sizes[v], dtype=jnp.int32)[:, None] == codes[v][None]) & inside[v][None]
        indicators.append(jnp.where(may | hidden[v][None], 0, -jnp.inf).astype(dtype))
    return Seen(jnp.where(hidden, -1, codes), possible, tuple(place), tuple(corner), tuple(indicators), hidden=x.hidden)


def _factor(family: tuple[int, ...], table: Array, x: Seen, v: int) -> Factor:
    """A log-table `[*members, *family]` as a factor over those of its variables that may be hidden."""
    members = table.ndim - len(family)
    axis = {u: members + i for i, u in enumerate(family)}
    scope = tuple(sorted(u for u in family if u in x.hidden))
    seen = [u for u in family if u not in x.hidden]
    order = [*range(members), *(axis[u] for u in scope), *(axis[u] for u in seen)]
    values = jnp.transpose(table, order).reshape(*(table.shape[place] for place in order[: members + len(scope)]), -1)
    place, corner = x.place[v], x.corner[v]
    if place is None:
        return Factor(scope, values)
    return Factor(scope, values[..., place] if corner is None else _taken(values, place, corner))


@jax.custom_jvp
def _taken(values: Float[Array, "*rest s"], place: Int[Array, "n"], corner: Array) -> Float[Array, "*rest n"]:
    """The entries of the last axis that rows take: whose derivative is a matrix product."""
    return values[..., place]


@_taken.defjvp
def _taken_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Any, Any]) -> tuple[Array, Array]:
    values, place, corner = primals
    change = tangents[0].reshape(-1, values.shape[-1])
    return values[..., place], matmul(change, corner).reshape(*values.shape[:-1], -1)


@partial(jax.jit, static_argnums=0)
def _by_pieces(function: Any, model: BayesNet, x: Cells) -> Any:
    """`function(model, rows)`, whose results are `[*members, n, ...]`, on pieces of many rows: all that one needs."""
    n, members = len(x), len(model.batch_shape)
    if n <= PIECE:
        return function(model, model.observe(x))
    pieces = -(-n // PIECE)
    padded = jnp.pad(x.values, ((0, pieces * PIECE - n), (0, 0)))
    found = jax.lax.map(
        lambda values: function(model, model.observe(replace(x, values=values))), padded.reshape(pieces, PIECE, -1)
    )

    def joined(leaf: Array) -> Array:
        rows = jnp.moveaxis(leaf, 0, members)
        rows = rows.reshape(*rows.shape[:members], pieces * PIECE, *rows.shape[members + 2 :])
        return jax.lax.slice_in_dim(rows, 0, n, axis=members)

    return jax.tree.map(joined, found)


def _log_prob(model: BayesNet, x: Seen) -> Array:
    return told(model, model.log_normalizer(model.potentials(), model.evidence_of(x), semirings.log_sum, x))


def _used(model: BayesNet, x: Seen, add: Any) -> tuple[Array, dict[int, Array]]:
    """The log-normaliser, and its derivative with respect to each category of what is hidden, `[*members, C, n]`."""
    own, evidence = model.potentials(), model.evidence_of(x)
    log_prob, backward = jax.vjp(lambda evidence: model.log_normalizer(own, evidence, add, x), evidence)
    return log_prob, dict(zip(x.hidden, backward(jnp.ones_like(log_prob))[0], strict=True))


def _posterior(model: BayesNet, x: Seen) -> tuple[Array, ...]:
    log_prob, marginal = _used(model, x, semirings.log_sum)
    possible = (log_prob > -jnp.inf).astype(log_prob.dtype)[..., None, :]
    for v, size in enumerate(model.categories):
        if v not in marginal:
            is_it = x.codes[v][None] == jnp.arange(size, dtype=jnp.int32)[:, None]
            marginal[v] = possible * lead(is_it.astype(log_prob.dtype), log_prob.ndim + 1)
    return tuple(jnp.swapaxes(marginal[v], -1, -2) for v in range(len(marginal)))


def _decode(model: BayesNet, x: Seen) -> Array:
    log_prob, best = _used(model, x, semirings.maximum)
    columns = []
    for v, codes in enumerate(x.codes):
        codes = jnp.broadcast_to(lead(codes, log_prob.ndim), log_prob.shape)
        if v in best:
            codes = jnp.where(codes < 0, jnp.argmax(best[v], axis=-2).astype(jnp.int32), codes)
        columns.append(codes)
    return jnp.stack(columns, axis=-1)


@partial(jax.jit, static_argnums=2)
def _sample(model: BayesNet, key: Array, n: int) -> Array:
    members, sizes = model.batch_shape, model.categories
    uniform = jax.random.uniform(key, (len(sizes), *members, n), probs_of(model.tables[0]).dtype)
    drawn = {}
    for v in TopologicalSorter(dict(enumerate(model.parents))).static_order():
        place = jnp.zeros((*members, n), jnp.int32)
        for parent in model.parents[v]:
            place = place * sizes[parent] + drawn[parent]
        rows = model.tables[model.table_of[v]].probs.reshape(*members, -1, sizes[v])
        reach = jnp.take_along_axis(jnp.cumsum(rows, axis=-1), place[..., None], axis=-2)
        # Below the last sum, so that rounding never draws a category of probability zero.
        drawn[v] = jnp.sum(uniform[v][..., None] * reach[..., -1:] >= reach[..., :-1], axis=-1, dtype=jnp.int32)
    return jnp.stack([drawn[v] for v in range(len(sizes))], axis=-1).astype(uniform.dtype)
