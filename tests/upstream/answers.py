"""What the simulated upstream answers to one request, as a script of bytes and pauses that `server.py` plays. Pure.

A script is made whole before its first byte is sent; a fault is a change to the script. So each fault can be read off here, and
a run with the same seed answers the same.
"""

import enum
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from tests.upstream.bill import Tokens
from tests.upstream.faults import Fault, Kind
from tests.upstream.tokens import Completion, Draw, TokenRule, completion, prompt_tokens, usage_of

_encode = msgspec.json.Encoder().encode
_WORDS = b"the probe asks port 8080 while the new image listens on 9090 so change both and roll out again ".decode()
_TEXT = _WORDS * 200
_BYTES_PER_TOKEN = 4
_PHRASES = {200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 429: b"Too Many Requests"}
CREATED_S = 1_790_000_000


class End(enum.Enum):
    """What happens to the connection after a script."""

    KEEP = "keep"
    FIN = "fin"
    RESET = "reset"
    HANG = "hang"


class Step(NamedTuple):
    """Bytes to send after a pause; `tokens` is how much of the completion has left once they are sent."""

    pause_s: float
    data: bytes
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Script:
    steps: tuple[Step, ...]
    end: End = End.KEEP
    whole: bool = True
    """False: even when all steps are played, the client did not get its answer."""
    tokens: Tokens | None = None
    """What the provider bills for; None: nothing (4xx and 5xx)."""


@dataclass(frozen=True, slots=True)
class Model:
    """How the simulated models behave."""

    rule: TokenRule = "typical"
    output_tokens: tuple[int, int] = (20, 400)
    """The fewest and the most tokens a choice would have if no maximum cut it."""
    chunks: int = 20
    """How many content chunks a stream has at most, for each choice."""
    cached_of_100: int = 33
    """How many of a hundred requests find a part of their prompt cached."""
    reasoning_percent: int = 0
    """The share of the completion that is reasoning."""
    seed: int = 1


class Pace(NamedTuple):
    first_byte_s: float = 0.0
    per_chunk_s: float = 0.0


def answer(body: Mapping[str, Any], raw: bytes, number: int, model: Model, pace: Pace, faults: Mapping[Kind, Fault]) -> Script:
    """The script for one chat completion that has passed authentication and validation."""
    if slow := faults.get("slow"):
        pace = Pace(pace.first_byte_s + slow.first_byte_s, pace.per_chunk_s + slow.per_chunk_s)
    if fault := faults.get("status"):
        return refusal(
            fault.status, "the simulator was told to", "server_error", retry_after=fault.retry_after, pause_s=pace.first_byte_s
        )
    draw = Draw(model.seed, raw)
    prompt = prompt_tokens(body, model.rule, draw)
    said = _completion(body, model, draw, faults)
    total = sum(said.choices)
    cached = draw.below(prompt) if draw.below(100) < model.cached_of_100 else 0
    tokens = Tokens(prompt=prompt, cached=cached, completion=total, reasoning=total * model.reasoning_percent // 100)
    if fault := faults.get("drop"):
        return Script((Step(pace.first_byte_s, b""),), _end(fault), whole=False, tokens=tokens)
    if (fault := faults.get("hang")) and not fault.after_chunks:
        return Script((), End.HANG, whole=False, tokens=tokens)
    if fault := faults.get("rubbish"):
        return _rubbish(fault, pace, tokens)
    make = _stream if body.get("stream") else _plain
    return make(body, f"chatcmpl-{number:08x}", said, tokens, model, pace, faults)


def refusal(
    status: int, message: str, kind: str, *, code: str | None = None, retry_after: str | None = None, pause_s: float = 0.0
) -> Script:
    """An error in OpenAI's shape; never billed."""
    body = _encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
    extra = b"retry-after: %b\r\n" % retry_after.encode() if retry_after is not None else b""
    return Script((Step(pause_s, _head(status, b"application/json", len(body), extra) + body),))


def json_answer(value: object) -> Script:
    """A plain 200 for `/v1/models` and the control endpoints."""
    body = _encode(value)
    return Script((Step(0.0, _head(200, b"application/json", len(body)) + body),))


def _completion(body: Mapping[str, Any], model: Model, draw: Draw, faults: Mapping[Kind, Fault]) -> Completion:
    if fault := faults.get("ignore_max_tokens"):
        return completion(body, (fault.tokens, fault.tokens), False, draw)
    return completion(body, model.output_tokens, True, draw)


def _usage(tokens: Tokens, faults: Mapping[Kind, Fault]) -> object:
    usage = usage_of(tokens)
    if fault := faults.get("usage"):
        return usage | fault.usage if isinstance(fault.usage, dict) else fault.usage
    return usage


def _plain(
    body: Mapping[str, Any], id_: str, said: Completion, tokens: Tokens, model: Model, pace: Pace, faults: Mapping[Kind, Fault]
) -> Script:
    reply: dict[str, object] = {
        "id": id_,
        "object": "chat.completion",
        "created": CREATED_S,
        "model": body["model"],
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": _text(count), "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (count, reason) in enumerate(zip(*said, strict=True))
        ],
    }
    if "no_usage" not in faults:
        reply["usage"] = _usage(tokens, faults)
    payload, encoding = _encode(reply), b""
    if "gzip" in faults:
        payload, encoding = _Gzip().add(payload, last=True), b"content-encoding: gzip\r\n"
    data = _head(200, b"application/json", len(payload), encoding) + payload
    broken = faults.get("cut") or faults.get("hang")
    if broken:
        half = len(data) - len(payload) // 2
        steps = (Step(pace.first_byte_s, data[:half], tokens.completion // 2),)
        return Script(steps, _end(broken), whole=False, tokens=tokens)
    end = End.FIN if "close" in faults else End.KEEP
    return Script((Step(pace.first_byte_s, data, tokens.completion),), end, tokens=tokens)


def _stream(
    body: Mapping[str, Any], id_: str, said: Completion, tokens: Tokens, model: Model, pace: Pace, faults: Mapping[Kind, Fault]
) -> Script:
    asked = (body.get("stream_options") or {}).get("include_usage") is True and "no_usage" not in faults
    events = _events(body["model"], id_, said, tokens, model.chunks, asked, faults)
    gzip = _Gzip() if "gzip" in faults else None
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    steps = [Step(pace.first_byte_s, head + (b"content-encoding: gzip\r\n" if gzip else b"") + b"\r\n")]
    for index, (event, sent) in enumerate(events):
        last = index == len(events) - 1
        payload = gzip.add(event, last=last) if gzip else event
        steps.append(Step(pace.per_chunk_s, b"%x\r\n%b\r\n" % (len(payload), payload), sent))
    steps.append(Step(0.0, b"0\r\n\r\n", tokens.completion))
    broken = faults.get("cut") or faults.get("hang")
    if broken:
        return Script(tuple(steps[: 1 + broken.after_chunks]), _end(broken), whole=False, tokens=tokens)
    return Script(tuple(steps), End.FIN if "close" in faults else End.KEEP, tokens=tokens)


def _events(
    model: str, id_: str, said: Completion, tokens: Tokens, chunks: int, asked: bool, faults: Mapping[Kind, Fault]
) -> list[tuple[bytes, int]]:
    """Server-sent events, each with the completion tokens that have left once it is sent."""
    place = faults["usage_place"].place if asked and "usage_place" in faults else "last_chunk"
    events: list[tuple[bytes, int]] = []

    def event(choices: list[object], sent: int, *, usage: bool = False) -> None:
        chunk = {"id": id_, "object": "chat.completion.chunk", "created": CREATED_S, "model": model, "choices": choices}
        if usage or place == "every_chunk":
            so_far = msgspec.structs.replace(tokens, completion=sent, reasoning=min(tokens.reasoning, sent))
            chunk["usage"] = _usage(so_far, faults)
        elif asked:
            chunk["usage"] = None
        events.append((b"data: %b\n\n" % _encode(chunk), sent))

    sent = 0
    for index, count in enumerate(said.choices):
        event([_choice(index, {"role": "assistant", "content": ""})], sent)
        pieces = min(chunks, count)
        for piece in range(pieces):
            size = count * (piece + 1) // pieces - count * piece // pieces
            sent += size
            event([_choice(index, {"content": _text(size)})], sent)
    for index, reason in enumerate(said.finish_reasons):
        finished = place == "finish_chunk" and index == len(said.choices) - 1
        event([_choice(index, {}, reason)], sent, usage=finished)
    if asked and place == "last_chunk":
        event([], sent, usage=True)
    events.append((b"data: [DONE]\n\n", sent))
    return events


def _rubbish(fault: Fault, pace: Pace, tokens: Tokens) -> Script:
    html = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
    data, end = {
        "not_http": (b"\x16\x03\x01\x00\xffthis is not HTTP\r\n\r\n", End.HANG),
        "html": (_head(200, b"text/html", len(html)) + html, End.KEEP),
        "broken_json": (_head(200, b"application/json", 24) + b'{"id": "x", "choices": [', End.KEEP),
        "bad_chunk": (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nzz\r\ndata: {}\n\n\r\n",
            End.HANG,
        ),
        "short_body": (_head(200, b"application/json", 500) + b'{"id": "x"}', End.FIN),
        "empty": (_head(200, b"application/json", 0), End.KEEP),
    }[fault.rubbish]
    return Script((Step(pace.first_byte_s, data),), end, whole=False, tokens=tokens)


def _choice(index: int, delta: dict[str, object], reason: str | None = None) -> object:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _head(status: int, content_type: bytes, length: int, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (
        status,
        _PHRASES.get(status, b"Error"),
        content_type,
        length,
        extra,
    )


def _end(fault: Fault) -> End:
    if fault.kind == "hang":
        return End.HANG
    return End.RESET if fault.how == "reset" else End.FIN


def _text(tokens: int) -> str:
    size = tokens * _BYTES_PER_TOKEN
    return _TEXT[:size] if size <= len(_TEXT) else (_TEXT * (size // len(_TEXT) + 1))[:size]


class _Gzip:
    """A gzip stream that can be decoded as far as it has come."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=31)

    def add(self, data: bytes, *, last: bool) -> bytes:
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
