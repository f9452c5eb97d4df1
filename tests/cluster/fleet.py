"""A small fleet for the tests of `stepdown.cluster`: its RoutingProxy, its children, and a loop that keeps them."""

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from devcluster import Cluster as DevCluster

from stepdown.cluster.children import Children, Outcome
from stepdown.cluster.client import Cluster
from stepdown.cluster.clock import elapsed_s
from stepdown.cluster.wire import Answered

CRDS = Path(__file__).parents[2] / "crds"
PROXY = {
    "apiVersion": "stepdown.dev/v1alpha1",
    "kind": "RoutingProxy",
    "spec": {"upstream": {"channels": [{"name": "standard", "apiKeySecretRef": {"name": "k", "key": "k"}}]}},
}


def run(scene: Coroutine[Any, Any, None], timeout_s: float = 240.0) -> None:
    async def limited() -> None:
        async with asyncio.timeout(timeout_s):
            await scene

    asyncio.run(limited())


def install(cluster: DevCluster) -> None:
    """The CRDs; again and again does no harm."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))


async def eventually(true: Callable[[], Any], what: str, timeout_s: float = 60.0) -> float:
    """Waits; returns the seconds that it took."""
    began_s = time.monotonic()
    while not true():
        assert time.monotonic() < began_s + timeout_s, f"not within {timeout_s:.0f} s: {what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - began_s


class Fleet:
    """RoutingProxy `web` in a namespace, kept by one `Children`."""

    def __init__(self, cluster: Cluster, namespace: str, uid: str, clock: Callable[[], float] = elapsed_s) -> None:
        self.cluster, self.namespace, self.uid = cluster, namespace, uid
        self.owner = f"{namespace}/web"
        self.requests: list[Answered] = []
        self.told = 0
        self.outcome = Outcome()
        self.children = Children(cluster, namespaces=(namespace,), on_change=self._changed, clock=clock)
        self.desired: list[dict[str, Any]] = self.objects()
        self._woken = asyncio.Event()
        cluster.count(self.requests.append)

    def _changed(self, owner: str) -> None:
        assert owner == self.owner
        self.told += 1
        self._woken.set()

    def child(self, api_version: str, kind: str, name: str, **content: Any) -> dict[str, Any]:
        labels = {
            "app.kubernetes.io/name": "stepdown-proxy",
            "app.kubernetes.io/managed-by": "stepdown",
            "stepdown.dev/proxy": "web",
        }
        owner = {
            "apiVersion": "stepdown.dev/v1alpha1",
            "kind": "RoutingProxy",
            "name": "web",
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        metadata = {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [owner]}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **copy.deepcopy(content)}

    def objects(self) -> list[dict[str, Any]]:
        pods = {"stepdown.dev/proxy": "web"}
        container = {"name": "proxy", "image": "stepdown", "ports": [{"name": "http", "containerPort": 8080}]}
        return [
            self.child("v1", "ConfigMap", "stepdown-web-fleet", data={"fleet.json": "{}"}),
            self.child("v1", "ConfigMap", "stepdown-web-shard-03", data={"shard-03.json": "{}"}),
            self.child("v1", "ServiceAccount", "stepdown-web", automountServiceAccountToken=False),
            self.child(
                "v1", "Service", "web", spec={"selector": pods, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
            ),
            self.child(
                "policy/v1",
                "PodDisruptionBudget",
                "stepdown-web",
                spec={"maxUnavailable": 1, "selector": {"matchLabels": pods}},
            ),
            self.child(
                "networking.k8s.io/v1",
                "NetworkPolicy",
                "stepdown-web",
                spec={"podSelector": {"matchLabels": pods}, "policyTypes": ["Ingress"], "ingress": [{}]},
            ),
            self.child(
                "apps/v1",
                "Deployment",
                "stepdown-web",
                spec={
                    "replicas": 2,
                    "selector": {"matchLabels": pods},
                    "template": {"metadata": {"labels": pods}, "spec": {"containers": [container]}},
                },
            ),
        ]

    async def sync(self) -> Outcome:
        self.outcome = await self.children.sync(self.owner, self.uid, self.desired)
        if self.outcome.retry_s is not None:  # whoever asked for this pass
            asyncio.get_running_loop().call_later(self.outcome.retry_s, self._woken.set)
        return self.outcome

    async def settle(self, timeout_s: float, *, meanwhile: str = "") -> None:
        """Passes until nothing fails. `meanwhile`: what every failure until then says."""
        async with asyncio.timeout(timeout_s):
            while True:
                outcome = await self.sync()
                if not outcome.failed:
                    return
                assert all(meanwhile in message for message in outcome.failed.values()), outcome
                await asyncio.sleep(min(outcome.retry_s or 0.2, 0.5))

    def writes(self) -> list[tuple[str, str]]:
        """What was sent that could change anything, since the last time of asking."""
        found = [(each.method, each.path.rpartition("/")[2]) for each in self.requests if each.method != "GET"]
        self.requests.clear()
        return found

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """As the operator does it: a pass whenever a child changed, and when the last one asked for another."""

        async def keep() -> None:
            while True:
                await self._woken.wait()
                self._woken.clear()
                await self.sync()

        async with self.watched():
            keeping = asyncio.create_task(keep())
            try:
                yield
            finally:
                await _cancelled(keeping)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self.children.run())
        try:
            await eventually(lambda: self.children.listed or watching.done(), "every kind is listed")
            yield
        finally:
            await _cancelled(watching)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def fleet(cluster: DevCluster, namespace: str) -> AsyncIterator[Fleet]:
    """With its RoutingProxy; nothing is applied yet."""
    install(cluster)
    async with Cluster.connect(cluster.kubeconfig) as client:
        proxy = await client.create({**PROXY, "metadata": {"name": "web", "namespace": namespace}})
        yield Fleet(client, namespace, proxy["metadata"]["uid"])
