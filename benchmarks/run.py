"""Everything that is timed, with one command; correctness first, then medians and ratios from one run.

    python benchmarks/run.py [small] [middling] [large] [limit] [hmm] [networks] [missing] [compiling] [stream] [rates]

prints a table for each and writes them into benchmarks/RESULTS.md, between the marks.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem.evaluation.profiles import WITHIN

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def machine() -> str:
    """Where this ran."""
    import numpy
    import sklearn

    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, jax {jax.__version__}, "
        f"scikit-learn {sklearn.__version__}, numpy {numpy.__version__}, float64"
    )


def table(title: str, header: list[str], rows: list[list[str]], before: str = "") -> str:
    """A section of Markdown: a title, a sentence, a table whose first column is a name."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    told = f"{before}\n\n" if before else ""
    return f"### {title}\n\n{told}" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def seconds_or_nothing(value: float | None) -> str:
    """Seconds of compilation, if there were any."""
    return "" if value is None else f"{value:.1f}"


def many_table(rows: list[dict[str, Any]]) -> str:
    """Seconds, ratios and steps of everybody who fitted the same problems."""
    ours = rows[0]["seconds"]
    header = ["", "seconds", "ratio to jaxem", "compile, s", "mean steps", "most steps"]
    header += ["short of the best, nats a row", "agree"]
    lines = [
        [
            row["who"],
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / ours:.1f}",
            seconds_or_nothing(row["compile"]),
            f"{row['mean steps']:.0f}",
            str(row["max steps"]),
            f"{row['short']:.0e}",
            "" if row["agree"] is None else f"{row['agree']:.1%}",
        ]
        for row in rows
    ]
    return table(rows[0]["case"], header, lines)


def alone(who: str) -> dict[str, Any]:
    """The result of one contender of large.py, in a process of its own."""
    done = subprocess.run([sys.executable, HERE / "large.py", who], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def large_table() -> str:
    """Seconds and memory for one large mixture."""
    ours, peer = alone("jaxem"), alone("sklearn")
    off = abs(ours["log_likelihood"] / peer["log_likelihood"] - 1)
    if off > 1e-9 or ours["steps"] != peer["steps"]:
        raise SystemExit(f"large: log-likelihoods differ by {off:.1e}, steps {ours['steps']} and {peer['steps']}")
    header = ["", "seconds", "ratio to jaxem", "compile, s", "peak beyond data, MB", "of that, by the fit, MB"]
    lines = [
        [
            who,
            f"{run['seconds']:.1f}",
            f"{run['seconds'] / ours['seconds']:.1f}",
            seconds_or_nothing(run["compile"]),
            f"{run['peak'] - run['data']:.0f}",
            f"{run['peak'] - run['before']:.0f}",
        ]
        for who, run in (("jaxem fit", ours), ("scikit-learn", peer))
    ]
    told = (
        f"Same log-likelihood to {off:.0e} relative. Memory: the largest the process has been, less the data "
        f"({ours['data']:.0f} MB); and less the data and what the process was before the fit."
    )
    return table("1,000,000 x 16, K = 32, full covariance, 20 steps", header, lines, told)


def limit_table() -> str:
    """A step, against the part of it that nobody can do without."""
    run = alone("limit")
    return (
        "### Distance from the limit\n\n"
        "A step of the mixture above, against its two matrix products and one `exp` over rows x components.\n\n"
        "| step, s | limit, s | ratio |\n|--:|--:|--:|\n"
        f"| {run['step']:.2f} | {run['limit']:.2f} | {run['step'] / run['limit']:.2f} |\n"
    )


def steps_table(cases: list[list[dict[str, Any]]]) -> str:
    """Milliseconds and ratios of everybody who took the same steps."""
    header = ["", "milliseconds", "ratio to jaxem", "compile, s"]

    def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
        return [
            [row["who"], f"{row['ms']:.1f}", f"{row['ms'] / rows[0]['ms']:.1f}", seconds_or_nothing(row["compile"])]
            for row in rows
        ]

    return "\n".join(table(rows[0]["case"], header, lines(rows)) for rows in cases)


def missing_table() -> str:
    """Milliseconds of a step with and without missing cells."""
    import missing

    lines = [
        [
            found["case"],
            f"{found['patterns']:,}",
            *(f"{ms:.2f}" for ms in found["ms"]),
            f"{found['ms'][1] / found['ms'][0]:.1f}",
        ]
        for found in missing.everything()
    ]
    header = ["full covariance", "sets of seen columns", "complete, ms", "a fifth missing, ms", "ratio"]
    return table("A step of EM with missing cells", header, lines)


def compiling_table() -> str:
    """What first calls cost, and when the command line starts to compute."""
    import compiling

    header = ["", "compile, s", "of the processors, s", "programs", "peak memory, MB"]
    lines = [
        [
            found["case"],
            *(f"{found[key]:.1f}" for key in ("wall", "processors")),
            *(f"{found[key]:.0f}" for key in ("programs", "peak")),
        ]
        for found in compiling.everything()
    ]
    told = (
        "Without a cache: the first call less the second, in a process of its own, by the clock and in seconds of all "
        "cores; and the largest that process was (about 270 MB of it are Python and JAX). Aims: 3 s for `fit`, 5 s for "
        "`fit_many`."
    )
    calls = table("The first call", header, lines, told)
    header = ["", "first program there, s", "of the processors, s", "all, s", "peak memory, MB"]
    lines = [
        [found["case"], *(f"{found[key]:.1f}" for key in ("wall", "processors", "all")), f"{found['peak']:.0f}"]
        for found in compiling.runs()
    ]
    told = (
        "`jaxem fit` on six groups of 40 rows, one to six components, from the start of its process; the second run "
        "finds the programs of the first. Aim: 2 s."
    )
    return calls + "\n" + table("The command line, without and with its cache", header, lines, told)


def stream_table() -> str:
    """Time and memory of a fit that is streamed from disk, against one in memory."""
    import stream

    found = stream.everything()
    each = 1e9 / stream.ROWS
    lines = [
        [
            who,
            *(f"{each * run[name] / run['passes']:.0f}" for name in ("seconds", "busy")),
            f"{run['seconds'] / found['memory']['seconds']:.2f}",
            seconds_or_nothing(run["compile"]),
            f"{run['peak']:.0f}",
        ]
        for who, run in (("jaxem fit_stream", found["stream"]), ("jaxem fit, all in memory", found["memory"]))
    ]
    header = ["", "ns a row and step", "of all cores, ns", "ratio of times", "compile, s", "peak, MB"]
    told = (
        f"float32, {stream.STEPS} steps from a Parquet file of {stream.ROWS * stream.COLUMNS * 4 / 1e6:.0f} MB, the "
        "first look of the stream in its time; log-likelihoods agree to "
        f"{abs(found['stream']['log_likelihood'] / found['memory']['log_likelihood'] - 1):.0e}."
    )
    title = f"{stream.ROWS:,} x {stream.COLUMNS}, K = {stream.COMPONENTS}, full covariance"
    return table(title, header, lines, told)


def rates_table() -> str:
    """Which solver wins, in bands of EM's own rate, and what each costs."""
    import rates

    races = rates.race()
    bands = rates.by_rate(races)
    lines = []
    for i, name in enumerate(races.names):
        costs = [f"{band['median'][i]:.0f}" if np.isfinite(band["median"][i]) else "never" for band in bands]
        lines.append([name, *(f"{cost} ({band['wins'][i]})" for cost, band in zip(costs, bands, strict=True))])
    header = ["EM's rate", *(f"{band['rate']}: {band['problems']} problems" for band in bands)]
    told = (
        f"{len(races.races)} mixtures and hidden Markov models. Median passes over the data to {WITHIN:g} nats a row "
        "below the best, and how often that was the fewest. The picture is docs/rates.png."
    )
    return table("Who wins where", header, lines, told)


def main(names: list[str]) -> None:
    """Run the cases named, or all, and write what they printed into RESULTS.md."""
    import bayesnet
    import hmm
    import many

    cases = {
        "small": lambda: many_table(many.small()),
        "middling": lambda: many_table(many.middling()),
        "large": large_table,
        "limit": limit_table,
        "hmm": lambda: steps_table(hmm.everything()),
        "networks": lambda: steps_table(bayesnet.everything()),
        "missing": missing_table,
        "compiling": compiling_table,
        "stream": stream_table,
        "rates": rates_table,
    }
    sections = [f"Measured on {machine()}.\n"]
    for name in names or list(cases):
        sections.append(cases[name]())
        print(sections[-1], flush=True)
    if not names:
        before, rest = RESULTS.read_text().split(BEGIN)
        after = rest.split(END)[1]
        RESULTS.write_text(before + BEGIN + "\n\n" + "\n".join(sections) + "\n" + END + after)


if __name__ == "__main__":
    main(sys.argv[1:])
