"""What a person is told when an input cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong input, in one line: the argument, column or row, what is wrong with it, and what to do."""


class RowError(InputError):
    """A row of a table that cannot be used.

    Attributes:
        before, after: what is said before and after the number of the row.
        row: that number, from 1.
    """

    def __init__(self, before: str, row: int, after: str) -> None:
        """Of one row."""
        super().__init__(f"{before}row {row}{after}")
        self.before, self.row, self.after = before, row, after

    def further_down(self, rows: int) -> RowError:
        """The same in a table that has more rows before these."""
        return RowError(self.before, self.row + rows, self.after)
