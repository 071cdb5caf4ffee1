"""Which way through the steps: one after the other, in blocks, or in a tree; or in one kernel."""

from __future__ import annotations

import math

import jax

from jaxem.chains.chain import Chain

METHODS = ("auto", "scan", "blocked", "associative", "kernel")

ENTRIES = 1 << 26
"""Up to so many numbers in the matrices of all steps (256 MiB of float32) a tree of them fits beside the rest."""
WIDE = 1 << 14
"""With so many numbers in a turn (states x states x sequences) an accelerator is busy with a scan."""
SHORT = 128
"""So many turns of a loop take less than anything else would."""


def choose(chain: Chain) -> str:
    """The method that a chain asks for, or, of `auto`, the one that is fastest."""
    return "scan" if chain.steps < 3 else _fastest(chain) if chain.method == "auto" else chain.method


def _fastest(chain: Chain) -> str:
    """On a CPU as measured (benchmarks/RESULTS.md); on an accelerator, where a turn costs microseconds, as reckoned.

    There the kernel may be faster for many sequences; it has not been measured (benchmarks/gpu.py), so is not chosen.
    """
    steps, states, sequences = chain.log_likelihood.shape
    turn = states * states * sequences
    if jax.default_backend() == "cpu" or steps <= SHORT or turn >= WIDE:
        return "scan"
    return "associative" if states <= 8 and turn * steps <= ENTRIES else "blocked"


def blocks(chain: Chain) -> int:
    """How many blocks to cut a chain into: as many as each has steps, so that both levels take as many turns."""
    return max(1, math.isqrt(chain.steps - 1))
