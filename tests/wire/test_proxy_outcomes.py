"""What an attempt costs and what is tried next, for every way in which an upstream can fail and a client can leave."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stepdown.model.config import Ladder
from stepdown.proxy.breaker import THRESHOLD
from stepdown.proxy.keys import FixedKeys
from stepdown.proxy.wire import Limits
from tests.upstream import Simulator
from tests.wire.proxy_world import (
    EXACT,
    PRICES,
    USAGE,
    USAGE_NUSD,
    Heard,
    Scripted,
    World,
    chunked,
    hello,
    plain,
    route,
    run,
)

DEAD = "http://127.0.0.1:9/v1"
"""The discard port: nobody listens there."""
ALONE = [route(rungs=("big",), timeout_s=0.3)]
WITH_SPARE = [route(rungs=("big", "small"), fallbacks=("spare",), timeout_s=0.3)]
SHORT = Limits(drain_s=0.3)

Test = Callable[[World], Awaitable[None]]


def scene(test: Test, routes: Any = ALONE, **options: Any) -> None:
    async def play() -> None:
        async with World(routes, limits=options.pop("limits", SHORT), **options) as world:
            await test(world)

    run(play())


def one_hold_nusd(text: str = "hello") -> int:
    """What a `hello()` reserves on `big`, by hand: the body that goes up (model and bound left out), 256, 100 tokens out."""
    rest = '"messages":[{"role":"user","content":"' + text + '"}]}'
    return (len(rest) + 1 + 256) * 1_000 + 100 * 8_000


def test_no_connection_costs_nothing() -> None:
    """An upstream that is down would use up the budget."""

    async def test(world: World) -> None:
        answer = await world.chat()
        assert (answer.status, answer.error["code"], answer.error["type"]) == (502, "upstream_failed", "upstream_error")
        assert "big: no connection to 127.0.0.1:9" in answer.error["message"]
        assert answer.headers["x-stepdown-route"] == "shop/chat"
        assert (world.consumed_nusd, world.reserved_nusd) == (0, 0)
        assert not list(world.app.till.books.counters) or next(iter(world.app.till.books.counters)).requests == 0

    scene(test, base_url=DEAD)


@pytest.mark.parametrize(("status", "seen", "code"), [
    (429, 429, "upstream_rate_limited"), (500, 502, "upstream_failed"), (503, 503, "upstream_unavailable"),
    (504, 504, "upstream_timeout"),
])  # fmt: skip
def test_a_complete_head_of_an_error_costs_nothing(status: int, seen: int, code: str) -> None:
    """Each refusal by an overloaded upstream would be charged as if it had been answered."""

    async def test(world: World) -> None:
        world.sim.fault("status", status=status, retry_after="7")
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (seen, code)
        assert f"big: it answered {status}" in answer.error["message"]
        assert answer.headers.get("retry-after") == ("7" if seen in (429, 503) else None)
        assert (world.consumed_nusd, world.reserved_nusd) == (0, 0)
        assert next(iter(world.app.till.books.counters)).requests == 1

    scene(test)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_of_the_platform_is_not_taken_for_the_client_s(status: int) -> None:
    """An application team would change its own key all day, while the platform's has expired."""

    async def test(world: World) -> None:
        world.sim.fault("status", status=status)
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (502, "upstream_key_refused")
        assert "channel 'standard', not yours" in answer.error["message"] and "Secret team-key" in answer.error["message"]
        assert (world.consumed_nusd, world.reserved_nusd) == (0, 0)

    scene(test, keys=FixedKeys({"standard": "sk-upstream"}, "Secret team-key"))


def test_a_timeout_is_read_on_for_its_usage() -> None:
    """A slow answer that was billed would not be counted, or be charged at many times its cost."""

    async def test(world: World) -> None:
        world.sim.fault("slow", first_byte_s=0.45, next=1)
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        assert world.reserved_nusd == one_hold_nusd()
        await world.settled()
        assert world.consumed_nusd == world.sim.bill.total_nusd > 0
        assert world.estimated_nusd == 0

    scene(test)


def test_a_timeout_that_brings_no_usage_in_time_is_charged_at_the_reservation() -> None:
    """An upstream that never ends would hold a reservation for ever, or make the request free."""

    async def test(world: World) -> None:
        world.sim.fault("hang")
        for stream in (False, True):
            before = world.consumed_nusd
            answer = await world.chat(hello(stream=stream))
            assert answer.status == 504
            await world.settled()
            assert world.consumed_nusd - before == world.estimated_nusd - before >= one_hold_nusd()
        assert world.reserved_nusd == 0
        await world.sim.idle()

    scene(test)


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=("plain", "stream"))
def test_a_cut_is_charged_at_the_reservation(how: str, stream: bool) -> None:
    """What was cut may have been billed whole: were it not charged, the bill could pass the ceiling."""

    async def test(world: World) -> None:
        world.sim.fault("cut", after_chunks=3, how=how, next=1)
        if not stream:
            answer = await world.chat()
            assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
        else:
            async with world.client() as client:
                client.send_chat(stream=True)
                status, _ = await client.head()
                rest = await client.ended()
                assert status == 200 and not rest.endswith(b"0\r\n\r\n"), "it must not look whole"
                if how == "fin":
                    assert b'"code":"stream_interrupted"' in rest
        await world.settled()
        assert world.consumed_nusd == world.estimated_nusd >= one_hold_nusd()

    scene(test)


def test_a_stream_cut_behind_its_last_chunk_costs_what_it_says() -> None:
    """A cut after the usage has come would cost the whole reservation."""

    async def test(world: World) -> None:
        async with world.client() as client:
            client.send_chat(stream=True)
            await client.ended()
        assert (world.consumed_nusd, world.estimated_nusd) == (USAGE_NUSD, 0)

    usage = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"

    async def script(heard: Heard, writer: asyncio.StreamWriter) -> bool:
        writer.write(chunked(usage, end=False))
        await writer.drain()
        return False

    scene(test, upstream=Scripted(script))


def test_a_stream_that_stalls_is_given_up() -> None:
    """A client would wait for ever for a chunk that does not come."""

    async def test(world: World) -> None:
        world.sim.fault("hang", after_chunks=2)
        async with world.client() as client:
            client.send_chat(stream=True)
            assert (await client.head())[0] == 200
            assert b"stalled for 0.3 s" in await client.ended()
        await world.settled()
        assert world.consumed_nusd == world.estimated_nusd > 0

    scene(test)


def test_a_long_stream_may_outlive_the_timeout_while_it_moves() -> None:
    """Long answers would be cut though all is well."""

    async def test(world: World) -> None:
        answer = await world.chat(hello(stream=True))
        assert answer.status == 200
        assert answer.body.endswith(b"data: [DONE]\n\n")

    upstream = Simulator(model=EXACT, prices=PRICES, per_chunk_s=0.05)
    scene(test, upstream=upstream, limits=Limits(drain_s=5))


@pytest.mark.parametrize("stream", [False, True], ids=("plain", "stream"))
def test_a_client_that_leaves_is_still_charged_for_what_it_got_going(stream: bool) -> None:
    """Whoever hangs up early would have answers for nothing, and the budget would not hold."""

    async def test(world: World) -> None:
        async with world.client() as client:
            client.send_chat(stream=stream)
            await world.sim.arrived(1)
            if stream:
                await client.head()
                await client.chunk()
        assert world.app.server.wire.attempts == 1 or world.consumed_nusd
        await world.settled()
        assert world.consumed_nusd == world.sim.bill.total_nusd > 100 * 8_000
        assert (world.estimated_nusd, world.reserved_nusd) == (0, 0)
        assert world.app.server.wire.exchanges == 0

    upstream = Simulator(model=EXACT, prices=PRICES, latencies_s=[0.05], per_chunk_s=0.005)
    scene(test, upstream=upstream, limits=Limits(drain_s=5))


def test_a_client_that_leaves_while_it_waits_for_money_leaves_nothing_behind() -> None:
    """Money that nobody will use would stay reserved, or a request be sent that nobody wants."""

    async def test(world: World) -> None:
        world.keeper.latency_s = 0.05
        world.sim.fault("hang", next=1)
        async with world.client() as first:
            first.send_chat()
            await world.sim.arrived(1)
            async with world.client() as client:
                client.send_chat()
                while not len(world.app.till.queue):  # noqa: ASYNC110 (the product has no use for such an event)
                    await asyncio.sleep(0.005)
            while len(world.app.till.queue):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert world.app.server.wire.exchanges == 1
            assert world.sim.requests == 1
            assert world.reserved_nusd == one_hold_nusd()

    scene(test, limit_nusd=int(one_hold_nusd() * 1.5), fleet={"wait_s": 5.0}, routes=[route(rungs=("big",))])


# Fallback


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("status", {"status": 429}),
        ("status", {"status": 500}),
        ("status", {"status": 503}),
        ("hang", {}),
        ("drop", {"how": "fin"}),
        ("drop", {"how": "reset"}),
        ("rubbish", {"rubbish": "html"}),
        ("rubbish", {"rubbish": "not_http"}),
        ("rubbish", {"rubbish": "broken_json"}),
        ("rubbish", {"rubbish": "empty"}),
        ("rubbish", {"rubbish": "short_body"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
@pytest.mark.parametrize("stream", [False, True], ids=("plain", "stream"))
def test_an_outage_is_served_by_the_fallback(kind: Any, order: dict[str, Any], stream: bool) -> None:
    """Promise 2: the answer still comes."""

    async def test(world: World) -> None:
        world.sim.fault(kind, model="up/big", **order)
        answer = await world.chat(hello(stream=stream))
        assert answer.status == 200
        assert (answer.headers["x-stepdown-model"], answer.headers["x-stepdown-reason"]) == ("spare", "Outage")
        if not stream:
            assert answer.json()["choices"]
        assert [entry.model for entry in world.sim.log] == ["up/big", "up/spare"]

    scene(test, WITH_SPARE)


def test_after_the_fallbacks_come_the_lower_rungs_and_then_the_truth() -> None:
    """An outage of two models would be an outage of the route; or a client would not learn what was tried."""

    async def test(world: World) -> None:
        world.sim.fault("status", model="up/big", status=500)
        world.sim.fault("status", model="up/spare", status=429)
        answer = await world.chat()
        assert answer.headers["x-stepdown-model"] == "small"
        world.sim.fault("status", model="up/small", status=503)
        answer = await world.chat()
        assert answer.status == 502
        for said in ("big: it answered 500", "spare: it answered 429", "small: it answered 503"):
            assert said in answer.error["message"]
        assert world.reserved_nusd == 0

    scene(test, WITH_SPARE)


def test_nothing_is_tried_again_once_the_first_byte_is_out() -> None:
    """A client would get the beginning of one answer and the end of another."""

    async def test(world: World) -> None:
        world.sim.fault("cut", model="up/big", after_chunks=3, how="fin")
        async with world.client() as client:
            client.send_chat(stream=True)
            assert (await client.head())[1]["x-stepdown-model"] == "big"
            await client.ended()
        assert [entry.model for entry in world.sim.log] == ["up/big"]

    scene(test, WITH_SPARE)


def test_premium_is_not_a_fallback_and_falls_back_itself() -> None:
    """A share of 5 % for premium would become 100 % in an outage of the default model."""
    ladders: dict[Any, Ladder] = {"critical": Ladder(rungs=("best", "big", "small"))}
    routes = [route(rungs=("big", "small"), ladders=ladders, timeout_s=0.3, premium_max_share_percent=50)]

    async def test(world: World) -> None:
        assert (await world.chat(hello(model="chat:critical"))).headers["x-stepdown-reason"] == "PremiumShare"
        assert (await world.chat(hello())).status == 200
        answer = await world.chat(hello(), {"x-stepdown-class": "critical"})
        assert (answer.headers["x-stepdown-model"], answer.headers["x-stepdown-reason"]) == ("best", "Wanted")
        await world.chat(hello())
        world.sim.fault("status", model="up/best", status=503)
        answer = await world.chat(hello(model="chat:critical"))
        assert (answer.headers["x-stepdown-model"], answer.headers["x-stepdown-reason"]) == ("big", "Outage")
        world.sim.clear_faults()
        world.sim.fault("status", model="up/big", status=500)
        for _ in range(3):
            answer = await world.chat(hello(model="chat"))
            assert answer.headers["x-stepdown-model"] == "small"

    scene(test, routes)


def test_a_kept_connection_that_ends_without_a_byte_is_tried_once_afresh() -> None:
    """Users would see an error each time that the upstream closes an idle connection; or what was done twice be paid once."""

    async def test(world: World) -> None:
        assert (await world.chat()).status == 200
        paid = world.consumed_nusd
        world.sim.fault("stale", next=1)
        answer = await world.chat()
        assert (answer.status, answer.headers["x-stepdown-model"], answer.headers["x-stepdown-reason"]) == (
            200,
            "big",
            "Wanted",
        )
        assert world.estimated_nusd == one_hold_nusd(), "the first may have been processed"
        assert world.consumed_nusd == 2 * paid + world.estimated_nusd
        assert world.sim.requests == 3

    scene(test)


def test_a_model_that_keeps_failing_is_left_alone_and_then_probed() -> None:
    """Every request would wait for a model that is down, and the model never come up under the load."""

    async def test(world: World) -> None:
        world.sim.fault("status", model="up/big", status=500)
        for _ in range(THRESHOLD + 3):
            assert (await world.chat()).headers["x-stepdown-model"] == "spare"
        assert sum(entry.model == "up/big" for entry in world.sim.log) == THRESHOLD
        world.sim.clear_faults()
        breakers = world.app.server.wire.breakers
        assert not breakers.closed("big", world.app.server.wire.sweeper.now_s)
        assert world.app.syncer.down() == ("big",), "what the operator makes an Event of"
        breakers.bad["big"].open_until_s = 1.0
        answer = await world.chat()
        assert (answer.headers["x-stepdown-model"], answer.headers["x-stepdown-reason"]) == ("big", "Wanted")
        assert not breakers.bad

    scene(test, WITH_SPARE)


def test_retry_after_is_obeyed() -> None:
    """A model that asked to be left alone for a minute would be asked again at once, and be angrier."""

    async def test(world: World) -> None:
        world.sim.fault("status", model="up/big", status=429, retry_after="60", next=1)
        answers = [await world.chat() for _ in range(3)]
        assert [answer.headers["x-stepdown-model"] for answer in answers] == ["spare"] * 3
        assert sum(entry.model == "up/big" for entry in world.sim.log) == 1

    scene(test, WITH_SPARE)


def test_when_all_are_left_alone_the_client_is_told_until_when() -> None:
    """A client would try again at once, or never."""

    async def test(world: World) -> None:
        world.sim.fault("status", status=429, retry_after="60", next=1)
        assert (await world.chat()).headers["retry-after"] == "60"
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
        assert 55 <= int(answer.headers["retry-after"]) <= 60
        assert world.sim.requests == 1

    scene(test)


def test_retries_have_a_budget() -> None:
    """In an outage the proxy would send the upstream a multiple of the load that it cannot bear."""

    async def test(world: World) -> None:
        world.app.server.wire.retries.left = 1.0
        world.sim.fault("status", model="up/big", status=500)
        assert (await world.chat()).status == 200
        world.app.server.wire.retries.left = 0.0
        answer = await world.chat()
        assert answer.status == 502
        assert "spare" not in answer.error["message"]

    scene(test, WITH_SPARE)


def test_a_channel_without_a_key_says_which() -> None:
    """An administrator would have to guess which Secret is missing."""

    async def test(world: World) -> None:
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
        for said in ("channel 'standard'", "RoutingProxy shop/proxy", "Secret team-key"):
            assert said in answer.error["message"]
        assert (world.consumed_nusd, world.sim.requests) == (0, 0)

    for key in ("", " \n", "sk-\r\nX-Injected: 1", "sk-\u00fc"):
        scene(test, keys=FixedKeys({"standard": key} if key else {}, "Secret team-key"))


@pytest.mark.parametrize("base_url", ["ftp://127.0.0.1/v1", "http://", "http://127.0.0.1:99999/v1", "http://a\r\nb/v1"])
def test_an_upstream_that_cannot_be_called_is_said_so(base_url: str) -> None:
    """A mistake in one field would break connections without a word, and leave money reserved."""

    async def test(world: World) -> None:
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
        assert "the fleet's base URL is" in answer.error["message"]
        assert (world.consumed_nusd, world.reserved_nusd) == (0, 0)

    scene(test, base_url=base_url)


# Refusals


def test_an_exhausted_budget_refuses_with_its_numbers() -> None:
    """A client could not tell an empty budget from a busy upstream, or would try three times in vain."""

    async def test(world: World) -> None:
        answer = await world.chat()
        assert answer.status == 429
        error = answer.error
        assert (error["type"], error["code"], error["param"]) == ("insufficient_quota", "insufficient_quota", None)
        assert error["stepdown"] == {
            "budget": "shop/team",
            "limitUSD": "0.000001",
            "spentUSD": "0.00",
            "remainingUSD": "0.000001",
            "neededUSD": f"{one_hold_nusd() / 1e9:.9f}".rstrip("0"),
            "resetsAt": "2026-12-01T00:00:00Z",
        }
        for said in ("shop/team", "0.000001 USD", "2026-12-01T00:00:00Z"):
            assert said in error["message"]
        assert int(answer.headers["retry-after"]) > 86_400
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["x-stepdown-route"] == "shop/chat"
        assert world.sim.requests == 0

    scene(test, limit_nusd=1_000)


def test_what_does_not_fit_steps_down() -> None:
    """Near the ceiling users would get errors where a cheaper model could still answer."""

    async def test(world: World) -> None:
        answer = await world.chat()
        assert answer.status == 200
        assert (answer.headers["x-stepdown-model"], answer.headers["x-stepdown-reason"]) == ("small", "BudgetFit")

    scene(test, [route(rungs=("big", "small"))], limit_nusd=600_000)


def test_an_answer_of_the_upstream_cannot_write_headers() -> None:
    """An upstream could set cookies, or split the answer, for the client."""
    headers = (
        "content-type: application/json\r\nset-cookie: a=b\r\nconnection: close\r\nx-stepdown-cost-usd: 0\r\nlocation: x\r\n"
    )

    async def test(world: World) -> None:
        async with world.client() as client:
            for _ in range(2):
                answer = await client.chat()
                assert not {"set-cookie", "location", "connection"} & set(answer.headers)
                assert answer.headers["x-stepdown-cost-usd"] != "0"

    async def script(heard: Heard, writer: asyncio.StreamWriter) -> bool:
        writer.write(plain({"choices": []}, headers=headers))
        await writer.drain()
        return False

    scene(test, upstream=Scripted(script))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 301 Moved\r\nlocation: http://evil.invalid/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        plain(b"[1, 2]"),
        plain(b'"text"'),
        plain(b"\xff\xfe"),
        plain(b"[" * 100_000),
        plain({"choices": []}, headers="content-type: application/json\r\ncontent-encoding: br\r\n"),
        plain({"choices": []}, headers="content-type: application/json\r\ncontent-encoding: gzip\r\n"),
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 600_000 + b"\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"\x00\x01\x02",
    ],
    ids=(
        "redirect",
        "nothing",
        "upgrade",
        "list",
        "string",
        "no UTF-8",
        "deep",
        "br",
        "not gzip",
        "long head",
        "CL+TE",
        "9.9",
        "binary",
    ),
)
def test_rubbish_is_a_bad_gateway_and_charged(answer: bytes) -> None:
    """A broken upstream would break the proxy, or make requests free."""

    async def test(world: World) -> None:
        reply = await world.chat()
        assert (reply.status, reply.error["code"]) == (502, "upstream_failed"), reply.body
        assert world.consumed_nusd == world.estimated_nusd == one_hold_nusd()
        assert world.reserved_nusd == 0
        assert (await world.client().__aenter__()) is not None

    scene(test, upstream=Scripted(answer))


def test_an_interim_answer_is_passed_over() -> None:
    """`100 Continue` or `103 Early Hints` before the answer would be taken for it."""

    async def test(world: World) -> None:
        assert (await world.chat()).json() == {"usage": USAGE}
        assert world.consumed_nusd == USAGE_NUSD

    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    scene(test, upstream=Scripted(early + plain({"usage": USAGE})))
