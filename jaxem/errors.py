"""What a person is told when an input cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong input, in one line: the argument, column or row, what is wrong with it, and what to do."""
