"""What of an answer's JSON is read: its usage, the rest is skipped. `sse` judges it."""

import msgspec


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Said(msgspec.Struct):
    """An answer's usage as the upstream states it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: Said | None = None


decode_answer = msgspec.json.Decoder(_Answer).decode
