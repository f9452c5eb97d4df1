"""The image, by whichever builder answers: `python -m release.image`. `make image` calls it, after `make wheelhouse`.

The same commit, base and builder give the same image, byte for byte: every time in it is the commit's, and bytecode does not
depend on times.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from release.lock import project_version

ROOT = Path(__file__).parents[1]
DOCKERFILE = "operator/Dockerfile"
BASE_IMAGE = "python:3.11-slim-bookworm"


def answers(*command: str) -> bool:
    """Whether a program is there and works: a Docker client without an engine does not."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def engine() -> str:
    for name, probe in (("docker", ("docker", "info")), ("buildah", ("buildah", "version"))):
        if answers(*probe):
            return name
    raise SystemExit(
        "no image can be built here: neither a Docker engine nor buildah answers. Debian has both: docker.io, buildah."
    )


def command(builder: str, tag: str, base_image: str, commit: str, epoch_s: str) -> list[str]:
    """How a builder is called, from the repository's root."""
    arguments = {"BASE_IMAGE": base_image, "VERSION": project_version(), "REVISION": commit}
    common = ["--file", DOCKERFILE, "--tag", tag]
    common += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    if builder == "docker":
        dated = ["--build-arg", f"SOURCE_DATE_EPOCH={epoch_s}", "--output", "type=docker,rewrite-timestamp=true"]
        return ["docker", "buildx", "build", *common, *dated, "--provenance=false", "."]
    # chroot: it asks for nothing that a container or a small machine lacks.
    return ["buildah", "build", "--isolation", "chroot", "--layers=false", "--timestamp", epoch_s, *common, "."]


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, text=True, capture_output=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m release.image", description=__doc__)
    parser.add_argument("--tag", default=f"stepdown:{project_version()}", help="the image's name [%(default)s]")
    parser.add_argument("--base-image", default=BASE_IMAGE, help="has Python 3.11 as python3, with venv [%(default)s]")
    parser.add_argument("--builder", choices=("docker", "buildah"), help="[whichever answers]")
    given = parser.parse_args()
    built = command(
        given.builder or engine(), given.tag, given.base_image, git("rev-parse", "HEAD"), git("log", "-1", "--format=%ct")
    )
    return subprocess.run(built, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
