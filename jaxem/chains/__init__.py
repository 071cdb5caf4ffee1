"""Hidden chains as plain functions on arrays of log-potentials."""

from jaxem.chains.api import Posterior as Posterior
from jaxem.chains.api import filter as filter
from jaxem.chains.api import forward_backward as forward_backward
from jaxem.chains.api import log_normalizer as log_normalizer
from jaxem.chains.api import sample_posterior as sample_posterior
from jaxem.chains.api import viterbi as viterbi
