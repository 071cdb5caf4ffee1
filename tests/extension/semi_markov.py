"""A hidden semi-Markov model, as a user writes it: how long a state lasts is a distribution of its own."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem.core.constraints import parameter, simplex
from jaxem.core.pytree import module, replace, static
from jaxem.core.semirings import apart, log_sum
from jaxem.distributions.base import Distribution
from jaxem.distributions.statistics.moments import shares
from jaxem.latent.base import log_potential
from jaxem.latent.sequence_model import SequenceModel


@module
class SemiMarkov(SequenceModel):
    """A hidden Markov model with explicit durations (Ferguson 1980; Guedon 2003).

    p(x, z) = product over segments of p(state | last state) p(duration - 1 | state) prod_t p(x_t | state)

    A sequence begins with a segment. Its last segment is censored on the right: it lasts at least as long as is seen.

    Args:
        initial: `[..., K]`, on the simplex.
        transition: `[..., K, K]`, each row on the simplex; with a zero on the diagonal a segment is a whole stay.
        duration: a family of whole numbers from 0 upward, `batch_shape [..., K]`: the steps of a segment after its
            first. Segments of more than `longest` steps have probability zero.
        emission: any distribution with `batch_shape [..., K]`.
        longest: D, the most steps of a segment.
    """

    initial: Float[Array, "*batch k"] = parameter(simplex, axes=("state",))
    transition: Float[Array, "*batch k k"] = parameter(simplex, axes=("state", "state"))
    duration: Distribution
    emission: Distribution
    longest: int = static(default=10)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.initial.shape[:-1]

    @property
    def child(self) -> Distribution:
        return self.emission

    @property
    def children(self) -> dict[str, Distribution]:
        return {"emission": self.emission, "duration": self.duration}

    def child_data(self, x: Any) -> dict[str, Any]:
        return {"emission": x.rows, "duration": self.duration.observe(jnp.arange(self.longest, dtype=jnp.int32))}

    def child_weight(self, x: Any, weight: Array) -> dict[str, Array]:
        return {"emission": super().child_weight(x, weight), "duration": jnp.ones(self.longest, weight.dtype)}

    def potentials(self) -> tuple[Array, Array]:
        return log_potential(self.initial), log_potential(self.transition)

    def log_normalizer(self, potentials: tuple[Array, Array], evidence: dict[str, Array], add: Any, x: Any) -> Array:
        def one(potentials: tuple[Array, Array], evidence: dict[str, Array]) -> Float[Array, "s"]:
            steps, lasts = self.time_first(evidence["emission"], x), evidence["duration"]
            return over_segments(*potentials, lasts, steps, x.length, add)

        for _ in self.batch_shape:
            one = jax.vmap(one)
        return one(potentials, evidence)

    def with_counts(self, counts: tuple[Array, Array], child: dict[str, Distribution]) -> Self:
        initial, transition = shares(counts[0], self.initial), shares(counts[1], self.transition)
        return replace(self, initial=initial, transition=transition, **child)


def over_segments(
    initial: Float[Array, "k"],
    transition: Float[Array, "k k"],
    lasts: Float[Array, "k d"],
    steps: Float[Array, "t k s"],
    length: Array,
    add: Any,
) -> Float[Array, "s"]:
    """The sum over all segmentations of each sequence. What comes after it is summed out, whatever `add` is."""
    k, longest = lasts.shape
    longer = jnp.triu(jnp.ones((longest, longest), bool))
    at_least = log_sum(jnp.where(longer[None], lasts[:, None], -jnp.inf), -1)
    begins = jnp.broadcast_to(initial[:, None], steps.shape[1:])
    open_segments = jnp.full((k, longest, steps.shape[2]), -jnp.inf, steps.dtype)  # by state and steps so far

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (begins, before), (evidence, t) = carry, now
        grown = jnp.concatenate([begins[:, None], before[:, :-1]], axis=1) + evidence[:, None]
        ends = apart(add, 2 * t)(grown + lasts[..., None], 1)
        follow = apart(add, 2 * t + 1)(ends[:, None] + transition[..., None], 0)
        within = t < length
        return (jnp.where(within[None], follow, begins), jnp.where(within[None, None], grown, before)), None

    times = jnp.arange(len(steps), dtype=jnp.int32)
    (_, last), _ = jax.lax.scan(step, (begins, open_segments), (steps, times))
    return add((last + at_least[..., None]).reshape(k * longest, -1), 0)
