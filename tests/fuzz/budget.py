"""How many random cases are tried: 2,000 in `make slow`, as many as `FUZZ_CASES` says otherwise.

`FUZZ_SEED` chooses other cases than the usual.
"""

from __future__ import annotations

import os

import numpy as np

ALL = 2_000
"""Cases of all files together, if nothing is said."""


def cases(default: int) -> int:
    """How many cases a file tries that has `default` of the usual number."""
    return -(-default * int(os.environ.get("FUZZ_CASES", ALL)) // ALL)


def generator(name: str) -> np.random.Generator:
    """The random numbers of a test: its own, and the same in every run."""
    return np.random.default_rng([int(os.environ.get("FUZZ_SEED", 0)), *name.encode()])
