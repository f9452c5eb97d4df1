"""What both sides know of HTTP heads that they have seen before: `front` of requests, `upstream` of answers.

A peer sends nearly the same head with each message of a connection. One that llhttp has passed is compared byte for byte when
it comes again, so nothing is left to parse but the digits of its content length. That comparison must not be written twice.
"""

import re

MAX_MEMOS = 8
"""So many heads are remembered on a connection without one that came again: a peer whose heads all differ costs no more."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
_MAX_DIGITS = 12
_MAX_NAMES = 1024


class Names(dict[bytes, bytes]):
    """Header names as they are written, and what they are called here; `""` for those that nobody reads.

    Spellings are few, so each is lowered once; the memory is bounded all the same.
    """

    def __init__(self, *read: bytes) -> None:
        super().__init__()
        self._read = frozenset(read)

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        known = lower if lower in self._read else b""
        if len(self) < _MAX_NAMES:
            self[name] = known
        return known


def around_length(data: bytes) -> tuple[bytes, bytes] | None:
    """What stands before and behind the content length in the head of a message that was parsed, if `data` is that message,
    whole, and nothing else."""
    end = data.find(b"\r\n\r\n") + 4
    found = _LENGTH.search(data, 0, end)
    if found is None or len(data) - end != int(found[1]):
        return None
    return data[: found.start(1)], data[found.end(1) : end]


def body_again(data: bytes, before: bytes, behind: bytes) -> bytes | None:
    """The body, if `data` is one whole message with this head but for its content length, and nothing else."""
    if not data.startswith(before):
        return None
    begin = len(before)
    end = data.find(b"\r", begin, begin + _MAX_DIGITS + 1)
    digits = data[begin:end]
    if end < 0 or not digits.isdigit() or not data.startswith(behind, end):
        return None
    body = data[end + len(behind) :]
    return body if len(body) == int(digits) else None
