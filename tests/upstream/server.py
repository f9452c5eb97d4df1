"""The simulator's side of a connection: reads requests with httptools, plays scripts. Knows nothing of models or money."""

import asyncio
import socket
import struct
import time
from collections import deque
from typing import Protocol

import httptools
import msgspec

from tests.upstream.answers import End, Script

_RESET_AFTER_S = 0.01
"""A reset overtakes data that the client has not read yet; so what was sent gets this long to arrive."""


class Request(msgspec.Struct, kw_only=True):
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case; the last of a repeated one."""
    raw: bytes
    at_s: float
    """On the monotonic clock, when it had come whole."""
    connection: int
    """Counts up by connection."""
    reused: bool
    """The connection had served a request before."""


class Exchange(Protocol):
    """What a handler makes of a request: a script, and ears for how it ended."""

    script: Script

    def sent(self, tokens: int) -> None: ...
    def ended(self, whole: bool) -> None: ...


class Handler(Protocol):
    def begin(self, request: Request) -> Exchange: ...
    def opened(self, connection: "Connection") -> int: ...
    def closed(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """Plays one script at a time, in the order of the requests."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._exchange: Exchange | None = None
        self._position = 0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._number = self._handler.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        if self._exchange:
            self._exchange.ended(False)
            self._exchange = None
        self._handler.closed(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._transport.close()
        except httptools.HttpParserError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self._transport.close()

    def eof_received(self) -> bool:
        return False

    def abort(self) -> None:
        self._transport.abort()

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=self._url.decode("latin-1"),
            headers=self._headers,
            raw=b"".join(self._body),
            at_s=time.monotonic(),
            connection=self._number,
            reused=self._served > 0,
        )
        self._served += 1
        self._waiting.append(request)
        if self._exchange is None:
            self._next()

    def _next(self) -> None:
        while self._exchange is None and self._waiting and not self._transport.is_closing():
            self._exchange = self._handler.begin(self._waiting.popleft())
            self._position, self._paused = 0, False
            self._play()

    def _play(self) -> None:
        """Sends steps until one has to wait; whatever is due at once goes out in one write."""
        exchange = self._exchange
        assert exchange is not None
        steps, due, tokens = exchange.script.steps, [], 0
        while self._position < len(steps):
            step = steps[self._position]
            if step.pause_s > 0 and not self._paused:
                self._paused = True
                self._timer = asyncio.get_running_loop().call_later(step.pause_s, self._play)
                break
            self._paused = False
            due.append(step.data)
            tokens = step.tokens
            self._position += 1
        if due:
            self._transport.write(b"".join(due))
            exchange.sent(tokens)
        if self._position == len(steps):
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        script = exchange.script
        if script.end is End.HANG:
            return  # the exchange ends with the connection
        self._exchange = None
        exchange.ended(script.whole)
        if script.end is End.KEEP:
            asyncio.get_running_loop().call_soon(self._next)
        elif script.end is End.FIN:
            self._transport.close()
        else:
            self._timer = asyncio.get_running_loop().call_later(_RESET_AFTER_S, self._reset)

    def _reset(self) -> None:
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
