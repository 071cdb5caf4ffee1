"""The command line: `jaxem fit TABLE ...`, `jaxem hmm TABLE ...`.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Bad input is one line on stderr and
exit status 2; an interruption is 130.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from jaxem._version import version
from jaxem.errors import InputError

if TYPE_CHECKING:
    from jaxem.job import Settings
    from jaxem.outcome import Outcome
    from jaxem.tables import Grouped

MOST_COMPONENTS = 1000
INTERRUPTED = 130


class OneLine(TyperGroup):
    """Commands whose usage errors are one line, as all others are."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run; on a wrong option say so and exit with status 2."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            # With neither command nor argument, the message is the help.
            if type(error).__name__ == "NoArgsIsHelpError":
                sys.exit(2)
            code = complain(f"{error.format_message().rstrip('.')}; see jaxem --help")  # type: ignore[attr-defined]
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(cls=OneLine, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")


def _tell_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"jaxem {version}")
        raise typer.Exit
    return False


@app.callback()
def _jaxem(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Thousands of mixtures or hidden Markov models from one table, by expectation-maximisation."""


def _option(panel: str, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **limits)


Table = Annotated[str, typer.Argument(help="CSV, Parquet or Arrow IPC file; or flights, which is shipped.")]
Columns = Annotated[str, _option("Data", "Columns to fit, with commas between.")]
Out = Annotated[Path, _option("Data", "Folder for the results.")]
By = Annotated[str, _option("Data", "Columns that name the group; without it the table is one.")]
MinRows = Annotated[int, _option("Data", "Groups with fewer complete rows are not fitted.", min=1)]
Missing = Annotated[str, _option("Data", "Texts that stand for a missing number, as empty does.")]
Assign = Annotated[bool, _option("Data", "Write where every row belongs, too.", "--assign")]
Family = Annotated[
    str,
    _option(
        "Model",
        "gaussian, diagonal, spherical, tied, bernoulli, binomial, categorical or poisson; "
        "one for all columns, or one for each, with commas between.",
    ),
]
Trials = Annotated[str, _option("Model", "For binomial: how many trials are behind each count.")]
Select = Annotated[str, _option("Model", "What chooses among them: bic, aic or icl.")]
Prior = Annotated[
    str,
    _option(
        "Model",
        "weak: worth about one row a component, scaled to the group's own spread; "
        "none: maximum likelihood with a floor under the spread.",
    ),
]
Restarts = Annotated[int, _option("Fitting", "Starts for each number of components or states.", min=1)]
Method = Annotated[str, _option("Fitting", "Of starting: kmeans++ or random.")]
Tol = Annotated[float, _option("Fitting", "Stop when the gain still to come is below this, in nats a row.")]
MaxSteps = Annotated[int, _option("Fitting", "EM steps at most.", min=1)]
Seed = Annotated[int, _option("Fitting", "Of all random draws.", min=0)]
Dtype = Annotated[str, _option("Fitting", "float64 or float32.")]
Workers = Annotated[int, _option("Fitting", "Slabs of groups worked on at once.", min=1, max=64)]
Components = Annotated[str, _option("Model", "Numbers of components to try: 1:6, or 2, or 1,2,4.")]
States = Annotated[str, _option("Model", "Numbers of states to try: 1:4, or 2, or 1,2,4.")]
Order = Annotated[
    str, _option("Data", "Column that must grow along each sequence; without it the order of the table is taken.")
]
Sequence = Annotated[str, _option("Data", "Columns that tell the sequences of a group apart.")]


@app.command(no_args_is_help=True)
def fit(
    table: Table,
    columns: Columns,
    out: Out,
    by: By = "",
    min_rows: MinRows = 5,
    missing: Missing = "NA",
    family: Family = "gaussian",
    trials: Trials = "",
    components: Components = "1:6",
    select: Select = "bic",
    prior: Prior = "weak",
    restarts: Restarts = 4,
    method: Method = "kmeans++",
    tol: Tol = 1e-6,
    max_steps: MaxSteps = 1000,
    seed: Seed = 0,
    dtype: Dtype = "float64",
    workers: Workers = 2,
    assign: Assign = False,
) -> None:
    """Fit mixtures to every group of a table, and choose the number of components of each.

    Writes into the folder --out: models.parquet (a row for each group), selection.parquet (a row for each group and
    number of components), report.html, and with --assign assignments.parquet (a row for each row of the table).
    """
    _run("fit", dict(locals()))


@app.command(no_args_is_help=True)
def hmm(
    table: Table,
    columns: Columns,
    out: Out,
    by: By = "",
    order: Order = "",
    sequence: Sequence = "",
    min_rows: MinRows = 20,
    missing: Missing = "NA",
    family: Family = "gaussian",
    trials: Trials = "",
    states: States = "1:4",
    select: Select = "bic",
    prior: Prior = "weak",
    restarts: Restarts = 4,
    method: Method = "kmeans++",
    tol: Tol = 1e-6,
    max_steps: MaxSteps = 1000,
    seed: Seed = 0,
    dtype: Dtype = "float64",
    workers: Workers = 2,
    assign: Assign = False,
) -> None:
    """Fit hidden Markov models to the sequences of every group of a table, and choose the number of states of each.

    A row with a null is a step that was not seen. Writes into the folder --out: models.parquet (a row for each group),
    selection.parquet (a row for each group and number of states), report.html, and with --assign assignments.parquet (a
    row for each row of the table: its state on the most probable path, and the probability of that).
    """
    _run("hmm", dict(locals()))


def _run(command: str, options: dict[str, Any]) -> None:
    """Do what a command is for, and exit with its status."""
    try:
        raise typer.Exit(_fit(command, options))
    except InputError as error:
        raise typer.Exit(complain(str(error))) from None
    except KeyboardInterrupt:
        typer.echo("jaxem: interrupted; nothing was written", err=True)
        raise typer.Exit(INTERRUPTED) from None


def complain(message: str) -> int:
    """Say in one line what is wrong with the input; the exit status."""
    typer.echo(f"jaxem: error: {' '.join(message.split())}", err=True)
    return 2


def _fit(command: str, options: dict[str, Any]) -> int:
    """The work of `jaxem fit` and `jaxem hmm`; returns the exit status."""
    from jaxem import job, results, tables
    from jaxem.kinds import Kind

    columns, by = split(options["columns"]), split(options["by"])
    # A command without that option fits rows without order.
    order = options["order"].strip() if "order" in options else None
    sequence = split(options.get("sequence", ""))
    _check_names(columns, by, {*results.OWN, *results.PARAMETERS, *_prefixed(columns, results.PARAMETERS)})
    kind = Kind.parse(split(options["family"]), columns, [whole("--trials", t) for t in split(options["trials"])])
    hidden = {"fit": "components", "hmm": "states"}[command]
    settings = _settings(options, hidden)
    began = time.perf_counter()
    frame = tables.read(
        options["table"], columns, {"--by": by, "--order": [order] if order else [], "--sequence": sequence}
    )
    grouped = tables.group(frame, kind, by, split(options["missing"]), order, sequence)
    _check_sizes(grouped, settings, hidden)
    _check_range(grouped, settings.dtype)
    results.check_folder(options["out"])
    reading = time.perf_counter() - began
    with _bar(*job.expected(grouped, settings)) as progress:
        outcome = job.run(grouped, settings, progress)
    _write(outcome, options, _command(command, options), reading)
    return _conclude(outcome, options["out"])


def _settings(options: dict[str, Any], hidden: str) -> Settings:
    from jaxem.job import Settings
    from jaxem.outcome import CRITERIA
    from jaxem.start import METHODS

    words = {"select": CRITERIA, "prior": ("weak", "none"), "method": METHODS, "dtype": ("float64", "float32")}
    for name, allowed in words.items():
        if options[name] not in allowed:
            raise InputError(f"--{name} {options[name]}: choose from {', '.join(allowed)}")
    if not 0 <= options["tol"] < float("inf"):
        raise InputError(f"--tol {options['tol']}: it must be a number, zero or above")
    names = ("restarts", "min_rows", "seed", "tol", "max_steps", "assign", "workers", *words)
    return Settings(components=numbers(hidden, options[hidden]), **{name: options[name] for name in names})


def numbers(hidden: str, text: str) -> tuple[int, ...]:
    """The numbers (of components, of states) that `1:6`, `2` or `1,2,4` stand for, ascending.

    Raises:
        InputError: anything else, or a number below one.

    >>> numbers("components", "1:3,6")
    (1, 2, 3, 6)
    """
    found: set[int] = set()
    for part in split(text):
        ends = [whole(f"--{hidden}", end) for end in part.split(":")]
        if len(ends) > 2 or min(ends) < 1 or max(ends) > MOST_COMPONENTS or ends[0] > ends[-1]:
            raise InputError(
                f"--{hidden} {text}: numbers of {hidden} go from 1 to {MOST_COMPONENTS}, the smaller first; "
                "write for example 1:6"
            )
        found |= set(range(ends[0], ends[-1] + 1))
    if not found:
        raise InputError(f"--{hidden} is empty; write for example 1:6")
    return tuple(sorted(found))


def split(text: str) -> list[str]:
    """The parts of a list with commas.

    >>> split("dep_delay, arr_delay")
    ['dep_delay', 'arr_delay']
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def whole(option: str, text: str) -> int:
    """A whole number, or an InputError that names the option."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a whole number; write for example 3") from None


def _prefixed(columns: list[str], parameters: tuple[str, ...]) -> list[str]:
    return [f"{column}_{parameter}" for column in columns for parameter in parameters]


def _check_names(columns: list[str], by: list[str], own: set[str]) -> None:
    if not columns:
        raise InputError("--columns is empty; name the columns to fit, with commas between")
    for option, names in (("--columns", columns), ("--by", by)):
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{option} {','.join(names)}: {name} is there twice; name each column once")
    for name in by:
        if name in own:
            raise InputError(f"--by {name}: the results have a column of that name; rename it in the table")


def _check_sizes(grouped: Grouped, settings: Settings, hidden: str) -> None:
    largest, most = int(grouped.n.max()), max(settings.components)
    if most > largest:
        where = "the largest group has" if len(grouped.n) > 1 else "the table has"
        rows = f"{largest:,} complete row" + ("s" if largest != 1 else "")
        raise InputError(f"--{hidden} up to {most}: {where} only {rows}; ask for at most {largest}")


def _check_range(grouped: Grouped, dtype: str) -> None:
    import numpy as np

    beyond = np.abs(grouped.x) > np.finfo(dtype).max  # a step that was not seen is NaN, and above nothing
    if beyond.any():
        at, column = np.argwhere(beyond)[0]
        value, name = grouped.x[at, column], grouped.kind.columns[column]
        raise InputError(
            f"column {name}, row {grouped.row[at]}: {value:g} is beyond {dtype}; use --dtype float64, or rescale"
        )


@contextlib.contextmanager
def _bar(groups: int, fits: int) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr; nothing at all if that is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    layout = (
        TextColumn("fitting"),
        BarColumn(),
        TextColumn(f"{{task.fields[groups]:,}} of {groups:,} groups"),
        TextColumn("{task.fields[speed]:,.0f} fits/s"),
        TimeRemainingColumn(),
    )
    with Progress(*layout, console=Console(stderr=True), transient=True) as bar:
        task, began = bar.add_task("", total=fits, groups=0, speed=0.0), time.perf_counter()

        def tell(groups: int, done: int) -> None:
            bar.update(task, completed=done, groups=groups, speed=done / (time.perf_counter() - began))

        yield tell


def _write(outcome: Outcome, options: dict[str, Any], command: str, reading: float) -> None:
    from jaxem import report, results

    out, began = options["out"], time.perf_counter()
    try:
        with results.together(out) as place:
            results.models(outcome).write_parquet(place("models.parquet"))
            results.selection(outcome).write_parquet(place("selection.parquet"))
            if outcome.settings.assign:
                results.assignments(outcome).write_parquet(place("assignments.parquet"))
            seconds = {"reading": reading, "writing tables": time.perf_counter() - began}
            html = report.page(outcome, Path(options["table"]).name, command, seconds)
            place("report.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot write there ({error.strerror or error}); name another folder") from error


def _command(command: str, options: dict[str, Any]) -> str:
    """The command that does the same again."""
    words = ["jaxem", command, options["table"]]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name == "table" or value == "" or value is False:
            continue
        words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def _conclude(outcome: Outcome, out: Path) -> int:
    from jaxem.report import in_words

    fitted, groups = int((outcome.choice >= 0).sum()), len(outcome.choice)
    converged = int((outcome.status == 1).sum())
    if outcome.interrupted:
        typer.echo(f"jaxem: interrupted; the {fitted:,} finished of {groups:,} groups are in {out}", err=True)
        return INTERRUPTED
    if not outcome.settings.assign and (out / "assignments.parquet").exists():
        typer.echo(f"jaxem: {out / 'assignments.parquet'} is left from an earlier run", err=True)
    if fitted == 0:
        why = "see the status column of models.parquet"
        typer.echo(f"jaxem: none of {groups:,} groups could be fitted; {why}. Results are in {out}")
        return 0
    compiling = f"{in_words(outcome.compile_seconds)} of compilation over {outcome.settings.workers} workers"
    typer.echo(
        f"jaxem: {fitted:,} of {groups:,} groups have a model, {converged:,} converged; {outcome.fits:,} fits "
        f"in {in_words(outcome.seconds)} ({compiling}). Results are in {out}"
    )
    return 0


def cache_compilations() -> None:
    """Keep what this process compiles for the next one; `JAX_COMPILATION_CACHE_DIR` says where, if it is set."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "jaxem"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not os.environ.get("JAX_PLATFORMS"):
        # The command line computes on the CPU: no need to start an accelerator and take its memory.
        jax.config.update("jax_platforms", "cpu")


def main() -> None:
    """The console entry point: this process is jaxem's own, so it may set JAX's flags."""
    cache_compilations()
    app()


if __name__ == "__main__":
    main()
