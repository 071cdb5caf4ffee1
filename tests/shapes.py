"""beartype as jaxtyping's import hook calls it, method by method, where it will not hear of `Self`."""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype

_TOWER = BeartypeConf(is_pep484_tower=True)  # a whole number may stand where a float is asked for


def checked(function: Any) -> Any:
    """`function` with its arguments and result checked against their annotations; `Self` may be anything.

    A constructor is not checked: it takes lists and integers, and a field's annotation says what they become.
    """
    if function.__qualname__.endswith("__init__"):
        return function
    annotations = getattr(function, "__annotations__", {})
    for name, annotation in annotations.items():
        if "Self" in str(annotation):
            annotations[name] = Any
    return beartype(function, conf=_TOWER)
