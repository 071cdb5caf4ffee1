"""Mixtures of experts: each response comes from one of K regressions, hidden, by shares that depend on the inputs."""

from __future__ import annotations

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core import linalg
from jaxem.core.arguments import whole
from jaxem.core.compilation import program
from jaxem.core.linalg import matmul
from jaxem.core.pytree import replace
from jaxem.distributions.base import Rows
from jaxem.distributions.joint import Joint
from jaxem.distributions.registry import structure
from jaxem.distributions.softmax import SoftmaxGate
from jaxem.latent.base import Latent, chosen, same_members
from jaxem.latent.mixture import Mixture
from jaxem.latent.prediction import Prediction, as_inputs, predictive


@structure
class MixtureOfExperts(Latent):
    """A mixture of experts: regressions whose shares a softmax gate takes from the inputs.

    log p(y | z) = log sum_k p(k | z, gate) p(y | z, experts[k])

    A row is the inputs and then the response. Source: Jacobs, Jordan, Nowlan and Hinton 1991; Jordan and Jacobs 1994
    for EM.

    Args:
        gate: a `SoftmaxGate` of K classes.
        experts: regressions with `batch_shape [..., K]`.

    Raises:
        ValueError: another number of experts than the gate has classes, or other inputs.

    >>> import jaxem as jem
    >>> gate = jem.SoftmaxGate([[-5.0]], [0.0])
    >>> model = jem.MixtureOfExperts(gate, jem.LinearRegression([[-1.0], [1.0]], [0.0, 0.0], [0.1, 0.1]))
    >>> model.predict([-2.0, 0.0, 2.0]).mean.round(2).tolist()
    [2.0, 0.0, 2.0]
    """

    gate: SoftmaxGate
    experts: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        Joint((self.gate, self.experts))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the members: that of the gate without its classes."""
        return self.gate.batch_shape[:-1]

    @property
    def child(self) -> Joint:
        """The gate and the experts, expert by expert."""
        return Joint((self.gate, self.experts))

    def coincides(self) -> Array:
        """Whether two experts have the same parameters."""
        return jnp.any(same_members(self.experts, jnp.ones(self.gate.batch_shape, bool)), axis=(-2, -1))

    @classmethod
    def start(
        cls,
        key: Any,
        family: Any,
        x: Any,
        experts: int,
        *,
        weight: Any = None,
        labels: Any = None,
        restarts: int | None = None,
        method: str = "mixed",
    ) -> Self:
        """A model to start from: a mixture of regressions, and a gate with slopes of zero.

        Args:
            key: a JAX random key, or a whole number as its seed.
            family: the kind of regression.
            x: `[n, P + 1]` rows, the response last.
            experts: K, two or more.
            weight, labels, restarts, method: as in `Mixture.start`.

        Raises:
            ValueError: as `Mixture.start`; fewer than two experts.

        >>> import jax, jaxem as jem
        >>> x = jax.numpy.stack([jax.numpy.linspace(-1, 1, 20), jax.numpy.abs(jax.numpy.linspace(-1, 1, 20))], axis=1)
        >>> jem.MixtureOfExperts.start(jax.random.key(0), jem.LinearRegression, x, 2).gate.coefficients.shape
        (1, 1)
        """
        if whole(experts, "experts") < 2:
            raise ValueError(f"MixtureOfExperts: experts is {experts}; a gate needs two at least")
        start = Mixture.start(key, family, x, experts, weight=weight, labels=labels, restarts=restarts, method=method)
        return _with_gate(start, cls)

    def potentials(self) -> Float[Array, "*batch"]:
        """The own potentials: a zero that nothing uses, as the gate is a child."""
        return jnp.zeros(self.batch_shape, self.gate.intercept.dtype)

    def evidence(self, child_log_prob: Float[Array, "*batch k n"], x: Rows) -> Float[Array, "*batch k n"]:
        """The evidence for each expert, from gate and response; zero for a row that was not seen."""
        seen = x.columns[0].seen
        if seen is None:
            return child_log_prob
        return jnp.where(seen, child_log_prob, -math.log(child_log_prob.shape[-2]))

    def log_normalizer(self, potentials: Any, evidence: Array, add: Any, x: Any) -> Float[Array, "*batch n"]:
        """The log-normaliser log sum_k p(k | z) p(y | z, k) of each row."""
        return add(evidence, -2)

    def with_counts(self, counts: Any, child: Joint) -> Self:
        """The gate and the experts after their M-steps."""
        return replace(self, gate=child.parts[0], experts=child.parts[1])

    def predict(self, inputs: Any) -> Prediction:  # type: ignore[override]
        """The response, given inputs: mean, variance, quantiles.

        Args:
            inputs: `[n, P]`, or `[n]` if there is one.
        """
        inputs = as_inputs(inputs, self)
        return predictive(self.gate.log_prob(inputs), self.experts, inputs)

    def sample(self, key: Array, n: int, inputs: Any = None) -> Float[Array, "*batch n d"]:
        """`n` rows from each member, `[*batch_shape, n, P + 1]`; as `LinearRegression.sample`."""
        where, which, what = jax.random.split(key, 3)
        dtype, members = self.gate.intercept.dtype, len(self.batch_shape)
        shape = (*self.batch_shape, n, self.event_shape[0] - 1)
        inputs = jax.random.normal(where, shape, dtype) if inputs is None else jnp.asarray(inputs, dtype)
        inputs = jnp.broadcast_to(inputs, shape)
        predictor = matmul(inputs, linalg.transpose(self.gate.coefficients)) + self.gate.intercept[..., None, :]
        logits = jnp.concatenate([predictor, jnp.zeros_like(predictor[..., :1])], axis=-1)
        expert = jax.random.categorical(which, logits)
        return chosen(self.experts.sample(what, n, inputs[..., None, :, :]), expert, members)

    def rows_like(self, key: Array, x: Float[Array, "n d"]) -> Float[Array, "*batch n d"]:
        """Responses to the inputs of x."""
        return self.sample(key, len(x), x[:, :-1])


@program(lambda start, cls: 0.0, static_argnums=1)
def _with_gate(start: Mixture, cls: Any) -> MixtureOfExperts:
    """Experts of a mixture, and a gate that has its weights whatever the inputs are."""
    # A share of zero would be an intercept of minus infinity.
    shares = jnp.log(start.weights + 0.1 / start.weights.shape[-1])
    intercept = shares[..., :-1] - shares[..., -1:]
    flat = jnp.zeros((*intercept.shape, start.event_shape[0] - 1), intercept.dtype)
    return cls(SoftmaxGate(flat, intercept), start.components)
