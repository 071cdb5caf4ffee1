"""Plots of fitted models, with matplotlib, in Okabe and Ito's colours, which colour-blind people can tell apart."""

from jaxem.plotting.chains import sequence as sequence
from jaxem.plotting.chains import transitions as transitions
from jaxem.plotting.checks import forest as forest
from jaxem.plotting.checks import residuals as residuals
from jaxem.plotting.mixtures import has_ellipses as has_ellipses
from jaxem.plotting.mixtures import mixture as mixture
