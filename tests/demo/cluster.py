"""`make demo-cluster`: the story on a real Kubernetes with real pods, from nothing. A node on this machine, the image of this
checkout, the chart, the samples; then requests through the fleet's Service, and what kubectl shows of them.

The upstream is the simulator, on the node's own address; nothing here talks to the world. The last line is that of `make demo`.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import openai
import yaml
from devcluster import binaries, image
from devcluster.cluster import NodeCluster
from devcluster.layout import NODE_ADDRESS, NODE_NAME

from stepdown.model.money import usd_to_nusd
from stepdown.model.sync import Counter
from stepdown.sync.view import month_days
from tests.demo import story
from tests.demo.page import fact, title
from tests.demo.story import Story, month_table
from tests.upstream import SimulatorProcess

PLACE = Path(".demo-cluster")
SYSTEM, TEAM, BUDGET = "stepdown-system", "stepdown-demo", "demo"
KEYS = {"upstream-standard": "sk-upstream", "upstream-pro": "ga_pro_upstream"}
READY_S = 180.0
SETTLED_S = 60.0


def main() -> int:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    began_s = time.monotonic()
    title("Stepdown on a cluster: one month's policy in a minute")
    with NodeCluster() as cluster:
        stage = Kubernetes(cluster)
        fact("cluster", f"one node, Kubernetes {stage.version()}  ({time.monotonic() - began_s:.0f} s)")
        image.load(cluster.state, image.project())
        fact("image", f"{image.TAG}, from operator/Dockerfile  ({time.monotonic() - began_s:.0f} s)")
        with SimulatorProcess(*story.UPSTREAM, "--host", NODE_ADDRESS) as upstream:
            try:
                return stage.play(upstream, began_s)
            except BaseException:
                stage.diagnose()
                raise


class Kubernetes:
    """A cluster as the story's stage: what a person with kubectl and helm would do and see."""

    client: openai.OpenAI
    upstream: SimulatorProcess

    def __init__(self, cluster: NodeCluster) -> None:
        self._cluster = cluster

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._cluster.kubectl(*arguments, stdin=stdin, timeout_s=READY_S)

    def play(self, upstream: SimulatorProcess, began_s: float) -> int:
        self.install(upstream)
        fact("operator", f"helm install stepdown charts/stepdown -n {SYSTEM}  ({time.monotonic() - began_s:.0f} s)")
        self.apply(upstream)
        fact("proxies", f"kubectl apply -k manifests/samples, at {self.client.base_url}  ({time.monotonic() - began_s:.0f} s)")
        self.show()
        Story(self).tell()
        return self.verdict(upstream.final_bill()["total_nusd"])

    def diagnose(self) -> None:
        """What a person would ask first, since the cluster ends with the demo."""
        for command in (
            ["get", "pods", "-A", "-o", "wide"],
            ["get", "stepdown", "-A"],
            ["get", "events", "-A", "--sort-by=.lastTimestamp"],
            ["describe", "routingproxy", "-A"],
            ["logs", "-n", SYSTEM, "stepdown-0", "--tail=60"],
            ["logs", "-n", SYSTEM, "stepdown-0", "--tail=60", "--previous"],
            ["logs", "-n", TEAM, "deployment/stepdown-default", "--tail=30"],
        ):
            print(f"\n  $ kubectl {' '.join(command)}\n{self._cluster.kubectl(*command, check=False)}", flush=True)

    def version(self) -> str:
        version: str = json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        return version

    # Setting the stage ------------------------------------------------------------------------------------------------

    def install(self, upstream: SimulatorProcess) -> None:
        self.upstream = upstream
        for namespace in (SYSTEM, TEAM):
            self.kubectl("create", "namespace", namespace)
            self.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        self.kubectl("apply", "-f", "-", stdin=self._volume())
        repository, _, tag = image.TAG.rpartition(":")
        settings = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "fleetNamespaces": [TEAM],
            "allowedUpstreams": [upstream.url],
            "persistence": {"storageClassName": "demo", "size": "1Gi"},
        }
        values = PLACE / "values.yaml"
        values.write_text(yaml.safe_dump(settings))
        subprocess.run(
            [
                binaries.helm(),
                "install",
                "stepdown",
                "charts/stepdown",
                "-n",
                SYSTEM,
                "-f",
                values,
                "--wait",
                "--timeout",
                "180s",
            ],
            env=self._cluster.environment(),
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def apply(self, upstream: SimulatorProcess) -> None:
        """The samples as they are, but for the upstream's address and rate: what an overlay is for."""
        for name, key in KEYS.items():
            self.kubectl("create", "secret", "generic", name, "-n", TEAM, f"--from-literal=apiKey={key}")
        patches = [
            {"op": "replace", "path": "/spec/upstream/baseURL", "value": upstream.url},
            {"op": "remove", "path": "/spec/upstream/channels/0/requestsPerMinute"},  # a story told in less than a minute
        ]
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../manifests/samples"],
            "patches": [{"target": {"kind": "RoutingProxy"}, "patch": json.dumps(patches)}],
        }
        (PLACE / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        self.kubectl("apply", "-k", str(PLACE))
        for kind in ("routingproxy", "modelroute", "spendbudget"):
            self.kubectl("wait", "-n", TEAM, kind, "--all", "--for=condition=Ready", f"--timeout={READY_S:.0f}s")
        # What proxies say of themselves is a moment ahead of the kubelet's probe, on which the Service goes.
        self.kubectl("rollout", "status", "deployment/stepdown-default", "-n", TEAM, f"--timeout={READY_S:.0f}s")
        address = self.kubectl("get", "service", "default", "-n", TEAM, "-o", "jsonpath={.spec.clusterIP}")
        direct = openai.DefaultHttpxClient(trust_env=False, timeout=60)  # no proxy knows this address
        self.client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="unused", max_retries=0, http_client=direct)

    def _volume(self) -> str:
        """The ledger's: this cluster has nobody who makes volumes."""
        path = self._cluster.state / "node" / "ledger"
        path.mkdir(parents=True)
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "ledger"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "demo",
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        }
        return json.dumps(volume)

    # What the story asks ----------------------------------------------------------------------------------------------

    def spent(self) -> tuple[int, int]:
        status = json.loads(self.kubectl("get", "spendbudget", BUDGET, "-n", TEAM, "-o", "json"))["status"]
        return usd_to_nusd(status["spentUSD"]), usd_to_nusd(status["limitUSD"])

    def show(self) -> None:
        for command in (
            ["get", "stepdown", "-n", TEAM],
            ["get", "pods", "-n", TEAM],
            ["get", "events", "-n", TEAM, "--field-selector", "reportingComponent=stepdown", "--sort-by=.lastTimestamp"],
        ):
            print(f"\n  $ kubectl {' '.join(command)}")
            for line in self.kubectl(*command).splitlines():
                print(f"  {line}".rstrip())

    def told(self) -> Iterator[str]:
        deadline_s = time.monotonic() + SETTLED_S
        while True:
            messages = self._messages()
            if any("maxTier UltraBudget" in message for message in messages):
                yield from messages
                return
            if time.monotonic() > deadline_s:
                raise SystemExit(f"FAILED no Event of the last step after {SETTLED_S:.0f} s; there are: {messages}")
            time.sleep(0.5)

    def _messages(self) -> list[str]:
        select = f"involvedObject.kind=SpendBudget,involvedObject.name={BUDGET}"
        events = json.loads(self.kubectl("get", "events", "-n", TEAM, "--field-selector", select, "-o", "json"))["items"]
        events.sort(key=lambda event: event["firstTimestamp"])
        return [f"{event['type']} {event['reason']}: {event['message']}" for event in events]

    # The end ----------------------------------------------------------------------------------------------------------

    def verdict(self, bill_nusd: int) -> int:
        """Status is coarse on purpose (a budget at most every ten seconds), so it is asked until it has caught up."""
        deadline_s = time.monotonic() + SETTLED_S
        while (numbers := self.spent())[0] != bill_nusd and time.monotonic() < deadline_s:
            time.sleep(1.0)
        self.show()
        (PLACE / "operator.log").write_text(self.kubectl("logs", "-n", SYSTEM, "statefulset/stepdown"))
        month_table(self._counters())
        title("On your own cluster, with your own key (docs/install.md)")
        print(f"  helm install stepdown charts/stepdown -n {SYSTEM} --create-namespace --set 'fleetNamespaces={{{TEAM}}}'")
        print("  kubectl apply -k manifests/samples\n")
        spent_nusd, limit_nusd = numbers
        return story.verdict(spent_nusd, bill_nusd, limit_nusd)

    def _counters(self) -> list[Counter]:
        now = datetime.now(UTC).timestamp()  # noqa: TID251 (a program for people, on today's date)
        since, until = month_days(now)
        path = f"/api/v1/namespaces/{SYSTEM}/services/stepdown:http/proxy/v1/counters?since_day={since}&until_day={until}"
        return msgspec.json.decode(self.kubectl("get", "--raw", path), type=list[Counter])


if __name__ == "__main__":
    raise SystemExit(main())
