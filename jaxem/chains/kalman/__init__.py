"""Linear Gaussian state-space models as plain functions: usable without any model, in any JAX program.

A state of H numbers moves, and D numbers are seen of it at each step:

    z_1 ~ N(initial_mean, initial_covariance)
    z_t = transition z_t-1 + N(0, transition_noise)
    x_t = emission z_t + emission_bias + N(0, emission_noise)

Everything is a sum of independent unit noises, and is conditioned on what was seen by turning them: by orthogonal
transformations, which lose no digits (Kaminski, Bryson and Schmidt 1971). Forwards they are turned into those that the
data of a step tell and those that its next state is made of; backwards, what later steps tell of the latter is turned
back. Covariances are sums of squares; none is ever a difference, or divided by, so noises and covariances may be
singular. The derivative of the log-likelihood is the expected complete-data score (Fisher's identity), by the slope and
a root of the information that later steps have of a state (de Jong 1989; Koopman 1993), which are sums, too.

States of which nothing is known at the start, not even roughly, are `diffuse`: their first values are coefficients of a
regression, over which the density is flat (Rosenberg 1973; de Jong 1991; Durbin and Koopman 2012, sections 5.2 and
5.7). All is linear in them, so they are a few more paths beside those of the data.

Time leads, sequences are the innermost axis. Covariances do not depend on what was seen, only on whether it was: where
that is the same for all sequences they have an axis of one in its place.
"""

from jaxem.chains.kalman.api import Smoothed as Smoothed
from jaxem.chains.kalman.api import filter as filter
from jaxem.chains.kalman.api import log_likelihood as log_likelihood
from jaxem.chains.kalman.api import sample_posterior as sample_posterior
from jaxem.chains.kalman.api import smoother as smoother
from jaxem.chains.kalman.filtering import filtered as filtered
from jaxem.chains.kalman.filtering import forward as forward
from jaxem.chains.kalman.sampling import centred as centred
from jaxem.chains.kalman.sampling import draws as draws
from jaxem.chains.kalman.sampling import without as without
from jaxem.chains.kalman.score import log_normalizer as log_normalizer
from jaxem.chains.kalman.smoothing import Expected as Expected
from jaxem.chains.kalman.smoothing import States as States
from jaxem.chains.kalman.smoothing import backward as backward
from jaxem.chains.kalman.smoothing import completed as completed
from jaxem.chains.kalman.smoothing import expectations as expectations
from jaxem.chains.kalman.smoothing import smoothed as smoothed
from jaxem.chains.kalman.start import started as started
from jaxem.chains.kalman.system import Observed as Observed
from jaxem.chains.kalman.system import System as System
from jaxem.chains.kalman.system import observed as observed
