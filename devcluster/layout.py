"""Where a cluster keeps what, all in its state folder, and which addresses it has."""

import contextlib
import fcntl
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import StateError

LOOPBACK = "127.0.0.1"
NODE_ADDRESS = "198.18.0.1"
"""A node's address may not be loopback. This one is set aside for tests of networks, and is on a bridge of our own."""
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_FIRST = "10.96.0.1"
SERVICE_DNS = "10.96.0.10"
POD_RANGE = "10.244.0.0/24"
NODE_NAME = "devcluster"

_MARK = "devcluster.state"
_LONGEST = 80
"""A unix socket's path has at most 107 characters."""


def default_state() -> Path:
    return Path(tempfile.gettempdir()) / f"stepdown-cluster-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Layout:
    state: Path

    @property
    def control(self) -> Path:
        return self.state / "control.sock"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def etcd(self) -> Path:
        return self.state / "etcd"

    @property
    def processes(self) -> Path:
        return self.state / "processes"

    @property
    def ready(self) -> Path:
        """What the cluster is (JSON), once it is ready."""
        return self.state / "ready.json"

    @property
    def audit(self) -> Path:
        return self.state / "audit.log"

    @property
    def node(self) -> Path:
        return self.state / "node"

    @property
    def containerd_socket(self) -> Path:
        return self.node / "containerd.sock"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """The folder, for this user alone. One that exists has to be a cluster's, or empty."""
        if len(str(self.state)) > _LONGEST or not self.state.is_absolute():
            raise StateError(
                f"The state folder {self.state} must be an absolute path of at most {_LONGEST} characters: sockets live in it."
            )
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = self.state.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            raise StateError(f"The state folder {self.state} is not a folder of yours. Give another with --state-dir.")
        if not self.ours and any(self.state.iterdir()):
            raise StateError(
                f"The state folder {self.state} has other things in it. Give an empty or a new one with --state-dir."
            )
        (self.state / _MARK).touch()
        for folder in (self.pki, self.etcd, self.processes, self.logs):
            folder.mkdir(mode=0o700, exist_ok=True)

    def lock(self) -> int | None:
        """A file descriptor that holds the folder, for the supervisor and its guard; None if another cluster's have it."""
        while True:
            held = os.open(self.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(held)
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(held).st_ino == self.state.stat().st_ino:
                    return held
            os.close(held)  # it was removed, and perhaps made anew, between the two
            self.make()

    @property
    def ours(self) -> bool:
        """Whether a cluster of ours is or was here; only such a folder is ever removed."""
        return (self.state / _MARK).exists()
