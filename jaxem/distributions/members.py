"""Parameters of one number for each member, brought to one shape."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxem.core.constraints import parameters
from jaxem.distributions.base import Family


class ScalarParameters(Family):
    """A family whose parameters are numbers: one given for all members is given to each.

    >>> import jaxem as jem
    >>> jem.VonMises(0.0, [1.0, 2.0]).mean.tolist()
    [0.0, 0.0]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        values: dict[str, Any] = {name: getattr(self, name) for name in parameters(self)}
        shape = jnp.broadcast_shapes(*(value.shape for value in values.values()))
        for name, value in values.items():
            object.__setattr__(self, name, jnp.broadcast_to(value, shape))
