"""The wheelhouse: every wheel that the image installs, in `dist/wheelhouse`. `make wheelhouse` calls it.

An image build that asks a package index gives another image tomorrow, and needs the index's certificates inside the build. So
the wheels are gathered here, outside: those of the lock by hash, for the image's platform whatever machine this is, and the
project's own. The build (`operator/Dockerfile`) then installs without an index and checks the hashes once more.
"""

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from release.lock import Pin, pins

ROOT = Path(__file__).parents[1]
WHEELHOUSE = ROOT / "dist" / "wheelhouse"
OWN_WHEELS = ROOT / "dist" / "wheel"

PYTHON_OF_IMAGE = "3.11"
GLIBC_OF_IMAGE = 36
"""Debian bookworm has glibc 2.36: wheels for it and for any older one run there."""
ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def platforms(architecture: str) -> tuple[str, ...]:
    """The platform tags that run on the image, the newest first, as pip wants them: each by its name."""
    return (
        *(f"manylinux_2_{minor}_{architecture}" for minor in range(GLIBC_OF_IMAGE, 4, -1)),
        f"manylinux2014_{architecture}",
        f"linux_{architecture}",
    )


def download(architecture: str, into: Path = WHEELHOUSE) -> None:
    """The wheels of the runtime lock, each checked against its hash. What is there already is not fetched again."""
    into.mkdir(parents=True, exist_ok=True)
    runs = platforms(architecture)
    for stale in into.glob("*.whl"):
        if not any(_is_of(stale, pin, runs) for pin in pins()):
            stale.unlink()
    tags = [word for tag in runs for word in ("--platform", tag)]
    wanted = ["--no-deps", "--require-hashes", "--requirement", "requirements-runtime.lock"]
    target = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON_OF_IMAGE, *tags]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", *wanted, *target, "--find-links", str(into), "--dest", str(into)], check=True, cwd=ROOT)


def add_own(architecture: str, built: Path = OWN_WHEELS, into: Path = WHEELHOUSE) -> Path:
    """The project's wheel, which `make wheel` has just built; exactly one, or it is not clear what would be installed."""
    found = sorted(built.glob("stepdown-*.whl"))
    if len(found) != 1:
        names = ", ".join(wheel.name for wheel in found) or "none"
        raise SystemExit(f"{built}: expected one wheel of stepdown, found {names}. Remove dist/ and run `make wheelhouse`.")
    if not found[0].stem.endswith(("-none-any", f"-cp311-linux_{architecture}")):
        raise SystemExit(f"{found[0].name} is compiled for another machine than the image. Run `make wheelhouse COMPILE=0`.")
    for old in into.glob("stepdown-*.whl"):
        old.unlink()
    return Path(shutil.copy2(found[0], into))


def _is_of(wheel: Path, pin: Pin, runs: Collection[str]) -> bool:
    """Whether a wheel is the one that is locked, and runs on the image: its name ends with the platforms that it is for."""
    name, version, *_, built_for = wheel.stem.split("-")
    return (name.lower().replace("_", "-"), version) == (pin.name, pin.version) and not {"any", *runs}.isdisjoint(
        built_for.split(".")
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m release.wheelhouse", description=__doc__)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default=platform.machine().lower())
    architecture = ARCHITECTURES[parser.parse_args().architecture]
    download(architecture)
    own = add_own(architecture)
    count = len(list(WHEELHOUSE.glob("*.whl")))
    print(f"dist/wheelhouse: {count} wheels for {architecture}, of them our own {own.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
