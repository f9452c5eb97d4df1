"""Keeps the objects of every fleet as planned: renders them, has `cluster.children` apply them, tries again. `run` starts it.

Each fleet has a worker of its own, so that one whose namespace is being deleted, or whose quota is full, stops no other. A
worker is level-triggered: it makes what the last pass says, however many passes there were meanwhile. What could not be applied
is an input of the next pass (`World.fleets`), which puts it into the RoutingProxy's status.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stepdown.cluster import kinds
from stepdown.cluster.children import Children
from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import ClusterError
from stepdown.plan.fleets import FleetPlan
from stepdown.plan.world import FleetSeen
from stepdown.reconcile import Pass
from stepdown.render.config import FleetConfig
from stepdown.render.objects import Settings, fleet_objects, observe
from stepdown.sync import log

RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
PACE_S = 1.0
"""Between two times for one fleet: config reaches its proxies by sync, and ConfigMaps only follow."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fleet's objects are made of."""

    plan: FleetPlan
    config: FleetConfig
    uid: str
    settings: Settings

    def same_as(self, other: "Wanted | None") -> bool:
        return (
            other is not None
            and self.config.fleet is other.config.fleet
            and self.config.shards is other.config.shards
            and self.config.market.spec is other.config.market.spec
            and self.uid == other.uid
            and self.settings == other.settings
        )


@dataclass(slots=True)
class _Worker:
    """One fleet."""

    wanted: Wanted
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    applied: Wanted | None = None
    said: str = ""
    task: "asyncio.Task[None] | None" = None


class Fleets:
    """All of them. `tell` after each pass, `drifted` when a child changed."""

    def __init__(
        self,
        cluster: Cluster,
        children: Children,
        settings: Callable[[], Settings],
        changed: Callable[[], None],
        *,
        may_write: Callable[[], bool],
    ) -> None:
        """`settings` may change: the sync CA follows upon itself. `changed`: `seen` says something new."""
        self._cluster, self._children, self._settings, self._changed = cluster, children, settings, changed
        self._may_write = may_write
        self._workers: dict[str, _Worker] = {}
        self.seen: Mapping[str, FleetSeen] = {}
        """By RoutingProxy: what the cluster has of it. Another mapping whenever it changes."""
        self.applied: Callable[[str, int, int, int], None] = lambda fleet, applied, deleted, failed: None
        """Told how many objects of a fleet were applied and deleted, and how many could not be."""
        self.broken: Callable[[BaseException], None] = lambda error: None
        """Told of a mistake in here, which must end the process."""

    def tell(self, made: Pass, deleting: Callable[[str], bool]) -> None:
        """What the last pass says. A RoutingProxy without anything in force keeps the objects that it has; one that is being
        `deleting` gets no more: the garbage collector takes them."""
        settings = self._settings()
        for key, plan in made.plan.fleets.items():
            config = made.configs.get(key)
            if config is not None and plan.source.uid and not deleting(key):
                self._want(key, Wanted(plan, config, plan.source.uid, settings))
        for key in self._workers.keys() - made.plan.fleets.keys():
            self._end(key)

    def drifted(self, key: str) -> None:
        """A child of the fleet is not as it was left, or tells something new."""
        worker = self._workers.get(key)
        if worker is not None:
            worker.applied = None
            worker.woken.set()

    def bundles(self) -> set[str]:
        """The CA bundles that the fleets' ConfigMaps have; "" while some fleet has none yet."""
        return {worker.applied.settings.ca_bundle if worker.applied else "" for worker in self._workers.values()}

    async def close(self) -> None:
        tasks = [worker.task for worker in self._workers.values() if worker.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _want(self, key: str, wanted: Wanted) -> None:
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = _Worker(wanted)
            worker.task = asyncio.create_task(self._work(key, worker), name=f"fleet {key}")
            worker.task.add_done_callback(self._ended)
        worker.wanted = wanted
        if not wanted.same_as(worker.applied):
            worker.woken.set()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A worker only ends when it is told to; what it did not expect must not leave its fleet alone in silence."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broken(error)

    def _end(self, key: str) -> None:
        worker = self._workers.pop(key)
        if worker.task is not None:
            worker.task.cancel()
        self._children.forget(key)
        self.seen = {name: each for name, each in self.seen.items() if name != key}

    async def _work(self, key: str, worker: _Worker) -> None:
        failures, again_s = 0, None
        while True:
            try:
                async with asyncio.timeout(again_s):
                    await worker.woken.wait()
            except TimeoutError:
                pass
            while not self._may_write():  # noqa: ASYNC110 (the Lease's clock decides, and tells nobody)
                await asyncio.sleep(PACE_S)
            worker.woken.clear()
            wanted = worker.wanted
            retry_s = await self._apply(key, worker, wanted)
            if retry_s is None:
                failures, again_s = 0, None
            else:
                again_s = max(retry_s, RETRY_S[min(failures, len(RETRY_S) - 1)] * (0.75 + 0.5 * random.random()))
                failures += 1
            await asyncio.sleep(PACE_S)

    async def _apply(self, key: str, worker: _Worker, wanted: Wanted) -> float | None:
        """Seconds until it must be tried again; None: all is as planned."""
        try:
            observed = await self._observe(wanted)
        except ClusterError as error:
            self._failed(key, worker, {"RoutingProxy " + key: str(error)}, None)
            return 0.0
        deployment, autoscaler = observed
        objects = await asyncio.to_thread(
            fleet_objects,
            wanted.plan,
            wanted.config,
            wanted.uid,
            wanted.settings,
            observe(deployment, autoscaler=autoscaler is not None),
        )
        outcome = await self._children.sync(key, wanted.uid, objects)
        self.applied(key, len(outcome.applied), len(outcome.deleted), len(outcome.failed))
        self._failed(key, worker, outcome.failed, deployment)
        if outcome.failed:
            return outcome.retry_s or 0.0
        worker.applied = wanted
        return outcome.retry_s

    async def _observe(self, wanted: Wanted) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        namespace, name = wanted.plan.source.namespace, f"stepdown-{wanted.plan.source.name}"
        deployment, autoscaler = await asyncio.gather(
            self._cluster.get(kinds.DEPLOYMENT, namespace, name),
            self._cluster.get(kinds.HORIZONTAL_POD_AUTOSCALER, namespace, name, metadata_only=True),
        )
        return deployment, autoscaler

    def _failed(self, key: str, worker: _Worker, failed: Mapping[str, str], deployment: Mapping[str, Any] | None) -> None:
        """Says it once, and lets the next pass know."""
        said = "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))
        if said and said != worker.said:
            log.error(
                f"RoutingProxy {key}: not everything could be applied: {said}", event="apply", object=f"RoutingProxy {key}"
            )
        elif worker.said and not said:
            log.info(f"RoutingProxy {key}: everything is applied", event="apply", object=f"RoutingProxy {key}")
        worker.said = said
        before = self.seen.get(key, FleetSeen())
        now = replace(_status(deployment) if deployment is not None else before, failures=dict(failed))
        if now != before:
            self.seen = {**self.seen, key: now}
            self._changed()


def _status(deployment: Mapping[str, Any]) -> FleetSeen:
    status = deployment.get("status") or {}
    return FleetSeen(status.get("replicas", 0), status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
