"""The upstream of a schedule: the simulator of the other tests, with its own exact bill, on connections in memory.

Each request is known by the reservation that it was sent under, so that what it is billed can be laid beside what was promised.
"""

import asyncio
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Protocol

from stepdown.proxy.hold import Hold
from tests.proof.loop import Process, current
from tests.proof.pipes import End, pair
from tests.upstream import Simulator
from tests.upstream.answers import Model
from tests.upstream.bill import Price, Tokens
from tests.upstream.server import Connection, Request

KEY = "sk-proof"
BEGAN_USD = {"up/big": "0.01", "up/mid": "0.005", "up/small": "0.001"}
"""Output, USD a million tokens; input is 0.001, cached input 0.0005."""


def price(output_usd: str, times: int = 1) -> Price:
    return Price(Decimal("0.001") * times, Decimal("0.0005") * times, Decimal(output_usd) * times)


class Heard(Protocol):
    """What `truth` wants to know."""

    def sent(self, hold: Hold | None) -> None: ...
    def billed(self, hold: Hold | None, tokens: Tokens | None, cost_nusd: int) -> None: ...


class Upstream(Simulator):
    """Everybody's upstream."""

    def __init__(self, seed: int, heard: Heard) -> None:
        self.chance = random.Random(f"upstream {seed}")
        self._heard = heard
        self._process = Process("upstream")
        self._holds: dict[int, Callable[[], Hold | None]] = {}
        self._of_entry: dict[int, Hold | None] = {}
        self.prices: dict[str, Price | None] = {name: price(usd) for name, usd in BEGAN_USD.items()}
        self.refuses_connections = False
        super().__init__(
            model=Model(rule=self.chance.choice(("typical", "worst")), output_tokens=(1, 800), chunks=6, seed=seed),
            latencies_s=[self.chance.choice((0.05, 0.2, 1.0, 3.0)) for _ in range(17)],
            per_chunk_s=0.05,
            standard_keys=(KEY,),
            prices=self.prices,
        )

    def raise_prices(self, times: int) -> None:
        self._prices.update({name: price(usd, times) for name, usd in BEGAN_USD.items()})

    async def dial(self, factory: Callable[[], Any]) -> tuple[Any, Any]:
        """A connection from the running process to here. Raises OSError."""
        await asyncio.sleep(self.chance.uniform(0.001, 0.01))
        process = current()
        assert process is not None
        if self.refuses_connections or not process.alive:
            raise ConnectionRefusedError("connection refused")
        near, far = pair(process, self._process, lambda: self.chance.uniform(0.0005, 0.01), socket=True)
        protocol = factory()
        sent: list[Hold | None] = [None]

        def wrote() -> None:
            sent[0] = protocol._sink.hold if protocol._sink is not None else None

        near.wrote = wrote
        connection = Connection(self)
        far.attach(connection)
        self._holds[connection._number] = lambda: sent[0]
        ends: list[End] = getattr(process, "ends")  # noqa: B009 (a `host`'s process has it)
        ends.append(near)
        near.attach(protocol)
        return near, protocol

    def begin(self, request: Request) -> Any:
        made = super().begin(request)
        entry = getattr(made, "entry", None)
        if entry is not None:
            hold = self._of_entry[entry.number] = self._holds[request.connection]()
            self._heard.sent(hold)
        return made

    def settle(self, chat: Any, sent: int, whole: bool) -> None:
        super().settle(chat, sent, whole)
        tokens = chat.script.tokens
        self._heard.billed(self._of_entry.pop(chat.entry.number), tokens, chat.entry.cost_nusd)
