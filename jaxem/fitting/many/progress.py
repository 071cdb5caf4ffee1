"""Progress of many fits, summed over the queues that work on them."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Reporter:
    """Tells a function how many problems are done, of how many; several queues may use it."""

    def __init__(self, tell: Callable[..., object] | None, total: int) -> None:
        """Start at zero."""
        self.tell, self.total = tell, total
        self.done: list[int] = []
        self.lock = threading.Lock()

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
