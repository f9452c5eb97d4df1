"""The proxy's hot path, compiled and not: that what runs is what was asked for, and that its sources can be compiled.

`make test-compiled` runs the proxy's tests a second time, against the modules that mypyc has made; it sets `STEPDOWN_COMPILED`.
"""

import ast
import builtins
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "hooks"
]["custom"]["modules"]
ASKED = os.environ.get("STEPDOWN_COMPILED") == "1"
SUFFIXES = tuple(importlib.machinery.EXTENSION_SUFFIXES)


def test_the_modules_under_test_are_those_that_were_asked_for() -> None:
    """Else a whole run against the wrong build would be green."""
    compiled = {name for name in MODULES if str(getattr(importlib.util.find_spec(name), "origin", "")).endswith(SUFFIXES)}
    assert compiled == (set(MODULES) if ASKED else set()), "make test runs the sources, make test-compiled the compiled modules"


def test_a_process_that_a_test_starts_runs_the_same() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import stepdown.proxy.till as till; print(till.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert told.stdout.strip().endswith(SUFFIXES) is ASKED


def test_no_compiled_module_makes_a_struct() -> None:
    """mypyc drops what is said in a class's brackets: `frozen=True` would be lost, and nothing would tell."""
    for name, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                assert not node.keywords and "msgspec.Struct" not in bases, (
                    f"{name}: {node.name} belongs in a module of its own"
                )


def test_what_two_handlers_of_one_function_catch_has_two_names() -> None:
    """Compiled, a name has one type in a function: the second handler would raise TypeError."""
    for name, tree in _trees():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                caught = [
                    each.name
                    for each in ast.walk(function)
                    if isinstance(each, ast.ExceptHandler) and each.name and each.type and _is_own(each.type)
                ]
                assert len(caught) == len(set(caught)), f"{name}.{function.name}: {caught}"


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for name in MODULES:
        file = ROOT / "operator" / (name.replace(".", "/") + ".py")
        yield name, ast.parse(file.read_text())


def _is_own(caught: ast.expr) -> bool:
    """Whether it is a class of this project, as far as its name tells: those of libraries have a dot."""
    return isinstance(caught, ast.Name) and not hasattr(builtins, caught.id)
