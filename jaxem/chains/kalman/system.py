"""A linear Gaussian state space, and sequences as its recursions read them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxem.core.pytree import module, static


@module
class System:
    """The parameters of a linear Gaussian state-space model.

    Attributes:
        initial_mean: `[H]`.
        initial_covariance: `[H, H]`.
        transition: `[H, H]`: the new state is this times the old.
        transition_noise: `[H, H]`, a covariance.
        emission: `[D, H]`.
        emission_bias: `[D]`.
        emission_noise: `[D, D]`, a covariance.
        diffuse: for each state, is nothing known of it at the start? Its mean and covariance then play no part. `()` if
            something is known of all.
    """

    initial_mean: Float[Array, "h"]
    initial_covariance: Float[Array, "h h"]
    transition: Float[Array, "h h"]
    transition_noise: Float[Array, "h h"]
    emission: Float[Array, "d h"]
    emission_bias: Float[Array, "d"]
    emission_noise: Float[Array, "d d"]
    diffuse: tuple[bool, ...] = static(default=())


@module
class Observed:
    """S sequences as the recursions read them.

    Attributes:
        values: `[T, D, S]`; a cell that was not seen holds zero.
        seen: `[T, D, S]` bool; nothing is seen beyond a length. `[T, D, 1]` if it is the same for all.
        length: `[S]`, or `[1]`.
    """

    values: Float[Array, "t d s"]
    seen: Bool[Array, "t d s1"]
    length: Int[Array, "s1"]


def observed(values: Float[Array, "s t d"], seen: Bool[Array, "s t"], length: Int[Array, "s"]) -> Observed:
    """Sequences in the layout of the recursions; a cell that is NaN was not seen.

    Args:
        values: of every step.
        seen: which steps were observed.
        length: how many steps are there.
    """
    values, seen, length = jnp.moveaxis(values, 0, -1), seen.T, jnp.asarray(length, jnp.int32)
    there = jnp.arange(len(values), dtype=jnp.int32)[:, None] < length[None]
    cells = (seen & there)[:, None] & ~jnp.isnan(values)
    return Observed(jnp.where(cells, values, 0), cells, length)
