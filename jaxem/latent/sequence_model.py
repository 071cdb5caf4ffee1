"""Models of sequences: a row is a sequence, and the child reads its steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.core.arguments import as_key
from jaxem.core.linalg import lead
from jaxem.core.pytree import module, replace, static
from jaxem.data.missing import known_locally
from jaxem.data.sequences import Sequences, as_sequences
from jaxem.distributions.base import Labelled, type_of
from jaxem.latent.base import Latent


@module
class Steps:
    """Sequences as the child reads them: every step a row, time first.

    Attributes:
        rows: the child's own observed data, `T x S` rows.
        length: `[S]`.
        seen: `[T, S]` bool: a step that is there and was observed.
        axis: as that of `Sequences`.
    """

    rows: Any
    length: Int[Array, "s"]
    seen: Array
    axis: Any = static(default=None)


class SequenceModel(Latent):
    """A latent structure whose rows are sequences, and whose child reads the steps of all of them.

    What you write: what `Latent` asks for, with `log_normalizer(potentials, evidence [..., K, T x S], add, x)` giving
    `[..., S]` (`time_first` has the evidence in the order of time, `x.length` says where each sequence ends); with
    several children `child_data` and `child_weight`, of which `x.rows` and those here are the first's; to impute draws,
    `drawn_rows`.

    What you get: sequences of any lengths, with steps and cells that were not observed, weights of sequences, labels of
    steps, `posterior` `[..., S, T, K]`, `decode` and `predict` `[..., S, T]`, and `impute`.
    """

    def observe(self, x: Any) -> Any:
        """Sequences (see `Sequences.from_list`), a list of arrays, or one array, which is one sequence."""
        if isinstance(x, Labelled):
            labels = x.labels if isinstance(x.x, Steps) else jnp.swapaxes(x.labels, 0, 1).ravel()
            return Labelled(self.observe(x.x), labels)
        if isinstance(x, Steps):
            return x
        return _observed(self, self.read(x))

    def read(self, x: Any) -> Sequences:
        return as_sequences(x, self.event_shape, type_of(self))

    def check(self, x: Sequences, weight: Array, alone: bool) -> None:
        here = x.local()
        steps = jax.device_put((here.alone().rows(), here.weight_of_steps(known_locally(weight))))
        self.child.check(*steps, alone)

    def child_data(self, x: Any) -> Any:
        return x.rows

    def with_child_data(self, x: Any, data: Any) -> Any:
        return replace(x, rows=self._first(data))

    def child_weight(self, x: Any, weight: Array) -> Array:
        return jnp.where(x.seen, weight[None], 0).ravel()

    def evidence(self, child_log_prob: Any, x: Any) -> Any:
        """The evidence for each state: zero at steps that were not observed."""
        steps = self._first(child_log_prob)
        return self._with_first(child_log_prob, jnp.where(lead(x.seen.ravel(), steps.ndim), steps, 0))

    def time_first(self, steps: Float[Array, "k n"], x: Any) -> Float[Array, "t k s"]:
        """Values of each step in each state, time first, as a loop over time takes them."""
        return jnp.swapaxes(steps.reshape(len(steps), *x.seen.shape), 0, 1)

    def per_row(self, values: Array, x: Any) -> Array:
        """Values of steps `[..., T x S]` as `[..., S, T]`."""
        return jnp.swapaxes(values.reshape(*values.shape[:-1], *x.seen.shape), -1, -2)

    def impute(self, x: Any, key: Any = None) -> Sequences:
        """Sequences with every gap filled, whole steps among them; what was seen stays as it is.

        Args:
            x: sequences.
            key: as in `Distribution.impute`; draws are made given the whole sequence.

        Raises:
            ValueError: the model is a batch of several.
        """
        if self.batch_shape:
            raise ValueError(f"impute needs one model; this is a batch of shape {self.batch_shape}")
        return _impute(self, self.read(x), None if key is None else as_key(key))


@partial(jax.jit, inline=True)
def _observed(model: SequenceModel, x: Sequences) -> Steps:
    """One program."""
    return Steps(model.child.observe(x.rows()), x.length, x.seen.T, x.axis)


@jax.jit
def _impute(model: SequenceModel, x: Sequences, key: Array | None) -> Sequences:
    there = x.seen.reshape(*x.seen.shape, *(1 for _ in x.values.shape[2:]))
    seen = there & ~jnp.isnan(x.values)
    # A step that was not observed is one more pattern.
    gaps = replace(x, values=jnp.where(there, x.values, jnp.nan), patterns=2 * max(x.patterns, 1))
    data = model.observe(gaps)
    if key is None:
        rows = model.expected_rows(data, jnp.ones(len(x), x.values.dtype))
    else:
        rows = model.drawn_rows(key, data, data.seen.size)
    values = jnp.swapaxes(rows.reshape(x.steps, len(x), *x.values.shape[2:]), 0, 1)
    return replace(x, values=jnp.where(seen, x.values, values), mask=None, patterns=0)
