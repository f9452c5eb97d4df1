"""Many streams at once, an event every 200 ms: their upstream (`python -m bench.paced PORT`) and the client that counts them.

Each event says when it was sent, on the machine's monotonic clock: so the client knows for how long it was under way.
"""

import asyncio
import sys
import time
from typing import NamedTuple

import httptools
import uvloop

from bench import bodies
from bench.client import Answer, Connection
from bench.machine import BenchError
from bench.steady import percentile

INTERVAL_S = 0.2
_RAMP_S = 1.0
_MARK = bodies.STAMP.encode()
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENTS = tuple(bodies.events())


class Streams(NamedTuple):
    """What became of the streams."""

    whole: int
    dropped: int
    open_at_once: int
    delay_p50_ms: float
    delay_p99_ms: float
    first: str
    """Why the first dropped one was; empty if none."""


class PacedUpstream(asyncio.Protocol):
    """Answers every request with the same paced stream; a plain one (a readiness probe) with the usual answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if b'"stream":true' not in self._body.replace(b" ", b""):
            answer = bodies.answer()
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
            self._transport.write(head + answer)
            return
        self._transport.write(_HEAD)
        self._send(0)

    def _send(self, index: int) -> None:
        if self._transport.is_closing():
            return
        event = _EVENTS[index].replace(_MARK, b"@%d@" % time.monotonic_ns())
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        if index + 1 < len(_EVENTS):
            asyncio.get_running_loop().call_later(INTERVAL_S, self._send, index + 1)
        else:
            self._transport.write(b"0\r\n\r\n")


async def hold(port: int, request: bytes, streams: int) -> Streams:
    """Opens so many streams within a second and reads all to their end."""
    spans: list[tuple[float, float]] = []
    delays_ms: list[float] = []
    dropped: list[str] = []

    async def one(number: int) -> None:
        await asyncio.sleep(_RAMP_S * number / streams)
        try:
            connection = await Connection.open(port)
            start_s = time.monotonic()
            answer = await connection.ask(request)
            connection.close()
            delays_ms.extend(_delays_ms(answer))
        except (BenchError, OSError) as error:
            dropped.append(str(error))
        else:
            spans.append((start_s, answer.ended_s))

    await asyncio.gather(*(one(number) for number in range(streams)))
    if not delays_ms:
        raise BenchError(f"none of {streams} streams came through port {port}: {dropped[0]}")
    return Streams(
        whole=len(spans),
        dropped=len(dropped),
        open_at_once=_most_at_once(spans),
        delay_p50_ms=round(percentile(delays_ms, 50), 3),
        delay_p99_ms=round(percentile(delays_ms, 99), 3),
        first=dropped[0] if dropped else "",
    )


def _delays_ms(answer: Answer) -> list[float]:
    """For how long each stamped event was under way; raises if the stream is not the one that was sent."""
    events = answer.body.split(b"\n\n")
    if answer.status != 200 or len(events) != bodies.CHUNKS + 2 or events[-2] != b"data: [DONE]":
        raise BenchError(f"a stream of {len(events) - 1} events with status {answer.status}: {answer.body[-200:]!r}")
    delays = []
    for part in answer.parts:
        for stamp in part.data.split(b'"content":"@')[1:]:
            delays.append(part.at_s * 1000 - int(stamp.partition(b"@")[0]) / 1e6)
    return delays


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    edges = sorted([(start_s, 1) for start_s, _ in spans] + [(end_s, -1) for _, end_s in spans])
    most = now = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(PacedUpstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
