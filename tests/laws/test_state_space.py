"""A state-space model is one joint Gaussian, climbs under EM, and is one model among others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from families import coordinates, covariances, e_step, m_step, move, perturbed
from jaxem.chains import kalman
from jaxem.core import constraints
from jaxem.core.pytree import replace
from jaxem.distributions.base import add
from jaxem.solvers.objective import flat

pytestmark = pytest.mark.slow

HIDDEN, SIZE, LENGTHS = 2, 3, (5, 2, 4)


def model(seed: int = 0, hidden: int = HIDDEN, size: int = SIZE, members: tuple[int, ...] = ()) -> Any:
    rng = np.random.default_rng(seed)
    return jem.LinearGaussianSSM(
        rng.normal(size=(*members, hidden)),
        covariances(rng, *members, hidden),
        rng.normal(size=(*members, hidden, hidden)) * 0.5,
        covariances(rng, *members, hidden),
        rng.normal(size=(*members, size, hidden)),
        rng.normal(size=(*members, size)) + 3,
        covariances(rng, *members, size),
    )


def pieces(lengths: Any = LENGTHS, size: int = SIZE, seed: int = 1, gaps: bool = True) -> list[np.ndarray]:
    """Sequences with a step and two cells that were not seen."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(length, size)) * 2 for length in lengths]
    if gaps:
        parts[0][1], parts[0][3, 0], parts[1][0, -1] = np.nan, np.nan, np.nan
    return parts


def joint(model: Any, steps: int) -> tuple[np.ndarray, ...]:
    """Mean and covariance of all states, and of all that is seen; and the covariance between the two."""
    m, p, a, q, c, d, r = (np.asarray(getattr(model, name), float) for name in constraints.parameters(model))
    hidden = len(m)
    # Everything is linear in the first state and the noises of the steps.
    moves = np.zeros((steps, hidden, steps, hidden))
    for t in range(steps):
        for s in range(t + 1):
            moves[t, :, s] = np.linalg.matrix_power(a, t - s)
    noise = np.kron(np.eye(steps), q)
    noise[:hidden, :hidden] = p
    moves = moves.reshape(steps * hidden, steps * hidden)
    mean, states = moves[:, :hidden] @ m, moves @ noise @ moves.T
    emission = np.kron(np.eye(steps), c)
    seen = emission @ states @ emission.T + np.kron(np.eye(steps), r)
    return mean, states, emission @ mean + np.tile(d, steps), seen, states @ emission.T


def given(model: Any, x: np.ndarray, steps: int) -> tuple[float, np.ndarray, np.ndarray]:
    """By plain conditioning: log p(x), and mean and covariance of `steps` states given x."""
    mean, states, mean_seen, seen, between = joint(model, steps)
    known = np.flatnonzero(~np.isnan(x.ravel()))
    off, spread = x.ravel()[known] - mean_seen[known], seen[np.ix_(known, known)]
    gain = between[:, known] @ np.linalg.inv(spread)
    value = -0.5 * (off @ np.linalg.solve(spread, off) + np.linalg.slogdet(2 * np.pi * spread)[1])
    return float(value), mean + gain @ off, states - gain @ between[:, known].T


def blocks(covariance: np.ndarray, size: int) -> np.ndarray:
    steps = len(covariance) // size
    return np.stack([covariance[t * size : (t + 1) * size, t * size : (t + 1) * size] for t in range(steps)])


def test_it_is_one_joint_gaussian() -> None:
    """Values, smoothed and filtered states, and a forecast, with steps and cells that were not seen."""
    one, parts = model(), pieces()
    log_prob, smooth = one.log_prob(parts), one.smooth(parts)
    states, seen = one.forecast(parts, 2)
    for i, part in enumerate(parts):
        steps = len(part)
        value, mean, covariance = given(one, part, steps)
        np.testing.assert_allclose(log_prob[i], value, rtol=1e-11)
        np.testing.assert_allclose(smooth.mean[i, :steps].ravel(), mean, atol=1e-11)
        np.testing.assert_allclose(smooth.covariance[i, :steps], blocks(covariance, HIDDEN), atol=1e-11)
        np.testing.assert_array_equal(smooth.mean[i, steps:], 0)
        _, mean, covariance = given(one, part, steps + 2)
        ahead = blocks(covariance, HIDDEN)[-2:]
        np.testing.assert_allclose(states.mean[i].ravel(), mean[-2 * HIDDEN :], atol=1e-11)
        np.testing.assert_allclose(states.covariance[i], ahead, atol=1e-11)
        emission = np.asarray(one.emission)
        by_state = emission @ ahead @ emission.T + np.asarray(one.emission_noise)
        np.testing.assert_allclose(seen.covariance[i], by_state, atol=1e-11)
        level = np.asarray(states.mean[i]) @ emission.T + np.asarray(one.emission_bias)
        np.testing.assert_allclose(seen.mean[i], level, atol=1e-11)


def test_its_derivative_is_that_of_the_filter() -> None:
    """Fisher's identity, by the parameters and by the data; and what is not there changes nothing, NaN or not."""
    one, x = model(), jem.Sequences.from_list(pieces())
    values = jnp.where(x.there[..., None], x.values, jnp.nan)

    def value(by: Any, one: Any, values: Any) -> Any:
        return jnp.sum(jnp.sin(by(one._system(), one.observe(replace(x, values=values)))))

    rule = jax.jit(jax.grad(lambda *a: value(kalman.log_normalizer, *a), (0, 1)))(one, values)
    plain = jax.jit(jax.grad(lambda *a: value(lambda *b: kalman.forward(*b)[0], *a), (0, 1)))(one, values)
    for a, b in zip(jax.tree.leaves(rule), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
    gradient, seen = np.asarray(rule[1]), np.asarray(one.observe(x).seen).transpose(2, 0, 1)
    np.testing.assert_array_equal(gradient[~seen], 0)
    assert (np.abs(gradient[seen]) > 1e-6).all()


def test_its_hessian_is_the_change_of_its_gradient() -> None:
    small, x = model(hidden=1, size=1), pieces((4,), size=1, gaps=False)
    data = small.observe(x)
    flat, back = jax.flatten_util.ravel_pytree(small._system())
    gradient = jax.jit(jax.grad(lambda free: kalman.log_normalizer(back(free), data).sum()))
    hessian = jax.jit(jax.jacfwd(gradient))(flat)
    for i, step in enumerate(1e-5 * np.eye(len(flat))):
        change = (gradient(flat + step) - gradient(flat - step)) / 2e-5
        np.testing.assert_allclose(hessian[i], change, atol=1e-7)


def test_singular_noises_are_no_danger() -> None:
    """A state that moves without noise, from a known start: plain regression on its path, with finite slopes."""
    one = jem.LinearGaussianSSM([1.0, 0.0], np.eye(2), [[1, 1], [0, 1]], np.eye(2), [[1, 0]], [0.0], [[2.0]])
    one = replace(one, initial_covariance=0 * one.transition, transition_noise=0 * one.transition)
    x = np.array([[0.5], [2.0], [1.5]])
    expected = -0.5 * (((x - 1) ** 2).sum() / 2 + 3 * np.log(4 * np.pi))
    np.testing.assert_allclose(one.log_prob(x)[0], expected, rtol=1e-12)
    gradient = jax.grad(lambda model: model.log_prob(x).sum())(one)
    np.testing.assert_allclose(gradient.initial_mean, [(x - 1).sum() / 2, (x[:, 0] - 1) @ [0, 1, 2] / 2], rtol=1e-10)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_what_is_no_noise_is_zero() -> None:
    """An autoregression, seen as it is: likelihood and estimates are those of plain regression; and zero stays zero."""
    rng, x = np.random.default_rng(0), np.zeros(30)
    for t in range(1, len(x)):
        x[t] = 0.8 * x[t - 1] + rng.normal()
    one, zero = np.eye(1), np.zeros((1, 1))
    held = ("initial_mean", "initial_covariance", "emission", "emission_bias", "emission_noise")
    model = jem.LinearGaussianSSM([0.0], 4 * one, 0.5 * one, 2 * one, one, [0.0], zero, held=held)
    moved = x[1:] - 0.5 * x[:-1]
    expected = -0.5 * (x[0] ** 2 / 4 + np.log(8 * np.pi) + (moved**2).sum() / 2 + len(moved) * np.log(4 * np.pi))
    np.testing.assert_allclose(model.log_prob([x])[0], expected, rtol=1e-12)
    fit = jem.fit(model, [x[:, None]], tol=1e-9)
    assert fit.converged, fit.status_name
    slope = (x[1:] @ x[:-1]) / (x[:-1] @ x[:-1])
    np.testing.assert_allclose(fit.model.transition, [[slope]], rtol=1e-10)
    np.testing.assert_allclose(fit.model.transition_noise, [[((x[1:] - slope * x[:-1]) ** 2).mean()]], rtol=1e-10)
    np.testing.assert_array_equal(fit.model.emission_noise, zero)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_told_without_noise_has_no_density_of_its_own(dtype: Any) -> None:
    """It is infinite where the data agree with that, and zero where they do not: beside each other, and in time."""
    one, zero = np.eye(1, dtype=dtype), np.zeros((1, 1), dtype)
    zeros, twice = np.zeros((2, 2), dtype), np.full((2, 1), 1.5, dtype)
    beside = jem.LinearGaussianSSM(zero[0], 3 * one, 0.3 * one, one, twice, np.zeros(2, dtype), zeros)
    later = jem.LinearGaussianSSM(zero[0], 3 * one, 0.7 * one, zero, 1.5 * one, zero[0], zero)
    for model, x, y in (
        (beside, [[0.7, 0.7], [1.1, 1.1]], [[0.7, 0.7], [1.1, 1.2]]),
        (later, [[1.0], [0.7], [np.nan], [0.343]], [[1.0], [0.7], [np.nan], [0.344]]),
    ):
        agrees, differs = (np.asarray(each, dtype) for each in (x, y))
        np.testing.assert_array_equal(model.log_prob(jem.Sequences.from_list([agrees, differs])), [np.inf, -np.inf])


def test_what_a_sequence_does_not_tell_of_a_diffuse_start_is_left_out() -> None:
    """A level and a slope of which nothing is known: one step tells of the level, and of the noises what they are."""
    trend, one = [[1.0, 1.0], [0.0, 1.0]], np.eye(1)
    held = ("transition", "emission", "emission_bias")
    model = jem.LinearGaussianSSM(
        np.zeros(2), np.eye(2), trend, np.diag([0.5, 0.2]), [[1.0, 0.0]], [0.0], 2 * one, held=held, diffuse=True
    )
    log_prob, statistics = e_step(model, jem.Sequences.from_list([[3.0], [5.0]]), jnp.ones(2))
    np.testing.assert_allclose(log_prob, 0, atol=1e-14)
    # What is seen is level and noise, of which nothing is told: the noise is what it was.
    np.testing.assert_allclose(statistics.emission.residual, 2 * 2 * one, rtol=1e-12)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(statistics))
    np.testing.assert_allclose(m_step(model, statistics).emission_noise, 2 * one, rtol=1e-12)
    # Two steps tell both, and no more; of three steps one second difference is left.
    x = [[1.0, 2.0], [4.0, 1.0, 3.0], [np.nan, 6.0]]
    spread = 2 * 6 + 0.5 * 2 + 0.2
    value = -0.5 * (5.0**2 / spread + np.log(2 * np.pi * spread))
    np.testing.assert_allclose(model.log_prob(x), [0, value, -0.5 * np.log(2)], atol=1e-12)
    wide = replace(model, initial_covariance=1e10 * np.eye(2), diffuse=())
    limit = wide.log_prob(x) + np.array([2, 2, 1]) / 2 * np.log(2 * np.pi * 1e10)
    np.testing.assert_allclose(model.log_prob(x), limit, atol=1e-6)
    slope = jax.grad(lambda model: model.log_prob(x).sum())
    for name in ("transition", "transition_noise", "emission", "emission_noise"):
        np.testing.assert_allclose(getattr(slope(model), name), getattr(slope(wide), name), atol=1e-5, err_msg=name)
    trace = np.asarray(jem.fit(model, [*x, [2.0], [1.0, 0.0, 2.0, 5.0, 3.0]], max_steps=20, tol=0.0).trace)
    assert (np.diff(trace[np.isfinite(trace)]) > -1e-12).all()
    assert trace[20] > trace[0]


HELD = ("emission", "emission_noise")


def test_q_is_maximised_and_touches_the_log_likelihood(rng: np.random.Generator) -> None:
    """Of all parameters, and of those that are not held."""
    one, x, weight = model(), jem.Sequences.from_list(pieces()), jnp.array([1.0, 2.0, 0.5])
    _, statistics = e_step(one, x, weight)

    @jax.jit
    def along(model: Any, direction: Any, t: Any) -> Any:
        other = move(model, {n: t * d for n, d in direction.items()})
        return other.expected_log_prob(statistics), jnp.sum(weight * other.log_prob(x))

    slope = jax.jit(jax.jacfwd(along, 2))
    for held in ((), HELD):
        best = m_step(replace(one, held=held), statistics)
        direction = {name: rng.normal(size=leaf.shape) for name, leaf in coordinates(one).items()}
        for name in held:
            np.testing.assert_array_equal(getattr(best, name), getattr(one, name))
            direction[f".{name}"] *= 0
        best = replace(best, held=())
        assert abs(slope(best, direction, 0.0)[0]) < 1e-9
        q, value = slope(one, direction, 0.0)
        np.testing.assert_allclose(q, value, rtol=1e-10)
        start, top = along(one, direction, 0.0), along(best, direction, 0.0)
        for t in (-0.5, -0.01, 0.01, 0.5):
            moved = along(one, direction, t)
            assert moved[1] - start[1] > moved[0] - start[0]
            assert along(best, direction, t)[0] < top[0]


def test_parameters_come_from_the_statistics(rng: np.random.Generator) -> None:
    """The M-step of a model's own expected statistics is the model, whoever reads them."""
    one = model()
    for reader in (one, perturbed(one, rng)):
        for path, leaf in coordinates(m_step(reader, one.expected_statistics())).items():
            np.testing.assert_allclose(leaf, coordinates(one)[path], atol=1e-9, err_msg=path)


def test_expected_statistics_are_the_mean_of_many_draws() -> None:
    one, n = model(hidden=1, size=1), 40_000
    x = one.sample(jax.random.key(0), n, 2)
    _, drawn = e_step(one, jem.Sequences(x, np.full(n, 2)), jnp.full(n, 1 / n))
    for path, leaf in coordinates(one.expected_statistics()).items():
        np.testing.assert_allclose(coordinates(drawn)[path], leaf, atol=0.1, rtol=0.05, err_msg=path)


def test_m_step_is_total() -> None:
    one = model()
    nothing = jax.tree.map(jnp.zeros_like, one.expected_statistics())
    for statistics in (nothing, one.floor(pieces(), jnp.ones(3))):
        for path, leaf in coordinates(m_step(one, statistics)).items():
            np.testing.assert_array_equal(leaf, coordinates(one)[path])
    _, single = e_step(one, jem.Sequences.from_list(pieces()), jnp.array([0.0, 1e-30, 0.0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(m_step(one, single)))


def test_em_climbs_and_many_are_each_what_one_is() -> None:
    """Ragged sets of ragged sequences with gaps: `fit_many` = `fit`, one after the other, and none ever falls."""
    lengths = (14, 9), (5, 14)
    problems = [jem.Sequences.from_list(pieces(each, size=2, seed=i)) for i, each in enumerate(lengths)]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), model(5, 1, 2), model(6, 1, 2))
    fits = jem.fit_many(starts, problems, tol=1e-3, max_steps=12)
    for i, x in enumerate(problems):
        start = jax.tree.map(lambda leaf, i=i: leaf[i], starts)
        one = jem.fit(start, x, tol=1e-3, max_steps=12)
        trace = np.asarray(one.trace)[: int(one.steps) + 1]
        assert len(trace) > 4
        assert (np.diff(trace) > 0).all()
        np.testing.assert_allclose(one.log_likelihood, one.model.log_prob(x).sum(), rtol=1e-11)
        np.testing.assert_allclose(fits.log_likelihood[i], one.log_likelihood, rtol=1e-9)
        assert fits.status_name[i] == one.status_name
        np.testing.assert_allclose(fits.model.transition[i], one.model.transition, atol=1e-6)


def test_a_mixture_of_them_is_a_model() -> None:
    components, x = model(hidden=1, size=1, members=(3,)), jem.Sequences.from_list(pieces(size=1, gaps=False))
    mixture, weight = jem.Mixture([0.2, 0.3, 0.5], components), jnp.ones(3)
    each = [jax.tree.map(lambda leaf, k=k: leaf[k], components).log_prob(x) for k in range(3)]
    expected = np.log(np.einsum("k,ks->s", np.asarray(mixture.weights), np.exp(np.stack(each))))
    prior = jem.priors.Structured({"components": jem.priors.PseudoRows(0.1, components)}).statistics(mixture, x, weight)
    last = -np.inf
    for _ in range(3):
        log_prob, statistics = e_step(mixture, x, weight)
        objective = float(log_prob.sum() + mixture.expected_log_prob(prior))
        assert objective > last
        if last == -np.inf:
            np.testing.assert_allclose(log_prob, expected, rtol=1e-11)
        last, mixture = objective, m_step(mixture, add(statistics, prior))
    assert mixture.sample(jax.random.key(0), 4).shape == (4, 100, 1)


NILE = """1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100 1210
1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456 824 702 1120
1100 832 764 821 768 845 864 862 698 845 744 796 1040 759 781 865 845 944 984 897 822 1010 771 676 649
846 812 742 801 1040 860 874 848 890 744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746
919 718 714 740"""
FLOW = np.array(NILE.split(), float)


def level(noise: float, moves: float, start: float = 1e7) -> Any:
    one = [[1.0]]
    held = ("initial_mean", "initial_covariance", "transition", "emission", "emission_bias")
    return jem.LinearGaussianSSM([0.0], [[start]], one, [[moves]], one, [0.0], [[noise]], held=held)


def test_the_nile() -> None:
    """Durbin and Koopman (2012), section 2.2: 15,099 and 1,469.1, log-likelihood -632.54 with a diffuse start."""
    best = level(15098.518324096282, 1469.1763603095133, start=1e12)
    diffuse = best.log_prob([FLOW])[0] - best.log_prob([FLOW[:1]])[0]
    np.testing.assert_allclose(diffuse, -632.545625103041, atol=1e-6)
    # By an independent program, from a start of variance 1e7, which moves the top a little.
    start = level(1e4, 1e4)
    trace = np.asarray(jem.fit(start, FLOW, max_steps=10, tol=0.0).trace)
    known = [-645.8057502836054, -645.0754152114932, -644.6159957164251]
    np.testing.assert_allclose(trace[:3], known, atol=1e-8)
    np.testing.assert_allclose(trace[[5, 10]], [-643.7032437519439, -642.8284242869123], atol=1e-8)
    fit = jem.fit(start, FLOW, jem.SQUAREM(jem.EM()), tol=1e-12)
    assert fit.converged
    np.testing.assert_allclose(fit.log_likelihood, -641.5855783460869, atol=1e-9)
    found = float(fit.model.emission_noise[0, 0]), float(fit.model.transition_noise[0, 0])
    np.testing.assert_allclose(found, [15099.69, 1468.50], rtol=1e-6)
    np.testing.assert_allclose(found, [15099, 1469.1], rtol=1e-3)
    assert fit.model.transition[0, 0] == 1
    assert jem.free_parameters(fit.model) == 2


def diffuse_level(noise: float, moves: float) -> Any:
    return replace(level(noise, moves), diffuse=(True,))


def test_the_nile_with_a_diffuse_start() -> None:
    """At the top by 50 digits: what is fitted, its log-likelihood, and what the smoother says there."""
    best = diffuse_level(15098.518324096282, 1469.1763603095133)
    np.testing.assert_allclose(best.log_prob([FLOW])[0], -632.545625103041, atol=1e-9)
    np.testing.assert_allclose(best.log_prob([FLOW[:1]])[0], 0, atol=1e-12)
    limit = replace(level(15098.518324096282, 1469.1763603095133, start=1e12))
    for name in ("mean", "covariance"):
        np.testing.assert_allclose(getattr(best.smooth(FLOW), name), getattr(limit.smooth(FLOW), name), rtol=1e-6)
    np.testing.assert_array_equal(best.filter(FLOW).mean[0, 0], FLOW[:1])
    start = diffuse_level(1e4, 1e4)
    assert (np.diff(np.asarray(jem.fit(start, FLOW, max_steps=10, tol=0.0).trace)[:11]) > 0).all()
    for solver in (jem.SQUAREM(jem.EM()), jem.LBFGS()):
        fit = jem.fit(start, FLOW, solver, tol=1e-12)
        assert fit.converged, fit.status_name
        np.testing.assert_allclose(fit.log_likelihood, -632.545625103041, atol=1e-8)
        found = float(fit.model.emission_noise[0, 0]), float(fit.model.transition_noise[0, 0])
        np.testing.assert_allclose(found, [15098.518324096282, 1469.1763603095133], rtol=2e-5)
    assert jem.free_parameters(fit.model) == 2


def test_what_is_held_has_no_coordinates() -> None:
    start = level(12000.0, 2000.0)
    free, back = flat(start)
    assert free.shape == (2,)
    moved = back(free + 1)
    np.testing.assert_allclose(moved.emission_noise, np.exp(2) * start.emission_noise)
    np.testing.assert_array_equal(moved.initial_covariance, start.initial_covariance)


def test_float32_is_sharp() -> None:
    """An offset of 1e4 moves the bias and nothing else; ten thousand steps cost no digits; types stay."""
    rotation = 0.99 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    exact = jem.LinearGaussianSSM(
        [0.0, 0.0], np.eye(2), rotation, 1e-6 * np.eye(2), [[1.0, 0.0], [0.3, 1.0]], [0.0, 0.0], 1e-6 * np.eye(2)
    )
    x = np.asarray(exact.sample(jax.random.key(0), 1, 10_000)).astype(np.float32)
    # Numbers that are told apart in float32 with and without the offset.
    x = np.round(x * 128) / 128 + np.float32(1e4)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), exact)
    one = replace(single, emission_noise=single.emission_noise * 100)
    other = replace(one, emission_bias=one.emission_bias + jnp.float32(1e4))
    y = jem.Sequences(x - np.float32(1e4), [10_000])
    a, b = e_step(one, y, jnp.float32(1)), e_step(other, jem.Sequences(x, [10_000]), jnp.float32(1))
    np.testing.assert_array_equal(a[0], b[0])
    first, second = m_step(one, a[1]), m_step(other, b[1])
    for name in constraints.parameters(one):
        if name != "emission_bias":
            # The noise is that about the bias, which float32 rounds to a thousandth there.
            off = 2e-3 if name == "emission_noise" else 0
            np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=off, err_msg=name)
    assert {leaf.dtype for leaf in jax.tree.leaves((a, first))} == {jnp.dtype("float32")}

    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), one)
    truth = e_step(double, jem.Sequences(np.asarray(y.values, float), [10_000]), jnp.float64(1))
    np.testing.assert_allclose(a[0], truth[0], atol=0.02)
    best = m_step(double, truth[1])
    for name in ("transition", "transition_noise", "emission", "emission_noise"):
        scale = np.abs(getattr(best, name)).max()
        np.testing.assert_allclose(getattr(first, name), getattr(best, name), atol=2e-3 * scale, err_msg=name)


def test_dynamax_takes_the_same_step() -> None:
    """But for the initial covariance: it forgets to divide the square of the sum by the number of sequences."""
    peer = pytest.importorskip("dynamax.linear_gaussian_ssm", reason="dynamax is installed for Python 3.11 only")
    one = model(3)
    x = one.sample(jax.random.key(1), 3, 5)
    log_prob, statistics = e_step(one, jem.Sequences(x, np.full(3, 5)), jnp.ones(3))
    mine = m_step(one, statistics)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        its = peer.LinearGaussianSSM(HIDDEN, SIZE, has_dynamics_bias=False)
        start = its.initialize(
            jax.random.key(0),
            initial_mean=one.initial_mean,
            initial_covariance=one.initial_covariance,
            dynamics_weights=one.transition,
            dynamics_covariance=one.transition_noise,
            emission_weights=one.emission,
            emission_bias=one.emission_bias,
            emission_covariance=one.emission_noise,
        )
        found, values = jax.jit(jax.vmap(lambda y: its.e_step(start[0], y)))(x)
        best = its.m_step(*start, found, None)[0]
    np.testing.assert_allclose(log_prob, values, rtol=1e-9)
    theirs = {
        "initial_mean": best.initial.mean,
        "transition": best.dynamics.weights,
        "transition_noise": best.dynamics.cov,
        "emission": best.emissions.weights,
        "emission_bias": best.emissions.bias,
        "emission_noise": best.emissions.cov,
    }
    for name, value in theirs.items():
        np.testing.assert_allclose(getattr(mine, name), value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_paths_are_drawn_from_the_posterior() -> None:
    one, part = model(), pieces()[0]
    paths = kalman.sample_posterior(jax.random.key(0), one._system(), part, 20_000, 4)
    np.testing.assert_array_equal(paths[:, 4:], 0)
    _, mean, covariance = given(one, part[:4], 4)
    flat = np.asarray(paths[:, :4]).reshape(len(paths), -1)
    np.testing.assert_allclose(flat.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(flat.T), covariance, atol=0.06)


def _filtered(one: Any, x: np.ndarray) -> np.ndarray:
    """Each state given what was seen up to it."""
    return np.concatenate([given(one, x[: t + 1], t + 1)[1][-HIDDEN:] for t in range(len(x))])


def test_plain_functions_are_the_model() -> None:
    one, part = model(), pieces()[0]
    system, mask = one._system(), np.arange(5) != 2
    rest = pieces()[1:]
    x = jem.Sequences.from_list([part, *rest], mask=[mask, *(np.full(len(other), True) for other in rest)])
    np.testing.assert_allclose(kalman.log_likelihood(system, part, mask=mask), one.log_prob(x)[0], rtol=1e-12)
    smooth = kalman.smoother(system, part, mask=mask)
    np.testing.assert_allclose(smooth.covariance, one.smooth(x).covariance[0], atol=1e-12)
    np.testing.assert_allclose(
        kalman.filter(system, part, 2, mask=mask).mean[:2], one.filter(x).mean[0, :2], atol=1e-12
    )


def test_a_start_can_be_fitted() -> None:
    truth = jem.LinearGaussianSSM([0.0], [[1.0]], [[0.9]], [[0.2]], [[1.0], [2.0]], [50.0, 0.0], 0.1 * np.eye(2))
    x = jem.Sequences(truth.sample(jax.random.key(0), 1, 400), [400])
    starts = jem.LinearGaussianSSM.start(jax.random.key(1), x, 1, restarts=2)
    assert starts.batch_shape == (2,)
    fit = jem.fit(replace(starts, held=("initial_covariance", "transition_noise")), x, tol=1e-4)
    assert fit.converged
    assert fit.log_likelihood > truth.log_prob(x).sum() - 1
    np.testing.assert_allclose(fit.model.transition, [[0.9]], atol=0.08)


def test_it_can_be_saved(tmp_path: Any) -> None:
    one = level(2.0, 3.0)
    jem.save(tmp_path / "m.safetensors", one)
    back = jem.load(tmp_path / "m.safetensors")
    assert back.held == one.held
    for path, leaf in coordinates(back).items():
        np.testing.assert_array_equal(leaf, coordinates(one)[path])


ONE = [[1.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: level(-1.0, 1.0), "emission_noise is not positive definite"),
        (lambda: jem.LinearGaussianSSM([0.0], ONE, ONE, ONE, ONE, [0.0, 1.0], ONE), r"emission_bias has shape \(2,\)"),
        (lambda: jem.LinearGaussianSSM([0.0], ONE, ONE, ONE, ONE, [0.0], ONE, held=("x",)), "held names 'x'"),
        (lambda: level(1.0, 1.0).log_prob(np.zeros((3, 2))), r"x has steps of shape \(2,\)"),
        (lambda: jem.fit(level(1.0, 1.0), FLOW, labels=np.zeros((1, 100), int)), "labels cannot name them"),
        (lambda: jem.LinearGaussianSSM.start(jax.random.key(0), FLOW, 0), "states is 0"),
        (lambda: kalman.log_likelihood(level(1.0, 1.0)._system(), np.zeros((3, 2))), "must be .steps, 1."),
        (lambda: kalman.filter(level(1.0, 1.0)._system(), FLOW, 101), "length is 101"),
        (lambda: kalman.smoother(level(1.0, 1.0)._system(), FLOW, mask=[True]), "mask has shape"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
