"""Two hundred clients at once against a proxy with a five-cent hard budget, and an upstream that keeps a bill of its own."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
import uvloop

from stepdown.budget.account import Balance
from stepdown.model.money import usd_to_nusd
from tests.e2e.crowd import Crowd, ask
from tests.e2e.shop import Shop
from tests.upstream import Model, Simulator

LIMIT_NUSD = usd_to_nusd("0.05")
CLIENTS = 200
SMALLEST = {"model": "bench", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
"""The cheapest request that anybody could send."""


async def spend(shop: Shop, sim: Simulator, clients: int = CLIENTS) -> Crowd:
    """Until a hundred requests have been refused and nothing is in flight; then until not even the smallest request fits."""
    crowd = Crowd(shop.port, "bench", clients, enough=clients // 2)
    await crowd.spend()
    await drain(shop, sim)
    return crowd


async def drain(shop: Shop, sim: Simulator) -> None:
    """Spends what is left on the smallest requests, until not even one fits while nothing is in flight."""
    sim.latencies_s = (0.0,)
    while True:
        await Crowd(shop.port, "bench", 50, patience=1, always=SMALLEST).spend()
        if (await ask(shop.port, SMALLEST)).status == 429:
            break
    await sim.idle()


def check(shop: Shop, crowd: Crowd, balance: Balance, bill_nusd: int) -> None:
    """What must hold whatever the upstream did."""
    till = shop.till
    assert bill_nusd <= LIMIT_NUSD
    assert till.least_left >= 0, "more was reserved than the ceiling has room for"
    assert till.reserved == 0, "a reservation was never ended"
    assert balance.spent_nusd == till.settled >= bill_nusd
    assert balance.reserved_nusd == balance.unreconciled_nusd == 0
    assert len(crowd.refusals) >= crowd.clients // 2
    wrong = [refusal for refusal in till.refused if refusal.most_left >= refusal.needed]
    assert not wrong, f"{len(wrong)} of {len(till.refused)} were refused although there was money, the first: {wrong[0]}"
    cheapest = till.refused[-1].needed  # of the smallest request, which was refused last
    assert balance.spent_nusd > LIMIT_NUSD - cheapest, "money was left that would have paid for an answer"


@pytest.mark.parametrize(
    "latencies_s",
    [
        pytest.param((0.02, 0.1, 0.5), id="tenfold speed"),
        pytest.param((0.2, 1.0, 5.0), id="real latencies", marks=pytest.mark.slow),
    ],
)
def test_the_bill_reaches_the_ceiling_and_never_passes_it(tmp_path: Path, latencies_s: Iterable[float]) -> None:
    """A user would pay more than the ceiling, or be refused while there was money, or find a ledger that is not the bill."""

    async def scene() -> None:
        async with Simulator(latencies_s=latencies_s, keep=0) as sim, Shop(tmp_path, sim.url, LIMIT_NUSD) as shop:
            crowd = await spend(shop, sim)
            assert not crowd.other, crowd.other[0]
            balance = await shop.balance()
            check(shop, crowd, balance, sim.bill.total_nusd)
            assert balance.spent_nusd == sim.bill.total_nusd, "all usage was reported: ledger and bill are one"
            assert balance.estimated_nusd == 0
            assert set(crowd.models) == {"deepseek-ai/DeepSeek-V4-Flash", "Qwen3.5-4B"}, (
                "the answers stepped down before the end"
            )

    uvloop.run(asyncio.wait_for(scene(), 110))


def test_the_ceiling_holds_when_every_byte_is_a_token_and_every_answer_is_as_long_as_it_may_be(tmp_path: Path) -> None:
    """A user whose texts are the dearest that there are would pay more than the worst case that was reserved."""

    async def scene() -> None:
        worst = Model(rule="worst", output_tokens=(10_000, 10_000), cached_of_100=0)
        async with Simulator(latencies_s=(0.02, 0.1), model=worst, keep=0) as sim, Shop(tmp_path, sim.url, LIMIT_NUSD) as shop:
            crowd = await spend(shop, sim)
            assert not crowd.other, crowd.other[0]
            balance = await shop.balance()
            check(shop, crowd, balance, sim.bill.total_nusd)
            assert balance.spent_nusd == sim.bill.total_nusd
            assert shop.till.excess_nusd == 0

    uvloop.run(asyncio.wait_for(scene(), 110))


def test_the_ceiling_holds_when_the_upstream_fails_in_every_way(tmp_path: Path) -> None:
    """A user would pay for answers that were cut, for usage that was never reported, or for attempts that nobody counted."""

    async def scene() -> None:
        async with Simulator(latencies_s=(0.01, 0.05, 0.2), keep=0) as sim, Shop(tmp_path, sim.url, LIMIT_NUSD) as shop:
            sim.fault("cut", probability=0.05, after_chunks=3)
            sim.fault("drop", probability=0.05, how="fin")
            sim.fault("no_usage", probability=0.05)
            sim.fault("usage", probability=0.05, usage={"completion_tokens": -7, "total_tokens": 1})
            sim.fault("gzip", probability=0.1)
            sim.fault("usage_place", probability=0.1, place="every_chunk")
            sim.fault("rubbish", probability=0.02, rubbish="broken_json", stream=False)
            sim.fault("status", probability=0.03, status=500)
            sim.fault("close", probability=0.1)
            crowd = Crowd(shop.port, "bench", clients=60, patience=6)
            await crowd.spend()
            sim.clear_faults()
            await drain(shop, sim)
            balance = await shop.balance()
            assert sim.bill.outcomes["interrupted"] > 10
            assert balance.estimated_nusd > 0
            assert sim.bill.total_nusd <= balance.spent_nusd <= LIMIT_NUSD
            assert shop.till.least_left >= 0
            assert shop.till.reserved == 0
            assert shop.till.settled == balance.spent_nusd

    uvloop.run(asyncio.wait_for(scene(), 110))
