"""Tables that are shipped with jaxem, to try things on.

`flights`: 334,264 flights out of New York's three airports in 2013, of aircraft whose tail number is known, with
delays in whole minutes (negative means early; null for a cancelled or diverted flight). From the nycflights13 data
of the US Bureau of Transportation Statistics; in the public domain (CC0).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

NAMES = ("flights",)


def path(name: str) -> Path:
    """Where the Parquet file of a shipped table lies.

    Raises:
        ValueError: there is no table of that name.

    >>> path("flights").name
    'flights.parquet'
    """
    if name not in NAMES:
        raise ValueError(f"there is no shipped table {name!r}; there are: {', '.join(NAMES)}")
    return Path(__file__).parent / f"{name}.parquet"


def flights() -> pl.DataFrame:
    """The flights: 334,264 rows; `tailnum`, `carrier`, `origin`, `dest`, `dep_delay`, `arr_delay` (minutes), ...

    >>> flights().shape
    (334264, 11)
    """
    import polars as pl

    return pl.read_parquet(path("flights"))
