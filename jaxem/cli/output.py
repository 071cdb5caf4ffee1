"""The folder of results: checked before the work, written whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxem.cli.errors import InputError
from jaxem.io.atomic import temporary


def check_folder(out: Path) -> None:
    """Raise InputError if files cannot be written into `out`; creates the folder if there is none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = temporary(out / "probe")
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have used the same name
    except OSError as error:
        raise unwritable(out, error, "name another folder") from error


def unwritable(out: Path, error: OSError, advice: str) -> InputError:
    """Error message for a folder `out` that cannot be written."""
    return InputError(f"--out {out}: cannot write there ({error.strerror or error}); {advice}")


@contextlib.contextmanager
def together(out: Path) -> Iterator[Callable[[str], Path]]:
    """Write files that appear in `out` all at once at the end, or, after an error, not at all.

    Yields a function from a file's name to its temporary path.
    """
    names: list[str] = []

    def place(name: str) -> Path:
        names.append(name)
        return temporary(out / name)

    try:
        yield place
        for name in names:
            temporary(out / name).replace(out / name)
    finally:
        for name in names:
            temporary(out / name).unlink(missing_ok=True)
