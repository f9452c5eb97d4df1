"""The proxy's listening side: accepts connections, answers everything but completions, drains. `app` makes one a process.

Served: `POST /v1/chat/completions` (by `exchange`), `GET /v1/models`, `/healthz`, `/readyz`, `/metrics`. `/readyz` needs one
completed sync in the pod's life (in the process's, where there is no pod), so that a rollout during an operator's outage never
replaces pods that hold leases by pods that do not; from then on the proxy is ready while it has a config to serve by.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import cast

import msgspec

from stepdown.model.config import Fleet
from stepdown.proxy.errors import JSON_HEAD, ApiError, MethodNotAllowed, NotFound, Unauthenticated, Unavailable
from stepdown.proxy.front import CHAT_PATH, Front
from stepdown.proxy.keys import KeySource
from stepdown.proxy.limits import Limits
from stepdown.proxy.metrics import Family, Sample, one, render
from stepdown.proxy.syncer import Syncer
from stepdown.proxy.table import Table
from stepdown.proxy.till import Till
from stepdown.proxy.wire import Wire

_TEXT_HEAD = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_BACKLOG = 4096
_DRAIN_POLL_S = 0.05

_PATHS = {
    CHAT_PATH: (b"POST",),
    b"/v1/models": (b"GET",),
    b"/healthz": (b"GET",),
    b"/readyz": (b"GET",),
    b"/metrics": (b"GET",),
}
_NOT_YET = (b"/v1/completions", b"/v1/embeddings", b"/v1/responses")

Response = tuple[int, bytes, bytes]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How one process listens."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one; `ProxyServer.port` says which."""
    reuse_port: bool = False
    """Several processes share the port (`--workers`)."""
    limits: Limits = Limits()


class ProxyServer:
    """One process's HTTP side. `till.table` holds the config; a change needs nothing here."""

    def __init__(
        self,
        config: ServerConfig,
        till: Till,
        keys: KeySource,
        syncer: Syncer | None = None,
        *,
        was_synced: bool = False,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`was_synced`: an earlier process of this pod has completed a sync. `ssl_context`: for the upstream, in place of the
        system's trust store."""
        self._config = config
        self._syncer = syncer
        self._was_synced = was_synced
        self.till = till
        self.wire = Wire(asyncio.get_running_loop(), till, keys, config.limits, ssl_context=ssl_context)
        self.fronts: set[Front] = set()
        self._server: asyncio.Server | None = None
        self._limits_of: Table | None = None
        self._bound_by(Fleet(name="", namespace="", base_url="", channels=()))
        self.wire.sweeper.each.append(self._look_at_table)

    async def start(self) -> None:
        """Raises OSError when the address cannot be listened on."""
        self._look_at_table(0.0)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            cast("Callable[[], asyncio.Protocol]", lambda: Front(self)),
            self._config.host,
            self._config.port,
            backlog=_BACKLOG,
            reuse_port=self._config.reuse_port or None,
        )
        self.wire.sweeper.start()

    @property
    def port(self) -> int:
        assert self._server is not None
        sockets = self._server.sockets
        name = sockets[0].getsockname()
        return int(name[1]) if sockets[0].family in (socket.AF_INET, socket.AF_INET6) else 0

    @property
    def is_ready(self) -> bool:
        return not self._unready()

    def _unready(self) -> tuple[str, str] | None:
        """Code and sentence."""
        if self.wire.draining:
            return "draining", "the proxy is draining"
        if not self._was_synced and self._syncer is not None and not self._syncer.completed:
            return "not_synced", "the proxy has not completed a sync with the ledger yet"
        if self.till.table is None:
            return "no_config", "the proxy has no config yet"
        return None

    def leave(self) -> None:
        """Not ready any more, and every answer is its connection's last; new connections are still served, until `drain`."""
        self.wire.draining = True

    async def drain(self, timeout_s: float) -> bool:
        """Stops accepting, answers what is in flight, reads on for usage that is still to come. False: time ran out."""
        wire = self.wire
        self.leave()
        if self._server is not None:
            self._server.close()
        for front in list(self.fronts):
            front.drain()
        ends_s = wire.loop.time() + timeout_s
        while wire.exchanges or wire.attempts or any(front.is_busy for front in self.fronts):
            if wire.loop.time() >= ends_s:
                break
            await asyncio.sleep(_DRAIN_POLL_S)
        finished = not (wire.exchanges or wire.attempts)
        for front in list(self.fronts):
            front.abort()
        wire.close()
        return finished

    # Everything but completions

    def answer(self, method: bytes, path: bytes, digest: bytes | None, authorization: bytes) -> Response:
        """By the front: status, header lines and body."""
        try:
            self._check(method, path)
            if path == b"/healthz":
                return 200, JSON_HEAD, b'{"status":"ok"}'
            if path == b"/readyz":
                return self._readiness()
            if path == b"/metrics":
                return 200, _TEXT_HEAD, render(self.till, self._syncer, self._families()).encode()
            return 200, JSON_HEAD, self._models(digest, authorization)
        except ApiError as error:
            return error.status, error.head(), error.body()

    def _check(self, method: bytes, path: bytes) -> None:
        methods = _PATHS.get(path)
        shown = path[:200].decode("latin-1")
        if methods is None:
            served = ", ".join(f"{methods[0].decode()} {known.decode()}" for known, methods in _PATHS.items())
            known = "not served by this version" if path in _NOT_YET else "not known"
            raise NotFound(f"the path {shown!r} is {known}; this proxy serves {served}", code="unknown_url")
        if method not in methods:
            allowed = methods[0].decode()
            raise MethodNotAllowed(
                f"{method.decode('latin-1')} {shown} is not served; use {allowed}", headers={"allow": allowed}
            )

    def _readiness(self) -> Response:
        unready = self._unready()
        if unready is None:
            return 200, JSON_HEAD, b'{"status":"ready"}'
        error = Unavailable(unready[1], code=unready[0])
        return error.status, error.head(), error.body()

    def _models(self, digest: bytes | None, authorization: bytes) -> bytes:
        """The caller's routes, as OpenAI lists models."""
        table = self.till.table
        if table is None:
            raise Unavailable("this proxy has no config yet: it has not heard from the operator. Try again", code="no_config")
        callers = self.wire.callers(table)
        routes = callers.visible(digest, authorization)
        if not routes and callers.guarded and not callers.knows(digest, authorization):
            raise Unauthenticated(f"there is no route that may be called so: {callers.said(digest, authorization)}")
        own = table.fleet.namespace + "/"
        data = [
            {"id": route.name.removeprefix(own), "object": "model", "created": 0, "owned_by": route.name.partition("/")[0]}
            for route in routes
        ]
        return msgspec.json.encode({"object": "list", "data": data})

    def _families(self) -> list[Family]:
        wire = self.wire
        now_s = wire.sweeper.now_s
        answers = [Sample((("status", str(status)),), str(count)) for status, count in sorted(wire.statuses.items())]
        opened = [Sample((("model", name),), str(int(not wire.breakers.closed(name, now_s)))) for name in wire.breakers.bad]
        limited = [Sample((("channel", name),), str(window.held_back)) for name, window in wire.rates.limited.items()]
        return [
            Family("stepdown_answers_total", "counter", "Answers to clients by status.", answers),
            wire.latency.family(),
            Family("stepdown_breaker_open", "gauge", "Models that failed lately: 1 is left alone for now.", opened),
            Family("stepdown_rate_limited_total", "counter", "Requests not sent for a channel's requestsPerMinute.", limited),
            one("stepdown_retries_total", "counter", "Attempts beyond a request's first.", wire.retried),
            one("stepdown_connections", "gauge", "Open connections of clients.", wire.connections),
            one("stepdown_upstream_connections", "gauge", "Open connections to the upstream.", wire.open_upstream),
            one("stepdown_upstream_connections_idle", "gauge", "Those of them that are idle.", wire.idle_upstream),
            one("stepdown_attempts_in_flight", "gauge", "Upstream exchanges, drained ones included.", wire.attempts),
        ]

    def _look_at_table(self, now_s: float) -> None:
        """Bounds of the fleet in force, kept where every read of a socket can see them."""
        table = self.till.table
        if table is not None and table is not self._limits_of:
            self._limits_of = table
            self._bound_by(table.fleet)
            self.wire.rates.bound_by(table.fleet.channels)

    def _bound_by(self, fleet: Fleet) -> None:
        self.max_body_bytes = fleet.max_body_bytes
        self.max_header_bytes = fleet.max_header_bytes
