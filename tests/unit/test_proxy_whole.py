"""A keeper that cannot be sure of its ledger is told everything. If this fails, an old backup forgets what was spent."""

import asyncio
from pathlib import Path

import msgspec

from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.hold import Usage
from tests.unit.proxy_money import TEAM, Keeper, Proxy, run, shape


class Doubtful(Keeper):
    """It asks for everything until it has been told."""

    sure: asyncio.Event | None = None

    def answer(self, request: SyncRequest) -> SyncAnswer:
        if self.sure is not None and request.whole:
            self.sure.set()
        return msgspec.structs.replace(super().answer(request), whole=self.sure is not None and not self.sure.is_set())


async def spend(proxy: Proxy, nusd: int) -> None:
    hold = proxy.till.admit(proxy.route, "default", shape()) or await proxy.till.admit_later(proxy.route, "default", shape())
    proxy.till.settle(hold, Usage(nusd, 0, 0), success=True)


def test_what_has_not_changed_is_said_again_when_the_keeper_asks_and_at_once(tmp_path: Path) -> None:
    """A lease that is used up and acknowledged is in no message any more, and in no backup of an hour ago."""

    async def main() -> None:
        async with Proxy(tmp_path, keeper=(keeper := Doubtful())) as proxy:
            await spend(proxy, 30)
            await asyncio.sleep(2)
            keeper.recall[TEAM] = 1_000
            await asyncio.sleep(60)
            assert (keeper.messages[-1].leases, keeper.messages[-1].counters, keeper.messages[-1].whole) == ((), (), False)
            keeper.sure = asyncio.Event()
            count = len(keeper.messages)
            await keeper.sure.wait()
            first, second = keeper.messages[count:]
            assert (first.whole, second.whole) == (False, True)
            ((report,), (counter,)) = second.leases, second.counters
            assert (report.account, report.consumed, counter.cost_nusd) == (TEAM, 30, 30)
            await asyncio.sleep(3)
            assert not keeper.messages[-1].whole, "once is enough"

    run(main())


def test_the_first_message_and_the_last_say_everything(tmp_path: Path) -> None:
    """Who is new, or was restarted, need not be asked; and who closes will not be there to be asked."""

    async def main() -> None:
        keeper = Keeper()
        async with Proxy(tmp_path, keeper=keeper) as proxy:
            assert [message.whole for message in keeper.messages] == [True]
            await spend(proxy, 30)
            await asyncio.sleep(5)
            assert [message.whole for message in keeper.messages[1:]] == [False] * (len(keeper.messages) - 1)
        count = len(keeper.messages)
        async with Proxy(tmp_path, keeper=keeper) as again:
            await asyncio.sleep(3)
            first = keeper.messages[count]
            assert (first.instance, first.whole, first.leases[0].consumed) == (keeper.messages[0].instance, True, 30)
            assert await again.syncer.close(5.0)
            assert (keeper.messages[-1].closing, keeper.messages[-1].whole) == (True, True)

    run(main())
