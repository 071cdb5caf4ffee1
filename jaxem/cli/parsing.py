"""Options as typed, checked and converted to settings and tables; InputError says in a line what is wrong.

As in `jaxem.cli.app`, nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxem.cli.errors import InputError

if TYPE_CHECKING:
    from jaxem.cli.cluster import Meeting
    from jaxem.cli.columns import ColumnModel
    from jaxem.cli.fit.settings import Settings
    from jaxem.cli.race.run import Settings as RaceSettings
    from jaxem.cli.table.groups import Grouped

MOST_COMPONENTS = 1000
COMPONENTS = 3
"""Components of the mixtures of a race, by default."""
MISSING = ("em", "drop")
DEVICES = ("cpu", "gpu", "tpu")
SHIPPED = {"tables": ["flights"], "columns": "dep_delay,arr_delay", "by": "tailnum"}
"""Options of a race without a table."""


def job_settings(options: dict[str, Any], hidden: str, least: int = 1) -> Settings:
    """Settings of a fit; `hidden` is the option for the numbers of components or states, each at least `least`."""
    from jaxem.cli.fit.settings import Settings

    words = ("select", "prior", "method", "dtype")
    _check_words(options, *words)
    names = ("restarts", "min_rows", "seed", "tol", "max_steps", "assign", "workers", "device", *words)
    tried = tuple(k for k in numbers(hidden, options[hidden]) if k >= least)
    if not tried:
        raise _too_small(options, hidden, least)
    return Settings(components=tried, **{name: options[name] for name in names})


def race_settings(options: dict[str, Any]) -> RaceSettings:
    """Settings of a race."""
    from jaxem.cli.race import solver_specs
    from jaxem.cli.race.run import Settings

    _check_words(options, "prior", "method", "dtype")
    names = ("starts", "groups", "min_rows", "prior", "method", "tol", "max_steps", "seed", "dtype")
    return Settings(
        contenders=solver_specs.parse(split(options["solvers"])),
        size=options["states"] or options["components"] or COMPONENTS,
        scale=not options["raw"],
        **{name: options[name] for name in names},
    )


def _check_words(options: dict[str, Any], *names: str) -> None:
    """Check the options that take one of some words; and the tolerance."""
    from jaxem.cli.fit.result import CRITERIA
    from jaxem.latent.seeding import METHODS

    words = {"select": CRITERIA, "prior": ("weak", "none"), "method": METHODS, "dtype": ("float64", "float32")}
    words["missing"] = MISSING
    for name in ("missing", *names):
        if options[name] not in words[name]:
            texts = "; texts that stand for a missing number go into --null" if name == "missing" else ""
            raise InputError(f"--{name} {options[name]}: choose from {', '.join(words[name])}{texts}")
    if not 0 <= options["tol"] < float("inf"):
        raise InputError(f"--tol {options['tol']}: it must be a number, zero or above")


def meeting(options: dict[str, Any]) -> Meeting | None:
    """Meeting point of the processes of this job; None if there is only this one."""
    from jaxem.cli.cluster import Meeting

    names = ("coordinator", "processes", "process")
    given = [name for name in names if options[name] not in ("", None)]
    if options["distributed"] and given:
        raise InputError(f"--distributed reads from the cluster what --{given[0]} says; leave one of them out")
    if options["distributed"]:
        return Meeting()
    if not given:
        return None
    if missing := [f"--{name}" for name in names if name not in given]:
        raise InputError(f"--{given[0]} without {' and '.join(missing)}; processes of one job need all three")
    address, count, index = (options[name] for name in names)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InputError(f"--coordinator {address}: write HOST:PORT, for example node1:9876")
    if index >= count:
        raise InputError(f"--process {index}: the {count} of --processes are numbered from 0 to {count - 1}")
    return Meeting(address, count, index)


def check_device(device: str) -> None:
    """Raise InputError if this process has no such device."""
    import jax

    if device not in DEVICES:
        raise InputError(f"--device {device}: choose from {', '.join(DEVICES)}")
    if device != "cpu" and not os.environ.get("JAX_PLATFORMS"):
        # Otherwise the command line keeps to the CPU.
        jax.config.update("jax_platforms", None)
    try:
        jax.local_devices(backend=device)
    except RuntimeError as error:
        why = str(error).rstrip(".")
        raise InputError(
            f"--device {device}: there is none that JAX can use ({why}); see jaxem[cuda], or leave it out"
        ) from None


def numbers(hidden: str, text: str) -> tuple[int, ...]:
    """Numbers (of components, of states) given as `1:6`, `2` or `1,2,4`, ascending.

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
    """Parts of a comma-separated list; a part with commas is put into quotes.

    >>> split('dep_delay, "weight, kg"')
    ['dep_delay', 'weight, kg']
    """
    (parts,) = csv.reader([text], skipinitialspace=True) if text else ([],)
    return [part.strip() for part in parts if part.strip()]


def whole(option: str, text: str) -> int:
    """A whole number, or an InputError that names the option."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a whole number; write for example 3") from None


def race_tables(options: dict[str, Any]) -> dict[str, Grouped]:
    """Tables of a race by name, in groups."""
    columns, by, sequence = (split(options[name]) for name in ("columns", "by", "sequence"))
    check_names(columns, by)
    order = _order(options)
    kind, names, null = families(options, columns), _names(options["tables"]), split(options["null"])
    hidden = "components" if order is None else "states"
    if (options[hidden] or COMPONENTS) < kind.least:
        raise _too_small(options, hidden, kind.least)
    found = {}
    for name, source in zip(names, options["tables"], strict=True):
        found[name] = read(source, kind, by, null, order, sequence, options["missing"])
        check_range(found[name], options["dtype"])
    return found


def _too_small(options: dict[str, Any], hidden: str, least: int) -> InputError:
    return InputError(f"--{hidden} {options[hidden]}: --family {options['family']} needs {least} at least")


def _order(options: dict[str, Any]) -> str | None:
    """Column that orders the steps of hidden Markov models; None for mixtures."""
    if options["states"] is not None:
        if options["components"] is not None:
            raise InputError("--components and --states: give one of them, for mixtures or for hidden Markov models")
        return options["order"].strip()
    if options["order"].strip() or split(options["sequence"]):
        raise InputError("--order and --sequence are for hidden Markov models; give --states, or leave them out")
    return None


def _names(sources: list[str]) -> list[str]:
    """Names of the files; their paths, where names are not unique."""
    for source in sources:
        if sources.count(source) > 1:
            raise InputError(f"{source}: the table is there twice; name each table once")
    names = [Path(source).name for source in sources]
    return names if len(set(names)) == len(names) else sources


_loaded: list[str] = []
"""Of --import, so that a command can be given again."""


def load(modules: list[str]) -> None:
    """Import modules, or files of Python, that register families."""
    _loaded[:] = modules
    for module in modules:
        path = Path(module)
        try:
            if path.suffix != ".py":
                sys.path.insert(0, os.getcwd())  # as `python -m` does
                importlib.import_module(module)
            elif Path(getattr(sys.modules.get(path.stem), "__file__", None) or os.devnull) != path.resolve():
                spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
                sys.modules[path.stem] = new = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
                spec.loader.exec_module(new)  # type: ignore[union-attr]
        except Exception as error:  # whatever a user's module raises
            raise InputError(f"--import {module}: {type(error).__name__}: {error}") from error


def families(options: dict[str, Any], columns: list[str]) -> ColumnModel:
    """Families of the columns."""
    from jaxem.cli.columns import ColumnModel

    trials = [whole("--trials", t) for t in split(options["trials"])]
    return ColumnModel.parse(split(options["family"]), columns, trials, options["factors"])


def read(
    source: str,
    kind: ColumnModel,
    by: list[str],
    null: list[str],
    order: str | None,
    sequence: list[str],
    missing: str,
    frequency: str = "",
) -> Grouped:
    """Rows of a table, in groups."""
    from jaxem.cli.table import files, groups

    others = {"--by": by, "--order": [order] if order else [], "--sequence": sequence}
    frame = files.read(source, kind.columns, others)
    return groups.group(frame, kind, by, null, order, sequence, missing, frequency)


def prefixed(columns: list[str], parameters: tuple[str, ...]) -> list[str]:
    """Names in the results of the parameters of each column."""
    return [f"{column}_{parameter}" for column in columns for parameter in parameters]


def check_names(columns: list[str], by: list[str]) -> None:
    """Raise InputError for no columns, or one that is named twice."""
    if not columns:
        raise InputError("--columns is empty; name the columns to fit, with commas between")
    for option, names in (("--columns", columns), ("--by", by)):
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{option} {','.join(names)}: {name} is there twice; name each column once")


def key_names(by: list[str], own: set[str]) -> dict[str, str]:
    """Names of by-columns in the results, where a column of `own` has the same name.

    >>> key_names(["n", "day"], {"n", "status"})
    {'n': 'by_n'}
    """
    used, found = {*own, *by}, {}
    for name in by:
        if name in own:
            new = f"by_{name}"
            while new in used:
                new += "_"
            used.add(new)
            found[name] = new
    return found


def check_sizes(grouped: Grouped, settings: Settings, hidden: str) -> None:
    """Raise InputError if the largest group has fewer rows that count than components."""
    largest, most = int(grouped.n.max()), max(settings.components)
    if most > largest:
        where = "the largest group has" if len(grouped.n) > 1 else "the table has"
        rows = grouped.rows_in_words(largest)
        raise InputError(f"--{hidden} up to {most}: {where} only {rows}; ask for at most {largest}")


def check_range(grouped: Grouped, dtype: str) -> None:
    """Raise InputError for a number that the float type cannot hold."""
    from jaxem.cli.table import groups

    groups.check_range(grouped.x, grouped.row, grouped.kind, dtype)


def memory(text: str) -> float:
    """Number of bytes, from a number and its unit.

    Raises:
        InputError: anything else.

    >>> memory("500MB"), memory("1.5GiB")
    (500000000.0, 1610612736.0)
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) *([kKMGT]?)(i?)B?", text.strip())
    if not found or not float(found[1]):
        raise InputError(f"--memory {text}: it must be a number with a unit; write for example 500MB, 2GB or 1.5GiB")
    return float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2].replace("K", "k") or " ")


def again(command: str, options: dict[str, Any]) -> str:
    """The command line that repeats the command.

    >>> again("fit", {"table": "t.csv", "columns": "x", "by": "", "assign": True})
    'jaxem fit t.csv --columns x --assign'
    """
    imports = [word for module in _loaded for word in ("--import", module)]
    tables = [*options.get("tables", []), *([options["table"]] if "table" in options else [])]
    words = ["jaxem", *imports, command, *tables]
    for name, value in options.items():
        if name in ("table", "tables") or value in ("", None) or value is False:
            continue
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    return shlex.join(words)
