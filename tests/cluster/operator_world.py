"""The operator as users run it, on a real API server: a process of its own, its proxies as processes, an upstream that bills.

There is no kubelet at this size, so a pod here is the object that the controllers made for the fleet's Deployment, and its
proxy is started by hand with what the kubelet would have given it: a token bound to the pod, the config, the channel's key.
"""

import contextlib
import copy
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import yaml
from devcluster import Cluster

from stepdown.cluster.kinds import CONFIG_MAP, OURS, POD, SERVICE_ACCOUNT, KindRef
from tests.upstream.process import SimulatorProcess

Object = dict[str, Any]

CRDS = Path(__file__).parents[2] / "crds"
MANIFESTS = Path(__file__).parents[2] / "manifests" / "base"
KIND = {kind.kind: kind for kind in OURS}
WAIT_S = 90.0
"""How long a failing test waits."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(true: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Waits for something true, and returns it."""
    until_s = time.monotonic() + timeout_s
    while True:
        if found := true():
            return found
        assert time.monotonic() < until_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


class Process:
    """A process whose log is read as it comes."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._command, self._env = command, env
        self.lines: list[str] = []

    def launch(self) -> Self:
        self.process = subprocess.Popen(
            self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines[-60:])

    def wait_for(self, part: str, timeout_s: float = WAIT_S) -> str:
        """The first line with this in it."""

        def found() -> str:
            line = next((line for line in list(self.lines) if part in line), "")
            assert line or self.process.poll() is None, f"it ended with {self.process.poll()}:\n{self.text}"
            return line

        line: str = until(found, f"{part!r} in:\n{self.text}", timeout_s)
        return line

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def stop(self, timeout_s: float = 30.0) -> int:
        """As Kubernetes does it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        return self.end()

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Operator(Process):
    """`python -m stepdown operator`."""

    def __init__(self, world: "World", kubeconfig: Path | None = None, *arguments: str) -> None:
        self.http_port = free_port()
        command = [sys.executable, "-m", "stepdown", "operator", "--kubeconfig", str(kubeconfig or world.cluster.kubeconfig)]
        command += ["--namespace", world.own_namespace, "--image", "registry.example/stepdown:test"]
        command += ["--ledger", str(world.path / "ledger.db"), "--state-dir", str(world.path), "--identity", "test"]
        command += ["--listen", f"127.0.0.1:{world.sync_port}", "--sync-url", f"https://127.0.0.1:{world.sync_port}"]
        command += ["--http", f"127.0.0.1:{self.http_port}", "--allowed-upstreams", world.upstream, "--log-format", "json"]
        super().__init__([*command, *arguments], world.cluster.environment())

    def start(self, timeout_s: float = WAIT_S) -> Self:
        self.launch()
        self.wait_for('"event": "ready"', timeout_s)
        return self

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


class Proxy(Process):
    """One pod's proxy."""

    def __init__(self, world: "World", pod: Object, directory: Path) -> None:
        self.pod_uid: str = pod["metadata"]["uid"]
        config, keys = directory / "config", directory / "keys"
        for each in (config, keys):
            each.mkdir(parents=True, exist_ok=True)
        for name, data in world.mounted("default").items():
            (config / name).write_text(data)
        (keys / "standard").write_text("sk-upstream")
        (directory / "token").write_text(world.token(pod))
        command = [sys.executable, "-m", "stepdown.proxy", "--listen", "127.0.0.1:0", "--fleet", f"{world.namespace}/default"]
        command += ["--sync-url", f"https://127.0.0.1:{world.sync_port}", "--sync-ca", str(config / "ca.crt")]
        command += ["--sync-token", str(directory / "token"), "--config-dir", str(config), "--key-dir", str(keys)]
        command += ["--state-dir", str(directory / "state"), "--pod-uid", self.pod_uid, "--close-s", "2"]
        super().__init__(command, {**os.environ, "PYTHONUNBUFFERED": "1"})

    def start(self) -> Self:
        self.launch()
        line = self.wait_for("listening on ")
        self.port = int(line.rpartition(":")[2])
        return self

    def chat(self, route: str = "chat", *, key: str = "", **fields: Any) -> tuple[int, dict[str, str], Object]:
        body = {"model": route, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, **fields}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            sent = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, json.loads(response.read())
        finally:
            connection.close()

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class World:
    """A namespace with a fleet in it, and everything that runs beside it."""

    def __init__(self, cluster: Cluster, namespace: str, path: Path, upstream: SimulatorProcess) -> None:
        self.cluster, self.namespace, self.path = cluster, namespace, path
        self.own_namespace = namespace
        """The operator's: a test's own, so that several have a Lease each."""
        self.sync_port = free_port()
        self.simulator = upstream
        self.upstream = f"{upstream.url.rstrip('/')}"
        self._processes: list[Process] = []

    # Objects ---------------------------------------------------------------------------------------------------------

    def object(self, kind: str, name: str, spec: Object, **metadata: Any) -> Object:
        found: Object = {"apiVersion": "stepdown.dev/v1alpha1", "kind": kind, "metadata": {"name": name, **metadata}}
        if KIND[kind].namespaced:
            found["metadata"]["namespace"] = self.namespace
        return {**found, "spec": spec}

    def proxy(self, **spec: Any) -> Object:
        channels = [{"name": "standard", "apiKeySecretRef": {"name": "upstream"}}]
        return self.object(
            "RoutingProxy", "default", {"replicas": 2, "upstream": {"baseURL": self.upstream, "channels": channels}, **spec}
        )

    def route(self, name: str = "chat", model: str = "Qwen3-14B", **spec: Any) -> Object:
        return self.object("ModelRoute", name, {"models": {"default": model}, **spec})

    def budget(self, name: str = "team", limit: str = "5.00", **spec: Any) -> Object:
        return self.object("SpendBudget", name, {"monthlyLimitUSD": limit, **spec})

    def apply(self, *objects: Object) -> None:
        """As users do it."""
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def delete(self, kind: str, name: str) -> None:
        status, answer = self.cluster.request("DELETE", KIND[kind].path(self.namespace, name))
        assert status == 200, answer

    def get(self, kind: KindRef | str, name: str) -> Object | None:
        reference = KIND[kind] if isinstance(kind, str) else kind
        status, answer = self.cluster.request("GET", reference.path(self.namespace, name))
        return answer if status == 200 else None

    def all(self, kind: KindRef, labels: str = "") -> list[Object]:
        query = f"?labelSelector={labels}" if labels else ""
        status, answer = self.cluster.request("GET", kind.path(self.namespace) + query)
        assert status == 200, answer
        items: list[Object] = answer["items"]
        return items

    def condition(self, kind: str, name: str, type_: str) -> tuple[str, str]:
        """Status and reason; empty where there is none."""
        found = self.get(kind, name) or {}
        for each in found.get("status", {}).get("conditions", ()):
            if each["type"] == type_:
                return each["status"], each["reason"]
        return "", ""

    def until_condition(
        self, kind: str, name: str, type_: str, status: str, reason: str = "", timeout_s: float = WAIT_S
    ) -> None:
        def holds() -> bool:
            now = self.condition(kind, name, type_)
            return now[0] == status and reason in ("", now[1])

        try:
            until(holds, f"{kind} {name}: {type_}={status} {reason}", timeout_s)
        except AssertionError as error:
            found = (self.get(kind, name) or {}).get("status")
            raise AssertionError(f"{error}; it says {json.dumps(found, indent=1)}\n{self.said()}") from None

    def events(self, name: str) -> list[str]:
        """Reasons of the Events about an object of ours."""
        status, answer = self.cluster.request("GET", f"/api/v1/namespaces/{self.namespace}/events")
        assert status == 200, answer
        return [each["reason"] for each in answer["items"] if each["involvedObject"]["name"] == name]

    # What the kubelet would do ---------------------------------------------------------------------------------------

    def pods(self, count: int = 1) -> list[Object]:
        def enough() -> list[Object] | None:
            pods = self.all(POD, "stepdown.dev/proxy=default")
            return pods if len(pods) >= count else None

        found: list[Object] = until(enough, f"{count} pods\n{self.said()}")
        return found

    def found(self, pod: str, *, ready: bool) -> None:
        """Writes what a readiness probe found."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now}
        patch = json.dumps({"status": {"phase": "Running", "conditions": [condition]}})
        self.cluster.kubectl("patch", "pod", pod, "-n", self.namespace, "--subresource=status", "--type=strategic", "-p", patch)

    def token(self, pod: Object) -> str:
        meta = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        spec = {"audiences": ["stepdown"], "expirationSeconds": 3600, "boundObjectRef": bound}
        path = f"{SERVICE_ACCOUNT.path(self.namespace, 'stepdown-default')}/token"
        status, answer = self.cluster.request(
            "POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        )
        assert status == 201, answer
        token: str = answer["status"]["token"]
        return token

    def mounted(self, fleet: str) -> dict[str, str]:
        """The files of the projected volume."""
        files: dict[str, str] = {}
        for each in until(lambda: self.all(CONFIG_MAP, f"stepdown.dev/proxy={fleet}"), "the fleet's ConfigMaps"):
            files |= each.get("data", {})
        return files

    def shards(self) -> "list[str]":
        """The contents of the mounted shards, as far as there are any."""
        maps = self.all(CONFIG_MAP, "stepdown.dev/proxy=default")
        return [text for each in maps for name, text in each.get("data", {}).items() if name.startswith("shard")]

    # Rights ----------------------------------------------------------------------------------------------------------

    def restricted_kubeconfig(self, rules: "list[Object]") -> Path:
        """A ServiceAccount of the operator's own with these rights, as the chart gives it one."""
        self.cluster.kubectl("-n", self.own_namespace, "create", "serviceaccount", "operator")
        self.grant(rules)
        subject = f"--serviceaccount={self.own_namespace}:operator"
        self.cluster.kubectl("create", "clusterrolebinding", self._role, f"--clusterrole={self._role}", subject)
        return self._kubeconfig_of("operator")

    def shipped_kubeconfig(self) -> Path:
        """A ServiceAccount with the rights of `manifests/base`, and no others."""
        text = "---\n".join((MANIFESTS / name).read_text() for name in ("serviceaccount.yaml", "rbac.yaml"))
        text = text.replace("stepdown-system", self.namespace)
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
        for each in documents:  # what belongs to the cluster is this test's alone
            if each["kind"].startswith("ClusterRole"):
                each["metadata"]["name"] = self._role
                if "roleRef" in each:
                    each["roleRef"]["name"] = self._role
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
        return self._kubeconfig_of("stepdown")

    def _kubeconfig_of(self, account: str) -> Path:
        token = self.cluster.kubectl("-n", self.own_namespace, "create", "token", account).strip()
        path = self.path / f"kubeconfig-{account}"
        cluster = {"server": self.cluster.server, "certificate-authority": str(self.cluster.ca)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(content))
        return path

    def grant(self, rules: "list[Object]") -> None:
        """These rights and no others, from now on."""
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": self._role},
            "rules": rules,
        }
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(role))

    @property
    def _role(self) -> str:
        return f"stepdown-{self.own_namespace}"

    # Processes -------------------------------------------------------------------------------------------------------

    def operator(self, kubeconfig: Path | None = None, *arguments: str) -> Operator:
        """Not started yet."""
        made = Operator(self, kubeconfig, *arguments)
        self._processes.append(made)
        return made

    def proxies(self, count: int = 1) -> list[Proxy]:
        """Started, and ready."""
        made, pods = [], self.pods(count)[:count]
        for number, pod in enumerate(pods):
            proxy = Proxy(self, pod, self.path / f"pod-{len(self._processes)}-{number}")
            self._processes.append(proxy)
            made.append(proxy.start())
        for proxy, pod in zip(made, pods, strict=True):
            until(proxy.ready, f"a proxy is ready:\n{proxy.text}\n{self.said()}")
            self.found(pod["metadata"]["name"], ready=True)
        return made

    def said(self) -> str:
        return "\n\n".join(each.text for each in self._processes if isinstance(each, Operator))

    def end(self) -> None:
        for each in reversed(self._processes):
            if hasattr(each, "process") and not each.process.stdout.closed:  # type: ignore[union-attr]
                each.process.kill()
                each.end()


@contextlib.contextmanager
def world(cluster: Cluster, path: Path) -> Iterator[World]:
    with cluster.namespace("op") as namespace, SimulatorProcess() as simulator:
        made = World(cluster, namespace, path, simulator)
        try:
            yield made
        finally:
            made.end()
            for kind in OURS:
                cluster.request("DELETE", kind.path(namespace if kind.namespaced else ""))


def bare(thing: Object) -> Object:
    """An object without what the API server and a status may change: what Git said, byte for byte."""
    made = copy.deepcopy(thing)
    made.pop("status", None)
    for field in ("resourceVersion", "managedFields"):
        made["metadata"].pop(field, None)
    return made


def install(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
