"""What an answer says it took, and what of a stream the client asked to see. `exchange` feeds it every byte.

The upstream is always asked for a stream's usage. A client that asked too gets the stream byte for byte. For one that did not,
the chunk that carries only usage and every `"usage":null` are taken out, and nothing else is touched. Of several reports
the last one counts.
"""

import re
from typing import Any, Final

import msgspec

from stepdown.proxy.hold import Usage
from stepdown.proxy.said import Said, decode_answer

MAX_TOKENS_SAID: Final = 10**12
"""More tokens than any request has is rubbish."""
MAX_EVENT_BYTES: Final = 4 * 1024 * 1024
"""An event that does not end within this is rubbish: the stream is relayed, but no longer held back."""

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_new: Final = tuple.__new__

_NULL_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])')
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class NotJson(Exception):
    """A 200 whose body is not a JSON object: the upstream answers rubbish."""


def answer_usage(body: bytes) -> Usage | None:
    """The usage of a plain answer; None: missing, wrong or rubbish. Raises NotJson."""
    try:
        return _usage(decode_answer(body).usage)
    except msgspec.ValidationError:
        pass  # JSON, but the usage is not one
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NotJson from None
    try:
        if type(_decode(body)) is dict:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    raise NotJson


def _usage(said: Said | None) -> Usage | None:
    """Disjoint tokens from what the upstream says, or None where that cannot be so."""
    if said is None:
        return None
    prompt, completion = said.prompt_tokens, said.completion_tokens
    cached = said.prompt_cache_hit_tokens or 0
    details = said.prompt_tokens_details
    if details is not None and details.cached_tokens is not None:
        cached = details.cached_tokens
    if not 0 <= cached <= prompt <= MAX_TOKENS_SAID or not 0 <= completion <= MAX_TOKENS_SAID:
        return None
    if prompt == 0:  # no chat has an empty prompt: a report of nothing is not a report
        return None
    total = said.total_tokens
    if total is not None and total != prompt + completion:  # something else was counted, and perhaps billed
        return None
    return _new(Usage, (prompt - cached, cached, completion))  # a named tuple's own constructor is a Python call


class Stream:
    """One stream's usage, and the bytes that the client gets of it."""

    __slots__ = ("_pass", "_tail", "events", "final", "usage")

    def __init__(self, *, show_usage: bool) -> None:
        self._pass = show_usage
        self._tail = b""
        self.usage: Usage | None = None
        self.final = False
        """The last report came with the end of an answer, so it is not of a part of it."""
        self.events = False
        """Whether anything like an event has come."""

    @property
    def at_boundary(self) -> bool:
        """Between two events."""
        return not self._tail

    def feed(self, data: bytes) -> bytes:
        """Takes what came, returns what the client gets now."""
        whole = self._tail + data if self._tail else data
        if whole.endswith(b"\n\n"):
            self._tail = b""
        else:
            end = _last_end(whole)
            self._tail = whole[end:]
            if len(self._tail) > MAX_EVENT_BYTES:
                end, self._tail = len(whole), b""
            whole = whole[:end]
        if whole:
            self.events = True
            if b'"usage"' in whole:
                if self._pass:
                    self._look(whole)
                    return data
                return self._strip(whole)
        return data if self._pass else whole

    def finish(self) -> bytes:
        """The stream has ended; what was held back, if its last event did not."""
        rest, self._tail = self._tail, b""
        if self._pass:
            if rest and b'"usage"' in rest:
                self._look(rest)
            return b""
        return self._strip(rest) if b'"usage"' in rest else rest

    def _look(self, events: bytes) -> None:
        """The last report in some events. Most chunks say `"usage":null`, which must cost little."""
        end = len(events)
        while True:
            at = events.rfind(b'"usage"', 0, end)
            if at < 0:
                return
            value = events[at + 7 : at + 40].lstrip(b" :\t")
            if not value.startswith(b"null"):
                begin = max(events.rfind(b"\n", 0, at), events.rfind(b"\r", 0, at)) + 1
                line_end = events.find(b"\n", at)
                if self._note(events[begin : line_end if line_end >= 0 else len(events)]) is not None:
                    return
            end = at

    def _note(self, line: bytes) -> dict[str, Any] | None:
        """Notes the usage of one line of an event. The chunk, where it has one that is not null."""
        chunk = _chunk(line)
        if chunk is None or chunk.get("usage") is None:
            return None
        try:
            self.usage = _usage(msgspec.convert(chunk["usage"], Said))
        except msgspec.ValidationError:
            self.usage = None
        self.final = _ends(chunk)
        return chunk

    def _strip(self, events: bytes) -> bytes:
        """The events without what the client did not ask for."""
        kept: list[bytes] = []
        begin = 0
        while begin < len(events):
            found = _EVENT_END.search(events, begin)
            end = found.end() if found else len(events)
            kept.append(self._strip_event(events[begin:end]))
            begin = end
        return b"".join(kept)

    def _strip_event(self, event: bytes) -> bytes:
        if b'"usage"' not in event:
            return event
        chunk = _chunk(event.strip(b"\r\n"))
        if chunk is None or "usage" not in chunk:
            return event
        if chunk["usage"] is not None:
            self._note(event.strip(b"\r\n"))
            return b"" if chunk.get("choices") == [] else event
        # Inside a string every quote is escaped, so the pattern matches keys only; a key of a nested object would be a
        # second match.
        stripped, count = _NULL_USAGE.subn(b"", event)
        if count == 1 and b'"usage"' not in stripped:
            return stripped
        del chunk["usage"]
        ending = event[len(event.rstrip(b"\r\n")) :]
        return b"data: " + _encode(chunk) + ending


def _last_end(whole: bytes) -> int:
    """Behind the last complete event; 0: there is none."""
    end = whole.rfind(b"\n\n")
    other = whole.rfind(b"\r\n\r\n") if b"\r" in whole else -1
    return max(end + 2 if end >= 0 else 0, other + 4 if other >= 0 else 0)


def _chunk(line: bytes) -> dict[str, Any] | None:
    """The object that one `data:` line carries."""
    if not line.startswith(b"data:"):
        return None
    try:
        chunk = _decode(line[5:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return chunk if type(chunk) is dict else None


def _ends(chunk: dict[str, Any]) -> bool:
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return False
    return not choices or any(isinstance(each, dict) and each.get("finish_reason") is not None for each in choices)


def error_message(body: bytes) -> str:
    """What an error body of the upstream says, short enough for a sentence; empty where it says nothing readable."""
    try:
        parsed = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    error = parsed.get("error") if type(parsed) is dict else None
    message = error.get("message") if type(error) is dict else error
    return message[:200] if type(message) is str else ""
