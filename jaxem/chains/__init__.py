"""Hidden chains as plain functions on arrays of log-potentials."""

from jaxem.chains.functions import Posterior as Posterior
from jaxem.chains.functions import filter as filter
from jaxem.chains.functions import forward_backward as forward_backward
from jaxem.chains.functions import log_normalizer as log_normalizer
from jaxem.chains.functions import sample_posterior as sample_posterior
from jaxem.chains.functions import viterbi as viterbi
