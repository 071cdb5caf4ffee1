"""Families by the words that people type for them, on the command line and in place of a class."""

from __future__ import annotations

import difflib
from typing import Any

from jaxem.core.arguments import said_of
from jaxem.distributions.base import Distribution, Family
from jaxem.distributions.bernoulli import Binomial
from jaxem.distributions.categorical import Categorical, Multinomial
from jaxem.distributions.censored import Censored
from jaxem.distributions.either import Either
from jaxem.distributions.exponential import Exponential
from jaxem.distributions.factor_analysis import PPCA, FactorAnalysis
from jaxem.distributions.gamma import Gamma
from jaxem.distributions.gaussian import Gaussian
from jaxem.distributions.joint import Joint, JointFamily
from jaxem.distributions.point_mass import PointMass
from jaxem.distributions.poisson import NegativeBinomial, Poisson
from jaxem.distributions.product import Independent, Product, sized
from jaxem.distributions.registry import FAMILIES, name
from jaxem.distributions.support import COUNT, END, FROM_ZERO, POSITIVE_END
from jaxem.distributions.weibull import Weibull

name("zero_inflated_poisson", Either.of(PointMass, Poisson), "zeros and Poisson counts", reads="alone", column=COUNT)
name("zero_inflated_negative_binomial", Either.of(PointMass, NegativeBinomial), "zeros and negative binomial counts",
     reads="alone", column=COUNT)  # fmt: skip
name("zero_inflated_gamma", Either.of(PointMass, Gamma), "zeros and gamma numbers", reads="alone", column=FROM_ZERO)
name("censored_exponential", Censored.of(Exponential), "exponential numbers, censored", reads="ends",
     column=POSITIVE_END)  # fmt: skip
name("censored_weibull", Censored.of(Weibull), "Weibull numbers, censored", reads="ends", column=POSITIVE_END)
name("censored_gaussian", Censored.of(Gaussian), "Gaussian numbers, censored", reads="ends", column=END)

OF_PARTS = {Product: "jem.Product.of(...)", Independent: "jem.Independent.of(...)", Either: "jem.Either.of(...)",
            Censored: "jem.Censored.of(...)"}  # fmt: skip
SIZES = {
    Categorical: lambda one: {"categories": one.probs.shape[-1]},
    Binomial: lambda one: {"total_count": one.total_count},
    Multinomial: lambda one: {"total_count": one.total_count},
    FactorAnalysis: lambda one: {"factors": one.loadings.shape[-1]},
    PPCA: lambda one: {"factors": one.loadings.shape[-1]},
}
"""Of a family that is given by a member of it."""


def _plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())


def _by_name() -> dict[str, Any]:
    """Families by the names of their classes, and by their words."""
    families = {word: spec.family for word, spec in FAMILIES.items()}
    names = {_plain(one.__name__): one for one in families.values() if isinstance(one, type)}
    return names | {_plain(word): one for word, one in families.items()}


def as_family(family: Any) -> Any:
    """A family as something that can `start`.

    Args:
        family: a class, a member of it, a word, words with commas between (one for each column), or what `jem.sized`
            and `Product.of` make.

    Raises:
        TypeError: something else.
        ValueError: a word that is not there.

    >>> as_family("negative-binomial").family.__name__, len(as_family("gaussian,poisson").parts)
    ('NegativeBinomial', 2)
    """
    if isinstance(family, str):
        words = [_named(word) for word in family.split(",")]
        return as_family(words[0]) if len(words) == 1 else Product.of(*words)
    if isinstance(family, Family):
        return _like(family)
    if not isinstance(family, type) and hasattr(family, "start") and hasattr(family, "seeding_features"):
        return family
    if family in OF_PARTS:
        raise TypeError(f"family is the class {family.__name__}, which needs its parts: {OF_PARTS[family]}")
    if isinstance(family, type) and issubclass(family, Family):
        return sized(family)
    if isinstance(family, Distribution) or (isinstance(family, type) and issubclass(family, Distribution)):
        raise TypeError(
            f"family is {said_of(family)}, which has no start of its own; pass a family such as jem.Gaussian"
        )
    raise TypeError(f"family is {said_of(family)}; pass a family such as jem.Gaussian, or its name, 'gaussian'")


def _named(word: str) -> Any:
    if (found := _by_name().get(_plain(word))) is not None:
        return found
    near = difflib.get_close_matches(word.strip().lower(), FAMILIES, 1)
    meant = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(FAMILIES)}"
    raise ValueError(f"family: there is no {word.strip()!r}; {meant}")


def _like(one: Family) -> Any:
    """The family that a member is of."""
    kind: Any = type(one)
    if isinstance(one, Joint):
        return JointFamily(*(_like(part) for part in one.parts))
    if isinstance(one, (Product, Either)):
        return (Product if isinstance(one, Product) else Either).of(*(_like(part) for part in one.parts))
    if isinstance(one, (Independent, Censored)):
        return kind.of(_like(one.base))
    columns = one.event_shape[0] if one.event_shape else 1
    return sized(kind, columns, **SIZES.get(kind, lambda one: {})(one))
