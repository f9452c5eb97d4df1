"""A cluster as a test has it: `with ControlPlane() as cluster: cluster.kubectl("get", "ns")`.

`ControlPlane` starts one and holds it, `Cluster.attach` holds one that runs: it goes on while any process holds it. When the
last lets go or is killed, it ends and leaves nothing behind. Its parts can be stopped, started, paused and resumed by name.
"""

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from devcluster import binaries, debian, errors, processes
from devcluster.client import Client
from devcluster.errors import ClusterError, MachineError, StartError, StateError
from devcluster.layout import Layout
from devcluster.options import Options, Size

ROOT = Path(__file__).parent.parent


class Cluster:
    """One that runs and that this process holds."""

    def __init__(self, layout: Layout) -> None:
        try:
            about = json.loads(layout.ready.read_text())
        except (OSError, ValueError):
            raise StateError(f"No cluster runs in {layout.state}. Start one: python -m devcluster up") from None
        self._layout = layout
        self.state = layout.state
        self.kubeconfig = layout.kubeconfig
        self.server: str = about["server"]
        self.size: Size = about["size"]
        self.ca = Path(about["ca"])
        self.admin_client_cert = Path(about["admin_client_cert"])
        self.admin_client_key = Path(about["admin_client_key"])
        self.supervisor: int = about["supervisor"]
        self._client = Client(self.server, self.ca, self.admin_client_cert, self.admin_client_key)
        self._control = self._connect()
        self._ask(do="hold")

    @classmethod
    def attach(cls, state: Path) -> "Cluster":
        return Cluster(Layout(state))

    @classmethod
    def shared(cls, state: Path, lock: Path, start: "Callable[[Path], Cluster]") -> "Cluster":
        """The one in `state`, or a new one there if there is none: for processes that agree on `lock` and share."""
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(StateError):
                return cls.attach(state)
            until_s = time.monotonic() + 30.0
            while state.exists() and time.monotonic() < until_s:
                time.sleep(0.05)  # its last holder let go of it a moment ago
            return start(state)

    def release(self) -> None:
        """Lets go of it; it ends with the last holder, unless it was started to be kept."""
        self._control.close()

    def down(self, timeout_s: float = 60.0) -> None:
        """Ends it whoever holds it, and returns when nothing of it is left."""
        with contextlib.suppress(ClusterError):  # it just ended by itself
            self._ask(do="down")
        self.release()
        self.wait_gone(timeout_s)

    def wait_gone(self, timeout_s: float = 60.0) -> None:
        until_s = time.monotonic() + timeout_s
        while self.state.exists():
            if time.monotonic() > until_s:
                raise StateError(f"The cluster in {self.state} was not gone after {timeout_s:.0f} s.")
            time.sleep(0.03)

    # Its parts.

    def stop_component(self, name: str, grace_s: float = 0.0) -> None:
        """It ends, as by kill -9, or in its own way if given grace, and stays away until it is started."""
        self._ask(do="stop", name=name, grace_s=grace_s)

    def start_component(self, name: str, wait: bool = True) -> None:
        """On the same port and the same data as before."""
        self._ask(do="start", name=name)
        if wait:
            self.wait_ready()

    def pause(self, name: str) -> None:
        """It keeps its connections and answers nothing (SIGSTOP)."""
        self._ask(do="pause", name=name)

    def resume(self, name: str) -> None:
        self._ask(do="resume", name=name)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Until the API server says that it is ready, etcd included."""
        until_s = time.monotonic() + timeout_s
        while not self._client.exists("/readyz"):
            if time.monotonic() > until_s:
                raise StartError(f"The API server was not ready after {timeout_s:.0f} s: {self.log('kube-apiserver')}")
            time.sleep(0.05)

    def log(self, name: str, lines: int = 30) -> str:
        """The end of a part's log."""
        return processes.tail(self._layout.log(name), lines)

    @property
    def audit_log(self) -> Path:
        """One JSON document a line, if an audit policy was given."""
        return self._layout.audit

    # Asking the API.

    def request(self, method: str, path: str, body: object = None, timeout_s: float = 10.0) -> tuple[int, Any]:
        """As the admin: status and parsed body."""
        return self._client.request(method, path, body, timeout_s)

    def ssl_context(self) -> ssl.SSLContext:
        return self._client.context()

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60.0) -> str:
        """What it prints. With `check`, AssertionError with its stderr if it fails."""
        done = subprocess.run(
            [binaries.kubectl(), *arguments],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    @contextlib.contextmanager
    def namespace(self, prefix: str = "test", labels: Mapping[str, str] | None = None) -> Iterator[str]:
        """A new one with its service account; after the block the API server removes it and all that is in it."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        status, answer = self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        if status != 201:
            raise ClusterError(f"Namespace {name} was not created: {answer}")
        try:
            until_s = time.monotonic() + 30.0
            while not self._client.exists(f"/api/v1/namespaces/{name}/serviceaccounts/default") and time.monotonic() < until_s:
                time.sleep(0.02)
            yield name
        finally:
            with contextlib.suppress(OSError, http.client.HTTPException):  # the test may have ended the API server
                self.request("DELETE", f"/api/v1/namespaces/{name}")

    def environment(self) -> dict[str, str]:
        """For a process that is to use this cluster and no other."""
        return {**without_proxy(os.environ), "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.state / "kubectl")}

    # The supervisor.

    def _connect(self) -> socket.socket:
        control = socket.socket(socket.AF_UNIX)
        control.settimeout(60.0)
        try:
            control.connect(str(self._layout.control))
        except OSError as problem:
            control.close()
            raise StateError(f"No cluster runs in {self.state} any more ({problem.strerror}).") from None
        return control

    def _ask(self, **asked: object) -> None:
        try:
            self._control.sendall(json.dumps(asked).encode() + b"\n")
            line = self._control.makefile("rb").readline()
        except OSError as problem:
            raise StateError(f"The cluster in {self.state} does not answer: {problem}") from None
        if not line:
            raise StateError(f"The cluster in {self.state} has ended.")
        if (error := json.loads(line).get("error")) is not None:
            raise ClusterError(f"Cluster in {self.state}: {error}")


class ControlPlane(Cluster):
    """`with ControlPlane() as cluster:` an API server, etcd, the controllers and the scheduler, and no nodes."""

    wanted: ClassVar[Size] = "control-plane"

    def __init__(
        self, state: Path | None = None, *, audit_policy: Path | None = None, apiserver_args: tuple[str, ...] = ()
    ) -> None:
        policy = None if audit_policy is None else str(audit_policy.absolute())
        place = state or Path(tempfile.mkdtemp(prefix="sdc-"))
        try:
            with launched(place, Options(self.wanted, False, policy, apiserver_args)) as layout:
                super().__init__(layout)
        except ClusterError:
            with contextlib.suppress(OSError):  # if it is empty, nobody but us knows of it
                place.rmdir()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()


class NodeCluster(ControlPlane):
    """The same with a node that runs pods: needs root, and there is one a machine."""

    wanted: ClassVar[Size] = "node"


@contextlib.contextmanager
def launched(state: Path, options: Options) -> Iterator[Layout]:
    """A cluster that is ready; within the block this process holds it, and after it only who took hold of it in the block.

    What it needs is built and installed first, by this process: that can take minutes, and a start may not.
    """
    if sys.platform != "linux":
        raise MachineError("Clusters without Docker need Linux. With Docker: python -m devcluster up --with kind")
    binaries.build(binaries.SIZES[options.size])
    if options.size == "node":
        debian.install(debian.NODE)
    command = [sys.executable, "-m", "devcluster.supervisor", str(state), options.dump()]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=without_proxy(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as starter:
        assert starter.stdout is not None
        said = json.loads(starter.stdout.readline() or "{}")
        if "ready" not in said:
            error: type[ClusterError] = getattr(errors, said.get("error", "StartError"))
            raise error(said.get("failed", f"The supervisor of {state} ended without a word."))
        yield Layout(state)


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """A cluster's addresses are this machine's: no proxy knows them."""
    return {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
