"""From a body's bytes to a request that can be priced and sent: parsed, checked, and written again canonically. `exchange`
calls it.

Why written again: what the proxy counted must be what the upstream reads. Of two parsers that meet `{"n":1,"n":8}` one reads
1 and the other 8; bytes that were decoded, judged and encoded here have one reading only. What depends on the model (its id,
the bound on output) is put in front of the rest for each attempt, so a fallback does not encode a long conversation again.
"""

import json
from collections.abc import Collection
from typing import Any, Final

import msgspec
from msgspec import UNSET

from stepdown.proxy import plainchat
from stepdown.proxy.errors import BadRequest
from stepdown.proxy.fields import ALWAYS, MESSAGE, REFUSED, TEXT_PARTS, UNDER_HARD, never, unknown, wrong
from stepdown.proxy.plainchat import PlainChat, StreamOptions
from stepdown.proxy.shape import RequestShape

MAX_DEPTH: Final = 64
MARGIN_TOKENS: Final = 256
"""On top of a token a byte: what a chat template adds around the messages."""

_NON_ASCII: Final = bytes(range(0x80, 0x100))
_BACKSLASH: Final = 0x5C  # as numbers: a search for one byte is twice as fast by its number
_COLON: Final = 0x3A
_LOW: Final = -(2**63)
_HIGH: Final = 2**64 - 1

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_new: Final = tuple.__new__
_UNSET: Final = UNSET


class ChatRequest:
    """A chat completion as the client asked for it, ready to be sent to any model."""

    __slots__ = ("include_usage", "rest", "shape", "stream")

    def __init__(self, rest: bytes, shape: RequestShape, stream: bool, include_usage: bool) -> None:
        self.rest = rest
        """The canonical body without its brace, its model and its bound on output."""
        self.shape = shape
        self.stream = stream
        self.include_usage = include_usage
        """The client wants to see the usage of a stream."""

    def body(self, model: bytes, field: bytes, max_tokens: int | None) -> bytes:
        """The body for one attempt. `model` and `field` are as JSON has them, with their colons and commas
        (`attempt_parts`)."""
        if max_tokens is None:
            return b"%b%b" % (model, self.rest)
        return b"%b%b%d,%b" % (model, field, max_tokens, self.rest)


def attempt_parts(upstream_id: str, max_tokens_field: str) -> tuple[bytes, bytes]:
    """What of a body depends on the model: `{"model":"…",` and `"max_tokens":`."""
    return b'{"model":%b,' % _encode(upstream_id), b"%b:" % _encode(max_tokens_field)


def read(body: bytes) -> PlainChat | dict[str, Any]:
    """The body, decoded: by the short way where it fits, else as an object. Raises BadRequest."""
    try:
        return plainchat.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return parse(body)


def parse(body: bytes) -> dict[str, Any]:
    """The body as an object with one reading. What its fields may be, `chat` says. Raises BadRequest."""
    try:
        parsed = _decode(body)
        if type(parsed) is not dict:
            raise BadRequest(f"the body is a JSON {_json_type(parsed)}; it must be an object", code="invalid_type")
        # Duplicate keys, without walking the tree: the decoder drops all but one of them, and every key comes with a colon.
        # All other colons stand in strings, which encode to as many colons as they had, unless one was escaped. So fewer
        # colons after a round trip mean that a key was dropped, and as many mean that none was.
        if body.count(b":") != _encode(parsed).count(b":") or b"\\u003" in body:
            json.loads(body, object_pairs_hook=_unique)
    except msgspec.ValidationError as error:  # a number beyond a float, or an integer of thousands of digits
        raise BadRequest(f"the body is JSON with a number out of range: {error}", code="number_out_of_range") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON in UTF-8: {error}", code="malformed_json") from None
    except RecursionError:
        raise _too_deep(None) from None
    return parsed


def model_of(parsed: PlainChat | dict[str, Any]) -> str:
    """The route that the client names. Raises BadRequest."""
    if type(parsed) is PlainChat:
        return parsed.model
    assert isinstance(parsed, dict)
    model = parsed.get("model")
    if type(model) is str and model:
        return model
    if "model" in parsed:
        raise wrong("model", model, "the name of a route, a string", code="invalid_type")
    raise BadRequest("model is missing; it must be the name of a route", param="model", code="missing_field")


def chat(parsed: dict[str, Any], *, hard: bool, extra_fields: Collection[str], temperature: float | None) -> ChatRequest:
    """The long way: checks any chat request and writes it again. `parsed` is used up. Raises BadRequest."""
    _check_fields(parsed, hard, extra_fields)
    has_non_text = _check_messages(parsed.get("messages"), hard)
    max_tokens = parsed.pop("max_tokens", None)
    completion_tokens = parsed.pop("max_completion_tokens", None)
    if max_tokens is None:
        max_tokens = completion_tokens
    elif completion_tokens is not None:
        raise BadRequest(
            "max_tokens and max_completion_tokens are both set; leave one of them out",
            param="max_completion_tokens",
            code="both_max_tokens",
        )
    del parsed["model"]
    stream = parsed.get("stream") is True
    options = parsed.get("stream_options")
    include_usage = False
    if stream:
        include_usage = options is not None and options.get("include_usage") is True
        parsed["stream_options"] = {**(options or {}), "include_usage": True}
    elif options is not None:
        raise BadRequest("stream_options may only be set when stream is true", param="stream_options", code="invalid_value")
    if temperature is not None and "temperature" not in parsed:
        parsed["temperature"] = temperature
    rest = _encode(parsed)
    shape = RequestShape(_tokens(rest), has_non_text, max_tokens, parsed.get("n", 1), stream)
    return ChatRequest(rest[1:], shape, stream, include_usage)


def plain(parsed: PlainChat, body: bytes, temperature: float | None) -> ChatRequest | None:
    """The short way. None: something is odd, and the long way has the words for it."""
    max_tokens, model = parsed.max_tokens, parsed.model
    if max_tokens is _UNSET:
        max_tokens = parsed.max_completion_tokens
    elif parsed.max_completion_tokens is not _UNSET:
        return None
    if body.find(_BACKSLASH) >= 0 and b"\\u003" in body:
        return None
    parsed.max_tokens = parsed.max_completion_tokens = _UNSET
    parsed.model = _UNSET  # type: ignore[assignment]  # what is unset is not encoded
    colons = body.count(_COLON) - 1 - model.count(":")
    if max_tokens is not _UNSET:
        colons -= 1
    include_usage = stream = False
    if parsed.stream is True:
        stream = True
        options = parsed.stream_options
        if options is _UNSET:
            parsed.stream_options = StreamOptions(include_usage=True)
            colons += 2
        else:
            include_usage = options.include_usage is True
            if options.include_usage is _UNSET:
                colons += 1
            options.include_usage = True
    elif parsed.stream_options is not _UNSET:
        return None
    if temperature is not None and parsed.temperature is _UNSET:
        parsed.temperature = temperature
        colons += 1
    rest = _encode(parsed)
    if rest.count(_COLON) != colons:  # a key came twice, see `parse`
        return None
    tokens = len(rest) + MARGIN_TOKENS if rest.isascii() else _tokens(rest)
    n = parsed.n
    numbers = (tokens, False, None if max_tokens is _UNSET else max_tokens, 1 if n is _UNSET else n, stream)
    shape = _new(RequestShape, numbers)  # a named tuple's own constructor is a Python call
    return ChatRequest(rest[1:], shape, stream, include_usage)


def _tokens(rest: bytes) -> int:
    """An ASCII byte is at most one token; any other at most three, since Unicode normalisation can triple."""
    ascii_bytes = len(rest.translate(None, _NON_ASCII))
    return ascii_bytes + 3 * (len(rest) - ascii_bytes) + MARGIN_TOKENS


def _check_fields(parsed: dict[str, Any], hard: bool, extra_fields: Collection[str]) -> None:
    """Every field of the body but the messages. A null says what leaving the field out says, and is left out."""
    known = UNDER_HARD if hard else ALWAYS
    nulls: list[str] = []
    for field, value in parsed.items():
        if field == "messages" or field == "model":  # checked by themselves
            continue
        kind = type(value)
        if kind is dict or kind is list:
            _check_tree(field, value, 1)
        elif kind is int and not _LOW <= value <= _HIGH:
            raise _too_big(field, value)
        check = known.get(field)
        if check is not None:
            if value is None:
                nulls.append(field)
            else:
                check(field, value)
        elif hard:
            why = REFUSED.get(field)
            if why is not None:
                if value is not None:
                    raise never(field, why)
                nulls.append(field)
            elif field not in extra_fields:
                raise unknown(field)
    for field in nulls:
        del parsed[field]


def _check_messages(messages: Any, hard: bool) -> bool:
    """The conversation. Whether any part of it is not text."""
    if type(messages) is not list or not messages:
        if messages is None:
            raise BadRequest("messages is missing; it must be a list of messages", param="messages", code="missing_field")
        raise wrong("messages", messages, "a list of at least one message", code="invalid_type")
    has_non_text = False
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise wrong(f"messages[{index}]", message, "an object", code="invalid_type")
        if type(message.get("role")) is not str:
            raise wrong(f"messages[{index}].role", message.get("role"), "a string", code="invalid_type")
        content = message.get("content")
        if type(content) is list:
            has_non_text |= _check_parts(f"messages[{index}].content", content, hard)
        elif content is not None and type(content) is not str:
            raise wrong(f"messages[{index}].content", content, "a string or a list of parts", code="invalid_type")
        for field, value in message.items():
            if hard and field not in MESSAGE:
                _check_odd_field(f"messages[{index}].{field}", field, value)
            if type(value) is not str and field != "content":
                _check_tree(f"messages[{index}].{field}", value, 3)
    return has_non_text


def _check_odd_field(where: str, field: str, value: Any) -> None:
    if field == "audio":
        if value is not None:
            raise never(where, "an earlier answer that lies at the upstream has a length that the proxy cannot see")
    else:
        raise unknown(where)


def _check_parts(where: str, parts: list[Any], hard: bool) -> bool:
    """The parts of one message's content. Whether any of them is not text."""
    has_non_text = False
    for index, part in enumerate(parts):
        at = f"{where}[{index}]"
        if type(part) is not dict or type(part.get("type")) is not str:
            raise wrong(at, part, "an object with a type", code="invalid_type")
        _check_tree(at, part, 4)
        kind = part["type"]
        text = TEXT_PARTS.get(kind)
        if text is None:
            has_non_text = True
            inner = part.get(kind)
            if hard and type(inner) is dict and inner.get("file_id") is not None:
                raise never(f"{at}.{kind}.file_id", "a file that lies at the upstream has a size that the proxy cannot see")
        elif type(part.get(text)) is not str:
            raise wrong(f"{at}.{text}", part.get(text), "a string", code="invalid_type")
        if hard:
            for field in part:
                if field not in ("type", text or kind):
                    raise unknown(f"{at}.{field}")
    return has_non_text


def _check_tree(where: str, value: Any, depth: int) -> None:
    """No integer beyond 64 bits and no nesting beyond `MAX_DEPTH` below a value that lies `depth` levels down, level by
    level."""
    level = [value]
    while level:
        deeper: list[Any] = []
        for each in level:
            if type(each) is dict:
                deeper.extend(each.values())
            elif type(each) is list:
                deeper.extend(each)
            elif type(each) is int and not _LOW <= each <= _HIGH:
                raise _too_big(where, each)
        level = deeper
        depth += 1
        if depth > MAX_DEPTH + 1 and level:
            raise _too_deep(where)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    """Called by the slow parser for each object."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise BadRequest(
                f"the body has the key {name!r} twice in one object; which one holds is anybody's guess, so neither does",
                param=name,
                code="duplicate_key",
            )
        seen.add(name)


def _too_big(where: str, value: int) -> BadRequest:
    return BadRequest(
        f"{where} has an integer of {value.bit_length()} bits; no more than 64 bits are carried exactly by all parsers",
        param=where,
        code="integer_out_of_range",
    )


def _too_deep(where: str | None) -> BadRequest:
    message = f"{where or 'the body'} is nested more than {MAX_DEPTH} levels deep; make it flatter"
    return BadRequest(message, param=where, code="too_deep")


def _json_type(value: object) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
