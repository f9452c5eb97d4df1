"""What goes up and what comes down: the canonical body, the answer byte for byte, usage shown or hidden, headers,
backpressure."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import msgspec
import pytest

from stepdown.model.config import Parameters, PriceFrom
from stepdown.proxy.keys import FixedKeys
from stepdown.proxy.wire import Limits
from tests.wire.proxy_world import (
    COMPLETION,
    EXACT,
    HELLO,
    MODELS,
    USAGE,
    USAGE_NUSD,
    Heard,
    Scripted,
    World,
    chunked,
    hello,
    model,
    plain,
    route,
    run,
)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c1", "object": "chat.completion.chunk", **fields}).encode() + b"\n\n"


def content(text: str, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], **fields)


DONE = b"data: [DONE]\n\n"


def test_a_plain_answer_comes_as_it_is_with_what_it_cost() -> None:
    """A client would get another answer than the model gave, or not know what it paid."""
    odd = b'{ "usage": {"prompt_tokens": 20, "completion_tokens": 10},\n "choices": [], "x": "\xc3\xa9\\u00e9" }'

    async def scene() -> None:
        upstream = Scripted(plain(odd, headers="content-type: application/json\r\nx-request-id: r1\r\nset-cookie: a=b\r\n"))
        async with World(upstream=upstream) as world:
            answer = await world.chat()
            assert (answer.status, answer.body) == (200, odd)
            assert answer.headers == {
                "content-type": "application/json",
                "content-length": str(len(odd)),
                "x-request-id": "r1",
                "x-stepdown-route": "shop/chat",
                "x-stepdown-model": "big",
                "x-stepdown-tier": "MidRange",
                "x-stepdown-reason": "Wanted",
                "x-stepdown-cost-usd": "0.0001",
            }
            assert (world.consumed_nusd, world.estimated_nusd, world.reserved_nusd) == (USAGE_NUSD, 0, 0)

    run(scene())


def test_what_the_upstream_hears() -> None:
    """A client's key, cookies or parameters beyond the route's would reach the upstream; or two max-tokens fields, of which
    it takes one."""

    async def scene() -> None:
        models = (*MODELS, model("late", "8", max_tokens_field="max_completion_tokens", max_output_tokens=50))
        routes = [
            route(parameters=Parameters(temperature=0.1, max_tokens=20)),
            route("shop/late", ("late",)),
        ]
        async with World(routes, models=models, upstream=Scripted(plain(COMPLETION))) as world:
            assert isinstance(world.upstream, Scripted)
            secret = {"Authorization": "Bearer client", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "OpenAI-Project": "o"}
            await world.chat({"model": "shop/chat:background", "messages": HELLO, "stop": ["ü"]}, secret)
            heard = world.upstream.heard[-1]
            assert (
                heard.raw
                == (
                    '{"model":"up/big","max_tokens":20,"messages":[{"role":"user","content":"hello"}],'
                    '"temperature":0.1,"stop":["ü"]}'
                ).encode()
            )
            assert heard.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
            assert heard.headers == {
                "host": f"127.0.0.1:{world.upstream.port}",
                "authorization": "Bearer sk-upstream",
                "user-agent": "stepdown/0.1.0",
                "content-type": "application/json",
                "accept-encoding": "identity",
                "content-length": str(len(heard.raw)),
            }
            for asked, sent in ((5, 5), (20, 20), (5_000, 20), (None, 20)):
                await world.chat(hello(max_tokens=asked, temperature=0.9))
                body = world.upstream.heard[-1].body
                assert (body["max_tokens"], body["temperature"]) == (sent, 0.9)
            await world.chat(hello(max_tokens=None, max_completion_tokens=7))
            assert world.upstream.heard[-1].body["max_tokens"] == 7
            assert "max_completion_tokens" not in world.upstream.heard[-1].body
            await world.chat(hello(model="late", max_tokens=500))
            assert world.upstream.heard[-1].body["max_completion_tokens"] == 50
            assert "max_tokens" not in world.upstream.heard[-1].body

    run(scene())


STREAM = [
    event(choices=[{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}], usage=None),
    content('say ,"usage":null}', usage=None),
    b": keep-alive\n\n",
    content("ü", usage=None, system_fingerprint=None),
    event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None),
    event(choices=[], usage=USAGE),
    DONE,
]
BARE = [
    event(choices=[{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]),
    content('say ,"usage":null}'),
    b": keep-alive\n\n",
    content("ü", system_fingerprint=None),
    event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
    DONE,
]


@pytest.mark.parametrize("cut", [0, 1, 7, 50], ids=("as one", "by the byte", "by seven", "by fifty"))
@pytest.mark.parametrize("asked", [True, False], ids=("asked for usage", "did not"))
def test_a_stream_comes_byte_for_byte_but_for_usage_that_nobody_asked_for(asked: bool, cut: int) -> None:
    """Clients that do not know usage chunks fail on them (`choices[0]`); those that asked would miss them; and the money is
    counted in both."""
    whole = b"".join(STREAM)
    pieces = [whole[at : at + cut] for at in range(0, len(whole), cut)] if cut else [whole]

    async def script(heard: Heard, writer: asyncio.StreamWriter) -> None:
        assert heard.body["stream_options"] == {"include_usage": True}
        data = chunked(*pieces)
        for at in range(0, len(data), 997):
            writer.write(data[at : at + 997])
            await asyncio.sleep(0)

    async def scene() -> None:
        async with World(upstream=Scripted(script)) as world:
            options = {"stream_options": {"include_usage": True}} if asked else {}
            answer = await world.chat(hello(stream=True, **options))
            assert answer.body == (whole if asked else b"".join(BARE))
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers["x-stepdown-model"] == "big"
            assert "x-stepdown-cost-usd" not in answer.headers
            assert (world.consumed_nusd, world.estimated_nusd) == (USAGE_NUSD, 0)

    run(scene())


def test_the_last_of_several_usages_counts() -> None:
    """An upstream that reports as it goes would be billed at its first report."""
    usages = [{**USAGE, "completion_tokens": n, "total_tokens": 20 + n} for n in (1, 5, 9)]
    stream = [content("a", usage=usage) for usage in usages]

    async def scene() -> None:
        async with World(upstream=Scripted(chunked(*stream, DONE))) as world:
            answer = await world.chat(hello(stream=True))
            assert answer.body == b"".join(stream) + DONE, "usage beside content is not a usage-only chunk"
            assert world.consumed_nusd == 20 * 1_000 + 9 * 8_000

    run(scene())


BAD_USAGE: list[Any] = [
    None,
    "many",
    [],
    {},
    {"prompt_tokens": 20},
    {**USAGE, "prompt_tokens": -1},
    {**USAGE, "completion_tokens": "10"},
    {**USAGE, "completion_tokens": 10.5},
    {**USAGE, "completion_tokens": True},
    {**USAGE, "total_tokens": 31},
    {**USAGE, "prompt_tokens": 0, "total_tokens": 10},
    {**USAGE, "prompt_tokens_details": {"cached_tokens": 21}},
    {**USAGE, "prompt_tokens_details": {"cached_tokens": -1}},
    {"prompt_tokens": 10**30, "completion_tokens": 1},
]


@pytest.mark.parametrize("stream", [False, True], ids=("plain", "stream"))
def test_usage_that_cannot_be_is_charged_at_the_reservation(stream: bool) -> None:
    """An upstream that reports nothing, or rubbish, would make requests free and the ceiling a wish."""

    async def scene() -> None:
        for usage in BAD_USAGE:
            body = {"choices": [], "usage": usage}
            answer = chunked(content("a"), event(**body), DONE) if stream else plain(body)
            async with World(upstream=Scripted(answer)) as world:
                assert (await world.chat(hello(stream=stream))).status == 200
                assert world.consumed_nusd == world.estimated_nusd > USAGE_NUSD, usage
                assert world.reserved_nusd == 0

    run(scene())


def test_cached_input_has_its_own_price() -> None:
    """A team would pay the full price for what the upstream gives at a tenth."""
    prices = (PriceFrom(0, 1_000_000, 100_000, 8_000_000),)
    cheap = msgspec.structs.replace(model("cheap", "8"), prices=prices)

    async def scene() -> None:
        for usage in (
            {**USAGE, "prompt_tokens_details": {"cached_tokens": 15}},
            {**USAGE, "prompt_cache_hit_tokens": 15, "prompt_cache_miss_tokens": 5},
        ):
            async with World([route(rungs=("cheap",))], models=(cheap,), upstream=Scripted(plain({"usage": usage}))) as world:
                assert (await world.chat()).headers["x-stepdown-cost-usd"] == "0.0000865"
                assert world.consumed_nusd == 5 * 1_000 + 15 * 100 + 10 * 8_000

    run(scene())


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("stream", [False, True], ids=("plain", "stream"))
def test_an_encoded_answer_is_metered_and_relayed_decoded(encoding: str, stream: bool) -> None:
    """An upstream (or a CDN before it) that compresses unasked would make every request an estimate, or the client unable to
    read it."""
    text = b"".join(STREAM) if stream else json.dumps(COMPLETION).encode()
    packed = gzip.compress(text) if encoding == "gzip" else zlib.compress(text)
    kind = "text/event-stream" if stream else "application/json"
    headers = f"content-type: {kind}\r\ncontent-encoding: {encoding}\r\n"

    async def scene() -> None:
        data = chunked(packed[:9], packed[9:], headers=headers) if stream else plain(packed, headers=headers)
        async with World(upstream=Scripted(data)) as world:
            answer = await world.chat(hello(stream=stream))
            assert "content-encoding" not in answer.headers
            assert answer.body == (b"".join(BARE) if stream else text)
            assert world.consumed_nusd == USAGE_NUSD

    run(scene())


def test_a_small_answer_that_unpacks_to_a_large_one_is_rubbish() -> None:
    """One answer could fill the proxy's memory."""

    async def scene() -> None:
        bomb = gzip.compress(b" " * 5_000_000)
        upstream = Scripted(plain(bomb, headers="content-type: application/json\r\ncontent-encoding: gzip\r\n"))
        limits = Limits(max_answer_bytes=1_000_000)
        async with World([route(rungs=("big",))], upstream=upstream, limits=limits) as world:
            answer = await world.chat()
            assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
            assert world.consumed_nusd == world.estimated_nusd > 0

    run(scene())


def test_a_refusal_of_the_upstream_comes_as_it_is_and_costs_nothing() -> None:
    """A client would not learn what is wrong with its request, or pay for the refusal, or the request be sent to every model
    in turn."""
    body = b'{"error": {"message": "messages: too long", "type": "invalid_request_error", "code": "context_length_exceeded"}}'

    async def scene() -> None:
        for status in ("400 Bad Request", "404 Not Found", "413 Too Large", "422 Unprocessable"):
            upstream = Scripted(plain(body, status, "content-type: application/json\r\nset-cookie: a=b\r\n"))
            async with World([route(fallbacks=("spare",))], upstream=upstream) as world:
                for stream in (False, True):
                    answer = await world.chat(hello(stream=stream))
                    assert (answer.status, answer.body) == (int(status[:3]), body)
                    assert answer.headers["x-stepdown-cost-usd"] == "0.00"
                    assert "set-cookie" not in answer.headers
                assert len(upstream.heard) == 2
                assert (world.consumed_nusd, world.reserved_nusd) == (0, 0)

    run(scene())


def test_a_slow_reader_holds_its_stream_up_and_nothing_else() -> None:
    """The proxy would take a whole stream into memory for a client that does not read."""
    piece = content("x" * 40_000)
    count = 1_000
    """More than the kernel holds for three sockets (some 20 MB)."""
    written = 0

    async def script(heard: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(chunked(end=False))
        for _ in range(count):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            written += 1
            await writer.drain()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(STREAM[5]), STREAM[5]))

    async def scene() -> None:
        upstream = Scripted(script)
        async with World([route(timeout_s=30.0)], upstream=upstream) as world, world.client() as slow:
            slow.writer.transport.pause_reading()
            slow.send_chat(stream=True)
            seen = -1
            while seen != written or not written:
                seen = written
                await asyncio.sleep(0.2)
            assert written < count, "the upstream was held up"
            (front,) = world.app.server.fronts
            assert front.is_paused
            assert front._transport.get_write_buffer_size() < 1_000_000
            async with world.client() as other:
                assert (await other.get("/healthz")).status == 200
            slow.writer.transport.resume_reading()
            answer = await slow.answer()
            assert answer.body == piece * count
            assert world.consumed_nusd == USAGE_NUSD

    run(scene())


def test_many_streams_at_once_come_as_they_are_made() -> None:
    """Users who watch an answer being written would wait for its end, or for each other."""

    async def scene() -> None:
        gate = asyncio.Event()
        first = content("first", usage=None)

        async def script(heard: Heard, writer: asyncio.StreamWriter) -> None:
            writer.write(chunked(first, end=False))
            await gate.wait()
            rest = b"".join(STREAM[3:])
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))

        async with World(upstream=Scripted(script, backlog=512)) as world:
            clients = [world.client() for _ in range(200)]
            for client in clients:
                await client.__aenter__()
                client.send_chat(stream=True)
            for client in clients:
                status, _ = await client.head()
                assert status == 200
                assert await client.chunk() == content("first")
            assert world.app.server.wire.exchanges == 200
            gate.set()
            for client in clients:
                rest = b""
                while chunk := await client.chunk():
                    rest += chunk
                assert rest == b"".join(BARE[3:])
                client.close()
            assert world.consumed_nusd == 200 * USAGE_NUSD

    run(scene())


def test_connections_to_the_upstream_are_kept_and_looked_at() -> None:
    """Each request would pay for a handshake; or a kept connection that the upstream has closed would cost a request."""

    async def scene() -> None:
        async with World(limits=Limits(idle_upstream_s=0.3)) as world:
            for _ in range(5):
                assert (await world.chat()).status == 200
            assert {entry.request.connection for entry in world.sim.log} == {1}
            while world.sim.connections:  # noqa: ASYNC110 (the simulator tells nobody)
                await asyncio.sleep(0.05)
            assert world.app.server.wire.open_upstream == 0
            assert (await world.chat()).status == 200

    run(scene())


def test_each_channel_has_its_key() -> None:
    """Pro models would be asked for with the standard key and refused, or the Pro key be sent where it does not belong."""

    async def scene() -> None:
        models = (*MODELS, model("reserved", "8", channel="pro"))
        keys = FixedKeys({"standard": "sk-one\n", "pro": "ga_pro_two"})
        async with World(
            [route(), route("shop/pro", ("reserved",))], models=models, keys=keys, upstream=Scripted(plain(COMPLETION))
        ) as world:
            assert isinstance(world.upstream, Scripted)
            await world.chat()
            await world.chat(hello(model="pro"))
            assert [heard.headers["authorization"] for heard in world.upstream.heard] == ["Bearer sk-one", "Bearer ga_pro_two"]

    run(scene())


def test_a_stream_that_is_not_one_is_answered_whole() -> None:
    """A model without streaming would give a client half an answer, or none."""

    async def scene() -> None:
        async with World(upstream=Scripted(plain(COMPLETION))) as world:
            answer = await world.chat(hello(stream=True))
            assert answer.json() == COMPLETION
            assert world.consumed_nusd == USAGE_NUSD

    run(scene())


def test_an_answer_without_length_or_chunks_ends_with_its_connection() -> None:
    """Old servers that frame so could not be used, or their answers be taken for cut."""
    body = json.dumps(COMPLETION).encode()

    async def script(heard: Heard, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + body)
        await writer.drain()
        return False

    async def scene() -> None:
        async with World(upstream=Scripted(script)) as world:
            for _ in range(2):
                assert (await world.chat()).body == body
            assert world.consumed_nusd == 2 * USAGE_NUSD

    run(scene())


def test_the_simulated_upstream_bills_what_the_till_counts() -> None:
    """The ledger and the invoice would drift apart."""

    async def scene() -> None:
        async with World() as world:
            assert world.sim._model is EXACT
            for stream in (False, True, False):
                assert (await world.chat(hello(stream=stream, n=2))).status == 200
            assert world.consumed_nusd == world.sim.bill.total_nusd > 0
            assert world.estimated_nusd == 0

    run(scene())


def test_answers_with_heads_that_come_again_are_each_their_own() -> None:
    """What the proxy remembers of one answer's head would be taken for the next one's: its length, its status, its body."""
    bodies = [{**COMPLETION, "id": "x" * n} for n in (1, 1, 200, 3, 3, 3)]
    answers = [plain(body) for body in bodies]
    answers.insert(3, plain({"error": {"message": "no"}}, "400 Bad Request"))
    answers.insert(5, plain(bodies[0], headers="content-type: application/json\r\nx-request-id: r5\r\n"))
    answers.append(chunked(json.dumps(bodies[0]).encode(), headers="content-type: application/json\r\n"))

    async def script(heard: Heard, writer: asyncio.StreamWriter) -> None:
        answer = answers[int(heard.body["user"])]
        if len(answer) > 300:  # in two pieces
            writer.write(answer[:250])
            await asyncio.sleep(0.01)
            writer.write(answer[250:])
        else:
            writer.write(answer)

    async def scene() -> None:
        async with World(upstream=Scripted(script)) as world, world.client() as client:
            assert isinstance(world.upstream, Scripted)
            for number, raw in enumerate([*answers, *answers]):
                number %= len(answers)
                answer = await client.chat(hello(user=str(number)))
                status = int(raw.split()[1])
                assert (answer.status, answer.headers.get("x-request-id")) == (status, "r5" if number == 5 else None)
                if b"chunked" not in raw:
                    assert answer.body == raw.partition(b"\r\n\r\n")[2]
            assert {heard.on_connection for heard in world.upstream.heard} == set(range(2 * len(answers)))

    run(scene())
