"""Which way through the steps: one after the other, in blocks, or in a tree."""

from __future__ import annotations

import math

from jaxem.chains.chain import Chain

METHODS = ("auto", "scan", "blocked", "associative")


def choose(chain: Chain) -> str:
    """The method that a chain asks for, or, of `auto`, the one that is fastest."""
    return "scan" if chain.steps < 3 else _fastest(chain) if chain.method == "auto" else chain.method


def _fastest(chain: Chain) -> str:
    return "scan"


def blocks(chain: Chain) -> int:
    """How many blocks to cut a chain into: as many as each has steps."""
    return max(1, math.isqrt(chain.steps - 1))
