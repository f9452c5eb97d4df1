"""The same cluster by kind, where a Docker engine answers: a person's laptop. Tests use the binaries everywhere.

A folder with the file `kind` in it is such a cluster's; the file says its name.
"""

import os
import shutil
import subprocess
from pathlib import Path

from devcluster import binaries, cache
from devcluster.errors import BuildError, StartError, StateError
from devcluster.layout import Layout


def docker_answers() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, timeout=60, check=False).returncode == 0


def is_kind(state: Path) -> bool:
    return (state / "kind").exists()


def name(state: Path) -> str:
    return (state / "kind").read_text().strip()


def up(state: Path) -> None:
    """The cluster, and its kubeconfig in the folder; the user's own kubeconfig stays as it is."""
    if is_kind(state):
        raise StateError(
            f"A kind cluster {name(state)} is in {state} already. End it, or give another folder with --state-dir."
        )
    Layout(state).make()
    (state / "kind").write_text(f"{state.name}\n")
    try:
        _kind("create", "cluster", "--name", state.name, "--kubeconfig", str(state / "kubeconfig"), "--wait", "120s")
    except StartError:
        shutil.rmtree(state)  # kind removes what it made of a cluster that it could not make
        raise


def down(state: Path) -> None:
    _kind("delete", "cluster", "--name", name(state), "--kubeconfig", str(state / "kubeconfig"))
    shutil.rmtree(state)


def load(state: Path, archive: Path) -> None:
    """Gives the cluster's node the images of a docker-archive."""
    _kind("load", "image-archive", str(archive), "--name", name(state))


def build_and_load(state: Path, tag: str) -> None:
    """The project's image, by Docker on the base that operator/Dockerfile names."""
    root = Path(__file__).parent.parent
    command = ["docker", "build", "--quiet", "--tag", tag, "--file", str(root / "operator" / "Dockerfile"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    _kind("load", "docker-image", tag, "--name", name(state))


def _kind(*arguments: str) -> None:
    found = shutil.which("kind")
    program = Path(found) if found is not None else binaries.build(["kind"])["kind"]
    cache.say(f"kind {' '.join(arguments)}")
    done = subprocess.run([program, *arguments], env=os.environ, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise StartError(f"kind {' '.join(arguments)} failed: {done.stderr.strip()[:500]}")
