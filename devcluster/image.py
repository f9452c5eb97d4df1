"""Images without a registry: `python -m devcluster image` builds the project's and gives it to the cluster that runs.

The base is Debian with Python, made once by debootstrap from where this machine gets its packages. operator/Dockerfile takes it
as BASE_IMAGE, and its wheels from dist/wheelhouse (`make wheelhouse`), so a build downloads nothing.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from devcluster import cache, debian, kind
from devcluster.errors import BuildError, StateError
from devcluster.layout import Layout
from devcluster.node import images_import

ROOT = Path(__file__).parent.parent
BASE = "localhost/stepdown-base:bookworm"
TAG = "stepdown:dev"
_SUITE = "bookworm"
_PACKAGES = ("python3", "python3-venv", "ca-certificates")
_LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
"""What is of no use in an image; and apt's sources and the resolver are this machine's."""


def project(tag: str = TAG) -> Path:
    """The project's image as a docker-archive, built from operator/Dockerfile."""
    if not any((ROOT / "dist" / "wheelhouse").glob("*.whl")):
        raise BuildError("dist/wheelhouse has no wheels, and the image is made of them. Run `make wheelhouse` first.")
    return build(ROOT, tag, ROOT / "operator" / "Dockerfile")


def build(context: Path, tag: str, dockerfile: Path, arguments: Mapping[str, str] | None = None) -> Path:
    """An image of a Dockerfile that takes BASE_IMAGE, as a docker-archive."""
    base()
    with cache.lock("images"):
        began_s = time.monotonic()
        given = {"BASE_IMAGE": BASE, **(arguments or {})}
        command = [
            "bud",
            "--isolation",
            "chroot",
            "--pull-never",
            "--layers",
            "--quiet",
            "--tag",
            tag,
            "--file",
            str(dockerfile),
        ]
        _buildah(
            *command, *(part for name, value in given.items() for part in ("--build-arg", f"{name}={value}")), str(context)
        )
        archive = save(tag)
        cache.say(f"built {tag} in {time.monotonic() - began_s:.0f} s: {archive}")
    return archive


def base() -> str:
    """The name of the base image, which is made if this machine has not made it yet."""
    debian.install(debian.IMAGES)
    with cache.lock("images"):
        if not _has(BASE):
            _make_base()
    return BASE


def _make_base() -> None:
    began_s = time.monotonic()
    cache.say(f"making {BASE} with debootstrap (once: it stays in {cache.root()})")
    with tempfile.TemporaryDirectory(prefix="base-", dir=cache.root()) as scratch:
        root = Path(scratch, "root")
        _run("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(root), *_mirror())
        for folder in _LEFT_OUT:
            shutil.rmtree(root / folder, ignore_errors=True)
            (root / folder).mkdir(parents=True)
        for file in ("etc/apt/sources.list", "etc/resolv.conf", "etc/hostname"):
            (root / file).unlink(missing_ok=True)
        container = _buildah("from", "scratch").strip()
        _buildah("add", container, str(root), "/")
        _buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "--cmd", "python3", container)
        _buildah("commit", "--quiet", "--rm", container, BASE)
    cache.say(f"made in {time.monotonic() - began_s:.0f} s")


def save(tag: str) -> Path:
    """An image that was built, as a docker-archive."""
    archive = cache.folder("images") / f"{tag.replace('/', '-').replace(':', '-')}.tar"
    draft = archive.with_suffix(".new")
    draft.unlink(missing_ok=True)
    _buildah("push", "--quiet", tag, f"docker-archive:{draft}:{tag}")
    draft.rename(archive)
    return archive


def load(state: Path, archive: Path) -> None:
    """Gives the images of a docker-archive to the cluster in `state`."""
    began_s = time.monotonic()
    if kind.is_kind(state):
        kind.load(state, archive)
    elif Layout(state).containerd_socket.exists():
        _run(*images_import(Layout(state), archive))
    else:
        raise StateError(
            f"The cluster in {state} has no node that could run an image. Start one: python -m devcluster up --size node"
        )
    cache.say(f"the cluster has it, after {time.monotonic() - began_s:.0f} s")


def _has(tag: str) -> bool:
    command = [*_store(), "inspect", "--type", "image", tag]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _store() -> list[str]:
    store = cache.folder("buildah")
    return ["buildah", "--root", str(store / "root"), "--runroot", str(store / "run"), "--storage-driver", "overlay"]


def _buildah(*arguments: str) -> str:
    return _run(*_store(), *arguments)


def _mirror() -> list[str]:
    """Where this machine's apt gets Debian from; on another system, debootstrap's own default."""
    release = Path("/etc/os-release")
    if not release.exists() or "ID=debian" not in release.read_text().splitlines():
        return []
    sites = _run("apt-get", "indextargets", "--format", "$(COMPONENT) $(SITE)", "Created-By: Packages").splitlines()
    return [site.split()[1] for site in sites if site.startswith("main ")][:1]


def _run(*command: str) -> str:
    done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
