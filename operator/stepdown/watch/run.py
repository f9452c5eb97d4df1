"""`stepdown operator`: one candidate for the Lease, and while it holds it, the operator. READ THIS FIRST of the package.

    Lease ── lead ── resync ──┐
                   handlers ──┴▶ store ──▶ engine ──▶ sync service ◀── proxies (HTTPS)
                                             │  └───▶ fleets, shown ──▶ API server
                                             └── ledger, witness

`cli.operator` calls `serve`. A replica that does not lead is well and ready: it answers proxies with the leader's address. One
that loses the Lease to another ends, as Kubernetes' own controllers do: whatever it was doing, another does it now. One that
cannot renew it, because the API server is away, writes nothing there until it can, and goes on answering its proxies: no other
can have begun, and if one had, the ledger's epoch would say so.
"""

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from stepdown.budget.account import Balance
from stepdown.cluster.client import Cluster
from stepdown.cluster.leader import Elector, unique_identity
from stepdown.sync import log
from stepdown.sync.auth import Authenticator
from stepdown.sync.cakept import InLedger, Kept, OnVolume
from stepdown.sync.clock import now_s
from stepdown.sync.news import Board
from stepdown.sync.server import SyncHttps
from stepdown.sync.tls import Authority, GivenTls, Tls, TlsError, service_names
from stepdown.watch import handlers
from stepdown.watch.handlers import WatchersEnded
from stepdown.watch.http import HttpServer, Views
from stepdown.watch.lead import Leading
from stepdown.watch.metrics import Metrics, Shown
from stepdown.watch.options import Options
from stepdown.watch.store import HistoryWentBack
from stepdown.watch.views import overview
from stepdown.watch.watchdog import Blind, LoopWatch

LEASE = "stepdown"
CA_DIR = "sync-ca"
CA_LOOK_S = 30.0
"""How often it is looked whether another replica has made another CA."""
LOOK_S = 0.5
"""How often it is looked whether another has the Lease that this process cannot renew."""
_SWITCH_S = 0.001
"""How long a judging thread may hold the interpreter while an answer waits."""


class CannotServe(Exception):
    """The process could not start: an address is taken, a certificate cannot be used."""


class Ended(Exception):
    """The process has to end, for a reason that is not a mistake in it: what comes next is a new start."""


class LeadershipLost(Ended):
    """Another replica leads now."""


def serve(options: Options) -> int:
    """Until SIGTERM; the exit code. Raises CannotServe, Ended, a ClusterError or a LedgerError."""
    log.setup(options.log_format)
    handlers.quiet()
    sys.setswitchinterval(_SWITCH_S)
    return uvloop.run(_serve(options))


async def _serve(options: Options) -> int:
    async with Cluster.connect(options.kubeconfig) as cluster:
        return await _Process(options, cluster).run()


class _Process:
    """The parts, in the order in which they start and end."""

    def __init__(self, options: Options, cluster: Cluster) -> None:
        self._options, self._cluster = options, cluster
        self._identity = unique_identity(options.identity)
        self._elector = Elector(cluster, options.namespace, LEASE, self._identity, address=options.address, wall=now_s)
        self._metrics = Metrics()
        cluster.count(self._metrics.answered)
        self._board = Board()
        self._leading: Leading | None = None
        self._won, self._lost, self._stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._doubted = False
        self._ca = _ca(options)
        self._tls = _tls(options, self._ca)
        self._authenticator = Authenticator(cluster, self._fleet, time.monotonic)
        self._https = SyncHttps(
            self._service,
            self._authenticator,
            self._tls,
            leader=self._leader,
            ready=self._published,
            now_s=now_s,
            board=self._board,
        )
        self._http = HttpServer(
            Views(
                ready=self._why_not_ready,
                metrics=self._scrape,
                status=self._status,
                counters=self._counters,
                books=self._books,
                leader=self._leader_views,
            )
        )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        watch = LoopWatch()
        watch.start()
        await self._listen()
        electing = asyncio.create_task(self._elector.run(self._lease_is_ours, self._lease_is_not), name="lease")
        looking = asyncio.create_task(self._look_at_the_ca(), name="ca")
        try:
            await self._until_stopped(electing)
        finally:
            # What answers and writes ends before another may begin: the Lease is given back last.
            await self._https.stop()
            await self._authenticator.close()
            if self._leading is not None:
                await self._leading.stop()
            electing.cancel()
            looking.cancel()
            await asyncio.wait([electing, looking])
            await self._http.stop()
            watch.stop()
        log.info("stopped", event="stopped")
        return 0

    async def _listen(self) -> None:
        options = self._options
        for what, address, start in (
            ("--http", options.http, self._http.start),
            ("--listen", options.listen, self._https.start),
        ):
            try:
                await start(*address)
            except OSError as error:
                where = f"{address[0]}:{address[1]}"
                raise CannotServe(
                    f"{where} cannot be listened on: {error.strerror or error}. Choose another with {what}"
                ) from error
        log.info(
            "listening; waiting for the lease",
            event="listening",
            sync=f"{options.listen[0]}:{self._https.port}",
            http=f"{options.http[0]}:{self._http.port}",
            identity=self._identity,
        )

    async def _until_stopped(self, electing: "asyncio.Task[None]") -> None:
        """Waits for the Lease, leads, until SIGTERM. Raises whatever ends the process otherwise."""
        if not await self._either(self._won.wait(), electing):
            return
        log.info("this replica leads", event="leading", identity=self._identity)
        self._leading = Leading(
            self._options,
            self._cluster,
            self._tls,
            self._metrics,
            self._identity,
            self._board,
            may_write=lambda: self._elector.leading,
        )
        if not await self._either(self._leading.start(), electing):
            return
        gc.collect()
        gc.freeze()  # thousands of objects that stay: no later collection has to look at them
        log.info("the config is published: proxies are answered", event="ready")
        try:
            await self._either(self._leading.run(), electing)
        except (Blind, HistoryWentBack, WatchersEnded) as error:
            raise Ended(f"{error}: the process ends, and its next start lists everything afresh") from error

    def _lease_is_ours(self) -> None:
        if self._doubted:
            log.info("the lease is renewed: everything is written again", event="lease")
        self._doubted = False
        self._won.set()

    def _lease_is_not(self) -> None:
        if self._stop.is_set() or self._leading is None:
            return
        self._doubted = True
        log.warning("the lease is not renewed: nothing is written until it is; proxies are answered", event="lease")
        asyncio.get_running_loop().call_later(LOOK_S, self._look_at_the_lease)

    def _look_at_the_lease(self) -> None:
        """Whether another has it, which ends this process; until somebody has."""
        leader = self._elector.leader
        if leader is not None and leader.identity and leader.identity != self._identity:
            self._lost.set()
        elif not self._elector.leading:
            asyncio.get_running_loop().call_later(LOOK_S, self._look_at_the_lease)

    async def _look_at_the_ca(self) -> None:
        """In a thread: the loop must not wait for a database. The certificate in use stays in use while it does not answer."""
        said = ""
        while isinstance(self._ca, InLedger):
            await asyncio.sleep(CA_LOOK_S)
            try:
                await asyncio.to_thread(self._ca.look)
            except TlsError as error:
                if str(error) != said:
                    log.warning(str(error), event="tls")
                said = str(error)
            else:
                said = ""

    async def _either(self, work: Any, electing: "asyncio.Task[None]") -> bool:
        """Awaits `work`; False: SIGTERM came first. Raises LeadershipLost."""
        working = asyncio.ensure_future(work)
        stopping, losing = asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait([working, stopping, losing, electing], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                log.info("stopping", event="stopping")
                return False
            if self._lost.is_set():
                raise LeadershipLost("another replica has the lease now, so this process ends")
            if electing.done():
                electing.result()
                raise LeadershipLost("the election ended")
            await working
            return True
        finally:
            for task in (working, stopping, losing):
                task.cancel()
            await asyncio.gather(working, stopping, losing, return_exceptions=True)

    # Asked by the servers ---------------------------------------------------------------------------------------------

    def _service(self) -> Any:
        return self._leading.service if self._leading is not None else None

    def _fleet(self, key: str) -> Any:
        return self._leading.fleet(key) if self._leading is not None else None

    def _leader(self) -> str | None:
        if self._leading is not None and not self._lost.is_set():
            return None
        leader = self._elector.leader
        return leader.address if leader is not None and leader.identity != self._identity else ""

    def _leader_views(self) -> str:
        """Every replica has its views at the same port."""
        leader = urlsplit(self._leader() or "")
        if not leader.hostname:
            return ""
        host = f"[{leader.hostname}]" if ":" in leader.hostname else leader.hostname
        return f"http://{host}:{self._options.http[1]}"

    def _published(self) -> bool:
        return self._leading is not None and self._leading.made is not None

    def _why_not_ready(self) -> str:
        if self._leading is None and self._elector.leader is None:
            return "nobody is known to lead"
        if self._leading is not None and self._leading.made is None:
            return "not everything has been listed yet"
        return ""

    async def _balances(self) -> Mapping[str, Balance]:
        service = self._service()
        if service is None or not self._published():
            return {}
        now = now_s()
        found: Mapping[str, Balance] = await service.call(lambda ledger: ledger.balances(now))
        return found

    async def _scrape(self) -> bytes:
        service = self._service()
        made = self._leading.made if self._leading is not None else None
        self._metrics.leader.set(self._elector.leading)
        self._metrics.standstill.set(bool(service is not None and service.standstill))
        if self._leading is not None:
            self._leading.measure()
        proxies = service.proxies(now_s()) if service is not None else {}
        shown = Shown(made, await self._balances(), proxies, self._https.answers)
        return await asyncio.to_thread(self._metrics.text, shown)

    async def _status(self) -> Any:
        made = self._leading.made if self._leading is not None else None
        return await overview(self._service(), made.plan, now_s()) if made is not None else None

    async def _counters(self, since_day: int, until_day: int) -> Any:
        if not self._published():
            return None
        return await self._service().call(lambda ledger: ledger.counters(since_day, until_day, by_day=True))

    async def _books(self, since_day: int, until_day: int) -> Any:
        if not self._published():
            return None
        return await self._service().call(lambda ledger: ledger.books(since_day, until_day))


def _ca(options: Options) -> Kept | None:
    """Where the own CA is; None: a certificate is given."""
    if options.tls_dir is not None:
        return None
    scratch = options.state_dir / CA_DIR
    try:
        return OnVolume(scratch) if isinstance(options.ledger, Path) else InLedger(options.ledger, scratch)
    except TlsError as error:
        raise CannotServe(str(error)) from error


def _tls(options: Options, ca: Kept | None) -> Tls:
    try:
        if ca is None:
            assert options.tls_dir is not None
            return GivenTls(options.tls_dir)
        return Authority(ca, service_names(options.namespace, *options.hosts), now_s())
    except TlsError as error:
        raise CannotServe(str(error)) from error
