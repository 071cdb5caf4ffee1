"""Every public object says what it is, and shows it."""

from __future__ import annotations

import inspect

import pytest

import jaxem as jem

PUBLIC = [name for name in vars(jem) if not name.startswith("_") and not inspect.ismodule(getattr(jem, name))]
ABSTRACT = {"Distribution", "Family", "Hidden", "Latent", "Labelled", "Fit"}
"""Interfaces, and what functions return: shown where they are used."""


@pytest.mark.parametrize("name", PUBLIC)
def test_has_a_docstring_with_an_example(name: str) -> None:
    text = inspect.getdoc(getattr(jem, name)) or ""
    assert len(text.splitlines()[0]) >= 10
    assert name in ABSTRACT or ">>> " in text


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isclass(getattr(jem, n))])
def test_public_methods_are_described(name: str) -> None:
    """By themselves, or by the method of the interface that they fill in."""
    interface = set(dir(jem.Family)) | set(dir(jem.Latent))
    for method, value in vars(getattr(jem, name)).items():
        if inspect.isfunction(value) and not method.startswith("_") and method not in interface:
            assert inspect.getdoc(value), f"{name}.{method}"
