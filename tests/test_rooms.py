"""The rooms of the library: who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "avdistill"
# A room imports only from rooms of its own floor or below; within a floor without a circle.
FLOORS = (
    (
        "errors",
        "progress",
        "config_io",
        "fsio",
        "types",
        "inputs",
        "resizing",
        "distributed",
        "executors",
        "losses",
        "storage",
    ),
    ("models", "media", "annotations"),
    ("dataset", "preparation", "corruption", "synthetic"),
    ("inference", "teachers", "methods"),
    ("evaluation", "search"),
    ("training",),
    ("reporting", "analysis", "integrations"),
    ("server",),
    ("commands", "cli"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(
    path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] not in ("__init__.py", "__main__.py")
)


def module_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(path):
    """Modules of the library that a file imports, also within functions, but not for annotations alone."""
    found = set()
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "avdistill":
            base = node.module.removeprefix("avdistill").removeprefix(".")
            for name in node.names:
                full = f"{base}.{name.name}".removeprefix(".")
                found.add(full if full in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("avdistill.") for name in node.names if name.name.startswith("avdistill.")}
        elif is_type_checking(node):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
    return found - {""}


MODULES = {module_of(path): path for path in FILES}
IMPORTS = {name: imported(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_no_file_imports_from_a_room_above(name):
    room = name.split(".")[0]
    above = {other for other in IMPORTS[name] if FLOOR[other.split(".")[0]] > FLOOR[room]}
    assert not above


def test_no_import_goes_round_in_a_circle():
    """Between modules, and between rooms: what can be imported in any order can be read in any order."""

    def circle(edges):
        done, path = set(), []

        def visit(name):
            if name in path:
                return [*path[path.index(name) :], name]
            if name in done:
                return None
            path.append(name)
            found = next(filter(None, map(visit, sorted(edges.get(name, ())))), None)
            path.pop()
            done.add(name)
            return found

        return next(filter(None, map(visit, sorted(edges))), None)

    rooms = {}
    for name, others in IMPORTS.items():
        room = name.split(".")[0]
        rooms.setdefault(room, set()).update({other.split(".")[0] for other in others} - {room})
    assert circle({name: others - {name} for name, others in IMPORTS.items()}) is None
    assert circle(rooms) is None


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_too_long_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_room_says_what_it_is_for():
    for folder in sorted({path.parent for path in FILES}):
        if folder != SOURCE:
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


# Functions of more than 60 lines, docstring and signature included, each with the reason.
LONG = {
    "preparation.prepare.prepare": "34 lines of arguments and docstring; then one sequence: refuse, lock, fill, finish",
    "inference.runner.run_network": "37 lines of arguments and docstring; then one loop over windows and its sums",
    "teachers.extraction.embed": "46 lines of arguments and docstring",
    "analysis.teacher_probe.probe": "33 lines of arguments and docstring; then one report, filled from top to bottom",
}


def test_long_functions_are_named_with_their_reason():
    long = {
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60
    }
    assert long == LONG.keys()
