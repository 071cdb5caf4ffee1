"""The strictness of all tests and examples: 64-bit types on, no silent promotion of ranks or types."""

from __future__ import annotations

import os
from pathlib import Path

import jax

# float32 data must stay float32 although 64-bit types are there to slip into: so they are on in every test.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Tests compile thousands of tiny programs and run each of them once: with fewer passes, with the code generator that
# takes half as long over them, and each in one piece, since the processes of the tests keep all cores busy anyway.
# (XLA ends a process that names a flag it does not know; other versions do without.) And none says on which lines of
# the sources it was written, which took a tenth of the time. What is in the environment holds for processes of tests.
for name, value in {"jax_disable_most_optimizations": True, "jax_traceback_in_locations_limit": 0}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(int(value))
if jax.__version__.startswith("0.10."):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
