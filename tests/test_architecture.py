"""Which folder may import which: data flows one way, and the core names no exporter."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = {"errors", "files", "memory", "processes", "configs", "quiet", "targets", "units"}  # single files that know nothing of the rest
ARROWS = {
    "recipe": set(),
    "weights": {"recipe"},
    "graph": set(),
    "noise": {"recipe", "weights"},
    "program": {"graph", "recipe", "weights"},
    "compression": {"program", "graph", "recipe", "weights"},
    "lowering": {"program", "graph", "weights"},
    "exporting": {"lowering", "program", "weights", "report"},  # a result prints itself by report
    "exporters/kernels": {"exporting", "lowering", "weights"},
    "exporters/to_onnx": {"exporting", "lowering", "program", "graph", "weights", "recipe", "exporters/kernels"},
    "exporters/to_executorch": {"exporting", "lowering", "program", "graph", "weights", "exporters/kernels"},
    "verification": {"exporting", "lowering", "program", "graph", "report"},
    "report": {"exporting", "verification", "program", "graph", "weights", "bench"},
    "sources": {"compression", "program"},
    "bench": {"exporting", "lowering", "program", "verification", "graph", "report"},
}


def imported(file: Path) -> set[str]:
    """The rooms of the project that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"qn_deploy.{alias.name}" for alias in node.names] if node.module == "qn_deploy" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            project, _, rest = name.partition(".")
            if project == "qn_deploy" and rest:
                room, *deeper = rest.split(".")
                found.add("/".join([room, *deeper[:1]]) if room == "exporters" else room)
    return found


def test_rooms_import_only_what_their_arrows_allow() -> None:
    wrong = defaultdict(set)
    for room, arrows in ARROWS.items():
        files = list((ROOT / room if room.startswith("exporters") else ROOT / "qn_deploy" / room).rglob("*.py"))
        assert files, room
        for file in files:
            wrong[room] |= imported(file) - arrows - SHARED - {room}
    assert {room: found for room, found in wrong.items() if found} == {}


def test_the_core_never_imports_an_exporter() -> None:
    files = list((ROOT / "qn_deploy").rglob("*.py"))
    assert {str(file): found for file in files if (found := {room for room in imported(file) if room.startswith("exporters")})} == {}
