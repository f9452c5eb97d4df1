"""One attempt at the upstream, from its reservation to its outcome: what it cost is decided here and nowhere else.
`exchange` starts it.

The outcomes (docs/design.md, Money):

* no connection, or a complete head of 4xx or 5xx: released, it costs nothing;
* a complete answer with usage: its cost; without, or with one that cannot be: the reservation, `estimated`;
* a timeout, a cut, a client that went away: the attempt loses its owner and is read on in the background for its usage, up to a
  bound; else the reservation.

A request whose bytes went out on a kept connection that ended without a byte of answer may have been processed: it counts as
cut.
"""

import asyncio
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from stepdown.proxy.hold import Hold, Usage
from stepdown.proxy.sse import NotJson, Stream, answer_usage, error_message
from stepdown.proxy.upstream import Connection, Headers, Pool
from stepdown.proxy.wire import Wire

if TYPE_CHECKING:
    from stepdown.proxy.exchange import Exchange

NEVER: Final = float("inf")

_PLAIN: Final = (b"", b"identity")
_ZIPPED: Final = (b"gzip", b"x-gzip", b"deflate")


class Failure(NamedTuple):
    """How an attempt failed, for the next one and for the message."""

    model: str
    what: str
    status: int
    """What the client would be told if nothing else helps."""
    retry_after_s: float | None = None
    sent: bool = True
    """It reached the upstream, so another attempt is a retry."""
    stale: bool = False
    """It went out on a kept connection that ended without a byte: a fresh one may do."""


class Attempt:
    """What one upstream connection tells, and what it comes to."""

    __slots__ = (
        "_active",
        "_body",
        "_connection",
        "_dialing",
        "_drained",
        "_hard_s",
        "_headers",
        "_inflate",
        "_parts",
        "_pool",
        "_reused",
        "_size",
        "_status",
        "_stream",
        "_wire",
        "deadline_s",
        "hold",
        "owner",
        "show_usage",
        "want_stream",
    )

    def __init__(self, wire: Wire, owner: "Exchange", hold: Hold, want_stream: bool, show_usage: bool) -> None:
        self._wire = wire
        self.owner: Exchange | None = owner
        self.hold = hold
        self.want_stream = want_stream
        self.show_usage = show_usage
        now_s = wire.sweeper.now_s
        timeout_s = hold.tab.route.timeout_s
        self.deadline_s = now_s + timeout_s
        self._hard_s = self.deadline_s + wire.drain_s
        """The hold's `until_s`: by then it has ended, whatever the upstream does."""
        self._connection: Connection | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._status = 0
        self._headers: Headers = {}
        self._stream: Stream | None = None
        self._inflate: "zlib._Decompress | None" = None  # noqa: UP037 (the type has no name at run time)
        self._parts: list[bytes] = []
        self._size = 0
        self._drained = 0
        self._reused = False
        self._active = True
        wire.attempts += 1
        wire.sweeper.items.add(self)

    @property
    def model(self) -> str:
        return self.hold.tab.rung.name

    def start(self, pool: Pool, head: bytes, body: bytes, fresh: bool) -> None:
        """Sends the request, on a kept connection where there is one."""
        connection = None if fresh else pool.take(self._wire.sweeper.now_s)
        if connection is None:
            self._dialing = self._wire.loop.create_task(self._dial(pool, head, body))
            return
        self._reused = True
        self._connection = connection
        connection.send(self, head, body)

    def abandon(self) -> None:
        """The client went away: nobody waits any more, but what the answer takes is still to be paid."""
        self.owner = None
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
            self._release(attempted=False)
        elif self._connection is not None:
            self._drain()

    def pause(self) -> None:
        if self._connection is not None and self.owner is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def expired(self, now_s: float) -> None:
        """By the sweeper: the route's timeout, a stream's silence, or the end of draining."""
        owner, self.owner = self.owner, None
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
            self._release(attempted=False)
            self._tell(owner, "could not be connected to in time", 504, sent=False)
        elif self._status >= 400:  # the head said it all; its body need not be waited for
            self._drop()
            self.owner = owner
            self.end()
        elif owner is not None and now_s < self._hard_s:
            self._drain()
            self._tell(owner, self._lateness(), 504)
        else:
            self._drop()
            self._cut()
            self._tell(owner, self._lateness(), 504)

    async def _dial(self, pool: Pool, head: bytes, body: bytes) -> None:
        try:
            connection = await pool.dial()
        except (OSError, TimeoutError, UnicodeError) as error:
            self._dialing = None
            self._release(attempted=False)
            owner, self.owner = self.owner, None
            self._tell(owner, f"no connection to {pool.host}: {error or 'timeout'}", 502, sent=False)
            return
        self._dialing = None
        self._connection = connection
        connection.send(self, head, body)

    # The upstream's answer

    def head(self, status: int, headers: Headers) -> None:
        self._status = status
        self._headers = headers
        if b"content-encoding" in headers:
            encoding = headers[b"content-encoding"].strip().lower()
            if encoding in _ZIPPED:
                self._inflate = zlib.decompressobj(wbits=47)
            elif encoding not in _PLAIN and status < 400:
                self._reject(f"its answer is encoded as {encoding!r}, which was not asked for")
                return
        if status >= 400:
            self._wire.till.release(self.hold, attempted=True)
        elif self.want_stream and status < 300 and headers.get(b"content-type", b"")[:17].lower() == b"text/event-stream":
            self._stream = Stream(show_usage=self.show_usage)
            if self.owner is not None:
                self.owner.streams(self, headers[b"content-type"])

    def data(self, data: bytes) -> None:
        if self.owner is None:
            self._drained += len(data)
            if self._drained > self._wire.limits.max_drain_bytes:
                self._drop()
                self._cut()
                return
        if self._inflate is not None:
            plain = self._inflated(data)
            if plain is None:
                return
            data = plain
        self._size += len(data)
        stream = self._stream
        if stream is None:
            if self._size <= self._most():
                self._parts.append(data)
            elif self._status < 400:
                self._reject(f"its answer has more than {self._most()} bytes")
            return
        out = stream.feed(data)
        owner = self.owner
        if owner is not None:
            self.deadline_s = min(self._wire.sweeper.now_s + self.hold.tab.route.timeout_s, self._hard_s)
            if out:
                owner.relay(out)
            if self._size > self._wire.limits.max_stream_bytes:
                self._reject(f"its answer has more than {self._wire.limits.max_stream_bytes} bytes")

    def fed(self) -> None:
        """All that came at once has been told, and the answer is not yet whole."""
        if self._stream is not None and self.owner is not None:
            self.owner.flush()

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Head, data and end in one: the connection is free again already."""
        self._connection = None
        if status == 200 and not self.want_stream and b"content-encoding" not in headers:
            self._status = status
            self._headers = headers
            self._answer_plain(body)
            return
        self.head(status, headers)
        if self._active:
            self.data(body)
        if self._active:
            self.end()

    def end(self) -> None:
        """The answer is whole."""
        stream = self._stream
        if stream is not None:
            out = stream.finish()
            owner, self.owner = self.owner, None
            self._settle(stream.usage, success=stream.events)
            if owner is not None:
                if out:
                    owner.relay(out)
                owner.streamed(self)
        elif self._status >= 400:
            self._answer_refusal()
        else:
            parts = self._parts
            self._answer_plain(parts[0] if len(parts) == 1 else b"".join(parts))

    def lost(self, why: str, *, began: bool) -> None:
        """The answer will not come whole. `began`: some of it had come."""
        owner, self.owner = self.owner, None
        if self._status >= 400:
            self.owner = owner
            self.end()
            return
        self._cut()
        self._tell(owner, why, 502, stale=self._reused and not began)

    # Outcomes

    def _answer_plain(self, body: bytes) -> None:
        owner, self.owner = self.owner, None
        if 200 <= self._status < 300:
            try:
                usage = answer_usage(body)
            except NotJson:
                why = "its answer is not a JSON object"
            else:
                cost_nusd = self._settle(usage, success=True)
                if owner is not None:
                    owner.answered(self, self._status, self._headers, body, cost_nusd)
                return
        else:
            why = f"it answered {self._status}"
        self._settle(None, success=False)
        self._tell(owner, why, 502)

    def _answer_refusal(self) -> None:
        """A complete 4xx or 5xx head: the money is back already."""
        self._leave()
        owner, self.owner = self.owner, None
        status = self._status
        body = b"".join(self._parts)
        wire = self._wire
        if status == 429 or status >= 500:
            said = error_message(body)
            what = f"it answered {status}" + (f" ({said})" if said else "")
            self._tell(owner, what, status, retry_after_s=_seconds(self._headers.get(b"retry-after", b"")))
            return
        if wire.breakers.bad:
            wire.breakers.succeeded(self.model)  # it works; it is the request that it does not like
        if owner is not None:
            owner.answered(self, status, self._headers, body, 0)

    def _reject(self, why: str) -> None:
        """The answer is not one that can be used. What it would still bring is not waited for."""
        owner, self.owner = self.owner, None
        self._drop()
        self._cut()
        self._tell(owner, why, 502)

    def _cut(self) -> None:
        """It may have been processed and will not be heard to its end."""
        stream = self._stream
        self._settle(stream.usage if stream is not None and stream.final else None, success=False)

    def _settle(self, usage: Usage | None, *, success: bool) -> int:
        wire = self._wire
        if self._active:  # `_leave`, without a call
            self._active = False
            wire.sweeper.items.discard(self)
            wire.attempts -= 1
        if success and wire.breakers.bad:
            wire.breakers.succeeded(self.model)
        return wire.till.settle(self.hold, usage, success=success)

    def _release(self, *, attempted: bool) -> None:
        self._leave()
        self._wire.till.release(self.hold, attempted=attempted)

    def _tell(
        self,
        owner: "Exchange | None",
        what: str,
        status: int,
        *,
        retry_after_s: float | None = None,
        sent: bool = True,
        stale: bool = False,
    ) -> None:
        wire = self._wire
        if not stale:
            wire.breakers.failed(self.model, wire.sweeper.now_s, retry_after_s)
        if owner is not None:
            owner.failed(self, Failure(self.model, what, status, retry_after_s, sent, stale))

    def _drain(self) -> None:
        """Reads on for the usage, with nobody waiting."""
        wire = self._wire
        self.deadline_s = min(wire.sweeper.now_s + wire.limits.drain_s, self._hard_s)
        if self._connection is not None:
            self._connection.resume()

    def _drop(self) -> None:
        """Ends the connection without hearing of it."""
        if self._connection is not None:
            self._connection.detach()
            self._connection.abort("given up")

    def _leave(self) -> None:
        """The attempt is over, as far as deadlines and counts go. Doing it twice does nothing."""
        if self._active:
            self._active = False
            wire = self._wire
            wire.sweeper.items.discard(self)
            wire.attempts -= 1

    def _most(self) -> int:
        return self._wire.limits.max_answer_bytes if self._status < 400 else self._wire.limits.max_error_bytes

    def _inflated(self, data: bytes) -> bytes | None:
        """Decoded, and no more of it than may be: a small answer can unpack to a very large one."""
        assert self._inflate is not None
        limits = self._wire.limits
        most = limits.max_answer_bytes if self._stream is None else limits.max_stream_bytes
        try:
            plain = self._inflate.decompress(data, max(1, most + 1 - self._size))
        except zlib.error as error:
            if self._status < 400:
                self._reject(f"its answer cannot be decoded: {error}")
            return None
        if self._inflate.unconsumed_tail:
            if self._status < 400:
                self._reject(f"its answer decodes to more than {most} bytes")
            return None
        return plain

    def _lateness(self) -> str:
        timeout_s = self.hold.tab.route.timeout_s
        if self._stream is not None:
            return f"its stream stalled for {timeout_s:g} s or went on for too long"
        return f"it did not answer within {timeout_s:g} s"


def _seconds(value: bytes) -> float | None:
    """Retry-After in seconds; a date is not worth a clock that may be wrong."""
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds < NEVER else None
