"""The way between proxies and keeper: every message is encoded, and may be lost, late, repeated, or overtaken.

A message that was given up may still arrive: it is carried by the network, not by who sent it.
"""

import asyncio
import random
from collections.abc import Callable

import msgspec

from stepdown.model.sync import SyncAnswer, SyncRequest
from tests.proof.host import Host
from tests.proof.keeper import Keeper
from tests.proof.loop import Process


class Network:
    """Who is reached is asked anew for each message."""

    def __init__(self, chance: random.Random, keeper_of: Callable[[Host], Keeper | None]) -> None:
        self._chance, self._keeper_of = chance, keeper_of
        self.process = Process("network")
        self.noise = 0.0
        """How many of all messages meet with something."""

    async def sync(self, host: Host, request: SyncRequest) -> SyncAnswer:
        if not host.alive:
            raise ConnectionError("this process is dead")
        raw = msgspec.json.encode(request)
        carried = self.process.spawn(self._carry(host, raw))
        carried.add_done_callback(_retrieve)
        answer = await asyncio.shield(carried)
        return msgspec.json.decode(answer, type=SyncAnswer)

    async def _carry(self, host: Host, raw: bytes) -> bytes:
        chance = self._chance
        what = chance.choice(("lost", "late", "twice", "answer lost", "answer late")) if chance.random() < self.noise else ""
        await asyncio.sleep(chance.uniform(0.0005, 0.01))
        if host.partitioned:
            await asyncio.sleep(chance.choice((0.0, 3.0)))
            raise ConnectionError("no route to host")
        if what == "lost":
            await asyncio.sleep(3.0)
            raise ConnectionError("lost")
        if what == "late":
            await asyncio.sleep(chance.uniform(0.1, 4.0))
        if what == "twice":
            self.process.spawn(self._again(host, raw, chance.uniform(0.0, 3.0)))
        answer = await self._deliver(host, raw)
        await asyncio.sleep(chance.uniform(0.0005, 0.01))
        if what == "answer lost" or host.partitioned:
            await asyncio.sleep(chance.choice((0.0, 3.0)))
            raise ConnectionError("the answer was lost")
        if what == "answer late":
            await asyncio.sleep(chance.uniform(0.1, 2.5))
        return answer

    async def _again(self, host: Host, raw: bytes, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            await self._deliver(host, raw)
        except Exception:  # noqa: BLE001 (nobody hears what became of a copy)
            return

    async def _deliver(self, host: Host, raw: bytes) -> bytes:
        keeper = self._keeper_of(host)
        if keeper is None:
            raise ConnectionRefusedError("nobody listens")
        answer = await keeper.answer(msgspec.json.decode(raw, type=SyncRequest), host.name)
        return msgspec.json.encode(answer)


def _retrieve(task: "asyncio.Task[bytes]") -> None:
    """Whoever sent the message may have given it up."""
    if not task.cancelled():
        task.exception()
