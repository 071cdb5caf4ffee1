"""Choice of the method: a scan, blocks, a tree (associative scan), or one kernel."""

from __future__ import annotations

import math

import jax

from jaxem.chains.chain import Chain

METHODS = ("auto", "scan", "blocked", "associative", "kernel")

ENTRIES = 1 << 26
"""Numbers in the matrices of all steps (256 MiB of float32) up to which a tree of them fits into memory."""
WIDE = 1 << 14
"""Numbers in a turn (states x states x sequences) from which a scan keeps an accelerator busy."""
SHORT = 128
"""Turns of a loop up to which nothing is faster than a scan."""


def choose(chain: Chain) -> str:
    """The method that a chain asks for; for `auto` the fastest."""
    return "scan" if chain.steps < 3 else _fastest(chain) if chain.method == "auto" else chain.method


def _fastest(chain: Chain) -> str:
    """The fastest method: on a CPU as measured (benchmarks/RESULTS.md), on an accelerator as reckoned.

    There the kernel may be faster for many sequences; it has not been measured (benchmarks/gpu.py), so is not chosen.
    """
    steps, states, sequences = chain.log_likelihood.shape
    turn = states * states * sequences
    if jax.default_backend() == "cpu" or steps <= SHORT or turn >= WIDE:
        return "scan"
    return "associative" if states <= 8 and turn * steps <= ENTRIES else "blocked"


def blocks(chain: Chain) -> int:
    """Number of blocks of a chain: as many as each has steps, so that both levels take as many turns."""
    return max(1, math.isqrt(chain.steps - 1))
