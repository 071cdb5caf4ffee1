"""One process of several that fit one model together: `test_processes.py` runs `on_processes.py INDEX COUNT PORT`.

Each has a part of the data, and makes the same fits. The first makes them again, by itself, on all of the data. They
write, as JSON, the numbers that they found, and the first how far those are from its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401  (the strictness of all tests)

if __name__ == "__main__":
    index, count, port = (int(argument) for argument in sys.argv[1:])
    jax.distributed.initialize(f"localhost:{port}", count, index)

import jaxem as jem
from on_devices import difference, hmm, mixture, rows


def spread(x: np.ndarray, axis: int = 0) -> jax.Array:
    """An array of which each process has a part."""
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    own = np.array_split(x, jax.process_count(), axis)[jax.process_index()]
    sharding = NamedSharding(mesh, P(*[None] * axis, "rows"))
    return jax.make_array_from_process_local_data(sharding, own, x.shape)


def fits() -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Each over processes, and how this one makes it alone."""
    rng = np.random.default_rng(0)
    x, weight = rows(200), rng.uniform(0.5, 2, 200)
    x[rng.uniform(size=x.shape) < 0.1] = np.nan
    labels = np.where(rng.uniform(size=200) < 0.1, 1, -1)
    given = {"weight": weight, "labels": labels}
    yield jem.fit(mixture(), spread(x), **given), lambda: jem.fit(mixture(), x, **given)
    drawn = np.asarray(hmm().sample(jax.random.key(1), 1, 240))
    over_time = jem.Sequences(spread(drawn, 1), [237])
    yield jem.fit(hmm(), over_time), lambda: jem.fit(hmm(), drawn[0, :237])


if __name__ == "__main__":
    fitted, alone = zip(*fits(), strict=True)
    found = {"numbers": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves([fit.model for fit in fitted])]}
    if index == 0:
        found["words"] = [fit.status_name for fit in fitted]
        found["differences"] = [difference(fit, make()) for fit, make in zip(fitted, alone, strict=True)]
    print(json.dumps(found))  # noqa: T201
