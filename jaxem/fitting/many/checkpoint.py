"""Checkpoint of a long call on disk: a folder for the call, and in it one for each queue of lanes.

`call.json` in the folder holds the arguments of the call, so that no other continues from it. Orbax keeps the states:
a new one is written beside the last and replaces it when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SECONDS = 30.0
"""Seconds between two saves of a queue, at least."""
SHARE = 0.05
"""Share of the time spent on saving, at most: slow saves are made less often."""

CUTS = "cuts"
"""Name of the JSON file that holds type and shape of each leaf, beside the numbers."""


class Checkpoint:
    """Folder of a call.

    Args:
        folder: its path; created if it does not exist.
        given: arguments of the call by name, as fingerprints or short values.
        deals: problems of each queue, if the folder does not hold them.

    Raises:
        ValueError: the folder belongs to a call with other arguments; orbax-checkpoint is missing; this
            is not the only process.
        OSError: the folder cannot be made, read or written.

    Attributes:
        deals: problems of each queue, as dealt by the call that began, on whatever machine.
    """

    def __init__(self, folder: str | os.PathLike[str], given: dict[str, str], deals: list[list[int]]) -> None:
        """Read the folder, or claim it if it is empty."""
        try:
            import orbax.checkpoint  # noqa: F401
        except ImportError:
            raise ValueError("checkpoint needs the package orbax-checkpoint: pip install 'jaxem[checkpoint]'") from None
        if jax.process_count() > 1:
            # Orbax writes arrays on the host in the first process only.
            raise ValueError("checkpoint works in one process only; under jax.distributed save what fit_many returns")
        self.folder = Path(folder).absolute()
        path = self.folder / "call.json"
        with _one_line_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            written = path.read_text() if path.exists() else None
        self.deals = deals if written is None else self._deals(written, given)
        # Written even if it exists: an unwritable folder fails before anything is fitted.
        with _one_line_errors(self.folder):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
            temporary.write_text(json.dumps({"given": given, "deals": self.deals}, indent=1))
            temporary.replace(path)

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
    """Folder of the state of one queue.

    Orbax is slow with many arrays, and refuses empty ones: so a state is saved as one array for each type of number,
    with the sizes of the leaves beside it.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder, and remove the remains of an interrupted save.

        Raises:
            OSError: the folder cannot be created.
        """
        self.folder = folder
        with _one_line_errors(folder):
            self._keeper = _keeper(folder)
        self._put_off(took=0)

    def leaves(self) -> list[np.ndarray] | None:
        """Leaves of the last saved state; None if there is none.

        Raises:
            OSError: it cannot be read.
        """
        from orbax.checkpoint import args

        call = self._keeper.latest_step()
        if call is None:
            return None
        with _one_line_errors(self.folder):
            kept = self._keeper.restore(call, args=args.PyTreeRestore())
        leaves, offsets = [], defaultdict(int)
        for name, shape in json.loads(kept[CUTS].tobytes()):
            start = offsets[name]
            offsets[name] += math.prod(shape)
            numbers = kept.get(name, np.zeros(0, jnp.dtype(name)))
            leaves.append(np.array(numbers[start : offsets[name]]).reshape(shape))
        return leaves

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self._next

    def put(self, call: int, leaves: Sequence[Any]) -> None:
        """Save the state after `call` calls; the previous one is deleted once this one is complete.

        Raises:
            OSError: it cannot be written; the previous state remains.
        """
        from orbax.checkpoint import args

        if call == self._keeper.latest_step():
            return
        began = time.monotonic()
        arrays = [_plain(leaf) for leaf in leaves]
        by_type = defaultdict(list)
        for array in arrays:
            by_type[str(array.dtype)].append(array.ravel())
        numbers = {name: flat for name, parts in by_type.items() if (flat := np.concatenate(parts)).size}
        cuts = json.dumps([[str(array.dtype), list(array.shape)] for array in arrays]).encode()
        with _one_line_errors(self.folder):
            tree = {**numbers, CUTS: np.frombuffer(cuts, np.uint8)}
            self._keeper.save(call, args=args.PyTreeSave(tree), force=True)
        self._put_off(took=time.monotonic() - began)

    def _put_off(self, took: float) -> None:
        self._next = time.monotonic() + max(SECONDS, took / SHARE)


def _keeper(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    folder.mkdir(exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=False, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder, options=options)


def _plain(leaf: Any) -> np.ndarray:
    """`leaf` as a NumPy array, random keys as integers."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the disk in one line, where Orbax logs a hundred.

    Raises:
        OSError: that line.
    """
    log = logging.getLogger("absl")
    with _ONE_AT_A_TIME:
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            yield
        except (OSError, ValueError) as error:
            # The operating system's message is at the end of TensorStore's.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = (
                os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error).partition("\n")[0]
            )
            raise OSError(
                f"checkpoint {str(folder)!r} cannot be used: {reason}; nothing that was saved there is lost"
            ) from error
        finally:
            log.setLevel(level)
