"""Discrete Bayesian networks."""

from jaxem.latent.bayesnet.model import BayesNet as BayesNet
