"""Progress of long calls: what works calls `progress(done, total)`, with a note if there is more to say; and bars."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Tell = Callable[..., Any]
"""Function that is called with the work done, all the work, and perhaps a note."""


def reported(progress: Any, verb: str) -> contextlib.AbstractContextManager[Tell | None]:
    """The function that is told, for an argument `progress`: itself, that of a bar if it is True, or None."""
    return bar(verb) if progress is True else contextlib.nullcontext(progress or None)


@contextlib.contextmanager
def bar(verb: str) -> Iterator[Tell]:
    """A bar on stderr: of tqdm in a notebook, if it is installed, otherwise of rich.

    Raises:
        ValueError: neither is installed.
    """
    try:
        shown = _in_notebook(verb) or _in_terminal(verb)
    except ImportError:
        raise ValueError("progress=True needs the package rich: pip install 'jaxem[cli]'") from None
    with shown as tell:
        yield tell


def _in_notebook(verb: str) -> contextlib.AbstractContextManager[Tell] | None:
    ipython = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None

    @contextlib.contextmanager
    def shown() -> Iterator[Tell]:
        with tqdm(desc=verb) as bar:

            def tell(done: int, total: int, note: str = "") -> None:
                bar.total = total
                bar.set_postfix_str(note, refresh=False)
                bar.update(done - bar.n)

            yield tell

    return shown()


def _in_terminal(verb: str) -> contextlib.AbstractContextManager[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.fields[note]} {task.fields[speed]:,.0f}/s")
    layout = TextColumn(verb), BarColumn(), text, TimeRemainingColumn()

    @contextlib.contextmanager
    def shown() -> Iterator[Tell]:
        with Progress(*layout, console=Console(stderr=True), transient=True) as bar:
            task, before = bar.add_task("", total=None, note="", speed=0.0), list[tuple[int, float]]()

            def tell(done: int, total: int, note: str = "") -> None:
                if not before:
                    # What an earlier run finished does not count towards the speed of this one.
                    before.append((done, time.perf_counter()))
                    bar.reset(task, completed=done)
                (first, began), note = before[0], note or f"{done:,} of {total:,}"
                speed = (done - first) / max(time.perf_counter() - began, 1e-9)
                bar.update(task, completed=done, total=total, note=note, speed=speed)

            yield tell

    return shown()
