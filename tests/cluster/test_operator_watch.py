"""How the operator sees, part by part, on a real API server: kopf's watchers, and the LISTs that find what they miss."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from devcluster import Cluster as DevCluster

from stepdown.cluster.client import Cluster
from stepdown.watch import handlers
from stepdown.watch.crds import report_stale
from stepdown.watch.handlers import Watchers
from stepdown.watch.resync import Resync
from stepdown.watch.store import Seen, Store
from stepdown.watch.watchdog import LATE_S, Deliveries
from tests.cluster.fleet import eventually, install, run

Object = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def crds(cluster: DevCluster) -> None:
    install(cluster)


def route(namespace: str, model: str = "Qwen3-14B", name: str = "chat") -> Object:
    spec = {"models": {"default": model}}
    return {
        "apiVersion": "stepdown.dev/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


class Sight:
    """A store, and the parts that fill it."""

    def __init__(self, admin: DevCluster, cluster: Cluster, namespace: str) -> None:
        self.admin, self.cluster, self.namespace = admin, cluster, namespace
        self.store, self.deliveries = Store(), Deliveries()
        self.ended: list[BaseException] = []
        self.resync = Resync(cluster, self.store, self.deliveries, lambda: None, lambda seen: None, interval_s=0.3)
        self.watchers = Watchers(self.store, cluster, seen=self.seen, removed=self.removed, ended=self.ended.append)

    def seen(self, seen: Seen) -> None:
        self.deliveries.delivered(seen.kind, seen.key, seen.version)
        self.store.put(seen)

    def removed(self, kind: str, key: str, version: int) -> None:
        self.deliveries.delivered(kind, key, version)
        self.store.remove(kind, key, version)

    def model(self, name: str = "chat") -> str:
        """What the store thinks that the route asks for; empty: it knows of none."""
        seen = self.store.get("ModelRoute", f"{self.namespace}/{name}")
        spec = getattr(seen.thing, "spec", None) if seen is not None else None
        return spec.models.default if spec is not None else ""

    def apply(self, thing: Object) -> None:
        self.admin.kubectl("apply", "-f", "-", stdin=json.dumps(thing))

    def delete(self, name: str = "chat") -> None:
        self.admin.kubectl("-n", self.namespace, "delete", "modelroute", name)


@contextlib.asynccontextmanager
async def sight(admin: DevCluster, namespace: str) -> AsyncIterator[Sight]:
    async with Cluster.connect(admin.kubeconfig) as cluster:
        made = Sight(admin, cluster, namespace)
        await made.resync.list_everything()
        yield made


def on_thread(work: Callable[[], None]) -> "asyncio.Future[None]":
    """kubectl takes a second, in which the event loop must turn."""
    return asyncio.ensure_future(asyncio.to_thread(work))


def test_whatever_happens_to_an_object_comes_by_its_watcher(cluster: DevCluster, namespace: str) -> None:
    async def work() -> None:
        async with sight(cluster, namespace) as here:
            here.watchers.start()
            await eventually(lambda: here.watchers.alive() == handlers.expected(), "a watcher for each kind")
            await on_thread(lambda: here.apply(route(namespace)))
            await eventually(lambda: here.model() == "Qwen3-14B", "the route is seen")
            await on_thread(lambda: here.apply(route(namespace, "Qwen3-8B")))
            await eventually(lambda: here.model() == "Qwen3-8B", "its change is seen")
            await on_thread(lambda: cluster.kubectl("label", "namespace", namespace, "team=support"))
            seen = here.store
            await eventually(
                lambda: (found := seen.get("Namespace", namespace)) and found.labels.get("team") == "support",
                "the label is seen",
            )
            await on_thread(here.delete)
            await eventually(lambda: here.model() == "", "its end is seen")
            began_s = time.monotonic()
            await here.watchers.stop()
            assert time.monotonic() - began_s < 9, "a rollout waits for this"
            assert not here.ended, "whoever asked for the end need not be told"
            assert here.watchers.alive() == 0

    run(work())


def test_a_list_finds_what_no_watcher_tells_of_and_leaves_word_for_the_watchdog(cluster: DevCluster, namespace: str) -> None:
    """Nobody watches here: as it would be with a stream that has gone silent."""

    async def work() -> None:
        async with sight(cluster, namespace) as here:
            listing = asyncio.create_task(here.resync.run())
            await on_thread(lambda: here.apply(route(namespace)))
            await eventually(lambda: here.model() == "Qwen3-14B", "the route is found")
            await on_thread(lambda: here.apply(route(namespace, "Qwen3-8B")))
            await eventually(lambda: here.model() == "Qwen3-8B", "its change is found")
            assert here.deliveries.late(time.monotonic()) is None
            assert here.deliveries.late(time.monotonic() + LATE_S + 1) is not None
            mine = ("ModelRoute", f"{namespace}/chat")  # Other tests have namespaces, which nobody watches either.
            assert mine in here.deliveries.awaited
            await on_thread(here.delete)
            await eventually(lambda: here.model() == "", "its end is found")
            await eventually(lambda: mine not in here.deliveries.awaited, "what is gone is not awaited")
            listing.cancel()

    run(work())


def test_kopf_without_a_crd_ends_and_says_so(own_cluster: Any) -> None:
    """A watcher whose kind was taken away dies; the process must not live on without it."""
    install(own_cluster)

    async def work() -> None:
        async with sight(own_cluster, "default") as here:
            here.watchers.start()
            await eventually(lambda: here.watchers.alive() == handlers.expected(), "a watcher for each kind")
            await on_thread(lambda: own_cluster.kubectl("delete", "crd", "spendbudgets.stepdown.dev"))
            await eventually(lambda: here.ended or here.watchers.alive() < handlers.expected(), "it is noticed", 60)

    run(work())


def test_crds_of_another_version_are_named(own_cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A field that an old CRD does not know vanishes from what users apply, and nobody says a word."""
    install(own_cluster)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "stepdown"]

    async def work() -> None:
        async with Cluster.connect(own_cluster.kubeconfig) as cluster:
            looking = asyncio.create_task(report_stale(cluster, look_s=0.2))
            await asyncio.sleep(2)
            assert not said(), "as installed they are this version's, whatever the API server made of them"
            field = '{"spec": {"versions": [%s]}}'
            version = json.loads(own_cluster.kubectl("get", "crd", "spendbudgets.stepdown.dev", "-o", "json"))["spec"][
                "versions"
            ][0]
            del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["override"]
            patch = field % json.dumps(version)
            await on_thread(
                lambda: own_cluster.kubectl("patch", "crd", "spendbudgets.stepdown.dev", "--type=merge", "-p", patch)
            )
            await eventually(
                lambda: any("spendbudgets.stepdown.dev is not that of this version" in line for line in said()), "it"
            )
            assert len(said()) == 1
            await on_thread(lambda: install(own_cluster))
            await eventually(lambda: any("is that of this version now" in line for line in said()), "and that it is over")
            looking.cancel()

    with caplog.at_level("INFO", logger="stepdown"):
        run(work())
