"""Sync over HTTP/1.1 on a Unix socket, for proxies that run in processes of their own. `local` starts it with `--workers`.

`sync.message` says what a message is and what it is answered. The socket has mode 0600: who may open it is the user who runs
the keeper. A connection's messages are answered one after the other.
"""

import asyncio
import errno
import os
import socket
import stat
from collections import deque
from pathlib import Path

import httptools

from stepdown.sync.message import MAX_BODY, answered, error, misplaced, too_large
from stepdown.sync.service import SyncService

MAX_QUEUED = 16
"""Messages that one connection may send ahead."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    503: "Service Unavailable",
}


class SocketInUse(Exception):
    """Another process answers on the socket, or the path is something else."""


class SyncServer:
    """The listening socket."""

    def __init__(self, service: SyncService, path: Path) -> None:
        self._service, self._path = service, path
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        listener = _listener(self._path)
        self._server = await loop.create_unix_server(lambda: _Connection(self._service, self._connections), sock=listener)

    async def stop(self) -> None:
        """No new connections; messages that are being answered are answered."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        await asyncio.gather(*(connection.finish() for connection in list(self._connections)))
        self._path.unlink(missing_ok=True)


def _listener(path: Path) -> socket.socket:
    """Binds the socket, mode 0600 from its first moment; a stale one of a killed keeper is taken over."""
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketInUse(f"{path} is not a socket: name another path")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
                raise SocketInUse(f"another process answers on {path}: stop it, or name another path")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise SocketInUse(f"the sync socket {path} cannot be made: {error}") from error
    finally:
        os.umask(before)
    return listener


class _Connection(asyncio.Protocol):
    """One client: parses as bytes come, answers in order."""

    def __init__(self, service: SyncService, connections: "set[_Connection]") -> None:
        self._service, self._connections = service, connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[tuple[bytes, bytes, bytes, bool]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._url, self._body, self._size = b"", [b""], 0
        self._ending = False

    # asyncio ----------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one by duck's law only
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as broken:
            self._refuse(400, error("bad_request", f"not HTTP/1.1: {broken}"))

    async def finish(self) -> None:
        if self._worker is not None:
            await asyncio.wait([self._worker])
        if self._transport is not None:
            self._transport.close()

    # httptools --------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url, self._body, self._size = b"", [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= MAX_BODY:
            self._body.append(body)
        elif not self._ending:
            self._refuse(*too_large())

    def on_message_complete(self) -> None:
        if self._ending:
            return
        message = (self._parser.get_method(), self._url, b"".join(self._body), self._parser.should_keep_alive())
        self._queue.append(message)
        if self._transport is not None and len(self._queue) >= MAX_QUEUED:
            self._transport.pause_reading()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    # Answers ----------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self._queue:
            method, url, body, keep_alive = self._queue.popleft()
            if self._transport is not None and not self._ending:
                self._transport.resume_reading()
            wrong = misplaced(method.decode("latin-1"), url.decode("latin-1"))
            status, payload = wrong or await answered(self._service, body)
            self._write(status, payload, keep_alive=keep_alive)
        self._worker = None

    def _refuse(self, status: int, payload: bytes) -> None:
        self._ending = True
        self._write(status, payload, keep_alive=False)

    def _write(self, status: int, payload: bytes, *, keep_alive: bool) -> None:
        if self._transport is None:
            return
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n"
            f"connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        )
        self._transport.write(head.encode() + payload)
        if not keep_alive:
            self._ending = True
            self._transport.close()
