"""Settings of fits and of the choice of a size, from the options of the command."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of fits and choice.

    Attributes:
        components: the numbers of components (of states) to try, ascending.
        restarts: number of starts for each.
        min_rows: a group with fewer rows that count is not fitted.
        select: criterion to minimise: `bic`, `aic` or `icl`.
        seed: of all random draws.
        prior: `weak` (worth about a row a component) or `none` (maximum likelihood with a floor).
        dtype: `float64` or `float32`.
        tol: stop when the predicted remaining gain is below this many nats a row.
        max_steps: EM steps at most.
        method: of starting: `mixed` (k-means++ and random in turn), `kmeans++` or `random`.
        assign: whether to find the component (state) of every row.
        workers: number of slabs in work at once, on each device.
        device: `cpu`, `gpu` or `tpu`; slabs are dealt out to all that this process has.
    """

    components: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    restarts: int = 4
    min_rows: int = 5
    select: str = "bic"
    seed: int = 0
    prior: str = "weak"
    dtype: str = "float64"
    tol: float = 1e-6
    max_steps: int = 1000
    method: str = "mixed"
    assign: bool = False
    workers: int = 2
    device: str = "cpu"
