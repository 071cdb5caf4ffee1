"""Bayesian networks come back from a file as they went into it, and what is wrong with a file is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jaxem as jem
from jaxem import bif

# The burglar alarm of Pearl (1988), in the three ways of the format to write a table.
ALARM = """
network "unknown" { property author = somebody; }  // of no meaning
variable Burglary { type discrete [ 2 ] { yes, no }; }
variable Earthquake { type discrete[2] { yes no }; property position = (1, 2); }
variable Alarm { type discrete [ 2 ] { yes, no }; }
variable "John calls" { type discrete [ 2 ] { yes, no }; }
/* the tables */
probability ( Burglary ) { table 0.001, 0.999; }
probability ( Earthquake ) { table 0.002 0.998; }
probability ( Alarm | Burglary, Earthquake ) {
  default 0.95, 0.05;
  (yes, no) 0.94, 0.06;
  (no, yes) 0.29, 0.71;
  (no, no) 0.001, 0.999;
}
probability ( "John calls" | Alarm ) { table 0.9, 0.05, 0.1, 0.95; }
"""


def test_a_file_of_others(tmp_path: Path) -> None:
    path = tmp_path / "alarm.bif"
    path.write_text(ALARM)
    model, categories = bif.read(path)
    assert model.graph == (
        ("Burglary", ()),
        ("Earthquake", ()),
        ("Alarm", ("Burglary", "Earthquake")),
        ("John calls", ("Alarm",)),
    )
    assert categories["Alarm"] == ["yes", "no"]
    np.testing.assert_allclose(model.table("Alarm")[:, :, 0], [[0.95, 0.94], [0.29, 0.001]], rtol=1e-15)
    np.testing.assert_allclose(model.table("John calls"), [[0.9, 0.1], [0.05, 0.95]], rtol=1e-15)
    # By hand: P(alarm) = 0.00252, and John calls in 0.9 of the cases, else in 0.05.
    alarm = 0.001 * 0.002 * 0.95 + 0.001 * 0.998 * 0.94 + 0.999 * 0.002 * 0.29 + 0.999 * 0.998 * 0.001
    told = model.log_prob({"John calls": 0})
    np.testing.assert_allclose(told, np.log(0.9 * alarm + 0.05 * (1 - alarm)), rtol=1e-12)


def network() -> jem.BayesNet:
    rng = np.random.default_rng(0)
    tables = {"a": rng.dirichlet(np.ones(3)), "b": rng.dirichlet(np.ones(2), 3), "c": rng.dirichlet(np.ones(4), (2, 3))}
    return jem.BayesNet({"c": ["b", "a"], "a": [], "b": ["a"]}, tables)


def test_it_comes_back(tmp_path: Path) -> None:
    model, names = network(), {"a": ["low", "in between", "high"]}
    bif.write(tmp_path / "net.bif", model, names)
    again, categories = bif.read(tmp_path / "net.bif")
    assert again.graph == model.graph
    assert categories == {"c": ["0", "1", "2", "3"], "a": ["low", "in between", "high"], "b": ["0", "1"]}
    for name in model.names:
        np.testing.assert_allclose(again.table(name), model.table(name), rtol=1e-15)


def test_it_comes_back_as_a_graph() -> None:
    networkx = pytest.importorskip("networkx")
    model = network()
    graph = bif.to_networkx(model, {"b": ["no", "yes"]})
    assert set(graph.edges) == {("b", "c"), ("a", "c"), ("a", "b")}
    again, categories = bif.from_networkx(graph)
    assert again.graph == model.graph
    assert categories["b"] == ["no", "yes"]
    np.testing.assert_array_equal(again.table("c"), model.table("c"))
    bare = networkx.DiGraph([("a", "b")])
    assert jem.BayesNet(bare, {"a": [0.5, 0.5], "b": [[1.0, 0.0], [0.0, 1.0]]}).graph == (("a", ()), ("b", ("a",)))
    with pytest.raises(ValueError, match="the node 'a' has no `probs`"):
        bif.from_networkx(bare)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(no, no) 0.001, 0.999", "(no, maybe) 0.001, 0.999", r"Alarm: \(no, maybe\) is no row of its table"),
        ("table 0.002 0.998", "table 0.002 0.99 0.008", "Earthquake: there are 3 numbers where 2 belong"),
        ("0.94, 0.06", "0.94, 0.6", r"Alarm: its row \(yes, no\) sums to 1.54"),
        ("default 0.95, 0.05;", "", r"Alarm: its row \(yes, yes\) is missing"),
        ("0.29, 0.71", "0.29, x", "Alarm: 0.29 , x are not numbers"),
        ("probability ( Burglary ) { table 0.001, 0.999; }", "", "Burglary has no probability"),
        ("| Burglary, Earthquake )", "| Burglary, Flood )", "the probability of Alarm speaks of Flood, which is no"),
        ("0.1, 0.95; }", "0.1, 0.95;", "a brace is not closed"),
        ("probability ( Burglary )", "probability ( Burglary | Alarm )", "a cycle|there are 2 numbers where 4 belong"),
    ],
)
def test_bad_files(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in ALARM
    path = tmp_path / "bad.bif"
    path.write_text(ALARM.replace(old, new))
    with pytest.raises(ValueError, match=f"{path}: .*({words})"):
        bif.read(path)


def test_a_batch_is_not_a_file(tmp_path: Path) -> None:
    batch = jem.BayesNet({"a": []}, {"a": [[0.5, 0.5], [0.1, 0.9]]})
    with pytest.raises(ValueError, match=r"a file holds one network; this is a batch of shape \(2,\)"):
        bif.write(tmp_path / "net.bif", batch)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'a' has 3 categories; their names are"):
        bif.write(tmp_path / "net.bif", network(), {"a": ["x", "y"]})
