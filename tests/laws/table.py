"""Which laws meet which models: each law says by a capability whom it concerns, and the pairs come from that.

`@law(SCALE)` runs a test on every model whose rows may be measured in other units: by `make slow`, or by `make test` if
the law is `essential`. `test_table.py` sees to it that nobody is forgotten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from families import MIXTURES, STRUCTURES, Example, Structure

Model = Example | Structure

EVERY: list[Model] = [*MIXTURES, *STRUCTURES]
"""Whatever has a likelihood."""
STARTED = [one for one in MIXTURES if one.family is not None]
"""Mixtures that start from data alone."""
LISTED = [one for one in MIXTURES if one.support is not None]
"""Whose rows can be listed, or put on a grid."""
SCALE = [one for one in MIXTURES if "scale" in one.moves]
"""Whose rows may be measured in other units."""
LOCATION = [one for one in MIXTURES if "location" in one.moves]
"""Whose rows may be counted from another zero."""
EXPECTING = [one for one in MIXTURES if hasattr(one.members(1), "expected_statistics")]
"""Whose members say the mean statistics of a row."""


@dataclasses.dataclass(frozen=True)
class Law:
    """Attributes: whom it `concerns`, and whether it is `essential`."""

    concerns: Sequence[Model]
    essential: bool


TABLE: dict[str, Law] = {}
"""By the names of the tests."""


def law(concerns: Sequence[Model], essential: bool = False) -> Callable[[Any], Any]:
    """Run a test on each of these models, one model after the other, so that its laws share compiled programs."""

    def of(test: Any) -> Any:
        TABLE[test.__name__] = Law(concerns, essential)
        marks = () if essential else (pytest.mark.slow,)
        models = [pytest.param(one, id=one.name, marks=marks) for one in concerns]
        return pytest.mark.parametrize("example", models, scope="module")(test)

    return of
