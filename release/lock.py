"""The two locks, read: `requirements.lock`, what the project is developed with, and `requirements-runtime.lock`, what an image
holds. `release.wheelhouse` and `tests/unit/test_lock.py` use this.

The second is compiled under the first as a constraint, so both name the same versions. The test says that they still do, and
that the runtime one is all that the package needs: an image is not what was tested if they part.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEVELOPMENT = ROOT / "requirements.lock"
RUNTIME = ROOT / "requirements-runtime.lock"

_PIN = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>\S+?)(?: ; (?P<marker>.+?))? \\\n(?P<hashes>(?:\s+--hash=\S+(?: \\)?\n)+)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Pin:
    """One locked distribution."""

    name: str
    version: str
    marker: str
    hashes: frozenset[str]


def pins(lock: Path = RUNTIME) -> tuple[Pin, ...]:
    """All that a lock pins, in its order."""
    return tuple(
        Pin(found["name"], found["version"], found["marker"] or "", frozenset(re.findall(r"--hash=(\S+)", found["hashes"])))
        for found in _PIN.finditer(lock.read_text(encoding="utf-8"))
    )


def project_version() -> str:
    """What `pyproject.toml` calls this version; the chart and the image carry the same."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        version: str = tomllib.load(file)["project"]["version"]
    return version
