"""A channel's `requestsPerMinute` on real sockets: who is served by what, and what a client is told."""

import asyncio
from typing import Any

from stepdown.model.config import Channel
from tests.wire.proxy_world import MODELS, World, hello, model, route, run

ELSEWHERE = (*MODELS[:3], model("spare", "8", channel="pro"))
ROUTES = [route(rungs=("big", "small"), fallbacks=("spare",))]


def limited(requests: int) -> dict[str, Any]:
    return {"channels": (Channel(name="standard", requests_per_minute=requests), Channel(name="pro"))}


def test_beyond_the_limit_a_model_of_another_channel_answers() -> None:
    """Promise 2; and a small rung of the same channel would have been one request too many as well."""

    async def scene() -> None:
        async with World(ROUTES, models=ELSEWHERE, fleet=limited(2)) as world:
            served = [(await world.chat()).headers for _ in range(4)]
            assert [each["x-stepdown-model"] for each in served] == ["big", "big", "spare", "spare"]
            assert [each["x-stepdown-reason"] for each in served] == ["Wanted", "Wanted", "Outage", "Outage"]
            assert [entry.model for entry in world.sim.log] == ["up/big", "up/big", "up/spare", "up/spare"]
            assert not world.app.server.wire.breakers.bad, "the model has not failed"
            assert world.reserved_nusd == 0

    run(scene())


def test_where_nothing_else_can_answer_the_client_is_told_when_to_come_again() -> None:
    async def scene() -> None:
        async with World([route()], fleet=limited(1)) as world:
            assert (await world.chat()).status == 200
            paid_nusd = world.consumed_nusd
            answer = await world.chat(hello(stream=True))
            assert (answer.status, answer.error["code"]) == (429, "upstream_rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 61
            assert "channel 'standard' has had its 1 requests of this minute" in answer.error["message"]
            assert (world.consumed_nusd, world.reserved_nusd, len(world.sim.log)) == (paid_nusd, 0, 1)
            async with world.client() as client:
                metrics = (await client.get("/metrics")).body.decode()
            assert 'stepdown_rate_limited_total{channel="standard"} 1\n' in metrics

    run(scene())


def test_the_limit_is_the_fleets_and_its_proxies_share_it() -> None:
    """Three proxies with the whole limit each would be three times what the upstream allows."""

    async def scene() -> None:
        world = World(ROUTES, models=ELSEWHERE, fleet=limited(9))
        world.keeper.proxies = 3
        async with world:
            models = [(await world.chat()).headers["x-stepdown-model"] for _ in range(5)]
            assert models == ["big", "big", "big", "spare", "spare"]

    run(scene())


def test_a_limit_that_is_raised_is_in_force_without_a_restart() -> None:
    async def scene() -> None:
        async with World(ROUTES, models=ELSEWHERE, fleet=limited(1)) as world:
            assert [(await world.chat()).headers["x-stepdown-model"] for _ in range(2)] == ["big", "spare"]
            world._fleet = limited(100)
            world.publish(ROUTES)
            while world.app.server.wire.rates.limited["standard"].limit == 1:  # noqa: ASYNC110 (the product has no use for such an event)
                await asyncio.sleep(0.01)
            assert (await world.chat()).headers["x-stepdown-model"] == "big"

    run(scene())
