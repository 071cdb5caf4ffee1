"""The ALARM network, on which everybody measures: its structure, with random tables."""

from __future__ import annotations

from typing import Any

import numpy as np

import jaxem as jem

# Beinlich and others (1989), The ALARM monitoring system, AIME 89: the categories and the parents of each variable.
ALARM = {
    "HISTORY": (2, "LVFAILURE"),
    "CVP": (3, "LVEDVOLUME"),
    "PCWP": (3, "LVEDVOLUME"),
    "HYPOVOLEMIA": (2, ""),
    "LVEDVOLUME": (3, "HYPOVOLEMIA LVFAILURE"),
    "LVFAILURE": (2, ""),
    "STROKEVOLUME": (3, "HYPOVOLEMIA LVFAILURE"),
    "ERRLOWOUTPUT": (2, ""),
    "HRBP": (3, "ERRLOWOUTPUT HR"),
    "HREKG": (3, "ERRCAUTER HR"),
    "ERRCAUTER": (2, ""),
    "HRSAT": (3, "ERRCAUTER HR"),
    "INSUFFANESTH": (2, ""),
    "ANAPHYLAXIS": (2, ""),
    "TPR": (3, "ANAPHYLAXIS"),
    "EXPCO2": (4, "ARTCO2 VENTLUNG"),
    "KINKEDTUBE": (2, ""),
    "MINVOL": (4, "INTUBATION VENTLUNG"),
    "FIO2": (2, ""),
    "PVSAT": (3, "FIO2 VENTALV"),
    "SAO2": (3, "PVSAT SHUNT"),
    "PAP": (3, "PULMEMBOLUS"),
    "PULMEMBOLUS": (2, ""),
    "SHUNT": (2, "INTUBATION PULMEMBOLUS"),
    "INTUBATION": (3, ""),
    "PRESS": (4, "INTUBATION KINKEDTUBE VENTTUBE"),
    "DISCONNECT": (2, ""),
    "MINVOLSET": (3, ""),
    "VENTMACH": (4, "MINVOLSET"),
    "VENTTUBE": (4, "DISCONNECT VENTMACH"),
    "VENTLUNG": (4, "INTUBATION KINKEDTUBE VENTTUBE"),
    "VENTALV": (4, "INTUBATION VENTLUNG"),
    "ARTCO2": (3, "VENTALV"),
    "CATECHOL": (2, "ARTCO2 INSUFFANESTH SAO2 TPR"),
    "HR": (3, "CATECHOL"),
    "CO": (3, "HR STROKEVOLUME"),
    "BP": (3, "CO TPR"),
}


def alarm(dtype: Any = "float64", seed: int = 0) -> jem.BayesNet:
    """The ALARM network with random tables."""
    rng = np.random.default_rng(seed)
    graph = {name: parents.split() for name, (_, parents) in ALARM.items()}
    tables = {}
    for name, parents in graph.items():
        table = rng.dirichlet(np.full(ALARM[name][0], 0.5), [ALARM[parent][0] for parent in parents]).astype(dtype)
        tables[name] = table / table.sum(-1, keepdims=True)
    return jem.BayesNet(graph, tables)
