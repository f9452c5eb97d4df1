"""The client side: strict HTTP/1.1 on raw transports. `server` makes one for each connection; an `Exchange` answers through it.

llhttp refuses what smuggling is made of (two lengths, a length beside chunks, folded lines, bare line feeds, NUL) before
anything here sees it; what it leaves to us, `_look_closer` refuses. After a refusal that concerns the framing the connection
ends: what comes behind it could be anything. Answers go out in the order of the requests: what is pipelined waits its turn,
unread beyond a bound. The path is compared as it came, byte for byte, and neither Host nor any forwarding header means
anything.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import httptools

from stepdown.proxy.attempt import NEVER
from stepdown.proxy.auth import key_digest
from stepdown.proxy.errors import (
    REASONS,
    ApiError,
    BadRequest,
    HeadersTooLarge,
    TooLarge,
    TooSlow,
)
from stepdown.proxy.exchange import Exchange
from stepdown.proxy.heads import MAX_MEMOS, Names, around_length, body_again

if TYPE_CHECKING:
    from stepdown.proxy.server import ProxyServer

CHAT_PATH: Final = b"/v1/chat/completions"

_USUAL: Final = (b"authorization", b"content-length", b"host", b"x-stepdown-class")
_ODD: Final = (b"content-encoding", b"expect", b"transfer-encoding", b"upgrade")
"""The headers that mean something here; all others are not even kept. None may come twice. An odd one needs a closer look."""
_NAMES: Final = Names(*_USUAL, *_ODD)

_ODD_SET: Final = frozenset(_ODD)
_REASONS: Final = REASONS

Request = tuple[bytes, bytes, dict[bytes, bytes], bytes, bool, bool]
"""Method, path, headers, body, whether the connection is kept, whether it is HTTP/1.0."""


Memo = tuple[bytes, bytes, bytes, bytes | None, str | None]
"""The head of a chat completion that has been parsed: what is before its content length and behind it; the client's
authorization, the digest of its key, and the class that it asks for."""


class Front:
    """One client connection: an `asyncio.Protocol` in all but name, since a class of C has no base in Python."""

    __slots__ = (
        "_auth",
        "_began_s",
        "_body",
        "_body_bytes",
        "_completed",
        "_digest",
        "_exchange",
        "_fault",
        "_headers",
        "_http10",
        "_in_body",
        "_is_http10",
        "_keep",
        "_lingering",
        "_memo",
        "_memos",
        "_out",
        "_parser",
        "_partial",
        "_queue",
        "_server",
        "_silent_bytes",
        "_transport",
        "_url",
        "_wire",
        "deadline_s",
        "is_paused",
    )

    def __init__(self, server: "ProxyServer") -> None:
        self._server = server
        self._wire = server.wire
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._queue: deque[Request] | None = None
        self._partial = False
        self._lingering = False
        self._fault: ApiError | None = None
        self._keep = True
        self._http10 = False
        self._auth = b""
        self._digest: bytes | None = None
        self._out: list[bytes] = []
        self._memo: Memo | None = None
        self._memos = 0
        self._completed = 0
        """Requests that the last read has completed."""
        self.is_paused = False

    @property
    def is_busy(self) -> bool:
        return self._exchange is not None or bool(self._queue) or self._partial

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's does not say that it is one
        wire = self._wire
        wire.connections += 1
        self.deadline_s = wire.sweeper.now_s + wire.limits.headers_s
        wire.sweeper.items.add(self)
        self._server.fronts.add(self)
        if wire.connections > wire.limits.max_connections:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        wire = self._wire
        wire.connections -= 1
        wire.sweeper.items.discard(self)
        self._server.fronts.discard(self)
        self._queue = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        fresh = not self._partial
        if fresh:
            if self._memo is not None and self._exchange is None and self._again(self._memo, data):
                return
            if data.find(b"\r\n\r\n") > self._server.max_header_bytes:
                self._turn_away(self._head_too_large())
                return
            self._completed = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            if self._fault is None:  # not one of ours: a mistake in this program, for the loop's handler to report
                self._transport.abort()
                raise error.__context__ or error from None
            self._turn_away(self._fault)
            return
        except httptools.HttpParserError as error:
            self._turn_away(BadRequest(f"this is not a well-formed HTTP/1.1 request: {error}", code="bad_framing"))
            return
        if self._partial:
            self._progress(len(data))
        elif fresh and self._completed == 1 and self._memos < MAX_MEMOS:
            self._remember(data)

    def _again(self, memo: Memo, data: bytes) -> bool:
        """Whether this is, in one piece, a request with the head of an earlier one but for its length; then it is served."""
        before, behind, authorization, digest, header_class = memo
        if self._queue:
            return False
        body = body_again(data, before, behind)
        if body is None or len(body) > self._server.max_body_bytes:
            return False
        self.deadline_s = NEVER
        self._memos = 0
        self._keep, self._http10 = True, False
        self._exchange = exchange = Exchange(self._wire, self)
        exchange.start(body, digest, authorization, header_class)
        return True

    def _remember(self, data: bytes) -> None:
        """What came was one chat completion and nothing else: its head may come again."""
        self._memos += 1
        around = around_length(data)
        headers = self._headers
        if around is None or not self._keep or b"expect" in headers:
            return
        if self._url == CHAT_PATH and self._parser.get_method() == b"POST":
            self._memo = (*around, self._auth, self._digest, _class_of(headers))

    def eof_received(self) -> None:
        """A client that has closed its half is taken to be gone, as nginx does."""

    def pause_writing(self) -> None:
        self.is_paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._exchange is not None:
            self._exchange.resume()

    def expired(self, now_s: float) -> None:
        """By the sweeper."""
        if self._exchange is not None or self._queue:
            self.deadline_s = NEVER
        elif self._lingering:
            self._transport.abort()
        elif self._partial:
            what = "the body of the request" if self._in_body else "the request"
            self._turn_away(TooSlow(f"{what} did not come in time"))
        else:
            self._hang_up()

    # httptools

    def on_message_begin(self) -> None:
        self._partial = True
        self._in_body = False
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = self._silent_bytes = 0
        self._began_s = 0.0

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        known = _NAMES[name]
        if known:
            if known in self._headers:
                self._raise(BadRequest(f"the header {known.decode()} came twice", code="bad_framing"))
            self._headers[known] = value

    def on_headers_complete(self) -> None:
        self._in_body = True
        headers = self._headers
        version = self._parser.get_http_version()
        self._is_http10 = version == "1.0"
        if version != "1.1" or b"host" not in headers or self._url[:1] != b"/" or not _ODD_SET.isdisjoint(headers):
            self._look_closer(version)
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._server.max_body_bytes:
            self._raise(self._too_large())

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = -1
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._server.max_body_bytes:
            self._raise(self._too_large())

    def on_message_complete(self) -> None:
        self._partial = False
        self._completed += 1
        parser = self._parser
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._body = []
        self.deadline_s = NEVER
        keep = parser.should_keep_alive() and not self._is_http10
        method = parser.get_method()
        if self._exchange is None and not self._queue:
            self._handle(method, self._url, self._headers, body, keep, self._is_http10)
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append((method, self._url, self._headers, body, keep, self._is_http10))
        if len(self._queue) >= self._wire.limits.max_pipelined:
            self._transport.pause_reading()

    # Requests

    def _handle(self, method: bytes, url: bytes, headers: dict[bytes, bytes], body: bytes, keep: bool, http10: bool) -> None:
        self._keep, self._http10 = keep, http10
        authorization = headers.get(b"authorization", b"")
        if authorization != self._auth:  # a connection's requests nearly always carry the same key
            self._auth = authorization
            self._digest = key_digest(authorization)
        if url != CHAT_PATH or method != b"POST":
            status, head, answer = self._server.answer(method, url, self._digest, authorization)
            self._wire.answered(status)
            self.reply(status, head, b"" if method == b"HEAD" else answer)
            return
        self._exchange = exchange = Exchange(self._wire, self)
        exchange.start(body, self._digest, authorization, _class_of(headers))

    def _next(self) -> None:
        """The next of the pipelined requests."""
        queue = self._queue
        if not queue or self._exchange is not None or self._transport.is_closing():
            return
        request = queue.popleft()
        if len(queue) < self._wire.limits.max_pipelined:
            self._transport.resume_reading()
        self._handle(*request)

    def _done(self) -> None:
        """An answer has gone out."""
        self._exchange = None
        if not self._keep or self._wire.draining:
            self._fault = None
            self._close()
        elif self._queue:
            self._wire.loop.call_soon(self._next)
        elif self._fault is not None:
            self._close()
        elif self._partial:
            self._began_s = 0.0
            self._progress(0)
        else:
            self.deadline_s = self._wire.sweeper.now_s + self._wire.limits.keep_alive_s

    def _progress(self, size: int) -> None:
        """Some of a request has come, and not all of it."""
        limits = self._wire.limits
        now_s = self._wire.sweeper.now_s
        self._silent_bytes = self._silent_bytes + size if self._silent_bytes >= 0 else 0
        if not self._began_s:
            self._began_s = now_s
        if not self._in_body:
            self.deadline_s = self._began_s + limits.headers_s
            if self._silent_bytes > self._server.max_header_bytes:
                self._turn_away(self._head_too_large())
            return
        self.deadline_s = min(now_s + limits.body_idle_s, self._began_s + limits.body_total_s)
        if self._silent_bytes > self._server.max_header_bytes:  # chunk extensions or trailers without end
            self._turn_away(BadRequest("the chunks of the body carry more framing than content", code="bad_framing"))

    def _look_closer(self, version: str) -> None:
        """What is wrong with a head that llhttp lets pass. Raises."""
        headers = self._headers
        if version != "1.1" and version != "1.0":
            self._raise(ApiError(f"HTTP/{version} is not spoken here; use HTTP/1.1", status=505, code="http_version"))
        if b"upgrade" in headers or self._parser.get_method() == b"CONNECT":
            self._raise(BadRequest("this server neither changes protocols nor opens tunnels", code="upgrade"))
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            what = "the only transfer-encoding that is understood is chunked, in HTTP/1.1"
            self._raise(BadRequest(what, code="bad_framing"))
        if b"host" not in headers and version == "1.1":
            self._raise(BadRequest("the header Host is missing", code="bad_framing"))
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._raise(ApiError("send the body without content-encoding", status=415, code="content_encoding"))
        expected = headers.get(b"expect")
        if expected is None:
            return
        if expected.lower() != b"100-continue":
            what = "the only expectation that is understood is 100-continue"
            self._raise(ApiError(what, status=417, code="expectation"))
        if int(headers.get(b"content-length", b"0")) <= self._server.max_body_bytes and not self._exchange and not self._queue:
            self._wire.outbox.write(self._transport, b"HTTP/1.1 100 Continue\r\n\r\n")

    def _head_too_large(self) -> ApiError:
        return HeadersTooLarge(f"the head of the request has more than {self._server.max_header_bytes} bytes")

    def _too_large(self) -> ApiError:
        return TooLarge(f"the body has more than {self._server.max_body_bytes} bytes (RoutingProxy's maxBodyBytes)")

    def _raise(self, fault: ApiError) -> None:
        self._fault = fault
        raise fault

    def _turn_away(self, fault: ApiError) -> None:
        """Refuses and ends the connection; after the answers that are still owed, so that they stay in order."""
        self._fault = fault
        self._lingering = True
        self._partial = False
        if self._exchange is None and not self._queue:
            self._close()

    # Answers

    def reply(self, status: int, head: bytes, body: bytes) -> None:
        """A whole answer."""
        outbox = self._wire.outbox
        if self._keep and not self._wire.draining:
            outbox.write(
                self._transport,
                b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n\r\n%b"
                % (status, _REASONS.get(status, b"-"), head, len(body), body),
            )
        else:
            outbox.write(
                self._transport,
                b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, _REASONS.get(status, b"-"), head, len(body), body),
            )
        self._done()

    def begin_stream(self, head: bytes) -> None:
        """What a stream writes is held until `flush`: what the upstream sent at once goes out at once, in one write."""
        if self._http10:
            self._out = [b"HTTP/1.1 200 OK\r\n%bconnection: close\r\n\r\n" % head]
        else:
            closing = b"" if self._keep else b"connection: close\r\n"
            self._out = [b"HTTP/1.1 200 OK\r\n%b%btransfer-encoding: chunked\r\n\r\n" % (head, closing)]

    def write_chunk(self, data: bytes) -> None:
        self._out.append(data if self._http10 else b"%x\r\n%b\r\n" % (len(data), data))

    def flush(self) -> None:
        out = self._out
        if out:
            self._wire.outbox.write(self._transport, out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def end_stream(self) -> None:
        if self._http10:
            self._keep = False
        else:
            self._out.append(b"0\r\n\r\n")
        self.flush()
        self._done()

    def break_stream(self, event: bytes) -> None:
        """A stream that is not whole: the connection ends where a last chunk would be, so nobody takes it for whole."""
        self._exchange = None
        self._queue = None
        self.write_chunk(event)
        self.flush()
        self._hang_up()

    def abort(self) -> None:
        self._transport.abort()

    def drain(self) -> None:
        """The server stops: a connection that waits for nothing is closed, one that is busy after its answer."""
        if not self.is_busy and not self._lingering:
            self._hang_up()

    def _hang_up(self) -> None:
        self._wire.outbox.send()
        self._transport.close()

    def _close(self) -> None:
        """Ends the connection after what was written; the client's bytes are still read, or it might not see the answer."""
        self._wire.outbox.send()
        fault, self._fault = self._fault, None
        transport = self._transport
        if transport.is_closing():
            return
        if fault is not None:
            self._wire.answered(fault.status)
            body = fault.body()
            transport.write(
                b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (fault.status, _REASONS.get(fault.status, b"-"), fault.head(), len(body), body)
            )
        elif not self._lingering:
            transport.close()
            return
        self._lingering = True
        self.deadline_s = self._wire.sweeper.now_s + self._wire.limits.linger_s
        if transport.can_write_eof():
            transport.write_eof()


def _class_of(headers: dict[bytes, bytes]) -> str | None:
    value = headers.get(b"x-stepdown-class")
    return value.decode("latin-1") if value else None
