"""Progress of long calls: what works calls `progress(done, total)`, with a note if there is more to say; and bars."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Tell = Callable[..., Any]


class Tally:
    """Work done by several threads in parts, told as one sum.

    Attributes:
        total: all the work.
        tell: called with (done, total) at each change.
        parts: how much is done of each part.
    """

    def __init__(self, total: int, tell: Tell | None = None) -> None:
        """Start at zero."""
        self.total, self.tell, self.parts, self.lock = total, tell, dict[Any, float](), threading.Lock()

    @property
    def done(self) -> int:
        """Work done in all parts."""
        return int(sum(self.parts.values()))

    def put(self, part: Any, done: float) -> None:
        """Set how much of a part is done."""
        with self.lock:
            self.parts[part] = done
            if self.tell is not None:
                self.tell(self.done, self.total)


def reported(progress: Any, verb: str) -> contextlib.AbstractContextManager[Tell | None]:
    """The function that is told, for an argument `progress`: itself, that of a bar if it is True, or None."""
    return bar(verb) if progress is True else contextlib.nullcontext(progress or None)


@contextlib.contextmanager
def bar(verb: str) -> Iterator[Tell]:
    """A bar on stderr: of tqdm in a notebook, if it is installed, otherwise of rich.

    Raises:
        ValueError: neither is installed.
    """
    if tqdm := _notebook_bar():
        with tqdm(desc=verb) as shown:

            def update(done: int, total: int, note: str = "") -> None:
                shown.total = total
                shown.set_postfix_str(note, refresh=False)
                shown.update(done - shown.n)

            yield update
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        raise ValueError("progress=True needs the package rich: pip install 'jaxem[cli]'") from None
    text = TextColumn("{task.fields[note]} {task.fields[speed]:,.0f}/s")
    with Progress(
        TextColumn(verb), BarColumn(), text, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task, before = bar.add_task("", total=None, note="", speed=0.0), list[tuple[int, float]]()

        def tell(done: int, total: int, note: str = "") -> None:
            if not before:
                # What an earlier run finished does not count towards the speed of this one.
                before.append((done, time.perf_counter()))
                bar.reset(task, completed=done)
            first, began = before[0]
            speed = (done - first) / max(time.perf_counter() - began, 1e-9)
            bar.update(task, completed=done, total=total, note=note or f"{done:,} of {total:,}", speed=speed)

        yield tell


def _notebook_bar() -> Any:
    """The class of tqdm's bars in a notebook; None elsewhere or without tqdm."""
    ipython = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    with contextlib.suppress(ImportError):
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        return tqdm
    return None
