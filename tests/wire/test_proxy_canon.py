"""The short way and the long way through a body agree, and what is sent says what was asked."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stepdown.proxy import canon
from stepdown.proxy.errors import BadRequest
from stepdown.proxy.plainchat import PlainChat

TEXT = st.text(max_size=12)
ROLE = st.sampled_from(["user", "system", "assistant"])
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200), st.floats(-3, 3), TEXT, st.just({}), st.just([]), st.just(2**64)
)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": ROLE, "content": TEXT}, optional={"name": TEXT}),
    st.fixed_dictionaries(
        {"role": ROLE, "content": st.one_of(ODD, st.lists(st.fixed_dictionaries({"type": TEXT, "text": TEXT})))}
    ),
    ODD,
)
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 50),
    "max_completion_tokens": st.integers(1, 50),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "n": st.integers(1, 128),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans(), "include_obfuscation": st.booleans()}
    ),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "user": TEXT,
    "stop": st.one_of(TEXT, st.lists(TEXT, max_size=2)),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
}
BODY = st.fixed_dictionaries(
    {"model": st.one_of(st.just("a/b:critical"), TEXT), "messages": st.lists(st.one_of(MESSAGE, MESSAGE), max_size=3)},
    optional={name: st.one_of(usual, usual, usual, ODD) for name, usual in USUAL.items()} | {"odd": ODD, "service_tier": ODD},
)


def judge(parsed: Any, raw: bytes) -> Any:
    """What comes of a body: the request, or why not."""
    try:
        chat = canon.plain(parsed, raw, 0.5) if isinstance(parsed, PlainChat) else None
        if chat is None:
            parsed = parsed if isinstance(parsed, dict) else canon.parse(raw)
            chat = canon.chat(parsed, hard=True, extra_fields=(), temperature=0.5)
    except BadRequest as error:
        return error.code, error.param
    return json.loads(b"{" + chat.rest), chat.shape._replace(input_tokens_bound=0), chat.include_usage


def outcome(parse: Any, raw: bytes) -> Any:
    try:
        parsed = parse(raw)
        canon.model_of(parsed)
    except BadRequest as error:
        return error.code, error.param
    return judge(parsed, raw)


@settings(max_examples=400, deadline=None)
@given(BODY, st.booleans())
def test_both_ways_come_to_the_same(body: dict[str, Any], ascii_only: bool) -> None:
    """A body would be priced by how it happens to be written, or the short way let through what the long one refuses."""
    raw = json.dumps(body, ensure_ascii=ascii_only).encode()
    assert outcome(canon.read, raw) == outcome(canon.parse, raw)


@settings(max_examples=200, deadline=None)
@given(BODY, st.data())
def test_a_key_that_comes_twice_is_found_however_it_is_written(body: dict[str, Any], data: st.DataObject) -> None:
    """`n` would be 1 for the till and 8 for the upstream."""
    raw = json.dumps(body).encode()
    name = data.draw(st.sampled_from(sorted(body)))
    spelt = "".join(data.draw(st.sampled_from([letter, f"\\u{ord(letter):04x}"])) for letter in name)
    space = data.draw(st.sampled_from(["", " ", "\n\t"]))
    twice = raw[:-1] + f',"{spelt}"{space}:{space}'.encode() + json.dumps(body[name]).encode() + b"}"
    assert outcome(canon.read, twice) == ("duplicate_key", name)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ROLE, st.text(max_size=40)), min_size=1, max_size=4))
def test_the_bound_on_input_covers_every_byte_of_the_text(messages: list[tuple[str, str]]) -> None:
    """A tokenizer that makes a token of each byte, or of each of three after normalisation, would pass the reservation."""
    body = {"model": "a", "messages": [{"role": role, "content": text} for role, text in messages]}
    raw = json.dumps(body).encode()
    parsed = canon.read(raw)
    assert isinstance(parsed, PlainChat)
    chat = canon.plain(parsed, raw, None)
    assert chat is not None
    letters = "".join(text for _, text in messages)
    worst = sum(1 if letter.isascii() else 3 * len(letter.encode()) for letter in letters)
    assert chat.shape.input_tokens_bound >= worst + 256
