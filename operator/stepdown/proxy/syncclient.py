"""Sync over HTTP/1.1 on a Unix socket: the proxy's side of `sync/http.py`. `__main__` uses it; the syncer calls it.

One connection, one message at a time (the syncer sees to that). Whatever goes wrong ends the connection and is
SyncUnavailable: the next message says the same and more.
"""

import asyncio
from pathlib import Path

import msgspec

from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.syncer import SyncUnavailable

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SyncAnswer).decode


class SyncClient:
    """`await client(request)`."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __call__(self, request: SyncRequest) -> SyncAnswer:
        """One message. Raises SyncUnavailable or OSError; cancelled, it leaves no half-read answer behind."""
        whole = False
        try:
            answer = await self._exchange(_encode(request))
            whole = True
        except (EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise SyncUnavailable(f"the answer on {self._path} is not whole: {error}") from error
        finally:
            if not whole:
                self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _exchange(self, body: bytes) -> SyncAnswer:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(str(self._path))
        reader, writer = self._streams
        head = b"POST /v1/sync HTTP/1.1\r\nhost: keeper\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
            body
        )
        writer.write(head + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        status = int(lines[0].split()[1])
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if b": " in line)
        size = int(headers[b"content-length"]) if b"content-length" in headers else _MAX_ANSWER_BYTES + 1
        if size > _MAX_ANSWER_BYTES:
            raise ValueError(f"its length is {size}")
        answer = await reader.readexactly(size)
        if headers.get(b"connection") == b"close":
            self.close()
        if status != 200:
            raise SyncUnavailable(f"the keeper answered {status}: {answer[:500].decode('utf-8', 'replace')}")
        return _decode(answer)
