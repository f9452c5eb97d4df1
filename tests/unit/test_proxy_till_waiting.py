"""Requests that wait for money: asked, served in order, refused only when nothing can help. In virtual time."""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stepdown.model.config import Ladder, account_id
from stepdown.model.sync import AskAnswer, SyncAnswer, SyncRequest
from stepdown.proxy.hold import Hold, Usage
from stepdown.proxy.lease import Lease
from stepdown.proxy.refusal import Refused
from stepdown.proxy.shape import RequestShape
from tests.unit.proxy_money import (
    BIG,
    EDGE_S,
    MID,
    NOW_S,
    SMALL,
    START_S,
    TEAM,
    TEAM_NEXT,
    Keeper,
    Proxy,
    budget,
    fleet,
    only,
    route,
    run,
    shape,
    shards,
    table,
)

ONE_TOKEN = Usage(1, 0, 0)


async def get(proxy: Proxy, wanted: RequestShape | None = None, name: str = "shop/chat", **more: Any) -> Hold:
    """As `exchange` does it: the fast path, then the slow one."""
    entry = only(proxy.till, name)
    wanted = wanted or shape()
    request_class = more.pop("request_class", "default")
    hold = proxy.till.admit(entry, request_class, wanted, **more)
    return hold or await proxy.till.admit_later(entry, request_class, wanted, **more)


def later(proxy: Proxy, wanted: RequestShape | None = None, name: str = "shop/chat", **more: Any) -> asyncio.Task[Hold]:
    return asyncio.create_task(get(proxy, wanted, name, **more))


async def refused(task: "asyncio.Task[Hold]") -> Refused:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value


def pay(proxy: Proxy, hold: Hold, nusd: int = 1) -> None:
    """Input tokens cost 1 nUSD each on every rung."""
    proxy.till.settle(hold, Usage(nusd, 0, 0), success=True)


def lease(proxy: Proxy, account: str = TEAM) -> Lease:
    return proxy.till.books.lease(account)


def proxy_with(path: Path, limit: int, **more: Any) -> Proxy:
    loop = asyncio.get_running_loop()
    keeper = Keeper({TEAM: limit}, now_s=lambda: NOW_S + loop.time() - 10_000.0)
    return Proxy(path, more.pop("config", None) or table(fleet=fleet(**more)), keeper)


def test_a_first_request_asks_and_is_granted_the_wanted_rung(tmp_path: Path) -> None:
    """A proxy that has just started holds no lease: every budgeted route would be refused."""

    async def main() -> None:
        async with proxy_with(tmp_path, 1_000) as proxy:
            hold = await get(proxy)
            assert (hold.rung.name, hold.reason) == ("big", "Wanted")
            assert proxy.keeper.committed(TEAM) == BIG
            pay(proxy, hold, 20)
            again = proxy.till.admit(proxy.route, "default", shape(8, 8))
            assert again is not None, "what came back is used again without another message"

    run(main())


@pytest.mark.parametrize(("limit", "rung"), [(BIG - 1, "mid"), (MID - 1, "small")])
def test_near_the_ceiling_the_best_rung_that_fits_is_served(tmp_path: Path, limit: int, rung: str) -> None:
    """Promise 2: not an error, and not the cheapest either."""

    async def main() -> None:
        async with proxy_with(tmp_path, limit) as proxy:
            hold = await get(proxy)
            assert (hold.rung.name, hold.reason) == (rung, "BudgetFit")

    run(main())


def test_a_spent_budget_refuses_at_once_with_its_numbers(tmp_path: Path) -> None:
    """Nobody should wait five seconds for money that cannot come; and the error must say which budget, how much, until when."""

    async def main() -> None:
        async with proxy_with(tmp_path, SMALL - 1) as proxy:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            error = await refused(later(proxy))
            assert loop.time() - began_s < 0.1
            assert (error.code, error.budget) == ("budget_exhausted", "shop/team")
            assert (error.limit_nusd, error.spent_nusd, error.remaining_nusd) == (SMALL - 1, 0, SMALL - 1)
            assert (error.needed_nusd, error.resets_at_s) == (SMALL, EDGE_S)
            assert error.retry_after_s is not None
            assert EDGE_S - NOW_S - 2 < error.retry_after_s <= EDGE_S - NOW_S + 1
            assert "2026-12-01T00:00:00Z" in error.message
            assert "0.000000019 USD left" in error.message
            assert proxy.till.refusals == {"budget_exhausted": 1}

    run(main())


@pytest.mark.parametrize(("cost", "rung"), [(0, "big"), (BIG - MID, "mid"), (BIG - SMALL, "small")])
def test_a_request_waits_for_what_is_in_flight_and_takes_it(tmp_path: Path, cost: int, rung: str) -> None:
    """Worst cases are far above costs: refusing while they are held would waste most of a small budget."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG) as proxy:
            first = await get(proxy)
            waiting = later(proxy)
            await asyncio.sleep(1)
            assert not waiting.done()
            pay(proxy, first, cost)
            assert (await waiting).rung.name == rung
            assert lease(proxy).reserved + lease(proxy).consumed <= BIG

    run(main())


def test_the_wait_is_bounded_and_says_that_it_may_help_to_come_back(tmp_path: Path) -> None:
    """A client would hang for as long as the longest stream."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG, wait_s=3.0) as proxy:
            hold = await get(proxy)
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            error = await refused(later(proxy))
            assert 2.9 < loop.time() - began_s < 3.1
            assert (error.code, error.retry_after_s, error.remaining_nusd) == ("budget_exhausted", 1, 0)
            assert lease(proxy).asking == 0
            assert len(proxy.till.queue) == 0
            pay(proxy, hold)

    run(main())


def test_money_that_comes_back_goes_to_those_who_came_first(tmp_path: Path) -> None:
    """Under pressure late requests would pass early ones, until their wait is over."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG) as proxy:
            hold = await get(proxy)
            order: list[str] = []
            waiting = []
            for name in ("first", "second", "third"):
                task = later(proxy, shape(100, 1))
                task.add_done_callback(lambda _, name=name: order.append(name))
                waiting.append(task)
                await asyncio.sleep(0.3)
            proxy.till.release(hold, attempted=False)
            for task in waiting:
                pay(proxy, await task, 1)
            assert order == ["first", "second", "third"]

    run(main())


def test_one_large_request_does_not_stand_in_the_way_of_small_ones(tmp_path: Path) -> None:
    """One 100k-token prompt would block a team's whole traffic for five seconds."""

    async def main() -> None:
        async with proxy_with(tmp_path, 3 * BIG) as proxy:
            held = [await get(proxy) for _ in range(3)]
            large = later(proxy, shape(300, 5))
            await asyncio.sleep(0.3)
            small = [later(proxy) for _ in range(2)]
            await asyncio.sleep(0.3)
            pay(proxy, held[0], 1)
            await asyncio.sleep(0.01)
            assert not large.done()
            assert small[0].done()
            assert small[0].result().rung.name == "mid"
            large.cancel()
            await asyncio.gather(large, return_exceptions=True)
            for hold in (held[1], held[2], await small[0]):
                pay(proxy, hold, 1)
            pay(proxy, await small[1], 1)

    run(main())


def test_newcomers_do_not_take_what_was_asked_for(tmp_path: Path) -> None:
    """A stream of small requests would starve a larger one for ever, each time that its money is on the way."""

    async def main() -> None:
        async with proxy_with(tmp_path, 200) as proxy:
            pay(proxy, await get(proxy, shape(100, 0)), 1)
            assert lease(proxy).free == 99
            proxy.keeper.gate = asyncio.Event()
            large = later(proxy, shape(110, 0))
            await asyncio.sleep(0.01)
            assert lease(proxy).asking == 1
            newcomer = later(proxy, shape(60, 0))
            await asyncio.sleep(0.01)
            assert not newcomer.done(), "it would fit the own lease, and the keeper has counted on that"
            proxy.keeper.gate.set()
            assert (await large).amount_nusd == 110
            assert (await newcomer).amount_nusd == 60

    run(main())


def test_a_lease_of_another_budget_is_not_held_up(tmp_path: Path) -> None:
    """One team that waits for its money would slow every other team."""

    async def main() -> None:
        config = table(
            [route(), route("shop/other", budgets=("shop/two",))], budgets=[budget(), budget("shop/two")], fleet=fleet()
        )
        proxy = proxy_with(tmp_path, 1_000, config=config)
        two = account_id("shop/two", START_S)
        proxy.keeper.limits[two] = 1_000
        async with proxy:
            pay(proxy, await get(proxy, name="shop/other"), 1)
            proxy.keeper.gate = asyncio.Event()
            waiting = later(proxy)
            await asyncio.sleep(0.01)
            hold = proxy.till.admit(only(proxy.till, "shop/other"), "default", shape(5, 5))
            assert hold is not None
            proxy.keeper.gate.set()
            await waiting

    run(main())


@pytest.mark.parametrize("when_s", [0.0, 0.0005, 0.5])
def test_a_client_that_goes_away_leaves_no_trace(tmp_path: Path, when_s: float) -> None:
    """Each impatient client would keep its reservation for ever: phantom spend."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG) as proxy:
            hold = await get(proxy)
            waiting = later(proxy)
            await asyncio.sleep(when_s)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert len(proxy.till.queue) == 0
            assert lease(proxy).asking == 0
            pay(proxy, hold, 1)
            assert lease(proxy).reserved == 0
            assert (await get(proxy, shape(BIG - 1, 0))).amount_nusd == BIG - 1

    run(main())


def test_a_client_that_goes_away_as_it_is_served_gives_the_money_back(tmp_path: Path) -> None:
    """The hold would belong to nobody, and never end."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG) as proxy:
            hold = await get(proxy)
            waiting = later(proxy)
            behind = later(proxy)
            await asyncio.sleep(0.5)
            proxy.till.release(hold, attempted=False)  # serves `waiting`, whose task has not run yet
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert waiting.cancelled()
            served = await behind
            assert served.rung.name == "big"
            assert list(proxy.till.books.open.values()) == [served]

    run(main())


def test_tickets_of_many_requests_travel_together(tmp_path: Path) -> None:
    """200 clients at once would be 200 messages, one after the other."""

    async def main() -> None:
        async with proxy_with(tmp_path, 10_000) as proxy:
            before = len(proxy.keeper.messages)
            holds = await asyncio.gather(*(later(proxy, shape(10, 1)) for _ in range(200)))
            assert len(proxy.keeper.messages) - before <= 3
            assert len({hold.id for hold in holds}) == 200
            assert proxy.keeper.committed(TEAM) == sum(hold.amount_nusd for hold in holds)

    run(main())


def test_a_lost_answer_is_asked_for_again_and_granted_once(tmp_path: Path) -> None:
    """The ledger granted it; asked a second time as another ticket, the money would be held twice."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG) as proxy:
            proxy.keeper.lose_answers = 1
            hold = await get(proxy)
            assert hold.rung.name == "big"
            ids = {ask.id for message in proxy.keeper.messages for ask in message.asks}
            assert len(ids) == 1
            assert proxy.keeper.committed(TEAM) == BIG

    run(main())


def test_a_keeper_that_is_away_is_not_waited_for_where_a_lower_rung_is_at_hand(tmp_path: Path) -> None:
    """Promise 2 during an outage of the operator: the answer comes, from what the proxy holds."""

    async def main() -> None:
        async with proxy_with(tmp_path, 1_000) as proxy:
            hold = await get(proxy)
            pay(proxy, hold, BIG - MID)
            proxy.keeper.lose_messages = 10**6
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            served = await get(proxy)
            assert (served.rung.name, served.reason) == ("mid", "BudgetFit")
            assert loop.time() - began_s < 0.1
            error = await refused(later(proxy))
            assert (error.code, error.budget, error.needed_nusd) == ("ledger_unreachable", "shop/team", SMALL)

    run(main())


def test_a_keeper_that_comes_back_serves_those_who_wait(tmp_path: Path) -> None:
    """An operator's restart takes a second or two: no request need fail for it."""

    async def main() -> None:
        async with proxy_with(tmp_path, 1_000) as proxy:
            proxy.keeper.lose_messages = 4
            assert (await get(proxy)).rung.name in ("big", "mid", "small")
            assert proxy.syncer.failures == 4

    run(main())


def test_money_from_elsewhere_ends_a_wait(tmp_path: Path) -> None:
    """Another proxy's idle lease comes back through the keeper only."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG) as proxy:
            proxy.keeper.foreign[TEAM] = BIG
            proxy.keeper.recoverable = True
            waiting = later(proxy)
            await asyncio.sleep(2)
            assert not waiting.done()
            proxy.keeper.foreign[TEAM] = 0
            began_s = asyncio.get_running_loop().time()
            await waiting
            assert asyncio.get_running_loop().time() - began_s < 0.3

    run(main())


def test_a_request_that_waits_over_midnight_is_charged_to_the_new_month(tmp_path: Path) -> None:
    """It would be refused for last month's sake, or charged to a month that is closed."""

    async def main() -> None:
        proxy = proxy_with(tmp_path, SMALL)
        proxy.keeper.limits[TEAM_NEXT] = 1_000
        offset_s = EDGE_S - NOW_S - 2.0
        now_s = proxy.keeper.now_s
        proxy.keeper.now_s = lambda: now_s() + offset_s
        async with proxy:
            hold = await get(proxy)
            assert hold.rung.name == "small"
            served = await later(proxy)
            assert served.rung.name == "big"
            assert [each.account for each in served.tab.leases] == [TEAM_NEXT]
            assert served.admitted_s >= EDGE_S

    run(main())


def test_a_request_that_waits_is_judged_by_the_config_in_force(tmp_path: Path) -> None:
    """A budget that was raised or a route that was unbound would refuse for five more seconds."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG) as proxy:
            await get(proxy)
            waiting = later(proxy)
            await asyncio.sleep(0.5)
            assert not waiting.done()
            assert proxy.till.table is not None
            proxy.till.swap(proxy.till.table.replace(None, shards([route(budgets=())])))
            hold = await waiting
            assert hold.tab.leases == ()

    run(main())


def test_a_critical_request_that_waits_does_not_pass_its_share(tmp_path: Path) -> None:
    """Two that wait would both get the one premium answer that was earned."""

    async def main() -> None:
        ladder = Ladder(rungs=("big", "mid", "small"))
        config = table([route(more={"critical": ladder}, rungs=["mid", "small"], premium_max_share_percent=50)], fleet=fleet())
        async with proxy_with(tmp_path, 1_000, config=config) as proxy:
            pay(proxy, await get(proxy, shape(1, 1)), 1)
            proxy.till.log.give_back(TEAM, lease(proxy).granted)
            both = await asyncio.gather(*(later(proxy, request_class="critical") for _ in range(2)))
            assert sorted(hold.rung.name for hold in both) == ["big", "mid"]

    run(main())


class Checker:
    """Watches an account from outside: after each change, what a refused request could have had."""

    def __init__(self, proxy: Proxy, limit: int) -> None:
        self.proxy, self.limit = proxy, limit
        self.left: list[tuple[float, int]] = []

    def look(self) -> None:
        mine = lease(self.proxy)
        self.left.append((asyncio.get_running_loop().time(), self.limit - mine.consumed - mine.reserved))

    def most_since(self, moment_s: float) -> int:
        before = [left for at_s, left in self.left if at_s <= moment_s][-1:]
        return max(before + [left for at_s, left in self.left if at_s > moment_s])


@pytest.mark.parametrize(("latency_s", "seed"), [(0.2, 1), (1.0, 2), (5.0, 3)])
def test_two_hundred_clients_spend_a_small_budget_to_the_last_rung(tmp_path: Path, latency_s: float, seed: int) -> None:
    """No refusal while there was room, nothing above the limit, and nothing left at the end that a request could have used."""
    limit = 20_000
    rng = random.Random(seed)

    async def main() -> None:
        async with proxy_with(tmp_path, limit) as proxy:
            checker = Checker(proxy, limit)
            checker.look()
            loop = asyncio.get_running_loop()

            async def client() -> None:
                while True:
                    began_s = loop.time()
                    wanted = shape(10 * rng.randint(1, 3), 10 * rng.randint(1, 3))
                    try:
                        hold = await get(proxy, wanted)
                    except Refused as error:
                        assert error.code == "budget_exhausted"
                        assert error.needed_nusd is not None
                        assert checker.most_since(began_s) < error.needed_nusd
                        if not proxy.till.books.open:
                            return
                        continue
                    checker.look()
                    await asyncio.sleep(latency_s * rng.uniform(0.5, 1.0))
                    outcome = rng.random()
                    if outcome < 0.05:
                        proxy.till.settle(hold, None, success=False)
                    elif outcome < 0.1:
                        proxy.till.release(hold, attempted=True)
                    else:
                        part = rng.random()
                        output = int((hold.max_tokens or 0) * part)
                        proxy.till.settle(hold, Usage(int(wanted.input_tokens_bound * part), 0, output), success=True)
                    checker.look()

            await asyncio.gather(*(client() for _ in range(200)))
            mine = lease(proxy)
            assert mine.reserved == 0
            assert mine.consumed <= limit
            assert limit - mine.consumed < 3 * SMALL, "a request was refused that had room"
            assert all(left >= 0 for _, left in checker.left)
            assert {hold.model for hold in proxy.till.books.counters} == {"big", "mid", "small"}

    run(main())


def test_an_answer_for_another_message_changes_nothing(tmp_path: Path) -> None:
    """An old answer that arrives late would grant what has been returned since."""

    async def main() -> None:
        keeper = Keeper({TEAM: 1_000})
        late: list[SyncAnswer] = []

        async def reordering(request: SyncRequest) -> SyncAnswer:
            late.append(await keeper.sync(request))
            return late[-2] if len(late) % 2 == 0 else late[-1]

        async with Proxy(tmp_path, keeper=keeper, wire=reordering) as proxy:
            completed = proxy.syncer.completed
            holds = [await get(proxy, shape(10, 1)) for _ in range(5)]
            assert proxy.syncer.completed > completed
            assert lease(proxy).granted <= 1_000
            for hold in holds:
                pay(proxy, hold, 1)

    run(main())


def test_the_last_of_an_account_is_gathered_where_it_is_waited_for(tmp_path: Path) -> None:
    """Split between keeper and proxy, the rest of a budget would fit nobody, or fit only after another message."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG + SMALL - 1) as proxy:
            hold = await get(proxy)
            waiting = later(proxy)
            await asyncio.sleep(0.5)
            assert lease(proxy).granted == BIG + SMALL - 1
            pay(proxy, hold, BIG - 1)
            assert lease(proxy).reserved == SMALL, "served within the settlement, without a message"
            assert (await waiting).rung.name == "small"

    run(main())


def test_only_what_is_short_is_gathered(tmp_path: Path) -> None:
    """A part of the budget of all would wait here for the other budget's money, and be missing to who needs no other."""

    async def main() -> None:
        routes = [route(budgets=("shop/team", "shop/all")), route("shop/batch", budgets=("shop/all",))]
        config = table(routes, budgets=[budget(), budget("shop/all")], fleet=fleet())
        proxy = proxy_with(tmp_path, BIG + SMALL - 1, config=config)
        all_ = account_id("shop/all", START_S)
        proxy.keeper.limits[all_] = BIG + SMALL + MID - 1
        async with proxy:
            hold = await get(proxy)
            waiting = later(proxy)
            await asyncio.sleep(0.5)
            assert lease(proxy).free == SMALL - 1
            assert lease(proxy, all_).free == 0
            assert (await get(proxy, name="shop/batch")).rung.name == "mid"
            proxy.till.release(hold, attempted=False)
            assert (await waiting).rung.name == "big"

    run(main())


def test_what_was_gathered_is_not_asked_for_again(tmp_path: Path) -> None:
    """A ticket's money is not recalled: repeated, it would keep the last of a budget from whom it serves elsewhere."""

    async def main() -> None:
        config = table([route(budgets=("shop/team", "shop/all"))], budgets=[budget(), budget("shop/all")], fleet=fleet())
        proxy = proxy_with(tmp_path, BIG + SMALL - 1, config=config)
        proxy.keeper.limits[account_id("shop/all", START_S)] = 10_000
        async with proxy:
            hold = await get(proxy)
            waiting = later(proxy)
            await asyncio.sleep(2.0)
            assert not waiting.done()
            asks = [ask for message in proxy.keeper.messages for ask in message.asks]
            assert len(asks) > 5, "it goes on asking for what serves it"
            assert sum(len(ask.rungs) > 3 for ask in asks) == 1, "though the other budget has plenty left"
            pay(proxy, hold, BIG - 1)
            assert (await waiting).rung.name == "small"

    run(main())


def test_what_was_recalled_is_not_gathered_at_once_again(tmp_path: Path) -> None:
    """Two proxies would take the last of a budget from each other, and who it serves would find none of it when he asks."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG + SMALL - 1) as proxy:
            hold = await get(proxy)
            waiting = later(proxy)
            await asyncio.sleep(0.3)
            assert lease(proxy).free == SMALL - 1
            proxy.keeper.recall[TEAM] = SMALL - 1
            await asyncio.sleep(0.5)
            assert lease(proxy).free == 0, "it stays with the keeper for a while"
            await asyncio.sleep(1.0)
            assert lease(proxy).free == SMALL - 1, "nobody has come for it"
            pay(proxy, hold, BIG - 1)
            await waiting

    run(main())


def test_a_keeper_that_may_not_grant_is_not_flooded(tmp_path: Path) -> None:
    """While the witness cannot be raised it says "not now" and shows money: every proxy would ask as fast as it answers."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        keeper = Keeper({TEAM: 1_000}, now_s=lambda: NOW_S + loop.time() - 10_000.0)
        asked = 0

        async def not_now(request: SyncRequest) -> SyncAnswer:
            nonlocal asked
            asked += len(request.asks)
            said = await keeper.sync(msgspec.structs.replace(request, asks=()))
            no = tuple(AskAnswer(id=ask.id, rung=-1, recoverable=True) for ask in request.asks)
            return msgspec.structs.replace(said, asks=no)

        async with Proxy(tmp_path, table(fleet=fleet(wait_s=3.0)), keeper, wire=not_now) as proxy:
            error = await refused(later(proxy))
            assert error.retry_after_s == 1, "it may help to come back"
            assert 10 < asked < 20, "five a second"

    run(main())


def test_a_recall_is_obeyed_though_somebody_waits_here(tmp_path: Path) -> None:
    """The keeper alone knows whether it serves somebody elsewhere (`test_ledger_recall`); here it serves nobody yet."""

    async def main() -> None:
        async with proxy_with(tmp_path, BIG + SMALL - 1) as proxy:
            await get(proxy)
            hold = await get(proxy, shape(SMALL - 1, 0))
            waiting = later(proxy)
            await asyncio.sleep(0.5)
            proxy.till.release(hold, attempted=False)
            proxy.keeper.recall[TEAM] = 5
            await asyncio.sleep(0.5)
            assert not waiting.done()
            assert lease(proxy).returned == 5
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    run(main())
