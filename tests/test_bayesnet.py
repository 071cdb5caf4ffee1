"""A Bayesian network is the sum over all that is hidden, climbs under EM, and agrees with those who did it before."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from alarm import ALARM, alarm
from families import e_step, m_step
from jaxem.core.semirings import Sampled
from jaxem.latent.bayesnet import elimination

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[2] / "shared" / "reference_cases.json"
NAN = float("nan")


def case(name: str) -> Any:
    if not CASES.exists():
        pytest.skip(f"{name}: its data stay out of the project, and {CASES.name} is not there")
    return next(c for c in json.loads(CASES.read_text())["cases"] if c["name"] == name)


def network(seed: int, members: tuple[int, ...] = ()) -> jem.BayesNet:
    """Five variables on a random graph, a tenth of the probabilities zero."""
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c", "d", "e"]
    sizes = dict(zip(names, rng.integers(2, 4, 5).tolist(), strict=True))
    order = rng.permutation(names).tolist()
    graph = {name: [] for name in names}
    for place, name in enumerate(order):
        parents = rng.choice(order[:place], min(place, int(rng.integers(0, 4))), replace=False) if place else []
        graph[name] = [str(parent) for parent in parents]
    tables = {}
    for name in names:
        shape = (*members, *(sizes[parent] for parent in graph[name]), sizes[name])
        raw = rng.gamma(1.0, size=shape) * (rng.random(shape) > 0.1)
        raw[..., 0] += 1e-3  # no row is empty
        tables[name] = raw / raw.sum(-1, keepdims=True)
    return jem.BayesNet(graph, tables)


def rows(model: jem.BayesNet, n: int, seed: int) -> np.ndarray:
    """Any rows, not only probable ones, four of ten cells hidden."""
    rng = np.random.default_rng(seed + 100)
    x = np.stack([rng.integers(0, size, n) for size in model.categories], axis=1).astype(float)
    x[rng.random(x.shape) < 0.4] = NAN
    return x


def enumerated(model: jem.BayesNet, x: np.ndarray) -> dict[str, Any]:
    """Everything, from the product of all variables of one model."""
    every = np.array(list(itertools.product(*(range(size) for size in model.categories))))
    with np.errstate(divide="ignore"):
        entries = [(*(every[:, u] for u in parents), every[:, v]) for v, parents in enumerate(model.parents)]
        tables = [np.asarray(model.tables[table].probs) for table in model.table_of]
        joint = sum(np.log(table[entry]) for table, entry in zip(tables, entries, strict=True))
    fits = (np.isnan(x)[:, None] | (x[:, None] == every[None])).all(-1)
    mass = np.where(fits, np.exp(joint)[None], 0)
    total = mass.sum(1)
    share = mass / np.where(total > 0, total, 1)[:, None]
    counts = [np.zeros(table.shape) for table in (t.probs for t in model.tables)]
    for table, entry in zip(model.table_of, entries, strict=True):
        np.add.at(counts[table], entry, share.sum(0))
    with np.errstate(divide="ignore"):
        return {
            "log_prob": np.log(total),
            "posterior": [
                np.stack([share[:, every[:, v] == c].sum(1) for c in range(k)], 1)
                for v, k in enumerate(model.categories)
            ],
            "counts": counts,
            "best": np.log(mass.max(1)),
            "joint": dict(zip(map(tuple, every.tolist()), joint, strict=True)),
        }


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_sum_over_all_that_is_hidden(seed: int) -> None:
    model = network(seed)
    x = rows(model, 40, seed)
    x[:, seed] = np.where(np.isnan(x[:, seed]), 0, x[:, seed])  # one variable is never hidden
    x[0, np.arange(5) != seed] = NAN
    told = enumerated(model, x)
    log_prob, counts = e_step(model, model.read(x), jnp.ones(40))
    np.testing.assert_allclose(log_prob, told["log_prob"], rtol=1e-12)
    for count, expected in zip(counts, told["counts"], strict=True):
        np.testing.assert_allclose(count, expected, atol=1e-12)
    for marginal, expected in zip(model.posterior(x).values(), told["posterior"], strict=True):
        np.testing.assert_allclose(marginal, expected, atol=1e-12)
    decoded = np.asarray(model.decode(x))
    assert ((decoded == x) | np.isnan(x)).all()
    possible = np.isfinite(told["best"])
    joint = np.array([told["joint"][tuple(row)] for row in decoded.tolist()])
    np.testing.assert_allclose(joint[possible], told["best"][possible], rtol=1e-12)
    # What is not known to be seen may be hidden: the same numbers, by a longer way.
    np.testing.assert_allclose(jax.jit(lambda x: model.log_prob(x))(x), log_prob, rtol=1e-12)


def test_members_each_by_itself() -> None:
    models = network(7, (3,))
    x = rows(models, 20, 7)
    log_prob, counts = e_step(models, models.read(x), jnp.ones(20))
    posterior, decoded = models.posterior(x), models.decode(x)
    assert log_prob.shape == (3, 20)
    for k in range(3):
        told = enumerated(jax.tree.map(lambda leaf, k=k: leaf[k], models), x)
        np.testing.assert_allclose(log_prob[k], told["log_prob"], rtol=1e-12)
        for count, expected in zip(counts, told["counts"], strict=True):
            np.testing.assert_allclose(count[k], expected, atol=1e-12)
        for marginal, expected in zip(posterior.values(), told["posterior"], strict=True):
            np.testing.assert_allclose(marginal[k], expected, atol=1e-12)
        joint = np.array([told["joint"][tuple(row)] for row in np.asarray(decoded[k]).tolist()])
        possible = np.isfinite(told["best"])
        np.testing.assert_allclose(joint[possible], told["best"][possible], rtol=1e-12)


GRAPH = {"h": [], "a": ["h"], "b": ["h", "a"]}


def small(seed: int = 0, members: tuple[int, ...] = ()) -> jem.BayesNet:
    """A hidden cause of two categories, and two that it shows in."""
    rng = np.random.default_rng(seed)
    shapes = {"h": (), "a": (2,), "b": (2, 3)}
    sizes = {"h": 2, "a": 3, "b": 2}
    tables = {name: rng.dirichlet(np.full(sizes[name], 3.0), (*members, *shapes[name])) for name in GRAPH}
    return jem.BayesNet(GRAPH, tables)


def drawn(n: int = 60, seed: int = 1) -> np.ndarray:
    """Rows of which the cause is hidden and, of every fifth, a cell more."""
    x = np.array(small(5).sample(jax.random.key(seed), n))
    x[:, 0] = NAN
    x[::5, 1] = NAN
    return x


def climbs(fit: jem.Fit) -> None:
    trace = np.asarray(fit.trace)[: int(fit.steps) + 1]
    assert len(trace) > 3
    assert (np.diff(trace) > -1e-10 * abs(trace[0])).all()


def test_em_climbs_with_and_without_a_prior() -> None:
    x, start = drawn(), small()
    plain = jem.fit(start, x, max_steps=40, tol=0.0)
    climbs(plain)
    prior = jem.priors.Structured({"tables": jem.priors.Dirichlet(3.0)})
    pulled = jem.fit(start, x, prior=prior)
    climbs(pulled)
    assert pulled.converged
    # The mode of the posterior: a fixed point of counts plus two, entry by entry.
    _, counts = e_step(pulled.model, start.read(x), jnp.ones(len(x)))
    for table, count in zip(pulled.model.tables, counts, strict=True):
        np.testing.assert_allclose(table.probs, (count + 2) / (count + 2).sum(-1, keepdims=True), atol=2e-3)
    only = jem.priors.Structured({"tables": {"a": jem.priors.Dirichlet(2.0)}}).statistics(start, None, None)
    assert [float(each.sum()) for each in only] == [0, 6, 0]


def test_a_structural_zero_stays_and_has_finite_gradients() -> None:
    tables = {"h": [0.5, 0.5], "a": [[0.0, 0.4, 0.6], [1.0, 0.0, 0.0]], "b": np.full((2, 3, 2), 0.5)}
    start, x = jem.BayesNet(GRAPH, tables), drawn()
    fit = jem.fit(start, x, max_steps=5)
    assert fit.model.table("a")[0, 0] == 0
    assert fit.model.table("a")[1].tolist() == [1, 0, 0]
    gradient = jax.grad(lambda model: model.log_prob(x).sum())(start)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_naive_bayes_is_a_mixture_of_independent_categories() -> None:
    rng = np.random.default_rng(0)
    weights, probs = rng.dirichlet([3.0, 3.0]), rng.dirichlet(np.ones(3), (2, 4))
    mixture = jem.Mixture(weights, jem.Independent(jem.Categorical(probs)))
    names = ["w", "x", "y", "z"]
    tables = {"class": weights} | {name: probs[:, i] for i, name in enumerate(names)}
    net = jem.BayesNet({"class": []} | {name: ["class"] for name in names}, tables)
    x = np.asarray(mixture.sample(jax.random.key(0), 50))
    shown = np.column_stack([np.full(50, NAN), x])
    np.testing.assert_allclose(net.log_prob(shown), mixture.log_prob(x), rtol=1e-12)
    np.testing.assert_allclose(net.posterior(shown)["class"], mixture.posterior(x), atol=1e-12)
    np.testing.assert_array_equal(net.decode(shown)[:, 0], mixture.decode(x))
    np.testing.assert_allclose(net.entropy(shown), mixture.entropy(x), rtol=1e-9)
    assert jem.free_parameters(net) == jem.free_parameters(mixture)
    (_, ours), (_, theirs) = e_step(net, net.read(shown), jnp.ones(50)), e_step(mixture, x, jnp.ones(50))
    np.testing.assert_allclose(ours[0], theirs.counts, rtol=1e-10)
    np.testing.assert_allclose(jnp.stack(ours[1:], axis=1), theirs.child, atol=1e-10)


def test_every_solver_climbs_to_the_same_place() -> None:
    x, start = drawn(), small()
    prior = jem.priors.Structured({"tables": jem.priors.Dirichlet(2.0)})
    solvers = jem.EM(), jem.SQUAREM(jem.EM()), jem.LBFGS(), jem.Newton()
    fits = [jem.fit(start, x, solver, prior=prior, tol=1e-10) for solver in solvers]
    assert all(fit.converged for fit in fits)
    np.testing.assert_allclose([fit.objective for fit in fits], [fits[0].objective] * 4, atol=1e-6)


def test_hard_em_reports_the_most_probable_explanations() -> None:
    x, model = drawn(), small()
    fit = jem.fit(model, x, jem.HardEM(), max_steps=0)
    np.testing.assert_allclose(fit.log_likelihood, model.log_prob(model.decode(x)).sum(), rtol=1e-12)


def test_a_draw_of_what_is_hidden_follows_the_posterior() -> None:
    """Of several hidden cells jointly: one draw has one configuration, and their shares are the posterior's."""
    model, x = small(3), np.repeat([[NAN, NAN, 1.0]], 4000, axis=0)

    @jax.jit
    def counts(key: jax.Array) -> Any:
        _, pullback = model.e_step(x, Sampled(key))
        return pullback(jnp.ones(4000))

    drawn = counts(jax.random.key(0))
    _, expected = e_step(model, model.read(x), jnp.ones(4000))
    for count, mean in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(count, np.round(count), atol=1e-6)
        np.testing.assert_allclose(count, mean, atol=4 * np.sqrt(1000))
    # The categories of a in the table of b, h by h, are those in the table of a.
    np.testing.assert_allclose(drawn[2].sum(-1), drawn[1], atol=1e-6)
    np.testing.assert_allclose(drawn[1].sum(-1), drawn[0], atol=1e-6)


def test_many_at_once_are_each_alone() -> None:
    starts = small(2, (3,))
    xs = np.stack([drawn(seed=seed) for seed in (1, 2, 3)])
    many = jem.fit_many(starts, xs, max_steps=40)
    mapped = jax.jit(jax.vmap(lambda model, x: jem.fit(model, x, max_steps=40)))(starts, xs)
    for k in range(3):
        alone = jem.fit(jax.tree.map(lambda leaf, k=k: leaf[k], starts), xs[k], max_steps=40)
        for fits in (many, mapped):
            np.testing.assert_allclose(fits.log_likelihood[k], alone.log_likelihood, rtol=1e-9)
            np.testing.assert_allclose(fits.model.tables[2].probs[k], alone.model.tables[2].probs, atol=1e-7)
    # A category that is out of range where values are not known yet: that problem fails, the others do not.
    xs[1, 3, 2] = 2
    again = jem.fit_many(starts, xs, max_steps=40)
    assert again.status[1] == jem.Status.impossible_data
    np.testing.assert_array_equal(again.log_likelihood[::2], many.log_likelihood[::2])


def test_more_rows_than_a_chunk_are_the_same_rows_weighted() -> None:
    x = drawn(9_000)
    distinct, times = np.unique(np.nan_to_num(x, nan=-1), axis=0, return_counts=True)
    distinct = np.where(distinct < 0, NAN, distinct)
    whole = jem.fit(small(), x, max_steps=5)
    counted = jem.fit(small(), distinct, weight=times, max_steps=5)
    np.testing.assert_allclose(whole.log_likelihood, counted.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(whole.model.table("b"), counted.model.table("b"), rtol=1e-9)
    models = small(2, (2,))
    for told in (models.log_prob, models.decode, lambda x: models.posterior(x)["h"]):
        np.testing.assert_allclose(told(x)[:, 8_180:8_200], told(x[8_180:8_200]), rtol=1e-12)


def test_tied_tables_are_counted_together() -> None:
    """Two readings of one instrument: as one variable that was read twice."""
    graph = {"h": [], "first": ["h"], "second": ["h"]}
    error = np.array([[0.9, 0.1], [0.3, 0.7]])
    net = jem.BayesNet(graph, {"h": [0.4, 0.6], "first": error}, tied={"second": "first"})
    rng = np.random.default_rng(0)
    x = np.column_stack([np.full(30, NAN), rng.integers(0, 2, (30, 2))])
    _, (prior, readings) = e_step(net, net.read(x), jnp.ones(30))
    twice = jem.BayesNet(graph, {"h": [0.4, 0.6], "first": error, "second": error})
    _, (alone, first, second) = e_step(twice, net.read(x), jnp.ones(30))
    np.testing.assert_allclose(prior, alone, rtol=1e-12)
    np.testing.assert_allclose(readings, first + second, rtol=1e-12)
    fit = jem.fit(net, x, max_steps=20, tol=0.0)
    climbs(fit)
    assert jem.free_parameters(fit.model) == 3
    np.testing.assert_array_equal(fit.model.table("first"), fit.model.table("second"))


def test_float32_stays() -> None:
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), small())
    fit = jem.fit(model, drawn().astype(np.float32), max_steps=3)
    assert fit.log_likelihood.dtype == fit.model.table("b").dtype == jnp.float32
    exact = jem.fit(small(), drawn(), max_steps=3)
    np.testing.assert_allclose(fit.log_likelihood, exact.log_likelihood, rtol=1e-6)
    assert model.sample(jax.random.key(0), 2).dtype == jnp.float32


def test_rare_evidence_is_not_impossible() -> None:
    """A chain of 40 steps of probability 1e-12 each: e^-1105, far below the smallest float."""
    names = [f"v{i}" for i in range(40)]
    graph = {name: names[max(i - 1, 0) : i] for i, name in enumerate(names)}
    rare = [[1e-12, 1 - 1e-12]] * 2
    model = jem.BayesNet(graph, {name: rare if parents else rare[0] for name, parents in graph.items()})
    x = np.zeros((1, 40))
    x[0, ::3] = NAN
    np.testing.assert_allclose(model.log_prob(x), (40 - 14) * np.log(1e-12), rtol=1e-12)


def test_samples_have_the_frequencies_of_the_model() -> None:
    model = network(0)
    n = 20_000
    x = np.asarray(model.sample(jax.random.key(0), n))
    assert np.isfinite(np.asarray(model.log_prob(x[:200]))).all()
    nothing = model.posterior(np.full((1, 5), NAN))
    for v, marginal in enumerate(nothing.values()):
        share = np.bincount(x[:, v].astype(int), minlength=model.categories[v]) / n
        np.testing.assert_allclose(share, marginal[0], atol=5 * 0.5 / np.sqrt(n))


def test_a_start_has_seen_the_complete_rows() -> None:
    x = drawn(200)
    starts = jem.BayesNet.start(jax.random.key(0), GRAPH, x, {"h": 2}, restarts=3)
    assert starts.batch_shape == (3,)
    assert starts.table("b").shape == (3, 2, 3, 2)
    assert len({float(value) for value in starts.table("h")[:, 0]}) == 3
    assert (starts.table("b") > 0).all()
    seen = {"h": np.arange(200) % 2, "a": np.arange(200) % 3, "b": np.arange(200) % 2}
    known = jem.BayesNet.start(jax.random.key(0), GRAPH, seen)
    np.testing.assert_allclose(known.table("h"), [0.5, 0.5], atol=0.01)
    np.testing.assert_allclose(known.table("b")[:, 0], np.eye(2), atol=0.05)
    with pytest.raises(ValueError, match="'h' is never seen; say in `categories` how many it has"):
        jem.BayesNet.start(jax.random.key(0), GRAPH, x)


def test_evidence_by_name() -> None:
    model = small()
    x = np.array([[NAN, 2.0, 1.0], [NAN, 0.0, 1.0]])
    np.testing.assert_array_equal(model.log_prob({"a": [2, 0], "b": 1}), model.log_prob(x))
    np.testing.assert_allclose(model.log_prob({}), [0.0], atol=1e-12)
    with pytest.raises(ValueError, match="'c' is no variable; they are h, a, b"):
        model.posterior({"c": 1})


def test_it_can_be_saved(tmp_path: Path) -> None:
    error = [[0.9, 0.1], [0.3, 0.7]]
    net = jem.BayesNet({"h": [], "x": ["h"], "y": ["h"]}, {"h": [0.4, 0.6], "x": error}, tied={"y": "x"})
    jem.save(tmp_path / "net", net)
    read = jem.load(tmp_path / "net")
    assert jax.tree.structure(read) == jax.tree.structure(net)
    np.testing.assert_array_equal(read.table("y"), error)


def largest(scopes: Any, sizes: Any) -> int:
    """Entries of the largest table on the way."""
    left, most = [set(scope) for scope in scopes], 0
    for v in elimination.order(scopes, sizes):
        met = set().union(*(scope for scope in left if v in scope))
        left = [scope for scope in left if v not in scope] + [met - {v}]
        most = max(most, math.prod(sizes[u] for u in met))
    assert not set().union(*left)
    return most


def test_an_order_of_elimination_is_short_of_the_product() -> None:
    """A chain of 30 and a star of 30: no table of more than two variables. ALARM: what others find by search."""
    chain = tuple((i, i + 1) for i in range(29))
    star = tuple((0, i) for i in range(1, 30))
    assert largest(chain, (3,) * 30) == largest(star, (3,) * 30) == 9
    model = alarm()
    scopes = tuple(tuple(sorted((*parents, v))) for v, parents in enumerate(model.parents))
    assert largest(scopes, model.categories) == 144


@pytest.mark.parametrize(
    ("graph", "changed", "words"),
    [
        ({"h": ["b"], "a": ["h"], "b": ["a"]}, {}, "the graph has a cycle: (h -> a -> b -> h|a -> b -> h -> a|b -> h)"),
        ({"h": [], "a": ["x"], "b": ["h"]}, {}, "'x' is a parent of 'a', but no variable"),
        (GRAPH, {"h": [0.5, 0.6]}, "the table of 'h' is .* sums to 1.1; a row must"),
        (GRAPH, {"a": [[0.5, 0.5, 0.0], [0.5, 0.2, 0.2]]}, "the table of 'a' at h = 1 is .* sums to 0.9"),
        (GRAPH, {"a": [[1.5, -0.5, 0.0], [0.5, 0.2, 0.3]]}, "the table of 'a' at h = 0"),
        (
            GRAPH,
            {"b": np.full((3, 2, 2), 0.5)},
            r"'b' has shape \(3, 2, 2\); with its parents it must end in \(2, 3, 2",
        ),
        (GRAPH, {"z": [1.0]}, "'z' has a table, but none is needed"),
    ],
)
def test_bad_networks(graph: Any, changed: Any, words: str) -> None:
    tables = {name: small().table(name) for name in GRAPH} | changed
    with pytest.raises(ValueError, match=words):
        jem.BayesNet(graph, tables)


def test_bad_rows() -> None:
    model = small()
    x = drawn(5)
    x[3:, 2] = 2
    with pytest.raises(ValueError, match="b holds 2 in row 3; its categories are the whole numbers from 0 to 1"):
        jem.fit(model, x)
    with pytest.raises(ValueError, match=r"x has shape \(5, 2\); this network reads rows of shape \[n, 3\]"):
        model.log_prob(x[:, :2])
    with pytest.raises(ValueError, match=r"the columns have shapes .*; they must be as long as each other"):
        model.posterior({"a": [0, 1, 2], "b": [0, 1]})
    with pytest.raises(ValueError, match="takes no labels"):
        jem.fit(model, drawn(5), labels=np.zeros(5, int))
    # Where values are not known yet, such rows are impossible, and a fit says so.
    assert np.isneginf(jax.jit(lambda x: model.log_prob(x))(x)[3:]).all()
    assert model.inside(x).tolist() == [True, True, True, False, False]


def test_the_candies_of_the_book() -> None:
    """Russell and Norvig, section 20.3: the iterates."""
    told = case("aima_candy_bayes_net")
    cells = np.array(told["data"]["cells"])
    x = np.column_stack([np.full(8, NAN), cells[:, :3]])
    names = ["wrapper", "holes", "flavor"]
    tables = {"bag": [0.6, 0.4]} | {name: [[0.4, 0.6], [0.6, 0.4]] for name in names}
    start = model = jem.BayesNet({"bag": []} | {name: ["bag"] for name in names}, tables)
    computed = told["expected"]["computed"]
    weight, data = jnp.asarray(cells[:, 3], float), start.read(x)
    for _, log_likelihood, theta, first, second in computed["trace_[iter,loglik,theta,[W1,H1,F1],[W2,H2,F2]]"][:3]:
        log_prob, counts = e_step(model, data, weight)
        np.testing.assert_allclose(log_prob @ weight, log_likelihood, rtol=1e-12)
        np.testing.assert_allclose(model.table("bag")[0], theta, rtol=1e-10)
        chances = [model.table(name)[:, 1] for name in names]
        np.testing.assert_allclose(chances, np.transpose([first, second]), rtol=1e-10)
        model = m_step(model, counts)
    best = jem.fit(start, x, jem.SQUAREM(jem.EM()), weight=cells[:, 3], tol=1e-13, max_steps=2000)
    np.testing.assert_allclose(best.log_likelihood, computed["optimum"]["loglik"], atol=1e-6)


@pytest.mark.parametrize("name", ["lca_carcinoma", "lca_gss82"])
def test_latent_classes(name: str) -> None:
    """Published log-likelihoods of latent class models (Agresti 2002; McCutcheon 1987; poLCA)."""
    told = case(name)
    cells = np.array(told["data"]["patterns_coded_from_1"], float) - 1
    items = told["data"]["columns"]
    x = np.column_stack([np.full(len(cells), NAN), cells])
    graph = {"class": []} | {item: ["class"] for item in items}
    weight = np.array(told["data"]["count"], float)
    starts = jem.BayesNet.start(jax.random.key(1), graph, x, {"class": 3}, weight=weight, restarts=16)
    fit = jem.fit(starts, x, jem.SQUAREM(jem.EM()), weight=weight, tol=1e-10, max_steps=2000)
    computed = told["expected"]["computed"]["3"]
    np.testing.assert_allclose(fit.log_likelihood, computed["ll"], atol=1e-5)
    assert jem.free_parameters(fit.model) == computed["npar"]


def test_pgmpy_has_the_same_tables() -> None:
    """Ten steps of pgmpy 1.1.2 (DiscreteEM) from the same start (`pgmpy_steps` in benchmarks/bayesnet.py)."""
    graph = {"class": [], "a": ["class"], "b": ["class", "a"], "c": ["class"], "d": ["class"]}
    tables = {
        "class": [0.6, 0.4],
        "a": [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]],
        "b": [[[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]], [[0.4, 0.6], [0.3, 0.7], [0.9, 0.1]]],
        "c": [[0.8, 0.2], [0.3, 0.7]],
        "d": [[0.6, 0.4], [0.1, 0.9]],
    }
    times = [9, 2, 4, 3, 1, 2, 5, 8, 7, 3, 2, 1, 4, 6, 1, 9, 2, 8, 3, 7, 5, 1, 2, 6]
    cells = np.array(list(itertools.product(range(3), range(2), range(2), range(2))), float)
    x = np.column_stack([np.full(24, NAN), cells])
    fit = jem.fit(jem.BayesNet(graph, tables), x, weight=times, max_steps=10, tol=0.0)
    theirs = {
        "class": [0.456306111395, 0.543693888605],
        "a": [[0.401193774684, 0.373331058151, 0.225475167165], [0.282450281937, 0.287624034658, 0.429925683404]],
        "c": [[0.704842067337, 0.295157932663], [0.318976846514, 0.681023153486]],
        "d": [[0.778637056144, 0.221362943856], [0.16598992387, 0.83401007613]],
    }
    for name, table in theirs.items():
        np.testing.assert_allclose(fit.model.table(name), table, atol=1e-11)
    first = [[0.836256368558, 0.721238272575, 0.330075214676], [0.163621201535, 0.037393615576, 0.701866142031]]
    np.testing.assert_allclose(fit.model.table("b")[..., 0], first, atol=1e-11)


def test_a_network_of_real_size() -> None:
    """ALARM: the product of its tables where nothing is hidden; with a tenth of the cells hidden, EM climbs."""
    truth = alarm()
    assert (len(truth.names), sum(map(len, truth.parents))) == (37, 46)
    x = np.array(truth.sample(jax.random.key(0), 200))
    complete = np.asarray(truth.log_prob(x))
    places = [(*(x[:, u].astype(int) for u in parents), x[:, v].astype(int)) for v, parents in enumerate(truth.parents)]
    each = [np.log(np.asarray(t.probs))[place] for t, place in zip(truth.tables, places, strict=True)]
    np.testing.assert_allclose(complete, sum(each), rtol=1e-12)
    x[np.random.default_rng(1).random(x.shape) < 0.1] = NAN
    sizes = {name: size for name, (size, _) in ALARM.items()}
    start = jem.BayesNet.start(jax.random.key(1), truth.graph, x, sizes)
    fit = jem.fit(start, x, max_steps=8, tol=0.0)
    climbs(fit)
