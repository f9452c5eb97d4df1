"""A small HTTP client that notes when each byte came: for latency at a steady rate and for many paced streams."""

import asyncio
import time
from typing import NamedTuple, Self

import httptools

from bench.machine import BenchError


class Part(NamedTuple):
    at_s: float
    data: bytes


class Answer:
    """What came back, piece by piece."""

    def __init__(self) -> None:
        self.status = 0
        self.parts: list[Part] = []
        self.ended_s = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(part.data for part in self.parts)


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, port: int) -> Self:
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def ask(self, request: bytes) -> Answer:
        self._answer = Answer()
        self._parser = httptools.HttpResponseParser(self)
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._now_s = time.monotonic()
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._answer.parts.append(Part(self._now_s, data))

    def on_message_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()
        self._answer.ended_s = self._now_s
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(BenchError(f"the connection ended before the answer did: {exc or 'closed'}"))


def post(body: bytes, key: str) -> bytes:
    """The bytes of one request."""
    head = f"host: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return b"POST /v1/chat/completions HTTP/1.1\r\n%b\r\n\r\n%b" % (head.encode(), body)
