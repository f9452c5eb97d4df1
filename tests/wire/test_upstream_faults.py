"""Each fault does what its name says and is billed by the policy: else the product's fault tests would test nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.upstream import Fault, Model, Simulator
from tests.upstream.faults import FaultBook
from tests.wire.upstream_client import Client, chat, run

HELLO = [{"role": "user", "content": "hello"}]
PLAIN = chat("qwen3-8b", HELLO)
STREAM = chat("qwen3-8b", HELLO, stream=True)
# 12 tokens in, 100 out, $0.01/M each: 1,120 nUSD for a whole answer.
EXACT = Model(rule="worst", output_tokens=(100, 100), cached_of_100=0, chunks=10)
WHOLE_NUSD = 1_120
CLOCK_STEP_S = 0.002
"""The loop's clock may run ahead of its timers by so much."""


def scene(test: Callable[[Simulator, Client], Awaitable[None]], **options: Any) -> None:
    async def play() -> None:
        async with Simulator(model=EXACT, **options) as sim, Client(sim.port) as client:
            await test(sim, client)

    run(play())


def test_a_status_comes_as_often_as_ordered_with_its_retry_after() -> None:
    """The proxy's fallback and its obedience to Retry-After would be tested against answers that never came."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("status", status=429, retry_after="7", next=2)
        seen = [await client.post(PLAIN) for _ in range(3)]
        assert [status for status, _, _ in seen] == [429, 429, 200]
        assert [headers.get("retry-after") for _, headers, _ in seen] == ["7", "7", None]
        assert json.loads(seen[0][2])["error"]["type"]
        assert sim.bill.total_nusd == WHOLE_NUSD
        assert sim.bill.outcomes == {"refused": 2, "complete": 1}

    scene(test)


def test_orders_hold_for_a_model_a_kind_of_request_and_a_chance() -> None:
    """A fault meant for one model would hit its fallback too, and hide that the fallback works."""
    book = FaultBook(seed=5)
    book.order([Fault(kind="status", model="QWEN3-8B", stream=True, skip=1, next=2), Fault(kind="gzip", probability=0.25)])
    assert not book.take("qwen3-14b", True).get("status")
    assert not book.take("qwen3-8b", False).get("status")
    assert [bool(book.take("qwen3-8b", True).get("status")) for _ in range(5)] == [False, True, True, False, False]
    hits = sum("gzip" in book.take("qwen3-8b", False) for _ in range(2000))
    assert 400 < hits < 600


def test_slow_waits_before_the_head_and_before_each_chunk() -> None:
    """Timeouts would be tested against an upstream that is quick after all."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("slow", first_byte_s=0.05, per_chunk_s=0.01)
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        client.send("POST", "/v1/chat/completions", json.dumps(STREAM).encode(), "sk-upstream")
        assert (await client.head())[0] == 200
        assert loop.time() - start_s >= 0.05 - CLOCK_STEP_S
        start_s, chunks = loop.time(), 0
        while await client.chunk():
            chunks += 1
        assert chunks == 1 + 10 + 1 + 1 + 1  # role, content, finish, usage, [DONE]
        assert loop.time() - start_s >= 0.01 * (chunks - 1) - 0.02  # the first may have been on its way

    scene(test)


def test_latencies_are_taken_in_turn() -> None:
    """A run over several latencies would know only one."""

    async def test(sim: Simulator, client: Client) -> None:
        for _ in range(3):
            await client.post(PLAIN)
        loop, start_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        await client.post(PLAIN)
        assert loop.time() - start_s >= 0.1 - CLOCK_STEP_S
        assert [entry.latency_s for entry in sim.log] == [0.0, 0.1, 0.0, 0.1]

    scene(test, latencies_s=[0.0, 0.1])


@pytest.mark.parametrize("body", [PLAIN, STREAM])
@pytest.mark.parametrize(("policy", "cost_nusd"), [("full", WHOLE_NUSD), ("sent", 120), ("none", 0)])
def test_a_hang_answers_nothing_and_is_billed_once_the_client_is_gone(body: Any, policy: str, cost_nusd: int) -> None:
    """A proxy that times out would be billed nothing, so that a ledger that forgets the attempt would look right."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.post(body), 0.1)
        assert sim.bill.total_nusd == 0
        assert len(sim.in_flight) == 1
        client.writer.transport.abort()
        await sim.idle()
        assert sim.bill.total_nusd == cost_nusd
        assert sim.log[0].outcome == "interrupted"

    scene(test, bill_on_disconnect=policy)


def test_a_stream_can_stall_in_the_middle() -> None:
    """A stream that stops for ever, with its connection open, is the fault that only a timeout ends."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("hang", after_chunks=3)
        client.send("POST", "/v1/chat/completions", json.dumps(STREAM).encode(), "sk-upstream")
        await client.head()
        for _ in range(3):
            assert await client.chunk()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.chunk(), 0.1)
        client.writer.transport.abort()
        await sim.idle()
        assert sim.bill.total_nusd == 120 + 2 * 100  # the role chunk, then two of ten tokens each

    scene(test, bill_on_disconnect="sent")


@pytest.mark.parametrize(("how", "error"), [("reset", ConnectionResetError), ("fin", asyncio.IncompleteReadError)])
def test_a_cut_stream_ends_after_its_chunks(how: str, error: type[Exception]) -> None:
    """A stream cut in the middle would be tested as one that ended well."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("cut", after_chunks=4, how=how)
        client.send("POST", "/v1/chat/completions", json.dumps(STREAM).encode(), "sk-upstream")
        await client.head()
        for _ in range(4):
            assert await client.chunk()
        with pytest.raises(error):
            await client.chunk()
        assert sim.bill.total_nusd == WHOLE_NUSD

    scene(test)


@pytest.mark.parametrize(("how", "error"), [("reset", ConnectionResetError), ("fin", asyncio.IncompleteReadError)])
def test_a_cut_answer_ends_in_its_body_and_a_drop_before_its_head(how: str, error: type[Exception]) -> None:
    """An answer that is cut after the client's patience began would be taken for a refused connection, or the reverse."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("cut", how=how, next=1)
        client.send("POST", "/v1/chat/completions", json.dumps(PLAIN).encode(), "sk-upstream")
        status, headers = await client.head()
        assert status == 200
        with pytest.raises(error):
            await client.reader.readexactly(int(headers["content-length"]))
        sim.fault("drop", how=how)
        async with Client(sim.port) as second:
            with pytest.raises(error):
                await second.post(PLAIN)
        assert sim.bill.outcomes == {"interrupted": 2}

    scene(test)


def test_a_stale_connection_ends_when_it_is_used_again_only() -> None:
    """The keep-alive race of every pooled client would stay untested."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("stale", how="fin")
        assert (await client.post(PLAIN))[0] == 200
        with pytest.raises(asyncio.IncompleteReadError):
            await client.post(PLAIN)
        assert sim.bill.outcomes == {"complete": 1, "interrupted": 1}

    scene(test)


@pytest.mark.parametrize("body", [PLAIN, STREAM])
def test_close_gives_the_whole_answer_and_then_ends_the_connection_unannounced(body: Any) -> None:
    """A pool that keeps dead connections would look sound."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("close")
        status, headers, answer = await client.post(body)
        assert status == 200
        assert client.usage(answer)["completion_tokens"] == 100
        assert "connection" not in headers
        assert await client.reader.read() == b""
        assert sim.bill.outcomes == {"complete": 1}

    scene(test)


@pytest.mark.parametrize("body", [PLAIN, STREAM])
def test_no_usage_means_none_anywhere_and_a_full_bill(body: Any) -> None:
    """The charge of the whole reservation, for want of usage, would never be exercised."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("no_usage")
        _, _, answer = await client.post(body)
        assert b"usage" not in answer
        assert sim.bill.total_nusd == WHOLE_NUSD

    scene(test)


@pytest.mark.parametrize(
    "usage",
    [
        {"completion_tokens": -5},
        {"completion_tokens": "100"},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": True},
        {"completion_tokens": 10**30},
        {"prompt_tokens_details": None},
        None,
        "many",
        [],
    ],
)
@pytest.mark.parametrize("body", [PLAIN, STREAM])
def test_wrong_usage_is_told_and_the_true_one_billed(body: Any, usage: Any) -> None:
    """A proxy that believes nonsense would look right, since the bill would be nonsense too."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("usage", usage=usage)
        _, _, answer = await client.post(body)
        told = client.usage(answer)
        if isinstance(usage, dict):
            assert told | usage == told
            assert told["total_tokens"] == 112
        else:
            assert told == usage
        assert sim.bill.total_nusd == WHOLE_NUSD

    scene(test)


def test_usage_of_a_stream_comes_where_it_is_ordered_and_only_if_asked_for() -> None:
    """The last usage counts: a proxy that adds them up, or takes the first, must be seen to be wrong."""

    async def test(sim: Simulator, client: Client) -> None:
        events = client.events((await client.post(STREAM))[2])
        assert events[-1]["choices"] == []
        assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1]["usage"]["completion_tokens"] == 100
        sim.fault("usage_place", place="every_chunk", next=1)
        events = client.events((await client.post(STREAM))[2])
        assert [event["usage"]["completion_tokens"] for event in events] == [*range(0, 101, 10), 100]
        sim.fault("usage_place", place="finish_chunk", next=1)
        events = client.events((await client.post(STREAM))[2])
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        assert events[-1]["usage"]["total_tokens"] == 112
        unasked = await client.post(chat("qwen3-8b", HELLO, stream=True, stream_options={"include_usage": False}))
        assert b"usage" not in unasked[2]
        assert sim.bill.total_nusd == 4 * WHOLE_NUSD

    scene(test)


def test_gzip_answers_and_streams_can_be_read_as_they_come() -> None:
    """A proxy that looks for usage in compressed bytes would find none, and nobody would know."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("gzip")
        _, headers, answer = await client.post(PLAIN)
        assert headers["content-encoding"] == "gzip"
        assert client.usage(client.gunzip(answer))["total_tokens"] == 112
        client.send("POST", "/v1/chat/completions", json.dumps(STREAM).encode(), "sk-upstream")
        assert (await client.head())[1]["content-encoding"] == "gzip"
        first = await client.chunk()
        assert client.events(client.gunzip(first))[0]["choices"][0]["delta"]["role"] == "assistant"
        rest = [first]
        while chunk := await client.chunk():
            rest.append(chunk)
        assert client.usage(client.gunzip(b"".join(rest)))["total_tokens"] == 112

    scene(test)


@pytest.mark.parametrize("body", [PLAIN, STREAM])
def test_an_upstream_that_ignores_max_tokens_bills_what_it_made(body: Any) -> None:
    """An upstream's excess has to show; with a bill that obeys, it could not."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("ignore_max_tokens", tokens=700)
        _, _, answer = await client.post({**body, "max_tokens": 5})
        assert client.usage(answer)["completion_tokens"] == 700
        assert sim.bill.total_nusd == (12 + 700) * 10

    scene(test)


@pytest.mark.parametrize(
    ("rubbish", "begins", "ends"),
    [
        ("not_http", b"\x16\x03\x01", False),
        ("html", b"HTTP/1.1 200 OK\r\ncontent-type: text/html", False),
        ("broken_json", b"HTTP/1.1 200 OK\r\ncontent-type: application/json", False),
        ("bad_chunk", b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream", False),
        ("short_body", b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500", True),
        ("empty", b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0", False),
    ],
)
def test_rubbish_is_what_it_says(rubbish: str, begins: bytes, ends: bool) -> None:
    """Rubbish that a parser accepts would prove nothing about what the proxy does with the other kind."""

    async def test(sim: Simulator, client: Client) -> None:
        sim.fault("rubbish", rubbish=rubbish)
        client.send("POST", "/v1/chat/completions", json.dumps(PLAIN).encode(), "sk-upstream")
        got = b""
        try:
            while data := await asyncio.wait_for(client.reader.read(65536), 0.1):
                got += data
            ended = True
        except TimeoutError:
            ended = False
        assert got.startswith(begins)
        assert ended == ends
        client.writer.transport.abort()
        await sim.idle()
        assert sim.bill.outcomes == {"interrupted": 1}

    scene(test)


def test_a_client_that_leaves_a_stream_is_billed_by_the_policy() -> None:
    """A user who closes the tab is billed by the provider all the same."""
    costs_nusd = []

    async def test(sim: Simulator, client: Client) -> None:
        client.send("POST", "/v1/chat/completions", json.dumps(STREAM).encode(), "sk-upstream")
        await client.head()
        await client.chunk()
        await client.chunk()
        client.writer.transport.abort()
        await sim.idle()
        costs_nusd.append(sim.bill.total_nusd)

    for policy in ("full", "sent", "none"):
        scene(test, bill_on_disconnect=policy, per_chunk_s=0.03)
    assert costs_nusd[0] == WHOLE_NUSD
    assert 120 < costs_nusd[1] < WHOLE_NUSD
    assert costs_nusd[2] == 0
