"""The wheel's build hook: compiles the proxy's hot path to C where `STEPDOWN_COMPILE=1` asks for it. hatchling calls it.

The modules (listed in pyproject.toml, with this hook) are plain typed Python and run as such; mypyc makes of each an extension
module that lies beside its source in the wheel and is found before it. Without the variable, and in an editable install,
nothing is compiled: whoever has no compiler gets a wheel that does the same, slower. Where it is asked for and cannot be done
the build fails: an image that was meant to be fast must not be slow unnoticed.

What was compiled is kept in the user's cache, under a hash of all that it was made of: the sources and what they import, this
file, mypyc, the interpreter, the compiler and its flags.
"""

import ast
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ASKED = "STEPDOWN_COMPILE"
_SOURCES = "operator"
_FLAGS = {"opt_level": "3", "debug_level": "0", "multi_file": True, "group_name": "stepdown"}
"""One group: calls from module to module are calls of C functions. No debug information: it names the folder of the build."""
_MYPY = """\
[mypy]
[mypy-httptools.*,uvloop.*]
ignore_missing_imports = true
"""


class CompileError(Exception):
    """Asked for and not possible; says what to do."""


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return ["mypy[mypyc]>=2.4"] if _is_asked() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not _is_asked():
            return
        try:
            built = compiled(Path(self.root), self.config["modules"])
        except CompileError as error:
            self.app.abort(f"{ASKED}=1: {error}. Without it (make wheel COMPILE=0) the wheel is pure Python, and slower.")
        build_data["force_include"] |= {str(file): name for name, file in built.items()}
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def compiled(root: Path, modules: Sequence[str]) -> dict[str, Path]:
    """The extension modules by their path in the wheel, from the cache or made now. Raises CompileError."""
    compiler = _compiler()
    sources = _closure(root / _SOURCES, modules)
    folder = _cache() / _key(sources, modules, compiler)
    if not folder.is_dir():
        _compile(sources, modules, folder)
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _is_asked() -> bool:
    asked = os.environ.get(ASKED, "0")
    if asked not in ("0", "1", ""):
        raise SystemExit(f"{ASKED} is {asked!r}; it must be 1 (compile) or 0 (do not)")
    return asked == "1"


def _compiler() -> str:
    """What says which compiler it is. Raises CompileError where there is none that could do it."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        raise CompileError(f"there is no C compiler {command[0]!r} (Debian: apt-get install gcc libc6-dev)")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.is_file():
        raise CompileError(f"there is no {headers} (Debian: apt-get install python3-dev)")
    if importlib.util.find_spec("mypyc") is None or importlib.util.find_spec("setuptools") is None:
        raise CompileError("it needs mypy[mypyc]: make .venv/.installed")
    return subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout


def _closure(base: Path, modules: Iterable[str]) -> dict[str, bytes]:
    """The modules and all of this project that they import, by their path below `base`: what mypyc looks at."""
    found: dict[str, bytes] = {}
    wanted = list(modules)
    while wanted:
        name = wanted.pop()
        file = base.joinpath(*name.split("."))
        path = file.with_suffix(".py") if file.with_suffix(".py").is_file() else file / "__init__.py"
        at = path.relative_to(base).as_posix()
        if at in found or not path.is_file():  # not a module: `from module import name`
            continue
        found[at] = path.read_bytes()
        wanted += [name.rpartition(".")[0]] if "." in name else []
        for node in ast.walk(ast.parse(found[at])):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "stepdown":
                wanted += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            elif isinstance(node, ast.Import):
                wanted += [each.name for each in node.names if each.name.split(".")[0] == "stepdown"]
    return found


def _key(sources: Mapping[str, bytes], modules: Sequence[str], compiler: str) -> str:
    flags = [os.environ.get(name, "") for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS")]
    versions = [sys.version, sysconfig.get_config_var("SOABI"), importlib.metadata.version("mypy"), compiler]
    parts: list[object] = [Path(__file__).read_bytes(), versions, flags, sorted(modules), sorted(sources.items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "stepdown" / "compiled"


def _compile(sources: Mapping[str, bytes], modules: Sequence[str], folder: Path) -> None:
    """In a folder of its own, which takes its place in the cache when it is whole: others may be at the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=folder.parent) as making:
        work = Path(making) / "work"
        for at, text in sources.items():
            (work / at).parent.mkdir(parents=True, exist_ok=True)
            (work / at).write_bytes(text)
        (work / "mypy.ini").write_text(_MYPY)
        paths = [f"{module.replace('.', '/')}.py" for module in modules]
        done = subprocess.run(
            [sys.executable, Path(__file__).resolve(), *paths],
            cwd=work,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise CompileError(f"mypyc failed:\n{done.stdout}")
        made = Path(making) / "made"
        for file in work.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
            if "build" not in file.relative_to(work).parts:
                (made / file.relative_to(work)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, made / file.relative_to(work))
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # another build was first
                raise


def main() -> None:
    """The process that compiles: setuptools wants the folder, and says much."""
    from mypyc.build import mypycify
    from setuptools import setup  # type: ignore[import-untyped]

    extensions = mypycify(["--config-file", "mypy.ini", *sys.argv[1:]], **_FLAGS)  # type: ignore[arg-type]
    setup(name="stepdown", packages=[], ext_modules=extensions, script_args=["--quiet", "build_ext", "--inplace"])


if __name__ == "__main__":
    main()
