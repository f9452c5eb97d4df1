"""What all connections of one process share: limits, the till, keys, pools, breakers, deadlines. `server` makes one, `front`
and `exchange` use it.
"""

import asyncio
import re
import ssl
from collections.abc import Callable
from typing import Protocol

import msgspec

from stepdown.proxy.auth import Callers
from stepdown.proxy.breaker import Breakers, RetryBudget
from stepdown.proxy.canon import attempt_parts
from stepdown.proxy.keys import KeySource
from stepdown.proxy.metrics import Histogram
from stepdown.proxy.table import RouteEntry, RungEntry, Table
from stepdown.proxy.till import Till
from stepdown.proxy.upstream import Pool

SWEEP_S = 0.1
"""How often deadlines are looked at: one timer for all connections instead of one for each step of each request."""

_MAX_KEPT = 8192
"""Entries of old configs go with the rest when there are so many."""

_UNSAFE = re.compile(r"[^\x20-\x7e]")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what a client or the upstream can make this process do. Seconds and bytes."""

    headers_s: float = 10.0
    """From the first byte of a request to the end of its head."""
    body_idle_s: float = 30.0
    body_total_s: float = 300.0
    keep_alive_s: float = 75.0
    linger_s: float = 2.0
    """After a refusal that closes: how long the client's bytes are read and dropped, so that it sees the answer."""
    max_connections: int = 16_384
    max_pipelined: int = 16
    connect_s: float = 10.0
    idle_upstream_s: float = 30.0
    max_idle_upstream: int = 512
    max_answer_bytes: int = 32 * 1024 * 1024
    """Of a plain answer, decoded. It is held whole, since its cost stands in its head."""
    max_stream_bytes: int = 256 * 1024 * 1024
    max_error_bytes: int = 256 * 1024
    max_drain_bytes: int = 8 * 1024 * 1024
    drain_s: float = 60.0
    """How long an attempt that nobody waits for any more is read on for its usage; never beyond its hold's `until_s`."""


class Expiring(Protocol):
    deadline_s: float

    def expired(self, now_s: float) -> None:
        """The deadline has passed. Sets another or ends."""


class Sweeper:
    """One timer for all deadlines, and a clock that is as fine as they need: reading `now_s` costs nothing."""

    __slots__ = ("_loop", "_timer", "each", "items", "now_s")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.items: set[Expiring] = set()
        self.each: list[Callable[[float], None]] = []
        """Called at every sweep."""
        self.now_s = loop.time()

    def start(self) -> None:
        self._sweep()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
        self.now_s = now_s = self._loop.time()
        due = [item for item in self.items if item.deadline_s <= now_s]
        for item in due:
            item.expired(now_s)
        for call in self.each:
            call(now_s)


class Wire:
    """The shared state. One event loop owns it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        till: Till,
        keys: KeySource,
        limits: Limits,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.loop = loop
        self.till = till
        self.keys = keys
        self.limits = limits
        self.sweeper = Sweeper(loop)
        self.breakers = Breakers()
        self.retries = RetryBudget()
        self.latency = Histogram("stepdown_request_seconds", "From a request's last byte to its answer's last byte.")
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.exchanges = 0
        """Requests that are being answered."""
        self.attempts = 0
        """Upstream exchanges in flight, drained ones included."""
        self.draining = False
        self.statuses: dict[int, int] = {}
        self.retried = 0
        self._ssl_context = ssl_context
        self._pool: Pool | None = None
        self._heads: dict[str, tuple[float, Pool, bytes | None]] = {}
        """By channel, for the length of a sweep: a source of keys need not be asked for each request."""
        self._labels: dict[tuple[RouteEntry, RungEntry, str], bytes] = {}
        self._parts: dict[RungEntry, tuple[bytes, bytes]] = {}
        self._callers: Callers | None = None
        self.sweeper.each.append(self._expire_idle)

    @property
    def table(self) -> Table | None:
        return self.till.table

    def callers(self, table: Table) -> Callers:
        if self._callers is None or self._callers.table is not table:
            self._callers = Callers(table)
        return self._callers

    def pool(self, base_url: str) -> Pool:
        """The connections to the fleet's upstream. Another base URL gets new ones; the old ones end with their exchange."""
        pool = self._pool
        if pool is None or pool.base_url != base_url:
            if pool is not None:
                pool.close()
            pool = self._pool = Pool(base_url, self.loop, self.limits, self.sweeper, self._ssl_context)
        return pool

    def upstream_head(self, pool: Pool, channel: str) -> bytes | None:
        """The request's head up to its content length, with the channel's key; None: there is no key."""
        known = self._heads.get(channel)
        if known is not None and known[0] == self.sweeper.now_s and known[1] is pool:
            return known[2]
        key = self.keys.key(channel)
        head = None if key is None else pool.head(key)
        self._heads[channel] = (self.sweeper.now_s, pool, head)
        return head

    def parts(self, rung: RungEntry) -> tuple[bytes, bytes]:
        """What of a body depends on the model, made once."""
        parts = self._parts.get(rung)
        if parts is None:
            if len(self._parts) > _MAX_KEPT:
                self._parts.clear()
            parts = self._parts[rung] = attempt_parts(rung.upstream_id, rung.model.max_tokens_field)
        return parts

    def labels(self, route: RouteEntry, rung: RungEntry, reason: str) -> bytes:
        """The `x-stepdown-…` lines of an answer, made once."""
        key = (route, rung, reason)
        lines = self._labels.get(key)
        if lines is None:
            if len(self._labels) > _MAX_KEPT:
                self._labels.clear()
            lines = self._labels[key] = (
                b"x-stepdown-route: %b\r\nx-stepdown-model: %b\r\nx-stepdown-tier: %b\r\nx-stepdown-reason: %b\r\n"
                % (header_value(route.name), header_value(rung.name), header_value(rung.tier), header_value(reason))
            )
        return lines

    def answered(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def task(self, coroutine: "asyncio.Task[None]") -> None:
        """Keeps a task alive until it has ended."""
        self.tasks.add(coroutine)
        coroutine.add_done_callback(self.tasks.discard)

    def close(self) -> None:
        self.sweeper.stop()
        if self._pool is not None:
            self._pool.close()

    @property
    def open_upstream(self) -> int:
        return self._pool.open if self._pool is not None else 0

    @property
    def idle_upstream(self) -> int:
        return len(self._pool.idle) if self._pool is not None else 0

    def _expire_idle(self, now_s: float) -> None:
        if self._pool is not None:
            self._pool.expire(now_s)


def header_value(text: str) -> bytes:
    """Text as it may stand in a header: printable ASCII. Names come from the cluster, but a line break must not get through."""
    return _UNSAFE.sub("?", text).encode()
