"""The bodies that go over the wire in every run: a request, an answer and a stream of the sizes that real ones have."""

import json
from collections.abc import Iterator

ROUTE = "bench"
"""The route's name in the fleet's own namespace."""
CHUNKS = 50
"""Events of a stream before `[DONE]`: the role, 47 words, the finish reason, the usage."""

_USAGE = {
    "prompt_tokens": 119,
    "completion_tokens": 61,
    "total_tokens": 180,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_SYSTEM = "You are an operations assistant for a small platform team. Answer briefly, and say which object to change."
_QUESTION = (
    "Our deployment 'checkout' was rolled back by the pipeline ten minutes after release. Two of three pods never became "
    "ready, and the events show 'Readiness probe failed: dial tcp 10.2.3.4:8080: connect: connection refused'. The new image "
    "was built from main this morning. What is the likely cause and what should I change first?"
)
_ANSWER = (
    "The deployment was rolled back because its readiness probe failed on two of the three replicas. The new image listens on "
    "port 9090, while the probe still asks port 8080; change containerPort and the probe together, then roll out again with "
    "maxUnavailable set to 0."
)
_CHUNK = {
    "id": "chatcmpl-B9MBs8CjcvOLX2n4n570Wct5a2TqT",
    "object": "chat.completion.chunk",
    "created": 1790000000,
    "model": "deepseek-ai/DeepSeek-V4-Flash",
    "service_tier": "default",
    "system_fingerprint": "fp_0aa8d3e20b",
}
STAMP = "@STAMP@"
"""Where a paced stream writes when an event was sent."""


def request(*, stream: bool) -> bytes:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _QUESTION}]
    body: dict[str, object] = {"model": ROUTE, "messages": messages, "temperature": 0.2, "max_tokens": 256}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def answer() -> bytes:
    message: dict[str, object] = {"role": "assistant", "content": _ANSWER, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    reply = {**_CHUNK, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return json.dumps(reply).encode()


def events() -> Iterator[bytes]:
    """The stream's events; contents are words, each with the stamp's mark before it."""
    words = _ANSWER.split()
    for index in range(CHUNKS):
        delta: dict[str, object] = {"content": f"{STAMP}{words[index % len(words)]} "}
        finish = None
        if index == 0:
            delta = {"role": "assistant", "content": "", "refusal": None}
        elif index == CHUNKS - 2:
            delta, finish = {}, "stop"
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}] if index < CHUNKS - 1 else []
        usage = _USAGE if index == CHUNKS - 1 else None
        chunk = {**_CHUNK, "choices": choices, "usage": usage}
        yield b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()
    yield b"data: [DONE]\n\n"


def stream() -> bytes:
    """All events at once, without stamps."""
    return b"".join(events()).replace(STAMP.encode(), b"")
