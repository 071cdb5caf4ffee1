"""Compiled programs are kept in a folder, unless it cannot be used: then that is said in one line, and nothing kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import jaxem as jem
from jaxem.io import cache as caching

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
         "jax_persistent_cache_min_entry_size_bytes")  # fmt: skip


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def refused(folder: Path, why: str) -> None:
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=f"^compiled programs are not kept in .*{why}") as told:
        assert jem.cache(folder) is None
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert jax.config.jax_compilation_cache_dir == before  # type: ignore[attr-defined]


def test_a_folder_is_used_again_and_does_not_outgrow_its_size(tmp_path: Path) -> None:
    assert jem.cache(tmp_path / "new") == tmp_path / "new"
    for age, name in enumerate(("newest", "older", "oldest")):
        (tmp_path / "new" / f"{name}-cache").write_bytes(bytes(400))
        os.utime(tmp_path / "new" / f"{name}-cache", (1e9 - age, 1e9 - age))
    assert jem.cache(tmp_path / "new", size=1000) == tmp_path / "new"
    assert sorted(path.name for path in (tmp_path / "new").glob("*-cache")) == ["newest-cache", "older-cache"]
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new")  # type: ignore[attr-defined]


def test_what_is_no_folder_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "File exists")


def test_a_full_disk_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    refused(tmp_path, "the disk is full")


def test_programs_of_another_processor_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / caching.OWNER).write_text("riscv64 0123456789abcdef")
    refused(tmp_path, "another kind of processor")
