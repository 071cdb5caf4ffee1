"""Supports: which values a family can produce, said once for the family, the checks and the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Support:
    """The finite numbers that a family can produce.

    Attributes:
        name: the set, in words: "numbers above 0".
        contains: finite numbers, in an array of JAX or NumPy -> which of them are in it.
        example: one that is, whatever the parameters; it stands in the place of missing rows.
        advice: what to do about a number that is not.
        outside: what such a number is, after "it": "is below zero"; made of the name if it is not said.
        words: do `true` and `false` stand for 1 and 0 in a table?
        infinite: may a cell of a table be infinite?

    >>> import jax.numpy as jnp, jaxem as jem
    >>> support = jem.Support("numbers from 0 upward", lambda x: x >= 0)
    >>> support.holds(jnp.array([-1.0, 2.0, jnp.inf])).tolist(), support.outside
    ([False, True, False], 'is not among numbers from 0 upward')
    """

    name: str
    contains: Callable[[Any], Any]
    example: Any = 0.0
    advice: str = "mend it, or choose another --family"
    outside: str = ""
    words: bool = False
    infinite: bool = False

    def __post_init__(self) -> None:
        if not self.outside:
            object.__setattr__(self, "outside", f"is not among {self.name}")

    def holds(self, values: Any) -> Any:
        """Which of some numbers, finite or not, are in it."""
        return (abs(values) < math.inf) & self.contains(values)


FINITE = Support("finite numbers", lambda x: x == x, outside="is not a number")
FROM_ZERO = Support("numbers from 0 upward", lambda x: x >= 0, outside="is below zero")
ABOVE_ZERO = Support("numbers above 0", lambda x: x > 0, 1.0, outside="is not above zero")
BETWEEN = Support("numbers between 0 and 1", lambda x: (x > 0) & (x < 1), 0.5, outside="is not between 0 and 1")
COUNT = Support(
    "whole numbers from 0 upward", lambda x: (x >= 0) & (x % 1 == 0), outside="is not a count (0, 1, 2, ...)"
)
YES_NO = Support("0 or 1", lambda x: (x == 0) | (x == 1), outside="is neither 0 nor 1", words=True)
ANGLE = Support(
    "angles in radians",
    lambda x: abs(x) <= 2 * math.pi,
    advice="divide degrees by 57.29578",
    outside="is no angle in radians",
)
SHARES = Support(
    "sums of one", lambda x: abs(x - 1) <= 1e-5, 1.0, advice="divide each row by its sum", outside="is not one"
)
END = dataclasses.replace(FINITE, infinite=True)
POSITIVE_END = dataclasses.replace(FROM_ZERO, infinite=True)
