"""Expectation-maximisation on JAX: batches of mixtures, and the interface for all that comes after."""

from jaxem import chains as chains
from jaxem import priors as priors
from jaxem._version import version as __version__  # noqa: F401
from jaxem.constraints import free_parameters as free_parameters
from jaxem.distributions.base import Distribution as Distribution
from jaxem.distributions.base import Family as Family
from jaxem.distributions.base import Labelled as Labelled
from jaxem.distributions.discrete import Bernoulli as Bernoulli
from jaxem.distributions.discrete import Binomial as Binomial
from jaxem.distributions.discrete import Categorical as Categorical
from jaxem.distributions.discrete import Poisson as Poisson
from jaxem.distributions.gaussian import DiagonalGaussian as DiagonalGaussian
from jaxem.distributions.gaussian import Gaussian as Gaussian
from jaxem.distributions.gaussian import SphericalGaussian as SphericalGaussian
from jaxem.distributions.gaussian import TiedGaussian as TiedGaussian
from jaxem.distributions.product import Independent as Independent
from jaxem.distributions.product import Product as Product
from jaxem.distributions.product import sized as sized
from jaxem.files import load as load
from jaxem.files import save as save
from jaxem.fitting.fit import fit as fit
from jaxem.fitting.many import fit_many as fit_many
from jaxem.fitting.result import Fit as Fit
from jaxem.fitting.status import Status as Status
from jaxem.latent.base import Latent as Latent
from jaxem.latent.hmm import HMM as HMM
from jaxem.latent.mixture import Mixture as Mixture
from jaxem.latent.start_many import start_many as start_many
from jaxem.selection import aic as aic
from jaxem.selection import bic as bic
from jaxem.selection import entropy as entropy
from jaxem.selection import icl as icl
from jaxem.sequences import Sequences as Sequences
from jaxem.solvers.em import EM as EM
