"""Compilation of small work without optimisation: there a person waits for the compiler, and not for the numbers.

On a CPU the compiler takes a second or more to optimise a program that runs for a millisecond. A light program, made
without loop fusion by the slow emitters and without LLVM's expensive passes, compiles about 4 times faster and runs
about 8 times slower. Measured on two cores (mixture of 3 x 2 columns, 400 rows, 4 starts; seconds of processor time):

| options | compile | 300 steps |
|---|--:|--:|
| full | 5.5 | 0.03 |
| fusion emitters off | 3.7 | 0.03 |
| level 1, emitters off, no expensive passes | 3.1 | 0.03 |
| level 0, emitters off, no expensive passes, one piece (light) | 1.3 | 0.19 |

So light programs lose less than they save up to some 1e7 numbers (rows x columns x states x steps).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

LIGHT: dict[str, Any] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""Compiler options of a light program."""

UNKNOWN: set[str] = set()
"""Those of them that this version of JAX has refused (0.12 the first; the rest still halve what compiling costs)."""

SMALL = 1e7
"""Work of one call, in numbers computed, up to which its program is light."""

OFTEN = 1e8
"""Work of all calls of one size from which they are worth an optimised program: about what compiling it costs."""


class Program:
    """A jitted function with a light program for small work and an optimised one for large work.

    Inside another trace (`jit`, `grad`, `vmap`) it is plain `jax.jit`, as on an accelerator, and where this version of
    JAX does not know the options. Results of both programs are equal up to rounding.

    Attributes:
        full: the function as `jax.jit` makes it; `light` the same without optimisation.
        work: `work(*arguments)`, the number of numbers that a call computes; it may look at shapes only.
        often: work of all calls of one size from which an optimised program is worth it.
        done: work done so far by light programs, by the work of a call.
    """

    def __init__(
        self, function: Callable[..., Any], work: Callable[..., float], light: Any, often: float, **options: Any
    ) -> None:
        """Two jitted functions, neither of them compiled yet."""
        functools.update_wrapper(self, function)
        self.options, self.often = light, often
        self.jit = functools.partial(jax.jit, function, **options)
        self.full = self.jit()
        self.work = work
        self.done: dict[float, float] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        if not self.is_small(*args, **named) or self._is_worth_more(*args, **named):
            return self.full(*args, **named)
        return self._lightly(args, named)

    def _is_worth_more(self, *args: Any, **named: Any) -> bool:
        """Whether calls of this size have become so many that they are worth an optimised program."""
        if self.often == math.inf:
            return False
        work = self.work(*args, **named)
        self.done[work] = self.done.get(work, 0) + work
        return self.done[work] > self.often

    @functools.cached_property
    def light(self) -> Callable[..., Any]:
        """The function with the options that this version of JAX knows."""
        known = {name: value for name, value in self.options.items() if name not in UNKNOWN}
        return self.jit(compiler_options=known) if known else self.full

    def _lightly(self, args: Any, named: Any) -> Any:
        try:
            return self.light(*args, **named)
        except (RuntimeError, TypeError, ValueError) as error:
            if "option" not in str(error):
                raise
            unknown = re.search(r"No such compile option: '(\w+)'", str(error))
        if unknown is None:  # inside a trace, of which no argument tells; or refused in other words
            return self.full(*args, **named)
        UNKNOWN.add(unknown[1])
        self.__dict__.pop("light", None)
        return self._lightly(args, named)

    def is_small(self, *args: Any, **named: Any) -> bool:
        """Whether a light program costs less than an optimised one, as far as this call goes."""
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((args, named))):
            return False
        return self.work(*args, **named) <= SMALL and jax.default_backend() == "cpu"

    @property
    def lower(self) -> Callable[..., Any]:
        """That of the optimised program, as of `jax.jit`."""
        return self.full.lower


def size(*data: Any, **static: Any) -> float:
    """Numbers in all arrays of these: the work of a function that looks at each of them once.

    >>> size(np.ones((2, 3)), {"prior": 1.0})
    7.0
    """
    return float(sum(np.size(leaf) for leaf in jax.tree.leaves(data)))


def program(
    work: Callable[..., float], light: Any = LIGHT, often: float = math.inf, **options: Any
) -> Callable[[Callable[..., Any]], Program]:
    """Decorator: `jax.jit(**options)`, compiled lightly where `work` of the arguments is small.

    The size of a call alone decides, so that the same calls end with the same bits; unless a function that is called
    `often` with the same sizes is worth optimising.

    >>> import jax.numpy as jnp
    >>> @program(lambda x: x.size)
    ... def double(x):
    ...     return 2 * x
    >>> double(jnp.ones(2)).tolist()
    [2.0, 2.0]
    """
    return lambda function: Program(function, work, light, often, **options)
