"""The witness and the service: who waits for a raise, and for how long. If these fail, a ConfigMap is why requests are refused.

The witness here is a dict behind a real `await`, that can be slow, away, or refuse: the one on ConfigMaps has its own tests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from stepdown.budget.account import Binding
from stepdown.cluster.errors import Forbidden, Unavailable
from stepdown.ledger import Ledger, errors
from stepdown.model.sync import Ask, LeaseReport, SyncAnswer, SyncRequest
from stepdown.sync.service import HOLD_S, SyncRefused, SyncService, SyncUnavailable

ACCOUNT = "shop/team@0"
LIMIT = 10_000
BINDING = Binding("shop/team", 0, 10**9, LIMIT, True, frozenset({"shop/chat"}))
NOW_S = 100.0


class Notebook:
    """A witness that counts, and does as it is told."""

    def __init__(self) -> None:
        self.marks: dict[str, int] = {}
        self.writes = self.pruned = 0
        self.away: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def read(self) -> Mapping[str, int]:
        await self._answer()
        return dict(self.marks)

    async def raise_to(self, marks: Mapping[str, int]) -> None:
        await self._answer()
        self.writes += 1
        for name, value in marks.items():
            self.marks[name] = max(value, self.marks.get(name, 0))

    async def prune(self, now_s: float) -> int:
        await self._answer()
        self.pruned += 1
        return 0

    async def _answer(self) -> None:
        await self.open.wait()
        if self.away is not None:
            raise self.away


class Shop:
    """A service with a witness, and proxies that speak to it."""

    def __init__(self, path: Path) -> None:
        ledger = Ledger.open(path, create=True)
        ledger.take_epoch("stepdown-0")
        self.notebook = Notebook()
        self.service = SyncService(ledger, lambda: NOW_S, self.notebook)
        self.seqs: dict[str, int] = {}

    def message(self, instance: str, *rungs: int, **lease: int) -> SyncRequest:
        first = instance not in self.seqs
        seq = self.seqs[instance] = self.seqs.get(instance, 0) + 1
        plain = {"granted": 0, "returned": 0, "consumed": 0, "estimated": 0, "reserved": 0, "want": 0}
        report = LeaseReport(account=ACCOUNT, **{**plain, **lease})
        asks = (Ask(id=seq, rungs=tuple({ACCOUNT: rung} for rung in rungs)),) if rungs else ()
        return SyncRequest(instance=instance, fleet="shop/default", seq=seq, asks=asks, leases=(report,), whole=first)

    async def say(self, instance: str, *rungs: int, **lease: int) -> SyncAnswer:
        return await self.service.sync(self.message(instance, *rungs, **lease))

    async def committed(self) -> int:
        return await self.service.call(lambda ledger: ledger.balances(NOW_S)[ACCOUNT].committed_nusd)


Work = Callable[[Shop], Awaitable[None]]


def run(path: Path, work: Work, *, begin: bool = True) -> None:
    async def main() -> None:
        shop = Shop(path)
        try:
            await shop.service.bind([BINDING])
            if begin:
                await shop.service.begin()
            await work(shop)
        finally:
            await shop.service.close()

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_an_ask_is_answered_after_the_raise_that_it_needed(path: Path) -> None:
    """Delayed by one write, never refused for it, and with its best rung."""

    async def work(shop: Shop) -> None:
        answer = await shop.say("a", 900, 10)
        assert answer.asks[0].rung == 0
        assert shop.notebook.marks[ACCOUNT] == 900 + LIMIT // 100

    run(path, work)


def test_others_do_not_wait_for_somebodys_raise(path: Path) -> None:
    """The API server is slow: leases must be renewed and spending taken in all the same."""

    async def work(shop: Shop) -> None:
        await shop.say("a", 10)
        shop.notebook.open.clear()
        slow = asyncio.create_task(shop.say("a", 900))
        await asyncio.sleep(0)
        for _ in range(5):
            assert (await shop.say("b", consumed=3)).verdict == "ok"
        assert not slow.done()
        shop.notebook.open.set()
        assert (await slow).asks[0].rung == 0

    run(path, work)


def test_a_crowd_shares_one_raise_and_keeps_its_order(path: Path) -> None:
    """A thousand requests at once would be a thousand writes; and the last money goes to those who came first."""

    async def work(shop: Shop) -> None:
        for n in range(30):
            await shop.say(f"i{n}", 1)
        writes = shop.notebook.writes
        shop.notebook.open.clear()
        crowd = [asyncio.create_task(shop.say(f"i{n}", 500, granted=1, consumed=1)) for n in range(30)]
        await asyncio.sleep(0.05)
        shop.notebook.open.set()
        answers = await asyncio.gather(*crowd)
        assert [answer.asks[0].rung for answer in answers] == [0] * 19 + [-1] * 11
        assert shop.notebook.writes - writes <= 3

    run(path, work)


def test_while_the_witness_is_away_grants_go_on_up_to_the_marks(path: Path) -> None:
    """An API server that restarts must not stop the fleet; and what it cannot witness is not granted."""

    async def work(shop: Shop) -> None:
        await shop.say("a", 100)
        assert shop.notebook.marks[ACCOUNT] == 200
        shop.notebook.away = Unavailable("connect: refused")
        assert (await shop.say("a", 60, granted=100, consumed=100)).asks[0].rung == 0
        for _ in range(3):
            answer = await shop.say("a", 900, 50, granted=160, consumed=160)
            assert (answer.asks[0].rung, answer.asks[0].recoverable) == (-1, True)
        answer = await shop.say("a", 900, 40, granted=160, consumed=160)
        assert answer.asks[0].rung == 1, "a cheaper rung is better than none"
        assert (
            "the witness cannot be raised: connect: refused. Until then grants go on up to its marks" in shop.service.standstill
        )
        assert await shop.committed() == 200
        shop.notebook.away = None
        for _ in range(200):
            answer = await shop.say("b", 900)
            if answer.asks[0].rung == 0:
                break
            await asyncio.sleep(0.02)
        assert answer.asks[0].rung == 0, "it recovers by itself"
        assert shop.service.standstill == ""

    run(path, work)


def test_a_witness_that_hangs_delays_an_ask_no_longer_than_a_second(path: Path) -> None:
    """A proxy gives a message up after two: then it would take the keeper for away, and serve worse."""

    async def work(shop: Shop) -> None:
        await shop.say("a", 100)
        shop.notebook.open.clear()
        began = asyncio.get_running_loop().time()
        answer = await shop.say("a", 900, 90, granted=100, consumed=100)
        assert asyncio.get_running_loop().time() - began >= HOLD_S
        assert answer.asks[0].rung == 1
        for _ in range(5):
            assert (await shop.say("a", 900, granted=190, consumed=190)).asks[0].recoverable
        assert asyncio.get_running_loop().time() - began < 2 * HOLD_S, "one has waited in vain: the others need not"
        shop.notebook.open.set()
        await asyncio.sleep(0.05)
        assert (await shop.say("a", 900, granted=190, consumed=190)).asks[0].rung == 0

    run(path, work)


def test_a_witness_that_may_not_be_read_grants_nothing_until_it_may(path: Path) -> None:
    """RBAC was taken away. What was spent is still taken in, and it says what is wrong."""

    async def work(shop: Shop) -> None:
        shop.notebook.away = Forbidden("configmaps stepdown-witness: forbidden")
        await shop.service.begin()
        answer = await shop.say("a", 10, consumed=3)
        assert (answer.asks[0].rung, answer.asks[0].recoverable) == (-1, True)
        assert "the witness cannot be read: configmaps stepdown-witness: forbidden" in shop.service.standstill
        assert await shop.committed() == 3
        shop.notebook.away = None
        for _ in range(200):
            if (await shop.say("a", 10, granted=3, consumed=3)).asks[0].rung == 0:
                break
            await asyncio.sleep(0.02)
        assert shop.service.standstill == ""
        assert shop.notebook.marks["epoch"] == 1

    run(path, work, begin=False)


def test_nothing_is_granted_by_a_service_that_was_never_begun(path: Path) -> None:
    """Forgetting one line must not take the guard away."""

    async def work(shop: Shop) -> None:
        assert (await shop.say("a", 10)).asks[0].rung == -1
        assert shop.service.standstill

    run(path, work, begin=False)


def test_idle_proxies_write_nothing(path: Path) -> None:
    """An idle hour makes no writes but Leases."""

    async def work(shop: Shop) -> None:
        await shop.say("a", 100)
        await shop.say("a", granted=100, consumed=20)
        writes = shop.notebook.writes
        for _ in range(50):
            await shop.say("a", granted=100, consumed=20)
        assert shop.notebook.writes == writes
        assert shop.notebook.pruned == 1, "once a day, with something else to write"

    run(path, work)


def test_who_waits_when_the_service_closes_is_answered(path: Path) -> None:
    """A shutdown must not leave a proxy hanging, nor grant what is not witnessed."""

    async def work(shop: Shop) -> None:
        await shop.say("a", 100)
        shop.notebook.open.clear()
        waiting = asyncio.create_task(shop.say("a", 900, granted=100, consumed=100))
        await asyncio.sleep(0.05)
        await shop.service.close()
        assert (await waiting).asks[0].rung == -1
        with pytest.raises(SyncUnavailable):
            await shop.say("a", 1)

    run(path, work)


def test_one_bad_message_does_not_spoil_those_that_wait(path: Path) -> None:
    """The batch is split: who is held back must not be failed with it."""

    async def work(shop: Shop) -> None:
        await shop.say("a", 100)
        bad = shop.message("b", consumed=1)
        bad = msgspec.structs.replace(bad, leases=(msgspec.structs.replace(bad.leases[0], account="rubbish"),))
        results = await asyncio.gather(
            shop.say("a", 900, granted=100, consumed=100), shop.service.sync(bad), shop.say("c", 300), return_exceptions=True
        )
        assert isinstance(results[1], SyncRefused)
        assert [each.asks[0].rung for each in results if isinstance(each, SyncAnswer)] == [0, 0]

    run(path, work)


def test_a_leader_that_has_been_overtaken_says_so_to_whoever_binds(path: Path) -> None:
    """It must stop, not go on publishing what nobody guards."""

    async def work(shop: Shop) -> None:
        other = Ledger.open(path, create=False, beside=True)
        other.take_epoch("stepdown-1")
        with pytest.raises(errors.LedgerFenced):
            await shop.service.bind([])
        with pytest.raises(SyncUnavailable, match="stepdown-1 took epoch 2"):
            await shop.say("a", 10)
        other.close()

    run(path, work)
