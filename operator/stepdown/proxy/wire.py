"""What all connections of one process share: limits, the till, keys, pools, breakers, deadlines. `server` makes one, `front`
and `exchange` use it.
"""

import asyncio
import re
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from stepdown.proxy.auth import Callers
from stepdown.proxy.breaker import Breakers, RetryBudget
from stepdown.proxy.canon import attempt_parts
from stepdown.proxy.fit import DRAIN_S
from stepdown.proxy.keys import KeySource
from stepdown.proxy.limits import Limits
from stepdown.proxy.metrics import Histogram
from stepdown.proxy.outbox import Outbox
from stepdown.proxy.rate import Rates
from stepdown.proxy.table import RouteEntry, RungEntry, Table
from stepdown.proxy.till import Till
from stepdown.proxy.upstream import BadBaseUrl, Pool

SWEEP_S: Final = 0.1
"""How often deadlines are looked at: one timer for all connections instead of one for each step of each request."""

_MAX_KEPT: Final = 8192
"""Entries of old configs go with the rest when there are so many."""

_UNSAFE: Final = re.compile(r"[^\x20-\x7e]")


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


class Unreachable(Exception):
    """A rung that cannot be asked at all: no key for its channel, no upstream that could be called."""


class Way(NamedTuple):
    """How a rung is reached: what need not be made anew for each request."""

    made_s: float
    pool: Pool
    head: bytes
    """Of the request, up to its content length."""
    model: bytes
    """Of the body: its beginning, which names the model."""
    max_tokens: bytes
    """Of the body: the name of the field that bounds the output."""


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
        self.drain_s = min(limits.drain_s, DRAIN_S)
        """A request is priced for so long after its timeout, and no longer."""
        self.sweeper = Sweeper(loop)
        self.outbox = Outbox(loop)
        self.breakers = Breakers()
        self.retries = RetryBudget()
        self.rates = Rates()
        self.latency = Histogram("stepdown_request_seconds", "From a request's last byte to its answer's last byte.")
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
        self._ways: dict[RungEntry, Way] = {}
        self._labels: dict[tuple[RouteEntry, RungEntry, str], bytes] = {}
        self._callers: Callers | None = None
        self.sweeper.each.append(self._expire_idle)

    def callers(self, table: Table) -> Callers:
        if self._callers is None or self._callers.table is not table:
            self._callers = Callers(table, self.till.clock)
        return self._callers

    def way(self, rung: RungEntry) -> Way:
        """How a rung is reached, good for the length of a sweep. Raises Unreachable."""
        way = self._ways.get(rung)
        if way is not None and way.made_s == self.sweeper.now_s:
            return way
        table = self.till.table
        assert table is not None, "nothing is admitted without a config"
        try:
            pool = self._pool_for(table.fleet.base_url)
        except BadBaseUrl as error:
            raise Unreachable(str(error)) from None
        key = self.keys.key(rung.channel)
        if key is None:
            raise Unreachable(
                f"channel {rung.channel!r} of RoutingProxy {table.fleet.name} has no usable API key in"
                f" {self.keys.whence(rung.channel)}"
            )
        if len(self._ways) > _MAX_KEPT:
            self._ways.clear()
        parts = attempt_parts(rung.upstream_id, rung.model.max_tokens_field)
        way = self._ways[rung] = Way(self.sweeper.now_s, pool, pool.head(key), *parts)
        return way

    def _pool_for(self, base_url: str) -> Pool:
        """The connections to the fleet's upstream. Another base URL gets new ones; the old ones end with their exchange."""
        pool = self._pool
        if pool is None or pool.base_url != base_url:
            fresh = Pool(base_url, self.loop, self.limits, self.sweeper, self.outbox, self._ssl_context)
            if pool is not None:
                pool.close()
            pool = self._pool = fresh
        return pool

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
