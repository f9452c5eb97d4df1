"""What both sides know of HTTP heads that they have seen before: `front` of requests, `upstream` of answers.

A peer sends nearly the same head with each message of a connection. One that llhttp has passed is compared byte for byte when
it comes again, so nothing is left to parse but the digits of its content length. That comparison must not be written twice.
"""

import re
from typing import Final

MAX_MEMOS: Final = 8
"""So many heads are remembered on a connection without one that came again: a peer whose heads all differ costs no more."""

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
_MAX_NAMES: Final = 1024


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
    begin = len(before)
    if data[:begin] != before:
        return None
    # What is not head must be body, so the length that the head has to state is known before it is looked at.
    rest = len(data) - begin - len(behind)
    digits = 1
    above = 10
    while rest - digits >= above:
        digits += 1
        above *= 10
    length = rest - digits
    if length < 0 or (digits > 1 and length * 10 < above):
        return None
    middle = b"%d%b" % (length, behind)
    end = begin + len(middle)
    return data[end:] if data[begin:end] == middle else None
