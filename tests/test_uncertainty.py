"""Standard errors against closed forms, 50-digit arithmetic and published tables: ../shared/uncertainty_cases.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem as jem
from jaxem.core import linalg
from test_restrictions import FEDERAL_FUNDS

SHARED = Path(__file__).parents[2] / "shared"


def read(file: str, name: str) -> Any:
    path = SHARED / file
    if not path.exists():
        pytest.skip(f"{name}: its data stay out of the project, and {file} is not there")
    return next(c for c in json.loads(path.read_text())["cases"] if c["name"] == name)


def data(name: str) -> Any:
    return read("reference_cases.json", name)["data"]


def expected(name: str) -> Any:
    return read("uncertainty_cases.json", name)["expected"]


def close(found: Any, wanted: Any, rtol: float = 1e-6) -> None:
    np.testing.assert_allclose(np.ravel(found), np.ravel(wanted), rtol=rtol)


TIMES = np.arange(10.0), np.array([162, 267, 271, 185, 111, 61, 27, 8, 3, 1.0])
"""Days of the years 1910 to 1912 with so many death notices of women above eighty in The Times (Hasselblad 1969)."""


def times(dtype: Any = float) -> jem.Mixture:
    """At the maximum, to all digits."""
    rates = jnp.array([1.256095101224338, 2.6634043566324728], dtype)
    return jem.Mixture(jnp.array([0.3598853969849348, 0.6401146030150652], dtype), jem.Poisson(rates))


@pytest.mark.slow
def test_days_of_the_times() -> None:
    """50 digits; the rate of EM; the mean of all days by the delta method."""
    errors = jem.uncertainty(times(), TIMES[0], weight=TIMES[1])
    assert errors.status_name == "ok"
    assert errors.distance < 1e-6
    close(errors.standard_error.weights, [0.1946842986877128] * 2)
    close(errors.standard_error.components.rate, [0.3500297113968012, 0.250478270308623])
    close(errors.missing_information[:2], [0.9956662232260748, 0.7204181545728872], 1e-7)
    close(errors.missing_each.components.rate, [0.9740081062411173, 0.9394897836701305])
    close(errors.missing_each.weights, [0.9944543870980836] * 2)
    close(errors.delta(lambda m: m.weights @ m.components.rate), 0.04882919717084914)
    close(errors.delta(lambda m: m.components.rate[1] / m.components.rate[0]), 0.42950758401910805)
    covariance = errors.covariance_of(lambda m: (m.weights[0], m.components.rate))
    close(covariance[0], [0.037901976155526575, 0.06511120287288737, 0.04625957401237006])


@pytest.mark.slow
def test_days_of_the_times_from_scores() -> None:
    for kind, wanted in {
        "opg": [0.2063148587071547, 0.36961630501258264, 0.26545473226169697],
        "sandwich": [0.18375380188305662, 0.3316768372707451, 0.23639937366765768],
    }.items():
        errors = jem.uncertainty(times(), TIMES[0], weight=TIMES[1], kind=kind).standard_error
        close([errors.weights[0], *errors.components.rate], wanted)


@pytest.mark.slow
def test_a_fit_that_stops_early_is_polished_or_told() -> None:
    """EM crawls here: with `tol=3e-6` it stops 0.12 standard errors short, where errors are 8 % wrong."""
    fit = jem.fit(jem.Mixture([0.4, 0.6], jem.Poisson([1.0, 3.0])), TIMES[0], weight=TIMES[1], max_steps=20_000)
    polished = jem.uncertainty(fit, TIMES[0], weight=TIMES[1])
    assert polished.status_name == "ok"
    close(polished.standard_error.weights, [0.1946842986877128] * 2, 1e-3)
    early = jem.fit(jem.Mixture([0.4, 0.6], jem.Poisson([1.0, 3.0])), TIMES[0], weight=TIMES[1], tol=3e-6)
    as_it_is = jem.uncertainty(early, TIMES[0], weight=TIMES[1], polish=0)
    assert as_it_is.status_name == "not_settled"
    assert 0.1 < as_it_is.distance < 0.2
    assert abs(as_it_is.standard_error.weights[0] / 0.1946842986877128 - 1) > 0.05
    assert "smaller tol" in as_it_is.status_message


@pytest.mark.slow
def test_other_rows_than_those_of_the_fit_are_told() -> None:
    errors = jem.uncertainty(times(), TIMES[0], weight=TIMES[1][::-1].copy())
    assert errors.status_name in ("not_settled", "not_a_maximum")
    assert errors.status_message.index("x, weight, prior") < 200


@pytest.mark.slow
def test_equal_components_are_no_maximum() -> None:
    mean = float(TIMES[0] @ TIMES[1] / TIMES[1].sum())
    same = jem.Mixture([0.4, 0.6], jem.Poisson([mean, mean]))
    errors = jem.uncertainty(same, TIMES[0], weight=TIMES[1])
    assert errors.status_name == "not_a_maximum"
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(errors.standard_error))


@pytest.mark.slow
def test_the_times_in_float32() -> None:
    x, weight = (jnp.asarray(a, jnp.float32) for a in TIMES)
    errors = jem.uncertainty(times(jnp.float32), x, weight=weight)
    assert errors.status_name == "ok"
    assert {leaf.dtype for leaf in jax.tree.leaves(errors.standard_error)} == {jnp.dtype("float32")}
    close(errors.standard_error.components.rate, [0.3500297113968012, 0.250478270308623], 5e-3)


def linkage(p: float) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "examples"))
    try:
        from linkage import COUNTS, ROWS  # type: ignore[import-not-found]
        from linkage import linkage as model  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return model(p), ROWS, COUNTS


@pytest.mark.slow
def test_linkage() -> None:
    """Louis 1982: 377.5 of 435.3 units of information are observed."""
    wanted = 0.05146734920088868
    model, rows, counts = linkage(0.6268214978709824)
    errors = jem.uncertainty(model, rows, weight=counts)
    assert errors.status_name == "ok"
    close(errors.standard_error.p, wanted, 1e-9)
    assert np.isnan(errors.standard_error.seen.probs).all()
    close(errors.missing_information[0], 0.13277873374559893, 1e-8)
    close(1 / errors.covariance_of(lambda m: m.p), 377.51690039468724, 1e-8)
    ends = errors.interval(0.95)
    np.testing.assert_allclose([end.p for end in ends], [0.5218272667727063, 0.7210840648041474], atol=1e-8)
    ends = errors.interval(0.95, scale="plain")
    np.testing.assert_allclose([end.p for end in ends], [0.5259473470574942, 0.7276956486844706], atol=1e-8)
    test = errors.wald(lambda m: m.p, 0.5)
    close(test.statistic, ((0.6268214978709824 - 0.5) / wanted) ** 2, 1e-8)
    assert test.degrees == 1
    assert 0.01 < test.p_value < 0.02
    for kind in ("opg", "sandwich"):
        close(jem.uncertainty(model, rows, weight=counts, kind=kind).standard_error.p, wanted, 1e-8)
    assert "p" in repr(errors)


@pytest.mark.slow
def test_two_coins_that_are_picked_fairly() -> None:
    x = np.array([5.0, 9.0, 8.0, 4.0, 7.0])
    model = jem.hold(jem.Mixture([0.5, 0.5], jem.Binomial(10, [0.796789066922647, 0.5195831201451351])), "weights")
    for kind, wanted in {
        "observed": [0.10149921711966255, 0.13076890326784413],
        "opg": [0.1362157350422006, 0.1717777730514285],
        "sandwich": [0.07563306569626511, 0.09955365525421189],
    }.items():
        errors = jem.uncertainty(model, x, kind=kind).standard_error
        close(errors.components.probs, wanted)
        assert np.isnan(errors.weights).all()


@pytest.mark.slow
def test_old_faithful() -> None:
    wanted, x = expected("faithful_vvv2_se"), np.array(data("old_faithful_gmm")["X"])
    at = wanted["params"]
    covariance = [[[at[f"S{k}_11"], at[f"S{k}_12"]], [at[f"S{k}_12"], at[f"S{k}_22"]]] for k in (1, 2)]
    means = [[at[f"mu{k}_1"], at[f"mu{k}_2"]] for k in (1, 2)]
    model = jem.Mixture([at["w1"], 1 - at["w1"]], jem.Gaussian(means, covariance))
    for kind in ("observed", "opg", "sandwich"):
        errors = jem.uncertainty(model, x, kind=kind)
        assert errors.status_name == "ok"
        found = errors.standard_error
        shared = [found.components.covariance[k][pair] for k in (0, 1) for pair in ((0, 0), (0, 1), (1, 1))]
        name = "se" if kind == "observed" else f"se_{kind}"
        close([found.weights[0], *found.components.mean.ravel(), *shared], list(wanted[name].values()), 1e-5)
        close(errors.missing_information[0], 0.2407656776, 1e-5)
    assert len(errors.table()) == 2 + 4 + 6
    assert errors.coordinates[-1] == ("components.covariance", (1, 1, 0))


@pytest.mark.slow
def test_earthquakes() -> None:
    """Everything given that the first year is in the first state, as it must be in one series."""
    wanted, x = expected("earthquakes2_se"), np.array(data("earthquakes_poisson_hmm_free_pi")["x"], float)
    at, se = wanted["params"], wanted["se"]
    transition = [[1 - at["g12"], at["g12"]], [at["g21"], 1 - at["g21"]]]
    model = jem.HMM([1 - 1e-40, 1e-40], transition, jem.Poisson([at["lambda1"], at["lambda2"]]))
    errors = jem.uncertainty(model, x)
    assert errors.status_name == "on_boundary"
    found = errors.standard_error
    close(found.emission.rate, [se["lambda1"], se["lambda2"]])
    close(found.transition, [[se["g12"]] * 2, [se["g21"]] * 2])
    assert np.isnan(found.initial).all()
    close(errors.missing_information[0], 0.7677896734)
    assert np.isnan(errors.missing_information[-1])
    close(errors.delta(lambda m: m.transition[1, 0] / (m.transition[0, 1] + m.transition[1, 0])), 0.1610713105744321)
    close(errors.delta(lambda m: 1 / m.transition[0, 1]), wanted["delta_se_dwell1"])
    with pytest.raises(ValueError, match=r"1 rows \(sequences, for a model of those\) for 4 parameters"):
        jem.uncertainty(model, x, kind="opg")


@pytest.mark.slow
def test_speed_and_accuracy() -> None:
    wanted, x = expected("depmix_speed_one_se"), np.array(data("depmix_speed_gaussian_hmm")["rt"])[:, None]
    at, se = wanted["params"], wanted["se"]
    transition = [[1 - at["g12"], at["g12"]], [at["g21"], 1 - at["g21"]]]
    emission = jem.DiagonalGaussian([[at["mean1"]], [at["mean2"]]], [[at["var1"]], [at["var2"]]])
    errors = jem.uncertainty(jem.HMM([0.0, 1.0], transition, emission), x)
    found = errors.standard_error
    close(found.emission.mean, [se["mean1"], se["mean2"]], 2e-6)
    close(found.emission.variance, [se["var1"], se["var2"]], 2e-6)
    close(found.transition, [[se["g12"]] * 2, [se["g21"]] * 2], 2e-6)
    close(errors.delta(lambda m: jnp.sqrt(m.emission.variance)), [se["sd1"], se["sd2"]], 2e-6)


@pytest.mark.slow
def test_the_nile() -> None:
    wanted, x = expected("nile_se"), np.array(data("nile_local_level")["y"], float)[:, None]
    for name, initial in {"diffuse": 1.0, "P1_1e7": 1e7}.items():
        at, se = wanted[name]["params"], wanted[name]["se"]
        model = jem.LinearGaussianSSM(
            [0.0], [[initial]], [[1.0]], [[at["s2eta"]]], [[1.0]], [0.0], [[at["s2eps"]]],
            held=("initial_mean", "initial_covariance", "transition", "emission", "emission_bias"),
            diffuse=name == "diffuse",
        )  # fmt: skip
        errors = jem.uncertainty(model, [x])
        close(errors.standard_error.emission_noise, se["s2eps"])
        close(errors.standard_error.transition_noise, se["s2eta"])
        if name == "P1_1e7":
            close(errors.missing_information, wanted["P1_1e7_missing_information"])


@pytest.mark.slow
def test_cholesterol() -> None:
    """A Gaussian with missing cells: the fractions of norm2 (Schafer 1997)."""
    wanted, found = expected("cholesterol_fmi"), read("reference_cases.json", "mvn_missing_cholesterol")
    x = next(value for name, value in found["data"].items() if name.startswith("X"))
    x = np.array([[np.nan if cell is None else cell for cell in row] for row in x], float)
    centre, spread = np.nanmean(x, axis=0), np.nanvar(x, axis=0)
    fit = jem.fit(jem.Gaussian(centre, np.diag(spread)), x, tol=1e-14, max_steps=5000)
    errors = jem.uncertainty(fit, x)
    close(errors.standard_error.mean, wanted["se_mean"])
    np.testing.assert_allclose(errors.missing_information[:6], wanted["eigenvalues"], rtol=1e-6, atol=1e-7)
    assert errors.status_name == "ok"


@pytest.mark.slow
def test_two_lines_of_flexmix() -> None:
    wanted, rows = expected("npreg_se"), data("flexmix_NPreg")
    z, y = np.array(rows["x"]), np.array(rows["yn"])
    x, at = np.column_stack([z, z**2, y]), wanted["params"]
    lines = jem.LinearRegression(
        [[at[f"b{k}1"], at[f"b{k}2"]] for k in (1, 2)], [at["b10"], at["b20"]], [at["var1"], at["var2"]]
    )
    model = jem.Mixture([at["w1"], 1 - at["w1"]], lines)
    for kind in ("observed", "opg", "sandwich"):
        found = jem.uncertainty(model, x, kind=kind).standard_error
        lines_found = [(found.components.intercept[k], *found.components.coefficients[k]) for k in (0, 1)]
        se = wanted["se" if kind == "observed" else f"se_{kind}"]
        close([found.weights[0], *np.ravel(lines_found), *found.components.variance], list(se.values()), 2e-6)


@pytest.mark.slow
def test_federal_funds() -> None:
    """Stata [TS] mswitch: the initial distribution is the stationary one, and states share a variance."""
    emission = jem.TiedGaussian([[3.708770039725774], [9.55679338420893]], [[4.4418165940556955]])
    transition = [[0.9820937980912979, 1 - 0.9820937980912979], [0.0503587329521209, 1 - 0.0503587329521209]]
    model = jem.tie(jem.HMM([0.7, 0.3], transition, emission), "initial", to="stationary")
    errors = jem.uncertainty(model, FEDERAL_FUNDS[:, None])
    found = errors.standard_error
    assert errors.status_name == "ok"
    close(found.transition[:, 0], [0.010400255395086652, 0.026843398037498484])
    close(found.emission.mean, [0.1767083381569804, 0.2999889264091362])
    close(found.emission.covariance, 0.4251759845863901)
    assert np.isfinite(found.initial).all()
    free = jem.HMM([1 - 1e-30, 1e-30], [[0.9804724801241146, 1 - 0.9804724801241146],
                                        [0.0465452787969338, 1 - 0.0465452787969338]],
                   jem.TiedGaussian([[3.707776101453905], [9.554184226728443]], [[4.442201195233294]]))  # fmt: skip
    found = jem.uncertainty(free, FEDERAL_FUNDS[:, None]).standard_error
    close(found.transition[:, 0], [0.011153767499701053, 0.026545097137248633])


@pytest.mark.slow
def test_censored_remissions() -> None:
    """Gehan 1965: nine of 21 ended; rate / 3, and 12 of 21 parts of the information are missing."""
    rows = data("gehan_censored_exponential")["6-MP"]
    time, event = np.array(rows["time"], float), np.array(rows["event"]) > 0
    x = np.column_stack([time, np.where(event, time, np.inf)])
    model = jem.Censored(jem.Exponential(0.025069637883008356))
    for kind, wanted in {"observed": 0.008356545961002786, "opg": 0.00852451624387757,
                         "sandwich": 0.008191885427927505}.items():  # fmt: skip
        errors = jem.uncertainty(model, x, kind=kind)
        close(errors.standard_error.base.rate, wanted)
        close(errors.missing_information, 12 / 21)


@pytest.mark.slow
def test_insect_sprays() -> None:
    """R: glm and sandwich."""
    case = read("uncertainty_cases.json", "insectsprays_sandwich")
    counts, sprays = zip(*case["data"]["count_spray"], strict=True)
    dummies = np.array([[spray == other for other in "BCDEF"] for spray in sprays], float)
    y = np.array(counts, float)
    level = {spray: np.log(y[np.array(sprays) == spray].mean()) for spray in "ABCDEF"}
    model = jem.PoissonRegression([level[s] - level["A"] for s in "BCDEF"], level["A"])
    x = np.column_stack([dummies, y])
    for kind in ("observed", "sandwich"):
        found = jem.uncertainty(model, x, kind=kind).standard_error
        close([found.intercept, *found.coefficients], case["expected"][f"se_{kind}"])


@pytest.mark.slow
def test_clusters_are_sums_of_scores() -> None:
    """A mean: (X'X)^-1 sum of squared sums of residuals; duplicated rows of a cluster change nothing."""
    x = np.array([1.0, 2.0, 4.0, 7.0, 3.0, 6.0])
    firm = ["a", "a", "b", "b", "c", "c"]
    model = jem.DiagonalGaussian(x.mean()[None], x.var()[None])
    errors = jem.uncertainty(model, x[:, None], cluster=firm)
    sums = (x - x.mean()).reshape(3, 2).sum(1)
    close(errors.standard_error.mean, np.sqrt((sums**2).sum()) / 6, 1e-9)
    twice = jem.uncertainty(model, np.tile(x, 2)[:, None], cluster=firm + firm)
    close(twice.standard_error.mean, errors.standard_error.mean, 1e-9)
    with pytest.raises(ValueError, match="cluster has a null in row 1; every row must be in a cluster"):
        jem.uncertainty(model, x[:, None], cluster=["a", None, "b", "b", "c", "c"])
    with pytest.raises(ValueError, match="there are 1 clusters for 2 parameters"):
        jem.uncertainty(model, x[:, None], cluster=["a"] * 6)


@pytest.mark.slow
def test_weights_of_a_survey_have_no_scale() -> None:
    """Frequencies twice as large halve the covariance; weights of a survey leave it."""
    x, weight = np.array([0.0, 1.0, 3.0, 4.0]), np.array([1.0, 2.0, 1.0, 3.0])
    model = jem.Poisson(float(x @ weight / weight.sum()))
    one, two = (jem.uncertainty(model, x, weight=k * weight).covariance for k in (1, 2))
    close(two, one / 2, 1e-12)
    one, two = (jem.uncertainty(model, x, weight=k * weight, weights="sampling").covariance for k in (1, 2))
    close(two, one, 1e-12)
    residual = (weight * (x - model.rate)) @ (weight * (x - model.rate))
    close(one, residual / (weight @ x) ** 2, 1e-9)


@pytest.mark.slow
def test_a_prior_is_as_good_as_rows() -> None:
    """Pseudo-statistics of rows count as those rows, but for the scores of a sandwich."""
    x, more = np.array([1.0, 4.0, 3.0]), np.array([2.0, 6.0])
    both = np.concatenate([x, more])
    model = jem.Poisson(both.mean())
    prior = model.statistics(jnp.asarray(more), jnp.ones(2))
    close(jem.uncertainty(model, x, prior=prior).covariance, jem.uncertainty(model, both).covariance, 1e-9)
    found = jem.uncertainty(model, x, prior=prior, kind="sandwich").covariance
    close(found, np.sum((x - model.rate) ** 2) / both.sum() ** 2, 1e-9)


@pytest.mark.slow
def test_what_is_held_altogether_is_refused() -> None:
    with pytest.raises(ValueError, match="no free parameters"):
        jem.uncertainty(jem.hold(jem.Poisson(2.0), "rate"), np.array([1.0, 2.0]))


@pytest.mark.slow
def test_many_are_each_by_itself() -> None:
    """A collapsed problem and one on other data change no other."""
    rng = np.random.default_rng(0)
    xs = [rng.poisson(3.0, 40).astype(float) for _ in range(3)] + [rng.poisson(3.0, 25).astype(float)]
    xs[1] = np.where(rng.random(40) < 0.5, 0.0, 90.0)
    start = jem.Mixture(np.full((4, 2), 0.5), jem.Poisson(np.tile([1.0, 6.0], (4, 1))))
    fits = jem.fit_many(start, xs, tol=1e-10, max_steps=5000)
    many = jem.uncertainty_many(fits, xs)
    assert many.status.shape == (4,)
    assert many.standard_error.components.rate.shape == (4, 2)
    for i in (0, 1):
        one = jem.uncertainty(jax.tree.map(lambda leaf, i=i: leaf[i], fits.model), xs[i])
        assert one.status == many.status[i]
        np.testing.assert_allclose(many.covariance[i], one.covariance, rtol=1e-6, atol=1e-12)
    assert "4 models" in repr(many)
    assert len(many.table()) == 16


def test_a_mean_of_counts() -> None:
    """The root of rate / n, an interval on the scale of logarithms, nothing missing."""
    errors = jem.uncertainty(jem.Poisson(4.0), np.array([2.0, 3.0, 5.0, 6.0]))
    assert errors.status_name == "ok"
    close(errors.standard_error.rate, 1.0, 1e-12)
    close([end.rate for end in errors.interval(0.95)], 4 * np.exp([-0.48999099613501, 0.48999099613501]), 1e-12)
    for words, call in {
        "level is 1.2; it must be above 0 and below 1": lambda: errors.interval(1.2),
        "scale is 'log'; it must be 'natural' or 'plain'": lambda: errors.interval(scale="log"),
        "value holds 2 numbers and the function 1": lambda: errors.wald(lambda m: m.rate, [1.0, 2.0]),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="pass a function of the model"):
        errors.delta(3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("kind is 'huber'; it must be", {"kind": "huber"}),
        ("weights is 'survey'; it must be", {"weights": "survey"}),
        ("use kind='sandwich'", {"weights": "sampling", "kind": "observed"}),
        ("has no clusters", {"cluster": [0, 1, 2], "kind": "observed"}),
        ("cluster has shape", {"cluster": [0, 1]}),
        ("cluster has a null in row 1", {"cluster": ["a", None, "b"]}),
    ],
)
def test_bad_input(words: str, given: Any) -> None:
    with pytest.raises(ValueError, match=words):
        jem.uncertainty(jem.Poisson(2.0), np.array([1.0, 2.0, 3.0]), **given)


def test_eigenvalues_are_those_of_numpy() -> None:
    """Of sizes even and odd, with equal ones and zeros among them; in float32 to its digits."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 8):
        matrices = rng.normal(size=(3, size, size))
        matrices = matrices + np.swapaxes(matrices, 1, 2)
        matrices[0] = np.eye(size)
        wanted = np.linalg.eigvalsh(matrices)[:, ::-1]
        np.testing.assert_allclose(linalg.eigenvalues(jnp.asarray(matrices)), wanted, atol=1e-12)
        narrow = linalg.eigenvalues(jnp.asarray(matrices, jnp.float32))
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, wanted, atol=2e-5)
