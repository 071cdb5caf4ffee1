"""Status of standard errors: a code for each model, a word for tables, a sentence for people."""

from __future__ import annotations

import enum


class ErrorStatus(enum.IntEnum):
    """Status of an `Uncertainty`. Arrays hold its value, tables its name; the highest that applies is told.

    >>> ErrorStatus(1).name, ErrorStatus(1).usable
    ('on_boundary', True)
    """

    ok = 0
    on_boundary = 1
    rotation_free = 2
    components_close = 3
    not_settled = 4
    no_information = 5
    component_vanished = 6
    covariance_collapsed = 7
    not_a_maximum = 8
    nonfinite = 9

    @property
    def usable(self) -> bool:
        """Whether there are standard errors at all."""
        return self < ErrorStatus.not_a_maximum

    def sentence(self, distance: float) -> str:
        """Sentence on what happened, and what to do about it; `distance` is that of the model to its maximum."""
        return _SENTENCES[self].format(distance=distance)


_SENTENCES = {
    ErrorStatus.ok: "A regular maximum.",
    ErrorStatus.on_boundary: (
        "A probability is at zero or one: it has no standard error, and those of the others are given that it is there."
    ),
    ErrorStatus.rotation_free: (
        "Loadings are known up to a rotation of the factors and have no standard errors; ask for those of functions "
        "that no rotation changes, such as loadings @ loadings.T, by delta."
    ),
    ErrorStatus.components_close: (
        "Two components are less than two standard errors apart, and these errors see one labelling of them only; use "
        "the bootstrap."
    ),
    ErrorStatus.not_settled: (
        "The model is {distance:.2g} standard errors before the maximum on these rows: pass the x, weight, prior and "
        "labels of the fit, or fit with a smaller tol."
    ),
    ErrorStatus.no_information: (
        "A parameter has no standard error: no row says anything of it, or its density has a kink there, as Laplace's."
    ),
    ErrorStatus.component_vanished: (
        "A component holds less than a hundredth of a row and has no standard errors; use fewer components."
    ),
    ErrorStatus.covariance_collapsed: (
        "A component's spread is at the floor: it has no standard errors, and those of the others are given it. Use "
        "fewer components, or a prior."
    ),
    ErrorStatus.not_a_maximum: (
        "The information is not positive definite: this is no maximum on these rows, or they do not determine all "
        "parameters. Pass the x, weight, prior and labels of the fit; else use fewer components, hold something, or "
        "use a prior."
    ),
    ErrorStatus.nonfinite: (
        "The log-likelihood or its derivatives are not finite: these are not the rows of the fit, or the fit failed."
    ),
}
