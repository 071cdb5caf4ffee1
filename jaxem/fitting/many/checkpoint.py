"""Checkpoint of a long call on disk: a folder for the call, and in it one for each queue of lanes.

`call.json` in the folder holds the arguments of the call, so that no other continues from it. A state is one file,
named by how many compiled calls led to it: a new one is complete or absent, and then replaces the last.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.io import atomic
from jaxem.io.models import load_unchecked, save

SECONDS = 30.0
"""Seconds between two saves of a queue, at least."""
SHARE = 0.05
"""Share of the time spent on saving, at most: slow saves are made less often."""


class Checkpoint:
    """Folder of a call.

    Args:
        folder: its path; created if it does not exist.
        given: arguments of the call by name, as fingerprints or short values.
        deals: problems of each queue, if the folder does not hold them.

    Raises:
        ValueError: the folder belongs to a call with other arguments; safetensors is missing; this
            is not the only process.
        OSError: the folder cannot be made, read or written.

    Attributes:
        deals: problems of each queue, as dealt by the call that began, on whatever machine.
    """

    def __init__(self, folder: str | os.PathLike[str], given: dict[str, str], deals: list[list[int]]) -> None:
        """Read the folder, or claim it if it is empty."""
        try:
            import safetensors  # noqa: F401
        except ImportError:
            raise ValueError("checkpoint needs the package safetensors: pip install 'jaxem[checkpoint]'") from None
        if jax.process_count() > 1:
            raise ValueError("checkpoint works in one process only; under jax.distributed save what fit_many returns")
        self.folder = Path(folder).absolute()
        path = self.folder / "call.json"
        with _one_line_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            written = path.read_text() if path.exists() else None
        self.deals = deals if written is None else self._deals(written, given)
        # Written even if it exists: an unwritable folder fails before anything is fitted.
        with _one_line_errors(self.folder):
            atomic.write(path, json.dumps({"given": given, "deals": self.deals}, indent=1).encode())

    def _deals(self, written: str, given: dict[str, str]) -> list[list[int]]:
        try:
            header = json.loads(written)
            then, deals = header["given"], header["deals"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"checkpoint {str(self.folder)!r} holds a call.json that is not jaxem's") from None
        changes = [_change(name, then.get(name), now) for name, now in given.items() if then.get(name) != now]
        if changes:
            raise ValueError(
                f"checkpoint {str(self.folder)!r} was made by another call: {', '.join(changes)}; pass another folder, "
                "or delete this one"
            )
        return deals

    def shelf(self, queue: int) -> Shelf:
        """Folder of one queue."""
        return Shelf(self.folder / f"queue_{queue}")


def _change(name: str, then: Any, now: str) -> str:
    return f"{name} has changed" if now.startswith("sha256:") else f"{name} was {then} and is {now}"


class Shelf:
    """Folder of the state of one queue."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, and remove the remains of an interrupted save.

        Raises:
            OSError: the folder cannot be created.
        """
        self.folder = folder
        with _one_line_errors(folder):
            folder.mkdir(exist_ok=True)
            atomic.sweep(folder)
        self._put_off(took=0)

    def leaves(self) -> list[np.ndarray] | None:
        """Leaves of the last saved state; None if there is none.

        Raises:
            OSError: it cannot be read.
        """
        with _one_line_errors(self.folder):
            calls = self._calls()
            return list(load_unchecked(self.folder / str(calls[-1]))) if calls else None

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self._next

    def put(self, call: int, leaves: Sequence[Any]) -> None:
        """Save the state after `call` calls; the previous one is deleted once this one is complete.

        Raises:
            OSError: it cannot be written; the previous state remains.
        """
        began, before = time.monotonic(), self._calls()
        if before[-1:] == [call]:
            return
        with _one_line_errors(self.folder):
            save(self.folder / str(call), tuple(_plain(leaf) for leaf in leaves))
            for old in before:
                (self.folder / str(old)).unlink()
        self._put_off(took=time.monotonic() - began)

    def _calls(self) -> list[int]:
        """Numbers of the calls whose states are there, ascending: one, or two after a kill in between."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def _put_off(self, took: float) -> None:
        self._next = time.monotonic() + max(SECONDS, took / SHARE)


def _plain(leaf: Any) -> np.ndarray:
    """`leaf` as a NumPy array, random keys as integers."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


@contextlib.contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the disk as one line that names the folder.

    Raises:
        OSError: that line.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(
            f"checkpoint {str(folder)!r} cannot be used: {reason}; nothing that was saved there is lost"
        ) from error
