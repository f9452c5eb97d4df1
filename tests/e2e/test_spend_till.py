"""Two hundred clients against the till, the syncer and a real ledger, without a network: a budget is spent to the last request
that fits and never beyond, and nobody is refused while there was money for him."""

import asyncio
import random
import tempfile
from pathlib import Path

import pytest
import uvloop
from bench.bodies import ROUTE

from stepdown.proxy.fit import worst_case_nusd
from stepdown.proxy.hold import Usage
from stepdown.proxy.refusal import Refused
from stepdown.proxy.shape import RequestShape
from tests.e2e.shop import NOW_S, Shop

LIMIT_NUSD = 50_000_000
CLIENTS = 200


async def client(shop: Shop, chance: random.Random, latency_s: float) -> None:
    """Asks until it was refused twice in a row; answers cost anything from nothing to their worst case."""
    refused = 0
    while refused < 2:
        shape = RequestShape(int(10 ** chance.uniform(2.5, 3.5)), False, chance.randint(1, 600), 1, False)
        route, request_class = shop.till.table.find(ROUTE, None)  # type: ignore[union-attr]
        try:
            hold = shop.till.admit(route, request_class, shape) or await shop.till.admit_later(route, request_class, shape)
        except Refused as error:
            assert error.code == "budget_exhausted", error
            refused += 1
            continue
        refused = 0
        assert shop.till.reserved + shop.till.settled <= LIMIT_NUSD
        await asyncio.sleep(chance.choice((0.2, 1.0, 5.0)) * latency_s)
        end = chance.random()
        if end < 0.05:
            shop.till.release(hold, attempted=True)
        elif end < 0.1:
            shop.till.settle(hold, None, success=False)
        else:
            assert hold.max_tokens is not None
            uncached = chance.randint(1, shape.input_tokens_bound)
            shop.till.settle(hold, Usage(uncached, 0, chance.randint(0, hold.max_tokens)), success=True)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_budget_is_spent_to_the_last_request_that_fits_and_no_further(seed: int) -> None:
    """A user would be refused while there was money, or pay more than the ceiling."""

    async def scene(folder: Path) -> None:
        async with Shop(folder, "http://127.0.0.1:1/v1", LIMIT_NUSD) as shop:
            await play(shop)

    async def play(shop: Shop) -> None:
        await asyncio.gather(*(client(shop, random.Random(seed * 1000 + each), 0.02) for each in range(CLIENTS)))
        till = shop.till
        assert till.reserved == 0
        assert till.least_left >= 0
        assert len(till.refused) >= 2 * CLIENTS
        wrong = [refusal for refusal in till.refused if refusal.most_left >= refusal.needed]
        assert not wrong, f"{len(wrong)} of {len(till.refused)} refusals, the first: {wrong[0]}"
        # Drained: what is left does not pay for the smallest request that there is.
        smallest = RequestShape(316, False, 1, 1, False)
        route, request_class = till.table.find(ROUTE, None)  # type: ignore[union-attr]
        while True:
            try:
                hold = till.admit(route, request_class, smallest) or await till.admit_later(route, request_class, smallest)
            except Refused:
                break
            till.settle(hold, None, success=False)
        cheapest = route.ladders["default"].rungs[-1]
        worst = worst_case_nusd(cheapest, smallest, route.max_tokens, NOW_S, NOW_S)
        assert worst is not None
        assert LIMIT_NUSD - worst[0] < till.settled <= LIMIT_NUSD
        assert (await shop.balance()).spent_nusd == till.settled

    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(scene(Path(folder)))
