"""Sync over HTTP/1.1: the proxy's side of `sync/http.py` and `sync/server.py`. `__main__` uses it; the syncer calls it.

One connection, one message at a time (the syncer sees to that). Whatever goes wrong ends the connection and is SyncUnavailable:
the next message says the same and more. How the connection is made is its line's business: `UnixLine` here, `HttpsLine` in
`syncline`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from stepdown.model.news import PATH as WAIT
from stepdown.model.news import Have, News
from stepdown.model.sync import SyncAnswer, SyncRefused, SyncRequest, SyncUnavailable

A = TypeVar("A")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_MOVES = 2
"""How often one message may be sent on to another address."""
_SYNC = "/v1/sync"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SyncAnswer).decode
_decode_news = msgspec.json.Decoder(News).decode


class Line(Protocol):
    """How the keeper is reached. Raises OSError or SyncUnavailable."""

    @property
    def where(self) -> str:
        """For messages."""

    async def open(self) -> Streams: ...

    def headers(self) -> bytes:
        """What each message carries, lines with their ends."""

    def is_stale(self) -> bool:
        """Whether a connection that is open must be made anew."""

    def moved(self, answer: bytes) -> bool:
        """421: the keeper is elsewhere. True: the line leads there now."""

    def broken(self) -> None:
        """Something went wrong on it."""


class UnixLine:
    """The socket of a keeper on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def where(self) -> str:
        return str(self._path)

    async def open(self) -> Streams:
        return await asyncio.open_unix_connection(self._path)

    def headers(self) -> bytes:
        return b"host: keeper\r\n"

    def is_stale(self) -> bool:
        return False

    def moved(self, answer: bytes) -> bool:
        return False

    def broken(self) -> None:
        """There is one address only."""


class SyncClient:
    """`await client(request)`, or `await client.wait(have)`; one at a time, and each kind on a client of its own."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._streams: Streams | None = None

    async def __call__(self, request: SyncRequest) -> SyncAnswer:
        """One message. Raises SyncError or OSError; cancelled, it leaves no half-read answer behind."""
        return await self._asked(_SYNC, _encode(request), _decode)

    async def wait(self, have: Have) -> News:
        """Asks for news, which may take as long as it likes. Raises SyncError or OSError."""
        return await self._asked(WAIT, _encode(have), _decode_news)

    async def _asked(self, path: str, body: bytes, decode: Callable[[bytes], A]) -> A:
        whole = False
        try:
            status, answer = await self._exchange(path, body)
            moves = 0
            while status == 421 and moves < _MAX_MOVES and self._line.moved(answer):
                self.close()
                status, answer = await self._exchange(path, body)
                moves += 1
            whole = status in (200, 400)
            return decode(_good(status, answer))
        except (EOFError, LookupError, ValueError, asyncio.LimitOverrunError, msgspec.MsgspecError) as error:
            whole = False
            raise SyncUnavailable(f"the answer from {self._line.where} cannot be read: {error}") from error
        finally:
            if not whole:
                self.close()
                self._line.broken()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        headers = self._line.headers()
        if self._streams is not None and self._line.is_stale():
            self.close()
        if self._streams is None:
            self._streams = await self._line.open()
        reader, writer = self._streams
        head = b"POST %b HTTP/1.1\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
            path.encode(),
            headers,
            len(body),
        )
        writer.write(head + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        status = int(lines[0].split()[1])
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:] if b": " in line)
        size = int(fields[b"content-length"]) if b"content-length" in fields else _MAX_ANSWER_BYTES + 1
        if size > _MAX_ANSWER_BYTES:
            raise ValueError(f"its length is {size}")
        answer = await reader.readexactly(size)
        if fields.get(b"connection") == b"close":
            self.close()
        return status, answer


def understood(status: int, answer: bytes) -> SyncAnswer:
    """Raises SyncRefused, SyncUnavailable or a MsgspecError."""
    return _decode(_good(status, answer))


def _good(status: int, answer: bytes) -> bytes:
    if status == 200:
        return answer
    said = f"the keeper answered {status}: {answer[:500].decode('utf-8', 'replace')}"
    raise SyncRefused(said) if status == 400 else SyncUnavailable(said)
