"""Compiled programs kept for the next session."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax

SIZE = 2**30
"""Bytes that a folder of compiled programs may hold."""

ROOM = 2**26
"""Free bytes that a disk must have for more of them."""

OWNER = "processor"
"""File in the folder that says whose programs it holds: they hold machine code, for one kind of processor."""


def cache(folder: str | os.PathLike[str] | None = None, *, size: int = SIZE) -> Path | None:
    """Keep compiled programs for the next session, in a folder of yours.

    A program that was compiled in an earlier session is read instead. The environment variable `JAXEM_CACHE` does the
    same when jaxem is imported: `1`, or the path of a folder. The command line does it by itself.

    Args:
        folder: where; if left out, `$JAX_COMPILATION_CACHE_DIR`, or `$XDG_CACHE_HOME/jaxem`, or `~/.cache/jaxem`. It
            may be deleted at any time. Programs in it are run: never share it with somebody you do not trust.
        size: in bytes, that the folder may have; programs that were not used for longest are deleted now.

    Returns:
        The folder; None if it cannot be used.

    Warns:
        UserWarning: it cannot be written, the disk is full, or it holds programs of another kind of processor. Then
            nothing is kept.

    >>> import tempfile, jaxem as jem
    >>> before = jax.config.jax_compilation_cache_dir
    >>> jem.cache(tempfile.mkdtemp()) is None
    False
    >>> jax.config.update("jax_compilation_cache_dir", before)
    """
    try:
        folder = Path(folder or os.environ.get("JAX_COMPILATION_CACHE_DIR") or _default())
        folder.mkdir(parents=True, exist_ok=True)
        trouble = _trouble(folder)
        if trouble is None:
            _shrink(folder, size)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        trouble = getattr(error, "strerror", None) or str(error)
    if trouble is not None:
        warnings.warn(f"compiled programs are not kept in {folder or 'a cache'}: {trouble}", stacklevel=2)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A damaged entry is compiled again; one that does not fit on the disk is not kept.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    return Path(folder)


def _default() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxem"


def _trouble(folder: Path) -> str | None:
    """Why no programs can be kept in this folder; None if they can."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return "it cannot be written"
    if shutil.disk_usage(folder).free < ROOM:
        return "the disk is full"
    owner = folder / OWNER
    if not owner.exists():
        owner.write_text(_processor())
    return None if owner.read_text() == _processor() else "it holds programs of another kind of processor"


def _processor() -> str:
    """Kind of processor, by what it can do."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else [platform.processor()]
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
    words = " ".join(sorted(kind.partition(":")[2].split()))
    return f"{platform.machine()} {hashlib.sha256(words.encode()).hexdigest()[:16]}"


def _shrink(folder: Path, size: int) -> None:
    """Delete the programs that were not used for longest, until the rest are no more than `size` bytes."""

    def used(program: Path) -> float:
        mark = program.with_name(program.name.removesuffix("-cache") + "-atime")
        return (mark if mark.exists() else program).stat().st_mtime

    programs: list[Any] = sorted(((used(p), p.stat().st_size, p) for p in folder.glob("*-cache")), reverse=True)
    total = 0
    for _, bytes_, program in programs:
        total += bytes_
        if total > size:
            program.unlink(missing_ok=True)
            program.with_name(program.name.removesuffix("-cache") + "-atime").unlink(missing_ok=True)


if asked := os.environ.get("JAXEM_CACHE"):
    cache(None if asked == "1" else asked)
