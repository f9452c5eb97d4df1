"""The control plane under the bench: etcd and an API server, the chart's rights, the operator, four proxies, an upstream.

All of it is real but the kubelet: a pod is the object that the controllers made, and its proxy is started here with the pod's
token and config, as the kubelet would. The operator asks with the token of the chart's ServiceAccount, so that the API server's
audit log tells its requests from all others.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml
from devcluster import ControlPlane
from release import helm
from tests.cluster.operator_world import Operator, Proxy, World, world

PROXIES = 4
BUDGETED, FREE, DEAR = "team", "free", "dear"
"""Routes under a budget of their team's; routes under none, by which a request makes no proxy ask the operator for money; one
that spends a month's money in seconds."""
MODELS = ("Qwen3-14B", "Qwen3-32B")
"""Of one tier, so that a step hides both."""
DEAR_MODEL = "Kimi K2.5"
LOWER_TIER = "UltraBudget"
USER = f"system:serviceaccount:{helm.NAMESPACE}:stepdown"
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
}
_TOKEN_LIFE = "12h"

Object = dict[str, Any]


class Scene:
    """Everything that runs, and the objects to create."""

    def __init__(self, cluster: ControlPlane, place: World, kubeconfig: Path) -> None:
        self.cluster, self.place, self._kubeconfig = cluster, place, kubeconfig
        self.namespace = place.namespace
        self.proxies: list[Proxy] = []

    def operator(self) -> Operator:
        """Not started yet. On the same ledger and addresses as the one before."""
        return self.place.operator(self._kubeconfig, "--fleet-namespaces", self.namespace)

    def start_proxies(self) -> None:
        """As soon as there are pods; returns when all are ready."""
        self.proxies = self.place.proxies(PROXIES)

    def fleet(self) -> Object:
        return self.place.proxy(replicas=PROXIES, catalogRefs=[{"name": DEAR}])

    def catalog(self) -> Object:
        """With a price for one model at which few requests cost what a month does."""
        model = {"name": DEAR_MODEL, "inputUSDPerMTok": "100", "outputUSDPerMTok": "100"}
        return self.place.object("ModelCatalog", DEAR, {"models": [model]})

    def budgets(self, count: int) -> list[Object]:
        """One a team, Hard, of a size that no run of the bench comes near."""
        return [
            self.place.budget(f"{BUDGETED}-{number:03}", "10000.00", routeSelector={"matchLabels": {BUDGETED: f"{number:03}"}})
            for number in range(count)
        ]

    def routes(self, count: int, free: int, budgets: int) -> list[Object]:
        """`free` of them and the dear one without a label, the others spread over the teams."""
        made = [self.place.route(f"{FREE}-{number:04}", MODELS[0]) for number in range(free)]
        made.append(self.place.route(DEAR, DEAR_MODEL))
        for number in range(count - len(made)):
            route = self.place.route(f"{BUDGETED}-{number:04}", MODELS[0])
            route["metadata"]["labels"] = {BUDGETED: f"{number % budgets:03}"}
            made.append(route)
        return made


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """The API server with the chart on it; no operator runs yet."""
    policy = folder / "audit.yaml"
    policy.write_text(yaml.safe_dump(_AUDIT))
    with ControlPlane(audit_policy=policy) as cluster:
        cluster.kubectl("create", "namespace", helm.NAMESPACE)
        with world(cluster, folder) as place:
            # 0 replicas: the operator is a process of the bench.
            values = {"replicas": 0, "fleetNamespaces": [place.namespace]}
            with helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=helm.NAMESPACE) as release:
                release.install(helm.CHART, helm.NAME, values, timeout=60)
            cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
            place.own_namespace = helm.NAMESPACE
            yield Scene(cluster, place, _kubeconfig(cluster, folder))


def _kubeconfig(cluster: ControlPlane, folder: Path) -> Path:
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", "stepdown", "-n", helm.NAMESPACE, f"--duration={_TOKEN_LIFE}").strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    made = folder / "operator.kubeconfig"
    made.write_text(yaml.safe_dump(config))
    return made


def memory_mb(pid: int) -> dict[str, float]:
    """Resident now, and the most that it ever was, in MB of 10^6 bytes."""
    told = Path(f"/proc/{pid}/status").read_text()
    kib = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", told, re.MULTILINE))
    return {"now": round(int(kib["VmRSS"]) * 1.024e-3, 1), "peak": round(int(kib["VmHWM"]) * 1.024e-3, 1)}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def passes(operator: Operator) -> dict[str, float]:
    """The operator's passes over everything so far: how many, and the seconds that they took together."""
    _, told = operator.get("/metrics")
    found = dict(re.findall(r"^stepdown_reconcile_seconds_(count|sum) (\S+)$", told, re.MULTILINE))
    return {"count": float(found["count"]), "sum": float(found["sum"])}


def wait_ready(operator: Operator, began_s: float, timeout_s: float = 120.0) -> float:
    """Seconds from `began_s` until the operator answers proxies."""
    operator.wait_for('"event": "ready"', timeout_s)
    return time.monotonic() - began_s
