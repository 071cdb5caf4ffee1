"""Problems dealt out over devices: the same results, wherever they came from. On eight virtual ones, in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxem as jem

pytestmark = pytest.mark.slow

CHILD = """
import sys
import jax
import numpy as np
import jaxem as jem
from jax.sharding import NamedSharding, PartitionSpec
from jaxem.fitting.many import checkpoint
from jaxem.fitting.many import fit_many

devices = jax.devices()
assert len(devices) == 8
rng = np.random.default_rng(0)
xs = rng.normal(size=(24, 20, 1)) + 4 * rng.integers(0, 2, (24, 20, 1))
models = jem.start_many(jax.random.key(0), jem.SphericalGaussian, xs, 2)
used = []
queue = fit_many.Queue
def noted(*arguments):
    made = queue(*arguments)
    used.append(*made.problems.weight.devices())
    return made
fit_many.Queue = noted

def assert_same(fits, whole):
    for ours, theirs in zip(jax.tree.leaves(fits), jax.tree.leaves(whole), strict=True):
        assert ours.devices() == {devices[0]} and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)

whole = jem.fit_many(models, xs)
assert used == devices[:1]
used.clear()
assert_same(jem.fit_many(models, xs, devices=devices), whole)
assert sorted(used, key=str) == devices, "each has its share"
used.clear()

# The rows know where they lie, and a thread of its own sees the floats of the caller.
mesh = jax.make_mesh((8,), ("problems",))
sharded = jax.device_put(xs, NamedSharding(mesh, PartitionSpec("problems")))
assert_same(jem.fit_many(models, sharded), whole)
assert sorted(used, key=str) == devices
used.clear()

# A call that was cut short on eight devices goes on on one, and ends with the bits that eight would have given.
checkpoint.SECONDS = 0
eight = jem.fit_many(models, xs, devices=devices)
jem.fit_many(models, xs, devices=devices, checkpoint=sys.argv[1], stop=lambda: True)
used.clear()
one = jem.fit_many(models, xs, checkpoint=sys.argv[1])
assert used == devices[:1] * 8
for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_array_equal(ours, theirs)

for wrong, message in (([], "devices is empty"), (["cpu"], r"devices[0] is 'cpu'; it must be a device")):
    try:
        jem.fit_many(models, xs, devices=wrong)
    except ValueError as error:
        assert str(error).startswith(message), error
    else:
        raise AssertionError(message)
print("all the same")
"""


def test_on_eight_devices_as_on_one(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(jem.__file__).parents[1]),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_ENABLE_X64": "1",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    program = [sys.executable, "-W", "error", "-c", CHILD, str(tmp_path)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "all the same\n", done.stderr
