"""Saving and loading: what comes back is what went in, and a file that is not whole is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxem as jem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_types_survive(path: Path) -> None:
    jem.save(path, jem.Binomial(5, np.array([0.5, 0.25], np.float32)))
    back = jem.load(path)
    assert back.total_count == 5
    assert back.probs.dtype == np.float32


def rewritten(path: Path, change: object, header: dict[str, str] | None = None) -> None:
    """The file at `path` with its tensors changed, its header kept."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        kept = file.metadata()
    tensors = load_file(path)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata=kept if header is None else header)


def test_a_file_older_than_a_field_takes_its_default(path: Path) -> None:
    """State spaces were saved before they could be diffuse."""
    from safetensors import safe_open

    one = np.ones((1, 1))
    level = jem.LinearGaussianSSM(np.zeros(1), one, one, one, one, np.zeros(1), one, held=("emission",))
    jem.save(path, level)
    with safe_open(path, "numpy") as file:
        header = file.metadata()
    structure = json.loads(header["structure"])
    del structure["fields"]["diffuse"]
    save_file(load_file(path), path, metadata=header | {"structure": json.dumps(structure)})
    back = jem.load(path)
    assert (back.diffuse, back.held) == ((), ("emission",))
    del structure["fields"]["emission"]
    save_file(load_file(path), path, metadata=header | {"structure": json.dumps(structure)})
    with pytest.raises(ValueError, match="other fields"):
        jem.load(path)


def gaussian(path: Path) -> None:
    jem.save(path, jem.Mixture([0.5, 0.5], jem.Gaussian(np.zeros((2, 2)), np.tile(np.eye(2), (2, 1, 1)))))


def test_missing_superfluous_wrong_and_nan_tensors_are_refused(path: Path) -> None:
    mean = "model.components.mean"
    cases = [
        (lambda tensors: tensors.pop(mean), f"{mean} is missing"),
        (lambda tensors: tensors.update(extra=np.zeros(1)), "belong to nothing: extra"),
        (lambda tensors: tensors.update({mean: np.zeros((3, 2))}), "the header says"),
        (lambda tensors: tensors.update({mean: np.full((2, 2), np.nan)}), "mean has entries that are not finite"),
        (lambda tensors: tensors.update({"model.weights": np.array([0.9, 0.9])}), "weights does not sum to one"),
    ]
    for change, message in cases:
        gaussian(path)
        rewritten(path, change)
        with pytest.raises(ValueError, match=message) as caught:
            jem.load(path)
        assert str(path) in str(caught.value)


def test_truncated_foreign_and_absent_files_are_refused(path: Path) -> None:
    gaussian(path)
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            jem.load(path)
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="format"):
        jem.load(path)
    structure = json.dumps({"class": "os.system", "fields": {}})
    save_file({"a": np.zeros(1)}, path, metadata={"format": "jaxem 1", "structure": structure})
    with pytest.raises(ValueError, match=r"os\.system"):
        jem.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        jem.load(path.with_name("absent"))


def test_only_models_can_be_saved(path: Path) -> None:
    with pytest.raises(TypeError, match="only jaxem's own models"):
        jem.save(path, {"a": np.zeros(1)})
    assert not path.exists()
