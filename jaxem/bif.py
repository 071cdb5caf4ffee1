"""Bayesian networks in files and as graphs (see `jaxem.io.bif`)."""

from jaxem.io.bif import from_networkx as from_networkx
from jaxem.io.bif import read as read
from jaxem.io.bif import to_networkx as to_networkx
from jaxem.io.bif import write as write
