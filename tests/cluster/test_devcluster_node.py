"""A node of devcluster's runs pods, Services reach them, and when it is killed the machine is as it was before."""

import contextlib
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from devcluster import Cluster, NodeCluster, image, network

from tests.cluster.test_devcluster import eventually, nothing_left

pytestmark = pytest.mark.node

DOCKERFILE = """
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
USER 65532:65532
WORKDIR /
CMD ["sh", "-c", "cd /tmp && hostname > who && exec python3 -m http.server 8080"]
"""

WEB = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: web
          image: devcluster-smoke:dev
          imagePullPolicy: Never
          readinessProbe: {httpGet: {path: /who, port: 8080}, periodSeconds: 1}
          resources: {limits: {memory: 64Mi}}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumes: [{name: tmp, emptyDir: {medium: Memory}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""


@pytest.mark.timeout(400)
def test_pods_run_services_reach_them_and_killing_it_leaves_nothing(tmp_path: Path) -> None:
    before = _machine()
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    archive = image.build(tmp_path, "devcluster-smoke:dev", tmp_path / "Dockerfile")

    own = NodeCluster()
    assert own.size == "node"
    image.load(own.state, archive)
    own.kubectl("apply", "-f", "-", stdin=WEB)
    own.kubectl("rollout", "status", "deployment/web", "-n", "shop", "--timeout=90s", timeout_s=100)
    pods = set(own.kubectl("get", "pods", "-n", "shop", "-o", "jsonpath={.items[*].metadata.name}").split())
    assert len(pods) == 2

    address = own.kubectl("get", "service", "web", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}")
    port = own.kubectl("get", "service", "web", "-n", "shop", "-o", "jsonpath={.spec.ports[0].nodePort}")
    eventually(lambda: _get(f"http://{address}/who") != "", "kube-proxy has heard of the pods")
    assert {_get(f"http://{address}/who") for _ in range(40)} == pods, "the Service shares requests among its pods"
    assert _get(f"http://{network.NODE_ADDRESS}:{port}/who") in pods
    _pods_reach_each_other_and_the_api(own, min(pods))

    own.release()
    _kill(own)
    eventually(lambda: nothing_left(own.state), f"nothing is left of {own.state}", 60.0)
    eventually(lambda: _machine() == before, "the machine is as it was before", 30.0)


def _pods_reach_each_other_and_the_api(own: Cluster, pod: str) -> None:
    code = (
        "import socket, urllib.request as u\n"
        "print(*{u.urlopen('http://web/who', timeout=5).read().decode().strip() for _ in range(40)})\n"
        "socket.create_connection(('kubernetes.default.svc', 443), 5).close()\n"
    )
    said = own.kubectl("exec", pod, "-n", "shop", "--", "python3", "-c", code)
    assert len(said.split()) == 2, "through the Service a pod reaches both, itself too"
    assert "GET /who" in own.kubectl("logs", pod, "-n", "shop")


def _kill(own: Cluster) -> None:
    """kill -9 while its pods run."""
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(own.supervisor)], check=True)


def _get(url: str) -> str:
    """What it says; nothing, if nobody listens."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(url, timeout=5) as answer:
        return str(answer.read().decode().strip())
    return ""


def _machine() -> tuple[str, ...]:
    """What a node changes: devices, routes, tables, mounts, cgroups, forwarding, and what runs."""

    def said(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    running = [
        line for line in said("ps", "-eo", "args").splitlines() if re.search(r"containerd|/pause|/coredns|http\.server", line)
    ]
    cgroups = [str(found) for found in Path("/sys/fs/cgroup").glob(f"**/{network.CGROUP}")]
    return (
        said("ip", "-brief", "link"),
        said("ip", "route"),
        said("nft", "list", "tables"),
        Path("/proc/mounts").read_text(),
        Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        *running,
        *cgroups,
        *(str(point) for point in network.MOUNT_POINTS if point.exists()),
    )
