"""Pages whose Python blocks are executed: `python pages.py PAGE` runs one as a reader would, in a fresh interpreter."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def python_blocks(page: Path) -> list[str]:
    """The Python blocks of a Markdown page, each with as many empty lines before it as put its errors in place."""
    text = page.read_text()
    matches = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match.group(1) for match in matches]


def run(source: str, page: str, names: dict[str, Any]) -> int:
    """Execute a block and compare every `expression  # value` with its value; how many there were.

    Raises:
        AssertionError: a value is not what its comment says.
    """
    lines, claims = source.splitlines(), 0
    for statement in ast.parse(source).body:
        _, _, claim = lines[(statement.end_lineno or 0) - 1][statement.end_col_offset :].partition("#")
        if isinstance(statement, ast.Expr) and claim:
            value = eval(compile(ast.Expression(statement.value), page, "eval"), names)
            if repr(value) != claim.strip():
                raise AssertionError(f"{page}, line {statement.lineno}: it is {value!r}, the page says{claim}")
            claims += 1
        else:
            exec(compile(ast.Module([statement], []), page, "exec"), names)
    return claims


if __name__ == "__main__":
    names: dict[str, Any] = {}
    for block in python_blocks(Path(sys.argv[1])):
        if not run(block, Path(sys.argv[1]).name, names):
            raise SystemExit(f"a block claims nothing:{block}")
