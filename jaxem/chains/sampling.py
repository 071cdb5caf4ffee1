"""The log-normaliser of a chain whose derivative is that of one path, drawn from the posterior."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from jaxem.chains.best_path import used
from jaxem.chains.chain import Chain
from jaxem.chains.normalizer import log_normalizer
from jaxem.chains.scan_exact import draws, forward


@jax.custom_jvp
def sampled_score(key: Array, chain: Chain) -> Float[Array, "s"]:
    """The log-normaliser; its derivative is one for each potential on a path drawn from the posterior."""
    return log_normalizer(chain)


@sampled_score.defjvp
def _sampled_score_jvp(primals: tuple[Array, Chain], tangents: tuple[Any, Chain]) -> tuple[Array, Array]:
    key, chain = primals
    path = draws(key, chain, forward(chain), 1)[..., 0]
    return log_normalizer(chain), used(chain, path).along(tangents[1])
