"""The client side: kept connections to the one upstream of the fleet. `exchange` sends attempts through them.

A connection serves one attempt at a time, and tells it what it reads: `head`, `data`, `fed` and `end`, or `whole`, or `lost`. A
request whose bytes went out may have been processed, whatever happened then: that is the caller's to judge; what this module
makes sure of is that it is not sent on a connection that was known to be closed.
"""

import asyncio
import select
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import httptools

from stepdown import __version__
from stepdown.proxy.heads import MAX_MEMOS, Names, around_length, body_again
from stepdown.proxy.limits import Limits
from stepdown.proxy.outbox import Outbox

if TYPE_CHECKING:
    from stepdown.proxy.attempt import Attempt
    from stepdown.proxy.wire import Sweeper

_TRUST_S: Final = 1.0
"""A connection that was idle for longer is looked at before it is used again: the upstream may have closed it meanwhile."""
_MAX_HEAD_BYTES: Final = 64 * 1024
_PORTS: Final = {"http": 80, "https": 443}
_READ: Final = (b"content-type", b"content-encoding", b"content-length", b"transfer-encoding", b"retry-after", b"x-request-id")
_NAMES: Final = Names(*_READ)
_MAX_VALUE_BYTES: Final = 1024

Headers = dict[bytes, bytes]
"""Those of `_READ` that came, by their name in lower case; of one that came twice the last."""


Memo = tuple[bytes, bytes, int, Headers]
"""A head that has been parsed: what is before its content length and behind it; its status, and what was read of it."""


class BadBaseUrl(ValueError):
    """The fleet's base URL cannot be called."""


class Connection:
    """One connection to the upstream: an `asyncio.Protocol` in all but name, since a class of C has no base in Python."""

    __slots__ = (
        "_began",
        "_closed_by",
        "_head_bytes",
        "_headers",
        "_in_body",
        "_memo",
        "_memos",
        "_parser",
        "_pool",
        "_sink",
        "_until_close",
        "idle_since_s",
        "served",
        "transport",
    )

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._sink: Attempt | None = None
        self._headers: Headers = {}
        self._head_bytes = 0
        self._began = self._in_body = self._until_close = False
        self._closed_by = ""
        self.served = 0
        """Answers that came whole."""
        self.idle_since_s = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._memo: Memo | None = None
        self._memos = 0

    def send(self, sink: "Attempt", head: bytes, body: bytes) -> None:
        self._sink = sink
        self._began = self._in_body = self._until_close = False
        self._head_bytes = 0
        self._headers = {}
        self._pool.outbox.write(self.transport, b"%b%d\r\n\r\n%b" % (head, len(body), body))

    def abort(self, why: str = "") -> None:
        """Ends the connection; the attempt on it, if it still has one, hears that it is lost."""
        self._closed_by = why
        self.transport.abort()

    def detach(self) -> None:
        """The attempt does not want to hear any more."""
        self._sink = None

    def pause(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def is_stale(self) -> bool:
        """Whether something has come on the idle connection: its end, or bytes that nobody asked for."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's does not say that it is one
        self._pool.open += 1

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self.transport.abort()  # nobody asked
            return
        fresh = not self._began
        self._began = True
        if fresh and self._memo is not None and self._again(self._memo, data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._fail("the proxy failed while it read the answer")
            raise error.__context__ or error from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"its answer is not HTTP/1.1: {error}")
            return
        self._fed(data, fresh)

    def _fed(self, data: bytes, fresh: bool) -> None:
        """The parser has taken what came, and the attempt has heard it; `fresh`: it was the beginning of an answer."""
        sink = self._sink
        if sink is None:
            if fresh and self._memos < MAX_MEMOS:
                self._remember(data)
            return
        if self._in_body:
            sink.fed()
        else:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._fail("the head of its answer is too large")

    def _again(self, memo: Memo, data: bytes) -> bool:
        """Whether this is, in one piece, an answer with the head of an earlier one but for its length; then it is told."""
        before, behind, status, headers = memo
        body = body_again(data, before, behind)
        if not body:
            return False
        self._memos = 0
        sink, self._sink = self._sink, None
        assert sink is not None
        self.served += 1
        self._pool.put(self)
        sink.whole(status, headers, body)
        return True

    def _remember(self, data: bytes) -> None:
        """What came was one answer and nothing else, on a connection that is kept: its head may come again."""
        self._memos += 1
        around = around_length(data)
        if around is not None and not data.endswith(around[1]) and not self.transport.is_closing():
            self._memo = (*around, self._parser.get_status_code(), self._headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._until_close and exc is None and not self._closed_by:
            sink.end()
        else:
            sink.lost(self._closed_by or f"the connection ended: {exc or 'closed by the upstream'}", began=self._began)

    def eof_received(self) -> None:
        """An upstream that has closed its half has closed the connection."""

    def pause_writing(self) -> None:
        """A request is whole when it is written: there is nobody to hold up."""

    def resume_writing(self) -> None: ...

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        known = _NAMES[name]
        if known and len(value) <= _MAX_VALUE_BYTES:
            self._headers[known] = value

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        if status < 200:
            return
        self._in_body = True
        if self._sink is None:
            return
        headers = self._headers
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            self._until_close = status not in (204, 304)
        self._sink.head(status, headers)

    def on_body(self, body: bytes) -> None:
        if self._sink is not None:
            self._sink.data(body)

    def on_message_complete(self) -> None:
        if not self._in_body:  # an interim answer: the real one follows
            self._headers = {}
            return
        sink, self._sink = self._sink, None
        self.served += 1
        if self._parser.should_keep_alive() and not self._closed_by:
            self._pool.put(self)
        else:
            self.transport.close()
        if sink is not None:
            sink.end()

    def _fail(self, why: str) -> None:
        sink, self._sink = self._sink, None
        self.transport.abort()
        if sink is not None:
            sink.lost(why, began=True)


class Pool:
    """The connections to one base URL, the last used first: those that are not needed grow old and end."""

    def __init__(
        self,
        base_url: str,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        sweeper: "Sweeper",
        outbox: Outbox,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Raises BadBaseUrl."""
        self.base_url = base_url
        self.outbox = outbox
        self.open = 0
        self.idle: list[Connection] = []
        self._loop = loop
        self._limits = limits
        self._sweeper = sweeper
        self._closed = False
        parts = urlsplit(base_url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if (
            parts.scheme not in _PORTS
            or not parts.hostname
            or port == 0
            or not base_url.isascii()
            or not base_url.isprintable()
        ):
            raise BadBaseUrl(f"the fleet's base URL is {base_url!r}; it must be such as https://global-apis.com/v1")
        self._host = parts.hostname
        self._port = port or _PORTS[parts.scheme]
        self._path = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._ssl: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._ssl = ssl_context or ssl.create_default_context()

    @property
    def host(self) -> str:
        return f"{self._host}:{self._port}"

    def head(self, key: bytes) -> bytes:
        """All that the upstream hears beside the body: nothing of the client's goes through."""
        return (
            b"POST %b/chat/completions HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\nuser-agent: stepdown/%b\r\n"
            b"content-type: application/json\r\naccept-encoding: identity\r\ncontent-length: "
            % (self._path.encode(), self._authority.encode(), key, __version__.encode())
        )

    def take(self, now_s: float) -> Connection | None:
        """A kept connection, or None: dial."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.transport.is_closing():
                continue
            if now_s - connection.idle_since_s > _TRUST_S and connection.is_stale():
                connection.abort()
                continue
            return connection
        return None

    async def dial(self) -> Connection:
        """A new connection. Raises OSError (certificates included) or TimeoutError."""
        async with asyncio.timeout(self._limits.connect_s):
            _, protocol = await self._loop.create_connection(
                cast("Callable[[], asyncio.Protocol]", lambda: Connection(self)),
                self._host,
                self._port,
                ssl=self._ssl,
                server_hostname=self._host if self._ssl else None,
            )
        return cast("Connection", protocol)

    def put(self, connection: Connection) -> None:
        if self._closed or len(self.idle) >= self._limits.max_idle_upstream:
            connection.transport.close()
            return
        connection.idle_since_s = self._sweeper.now_s
        self.idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)

    def expire(self, now_s: float) -> None:
        """Ends what has been idle for long: the oldest lie first."""
        idle = self.idle
        while idle and now_s - idle[0].idle_since_s > self._limits.idle_upstream_s:
            idle.pop(0).transport.close()

    def close(self) -> None:
        self._closed = True
        for connection in self.idle:
            connection.transport.close()
        self.idle.clear()
