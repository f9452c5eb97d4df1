"""Bodies that the proxy must refuse, each with its status, code and field, on a connection that then serves the next one."""

import json
from typing import Any

import pytest

from stepdown.proxy.wire import Limits
from tests.wire.proxy_world import HELLO, MODELS, World, hello, model, route, run

IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]}


def message(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "hello", **fields}]


def deep(levels: int) -> bytes:
    return json.dumps(hello()).encode()[:-1] + b',"tools":' + b"[" * levels + b"]" * levels + b"}"


BAD: list[tuple[str, bytes | dict[str, Any], int, str, str | None]] = [
    ("malformed", b'{"model": "chat", ', 400, "malformed_json", None),
    ("empty", b"", 400, "malformed_json", None),
    ("trailing", b'{"model": "chat"} x', 400, "malformed_json", None),
    ("not an object", b"[1, 2]", 400, "invalid_type", None),
    ("NaN", b'{"model": "chat", "temperature": NaN}', 400, "malformed_json", None),
    ("invalid UTF-8", b'{"model": "\xff\xfe"}', 400, "malformed_json", None),
    ("encoded surrogate", b'{"model": "\xed\xa0\x80"}', 400, "malformed_json", None),
    ("lone surrogate", b'{"model": "\\ud800"}', 400, "malformed_json", None),
    ("lone low surrogate", b'{"model": "\\udc00x"}', 400, "malformed_json", None),
    ("byte order mark", b'\xef\xbb\xbf{"model": "chat"}', 400, "malformed_json", None),
    ("duplicate key", b'{"model": "chat", "n": 1, "n": 8}', 400, "duplicate_key", "n"),
    ("duplicate key, escaped", b'{"model": "chat", "n": 1, "\\u006e": 8}', 400, "duplicate_key", "n"),
    ("duplicate key, spaced", b'{"model": "chat", "n" : 1, "n"\n: 8}', 400, "duplicate_key", "n"),
    ("duplicate key below", b'{"model": "chat", "messages": [{"role": "a", "role": "b"}]}', 400, "duplicate_key", "role"),
    (
        "duplicate key hidden by an escaped colon",
        b'{"model": "chat", "user": "\\u003a", "n": 1, "n": 8}',
        400,
        "duplicate_key",
        "n",
    ),
    ("number beyond a float", b'{"model": "chat", "temperature": 1e999}', 400, "number_out_of_range", None),
    ("integer beyond 64 bits", hello(seed=2**64), 400, "integer_out_of_range", "seed"),
    ("integer beyond 64 bits below", hello(logit_bias={"5": -(2**63) - 1}), 400, "integer_out_of_range", "logit_bias"),
    ("integer of 5,000 digits", b'{"model": "chat", "seed": ' + b"9" * 5000 + b"}", 400, "number_out_of_range", None),
    ("nested too deep", deep(70), 400, "too_deep", "tools"),
    ("nested far too deep", deep(100_000), 400, "too_deep", None),
    ("deep content", hello(messages=message(content=[{"type": "text", "text": "a", "x": json.loads("[" * 65 + "]" * 65)}])),
     400, "too_deep", "messages[0].content[0]"),
    ("no model", {"messages": HELLO}, 400, "missing_field", "model"),
    ("model of a wrong type", hello(model=7), 400, "invalid_type", "model"),
    ("unknown route", hello(model="nowhere"), 404, "model_not_found", "model"),
    ("unknown class", hello(model="chat:urgent"), 400, "class_not_found", "model"),
    ("no messages", {"model": "chat"}, 400, "missing_field", "messages"),
    ("empty messages", hello(messages=[]), 400, "invalid_type", "messages"),
    ("messages of a wrong type", hello(messages="hello"), 400, "invalid_type", "messages"),
    ("a message of a wrong type", hello(messages=["hello"]), 400, "invalid_type", "messages[0]"),
    ("no role", hello(messages=[{"content": "hello"}]), 400, "invalid_type", "messages[0].role"),
    ("content of a wrong type", hello(messages=message(content=7)), 400, "invalid_type", "messages[0].content"),
    ("part without a type", hello(messages=message(content=[{"text": "a"}])), 400, "invalid_type", "messages[0].content[0]"),
    ("text of a wrong type", hello(messages=message(content=[{"type": "text", "text": 7}])), 400, "invalid_type",
     "messages[0].content[0].text"),
    ("max_tokens of a wrong type", hello(max_tokens="100"), 400, "invalid_type", "max_tokens"),
    ("max_tokens true", hello(max_tokens=True), 400, "invalid_type", "max_tokens"),
    ("max_tokens 0", hello(max_tokens=0), 400, "out_of_range", "max_tokens"),
    ("max_tokens 2^31", hello(max_tokens=2**31), 400, "out_of_range", "max_tokens"),
    ("both max-tokens fields", hello(max_completion_tokens=100), 400, "both_max_tokens", "max_completion_tokens"),
    ("n 0", hello(n=0), 400, "out_of_range", "n"),
    ("n 129", hello(n=129), 400, "out_of_range", "n"),
    ("n 1.0", hello(n=1.0), 400, "invalid_type", "n"),
    ("stream of a wrong type", hello(stream="yes"), 400, "invalid_type", "stream"),
    ("stream_options without a stream", hello(stream_options={}), 400, "invalid_value", "stream_options"),
    ("stream_options of a wrong type", hello(stream=True, stream_options=True), 400, "invalid_type", "stream_options"),
    ("temperature of a wrong type", hello(temperature="hot"), 400, "invalid_type", "temperature"),
    ("temperature out of range", hello(temperature=2.5), 400, "out_of_range", "temperature"),
    ("unknown field", hello(cheat=1), 400, "unknown_field", "cheat"),
    ("unknown field of a message", hello(messages=message(cheat=1)), 400, "unknown_field", "messages[0].cheat"),
    ("unknown field of a part", hello(messages=message(content=[{"type": "text", "text": "a", "cache_control": {}}])),
     400, "unknown_field", "messages[0].content[0].cache_control"),
    ("unknown stream option", hello(stream=True, stream_options={"x": 1}), 400, "unknown_field", "stream_options.x"),
    ("earlier response", hello(previous_response_id="r1"), 400, "not_under_hard_budget", "previous_response_id"),
    ("conversation", hello(conversation="c1"), 400, "not_under_hard_budget", "conversation"),
    ("stored prompt", hello(prompt={"id": "p1"}), 400, "not_under_hard_budget", "prompt"),
    ("background", hello(background=True), 400, "not_under_hard_budget", "background"),
    ("service tier", hello(service_tier="priority"), 400, "not_under_hard_budget", "service_tier"),
    ("web search", hello(web_search_options={}), 400, "not_under_hard_budget", "web_search_options"),
    ("prediction", hello(prediction={"type": "content", "content": "x"}), 400, "not_under_hard_budget", "prediction"),
    ("spoken answer", hello(audio={"voice": "a", "format": "wav"}), 400, "not_under_hard_budget", "audio"),
    ("audio modality", hello(modalities=["text", "audio"]), 400, "unpriced_output", "modalities"),
    ("stored completion", hello(store=True), 400, "server_side_state", "store"),
    ("hosted tool", hello(tools=[{"type": "web_search"}]), 400, "hosted_tool", "tools[0].type"),
    ("stored audio", hello(messages=message(role="assistant", audio={"id": "a1"})), 400, "not_under_hard_budget",
     "messages[0].audio"),
    ("stored file", hello(messages=message(content=[{"type": "file", "file": {"file_id": "f1"}}])), 400,
     "not_under_hard_budget", "messages[0].content[0].file.file_id"),
    ("image by URL, unknown context", hello(messages=[IMAGE]), 400, "unbounded_request", None),
]  # fmt: skip


def test_each_bad_body_has_its_answer_and_the_connection_goes_on() -> None:
    """A request that cannot be priced would be sent, or one bad client would take the connection, or the proxy, from others."""

    async def scene() -> None:
        async with World() as world, world.client() as client:
            for name, body, status, code, param in BAD:
                answer = await client.chat(body)
                assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param), name
                assert answer.error["type"] == "invalid_request_error", name
                assert len(answer.error["message"]) > 20, name
            assert (await client.chat()).status == 200
            assert world.sim.requests == 1
            assert world.reserved_nusd == 0

    run(scene())


@pytest.mark.parametrize("value", [None])
def test_null_says_what_leaving_the_field_out_says(value: None) -> None:
    """Clients that fill in nulls (many do) would be refused, or a null reach the upstream beside what replaces it."""

    async def scene() -> None:
        async with World() as world:
            fields = dict.fromkeys(("max_completion_tokens", "n", "stream", "temperature", "service_tier", "audio"), value)
            answer = await world.chat(hello(**fields))
            assert answer.status == 200
            assert set(world.sim.log[-1].body) == {"model", "messages", "max_tokens"}

    run(scene())


def test_without_a_hard_budget_unknown_fields_pass() -> None:
    """A team without a ceiling could not use what its models offer."""

    async def scene() -> None:
        async with World(hard=False) as world:
            assert (await world.chat(hello(cheat={"a": [1]}, service_tier="flex"))).status == 200
            assert world.sim.log[-1].body["cheat"] == {"a": [1]}
            assert (await world.chat(hello(max_tokens="7"))).status == 400

    run(scene())


def test_an_administrator_lets_a_field_pass() -> None:
    """`RoutingProxy.spec.extraBodyFields` would be a promise without effect; or it would open what has a price of its own."""

    async def scene() -> None:
        async with World(fleet={"extra_body_fields": ("chat_template_kwargs", "service_tier")}) as world:
            assert (await world.chat(hello(chat_template_kwargs={"x": True}))).status == 200
            assert (await world.chat(hello(service_tier="flex"))).error["code"] == "not_under_hard_budget"

    run(scene())


def test_what_counts_in_the_worst_case() -> None:
    """`n` answers, an image, or letters of many bytes would cost more than was reserved."""

    async def scene() -> None:
        models = (*MODELS, model("eyes", "8", context_tokens=32_000))
        routes = [route(), route("shop/eyes", ("eyes",))]
        async with World(routes, models=models, limits=Limits(drain_s=0.1)) as world:
            sim = world.sim
            holds: list[int] = []

            async def reserved(body: dict[str, Any]) -> int:
                sim.fault("hang", next=1)
                async with world.client() as client:
                    before = sim.requests
                    client.send_chat(body)
                    await sim.arrived(before + 1)
                    holds.append(world.reserved_nusd)
                    now = world.reserved_nusd
                await world.settled()
                return now

            one = await reserved(hello())
            eight = await reserved(hello(n=8))
            assert eight - one == 7 * 100 * 8_000 + len('"n":8,') * 1_000
            umlauts = await reserved(hello(messages=[{"role": "user", "content": "ä" * 50}]))
            letters = await reserved(hello(messages=[{"role": "user", "content": "a" * 50}]))
            assert umlauts - letters == 50 * 5 * 1_000
            assert await reserved(hello(model="eyes", messages=[IMAGE])) == 32_000 * 1_000 + 100 * 8_000

    run(scene())
