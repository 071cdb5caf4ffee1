"""Several processes at one job: which of them is this, and are the others alive?

JAX's runtime gives them their numbers, and there they meet before the work begins. Each sends a process of its own,
since the runtime aborts whoever outlives another, and caches only what the first process compiles. While they work,
each puts signs of life into a folder that all share, and looks for those of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from jaxem.cli.errors import InputError

WAIT = 120.0
"""Seconds for which a process waits until all others have come."""
BEAT, SILENCE = 2.0, 30.0
"""Seconds from one sign of life to the next, and those without one after which a process is taken for dead."""
DONE = "done"
ENDED = "another process ended before the work began; see what it says"


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where the processes of a job meet; what is None is read from Slurm, Kubernetes, Open MPI or a Cloud TPU.

    Attributes:
        address: host and port, at which process 0 listens.
        count: how many there are.
        index: which of them this is, from 0.
    """

    address: str | None = None
    count: int | None = None
    index: int | None = None

    def __str__(self) -> str:
        """What was typed for it."""
        if self.address is None:
            return "--distributed"
        return f"--coordinator {self.address} --processes {self.count} --process {self.index}"


def join(meeting: Meeting) -> tuple[int, int]:
    """Make this process one of those of JAX's runtime, before JAX computes anything: which, and of how many.

    Raises:
        InputError: process 0 cannot listen there, or has ended; or there is no cluster to read from.
    """
    import jax

    try:
        # We give up before; JAX would abort.
        timeout = 2 * int(WAIT)
        jax.distributed.initialize(meeting.address, meeting.count, meeting.index, initialization_timeout=timeout)
        return jax.process_index(), jax.process_count()
    except Exception as error:  # each kind of cluster has errors of its own
        why = str(error).rstrip(".")
        if meeting.address is None:
            what = f"JAX finds no cluster here ({why}); give --coordinator, --processes and --process instead"
        elif meeting.index == 0:
            what = f"process 0 cannot listen there ({why}); choose another port"
        else:
            what = ENDED
        raise InputError(f"{meeting}: {what}") from error


def part(meeting: Meeting | None) -> None:
    """The end of what `join` began: all leave together, so that what each does afterwards may take its time."""
    import jax

    if meeting is not None:
        jax.distributed.shutdown()


@contextlib.contextmanager
def met(meeting: Meeting | None) -> Iterator[tuple[int, int]]:
    """Which process this is, and of how many, once all have come; at the end they wait for each other again.

    Raises:
        InputError: as `join` does; or not all have come, or one has failed meanwhile.
    """
    if meeting is None:
        yield 0, 1
        return
    command = [sys.executable, "-m", "jaxem.cli.cluster", json.dumps(dataclasses.astuple(meeting))]
    sent = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        sent.kill()

    timer = threading.Timer(WAIT, give_up)
    timer.start()
    ended = f"{meeting}: {ENDED}"
    with sent:
        try:
            found = json.loads((sent.stdout and sent.stdout.readline()) or "null")
            timer.cancel()
            if found is None and late.is_set():
                raise InputError(
                    f"{meeting}: not all processes have come within {WAIT:g} s; see that each was started, and that it "
                    "reaches process 0 at that address"
                )
            if not isinstance(found, list):
                raise InputError(found or ended)
            yield tuple(found)
            sent.communicate()
        finally:
            timer.cancel()
            sent.kill()
    if sent.returncode:
        raise InputError(ended)


def _meet() -> None:
    """What the process that is sent does: say who is there, and stay until it is called back."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    try:
        found = join(Meeting(*json.loads(sys.argv[1])))
    except InputError as error:
        found = str(error)
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    jax.distributed.shutdown()


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes at one job, and their signs of life.

    Attributes:
        folder: that all of them share.
        index: which of them this is.
        count: how many there are.
    """

    folder: Path
    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """This process, in words."""
        return f"process {self.index} of {self.count}"

    def remove(self) -> None:
        """Remove the signs of all processes, and those of an earlier run."""
        for path in self.folder.glob("process-*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def watched(self, stop: threading.Event, advice: str) -> Iterator[None]:
        """Set `stop` as soon as another process is gone; at the end, unless it is set, this one has done its share.

        Raises:
            InputError: a process is gone; with advice what to do.
        """
        if self.count == 1:
            yield
            return
        ended, lost = threading.Event(), []
        thread = threading.Thread(target=self._watch, args=(stop, ended, lost), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._show(None if stop.is_set() else DONE)
        if lost:
            raise InputError(f"process {lost[0]} of {self.count} is gone; {advice}, with any number of processes")

    def _watch(self, stop: threading.Event, ended: threading.Event, lost: list[int]) -> None:
        """Show signs of life, until the end or until another process shows none."""
        signs: dict[int, str | None] = dict.fromkeys(set(range(self.count)) - {self.index})
        since = dict.fromkeys(signs, time.monotonic())
        for beat in itertools.count():
            self._show(str(beat))
            for other in list(signs):
                before = signs[other]
                sign = self._seen(other, before)
                if sign == DONE:
                    del signs[other]
                elif sign != before and sign is not None:
                    signs[other], since[other] = sign, time.monotonic()
                elif sign != before or time.monotonic() - since[other] > SILENCE:
                    lost.append(other)
                    stop.set()
                    return
            if ended.wait(BEAT):
                return

    def _sign(self, process: int) -> Path:
        return self.folder / f"process-{process}"

    def _show(self, sign: str | None) -> None:
        """None takes it away, by which the others see at once that this process will not do its share."""
        path = self._sign(self.index)
        with contextlib.suppress(OSError):  # a full disk is told of where it matters; process 0 may have tidied up
            path.unlink() if sign is None else path.write_text(sign)

    def _seen(self, process: int, before: str | None) -> str | None:
        """Its sign, None if there is none; what was seen before if the folder cannot be reached for a moment."""
        try:
            return self._sign(process).read_text()
        except FileNotFoundError:
            return None
        except OSError:
            return before


if __name__ == "__main__":
    _meet()
