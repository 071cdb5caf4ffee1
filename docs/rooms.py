"""Draw the rooms of jaxem and what imports what into CONTRIBUTING.md: python docs/rooms.py.

An arrow goes from a room to each that it imports, but where a longer way over other rooms leads there too.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "```mermaid\n", "```\n"


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports. What is in no folder and imports others is a room, too."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "jaxem").rglob("*.py")):
        room = path.relative_to(ROOT / "jaxem").parts[0].removesuffix(".py")
        names = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}".split(".") for alias in node.names]
        others = {name[1] for name in names if name[0] == "jaxem" and len(name) > 1}
        found.setdefault(room, set()).update(others - {room, "_version", "palette"})
    return {
        room: others & found.keys()
        for room, others in found.items()
        if room not in {"__init__", "__main__", "_version"}
    }


def reach(rooms: dict[str, set[str]], room: str) -> set[str]:
    """All rooms that one needs, at any distance."""
    return rooms[room].union(*(reach(rooms, other) for other in rooms[room]))


def drawn() -> str:
    """The picture, in the language of Mermaid."""
    rooms = imports()
    lines = ["graph TD"]
    for room in sorted(rooms):
        far = set().union(*(reach(rooms, other) for other in rooms[room]))
        lines += [f"  {room} --> {other}" for other in sorted(rooms[room] - far)]
    return "\n".join(lines) + "\n"


def placed(text: str) -> str:
    """The page with the picture in its place."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + drawn() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(placed(PAGE.read_text()))
