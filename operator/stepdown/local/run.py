"""`stepdown run`: folder, ledger and proxy in one process. `cli.run` calls `serve`; READ THIS FIRST of the package.

    folder ── documents ── world ── reconcile ──▶ engine ── sync service ──▶ proxy
                                                    ▲            │
                                                    └── ledger ◀─┘

The event loop belongs to the proxy's streams. The ledger has a thread, reading and judging the folder have one, and so has the
notice of changed files. With `--workers` the proxies are processes, and this one only keeps the ledger and the config.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from stepdown.ledger import Ledger
from stepdown.local import banner
from stepdown.local.documents import Folder
from stepdown.local.engine import Engine, Judged, NothingValid
from stepdown.local.secrets import ChannelKey
from stepdown.local.watch import Watcher
from stepdown.local.workers import Workers, WorkersFailed
from stepdown.local.world import Gatherer, any_valid
from stepdown.proxy.app import CLOSE_S, DRAIN_S, App
from stepdown.proxy.identity import StateDirBusy
from stepdown.proxy.keys import clean
from stepdown.proxy.server import ServerConfig
from stepdown.proxy.wal import LogUnavailable
from stepdown.sync import log
from stepdown.sync.clock import now_ns, now_s
from stepdown.sync.log import LogFormat
from stepdown.sync.service import SyncService

INTERRUPTED = 130
"""The exit code of a second Ctrl-C, as shells have it."""
_SWITCH_S = 0.0005
"""How long the judging thread may hold the interpreter while a stream waits; Python's own 5 ms would be seen in every chunk."""


class CannotListen(Exception):
    """The address is in use or is not ours."""


class CannotServe(Exception):
    """The state directory or the log of the proxy cannot be used."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, understood."""

    roots: tuple[str, ...]
    host: str
    port: int
    ledger: str | Path
    """A file, or the address of a database."""
    proxy: str = ""
    upstream: str = ""
    workers: int = 0
    """0: the proxy is in this process."""
    log_format: LogFormat = "logfmt"

    @property
    def state_dir(self) -> Path:
        """The proxy's write-ahead log, beside the ledger; of a database, in the current folder."""
        beside = self.ledger if isinstance(self.ledger, Path) else Path("stepdown.db")
        return beside.with_name(beside.name + ".wal")


class LocalKeys:
    """The channels' keys as they are now, for a proxy in this process."""

    def __init__(self) -> None:
        self._keys: dict[str, ChannelKey] = {}
        self._bytes: dict[str, bytes | None] = {}

    def tell(self, keys: tuple[ChannelKey, ...]) -> None:
        self._keys = {each.channel: each for each in keys}
        self._bytes = {each.channel: clean(each.value.encode()) for each in keys}

    def key(self, channel: str) -> bytes | None:
        return self._bytes.get(channel)

    def whence(self, channel: str) -> str:
        found = self._keys.get(channel)
        return found.source if found is not None else f"the RoutingProxy's channel {channel}"


def serve(options: Options) -> int:
    """Until SIGTERM or SIGINT; the exit code.

    Raises FolderMissing, NoSuchProxy, NothingValid, CannotListen, CannotServe or a LedgerError: then nothing was served.
    """
    log.setup(options.log_format)
    folder = Folder(options.roots)
    loaded = folder.load(now_ns())
    if not any_valid(loaded):
        gathered = Gatherer().gather(loaded)
        raise NothingValid(banner.nothing_valid(options.roots, [str(problem) for problem in gathered.problems]))
    ledger = Ledger.open(options.ledger, create=True)
    ledger.take_epoch(f"stepdown run (pid {os.getpid()})")
    sys.setswitchinterval(_SWITCH_S)
    # Only a proxy's streams need uvloop; with workers they are elsewhere.
    start = asyncio.run if options.workers else uvloop.run
    return start(_serve(options, folder, ledger))


async def _serve(options: Options, folder: Folder, ledger: Ledger) -> int:
    service = SyncService(ledger, now_s)
    try:
        return await _Server(options, folder, service, ledger.where).run()
    finally:
        await service.close()


class _Server:
    """The parts, in the order in which they start and end."""

    def __init__(self, options: Options, folder: Folder, service: SyncService, ledger: str) -> None:
        self._options, self._service, self._ledger = options, service, ledger
        self._keys = LocalKeys()
        self._workers: Workers | None = None
        gatherer = Gatherer(proxy=options.proxy, environment=os.environ)
        self._engine = Engine(folder, gatherer, service, upstream=options.upstream, keys=self._tell_keys)
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def changed() -> None:
            loop.call_soon_threadsafe(self._engine.file_changed)

        self._watcher = Watcher(options.roots, changed, lambda message: log.warning(message, event="watch"))

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        self._watcher.start()
        try:
            judged = await self._engine.start()
            following = asyncio.create_task(self._engine.follow())
            try:
                return await self._proxy(judged, following)
            finally:
                following.cancel()
                await asyncio.wait([following])
        finally:
            self._watcher.stop()
            self._engine.close()

    async def _proxy(self, judged: Judged, following: "asyncio.Task[None]") -> int:
        fleet = judged.gathered.fleet
        if self._options.workers:
            options = self._options
            self._workers = Workers(self._service, options.workers, options.host, options.port, options.state_dir, fleet)
            self._workers.tell_keys(judged.gathered.keys)
            await self._starting(self._workers.start())
            await self._serving(judged, following, self._workers.port)
            closed = await self._workers.stop(DRAIN_S + CLOSE_S)
        else:
            app = self._app(fleet)
            await self._starting(app.start())
            self._engine.published = lambda: app.till.kick()
            await self._serving(judged, following, app.port)
            closed = await app.drain()
        log.info("stopped" if closed else "stopped; the ledger has not heard of every end", event="stopped")
        return 0

    def _app(self, fleet: str) -> App:
        options = self._options
        config = ServerConfig(host=options.host, port=options.port)
        try:
            return App(config, self._service.sync, options.state_dir, fleet, self._keys, pod_uid="stepdown-run")
        except (StateDirBusy, LogUnavailable, OSError) as error:
            raise CannotServe(f"the proxy's log in {options.state_dir} cannot be used: {error}") from error

    async def _starting(self, start: Coroutine[Any, Any, None]) -> None:
        try:
            await start
        except OSError as error:
            where = f"{self._options.host}:{self._options.port}"
            raise CannotListen(
                f"{where} cannot be listened on: {error.strerror or error}. Choose another with --listen"
            ) from error
        except WorkersFailed as error:
            raise CannotServe(str(error)) from error

    async def _serving(self, judged: Judged, following: "asyncio.Task[None]", port: int) -> None:
        """From ready until the first signal. A loop that dies ends everything: a config that nobody keeps is no config."""
        banner.ready(self._options.host, port, self._ledger, self._options.upstream, judged)
        gc.collect()
        gc.freeze()  # thousands of routes that stay: no later collection has to look at them
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([stopping, following], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if following.done():
            following.result()
        log.info("stopping: requests in flight are answered first; Ctrl-C again ends at once", event="stopping")

    def _signalled(self, number: int) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            if self._workers is not None:
                self._workers.kill()
            log.warning("ended at once: what was in flight is charged at its reservation at the next start", event="ended")
            os._exit(INTERRUPTED)
        self._stop.set()

    def _tell_keys(self, keys: tuple[ChannelKey, ...]) -> None:
        self._keys.tell(keys)
        if self._workers is not None:
            self._workers.tell_keys(keys)
