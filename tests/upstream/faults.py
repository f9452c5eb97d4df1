"""Faults to order: what goes wrong, for which model, and how often. Tests order them in-process or by `POST /_faults`.

All faults that match a request apply to it together (slow and gzip, say); of two of one kind the first ordered wins.
"""

import random
from collections.abc import Iterable
from typing import Literal

import msgspec

Kind = Literal[
    "status",
    "slow",
    "hang",
    "cut",
    "drop",
    "stale",
    "close",
    "no_usage",
    "usage",
    "usage_place",
    "gzip",
    "ignore_max_tokens",
    "rubbish",
]
"""
* `status`: answers `status` in OpenAI's error shape, with `retry_after` as its Retry-After;
* `slow`: `first_byte_s` before the head, `per_chunk_s` before every chunk of a stream;
* `hang`: a stream stalls after `after_chunks` chunks, the connection stays open; with 0 nothing is ever answered;
* `cut`: the connection ends after `after_chunks` chunks (a plain answer: in the middle of its body), by `how`;
* `drop`: the connection ends, by `how`, before the first byte of an answer;
* `stale`: as `drop`, but only on a connection that has served a request before (a keep-alive race);
* `close`: the answer is whole, then the connection ends without a `connection: close`;
* `no_usage`: no usage anywhere;
* `usage`: the usage object has `usage` merged into it; if `usage` is no object, it takes the usage's place;
* `usage_place`: streams report usage in `place` and not in a last chunk of its own;
* `gzip`: the answer is gzip-encoded, streams chunk by chunk;
* `ignore_max_tokens`: the answer has `tokens` tokens a choice whatever the request allows;
* `rubbish`: answers what `rubbish` says.
"""

Rubbish = Literal["not_http", "html", "broken_json", "bad_chunk", "short_body", "empty"]


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One order. Without `model`, `stream`, `next` and `probability` it holds for every request until cleared."""

    kind: Kind
    model: str | None = None
    """The request's `model`, compared without regard to case."""
    stream: bool | None = None
    skip: int = 0
    """Lets so many matching requests pass first."""
    next: int | None = None
    """Ends after so many requests."""
    probability: float = 1.0
    status: int = 500
    retry_after: str | None = None
    first_byte_s: float = 0.0
    per_chunk_s: float = 0.0
    after_chunks: int = 0
    how: Literal["reset", "fin"] = "reset"
    usage: object = None
    place: Literal["every_chunk", "finish_chunk"] = "every_chunk"
    tokens: int = 5000
    rubbish: Rubbish = "html"


class FaultBook:
    """The orders in force. Chance comes from a seed, so a run can be repeated."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._faults: list[Fault] = []

    def order(self, faults: Iterable[Fault]) -> None:
        self._faults.extend(msgspec.structs.replace(fault) for fault in faults)

    def clear(self) -> None:
        self._faults.clear()

    def take(self, model: str, stream: bool) -> dict[Kind, Fault]:
        """The faults of one request, by kind; counts it against those that match."""
        taken: dict[Kind, Fault] = {}
        for fault in self._faults:
            if fault.model is not None and fault.model.lower() != model.lower():
                continue
            if fault.stream is not None and fault.stream != stream:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if fault.probability < 1.0 and self._chance.random() >= fault.probability:
                continue
            if fault.next is not None:
                if fault.next <= 0:
                    continue
                fault.next -= 1
            taken.setdefault(fault.kind, fault)
        self._faults = [fault for fault in self._faults if fault.next is None or fault.next > 0]
        return taken
