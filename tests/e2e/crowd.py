"""Many clients at once against one proxy, each asking again once it has its answer: what spends a budget in the e2e tests."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_WORDS = (
    "the",
    "deployment",
    "was",
    "rolled",
    "back",
    "since",
    "its",
    "probe",
    "failed",
    "on",
    "two",
    "of",
    "three",
    "replicas",
)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True
    """False: the connection ended before the answer did."""

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


@dataclass
class Crowd:
    """`clients` of them, until each has been refused `patience` times in a row or `stop` is set."""

    port: int
    route: str
    clients: int = 200
    patience: int = 2
    enough: int = 1 << 30
    """After so many refusals in all, nobody asks again."""
    seed: int = 7
    always: dict[str, Any] | None = None
    """What everybody sends; None: all sorts."""
    refusals: list[Reply] = field(default_factory=list)
    models: Counter[str] = field(default_factory=Counter)
    """Answers by the model that gave them."""
    other: list[Reply] = field(default_factory=list)
    """Neither an answer nor a refusal for want of money."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    answers: int = 0

    async def spend(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        refused = 0
        while refused < self.patience and not self.stop.is_set():
            reply = await ask(self.port, self.always or self._body(chance))
            if reply.status == 200 and reply.whole:
                refused = 0
                self.answers += 1
                self.models[reply.headers["x-stepdown-model"]] += 1
            elif reply.status == 429 and reply.error["code"] == "insufficient_quota":
                refused += 1
                self.refusals.append(reply)
                if len(self.refusals) >= self.enough:
                    self.stop.set()
            else:
                refused += 1
                self.other.append(reply)

    def _body(self, chance: random.Random) -> dict[str, Any]:
        """Prompts of a few words to a few kilobytes, answers of 1 to 1,000 tokens at most; half of them streams."""
        content = " ".join(chance.choices(_WORDS, k=int(10 ** chance.uniform(0.3, 3))))
        body = {"model": self.route, "messages": [{"role": "user", "content": content}], "max_tokens": chance.randint(1, 1000)}
        return {**body, "stream": True} if chance.random() < 0.5 else body


async def ask(port: int, body: dict[str, Any], key: str | None = None) -> Reply:
    """One chat completion on a connection of its own, read to its end, or to where it broke."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return Reply(0, {}, b"", whole=False)
    payload = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(payload)}\r\n"
    head += f"authorization: Bearer {key}\r\n" if key else ""
    reply = Reply(0, {}, b"", whole=False)
    try:
        writer.write(head.encode() + b"\r\n" + payload)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        reply.status = int(lines[0].split()[1])
        reply.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        if "content-length" in reply.headers:
            reply.body = await reader.readexactly(int(reply.headers["content-length"]))
        else:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                reply.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        reply.whole = True
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.transport.abort()
    return reply
