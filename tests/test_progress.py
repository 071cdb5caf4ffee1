"""Progress goes to whoever asks for it, and a bar is that of the place: tqdm's in a notebook, rich's in a terminal."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from jaxem.io.progress import reported


class Bar:
    """What is used of tqdm."""

    made: list[Any] = []  # noqa: RUF012

    def __init__(self, desc: str) -> None:
        self.n, self.total = 0, None
        self.made.append(desc)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.made.append("closed")

    def set_postfix_str(self, note: str, refresh: bool) -> None:
        self.note = note

    def update(self, more: int) -> None:
        self.n += more
        self.made.append((self.n, self.total, self.note))


def test_a_notebook_has_the_bar_of_tqdm_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython, auto = types.ModuleType("IPython"), types.ModuleType("tqdm.auto")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=True)  # type: ignore[attr-defined]
    auto.tqdm = Bar  # type: ignore[attr-defined]
    for name, module in (("IPython", ipython), ("tqdm", types.ModuleType("tqdm")), ("tqdm.auto", auto)):
        monkeypatch.setitem(sys.modules, name, module)
    with reported(True, "fitting") as tell:
        assert tell is not None
        tell(1, 4)
        tell(3, 4, "a note")
    assert Bar.made == ["fitting", (1, 4, ""), (3, 4, "a note"), "closed"]


def test_a_terminal_has_the_bar_of_rich_and_without_it_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with reported(True, "fitting") as tell:
        assert tell is not None
        tell(1200, 5000)
        tell(3000, 5000)
    shown = capsys.readouterr().err
    assert "fitting" in shown
    assert "3,000 of 5,000" in shown
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ValueError, match=r"progress=True needs the package rich: pip install 'jaxem\[cli\]'"):
        reported(True, "fitting").__enter__()


def test_a_function_is_told_and_nobody_else() -> None:
    with reported(print, "fitting") as tell:
        assert tell is print
    for nobody in (None, False):
        with reported(nobody, "fitting") as tell:
            assert tell is None
