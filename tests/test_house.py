"""The layout: imports go downwards and never in a circle, families stay in their room, files are short, starting up is
cheap."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "v2edit"
# Top to bottom; rooms on one line are on one floor and do not import each other.
FLOORS = [
    {"__init__", "__main__"},
    {"cli"},
    {"studio", "comfyui"},
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
    {"cluster"},
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


def test_every_room_exists() -> None:
    rooms = {own_room(path) for path in MODULES}
    assert rooms == set(FLOOR)


def module_name(path: Path) -> str:
    parts = ("v2edit", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """The modules that a file imports when it runs, within functions, too; what type checkers alone import is not."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(names & known or {node.module})
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found & known - {module_name(path)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {module_name(path) for path in MODULES}
    graph = {module_name(path): imported_modules(path, known) for path in MODULES}
    assert graph["v2edit.jobs.video"] >= {"v2edit.jobs.job", "v2edit.editing.editor"}  # within a function, too
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_files_functions_and_signatures_are_short() -> None:
    long_functions = []
    folders = ("src", "tests", "recipes", "benchmarks", "examples", "docs", "fuzz")
    for path in sorted(path for folder in folders for path in (PACKAGE.parent.parent / folder).rglob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                own = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                assert len([name for name in own if name not in ("self", "cls")]) <= 12, f"{path}: {node.name}"
                if node.end_lineno and node.end_lineno - node.lineno >= 60:
                    long_functions.append(f"{path.name}: {node.name}")
    assert len(long_functions) <= 5, long_functions


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
