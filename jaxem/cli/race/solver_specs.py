"""Solvers of a race, by the words that people type for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jaxem as jem
from jaxem.cli.errors import InputError

MOMENTUM = 0.9
BATCH = 64
"""Rows in a batch, for solvers that take batches."""


def _adam(rate: float, batch: int, key: jax.Array) -> Any:
    import optax

    return jem.Gradient(optax.adam(rate))


def _sgd(rate: float, batch: int, key: jax.Array) -> Any:
    import optax

    return jem.Gradient(optax.sgd(rate, momentum=MOMENTUM), batch_size=batch, key=key)


@dataclasses.dataclass(frozen=True)
class Contender:
    """One solver of a race.

    Attributes:
        name: in tables and pictures.
        make: its constructor, from a learning rate, the rows of a batch and a random key.
        about: a short description.
        rate: default learning rate, None for a solver without one.
    """

    name: str
    make: Callable[[Any, int, jax.Array], Any]
    about: str
    rate: float | None = None


CONTENDERS = {
    "em": Contender("EM", lambda rate, batch, key: jem.EM(), "expectation-maximisation"),
    "squarem": Contender("SQUAREM", lambda rate, batch, key: jem.SQUAREM(jem.EM()), "EM, extrapolated"),
    "anderson": Contender("Anderson", lambda rate, batch, key: jem.Anderson(jem.EM()), "EM, the last steps mixed"),
    "lbfgs": Contender("L-BFGS", lambda rate, batch, key: jem.LBFGS(), "gradients, a line search"),
    "adam": Contender("Adam", _adam, "gradients of all rows", 0.05),
    "sgd": Contender("SGD", _sgd, "gradients of batches, momentum", 0.01),
    "newton": Contender("Newton", lambda rate, batch, key: jem.Newton(), "the exact Hessian, damped"),
    "online": Contender("online EM", lambda rate, batch, key: jem.OnlineEM(batch, key=key), "EM in batches"),
}
USUAL = ("em", "squarem", "anderson", "lbfgs", "adam", "sgd")


def parse(words: Sequence[str]) -> tuple[Contender, ...]:
    """Contenders from words such as `em`, `adam` or `adam:0.01`.

    Raises:
        InputError: no word, an unknown one, a solver twice, a learning rate that is invalid or not taken.

    >>> [contender.name for contender in parse(["em", "adam", "adam:0.01"])]
    ['EM', 'Adam 0.05', 'Adam 0.01']
    """
    contenders: dict[str, Contender] = {}
    for word in words:
        contender = _parse(word)
        if contender.name in contenders:
            raise InputError(f"--solvers {','.join(words)}: {word} is there twice; name each solver once")
        contenders[contender.name] = contender
    if not contenders:
        raise InputError(f"--solvers is empty; choose from {', '.join(CONTENDERS)}")
    return tuple(contenders.values())


def _parse(word: str) -> Contender:
    name, colon, number = (part.strip() for part in word.lower().partition(":"))
    if name not in CONTENDERS:
        raise InputError(f"--solvers {word}: there is no such solver; choose from {', '.join(CONTENDERS)}")
    contender = CONTENDERS[name]
    if contender.rate is None:
        if colon:
            raise InputError(f"--solvers {word}: {name} has no learning rate; write {name}")
        return contender
    rate = _rate(word, name, number) if colon else contender.rate
    return dataclasses.replace(contender, name=f"{contender.name} {rate:g}", rate=rate)


def _rate(word: str, name: str, number: str) -> float:
    try:
        rate = float(number)
    except ValueError:
        rate = float("nan")
    if not 0 < rate < float("inf"):
        raise InputError(
            f"--solvers {word}: {number!r} is not a learning rate above zero; write for example {name}:0.05"
        )
    return rate
