"""Imports point one way, heavy libraries stay behind their fences (design §2)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"errors", "log", "startup", "remote", "hub", "artifact", "device"},
    {"config", "parts"},
    {"tokens", "losses", "plan"},
    {"speech"},
    {"stages", "model"},
    {"data", "merging", "generation"},
    {"callbacks", "eval", "tiny", "demo"},
    {"engine"},
]
LIGHT = {"cluster", "report", "pipeline"}
LIGHT_MAY = {"errors", "log", "startup", "remote", "artifact", "config"}
CLI = {"cli", "__main__"}
FENCES = {
    "deepspeed": {"engine"},
    "peft": {"model", "merging"},
    "mergekit": {"merging"},
    "wandb": {"callbacks"},
    "matplotlib": {"report"},
    "espeakng_loader": {"tiny"},
    "sklearn": {"speech"},
    "seamless_communication": {"speech"},
    "fairseq2": {"speech"},
    "jiwer": {"eval"},
    "gradio": {"demo"},
}
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "slm")
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return found


SOURCES = sorted(path for path in (ROOT / "slm").rglob("*.py") if path != ROOT / "slm" / "__init__.py")


def is_entry(path: Path) -> bool:
    return path.name == "__main__.py" or room_of(path) in CLI


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_to_its_left(path):
    if is_entry(path):
        return
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "slm" or len(parts) < 2 or parts[1] == room:
            continue
        other = parts[1]
        assert other not in CLI, f"{room} imports the entry {other}"
        if room in LIGHT:
            allowed = LIGHT_MAY | ({"cluster", "report"} if room == "pipeline" else set())
            assert other in allowed, f"{room} imports {other}: it has to work without torch"
            continue
        assert room in LEVEL, f"{room} has no place in the layers"
        assert LEVEL.get(other, 99) < LEVEL[room] or (LEVEL[room] == 0 and LEVEL.get(other) == 0), (
            f"{room} imports {other}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_behind_their_fence(path):
    tops = {name.split(".")[0] for name in imports_of(path)}
    for library, rooms in FENCES.items():
        if library in tops:
            assert room_of(path) in rooms, f"{library} is imported outside {rooms}"


def test_the_original_seamless_package_is_in_one_file():
    found = {
        path.name for path in SOURCES for name in imports_of(path) if name.startswith(("seamless_comm", "fairseq2"))
    }
    assert found == {"seamless_job.py"}


def test_launchers_are_imported_by_nobody():
    for path in [*SOURCES, *(ROOT / "launcher").glob("*.py"), *(ROOT / "data_shards").glob("*.py")]:
        assert not {name.split(".")[0] for name in imports_of(path)} & {"launcher", "data_shards"}, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"
