"""One GPU: thousands of mixtures, a large one, hidden Markov models by every way through the steps; in 8 minutes.

    python benchmarks/gpu.py [--small] [--out FILE]

prints a table, and writes it between marks of its own in FILE (benchmarks/RESULTS.md; without a GPU only if it has none
yet). It needs jaxem and JAX; dynamax is timed if it is there. Each case runs in a process of its own (`gpu_cases.py`)
and is ended when its time is over; what it said until then counts. What could not be run is 'not measured': everything,
where there is no GPU. `--small` takes sizes that any machine can, and writes nothing that was not asked for.

What a step is bound to cost, reckoned for an H200 (67 TFLOP/s in float32, 4.8 TB/s), and not measured:

- 1,000,000 x 128, K = 1,024, spherical: two matrix products with the features x, |x|^2, 4 N K (D + 1) operations, are
  8 ms. Each leaves or takes a responsibility for every row and component: five times 4 N K bytes, 4 ms.
- 1,000,000 x 32, K = 64, full: the features are x and x x^T, 560 of them. 4 N K 560 operations are 2 ms; the features,
  written once and read twice, 1.4 ms.
- A hidden Markov model reads and writes T S K numbers four times at least. 10,000 x 1,000 x 4: 0.13 ms.

Every product is in float32 to all digits (`HIGHEST`). Three passes of TF32, or six of bfloat16, are as exact
(`TF32_TF32_F32_X3`, `BF16_BF16_F32_X6`) and might take half the time; where a machine lacks them compilation fails, so
they are not used unseen.

No kernel was written for tiny mixtures. By reckoning, one that loops to convergence inside takes 10 to 15 microseconds
an iteration for 10,000 of them, and XLA's ten launches over the same arrays about 100. But what it would have to hold
(floors, priors, the stopping rule, every family) is most of the library again. The first row is what decides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
SECONDS = 460
"""For all of it; the rest of eight minutes is for starting and ending."""

LIMITS = {
    "H200": (4.8e12, 67e12),
    "H100 PCIe": (2.0e12, 51e12),
    "H100": (3.35e12, 67e12),
    "A100": (2.0e12, 19.5e12),
    "L40S": (0.864e12, 91.6e12),
}
"""Bytes and float32 operations a second (without tensor cores), as the maker says; of the first name that fits."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: the `kind` of case, its sizes, and seconds after which it is ended."""

    kind: str
    title: str
    sizes: dict[str, int]
    small: dict[str, int]
    seconds: int
    who: tuple[str, ...]
    work: Callable[..., tuple[float, float]] | None = None

    def sized(self, small: bool) -> dict[str, int]:
        """Sizes, those for any machine if `small`."""
        return self.small if small else self.sizes


def spherical_work(rows: int, columns: int, components: int) -> tuple[float, float]:
    """Bytes that must move, and operations, of a step: the data once, and two matrix products."""
    return 4 * rows * columns, 4 * rows * components * (columns + 1)


def full_work(rows: int, columns: int, components: int) -> tuple[float, float]:
    """The same, with products of columns among the features."""
    return 4 * rows * columns, 4 * rows * components * columns * (columns + 3) / 2


def chain_work(sequences: int, steps: int, states: int) -> tuple[float, float]:
    """Evidence in, filtered states out and in again, marginals out; three products of a vector and a matrix a step."""
    return 4 * 4 * sequences * steps * states, 6 * sequences * steps * states**2


JAXEM = ("jaxem, scan", "jaxem, blocked", "jaxem, associative", "jaxem, kernel")
DYNAMAX = ("dynamax, sequential", "dynamax, associative")

CASES = {
    "many": Case(
        "many",
        "{problems:,} mixtures of {rows:,} x {columns}, K = {components}, to convergence",
        {"problems": 10_000, "rows": 500, "columns": 2, "components": 3},
        {"problems": 6, "rows": 40, "columns": 2, "components": 2},
        130,
        ("jaxem fit_many",),
    ),
    "spherical": Case(
        "large",
        "{rows:,} x {columns}, K = {components:,}, spherical, one EM step",
        {"rows": 1_000_000, "columns": 128, "components": 1_024},
        {"rows": 600, "columns": 12, "components": 20},
        80,
        ("jaxem",),
        spherical_work,
    ),
    "full": Case(
        "large",
        "{rows:,} x {columns}, K = {components:,}, full covariance, one EM step",
        {"rows": 1_000_000, "columns": 32, "components": 64},
        {"rows": 600, "columns": 6, "components": 3},
        60,
        ("jaxem",),
        full_work,
    ),
    "many chains": Case(
        "chains",
        "{sequences:,} x {steps:,}, K = {states}, forward-backward",
        {"sequences": 10_000, "steps": 1_000, "states": 4},
        {"sequences": 5, "steps": 20, "states": 2},
        70,
        (*JAXEM, *DYNAMAX),
        chain_work,
    ),
    "a long chain": Case(
        "chains",
        "{sequences:,} x {steps:,}, K = {states}, forward-backward",
        {"sequences": 1, "steps": 100_000, "states": 4},
        {"sequences": 1, "steps": 30, "states": 2},
        70,
        (*JAXEM, *DYNAMAX),
        chain_work,
    ),
    "wide chains": Case(
        "chains",
        "{sequences:,} x {steps:,}, K = {states}, forward-backward",
        {"sequences": 100, "steps": 10_000, "states": 32},
        {"sequences": 2, "steps": 10, "states": 9},
        80,
        (*JAXEM[:3], *DYNAMAX),
        chain_work,
    ),
}


def said(names: list[str], small: bool, seconds: float) -> tuple[list[Row], str]:
    """The lines that `gpu_cases.py` prints for some cases in so many seconds, and why there are no more of them."""
    command = [sys.executable, str(HERE / "gpu_cases.py"), *(["--small"] if small else []), *names]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        return _lines(late.stdout), f"not done after {seconds:.0f} seconds"
    errors = done.stderr.decode(errors="replace").strip().splitlines()
    return _lines(done.stdout), "" if not done.returncode else (errors or ["ended without a word"])[-1][:200]


def _lines(out: bytes | None) -> list[Row]:
    """What could be read of it: the last line may have been cut."""
    found = []
    for line in (out or b"").decode(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def everything(small: bool) -> tuple[Row, list[Row]]:
    """The device, and a row for each case and contender: measured, or why not."""
    begin = time.monotonic()
    found, why = said(["device"], small, 60)
    device = found[0] if found else {"kind": "no device", "platform": "none", "jax": "?"}
    if not small and device["platform"] != "gpu":
        return device, rows_of(CASES, small, [], why or "no GPU here")
    # On a GPU each by itself: one that fails, or runs out of memory or time, takes no other with it.
    groups = [list(CASES)] if small else [[name] for name in CASES]
    rows = []
    for names in groups:
        left = SECONDS - (time.monotonic() - begin)
        allowed = min(left, sum(CASES[name].seconds for name in names))
        found, why = said(names, small, allowed) if left > 10 else ([], "no time left")
        rows += rows_of(names, small, found, why)
    return device, rows


def rows_of(names: Any, small: bool, found: list[Row], why: str) -> list[Row]:
    """A row for each contender of some cases, with what was found of it, or why nothing was."""
    measured = {(row["case"], row["who"]): row for row in found}
    rows = []
    for name in names:
        case = CASES[name]
        title = case.title.format(**case.sized(small))
        work = case.work(**case.sized(small)) if case.work else None
        for who in case.who:
            row = measured.get((name, who), {"note": why or "it said nothing"})
            rows.append({**row, "title": title, "who": who, "work": work})
    return rows


def limits(device: Row) -> tuple[str, tuple[float, float]] | None:
    """The name of the device, and its bytes and operations a second; those of an H200 where there is no GPU."""
    if device["platform"] != "gpu":
        return "an H200", LIMITS["H200"]
    return next(((name, limit) for name, limit in LIMITS.items() if name in device["kind"]), None)


def table(device: Row, rows: list[Row]) -> str:
    """All of it, as Markdown."""
    known = limits(device)
    lines = [f"| {' | '.join(_cells(row, known))} |\n" for row in rows]
    if known:
        about = f"The limit is the larger of bytes / bandwidth and operations / peak of {known[0]}, as reckoned."
    else:
        about = "The limits of this device are not known."
    return (
        f"### One GPU\n\nOn {device['kind']} ({device['platform']}), jax {device['jax']}, float32. What was "
        f"timed was checked first, its log-likelihood against float64 on the host. {about}\n\n"
        "| case | who | milliseconds | compile, s | limit, ms | times the limit | |\n"
        "| --- | --- | --: | --: | --: | --: | --- |\n" + "".join(lines)
    )


def _cells(row: Row, known: tuple[str, tuple[float, float]] | None) -> list[str]:
    ms, limit = row.get("ms"), None
    if row["work"] and known:
        limit = 1e3 * max(work / most for work, most in zip(row["work"], known[1], strict=True))
    return [
        row["title"],
        row["who"],
        "not measured" if ms is None else f"{ms:.3g}",
        "" if ms is None else f"{row['compile']:.1f}",
        "" if limit is None else f"{limit:.2g}",
        "" if limit is None or ms is None else f"{ms / limit:.1f}",
        row.get("note", ""),
    ]


def write(section: str, out: Path) -> None:
    """Put it between the marks in a file; at its end, if there are none yet."""
    text = out.read_text() if out.exists() else ""
    marked = f"{BEGIN}\n\n{section}\n{END}"
    if BEGIN in text:
        before, rest = text.split(BEGIN)
        out.write_text(before + marked + rest.split(END)[1])
    else:
        out.write_text(f"{text.rstrip()}\n\n{marked}\n".lstrip())


def main(arguments: list[str] | None = None) -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="Time jaxem on one GPU, within eight minutes.")
    parser.add_argument("--small", action="store_true", help="sizes that any machine can take, on any machine")
    parser.add_argument("--out", type=Path, help="the file with the marks")
    chosen = parser.parse_args(arguments)
    device, rows = everything(chosen.small)
    section = table(device, rows)
    print(section)
    # What a GPU measured is not to be lost on a machine without one.
    ours = not chosen.small and (device["platform"] == "gpu" or BEGIN not in RESULTS.read_text())
    if chosen.out or ours:
        write(section, chosen.out or RESULTS)


if __name__ == "__main__":
    main()
