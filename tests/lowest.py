"""Print the oldest versions that pyproject.toml allows, as pip constraints: `make lowest` tests with them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def lowest(pyproject: Path) -> list[str]:
    """`name==version` for every `name>=version`; a pinned one stays as it is."""
    project = tomllib.loads(pyproject.read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = set()
    for requirement in (r for group in lists for r in group):
        name = re.match(r"[\w.-]+", requirement).group()
        if name == project["name"]:  # an extra that takes in another extra
            continue
        bound = re.search(r"[>=]=\s*([\w.]+)", requirement)
        if not bound:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no lower bound; every dependency needs one")
        found.add(f"{name}=={bound.group(1)}")
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml")))
