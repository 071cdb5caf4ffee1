"""Progress of many fits, as a bar or to a callback."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Reporter:
    """Reports how many problems are done, to a bar or a function; several queues may use it."""

    def __init__(self, progress: bool | Callable[[int, int], None], total: int) -> None:
        """Start at zero."""
        self.tell, self.total, self.bar = progress if callable(progress) else None, total, None
        self.done: list[int] = []
        self.lock = threading.Lock()
        if progress is True:
            self.tell = self._open_bar()

    def _open_bar(self) -> Callable[[int, int], None]:
        try:
            from rich.progress import Progress as Bar
        except ImportError:
            raise ValueError("progress=True needs the package rich: pip install 'jaxem[cli]'") from None
        bar = Bar()
        task = bar.add_task("fits", total=self.total)
        self.bar = bar
        return lambda done, total: bar.update(task, completed=done)

    def __enter__(self) -> Reporter:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def source(self) -> Callable[[int], None]:
        """A function by which one queue reports how many of its problems are done."""
        with self.lock:
            self.done.append(0)
            mine = len(self.done) - 1

        def report(done: int) -> None:
            with self.lock:
                self.done[mine] = done
                if self.tell is not None:
                    self.tell(sum(self.done), self.total)

        return report
