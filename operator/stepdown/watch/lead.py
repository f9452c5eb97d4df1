"""What the leader does, and nobody else: keep the ledger, judge, answer proxies, write. `run` starts it when the Lease is ours.

    ledger, epoch, witness ── list everything ── first pass ── watchers, resync, children, statuses, Events

Nothing is answered before the first pass has been published. Whatever of it fails ends the process: the next start begins with
a LIST, and everything that was half done is done again, which is the same as doing it once.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from stepdown.cluster.children import Children
from stepdown.cluster.client import Cluster
from stepdown.cluster.events import Recorder
from stepdown.cluster.statuses import StatusWriter
from stepdown.cluster.witness import ConfigMapWitness
from stepdown.ledger import Ledger
from stepdown.ledger.errors import LedgerInterrupted
from stepdown.reconcile import Pass
from stepdown.render.objects import Settings
from stepdown.render.parts import SYNC_PORT
from stepdown.sync import log
from stepdown.sync.clock import now_s
from stepdown.sync.fleets import LiveFleet
from stepdown.sync.keeper import Keeper
from stepdown.sync.news import Board
from stepdown.sync.service import SyncService
from stepdown.sync.tls import Tls, TlsError
from stepdown.watch import handlers
from stepdown.watch.callers import Callers
from stepdown.watch.crds import report_stale
from stepdown.watch.engine import Engine, Rules
from stepdown.watch.fleets import Fleets
from stepdown.watch.handlers import Watchers
from stepdown.watch.lost import LostPods
from stepdown.watch.metrics import Metrics
from stepdown.watch.options import Options
from stepdown.watch.resync import Resync
from stepdown.watch.shown import Shown
from stepdown.watch.store import NAMESPACE, WATCHED, Seen, Store
from stepdown.watch.watchdog import Deliveries, watch_over

LEDGER_S = 30.0
"""How long a leader waits for a database that does not answer."""
BUNDLE_S = 15.0
"""How often the CA's certificates are compared with what the fleets have."""


class Leading:
    """One term. `start`, then `run` until something fails or it is cancelled, then `stop`."""

    def __init__(
        self,
        options: Options,
        cluster: Cluster,
        tls: Tls,
        metrics: Metrics,
        identity: str,
        board: Board,
        *,
        may_write: Callable[[], bool],
    ) -> None:
        """`may_write`: whether the Lease is ours at this moment, without which nothing is written to the API server."""
        self._options, self._cluster, self._tls, self._metrics, self._identity = options, cluster, tls, metrics, identity
        self._board, self._may_write = board, may_write
        self.service: SyncService | None = None
        self._store = Store()
        self._deliveries = Deliveries()
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._engine: Engine | None = None
        self._watchers: Watchers | None = None
        self._fleets: Fleets | None = None
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # Asked by those that serve ---------------------------------------------------------------------------------------

    @property
    def made(self) -> Pass | None:
        """The last pass in force; None: nothing may be answered yet."""
        return self._engine.made if self._engine is not None else None

    def fleet(self, key: str) -> LiveFleet | None:
        """The RoutingProxy that is there, for `sync.auth`."""
        made = self.made
        plan = made.plan.fleets.get(key) if made is not None else None
        if plan is None or plan.market is None:
            return None
        return LiveFleet(plan.source.uid, plan.market.spec.lease_horizon_s)

    def measure(self) -> None:
        """What `/metrics` shows of this, at a scrape."""
        for kind in WATCHED:
            self._metrics.listed.labels(kind).set(self._store.count(kind))
        if self._engine is not None:
            self._metrics.waiting.set(self._engine.waiting)

    # Life --------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """When it returns, proxies may be answered. Raises a LedgerError or a ClusterError; waits for an API server."""
        self.service = await self._open()
        self._resync = Resync(self._cluster, self._store, self._deliveries, self._wake, self._shown_seen)
        self._recorder = Recorder(self._cluster, self._options.identity, now_s)
        self._shown = Shown(StatusWriter(self._cluster), self._recorder, self._store, may_write=self._may_write)
        self._shown.wrote = self._count_status
        self._callers = Callers(self._cluster, self._wake)
        self._lost = LostPods(self._cluster, lambda name: self._store.get(NAMESPACE, name) is not None, self._vacate)
        await self._resync.list_everything()
        log.info("everything is listed", event="listed", **{kind: self._store.count(kind) for kind in WATCHED})
        keeper = Keeper(self.service, board=self._board)
        await keeper.start()
        options = self._options
        rules = Rules(options.namespace, options.allowed_upstreams, options.fleet_namespaces)
        engine = self._engine = Engine(self._store, keeper, self.service, rules)
        self._children = Children(self._cluster, namespaces=options.fleet_namespaces, on_change=self._drifted)
        self._fleets = Fleets(self._cluster, self._children, self._settings, engine.wake, may_write=self._may_write)
        self._fleets.applied = self._count_children
        self._fleets.broken = self._shown.broken = self._end
        engine.fleets = lambda: self._fleets.seen if self._fleets is not None else {}
        engine.done, engine.took = self._done, self._metrics.reconcile.observe
        engine.failed = self._metrics.reconcile_failures.inc
        self.service.changed = lambda fleet: engine.wake()
        engine.issuer = lambda: self._callers.issuer
        await self._callers.first()
        await engine.first()

    async def run(self) -> None:
        """Until cancelled. Raises what ended it."""
        assert self._engine is not None
        watchers = self._watchers = Watchers(
            self._store, self._cluster, seen=self._seen, removed=self._removed, ended=self._end
        )
        watchers.start()
        for name, work in (
            ("engine", self._engine.run()),
            ("resync", self._resync.run()),
            ("children", self._children.run()),
            ("statuses", self._shown.run()),
            ("events", self._recorder.run()),
            ("certificates", self._tend_bundle()),
            ("callers", self._callers.run()),
            ("lost", self._lost.run()),
            ("crds", report_stale(self._cluster)),
            ("watchdog", watch_over(watchers.alive, handlers.expected(), self._deliveries)),
        ):
            self._spawn(name, work)
        done, _ = await asyncio.wait([*self._tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
        raise RuntimeError(f"{', '.join(self._tasks.get(each, 'kopf') for each in done)} ended without saying why")  # type: ignore[call-overload]

    async def stop(self) -> None:
        """Ends everything that writes, answers what is being answered, closes the ledger."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fleets is not None:
            await self._fleets.close()
        if self._watchers is not None:
            await self._watchers.stop()
        if self._engine is not None:
            self._engine.close()
        if self.service is not None:
            await self.service.close()

    async def _open(self) -> SyncService:
        ledger, epoch = await self._opened()
        log.info("the ledger is open", event="ledger", ledger=ledger.where, epoch=epoch)
        witness = ConfigMapWitness(self._cluster, self._options.namespace)
        service = SyncService(ledger, now_s, witness)
        service.fenced = self._end
        await service.begin()
        return service

    async def _opened(self) -> tuple[Ledger, int]:
        """A database may be about to come back, or to fail over; after a while another replica may have a better way to it."""
        ends_s = time.monotonic() + LEDGER_S
        while True:
            try:
                return await asyncio.to_thread(_kept, self._options.ledger, self._identity)
            except LedgerInterrupted as error:
                if time.monotonic() > ends_s:
                    raise
                log.warning(f"{error}. It is tried again", event="ledger")
                await asyncio.sleep(1.0)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[asyncio.create_task(work, name=name)] = name

    def _end(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    # Between the parts ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._engine is not None:
            self._engine.wake()

    def _seen(self, seen: Seen) -> None:
        """By a watcher."""
        self._deliveries.delivered(seen.kind, seen.key, seen.version)
        if self._store.put(seen):
            self._wake()
        self._shown_seen(seen)

    def _removed(self, kind: str, key: str, version: int) -> None:
        self._deliveries.delivered(kind, key, version)
        known = self._store.get(kind, key)
        if self._store.remove(kind, key, version):
            self._wake()
            if known is not None:
                self._shown.gone(kind, key, known.uid)

    def _shown_seen(self, seen: Seen) -> None:
        self._shown.seen(seen)

    def _done(self, made: Pass, before: Pass | None) -> None:
        assert self._fleets is not None
        self._fleets.tell(made, self._deleting)
        self._shown.tell(made)
        self._lost.tell(made.plan)

    async def _vacate(self, pod_uids: Collection[str]) -> None:
        assert self.service is not None
        await self.service.call(lambda ledger: ledger.vacate(pod_uids))
        self._wake()

    def _deleting(self, key: str) -> bool:
        seen = self._store.get("RoutingProxy", key)
        return seen is None or seen.deleting

    def _drifted(self, owner: str) -> None:
        if self._fleets is not None:
            self._fleets.drifted(owner)

    def _settings(self) -> Settings:
        options = self._options
        return Settings(
            image=options.image,
            sync_url=options.sync_url,
            ca_bundle=self._tls.bundle,
            sync_port=options.listen[1] or SYNC_PORT,
            pull_policy=options.pull_policy,
            pull_secrets=options.pull_secrets,
        )

    async def _tend_bundle(self) -> None:
        """Tells the fleets of a CA that is new, and the CA that it may sign once every fleet has been told."""
        told = self._tls.bundle
        while True:
            await asyncio.sleep(BUNDLE_S)
            if self._tls.bundle != told:
                told = self._tls.bundle
                self._wake()
            elif self._fleets is not None and self._fleets.bundles() <= {told}:
                try:
                    self._tls.published(told, now_s())
                except TlsError as error:
                    log.error(str(error), event="tls")

    def _count_status(self, well: bool) -> None:
        (self._metrics.writes if well else self._metrics.write_failures).labels("status").inc()

    def _count_children(self, fleet: str, applied: int, deleted: int, failed: int) -> None:
        self._metrics.writes.labels("child").inc(applied + deleted)
        self._metrics.write_failures.labels("child").inc(failed)


def _kept(place: str | Path, identity: str) -> tuple[Ledger, int]:
    """The ledger, and the epoch in which it is ours."""
    ledger = Ledger.open(place, create=True)
    try:
        return ledger, ledger.take_epoch(identity)
    except BaseException:
        ledger.close()
        raise
