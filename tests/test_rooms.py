"""How the library is laid out: imports point one way, files and functions stay small."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: From the bottom up: a module imports from its own level and from those below, never from one above.
LEVELS = (
    (
        "_version",
        "adaptive_budget",
        "arguments",
        "budget",
        "device",
        "mean_budget",
        "pickling",
        "plugins",
        "schedule",
        "stopwatch",
        "validate",
        "ops",
    ),
    ("policies",),
    ("patches", "visual"),
    ("api", "composition", "drafting", "recipe", "serve"),
    ("eval",),
    ("commands", "cli", "__main__"),
)
MOST_LINES, MOST_PARAMETERS = 300, 6


def _modules() -> dict[str, Path]:
    """Files of the library by module name, `tokenprune` left out; the package itself is ""."""
    found = {}
    for folder, _, files in os.walk(ROOT / "tokenprune", followlinks=True):  # patches and eval are links
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            parts = path.relative_to(ROOT / "tokenprune").with_suffix("").parts
            if parts[:3] != ("eval", "lmms", "tasks"):  # lmms-eval reads those as files that stand alone
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """Modules of the library that one imports, wherever in the file, for types as well."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            target = ".".join([*filter(None, above), *(node.module or "").split(".")]).strip(".")
            named = {".".join(filter(None, [target, alias.name])) for alias in node.names}
            modules = {each for each in named if each in MODULES}
            found |= modules | ({target} if target and (len(modules) < len(named)) else set())
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(each.split(".")[0] == "tokenprune" for each in names), f"{name}: imports within are relative"
    return {each for each in found if each in MODULES} - {name}


def _level(name: str) -> int:
    top = name.split(".")[0]
    return next(level for level, names in enumerate(LEVELS) if top in names)


GRAPH = {name: _imports(name) for name in MODULES}


@pytest.mark.parametrize("name", sorted(filter(None, MODULES)))
def test_imports_point_one_way(name):
    upwards = {each for each in GRAPH[name] if each and _level(each) > _level(name)}
    assert upwards == set()


def test_no_module_is_part_of_a_circle():
    """A package's `__init__` collects what is in it, and counts as no step."""
    steps = {name: {each for each in targets if MODULES[each].name != "__init__.py"} for name, targets in GRAPH.items()}
    left = dict(steps)
    while left:
        done = {name for name, targets in left.items() if not targets & left.keys()}
        assert done, f"in circles, or above one: {sorted(left)}"
        left = {name: targets for name, targets in left.items() if name not in done}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_are_small(name):
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= MOST_LINES
    if name.startswith("ops.kernels"):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [each.arg for each in given if each.arg not in ("self", "cls")]
            assert len(names) <= MOST_PARAMETERS, f"{node.name}({', '.join(names)})"
