"""Finished groups of a job on disk, so that the same command continues from them.

`OUT/parts` holds a file for each finished slab, complete or absent, and `job.json`, which describes their job.
The folder is removed once the results are in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxem._version import version
from jaxem.cli.cluster import Peers
from jaxem.cli.errors import InputError
from jaxem.cli.fit.result import Scores
from jaxem.cli.fit.schedule import Slab
from jaxem.cli.output import unwritable
from jaxem.cli.table.groups import Grouped
from jaxem.io import atomic
from jaxem.io.models import load_unchecked, save

INCIDENTAL = ("table", "out", "workers", "memory", "restart", "coordinator", "processes", "process", "distributed")
"""Options that change no number in the results; of the table the rows count, not the name."""
Result = tuple[Scores, np.ndarray, Any, Any]
"""Result of a slab: scores, choice, models and where its rows belong, as `Outcome.store` takes them."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The finished slabs of one job.

    Attributes:
        out: the folder of the job's results.
        peers: the processes that work on it.
        finished: numbers of the slabs that were finished before they began.
    """

    out: Path
    peers: Peers
    finished: frozenset[int] = frozenset()

    @property
    def folder(self) -> Path:
        """Folder of the parts."""
        return self.out / "parts"

    @property
    def owner(self) -> Path:
        """File that describes their job."""
        return self.folder / "job.json"

    @property
    def advice(self) -> str:
        """Advice for a job that ends early."""
        return f"the finished groups are in {self.folder}, from where the same command goes on"

    @property
    def lock(self) -> Path:
        """Lock file of process 0."""
        return self.folder / "lock"

    def write(self, slab: Slab, result: Result) -> None:
        """Write the result of a slab.

        Raises:
            InputError: no space, or no permission to write.
        """
        scores, choice, models, belonging = result
        numbers = tuple(getattr(scores, field.name) for field in dataclasses.fields(Scores))
        try:
            save(self._place(slab), (slab.groups, numbers, choice, models, belonging or ()))
        except OSError as error:
            raise unwritable(self.out, error, self.advice) from error

    def read(self, slab: Slab) -> Result | None:
        """Result of a slab; None if it is still to be fitted."""
        try:
            groups, numbers, choice, fitted, belonging = load_unchecked(self._place(slab))
        except (FileNotFoundError, ValueError):
            return None
        # Another version of jaxem may have grouped them differently.
        return (Scores(*numbers), choice, fitted, belonging or None) if np.array_equal(groups, slab.groups) else None

    def present(self) -> list[Path]:
        """Files of all finished slabs."""
        return sorted(self.folder.glob("slab-*.safetensors"))

    def remove(self) -> None:
        """Remove all parts, and `job.json` last, so that after a kill in between the rest still has an owner."""
        for path in self.present():
            path.unlink()
        atomic.sweep(self.folder)
        atomic.sweep(self.out)
        self.peers.remove()
        self.owner.unlink(missing_ok=True)

    def _place(self, slab: Slab) -> Path:
        return self.folder / f"slab-{slab.index:06}.safetensors"


def described(command: str, options: dict[str, Any], grouped: Grouped) -> dict[str, Any]:
    """Description for `job.json` of all that determines the results: options, a hash of the rows, processes.

    >>> import polars as pl; from jaxem.cli.columns import ColumnModel; from jaxem.cli.table import groups
    >>> grouped = groups.group(pl.DataFrame({"x": [1.0, 2.0]}), ColumnModel.parse(["gaussian"], ["x"]))
    >>> described("fit", {"table": "t.csv", "seed": 0, "workers": 2}, grouped)["options"]
    {'seed': 0}
    """
    arrays = (grouped.x, grouped.size, grouped.n, grouped.dropped, grouped.row, grouped.group_of, grouped.first)
    rows = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is not None:
            rows.update(np.ascontiguousarray(array))  # type: ignore[arg-type]  # as a buffer, not copied
    rows.update(repr((grouped.x.shape, grouped.kind, grouped.keys.schema, grouped.keys.rows())).encode())
    return {
        "command": command,
        "options": {name: value for name, value in options.items() if name not in INCIDENTAL},
        "rows": rows.hexdigest(),
        "versions": {"jaxem": version, **{name: installed(name) for name in ("jax", "jaxlib")}},
    }


def changes(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between the descriptions of two jobs, in words.

    >>> job = {"command": "fit", "options": {"by": "", "seed": 0}, "rows": "1f", "versions": {"jaxem": "1"}}
    >>> changes(job, job | {"options": {"by": "city", "seed": 1}, "rows": "2e"})
    ['--by was not given and is city', '--seed was 0 and is 1']
    >>> changes(job, job | {"rows": "2e"})
    ['the rows of the table have changed']
    """
    if was["command"] != now["command"]:
        return [f"it was jaxem {was['command']}"]
    differences = []
    for kind, prefix in (("options", "--"), ("versions", "")):
        for name in {**was[kind], **now[kind]}:
            before, after = (_in_words(job[kind].get(name)) for job in (was, now))
            if before != after:
                differences.append(f"{prefix}{name.replace('_', '-')} was {before} and is {after}")
    if not differences and was["rows"] != now["rows"]:
        differences.append("the rows of the table have changed")
    return differences


def _in_words(value: Any) -> str:
    return "not given" if value in ("", None) or value is False else "given" if value is True else str(value)


@contextlib.contextmanager
def opened(
    out: Path,
    job: dict[str, Any],
    restart: bool,
    together: contextlib.AbstractContextManager[tuple[int, int]],
) -> Iterator[Parts]:
    """Parts of a job, locked for its own processes.

    Args:
        out: the folder of the job's results.
        job: as `described`.
        restart: discard the parts of an earlier run.
        together: meeting of the processes, see `cluster.met`; when it ends, process 0 has prepared the folder.

    Raises:
        InputError: another job has parts there, or is running there, or the folder cannot be written; a
            process that has other options than process 0, or does not see its files.
    """
    with contextlib.ExitStack() as held:
        with together as (index, count):
            parts = Parts(out, Peers(out / "parts", index, count))
            if index == 0:
                _take(parts, job, restart, held)
        if not parts.owner.exists():
            raise InputError(
                f"--out {out}: {parts.peers} does not see what process 0 has written there; all need the same folder"
            )
        found = _parsed(parts.owner)
        if different := changes(found, _plain(job)):
            raise InputError(f"{parts.peers} was started otherwise than process 0: {'; '.join(different)}")
        parts = dataclasses.replace(parts, finished=frozenset(found["finished"]))
        try:
            yield parts
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(parts.advice) from interruption
        if index == 0 and not parts.owner.exists():
            parts.lock.unlink()
            with contextlib.suppress(OSError):  # other contents of the folder stay
                parts.folder.rmdir()


def _take(parts: Parts, job: dict[str, Any], restart: bool, held: contextlib.ExitStack) -> None:
    """Lock the folder for this job, for as long as `held`."""
    try:
        parts.folder.mkdir(exist_ok=True)
        if not _locked(held.enter_context(parts.lock.open("a"))):
            raise InputError(
                f"--out {parts.out}: another jaxem is at work there; wait until it has ended, or name another folder"
            )
        _begin(parts, job, restart)
    except OSError as error:
        raise unwritable(parts.out, error, "name another folder") from error


def _locked(file: IO[str]) -> bool:
    """Whether the file could be locked; until it is closed, or the process ends in whatever way."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a system, or a file system, without such locks
        return True
    # Its previous holder may have removed it.
    return os.path.exists(file.name) and os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))


def _begin(parts: Parts, job: dict[str, Any], restart: bool) -> None:
    """Continue with the parts of this job, if there are any; else begin without."""
    if parts.owner.exists() and parts.present() and not restart:
        if found := changes(_parsed(parts.owner), _plain(job)):
            raise InputError(
                f"--out {parts.out}: {parts.folder} has finished groups of another job ({'; '.join(found)}); give its "
                "command to go on with it, --restart to start over, or another --out"
            )
    else:
        parts.remove()
    parts.peers.remove()
    finished = [int(path.stem.removeprefix("slab-")) for path in parts.present()]
    atomic.write(parts.owner, json.dumps(job | {"finished": finished}, indent=1).encode())


def _plain(job: dict[str, Any]) -> dict[str, Any]:
    """The description as it is read back from a file."""
    return json.loads(json.dumps(job))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if found.keys() >= {"command", "options", "rows", "versions"}:
            return found
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{path}: this file is not from jaxem; give --restart to start over, or another --out")
