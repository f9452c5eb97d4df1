"""One HTTP/1.1 request on a connection of its own: both proofs' client, in memory (`clients`) and on sockets (`real`)."""

import asyncio
from typing import Any

import httptools
import msgspec


class Client(asyncio.Protocol):
    """What came of it, as far as it came."""

    def __init__(self) -> None:
        self.status = 0
        self.whole = False
        self.headers: dict[str, str] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    @property
    def error(self) -> dict[str, Any]:
        """The answer's error; empty where there is none, or not all of it."""
        try:
            error: dict[str, Any] = msgspec.json.decode(b"".join(self._body))["error"]
        except (msgspec.MsgspecError, KeyError, TypeError):
            return {}
        return error

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.status >= 400:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self.whole = True
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
