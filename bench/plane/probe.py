"""Asks proxies until each answers as wanted: the only thing that counts as served is an answer."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from bench.client import Answer, Connection
from bench.machine import BenchError

PERIOD_S = 0.005
_GIVE_UP_S = 30.0


class Asking(Connection):
    """One kept connection that notes the head of its last answer."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[str, str] = {}

    async def ask(self, request: bytes) -> Answer:
        self.headers = {}
        return await super().ask(request)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()


Wanted = Callable[[Mapping[str, str]], bool]


async def served(connections: Sequence[Asking], request: bytes, wanted: Wanted, since_s: float, what: str) -> list[float]:
    """By proxy: seconds from `since_s` to the end of its first answer that is as wanted."""
    return await asyncio.gather(*(_one(each, request, wanted, since_s, what) for each in connections))


async def _one(connection: Asking, request: bytes, wanted: Wanted, since_s: float, what: str) -> float:
    while True:
        began_s = time.monotonic()
        answer = await connection.ask(request)
        if answer.status != 200:
            raise BenchError(f"a proxy answered {answer.status}: {answer.body[:500]!r}")
        if wanted(connection.headers):
            return answer.ended_s - since_s
        if answer.ended_s - since_s > _GIVE_UP_S:
            raise BenchError(f"{what}: not after {_GIVE_UP_S:.0f} s; the last answer has {connection.headers}")
        await asyncio.sleep(max(0.0, began_s + PERIOD_S - time.monotonic()))
