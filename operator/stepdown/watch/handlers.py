"""kopf, which watches and does nothing else: every event of our kinds and of namespaces goes into the store. `run` starts it.

Only `kopf.on.event` is used. Every other kind of handler would write finalizers or annotations into users' objects, and an
index makes the first listing quadratic. What kopf misses (it tells of no deletion that happened while it was cut off, and
replays nothing) `resync` finds.

kopf has a thread and an event loop of its own. It takes the process's signals and, when it ends, cancels every task of its loop
that came after it; and the LIST of ten thousand objects that it reads at one go would hold up the answers to proxies.
"""

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import kopf

from stepdown.cluster.client import Access, Cluster
from stepdown.model.base import GROUP, VERSION
from stepdown.model.resources import KINDS
from stepdown.watch.store import NAMESPACE, WATCHED, Seen, Store, key_of, read

STOP_S = 10.0
CHUNK = 500
"""Objects in one part of a LIST."""
IDLE_S = 0.2
"""How long kopf keeps an object's last event, whole, in a task that waits for the next: of a thousand they are 20 MB."""


class WatchersEnded(Exception):
    """kopf has ended although nobody asked it to: nothing is watched any more."""


class Watchers:
    """The thread. `start` once; `ended` is called on the caller's loop if it ends unasked."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        *,
        seen: Callable[[Seen], None],
        removed: Callable[[str, str, int], None],
        ended: Callable[[BaseException], None],
    ) -> None:
        """`seen` and `removed` (kind, key, version) are called on the loop of whoever calls `start`."""
        self._store, self._cluster = store, cluster
        self._seen, self._removed, self._ended = seen, removed, ended
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = False
        self._logins = 0

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="kopf", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """At most for STOP_S: a thread that does not end by then ends with the process."""
        self._stopping = True
        if self._thread is None:
            return
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, STOP_S)

    def alive(self) -> int:
        """How many of the watchers run. There should be one for each of WATCHED, a moment after the start."""
        if self._loop is None or self._loop.is_closed():
            return 0
        tasks = asyncio.all_tasks(self._loop)
        return sum(task.get_name().startswith("watcher for ") and not task.done() for task in tasks)

    def _run(self, caller: asyncio.AbstractEventLoop) -> None:
        """The thread."""
        error: BaseException = WatchersEnded("kopf has ended without saying why")
        try:
            asyncio.run(self._watch(caller))
        except Exception as raised:  # noqa: BLE001  # whatever it is ends the process, with its text
            error = raised
        if not self._stopping and not caller.is_closed():
            caller.call_soon_threadsafe(self._ended, error)

    async def _watch(self, caller: asyncio.AbstractEventLoop) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if not self._stopping:
            await kopf.operator(
                registry=self._registry(caller),
                settings=_settings(),
                clusterwide=True,
                standalone=True,
                identity=cast(Any, "stepdown"),  # else it asks for the name of the user, and a container may have none
                stop_flag=self._stop,
            )

    def _registry(self, caller: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def login(**_: Any) -> kopf.ConnectionInfo:
            """Asked at the start, and again whenever the API server no longer takes what was said before."""
            self._logins += 1
            asked = asyncio.run_coroutine_threadsafe(self._cluster.access(renewed=self._logins > 1), caller)
            return _connection(await asyncio.wrap_future(asked))

        kopf.on.login(registry=registry)(login)
        for kind, model in KINDS.items():
            kopf.on.event(GROUP, VERSION, model.plural, registry=registry, id=kind)(self._handler(kind, caller))
        kopf.on.event("", "v1", "namespaces", registry=registry, id=NAMESPACE)(self._handler(NAMESPACE, caller))
        return registry

    def _handler(self, kind: str, caller: asyncio.AbstractEventLoop) -> Any:
        async def handle(event: Any, **_: Any) -> None:
            raw = event["object"]
            metadata = raw["metadata"]
            if event["type"] == "DELETED":
                version = int(metadata["resourceVersion"])
                caller.call_soon_threadsafe(self._removed, kind, key_of(metadata), version)
            else:
                known = self._store.get(kind, key_of(metadata))
                caller.call_soon_threadsafe(self._seen, read({**raw, "kind": kind}, known))

        return handle


def _connection(access: Access) -> kopf.ConnectionInfo:
    scheme, _, token = access.authorization.partition(" ")
    return kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.ca_file,
        insecure=access.insecure,
        scheme=scheme or None,
        token=token or None,
        certificate_path=access.cert_file,
        private_key_path=access.key_file,
    )


def expected() -> int:
    """How many watchers there should be."""
    return len(WATCHED)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # the kinds are fixed; whether their CRDs are there is known before kopf starts
    settings.posting.enabled = False
    settings.watching.server_timeout, settings.watching.client_timeout, settings.watching.connect_timeout = 240, 270, 10
    settings.watching.chunk_size = CHUNK
    settings.networking.request_timeout, settings.networking.connect_timeout = 30, 5
    settings.networking.error_backoffs = _ForEver()
    settings.queueing.error_delays = (1, 2, 5, 10, 30, 60)
    settings.queueing.idle_timeout = IDLE_S
    return settings


class _ForEver:
    """Delays between attempts, without an end: a watcher waits for the API server for as long as it takes."""

    def __iter__(self) -> Iterator[float]:
        delay_s = 0.25
        while True:
            yield delay_s * (0.5 + random.random())
            delay_s = min(delay_s * 2, 8.0)


def quiet() -> None:
    """Silences lines that others say better: `resync` tells of an API server that does not answer, and tells it once."""
    logging.getLogger("kopf.objects").setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_said_elsewhere)


def _said_elsewhere(record: logging.LogRecord) -> bool:
    return not (
        record.name.startswith("kopf") and record.getMessage().startswith(("Request attempt", "OS signals are ignored"))
    )
