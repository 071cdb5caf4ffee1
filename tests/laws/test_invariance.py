"""What must not matter: repetition against weight, padding, the order of components, units, chunks, company."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table import LOCATION, SCALE, STARTED, law

import jaxem as jem
from families import FAMILIES, MIXTURES, Example, coordinates, e_step, m_step
from jaxem.data.prepare import prepare
from jaxem.distributions.base import add, over_parts, scale
from jaxem.solvers import em

STEPS = 8
ROWS = 24
"""For all laws that can do with so many, so that their fits are one program."""


def assert_same(a: Any, b: Any, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    for path, leaf in coordinates(a).items():
        np.testing.assert_allclose(leaf, coordinates(b)[path], rtol=rtol, atol=atol, err_msg=path)


def fit(example: Example, x: Any, **options: Any) -> jem.Fit:
    return jem.fit(example.mixture(2, seed=3), x, max_steps=STEPS, tol=0.0, **options)


@jax.jit
def climbed(model: Any, x: Any) -> tuple[Any, Any]:
    """The model after some steps of EM, and its log-likelihood: a stopping rule would see another float type's end."""
    weight = jnp.ones(len(x), x.dtype)
    floor = model.floor(x, weight)
    model = jax.lax.fori_loop(0, STEPS, lambda _, m: jem.EM().step(m, None, x, weight, floor)[0], model)
    return model, model.log_prob(x).sum()


@law(MIXTURES)
def test_padding_is_invisible(example: Example) -> None:
    """Rows of weight zero may hold NaN, or what would overflow; neither values nor gradients notice."""
    x = np.asarray(example.rows(ROWS))
    bad = np.full((4, *x.shape[1:]), np.nan)
    bad[1:3] = [[1e300], [-np.inf]] if x.ndim == 2 else [1e300, -np.inf]
    padded = np.concatenate([x[:5], bad, x[5:]])
    weight = np.concatenate([np.ones(5), np.zeros(4), np.ones(ROWS - 5)])
    trimmed, whole = fit(example, x), fit(example, padded, weight=weight)
    np.testing.assert_allclose(whole.log_likelihood, trimmed.log_likelihood, rtol=1e-11)
    assert_same(whole.model, trimmed.model)

    @jax.jit
    def gradient(x: Any, weight: Any) -> Any:
        x, weight, _ = prepare(x, weight, None)
        return jax.grad(lambda model: em.expectation(model, x, weight)[0])(example.mixture(2, seed=3))

    with_padding = gradient(padded, weight)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(with_padding))
    assert_same(with_padding, gradient(x, np.ones(ROWS)))


@law(MIXTURES)
def test_names_of_components_do_not_matter(example: Example) -> None:
    x, order = example.rows(ROWS), np.array([2, 0, 1])
    model = example.mixture(3, seed=3)

    def relabelled(model: jem.Mixture) -> jem.Mixture:
        shared = "covariance" if isinstance(model.components, jem.TiedGaussian) else "nothing"
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if shared in jax.tree_util.keystr(path) else leaf[order], model
        )

    a = jem.fit(model, x, max_steps=STEPS, tol=0.0)
    b = jem.fit(relabelled(model), x, max_steps=STEPS, tol=0.0)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-11)
    assert_same(relabelled(a.model), b.model)
    np.testing.assert_allclose(model.posterior(x)[:, order], relabelled(model).posterior(x), rtol=1e-11)


@law(LOCATION)
def test_an_offset_moves_the_means_and_nothing_else(example: Example) -> None:
    """In float32 at 1e4, on a grid that float32 holds exactly at both places: not a bit of the spread may be lost."""
    x = np.round(np.asarray(example.rows(60)) * 64) / 64
    start = jem.Mixture.start(jax.random.key(1), example.family, x.astype(np.float32), 2)
    offset = np.float32(10_000)
    far = jem.Mixture.start(jax.random.key(1), example.family, (x + offset).astype(np.float32), 2)
    here, here_log_likelihood = climbed(start, x.astype(np.float32))
    there, there_log_likelihood = climbed(far, (x + offset).astype(np.float32))
    # A mean near 1e4 is known to 1/1024, at every step.
    np.testing.assert_allclose(here_log_likelihood, there_log_likelihood, rtol=1e-3)
    moved = coordinates(there.components)
    for path, leaf in coordinates(here.components).items():
        if path in (".mean", ".location"):
            np.testing.assert_allclose(moved[path] - offset, leaf, atol=4e-3)
        else:
            np.testing.assert_allclose(moved[path], leaf, rtol=5e-3, atol=5e-3, err_msg=path)
    np.testing.assert_allclose(there.weights, here.weights, atol=2e-3)


@law(SCALE)
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_units_do_not_matter(example: Example, factor: float, dtype: jnp.dtype) -> None:
    """Powers of two change no digit, so a fit in other units is the same fit."""
    x = np.asarray(example.rows(60)).astype(dtype)
    scaled = (x * factor).astype(dtype)
    (a, a_log_likelihood), (b, b_log_likelihood) = (
        climbed(jem.Mixture.start(jax.random.key(1), example.family, rows, 2), rows) for rows in (x, scaled)
    )
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-3
    shift = x.size * np.log(factor)
    np.testing.assert_allclose(
        float(b_log_likelihood) + shift, a_log_likelihood, rtol=tolerance * 10, atol=abs(shift) * 1e-6
    )
    # Every parameter shows in the densities of the members.
    each, other = (np.asarray(m.components.log_prob(rows), float) for m, rows in ((a, x), (b, scaled)))
    np.testing.assert_allclose(other + shift / len(x), each, rtol=10 * tolerance, atol=10 * tolerance)
    if hasattr(a.components, "mean"):
        np.testing.assert_allclose(b.components.mean / factor, a.components.mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(b.weights, a.weights, rtol=tolerance)


@law(MIXTURES)
def test_statistics_of_parts_meet(example: Example) -> None:
    """Each part has a centre of its own, and extremes."""
    model, x, weight = example.members(2), example.rows(64, 2), jnp.asarray(np.random.default_rng(0).uniform(1, 2, 64))
    halves = [(x[:32], weight[:32]), (x[32:], weight[32:])]
    nothing = scale(model.floor(x[:1], weight[:1]), 0)
    parts = [add(nothing, e_step(model, *half)[1]) for half in halves]

    def together(sums: list[jax.Array], extremes: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        return jax.lax.psum(sums, "parts"), jax.lax.pmax(extremes, "parts")

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    met = jax.vmap(lambda part: over_parts(together, part), axis_name="parts")(stacked)
    there = m_step(model, jax.tree.map(lambda leaf: leaf[0], met))
    here = m_step(model, e_step(model, x, weight)[1])
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@law(MIXTURES)
def test_many_rows_go_through_in_chunks(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.asarray(example.rows(50))
    model, weight = example.mixture(2), jnp.linspace(0.0, 2.0, 50)
    labels = jnp.where(jnp.arange(50) % 5 == 0, 1, -1)
    for data in (x, jem.Labelled(x, labels)):

        @jax.jit
        def in_chunks(model: Any, data: Any = data) -> tuple[Any, Any]:
            monkeypatch.setattr(em, "CHUNK", 8192)
            whole = em.expectation(model, data, weight)
            monkeypatch.setattr(em, "CHUNK", 16)
            chunked = em.expectation(model, data, weight)
            return (whole[0], model.m_step(whole[1])), (chunked[0], model.m_step(chunked[1]))

        whole, chunked = in_chunks(model)
        np.testing.assert_allclose(chunked[0], whole[0], rtol=1e-12)
        assert_same(chunked[1], whole[1])


def test_fit_goes_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = FAMILIES[0].rows(53)
    whole = jem.fit(FAMILIES[0].mixture(2), x, max_steps=7, tol=0.0)
    monkeypatch.setattr(em, "CHUNK", 16)
    chunked = jem.fit(FAMILIES[0].mixture(2), x, max_steps=9, tol=0.0)  # another limit, so that it is compiled anew
    np.testing.assert_allclose(chunked.trace[:8], whole.trace[:8], rtol=1e-12)


@law(STARTED)
def test_many_fits_are_each_what_it_is_alone(example: Example) -> None:
    """vmap(fit) = a loop of fit = fit_many, lane by lane, with steps and status."""
    xs = jnp.stack([jnp.asarray(example.rows(20, seed=s)) for s in range(3)])
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(example.mixture(2, seed=s + 5) for s in range(3)))

    def run(model: Any, x: Any) -> jem.Fit:
        return jem.fit(model, x, tol=1e-5, max_steps=40)

    alone = [run(jax.tree.map(lambda leaf, i=i: leaf[i], starts), xs[i]) for i in range(3)]
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    side_by_side = jax.vmap(run)(starts, xs)
    lanes = jem.fit_many(starts, xs, tol=1e-5, max_steps=40)
    for other in (side_by_side, lanes):
        assert_same(other.model, loop.model, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(other.log_likelihood, loop.log_likelihood, rtol=1e-8)
        np.testing.assert_array_equal(other.status, loop.status)
        np.testing.assert_array_equal(other.steps, loop.steps)


@law(MIXTURES)
def test_labels_say_where_a_row_came_from(example: Example) -> None:
    model, x = example.mixture(3), example.rows(12)
    labels = jnp.array([0, 1, 2, -1] * 3)
    posterior, unlabelled = (np.asarray(model.posterior(rows)) for rows in (jem.Labelled(x, labels), x))
    for i, label in enumerate(labels.tolist()):
        np.testing.assert_allclose(posterior[i], unlabelled[i] if label < 0 else np.eye(3)[label], rtol=1e-10)
    log_prob = np.asarray(model.log_prob(jem.Labelled(x, labels)))
    joint = np.log(model.weights)[:, None] + np.asarray(model.components.log_prob(x))
    np.testing.assert_allclose(log_prob[:3], np.diagonal(joint[:, :3]), rtol=1e-12)
    np.testing.assert_allclose(log_prob[3], np.asarray(model.log_prob(x))[3], rtol=1e-12)


@law(MIXTURES)
def test_all_rows_labelled_is_fitting_each_component_by_itself(example: Example) -> None:
    x, labels = example.rows(ROWS), np.arange(ROWS) % 2
    model = example.mixture(2)
    _, statistics = e_step(model, jem.Labelled(x, jnp.asarray(labels)), jnp.ones(ROWS))
    fitted = m_step(model, statistics)
    np.testing.assert_allclose(fitted.weights, [0.5, 0.5], rtol=1e-12)
    _, alone = e_step(model.components, x, jnp.asarray(np.stack([labels == 0, labels == 1]), float))
    assert_same(fitted.components, m_step(model.components, alone))


@law(MIXTURES)
def test_a_weight_of_zero_stays_zero(example: Example) -> None:
    model = jem.Mixture([0.4, 0.0, 0.6], example.members(3))
    x = example.rows(ROWS)
    fit = jem.fit(model, x, max_steps=STEPS, tol=0.0)
    assert fit.model.weights[1] == 0
    assert (fit.model.posterior(x)[:, 1] == 0).all()
    gradient = jax.jit(jax.grad(lambda model: model.log_prob(x).sum()))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
