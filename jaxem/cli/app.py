"""The command line: `jaxem fit TABLE ...`, `jaxem hmm TABLE ...`, `jaxem race [TABLE]...`.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Bad input is one line on stderr and
exit status 2; status 1 means that no group could be fitted, 130 an interruption.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from jaxem._version import version
from jaxem.cli import parsing
from jaxem.cli.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from jaxem.cli.cluster import Meeting, Peers
    from jaxem.cli.columns import ColumnModel
    from jaxem.cli.fit.result import Outcome
    from jaxem.cli.fit.settings import Settings
    from jaxem.cli.fit.streamed import Assignments
    from jaxem.cli.race.run import Outcome as RaceOutcome

INTERRUPTED = 130
NOTHING_FITTED = 1


class OneLine(TyperGroup):
    """Typer commands whose usage errors are one line, like all others."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run; on a usage error print it and exit with status 2."""
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
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Do not keep compiled programs for the next run, nor use those of the last. They are in the folder "
            "$JAX_COMPILATION_CACHE_DIR, or $XDG_CACHE_HOME/jaxem, or ~/.cache/jaxem, and may be deleted at any time.",
        ),
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", help="A module or file of Python with families of your own (see jem.family)."),
    ] = None,
) -> None:
    """Thousands of mixtures or hidden Markov models from one table, by expectation-maximisation."""
    if no_cache:
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
    try:
        parsing.load(imports or [])
    except InputError as error:
        raise typer.Exit(complain(str(error))) from None


def _option(panel: str, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **limits)


Table = Annotated[str, typer.Argument(help="CSV, Parquet or Arrow IPC file; or flights, which is shipped.")]
Columns = Annotated[str, _option("Data", "Columns to fit, with commas between.")]
Out = Annotated[Path, _option("Data", "Folder for the results.")]
By = Annotated[str, _option("Data", "Columns that name the group; without it the table is one.")]
MinRows = Annotated[int, _option("Data", "Groups with fewer rows that count are not fitted.", min=1)]
Null = Annotated[str, _option("Data", "Texts that stand for a missing number, as empty does.")]
Missing = Annotated[
    str,
    _option(
        "Data",
        "em: a row counts with whatever cells it has (families of whole rows: if it is complete); "
        "drop: only complete rows count.",
    ),
]
Assign = Annotated[bool, _option("Data", "Write where every row belongs, too.", "--assign")]
Family = Annotated[
    str,
    _option(
        "Model",
        "One for all columns, or one for each, with commas between: gaussian, student_t, laplace, von_mises (radians), "
        "beta, exponential, gamma, lognormal, inverse_gaussian, weibull, poisson, geometric, negative_binomial, "
        "binomial, bernoulli, categorical. One column by itself, its zeros the first component: "
        "zero_inflated_poisson, zero_inflated_negative_binomial, zero_inflated_gamma. All columns together: gaussian, "
        "diagonal, spherical, tied, student_t, factor_analysis, ppca, multinomial, dirichlet. Columns lower,upper, "
        "empty where unknown: censored_exponential, censored_weibull, censored_gaussian. Inputs, and last the "
        "response: linear_regression, logistic_regression, poisson_regression. See jaxem families.",
    ),
]
Trials = Annotated[str, _option("Model", "For binomial: how many trials are behind each count.")]
Factors = Annotated[int | None, _option("Model", "For factor_analysis and ppca: how many hidden factors.", min=1)]
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
Method = Annotated[str, _option("Fitting", "Of starting: kmeans++, random, or mixed, which is both in turn.")]
Tol = Annotated[float, _option("Fitting", "Stop when the gain still to come is below this, in nats a row.")]
MaxSteps = Annotated[int, _option("Fitting", "EM steps at most.", min=1)]
Seed = Annotated[int, _option("Fitting", "Of all random draws.", min=0)]
Dtype = Annotated[str, _option("Fitting", "float64 or float32.")]
Memory = Annotated[
    str,
    _option(
        "Fitting",
        "Without --by: a table that would take more than this is put into OUT as numbers, and read from there for each "
        "step. 500MB, 2GB or 1.5GiB.",
    ),
]
Workers = Annotated[int, _option("Fitting", "Slabs of groups worked on at once, on each device.", min=1, max=64)]
Device = Annotated[str, _option("Fitting", "cpu, gpu or tpu; groups are dealt out to all of them that are there.")]
Restart = Annotated[
    bool, _option("Fitting", "Start over: forget the finished groups of a run that did not end.", "--restart")
]
Coordinator = Annotated[
    str,
    _option(
        "Processes",
        "HOST:PORT at which process 0 listens. The command is started once for each process, with the same table, and "
        "the same --out in a folder that all of them share.",
    ),
]
Processes = Annotated[int | None, _option("Processes", "How many there are; groups are dealt out among them.", min=1)]
Process = Annotated[
    int | None, _option("Processes", "Which of them this is, from 0; that one writes the results.", min=0)
]
Distributed = Annotated[
    bool,
    _option("Processes", "Read all three from Slurm, Kubernetes, Open MPI or a Cloud TPU.", "--distributed"),
]
Components = Annotated[str, _option("Model", "Numbers of components to try: 1:6, or 2, or 1,2,4.")]
States = Annotated[str, _option("Model", "Numbers of states to try: 1:4, or 2, or 1,2,4.")]
Order = Annotated[
    str, _option("Data", "Column that sequences are sorted by; without it the order of the table is taken.")
]
Frequency = Annotated[
    str,
    _option(
        "Data",
        "How far a step is from the next in --order, as 1d, 1h, 15m, 1mo, or 1 for numbers: steps that the table lacks "
        "are then steps that were not seen. Without it the rows on both sides of a gap are neighbours.",
    ),
]
Sequence = Annotated[str, _option("Data", "Columns that tell the sequences of a group apart.")]

Tables = Annotated[
    list[str] | None, typer.Argument(help="CSV, Parquet or Arrow IPC files; without any, the shipped flights.")
]
RaceColumns = Annotated[str, _option("Data", "Columns to fit, with commas between; those of the flights are known.")]
RaceMissing = Annotated[
    str, _option("Data", "drop: only complete rows are raced on; em: a row counts with whatever cells it has.")
]
Smallest = Annotated[int, _option("Data", "Groups with fewer rows that count are left out.", min=1)]
Groups = Annotated[int, _option("Data", "At most so many groups, the largest first.", min=1)]
Raw = Annotated[
    bool,
    _option(
        "Data",
        "Leave columns of Gaussians and their like in their own units; otherwise each group's are standardised.",
        "--raw",
    ),
]
Size = Annotated[
    int | None,
    _option(
        "Model",
        f"Race mixtures of so many components; {parsing.COMPONENTS} if left out.",
        min=1,
        max=parsing.MOST_COMPONENTS,
    ),
]
Chain = Annotated[
    int | None, _option("Model", "Race hidden Markov models of so many states.", min=1, max=parsing.MOST_COMPONENTS)
]
Solvers = Annotated[
    str,
    _option(
        "Race",
        "Who races, with commas between: em, squarem, anderson, lbfgs, adam, sgd, newton or online; "
        "adam:0.01 is Adam with that learning rate.",
    ),
]
Starts = Annotated[int, _option("Race", "Starts of each group; each is a problem.", min=1)]
RaceSteps = Annotated[int, _option("Fitting", "Steps of each solver at most.", min=1)]
RaceDtype = Annotated[str, _option("Fitting", "float64, for a race to the last digits; or float32.")]


@app.command(no_args_is_help=True)
def fit(
    table: Table,
    columns: Columns,
    out: Out,
    by: By = "",
    min_rows: MinRows = 5,
    null: Null = "NA",
    missing: Missing = "em",
    family: Family = "gaussian",
    trials: Trials = "",
    factors: Factors = None,
    components: Components = "1:6",
    select: Select = "bic",
    prior: Prior = "weak",
    restarts: Restarts = 4,
    method: Method = "mixed",
    tol: Tol = 1e-6,
    max_steps: MaxSteps = 1000,
    seed: Seed = 0,
    dtype: Dtype = "float64",
    workers: Workers = 2,
    memory: Memory = "2GB",
    device: Device = "cpu",
    assign: Assign = False,
    restart: Restart = False,
    coordinator: Coordinator = "",
    processes: Processes = None,
    process: Process = None,
    distributed: Distributed = False,
) -> None:
    """Fit mixtures to every group of a table, and choose the number of components of each.

    Writes into the folder --out: models.parquet (a row for each group), selection.parquet (a row for each group and
    number of components), report.html, and with --assign assignments.parquet (a row for each row of the table).
    Finished groups are kept in OUT/parts until then: if the job is stopped or killed, the same command goes on.
    """
    _run("fit", dict(locals()))


@app.command(no_args_is_help=True)
def hmm(
    table: Table,
    columns: Columns,
    out: Out,
    by: By = "",
    order: Order = "",
    frequency: Frequency = "",
    sequence: Sequence = "",
    min_rows: MinRows = 20,
    null: Null = "NA",
    missing: Missing = "em",
    family: Family = "gaussian",
    trials: Trials = "",
    factors: Factors = None,
    states: States = "1:4",
    select: Select = "bic",
    prior: Prior = "weak",
    restarts: Restarts = 4,
    method: Method = "mixed",
    tol: Tol = 1e-6,
    max_steps: MaxSteps = 1000,
    seed: Seed = 0,
    dtype: Dtype = "float64",
    workers: Workers = 2,
    device: Device = "cpu",
    assign: Assign = False,
    restart: Restart = False,
    coordinator: Coordinator = "",
    processes: Processes = None,
    process: Process = None,
    distributed: Distributed = False,
) -> None:
    """Fit hidden Markov models to the sequences of every group of a table, and choose the number of states of each.

    A row without any value is a step that was not seen. Writes into the folder --out: models.parquet (a row for each
    group), selection.parquet (a row for each group and number of states), report.html, and with --assign
    assignments.parquet (a row for each row of the table: its state on the most probable path, and the probability of
    that). Finished groups are kept in OUT/parts until then: if the job is stopped or killed, the same command goes on.
    """
    _run("hmm", dict(locals()))


@app.command()
def race(
    tables: Tables = None,
    columns: RaceColumns = "",
    out: Out = Path("race"),
    by: By = "",
    order: Order = "",
    sequence: Sequence = "",
    min_rows: Smallest = 20,
    null: Null = "NA",
    missing: RaceMissing = "drop",
    groups: Groups = 12,
    raw: Raw = False,
    family: Family = "gaussian",
    trials: Trials = "",
    factors: Factors = None,
    components: Size = None,
    states: Chain = None,
    prior: Prior = "weak",
    solvers: Solvers = "em,squarem,anderson,lbfgs,adam,sgd",
    starts: Starts = 1,
    method: Method = "kmeans++",
    tol: Tol = 1e-9,
    max_steps: RaceSteps = 2000,
    seed: Seed = 0,
    dtype: RaceDtype = "float64",
) -> None:
    """Race EM against gradient methods on the groups of tables: same starts, same objective.

    Without a table the twelve aircraft with the most flights are raced on, which takes under a minute. Prints who won,
    and writes into the folder --out: report.html, solvers.parquet (a row for each solver), problems.parquet (a row for
    each group and start) and runs.parquet (a row for each of them and each solver).
    """
    _run("race", dict(locals()))


@app.command()
def families(
    word: Annotated[str, typer.Argument(help="A family, of which to print the whole reference.")] = "",
) -> None:
    """List the families that --family takes, those of --import among them; or tell all about one."""
    from jaxem.cli.columns import reference

    try:
        typer.echo(reference(word))
    except InputError as error:
        raise typer.Exit(complain(str(error))) from None


def _run(command: str, options: dict[str, Any]) -> None:
    """Run a command, and exit with its status."""
    work = _race if command == "race" else _fit
    try:
        raise typer.Exit(work(command, options))
    except InputError as error:
        raise typer.Exit(complain(str(error))) from None
    except KeyboardInterrupt as interruption:
        typer.echo(f"jaxem: interrupted; {str(interruption) or 'nothing was written'}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def complain(message: str) -> int:
    """Print in one line what is wrong with the input; returns the exit status."""
    typer.echo(f"jaxem: error: {' '.join(message.split())}", err=True)
    return 2


def _fit(command: str, options: dict[str, Any]) -> int:
    """Run `jaxem fit` or `jaxem hmm`; returns the exit status."""
    from jaxem.cli import cluster, output
    from jaxem.cli.fit import checkpoint, frames, run

    columns, by = parsing.split(options["columns"]), parsing.split(options["by"])
    # A command without that option fits rows without order.
    order = options["order"].strip() if "order" in options else None
    sequence = parsing.split(options.get("sequence", ""))
    meeting = parsing.meeting(options)
    parsing.check_names(columns, by)
    own = {*frames.OWN, *frames.PARAMETERS, *parsing.prefixed(columns, frames.PARAMETERS)}
    kind = parsing.families(options, columns)
    hidden = {"fit": "components", "hmm": "states"}[command]
    settings = parsing.job_settings(options, hidden, kind.least)
    if command == "fit" and not by and _too_large(options, columns):
        return _fit_large(options, kind, settings, meeting)
    parsing.check_device(options["device"])
    began = time.perf_counter()
    null, missing = parsing.split(options["null"]), options["missing"]
    grouped = parsing.read(options["table"], kind, by, null, order, sequence, missing, options.get("frequency", ""))
    renamed = parsing.key_names(by, own)
    grouped = dataclasses.replace(grouped, keys=grouped.keys.rename(renamed))
    for note in (*(f"--by {old} is named {new} in the results" for old, new in renamed.items()), *grouped.notes):
        typer.echo(f"jaxem: {note}", err=True)
    parsing.check_sizes(grouped, settings, hidden)
    parsing.check_range(grouped, settings.dtype)
    output.check_folder(options["out"])
    described, together = checkpoint.described(command, options, grouped), cluster.met(meeting)
    with checkpoint.opened(options["out"], described, options["restart"], together) as kept:
        reading = time.perf_counter() - began
        with _bar("fitting", shown=kept.peers.index == 0) as progress:
            outcome = run.run(grouped, settings, progress, kept)
        if kept.peers.index > 0:
            return _conclude_share(outcome, kept.peers)
        _write(outcome, options, parsing.again(command, options), reading, kept.advice)
        if not outcome.interrupted:
            kept.remove()
    return _conclude(outcome, options["out"], kept.peers.count)


def _too_large(options: dict[str, Any], columns: list[str]) -> bool:
    """Whether the table needs more memory than allowed; if so, a message says it."""
    from jaxem.cli.fit import streamed

    budget, needed = parsing.memory(options["memory"]), streamed.needed(options["table"], columns)
    if needed > budget:
        typer.echo(
            f"jaxem: {options['table']} would take about {needed / 1e6:,.4g} MB, more than --memory "
            f"{options['memory']}: its rows are put into {options['out']} and read from there for each step",
            err=True,
        )
    return needed > budget


def _fit_large(options: dict[str, Any], kind: ColumnModel, settings: Settings, meeting: Meeting | None) -> int:
    """Run `jaxem fit` on one table that is larger than memory; returns the exit status.

    Of several processes each works on a share of the rows, in every step.
    """
    from jaxem.cli import cluster, output
    from jaxem.cli.fit import streamed

    share = (0, 1) if meeting is None else cluster.join(meeting)
    parsing.check_device(options["device"])
    began, out = time.perf_counter(), options["out"]
    output.check_folder(out)
    null = parsing.split(options["null"])
    with streamed.read(options["table"], kind, null, options["missing"], settings.dtype, out, share) as table:
        parsing.check_sizes(table.grouped, settings, "components")
        reading = time.perf_counter() - began
        with _bar("fitting", shown=share[0] == 0) as progress:
            outcome, assignments = streamed.run(table, settings, progress)
        cluster.part(meeting)
        if share[0] > 0:
            return _conclude_share(outcome, cluster.Peers(out, *share))
        _write(outcome, options, parsing.again("fit", options), reading, "name another folder", assignments)
    return _conclude(outcome, out, share[1])


def _race(command: str, options: dict[str, Any]) -> int:
    """Run `jaxem race`; returns the exit status."""
    from jaxem.cli import output
    from jaxem.cli.race import run

    began = time.perf_counter()
    if not options["tables"]:
        options |= {name: options[name] or usual for name, usual in parsing.SHIPPED.items()}
    settings = parsing.race_settings(options)
    tables = parsing.race_tables(options)
    for name, grouped in tables.items():
        for note in grouped.notes:
            typer.echo(f"jaxem: {name}: {note}", err=True)
    card = run.prepare(tables, settings)
    output.check_folder(options["out"])
    reading = time.perf_counter() - began
    with _bar("racing") as progress:
        outcome = run.run(card, progress)
    _write_race(outcome, options["out"], parsing.again(command, options), reading)
    return _conclude_race(outcome, options["out"])


def _bar(verb: str, shown: bool = True) -> contextlib.AbstractContextManager[Callable[..., Any] | None]:
    """A progress bar on stderr; none if that is not a terminal."""
    from jaxem.io.progress import reported

    return reported(shown and sys.stderr.isatty(), verb)


def _write(
    outcome: Outcome,
    options: dict[str, Any],
    command: str,
    reading: float,
    advice: str,
    assignments: Assignments | None = None,
) -> None:
    """Write the results, with advice if that fails; `assignments` are computed while they are written."""
    from jaxem.cli.fit import frames, report

    def written() -> Iterator[tuple[str, pl.DataFrame | Assignments]]:
        yield "models", frames.models(outcome)
        yield "selection", frames.selection(outcome)
        if outcome.settings.assign:
            yield "assignments", assignments or frames.assignments(outcome)

    source = Path(options["table"]).name
    _files(options["out"], written(), reading, lambda seconds: report.page(outcome, source, command, seconds), advice)


def _write_race(outcome: RaceOutcome, out: Path, command: str, reading: float) -> None:
    from jaxem.cli.race import frames, report

    written = ((name, getattr(frames, name)(outcome)) for name in ("solvers", "problems", "runs"))
    _files(out, written, reading, lambda seconds: report.page(outcome, command, seconds), "name another folder")


def _files(
    out: Path,
    written: Iterable[tuple[str, pl.DataFrame | Assignments]],
    reading: float,
    page: Callable[[dict[str, float]], str],
    advice: str,
) -> None:
    """Write tables and a page with the seconds spent on reading and writing; with advice if that fails."""
    from jaxem.cli import output

    began = time.perf_counter()
    try:
        with output.together(out) as place:
            for name, frame in written:
                frame.write_parquet(place(f"{name}.parquet"))
            html = page({"reading": reading, "writing tables": time.perf_counter() - began})
            place("report.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise output.unwritable(out, error, advice) from error


def _conclude(outcome: Outcome, out: Path, processes: int) -> int:
    from jaxem.cli.html import in_words

    fitted, groups, grouped = int((outcome.choice >= 0).sum()), len(outcome.choice), outcome.grouped
    converged = int((outcome.status == 1).sum())
    if outcome.interrupted:
        said = f"the {fitted:,} finished of {groups:,} groups are in {out}; the same command goes on with the others"
        typer.echo(f"jaxem: interrupted; {said}", err=True)
        return INTERRUPTED
    if not outcome.settings.assign and (out / "assignments.parquet").exists():
        typer.echo(f"jaxem: {out / 'assignments.parquet'} is left from an earlier run", err=True)
    if grouped.partly and grouped.kind.whole_rows:
        typer.echo(f"jaxem: {grouped.gaps_in_words}", err=True)
    if fitted == 0:
        why = "see the status column of models.parquet"
        typer.echo(f"jaxem: none of {groups:,} groups could be fitted; {why}. Results are in {out}")
        return NOTHING_FITTED
    before = f"{outcome.before:,} of the groups were done before; " if outcome.before else ""
    several, first = (f" by {processes} processes", " of the first") if processes > 1 else ("", "")
    compiling = f"{in_words(outcome.compile_seconds)} of compilation over {outcome.workers} workers{first}"
    typer.echo(
        f"jaxem: {fitted:,} of {groups:,} groups have a model, {converged:,} converged; {before}{outcome.fits:,} fits"
        f"{several} in {in_words(outcome.seconds)} ({compiling}). Results are in {out}"
    )
    return 0


def _conclude_share(outcome: Outcome, peers: Peers) -> int:
    """Report on the share of a process other than the first; returns the exit status."""
    from jaxem.cli.html import in_words

    if outcome.interrupted:
        raise KeyboardInterrupt
    made = f"{outcome.fits:,} fits in {in_words(outcome.seconds)}"
    typer.echo(f"jaxem: {peers} has done its share, {made}; process 0 puts the results together")
    return 0


def _conclude_race(outcome: RaceOutcome, out: Path) -> int:
    from rich.console import Console

    from jaxem.cli.html import in_words
    from jaxem.cli.race.report import summary

    Console().print(summary(outcome))
    problems, left_out = len(outcome.card.problems), sum(map(len, outcome.card.left_out.values()))
    few = f"; {left_out:,} group{'s' if left_out != 1 else ''} left out" if left_out else ""
    typer.echo(
        f"jaxem: {problems:,} problem{'s' if problems != 1 else ''} in {in_words(outcome.seconds)}{few}. "
        f"The report is {out / 'report.html'}"
    )
    return 0


def cache_compilations() -> None:
    """Keep compiled programs for the next process, in the folder that `--help` names, if that is possible.

    A cache only saves time: if it fails, results are the same, and there is no message.
    """
    import jax

    from jaxem.io.cache import cache

    warnings.filterwarnings("ignore", "compiled programs are not kept")
    cache()
    if not os.environ.get("JAX_PLATFORMS"):
        # The command line computes on the CPU: do not start an accelerator and take its memory.
        jax.config.update("jax_platforms", "cpu")


def main() -> None:
    """Console entry point: this process is jaxem's own, so it may set JAX's flags."""
    cache_compilations()
    app()


if __name__ == "__main__":
    main()
