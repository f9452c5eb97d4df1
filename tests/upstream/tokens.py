"""How many tokens a request has: the simulator's own rule, unlike the product's bound. Used by `answers.py`.

Deterministic: the same body, seed and options give the same counts in every process. Input is never more than a token for each
UTF-8 byte of what the body says plus a few for each message, as with any real byte-level tokeniser.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from tests.upstream.bill import Tokens

TokenRule = Literal["typical", "worst"]
"""`typical`: about four bytes a token. `worst`: a token for every byte, the dearest text that a caller could send."""

OVERHEAD_PER_MESSAGE = 4
OVERHEAD_PER_REQUEST = 3
TOKENS_PER_IMAGE = 1105


class Draw:
    """A few random numbers that depend on the seed and the body only."""

    def __init__(self, seed: int, body: bytes) -> None:
        self._left = int.from_bytes(hashlib.blake2b(body, digest_size=32, key=seed.to_bytes(8, "big")).digest(), "big")

    def below(self, bound: int) -> int:
        """0 … bound - 1, evenly enough for a simulation."""
        self._left, value = divmod(self._left, bound)
        return value


class Completion(NamedTuple):
    """What the model will say: tokens by choice, and why each choice ends."""

    choices: tuple[int, ...]
    finish_reasons: tuple[str, ...]


def prompt_tokens(body: Mapping[str, Any], rule: TokenRule, draw: Draw) -> int:
    """Tokens of the messages, and of the tools and schema that go with them."""
    messages = body["messages"]
    total = OVERHEAD_PER_REQUEST + OVERHEAD_PER_MESSAGE * len(messages)
    length = 0
    for message in messages:
        for text in _texts(message):
            length += len(text.encode("utf-8", "surrogatepass"))
        total += TOKENS_PER_IMAGE * _images(message)
    for field in ("tools", "functions", "response_format"):
        if field in body:
            length += len(json.dumps(body[field], ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
    if rule == "worst":
        return total + length
    bytes_per_40_tokens = 120 + draw.below(81)  # 3 to 5 bytes a token
    return total + -(-length * 40 // bytes_per_40_tokens)


def completion(body: Mapping[str, Any], wanted: tuple[int, int], obey_max_tokens: bool, draw: Draw) -> Completion:
    """An answer's length by choice: drawn from `wanted` (both ends inclusive), cut at the request's maximum."""
    low, high = wanted
    limits = [body[field] for field in ("max_tokens", "max_completion_tokens") if body.get(field) is not None]
    limit = min(limits) if limits and obey_max_tokens else None
    choices, reasons = [], []
    for _ in range(body.get("n") or 1):
        tokens = low + draw.below(high - low + 1)
        cut = limit is not None and tokens >= limit
        choices.append(limit if limit is not None and cut else tokens)
        reasons.append("length" if cut else "stop")
    return Completion(tuple(choices), tuple(reasons))


def usage_of(tokens: Tokens) -> dict[str, object]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning, "audio_tokens": 0},
    }


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if isinstance(part.get("text"), str))
    if isinstance(message.get("name"), str):
        yield message["name"]
    for call in message.get("tool_calls") or ():
        yield call["function"]["name"] + call["function"]["arguments"]


def _images(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    return sum(part.get("type") == "image_url" for part in content) if isinstance(content, list) else 0
