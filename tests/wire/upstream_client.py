"""A client on raw sockets, for tests of the simulator: it shows what came over the wire, broken or not."""

import asyncio
import json
import zlib
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import uvloop

from tests.upstream import STANDARD_KEY

T = TypeVar("T")


def run(scene: Coroutine[Any, Any, T]) -> T:
    return uvloop.run(asyncio.wait_for(scene, 20))


def chat(model: str, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A body; a stream asks for usage unless told otherwise."""
    body = {"model": model, "messages": messages, **fields}
    if body.get("stream") and "stream_options" not in body:
        body["stream_options"] = {"include_usage": True}
    return body


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.writer.transport.abort()

    async def post(self, body: dict[str, Any], *, key: str | None = STANDARD_KEY) -> tuple[int, dict[str, str], bytes]:
        return await self.request("POST", "/v1/chat/completions", json.dumps(body).encode(), key)

    async def request(self, method: str, path: str, body: bytes, key: str | None) -> tuple[int, dict[str, str], bytes]:
        self.send(method, path, body, key)
        return await self.answer()

    def send(self, method: str, path: str, body: bytes, key: str | None) -> None:
        head = f"{method} {path} HTTP/1.1\r\nhost: upstream\r\ncontent-length: {len(body)}\r\n"
        if key is not None:
            head += f"authorization: Bearer {key}\r\n"
        self.writer.write(head.encode() + b"\r\n" + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        if "content-length" in headers:
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        chunks = []
        while chunk := await self.chunk():
            chunks.append(chunk)
        return status, headers, b"".join(chunks)

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    @staticmethod
    def events(stream: bytes) -> list[dict[str, Any]]:
        """What a stream's events say, `[DONE]` left out."""
        parts = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event]
        return [json.loads(part) for part in parts if part != b"[DONE]"]

    @classmethod
    def usage(cls, answer: bytes) -> Any:
        if answer.startswith(b"{"):
            return json.loads(answer).get("usage")
        return cls.events(answer)[-1].get("usage")

    @staticmethod
    def gunzip(data: bytes) -> bytes:
        """As much as has come."""
        return zlib.decompressobj(wbits=31).decompress(data)
