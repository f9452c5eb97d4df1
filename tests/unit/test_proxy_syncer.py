"""Sync keeps leases alive and no longer than allowed, brings config and money, and loses nothing on a bad wire."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepdown.model.config import digest, shard_of
from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.hold import Hold, Usage
from stepdown.proxy.lease import Lease
from stepdown.proxy.refusal import Refused
from stepdown.proxy.syncer import SyncUnavailable
from tests.unit.proxy_money import (
    BIG,
    EDGE_S,
    MID,
    TEAM,
    TEAM_NEXT,
    Keeper,
    Proxy,
    VirtualLoop,
    budget,
    fleet,
    only,
    route,
    run,
    shape,
    shards,
    table,
)

ROUTE_SHARD = shard_of("shop/chat")


def lease(proxy: Proxy, account: str = TEAM) -> Lease:
    return proxy.till.books.lease(account)


async def get(proxy: Proxy) -> Hold:
    return proxy.till.admit(proxy.route, "default", shape()) or await proxy.till.admit_later(proxy.route, "default", shape())


def pay(proxy: Proxy, hold: Hold, nusd: int) -> None:
    proxy.till.settle(hold, Usage(nusd, 0, 0), success=True)


def test_messages_go_once_a_second_and_at_once_when_money_is_needed(tmp_path: Path) -> None:
    """A storm of messages would take the ledger down; a slow one would delay the first request by a second."""

    async def main() -> None:
        async with Proxy(tmp_path) as proxy:
            await asyncio.sleep(10)
            assert 8 <= len(proxy.keeper.messages) <= 12
            began_s = asyncio.get_running_loop().time()
            await get(proxy)
            assert asyncio.get_running_loop().time() - began_s < 0.01
            seqs = [message.seq for message in proxy.keeper.messages]
            assert seqs == sorted(set(seqs))

    run(main())


def test_a_report_says_what_was_spent_and_is_repeated_until_it_is_heard(tmp_path: Path) -> None:
    """A lost message would lose its requests for the bill and for the steps."""

    async def main() -> None:
        async with Proxy(tmp_path) as proxy:
            pay(proxy, await get(proxy), 30)
            proxy.keeper.lose_messages = 2
            proxy.keeper.lose_answers = 1
            await asyncio.sleep(10)
            counted = [message for message in proxy.keeper.messages if message.counters]
            assert len(counted) == 2, "heard once without the answer, once with it"
            for message in counted:
                ((report,), (counter,)) = message.leases, message.counters
                assert (report.consumed, report.estimated, report.reserved) == (30, 0, 0)
                assert (counter.requests, counter.cost_nusd) == (1, 30)
            assert proxy.keeper.messages[-1].counters == (), "what was heard is not said again"
            assert proxy.keeper.spent(TEAM) == 30

    run(main())


def test_a_lease_dies_one_horizon_after_the_sending_of_the_last_acknowledged_message(tmp_path: Path) -> None:
    """Counted from the answer, a slow wire would let a proxy spend money that the keeper has given to others."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Proxy(tmp_path, table(fleet=fleet(lease_horizon_s=60.0))) as proxy:
            hold = await get(proxy)
            pay(proxy, hold, 1)
            proxy.keeper.latency_s = 0.5
            await asyncio.sleep(3)
            sent_s = proxy.syncer.last_acknowledged_s
            assert sent_s is not None
            proxy.keeper.lose_messages = 10**9
            assert proxy.till.deadline_s == sent_s + 60.0
            await asyncio.sleep(sent_s + 59.9 - loop.time())
            assert proxy.till.deadline_s == sent_s + 60.0, "a message that is not acknowledged extends nothing"
            alive = proxy.till.admit(proxy.route, "default", shape(9, 9))
            assert alive is not None
            pay(proxy, alive, 1)
            await asyncio.sleep(0.2)
            assert proxy.till.admit(proxy.route, "default", shape(9, 9)) is None
            with pytest.raises(Refused) as refused:
                await proxy.till.admit_later(proxy.route, "default", shape(9, 9))
            assert refused.value.code == "ledger_unreachable"
            proxy.keeper.lose_messages = 0
            await asyncio.sleep(2)
            assert (await get(proxy)).rung.name == "big"

    run(main())


def test_an_answer_that_is_found_after_a_pause_is_none(tmp_path: Path) -> None:
    """It is as old as the pause: another keeper, with another ledger, may have given that money to somebody else since."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        keeper = Keeper()
        pauses_s: list[float] = []

        async def wire(request: SyncRequest) -> SyncAnswer:
            answer = keeper.answer(request)
            if pauses_s:
                loop.virtual_s += pauses_s.pop()
            return answer

        async with Proxy(tmp_path, keeper=keeper, wire=wire) as proxy:
            pauses_s.append(3.0)
            waiting = asyncio.create_task(get(proxy))
            await asyncio.sleep(0.001)
            assert proxy.syncer.failures == 1
            assert (keeper.committed(TEAM), lease(proxy).granted) == (BIG, 0)
            assert (await waiting).rung.name == "big", "the next answer says that it was granted"
            assert keeper.committed(TEAM) == lease(proxy).granted == BIG

    run(main())


def test_a_recall_takes_what_nothing_has_reserved_and_is_logged_before_it_is_said(tmp_path: Path) -> None:
    """Given back after it was reserved, money would be spent twice; said before it is logged, a crash would spend it again."""

    async def main() -> None:
        async with Proxy(tmp_path) as proxy:
            first, _second = await get(proxy), await get(proxy)
            pay(proxy, first, 10)
            assert lease(proxy).free == BIG - 10
            proxy.keeper.recall[TEAM] = 500
            await asyncio.sleep(2)
            assert (lease(proxy).free, lease(proxy).returned, lease(proxy).reserved) == (0, BIG - 10, BIG)
            assert proxy.keeper.committed(TEAM) == BIG + 10
            instance = proxy.state.instance
            proxy.stop()
            again = Proxy(tmp_path, keeper=proxy.keeper)
            assert again.state.instance == instance
            assert lease(again).returned == BIG - 10
            again.stop()

    run(main())


def test_money_that_is_wanted_by_a_waiting_request_is_not_given_back_first(tmp_path: Path) -> None:
    """A recall in the same answer as a grant would refuse the one whom the grant was for."""

    async def main() -> None:
        async with Proxy(tmp_path) as proxy:
            pay(proxy, await get(proxy), 0)
            proxy.keeper.recall[TEAM] = 500
            hold = await proxy.till.admit_later(proxy.route, "default", shape(20, 10))
            assert hold.rung.name == "big"

    run(main())


def test_the_idle_headroom_wanted_follows_the_traffic(tmp_path: Path) -> None:
    """Without any every request asks; with too much a month's rest lies idle at one proxy."""

    async def main() -> None:
        async with Proxy(tmp_path, keeper=Keeper({TEAM: 10**9})) as proxy:
            proxy.keeper.idle = 10**6
            for _ in range(100):
                pay(proxy, await get(proxy), 1)
                await asyncio.sleep(0.1)
            want = proxy.keeper.messages[-1].leases[0].want
            assert BIG * 10 <= want <= BIG * 25, "about two seconds of ten requests a second"
            asked = sum(len(message.asks) for message in proxy.keeper.messages)
            assert asked < 15, "once there is headroom, requests do not ask"
            await asyncio.sleep(60)
            assert proxy.keeper.messages[-1].leases[0].want == 0

    run(main())


def test_a_fenced_instance_takes_a_new_name_and_loses_no_spend(tmp_path: Path) -> None:
    """The keeper thought it dead. What it has spent since, and what is in flight, must be on somebody's account."""

    async def main() -> None:
        async with Proxy(tmp_path) as proxy:
            settled, open_ = await get(proxy), await get(proxy)
            pay(proxy, settled, 10)
            await asyncio.sleep(2)
            old = proxy.state.instance
            later = await get(proxy)
            pay(proxy, later, 5)
            proxy.keeper.instances[old].closed = True
            await asyncio.sleep(2)
            new = proxy.state.instance
            assert new != old
            assert proxy.syncer.fenced == 1
            pay(proxy, open_, 7)
            await asyncio.sleep(2)
            assert proxy.keeper.instances[old].leases[TEAM].consumed == 10
            assert proxy.keeper.instances[new].leases[TEAM].consumed == 12
            assert proxy.keeper.spent(TEAM) == 22
            assert (await get(proxy)).rung.name == "big"
            assert proxy.keeper.committed(TEAM) <= 1_000

    run(main())


def test_those_who_wait_while_the_instance_is_fenced_are_served_under_the_new_name(tmp_path: Path) -> None:
    """Their tickets were asked under an id that nobody answers any more."""

    async def main() -> None:
        async with Proxy(tmp_path) as proxy:
            pay(proxy, await get(proxy), 1)
            await asyncio.sleep(2)
            proxy.keeper.instances[proxy.state.instance].closed = True
            hold = await proxy.till.admit_later(proxy.route, "default", shape(20, 10))
            assert hold.rung.name == "big"
            assert proxy.syncer.fenced == 1
            assert lease(proxy).asking == 0

    run(main())


def test_an_instance_fenced_right_after_a_restart_does_not_report_everything_twice(tmp_path: Path) -> None:
    """A month of spend would be charged a second time under the new name."""

    async def main() -> None:
        keeper = Keeper({TEAM: 10_000})
        async with Proxy(tmp_path, keeper=keeper) as proxy:
            pay(proxy, await get(proxy), 50)
            await asyncio.sleep(2)
            old = proxy.state.instance
        keeper.instances[old].closed = True
        async with Proxy(tmp_path, keeper=keeper) as proxy:
            assert proxy.state.resumed
            await asyncio.sleep(2)
            assert proxy.state.instance != old
            assert keeper.spent(TEAM) == 50

    run(main())


def test_a_killed_proxy_reports_what_was_in_flight_as_estimated(tmp_path: Path) -> None:
    """A crash would make requests free that the upstream bills."""

    async def main() -> None:
        keeper = Keeper({TEAM: 10_000})
        async with Proxy(tmp_path, keeper=keeper) as proxy:
            await get(proxy)
            pay(proxy, await get(proxy), 20)
            await asyncio.sleep(2)
        async with Proxy(tmp_path, keeper=keeper) as proxy:
            await asyncio.sleep(2)
            (instance,) = keeper.instances.values()
            report = instance.leases[TEAM]
            assert (report.consumed, report.estimated, report.reserved) == (BIG + 20, BIG, 0)
            assert len(keeper.instances) == 1

    run(main())


def test_a_drained_proxy_closes_its_lease_even_if_the_keeper_is_away_for_a_while(tmp_path: Path) -> None:
    """Each rollout would leave a lease behind that nobody may use until it dies."""

    async def main() -> None:
        proxy = Proxy(tmp_path)
        async with proxy:
            pay(proxy, await get(proxy), 10)
            await get(proxy)
            proxy.keeper.lose_messages = 5
            assert await proxy.syncer.close(30.0)
            assert proxy.keeper.committed(TEAM) == 10 + BIG, "what is still in flight is charged"
            old = proxy.state.instance
        again = Proxy(tmp_path, keeper=proxy.keeper)
        assert again.state.instance != old
        again.stop()

    run(main())


def test_a_closing_that_nobody_hears_is_taken_up_by_the_next_start(tmp_path: Path) -> None:
    """A new name beside a lease that is still held would lock that money until somebody settles it."""

    async def main() -> None:
        proxy = Proxy(tmp_path)
        async with proxy:
            pay(proxy, await get(proxy), 10)
            proxy.keeper.lose_messages = 10**9
            assert not await proxy.syncer.close(5.0)
            old = proxy.state.instance
        again = Proxy(tmp_path, keeper=proxy.keeper)
        assert again.state.instance == old
        assert lease(again).consumed == 10
        again.stop()

    run(main())


# Config -----------------------------------------------------------------------------------------------------------------------


def test_a_proxy_that_knows_nothing_learns_everything_from_its_first_sync(tmp_path: Path) -> None:
    """A new pod would answer 404 to every route."""

    async def main() -> None:
        keeper = Keeper()
        keeper.fleet, keeper.shards = fleet(), shards([route()])
        async with Proxy(tmp_path, keeper=keeper, known=False) as proxy:
            assert proxy.till.table is not None
            assert (await get(proxy)).rung.name == "big"
            await asyncio.sleep(2)
            last = keeper.messages[-1]
            assert last.fleet_digest == digest(keeper.fleet)
            assert last.digests == last.acknowledged == {ROUTE_SHARD: digest(keeper.shards[ROUTE_SHARD])}

    run(main())


def test_a_config_is_acknowledged_when_nothing_runs_by_an_older_one(tmp_path: Path) -> None:
    """`Enforced` would be said of a budget while requests run that it does not bind."""

    async def main() -> None:
        async with Proxy(tmp_path, table([route(budgets=())], fleet=fleet())) as proxy:
            hold = await get(proxy)
            before = proxy.route.digest
            proxy.keeper.fleet, proxy.keeper.shards = fleet(), shards([route()])
            after = digest(proxy.keeper.shards[ROUTE_SHARD])
            await asyncio.sleep(3)
            last = proxy.keeper.messages[-1]
            assert last.digests == {ROUTE_SHARD: after}
            assert last.acknowledged == {ROUTE_SHARD: f"{after},{before}"}
            assert 80 < last.longest_s < 90, "the request's timeout of 30 s and the time to drain it"
            proxy.keeper.shards = shards([route(in_force=1)])
            await asyncio.sleep(3)
            now = digest(proxy.keeper.shards[ROUTE_SHARD])
            assert proxy.keeper.messages[-1].acknowledged == {ROUTE_SHARD: f"{now},{before}"}
            pay(proxy, hold, 1)
            await asyncio.sleep(2)
            last = proxy.keeper.messages[-1]
            assert last.acknowledged == last.digests == {ROUTE_SHARD: digest(proxy.keeper.shards[ROUTE_SHARD])}
            assert last.longest_s == 0

    run(main())


def test_a_config_that_cannot_be_used_leaves_the_last_one_in_force(tmp_path: Path) -> None:
    """One bad render would stop a whole fleet."""

    async def main() -> None:
        async with Proxy(tmp_path) as proxy:
            proxy.keeper.fleet, proxy.keeper.shards = fleet(), shards([route(rungs=("nowhere",))])
            await asyncio.sleep(3)
            assert proxy.syncer.config_errors >= 2
            assert (await get(proxy)).rung.name == "big"
            proxy.keeper.shards = shards([route(in_force=1)])
            await asyncio.sleep(2)
            assert (await get(proxy)).rung.name == "mid"

    run(main())


def test_the_ledgers_clock_rules(tmp_path: Path) -> None:
    """Proxies whose clocks differ would charge one request to two months."""

    async def main() -> None:
        keeper = Keeper({TEAM: 1_000, TEAM_NEXT: 1_000}, now_s=lambda: EDGE_S + 5.0)
        async with Proxy(tmp_path, keeper=keeper) as proxy:
            hold = await get(proxy)
            assert [each.account for each in hold.tab.leases] == [TEAM_NEXT]

    run(main())


def test_the_next_periods_lease_is_wanted_one_horizon_early(tmp_path: Path) -> None:
    """At midnight of the first, with the keeper away, every proxy would stand without a lease."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        keeper = Keeper({TEAM: 10**9, TEAM_NEXT: 10**9}, now_s=lambda: EDGE_S - 50.0 + loop.time() - 10_000.0)
        keeper.idle = 10**5
        config = table(fleet=fleet(lease_horizon_s=40.0), budgets=[budget(limit_nusd=10**9)])
        async with Proxy(tmp_path, config, keeper) as proxy:
            for second in range(49):
                pay(proxy, await get(proxy), 1)
                await asyncio.sleep(1)
                assert (lease(proxy, TEAM_NEXT).granted > 0) == (second >= 12) or second in (9, 10, 11)
            keeper.lose_messages = 10**9
            await asyncio.sleep(2)
            hold = proxy.till.admit(proxy.route, "default", shape())
            assert hold is not None
            assert [each.account for each in hold.tab.leases] == [TEAM_NEXT]

    run(main())


def test_a_keeper_that_has_just_started_does_not_give_everybody_the_whole_ration(tmp_path: Path) -> None:
    """It has heard one proxy and thinks it alone; the others speak up within seconds."""

    async def main() -> None:
        proxy = Proxy(tmp_path)
        for said, after_s, sharers in (
            (3, 0.0, 3),
            (1, 1.0, 3),
            (3, 1.0, 3),
            (4, 1.0, 4),
            (1, 1.0, 4),
            (2, 10.0, 4),
            (2, 5.0, 2),
        ):
            await asyncio.sleep(after_s)
            proxy.keeper.proxies = said
            assert await proxy.syncer.once()
            assert proxy.till.sharers == sharers
        proxy.stop()

    run(main())


def test_a_protocol_that_is_not_spoken_is_no_answer(tmp_path: Path) -> None:
    """Numbers of a future meaning would be taken for money."""

    async def main() -> None:
        keeper = Keeper()

        async def newer(request: SyncRequest) -> SyncAnswer:
            honest = await keeper.sync(request)
            return SyncAnswer(protocol=99, seq=honest.seq, now_s=honest.now_s, leases=honest.leases, asks=honest.asks)

        async with Proxy(tmp_path, keeper=keeper, wire=newer) as proxy:
            await asyncio.sleep(3)
            assert (proxy.syncer.completed, proxy.till.reachable) == (0, False)

    run(main())


@pytest.mark.parametrize("failure", [SyncUnavailable("the ledger's disk is full"), ConnectionResetError(), None])
def test_failures_are_retried_with_patience(tmp_path: Path, failure: Exception | None) -> None:
    """A keeper that restarts would be hammered by its whole fleet; one that hangs would hang the proxy."""

    async def main() -> None:
        tries: list[float] = []

        async def away(_: SyncRequest) -> SyncAnswer:
            tries.append(asyncio.get_running_loop().time())
            if failure is not None:
                raise failure
            await asyncio.sleep(1e6)
            raise AssertionError

        async with Proxy(tmp_path, wire=away) as proxy:
            await asyncio.sleep(60)
            assert 20 <= len(tries) <= 70
            assert proxy.syncer.failures >= len(tries) - 1

    run(main())


WIRE = st.lists(st.sampled_from(["ok", "ok", "lose message", "lose answer", "kill", "fence", "recall"]), max_size=25)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WIRE, st.randoms(use_true_random=False))
def test_no_fault_of_the_wire_or_the_process_loses_or_makes_money(
    tmp_path_factory: pytest.TempPathFactory, faults: list[str], rng: Any
) -> None:
    """The keeper's sums hold the true cost of all that was ever sent, whatever happens between them."""
    limit = 2_000
    true_cost = 0
    certain = True

    async def main() -> None:
        nonlocal true_cost, certain
        path = tmp_path_factory.mktemp("state")
        keeper = Keeper({TEAM: limit})
        proxy = Proxy(path, keeper=keeper)
        await proxy.__aenter__()
        held: list[Hold] = []
        try:
            for fault in faults:
                if fault == "lose message":
                    keeper.lose_messages += 1
                elif fault == "lose answer":
                    keeper.lose_answers += 1
                elif fault == "recall":
                    keeper.recall[TEAM] = rng.randint(1, 300)
                elif fault == "fence":
                    certain = False  # what was sent and not answered may be held twice: above the truth, never below
                    keeper.instances[proxy.state.instance].closed = True
                elif fault == "kill":
                    true_cost += sum(hold.amount_nusd for hold in held)
                    held.clear()
                    proxy.stop()
                    proxy = Proxy(path, keeper=keeper)
                    await proxy.__aenter__()
                for _ in range(rng.randint(0, 3)):
                    try:
                        held.append(await get(proxy))
                    except Refused:
                        break
                while held and rng.random() < 0.6:
                    hold = held.pop(rng.randrange(len(held)))
                    true_cost += proxy.till.settle(hold, Usage(rng.randint(0, 10), 0, rng.randint(0, 5)), success=True)
                await asyncio.sleep(rng.choice([0.0, 0.001, 0.3, 1.5]))
                if "fence" not in faults:
                    assert keeper.committed(TEAM) <= limit
            for hold in held:
                true_cost += proxy.till.settle(hold, None, success=False)
            keeper.lose_messages = keeper.lose_answers = 0
            await asyncio.sleep(5)
            assert lease(proxy).reserved == 0
            if certain:
                assert keeper.spent(TEAM) == true_cost
        finally:
            proxy.stop()

    run(main())


def test_spend_is_held_by_an_account_at_every_moment_of_a_months_edge(tmp_path: Path) -> None:
    """Between two months a request would belong to none."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        keeper = Keeper({TEAM: 500, TEAM_NEXT: 500}, now_s=lambda: EDGE_S - 1.0 + loop.time() - 10_000.0)
        async with Proxy(tmp_path, table(budgets=[budget(limit_nusd=500)], fleet=fleet()), keeper) as proxy:
            before = await get(proxy)
            await asyncio.sleep(3)
            after = await get(proxy)
            pay(proxy, before, 11)
            pay(proxy, after, 13)
            await asyncio.sleep(2)
            assert (keeper.spent(TEAM), keeper.spent(TEAM_NEXT)) == (11, 13)

    run(main())


def test_an_account_at_its_limit_steps_down_until_nothing_fits(tmp_path: Path) -> None:
    """The whole story of a budget in one proxy: wanted, lower, lowest, refused, and never above."""

    async def main() -> None:
        async with Proxy(tmp_path, keeper=Keeper({TEAM: BIG * 2 + MID})) as proxy:
            served = []
            while True:
                try:
                    hold = await get(proxy)
                except Refused:
                    break
                served.append(hold.rung.name)
                proxy.till.settle(hold, None, success=True)
            assert served == ["big", "big", "mid"]
            assert only(proxy.till).hard
            assert lease(proxy).consumed == BIG * 2 + MID

    run(main())
