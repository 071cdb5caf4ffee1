"""Lifetimes of which some have not ended yet: censored rows, and what goes wrong without them.

A row is (lower, upper): both the same if the end was seen, `upper = inf` if it was still to come. First the remission
times of 42 children with leukaemia, half of them under 6-mercaptopurine (Freireich et al. 1963; Gehan 1965): EM fills
in what is expected of the unseen, and its steps can be done by hand. Then a fleet of pumps, some of which fail early
and the others when they are worn out, while most are still running.

    python docs/examples/waiting_times.py
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxem as jem

TREATED = "10 7 32+ 23 22 6 16 34+ 32+ 25+ 11+ 20+ 19+ 6 17+ 35+ 6 13 9+ 6+ 10+"  # weeks; + is still in remission
CONTROL = "1 22 3 12 8 17 2 11 8 12 2 5 4 15 8 23 5 11 4 1 8"


def rows(weeks: str) -> np.ndarray:
    """(lower, upper) of each child."""
    return np.array([[float(w.rstrip("+")), np.inf if w.endswith("+") else float(w)] for w in weeks.split()])


@jax.jit
def em_step(model: jem.Censored, x: jax.Array) -> jem.Censored:
    """What is expected of each remission, and the rate that fits it."""
    return model.m_step(model.e_step(x)[1](jnp.ones(len(x))))


def remissions() -> None:
    """An exponential and a Weibull for each group."""
    treated, control = rows(TREATED), rows(CONTROL)
    model, means = jem.Censored(jem.Exponential(0.1)), [10.0]
    for _ in range(5):
        model = em_step(model, treated)
        # By hand: a child whose remission goes on is expected to have another `mean` weeks of it.
        means.append((treated[:, 0].sum() + 12 * means[-1]) / 21)
        sys.stdout.write(f"mean remission, weeks: EM {1 / model.base.rate:.3f}  by hand {means[-1]:.3f}\n")
        np.testing.assert_allclose(1 / model.base.rate, means[-1], rtol=1e-5)
    pace = (means[-1] - means[-2]) / (means[-2] - means[-3])
    sys.stdout.write(f"each change is {pace:.4f} of the one before: 12 of 21 children are censored\n")
    np.testing.assert_allclose(pace, 12 / 21)

    for name, group, known in (("6-MP", treated, 9 / 359), ("control", control, 21 / 182)):
        exponential = jem.fit(jem.Censored(jem.Exponential(0.05)), group, tol=1e-7)
        weibull = jem.fit(jem.Censored(jem.Weibull(1.0, 20.0)), group)
        rate, shape = float(exponential.model.base.rate), float(weibull.model.base.shape)
        gain = float(weibull.log_likelihood - exponential.log_likelihood)
        sys.stdout.write(f"{name:8s} {rate:.4f} a week; a Weibull has shape {shape:.2f} and gains {gain:.2f} nats\n")
        np.testing.assert_allclose(rate, known, rtol=2e-3)  # events / weeks at risk
        assert 1.3 < shape < 1.4
        assert 0.4 < gain < 1.5


def pumps() -> None:
    """A mixture of two kinds of failure, looked at after 1,000 hours: with censoring, and with two wrong ways round."""
    truth = jem.Mixture([0.3, 0.7], jem.Weibull([0.8, 4.0], [100.0, 1100.0]))
    hours = np.asarray(truth.sample(jax.random.key(0), 3000))
    failed = hours < 1000
    until = np.minimum(hours, 1000)
    ways = {
        "censored": (np.where(failed, hours, np.inf), np.ones(3000)),
        "failures only": (until, failed.astype(float)),
        "all failed at 1000": (until, np.ones(3000)),
    }
    sys.stdout.write(f"\n{failed.mean():.0%} of 3,000 pumps have failed\n")
    early, life = {}, {}
    for way, (upper, weight) in ways.items():
        seen = np.stack([until, upper], axis=1)
        start = jem.Mixture.start(jax.random.key(1), jem.Censored.of(jem.Weibull), seen, 2, weight=weight)
        model = jem.fit(start, seen, weight=weight).model
        late = int(jnp.argmax(model.components.base.scale))
        early[way], life[way] = 1 - float(model.weights[late]), float(model.components.base.scale[late])
        sys.stdout.write(f"{way:20s} {early[way]:.3f} fail early, the others by {life[way]:.0f} hours\n")
    sys.stdout.write("truth                0.300 fail early, the others by 1100 hours\n")
    assert abs(early["censored"] - 0.3) < 0.03
    assert abs(life["censored"] - 1100) < 40
    assert early["failures only"] > 0.4
    assert life["failures only"] < 1000
    assert life["all failed at 1000"] < 1010


if __name__ == "__main__":
    remissions()
    pumps()
