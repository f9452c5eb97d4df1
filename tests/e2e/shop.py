"""One proxy with its ledger's keeper in the test's own event loop, so that a test can hear every decision about money."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bench.policy import FLEET, one_route

from stepdown.budget.account import Balance
from stepdown.ledger import Ledger
from stepdown.proxy.clock import Clock
from stepdown.proxy.identity import StateDir
from stepdown.proxy.keys import FixedKeys
from stepdown.proxy.server import ProxyServer, ServerConfig
from stepdown.proxy.syncer import Syncer
from stepdown.sync.service import SyncService
from tests.e2e.witness import WitnessTill
from tests.upstream import STANDARD_KEY

NOW_S = 1_795_000_000.0
"""The ledger's time when a shop opens; from there it runs as time does."""


class Shop:
    """`async with Shop(folder, url, limit_nusd) as shop`: the till is a witness; `shop.port` answers HTTP."""

    def __init__(self, folder: Path, base_url: str, limit_nusd: int) -> None:
        began_s = Clock().boot_s()
        self.clock_s: Callable[[], float] = lambda: NOW_S + Clock().boot_s() - began_s
        self._policy = one_route(base_url, limit_nusd, NOW_S)
        self.service = SyncService(Ledger.open(folder / "ledger.db", create=True), self.clock_s)
        self.till = WitnessTill(StateDir(folder / "state", Clock(now_s=NOW_S)), Clock(now_s=NOW_S))
        self.till.watch(limit_nusd)
        self.syncer = Syncer(self.till, self.till.watched(self.service.sync), FLEET)

    async def __aenter__(self) -> Self:
        await self.service.bind([self._policy.binding])
        self.service.publish(self._policy.fleet, {self._policy.shard.index: self._policy.shard})
        assert await self.syncer.once()
        self._running = asyncio.create_task(self.syncer.run())
        self._server = ProxyServer(ServerConfig(), self.till, FixedKeys({"standard": STANDARD_KEY}), self.syncer)
        await self._server.start()
        self.port = self._server.port
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._server.drain(5.0)
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.syncer.close(5.0)
        await self.service.close()

    async def balance(self) -> Balance:
        """What the ledger says, once it has heard all that the proxy has to say."""
        assert await self.syncer.once()
        balances = await self.service.call(lambda ledger: ledger.balances(self.clock_s()))
        return balances[self._policy.binding.account]
