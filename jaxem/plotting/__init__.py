"""Plots of fitted models: what `jaxem.plot` shows."""
