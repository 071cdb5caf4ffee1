"""Status of a fit: a code for each model of a batch, a word for tables, a sentence for people."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """Status of a fit. Arrays hold its value, tables its name.

    >>> import jaxem as jem
    >>> jem.Status(1).name, jem.Status(1).sentence
    ('converged', 'The predicted remaining gain fell below the tolerance.')
    """

    running = 0
    converged = 1
    max_steps_reached = 2
    component_vanished = 3
    covariance_collapsed = 4
    log_likelihood_decreased = 5
    nonfinite = 6
    impossible_data = 7
    too_few_rows = 8
    no_variation = 9
    interrupted = 10
    diverged = 11
    not_a_maximum = 12
    precision_exhausted = 13
    no_data = 14
    no_events = 15
    components_coincide = 16

    @property
    def sentence(self) -> str:
        """Sentence on what happened, and what to do about it."""
        return _SENTENCES[self]

    @property
    def failed(self) -> bool:
        """Whether there is no usable model."""
        return self in _FAILED

    @property
    def degenerate(self) -> bool:
        """Whether the model exists but is determined by its floor more than by the data."""
        return self in _DEGENERATE


_SENTENCES = {
    Status.running: "The fit has not ended yet.",
    Status.converged: "The predicted remaining gain fell below the tolerance.",
    Status.max_steps_reached: "The step limit came before convergence; raise max_steps or loosen tol.",
    Status.component_vanished: "It converged, but a component holds less than a hundredth of a row; use fewer.",
    Status.covariance_collapsed: (
        "It converged, but a component's spread is at the floor: it sits on ties or too few rows. Use fewer "
        "components, or a prior."
    ),
    Status.log_likelihood_decreased: "A step lowered the objective by more than rounding; suspect the data's scale.",
    Status.nonfinite: "The log-likelihood became NaN or infinite; look for NaN or extreme values in the data.",
    Status.impossible_data: "Some row has probability zero under the model; check the family's support.",
    Status.too_few_rows: "There are fewer rows than the model needs.",
    Status.no_variation: "All rows are the same, so there is no spread to fit.",
    Status.interrupted: "It was interrupted before it ended.",
    Status.diverged: (
        "The objective ran away; the model is the best that it came by. Use a smaller learning rate, or a solver that "
        "climbs at every step."
    ),
    Status.not_a_maximum: (
        "It has no derivative: where it ended the data do not determine all parameters. Use fewer components, or a "
        "prior."
    ),
    Status.precision_exhausted: (
        "It climbed as far as the float type can tell, and more than the tolerance may be left; use float64, or loosen "
        "tol."
    ),
    Status.no_data: "Nothing was observed: every row, or all of a column, is missing or has weight zero.",
    Status.no_events: (
        "Rows are censored so that the likelihood has no maximum: none ended, none was seen to begin, or all agree on "
        "some number, or all that ended did so before all that did not."
    ),
    Status.components_coincide: (
        "It stands still, but two components are the same, or a factor moves nothing: a start from which nothing tells "
        "them apart, or more of them than distinct rows. Use another start, or fewer."
    ),
}
_FAILED = {
    Status.nonfinite,
    Status.impossible_data,
    Status.too_few_rows,
    Status.no_variation,
    Status.interrupted,
    Status.no_data,
    Status.no_events,
}
_DEGENERATE = {
    Status.component_vanished,
    Status.components_coincide,
    Status.covariance_collapsed,
    Status.log_likelihood_decreased,
}
