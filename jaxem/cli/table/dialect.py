"""Dialect of a text table: encoding, comment lines, separator of cells, decimal mark.

All of it is detected from the first lines. Files in plain UTF-8 are then read directly; others through a stream that
recodes them.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": ","}
"""Usual separator, by the ending of the file's name."""

OTHERS = (";", "\t", ",", "|")
"""Other separators, the most likely first."""

FIRST = 1 << 16
"""Bytes of a file that are examined."""

ROWS = 50
"""Rows among them that must agree on the number of cells."""

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

COMMA_NUMBER = r"^\s*[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?\s*$"
THOUSANDS = r"^\s*[+-]?\d{1,3}(,\d{3})+\s*$"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Format of a text table.

    Attributes:
        separator: of cells.
        encoding: as Python names it.
        comments: number of lines before the names of the columns.
        marked: whether the names begin with a comment sign, which is not part of the first.
    """

    separator: str
    encoding: str = "utf-8"
    comments: int = 0
    marked: bool = False

    @property
    def plain(self) -> bool:
        """Whether a UTF-8 reader can take the file directly, names first."""
        return self.encoding in ("utf-8", "utf-8-sig") and not self.comments and not self.marked

    def open(self, path: Path) -> Any:
        """The table as UTF-8, from the names of its columns on."""
        file = unpacked(path)
        if self.encoding != "utf-8":
            file = codecs.EncodedFile(file, "utf-8", self.encoding)
        for _ in range(self.comments):
            file.readline()
        if self.marked:
            file.read(1)
        return file

    def scan(self, path: Path) -> pl.LazyFrame:
        """Lazy frame of the table, every cell as text."""
        if self.plain:
            return pl.scan_csv(path, separator=self.separator, infer_schema=False)
        with self.open(path) as file:
            return pl.scan_csv(io.BytesIO(file.read()), separator=self.separator, infer_schema=False)

    def with_points(self, column: pl.Series) -> pl.Series:
        """A column with points for its decimal commas, if it has any.

        Where commas separate cells there are none. A column that has points as well is left as it is, and so is one
        whose commas may separate thousands, unless semicolons between cells say that they do not.
        """
        if self.separator == "," or column.dtype != pl.String:
            return column
        commas = column.filter(column.str.contains(",", literal=True))
        written = commas.len() > 0 and bool(commas.str.contains(COMMA_NUMBER).all())
        if not written or column.str.contains(r"^\s*[+-]?\d*\.\d").any():
            return column
        if self.separator != ";" and commas.str.contains(THOUSANDS).all():
            return column
        return column.str.replace(",", ".", literal=True)


def unpacked(path: Path) -> Any:
    """Open file of the bytes, decompressed if it ends in .gz."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def read_off(path: Path, usual: str, wanted: Sequence[str]) -> Dialect:
    """Detect the dialect of a file from its first lines.

    Args:
        path: of the file.
        usual: separator expected from the file's name.
        wanted: names of columns that it should have: the separator that finds most of them is right.
    """
    with unpacked(path) as file:
        start = file.read(FIRST)
    encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), _without_mark(start))
    lines = start.decode(encoding, errors="replace").splitlines()
    lines = lines[:-1] if len(start) == FIRST and len(lines) > 1 else lines
    comments = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    separator = _separator(lines[comments:], usual, wanted)
    # A table does not begin with numbers: then the last of the comments holds the names.
    names = next(csv.reader(lines[comments:], delimiter=separator), [])
    marked = comments > 0 and all(re.fullmatch(r"[\s\d.,+\-eE]*", name) for name in names)
    if marked:
        comments = max(i for i in range(comments) if lines[i].startswith("#"))
        separator = _separator([lines[comments][1:], *lines[comments + 1 :]], usual, wanted)
    return Dialect(separator, encoding, comments, marked)


def _without_mark(start: bytes) -> str:
    """Encoding of a file without a byte order mark: in UTF-16 text every second byte is zero."""
    if b"\0" not in start[:64]:
        return "utf-8"
    return "utf-16-le" if start[1:64:2].count(0) >= start[0:64:2].count(0) else "utf-16-be"


def _separator(lines: Sequence[str], usual: str, wanted: Sequence[str]) -> str:
    """Separator with the most of the wanted names, rows of equal length, and more than one cell; else the usual."""

    def fitness(separator: str) -> tuple[int, bool, bool]:
        rows = [row for row in csv.reader(lines[: ROWS + 1], delimiter=separator) if row]
        names = [name.strip() for name in rows[0]] if rows else []
        return len({*wanted} & {*names}), len({len(row) for row in rows}) == 1, len(names) > 1

    # The first of equals.
    return max([usual, *OTHERS], key=fitness)
