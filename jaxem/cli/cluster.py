"""Several processes at one job: which one this is, and whether the others are alive.

JAX's runtime numbers them, and they meet there before the work begins, each through a short-lived child process,
because the runtime aborts processes that outlive another, and caches compilations of the first process only. While
they work, each writes heartbeats into a shared folder, and reads those of the others.
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
"""Seconds for which a process waits for the others to come."""
BEAT, SILENCE = 2.0, 30.0
"""Seconds between two heartbeats, and seconds without one after which a process counts as dead."""
DONE = "done"
ENDED = "another process ended before the work began; see what it says"


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Meeting point of the processes of a job; None is read from Slurm, Kubernetes, Open MPI or a Cloud TPU.

    Attributes:
        address: host and port, at which process 0 listens.
        count: number of processes.
        index: of this process, from 0.
    """

    address: str | None = None
    count: int | None = None
    index: int | None = None

    def __str__(self) -> str:
        """The options that were typed."""
        if self.address is None:
            return "--distributed"
        return f"--coordinator {self.address} --processes {self.count} --process {self.index}"


def join(meeting: Meeting) -> tuple[int, int]:
    """Index of this process and number of processes, after joining JAX's runtime, before JAX computes anything.

    Raises:
        InputError: process 0 cannot listen there, or has ended; or no cluster is found.
    """
    import jax

    try:
        # Shorter than JAX's own timeout, after which it would abort.
        timeout = 2 * int(WAIT)
        jax.distributed.initialize(meeting.address, meeting.count, meeting.index, initialization_timeout=timeout)
        return jax.process_index(), jax.process_count()
    except Exception as error:  # each kind of cluster has its own errors
        why = str(error).rstrip(".")
        if meeting.address is None:
            what = f"JAX finds no cluster here ({why}); give --coordinator, --processes and --process instead"
        elif meeting.index == 0:
            what = f"process 0 cannot listen there ({why}); choose another port"
        else:
            what = ENDED
        raise InputError(f"{meeting}: {what}") from error


def part(meeting: Meeting | None) -> None:
    """Leave JAX's runtime, all together, so that each may take its time afterwards."""
    import jax

    if meeting is not None:
        jax.distributed.shutdown()


@contextlib.contextmanager
def met(meeting: Meeting | None) -> Iterator[tuple[int, int]]:
    """Index of this process and number of processes, once all have come; at the end they wait for each other again.

    Raises:
        InputError: as of `join`; or not all have come, or one has failed meanwhile.
    """
    if meeting is None:
        yield 0, 1
        return
    command = [sys.executable, "-m", "jaxem.cli.cluster", json.dumps(dataclasses.astuple(meeting))]
    sent = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    overdue = threading.Event()

    def give_up() -> None:
        overdue.set()
        sent.kill()

    timer = threading.Timer(WAIT, give_up)
    timer.start()
    ended = f"{meeting}: {ENDED}"
    with sent:
        try:
            reply = json.loads((sent.stdout and sent.stdout.readline()) or "null")
            timer.cancel()
            if reply is None and overdue.is_set():
                raise InputError(
                    f"{meeting}: not all processes have come within {WAIT:g} s; see that each was started, and that it "
                    "reaches process 0 at that address"
                )
            if not isinstance(reply, list):
                raise InputError(reply or ended)
            yield tuple(reply)
            sent.communicate()
        finally:
            timer.cancel()
            sent.kill()
    if sent.returncode:
        raise InputError(ended)


def _meet() -> None:
    """Run the child process: report who is there, and stay until it is called back."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    try:
        reply = join(Meeting(*json.loads(sys.argv[1])))
    except InputError as error:
        reply = str(error)
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    jax.distributed.shutdown()


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes at one job, and their heartbeats.

    Attributes:
        folder: shared by all.
        index: of this process.
        count: number of processes.
    """

    folder: Path
    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """Description of this process."""
        return f"process {self.index} of {self.count}"

    def remove(self) -> None:
        """Remove the heartbeats of all processes, and those of an earlier run."""
        for path in self.folder.glob("process-*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def watched(self, stop: threading.Event, advice: str) -> Iterator[None]:
        """Set `stop` as soon as another process is dead; if it never is, mark this process as done at the end.

        Raises:
            InputError: a process is dead; with advice what to do.
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
        """Send heartbeats, until the end or until those of another process stop."""
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
        """Write the sign; None removes it, by which the others see at once that this process has failed."""
        path = self._sign(self.index)
        with contextlib.suppress(OSError):  # a full disk is reported where it matters; process 0 may have tidied up
            path.unlink() if sign is None else path.write_text(sign)

    def _seen(self, process: int, before: str | None) -> str | None:
        """Sign of a process, None if there is none; `before` if the folder cannot be reached for a moment."""
        try:
            return self._sign(process).read_text()
        except FileNotFoundError:
            return None
        except OSError:
            return before


if __name__ == "__main__":
    _meet()
