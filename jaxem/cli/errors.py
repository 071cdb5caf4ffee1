"""Errors about inputs that cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong input, described in one line: the argument, column or row, what is wrong with it, and what to do."""


class RowError(InputError):
    """A row of a table that cannot be used.

    Attributes:
        before, after: the message before and after the number of the row.
        row: that number, from 1.
    """

    def __init__(self, before: str, row: int, after: str) -> None:
        """Compose the message."""
        super().__init__(f"{before}row {row}{after}")
        self.before, self.row, self.after = before, row, after

    def further_down(self, rows: int) -> RowError:
        """The same error for a table with `rows` more rows before these."""
        return RowError(self.before, self.row + rows, self.after)
