"""Clients over real sockets: they ask, read the answer to its end, or leave in the middle of it."""

import asyncio
import contextlib
import random
from decimal import Decimal
from typing import Any

import msgspec

from tests.proof.client import Client
from tests.proof.real.judge import Asked
from tests.proof.real.models import BIG, SMALL, worst_nusd

PATIENCE_S = 100.0
"""How long a client waits for an answer: longer than any that comes."""
_NUSD = 1_000_000_000


class Wish(msgspec.Struct):
    """What a client asks for."""

    route: str
    text: str
    max_tokens: int
    stream: bool

    def body(self, number: int) -> bytes:
        """It says its number, so that the upstream's log tells whose each request is."""
        wanted: dict[str, Any] = {
            "model": self.route,
            "messages": [{"role": "user", "content": f"{number} {self.text}"}],
            "max_tokens": self.max_tokens,
        }
        if self.stream:
            wanted["stream"] = True
        return msgspec.json.encode(wanted)


def wish(chance: random.Random, route: str) -> Wish:
    """Prompts of a few bytes to a few kilobytes, short answers and long ones, half of them streams."""
    text = "x" * int(10 ** chance.uniform(0.5, 3.3))
    return Wish(route, text, chance.choice((5, 50, 100, 300)), chance.random() < 0.5)


def number_of(body: dict[str, Any]) -> int:
    """Whose a request is that came to the upstream."""
    content: str = body["messages"][0]["content"]
    return int(content.partition(" ")[0])


def asked(number: int, wish: Wish, life: str, now_s: float, times: int) -> Asked:
    """`times`: how much dearer everything may be than its first price."""
    size = len(wish.body(number))
    most, least = (worst_nusd(model, size, wish.max_tokens, times) for model in (BIG, SMALL))
    return Asked(number, wish.route, life, now_s, most, least)


async def ask(record: Asked, wish: Wish, address: tuple[str, int], leave_s: float | None = None) -> None:
    """Fills in what became of it. `leave_s`: the client goes away after so long, whatever has come."""
    loop = asyncio.get_running_loop()
    payload = wish.body(record.number)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(leave_s if leave_s is not None else PATIENCE_S):
            transport, client = await loop.create_connection(Client, *address)
            transport.write(head % len(payload) + payload)
            with contextlib.suppress(TimeoutError):
                await client.done
    except (OSError, TimeoutError):
        pass
    finally:
        record.ended_s = loop.time()
        if transport is not None:
            transport.abort()
    if transport is not None:
        _note(record, client)


def _note(record: Asked, client: Client) -> None:
    record.status, record.whole = client.status, client.whole
    if record.status >= 400 and record.whole:
        error = client.error
        numbers = error.get("stepdown") or {}
        record.code, record.budget = error.get("code") or "", numbers.get("budget") or ""
    told = client.headers.get("x-stepdown-cost-usd")
    if record.status == 200 and record.whole and told is not None:
        record.told_nusd = int(Decimal(told) * _NUSD)
