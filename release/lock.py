"""The two locks, read: `requirements.lock`, what the project is developed with, and `requirements-runtime.lock`, what an image
holds. `release.wheelhouse` uses this; `make check` calls `python -m release.lock`.

The second is compiled under the first as a constraint, so both name the same versions. The test says that they still do, and
that the runtime one is all that the package needs: an image is not what was tested if they part.
"""

import re
import sys
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


def disagreements() -> list[str]:
    """What an image would have otherwise than it was tested; empty is well."""
    developed = {pin.name: pin for pin in pins(DEVELOPMENT)}
    return [
        f"requirements-runtime.lock has {pin.name} {pin.version}, requirements.lock {other.version if other else 'does not'}"
        for pin in pins(RUNTIME)
        if (other := developed.get(pin.name)) is None or (other.version, other.hashes) != (pin.version, pin.hashes)
    ]


def project_version() -> str:
    """What `pyproject.toml` calls this version; the chart and the image carry the same."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        version: str = tomllib.load(file)["project"]["version"]
    return version


def main() -> int:
    found = disagreements()
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("The image would not be what was tested. Run `make lock` and commit both locks.", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
