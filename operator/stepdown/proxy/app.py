"""A whole proxy process put together: state, till, sync, server, and its end on SIGTERM. `stepdown run` and `__main__` call
`serve`."""

import asyncio
import gc
import logging
import signal
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.clock import Clock
from stepdown.proxy.identity import StateDir
from stepdown.proxy.keys import KeySource
from stepdown.proxy.listener import Ask, Listener
from stepdown.proxy.server import ProxyServer, ServerConfig
from stepdown.proxy.stored import StoredConfig
from stepdown.proxy.syncer import Sync, Syncer
from stepdown.proxy.till import Till

DRAIN_S = 660.0
"""Longer than the longest stream: the default timeout and what may be read on after it."""
CLOSE_S = 120.0
"""How long the closing message is retried: an operator's restart takes less."""

_GC_THRESHOLD = (20_000, 20, 20)

_log = logging.getLogger("stepdown.proxy")


class App:
    """One proxy process. `start`, then `drain`; in between it runs by itself."""

    def __init__(
        self,
        config: ServerConfig,
        sync: Sync,
        state_dir: Path,
        fleet: str,
        keys: KeySource,
        *,
        pod_uid: str = "",
        config_dir: Path | None = None,
        listen: Ask | None = None,
        clock: Clock | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Takes the state directory. `config_dir`: the fleet's config as mounted. `listen`: how to hear of another config
        before the next message would tell. Raises StateDirBusy, LogUnavailable or OSError."""
        clock = clock or Clock()
        self._state = StateDir(state_dir, clock, pod_uid=pod_uid)
        if self._state.lost_because:
            _log.error("the last log cannot be resumed, its lease stays charged as unreconciled: %s", self._state.lost_because)
        self._keys = keys
        self._stored = StoredConfig(state_dir / "config", fleet, mount=config_dir, pod_uid=pod_uid)
        self.till = Till(self._state, clock, self._stored.load())
        self.syncer = Syncer(self.till, self._stored.keeping(sync), fleet)
        self.server = ProxyServer(
            config, self.till, keys, self.syncer, was_synced=self._stored.was_synced, ssl_context=ssl_context
        )
        self.syncer.is_ready = lambda: self.server.is_ready
        self.syncer.keys = self._usable_keys
        self.syncer.down = self.server.wire.breakers.down
        self._listener = Listener(self.till, listen) if listen is not None else None
        self._running: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return self.server.port

    async def start(self) -> None:
        """Listens; before that, one message to the keeper, so that the first client finds its route. Raises OSError."""
        await self.syncer.once()
        # A request leaves no cycles behind, so collecting often finds nothing: what is here now is left alone, and the rest
        # is looked at rarely.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLD)
        self._running = asyncio.get_running_loop().create_task(self.syncer.run())
        if self._listener is not None:
            self._listening = asyncio.get_running_loop().create_task(self._listener.run())
        try:
            await self.server.start()
        except OSError:
            await self._stop_syncing()
            self._state.close(finished=False)
            raise

    async def drain(self, drain_s: float = DRAIN_S, close_s: float = CLOSE_S, accept_s: float = 0.0) -> bool:
        """Answers what is in flight, then tells the ledger that this instance is done. True: it has heard.

        `accept_s`: goes on accepting for so long, while whoever sends requests learns that this proxy is not ready any more.
        """
        self.server.leave()
        self.till.kick()
        await asyncio.sleep(accept_s)
        finished = await self.server.drain(drain_s)
        if not finished:
            _log.warning("requests were still in flight after %s s: they are charged at their reservation", drain_s)
        closed = await self.syncer.close(close_s)
        await self._stop_syncing()
        return closed

    def _usable_keys(self) -> dict[str, bool]:
        table = self.till.table
        channels = table.fleet.channels if table is not None else ()
        return {each.name: self._keys.key(each.name) is not None for each in channels}

    async def _stop_syncing(self) -> None:
        await self._stored.finish()
        for task in (self._listening, self._running):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def serve(
    config: ServerConfig,
    sync: Callable[[SyncRequest], Awaitable[SyncAnswer]],
    state_dir: Path,
    fleet: str,
    keys: KeySource,
    *,
    pod_uid: str = "",
    config_dir: Path | None = None,
    listen: Ask | None = None,
    stop: asyncio.Event | None = None,
    started: Callable[[App], None] | None = None,
    drain_s: float = DRAIN_S,
    close_s: float = CLOSE_S,
    accept_s: float = 0.0,
    ssl_context: ssl.SSLContext | None = None,
) -> bool:
    """Runs a proxy until `stop` is set, or, without one, until SIGTERM or SIGINT; then drains.

    Returns what `App.drain` does. Raises what `App` and `App.start` raise.
    """
    app = App(
        config, sync, state_dir, fleet, keys, pod_uid=pod_uid, config_dir=config_dir, listen=listen, ssl_context=ssl_context
    )
    if stop is None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    await app.start()
    if started is not None:
        started(app)
    await stop.wait()
    return await app.drain(drain_s, close_s, accept_s)
