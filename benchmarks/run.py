"""Everything that is timed, with one command; correctness first, then medians and ratios from one run.

    python benchmarks/run.py [small] [middling] [large] [limit] [hmm]

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


def many_table(rows: list[dict[str, Any]]) -> str:
    """Seconds, ratios and steps of everybody who fitted the same problems."""
    ours = rows[0]["seconds"]
    lines = [
        f"### {rows[0]['case']}",
        "",
        "| | seconds | ratio to jaxem | compile, s | mean steps | most steps | short of the best, nats a row | agree |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        compiled = "" if row["compile"] is None else f"{row['compile']:.1f}"
        agree = "" if row["agree"] is None else f"{row['agree']:.1%}"
        lines.append(
            f"| {row['who']} | {row['seconds']:.2f} | {row['seconds'] / ours:.1f} | {compiled} | "
            f"{row['mean steps']:.0f} | {row['max steps']} | {row['short']:.0e} | {agree} |"
        )
    return "\n".join(lines) + "\n"


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
    lines = [
        "### 1,000,000 x 16, K = 32, full covariance, 20 steps",
        "",
        f"Same log-likelihood to {off:.0e} relative. Memory: the largest the process has been, less the data "
        f"({ours['data']:.0f} MB); and less the data and what the process was before the fit.",
        "",
        "| | seconds | ratio to jaxem | compile, s | peak beyond data, MB | of that, by the fit, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for who, run in (("jaxem fit", ours), ("scikit-learn", peer)):
        compiled = "" if run["compile"] is None else f"{run['compile']:.1f}"
        lines.append(
            f"| {who} | {run['seconds']:.1f} | {run['seconds'] / ours['seconds']:.1f} | {compiled} | "
            f"{run['peak'] - run['data']:.0f} | {run['peak'] - run['before']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def limit_table() -> str:
    """A step, against the part of it that nobody can do without."""
    run = alone("limit")
    return (
        "### Distance from the limit\n\n"
        "A step of the mixture above, against its two matrix products and one `exp` over rows x components.\n\n"
        "| step, s | limit, s | ratio |\n|--:|--:|--:|\n"
        f"| {run['step']:.2f} | {run['limit']:.2f} | {run['step'] / run['limit']:.2f} |\n"
    )


def hmm_table() -> str:
    """Milliseconds and ratios of everybody who fitted the same hidden Markov models."""
    import hmm

    tables = []
    for rows in hmm.everything():
        lines = [
            f"### {rows[0]['case']}",
            "",
            "| | milliseconds | ratio to jaxem | compile, s |",
            "|---|--:|--:|--:|",
        ]
        for row in rows:
            compiled = "" if row["compile"] is None else f"{row['compile']:.1f}"
            lines.append(f"| {row['who']} | {row['ms']:.1f} | {row['ms'] / rows[0]['ms']:.1f} | {compiled} |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def main(names: list[str]) -> None:
    """Run the cases named, or all, and write what they printed into RESULTS.md."""
    import many

    cases = {
        "small": lambda: many_table(many.small()),
        "middling": lambda: many_table(many.middling()),
        "large": large_table,
        "limit": limit_table,
        "hmm": hmm_table,
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
