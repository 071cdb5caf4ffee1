"""The table of laws forgets nobody."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from table import EVERY, TABLE, Model

import jaxem as jem
from families import Example, kinds

for path in sorted(Path(__file__).parent.glob("test_*.py")):
    if path != Path(__file__):
        importlib.import_module(path.stem)

INTERFACES = {jem.Distribution, jem.Family, jem.ScalarFamily, jem.Hidden, jem.Latent}
MODELS = {value for value in vars(jem).values() if isinstance(value, type) and issubclass(value, jem.Distribution)}


def of(model: Model) -> type:
    """Which family (or structure) it is an example of."""
    return type(model.members(1) if isinstance(model, Example) else model.model())


def test_every_public_model_is_in_every_essential_law() -> None:
    essential = [law for law in TABLE.values() if law.essential]
    assert len(essential) >= 9
    for law in essential:
        met = set().union(*(kinds(model.model()) for model in law.concerns))
        assert MODELS - INTERFACES - met == set()
        assert list(law.concerns) == EVERY


@pytest.mark.parametrize("name", TABLE)
def test_every_law_meets_models_of_different_kinds(name: str) -> None:
    assert len({of(model) for model in TABLE[name].concerns}) >= 2
    assert len({model.name for model in TABLE[name].concerns}) == len(TABLE[name].concerns)
