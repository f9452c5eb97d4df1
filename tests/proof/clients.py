"""Clients over HTTP/1.1, in memory: they ask, read the answer to its end, or leave in the middle of it."""

import asyncio
import random
from typing import Any

import msgspec

from tests.proof.client import Client
from tests.proof.host import Host
from tests.proof.loop import Process


def body(chance: random.Random, route: str, *, streams: float = 0.5) -> bytes:
    text = "x" * int(10 ** chance.uniform(0.5, 3))
    wanted: dict[str, Any] = {
        "model": route,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": chance.choice((5, 50, 200, 600)),
    }
    if chance.random() < streams:
        wanted["stream"] = True
    return msgspec.json.encode(wanted)


async def ask(process: Process, host: Host, payload: bytes, leave_s: float | None) -> Client:
    """`leave_s`: the client goes away after so long, whatever has come."""
    client = Client()
    try:
        end = host.connect(process, client)
    except ConnectionRefusedError:
        return client
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    end.write(head % len(payload) + payload)
    try:
        async with asyncio.timeout(leave_s if leave_s is not None else 120.0):
            await client.done
    except TimeoutError:
        pass
    end.abort()
    return client
