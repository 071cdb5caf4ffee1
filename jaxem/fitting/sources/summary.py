"""Summary of all batches from the first pass, and the layout of each batch in later passes.

All of this is done on the host, with NumPy: only prepared batches go to the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem.core.pytree import replace
from jaxem.data.missing import Incomplete, cells, incomplete, unseen_rows
from jaxem.data.padding import bucket
from jaxem.data.prepare import as_weight, prepare
from jaxem.data.sequences import Sequences
from jaxem.fitting.checks import check_rows
from jaxem.fitting.regularisation import SCALE_ROWS


@dataclasses.dataclass
class Spaced:
    """A stream of rows, subsampled to every `stride`-th (see `regularisation.spacing`).

    Attributes:
        rows: number of rows so far.
        pieces: the rows kept, as pytrees of arrays with rows first.
        held: number of rows kept.
        stride: from one kept row to the next.
    """

    rows: int = 0
    pieces: list[Any] = dataclasses.field(default_factory=list)
    held: int = 0
    stride: int = 1

    def add(self, piece: Any) -> None:
        """Add rows."""
        places = slice(-self.rows % self.stride, None, self.stride)
        kept = jax.tree.map(lambda leaf: np.array(leaf[places]), piece)
        self.pieces.append(kept)
        self.rows, self.held = self.rows + _length(piece), self.held + _length(kept)
        while self.held > SCALE_ROWS:
            self.thin()

    def thin(self) -> None:
        """Keep every other row."""
        before, pieces = 0, []
        for piece in self.pieces:
            pieces.append(jax.tree.map(lambda leaf, first=before % 2: leaf[first::2].copy(), piece))
            before += _length(piece)
        self.pieces, self.held, self.stride = pieces, -(-before // 2), 2 * self.stride


def _length(piece: Any) -> int:
    return len(jax.tree.leaves(piece)[0])


@dataclasses.dataclass
class DatasetSummary:
    """Summary of all batches together.

    Attributes:
        model: to be fitted; it defines how rows are read.
        prior: of the fit.
        shared: whether other processes have batches, too.
        sample: evenly spaced rows, with their weights.
        total: sum of the weights.
        observations: the same, counting steps of sequences; see `Distribution.observations`.
        counted: number of rows of this process that have a weight and an observed cell.
        most: largest number of such rows in a batch.
        steps, masked, patterns, hidden: steps of the longest sequence; whether any step is unobserved; most patterns
            in a batch; columns of a Bayesian network with missing cells.
        like: shape and type that every row must have.
    """

    model: Any
    prior: Any
    shared: bool = False
    sample: Spaced = dataclasses.field(default_factory=Spaced)
    total: float = 0.0
    observations: float = 0.0
    counted: int = 0
    most: int = 0
    steps: int = 0
    masked: bool = False
    patterns: int = 0
    hidden: tuple[int, ...] = ()
    like: tuple[tuple[int, ...], np.dtype] | None = None

    @property
    def dtype(self) -> np.dtype | None:
        """Type of all rows."""
        return self.like[1] if self.like else None

    def add(self, batch: Any) -> None:
        """Add a batch.

        Raises:
            TypeError: it does not hold numbers.
            ValueError: what `fit` raises for such rows, or rows unlike earlier ones.
        """
        x, weight = read(self.model, batch)
        if not len(x):
            return
        values = _values(x)
        like = values.shape[2:] if isinstance(x, Sequences) else values.shape[1:], values.dtype
        if self.like is None:
            check_rows(self.model, x)
            self.like = like
        if like != self.like:
            ours, theirs = (f"shape {shape} and type {dtype}" for shape, dtype in (like, self.like))
            raise ValueError(f"its rows have {ours}, those before it {theirs}; all must be alike")
        self.sample.add((x, weight))
        if isinstance(x, Sequences):
            self.steps, self.masked = max(self.steps, x.steps), self.masked or x.mask is not None
        self.hidden = tuple(sorted({*self.hidden, *getattr(x, "hidden", ())}))
        x, weight = counting(x, weight)
        if not len(x):
            return
        if _has_gaps(x):
            x = incomplete(x) if isinstance(x, np.ndarray) else x
            self.patterns = max(self.patterns, getattr(x, "patterns", 0))
            self.model.check(x, jnp.asarray(weight), False)
        self.most, self.counted = max(self.most, len(x)), self.counted + len(x)
        self.total += float(np.sum(weight, dtype=float))
        self.observations += float(_observations(self.model, x, jnp.asarray(weight)))

    def sampled(self) -> tuple[Any, Array]:
        """The sample as `fit` takes it, and its weights."""
        rows, weight = jax.tree.map(jnp.asarray, self.pooled())
        x, weight, _ = prepare(rows, weight, None)
        if self.sample.stride == 1:
            self.model.check(x, weight, self.prior is None)
        return x, weight

    def pooled(self) -> tuple[Any, np.ndarray]:
        """The sample in one piece."""
        pieces = [(self.alike(x), weight) for x, weight in self.sample.pieces]
        x, weight = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
        if isinstance(x, Sequences):
            # Together they may have more patterns than any single batch.
            gaps = incomplete(x.values.reshape(-1, *x.values.shape[2:]))
            x = replace(x, patterns=gaps.patterns if isinstance(gaps, Incomplete) else 0)
        return x, weight

    def alike(self, x: Any) -> Any:
        """Rows in the form common to all batches."""
        if isinstance(x, Sequences):
            return replace(x.padded(len(x), self.steps, self.masked), patterns=self.patterns)
        return replace(x, hidden=self.hidden) if hasattr(x, "hidden") else x

    def laid_out(self, batch: Any) -> tuple[Any, Any, int]:
        """Rows of a batch that count, padded with rows of weight zero to one of few lengths; and their number."""
        x, weight = counting(*read(self.model, batch))
        n = len(x)
        if not n:
            return x, np.zeros(0), 0
        if n > self.most:
            raise ValueError(f"it has {n} rows, and the largest had {self.most} when the batches were read first")
        gaps = isinstance(x, np.ndarray) and self.patterns and _has_gaps(x)
        length = self.most if 2 * n > self.most else bucket(n)
        x = self.alike(x)
        if length > n:
            # Filled with existing rows, because zero may be outside a family's support.
            if isinstance(x, Sequences):
                x = x.padded(length, self.steps, self.masked)
            else:
                x = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], length - n, axis=0)]), x)
            weight = np.pad(weight, (0, length - n))
        x, weight = jax.device_put((x, weight))
        return Incomplete(x, self.patterns) if gaps else x, weight, n  # type: ignore[arg-type]


def read(model: Any, batch: Any) -> tuple[Any, np.ndarray]:
    """Rows of a batch as the model reads them, as NumPy arrays, and their weights."""
    x, weight = batch if isinstance(batch, tuple) else (batch, None)
    x = jax.tree.map(np.asarray, cells(model.read(x)))
    if weight is None:
        return x, np.ones(len(x), _values(x).dtype)
    return x, np.asarray(as_weight(weight, (len(x),), f"{len(x)} rows"), _values(x).dtype)


def counting(x: Any, weight: np.ndarray) -> tuple[Any, np.ndarray]:
    """Rows that have a weight and an observed cell."""
    counts = weight > 0
    if _has_gaps(x):
        counts &= ~np.asarray(unseen_rows(_values(x)))
    return (x, weight) if counts.all() else jax.tree.map(lambda leaf: leaf[counts], (x, weight))


def _values(x: Any) -> np.ndarray:
    return getattr(x, "values", x)


def _has_gaps(x: Any) -> bool:
    values = _values(x)
    return bool(values.size and np.isnan(np.min(values)))


@jax.jit
def _observations(model: Any, x: Any, weight: Array) -> Array:
    return model.observations(model.observe(x), weight)
