"""What the operator wrote, by the API server's audit log."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_READING = ("get", "list", "watch")
NOT_STORED = ("tokenreviews",)
"""A POST by its verb, but a question: nothing of it is stored."""


class Audit:
    """The log from a moment on: `Audit(file)` begins at its end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._from = file.stat().st_size if file.exists() else 0
        self._rest = b""

    def counted(self) -> Counter[str]:
        """What was asked since the last call, reads included, as `verb resource/subresource`."""
        return Counter(self._new())

    def _new(self) -> Iterator[str]:
        with self._file.open("rb") as log:
            log.seek(self._from)
            read = log.read()
        self._from += len(read)
        *lines, self._rest = (self._rest + read).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if request["stage"] == "ResponseComplete":
                there = request.get("objectRef", {})
                what = "/".join(each for each in (there.get("resource", ""), there.get("subresource", "")) if each)
                yield f"{request['verb']} {what or request['requestURI']}"


def writes(counted: Counter[str]) -> dict[str, int]:
    """Those that change what is stored."""
    return {
        what: count
        for what, count in sorted(counted.items())
        if what.split()[0] not in _READING and what.split()[1] not in NOT_STORED
    }


def besides_the_lease(counted: Counter[str]) -> dict[str, int]:
    return {what: count for what, count in writes(counted).items() if what.split()[1] != "leases"}
