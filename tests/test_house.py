"""The layout holds itself: imports go downwards, families stay in their room, starting up is cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "v2edit"
# Top to bottom; rooms on one line are on one floor and do not import each other.
FLOORS = [
    {"__init__", "__main__"},
    {"cli"},
    {"batch", "bench"},
    {"jobs"},
    {"scenes"},
    {"metrics"},
    {"editing"},
    {"backbones"},
    {"attention", "runs", "sampling"},
    {"primitives"},
    {"prompts"},
    {"video"},
    {"files", "workers"},
    {"host"},
    {"errors"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FAMILIES = re.compile(r"cogvideo|\bwan\b|\bltx|hunyuan|mochi", re.IGNORECASE)
MODULES = sorted(PACKAGE.rglob("*.py"))


def own_room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The v2edit modules that a file imports, wherever in the file and however written."""
    here = ("v2edit", *path.relative_to(PACKAGE).with_suffix("").parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            names |= {f"v2edit.{a.name}" for a in node.names} if module == "v2edit" else {module}
    return {name for name in names if name.split(".")[0] == "v2edit"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    own = own_room(path)
    assert own in FLOOR, f"{path} is in no room: give '{own}' a floor in this test"
    for name in imported(path):
        target = name.split(".")[1] if "." in name else "__init__"
        # `from v2edit import __version__` and the like: names of the package's own face, no module.
        if target in FLOOR:
            assert target == own or FLOOR[target] > FLOOR[own], f"{path}: '{own}' must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_families_stay_in_backbones(path: Path) -> None:
    """Code above the backbones names no family; docstrings, help texts and comments may."""
    if FLOOR[own_room(path)] >= FLOOR["backbones"]:
        return
    tree = ast.parse(path.read_text())
    prose = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    words = {getattr(n, key, None) for n in ast.walk(tree) for key in ("id", "attr", "arg", "name")} | imported(path)
    words |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n not in prose}
    assert not [word for word in words if isinstance(word, str) and FAMILIES.search(word)]


STARTS = {"import": ["-c", "import v2edit"], "help": ["-m", "v2edit", "--help"]}


@pytest.mark.parametrize("arguments", STARTS.values(), ids=STARTS)
def test_starting_up_imports_nothing_heavy(arguments: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr[-500:]
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines() if "|" in line}
    assert "v2edit" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "av", "PIL"}
