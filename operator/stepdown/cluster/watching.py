"""A watch's stream as changes. `client.watch` calls it.

The API server sends one JSON object a line. A line may be as large as an object (megabytes) and may come in pieces; one that is
cut off is not a change.
"""

from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec

from stepdown.cluster.errors import ClusterError, Gone, Unavailable, error_of
from stepdown.cluster.kinds import KindRef

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Beyond this it is no Kubernetes object, and memory is finite."""
ChangeType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
TYPES: tuple[ChangeType, ...] = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")


async def lines(chunks: AsyncIterator[bytes], what: str) -> AsyncIterator[bytes]:
    """Whole lines. Raises Unavailable where the stream ends within one."""
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        if size > MAX_LINE_BYTES:
            raise Unavailable(f"{what}: a line of the watch is longer than {MAX_LINE_BYTES} bytes")
        for piece in rest:
            line = b"".join(parts)
            parts, size = [piece], len(piece)
            if line.strip():
                yield line
    if b"".join(parts).strip():
        raise Unavailable(f"{what}: the watch was cut off within an event")


def parse(line: bytes, kind: KindRef, what: str) -> tuple[ChangeType, dict[str, Any]]:
    """One event's type and object. Raises Gone, Unavailable or what else an ERROR event says."""
    try:
        event = msgspec.json.decode(line)
    except ValueError as error:
        raise Unavailable(f"{what}: an event of the watch is not JSON ({error})") from error
    said = event.get("type") if isinstance(event, dict) else None
    obj = event.get("object") if isinstance(event, dict) else None
    if not isinstance(obj, dict):
        raise Unavailable(f"{what}: an event of the watch has no object")
    if said == "ERROR":
        raise _error(obj, what)
    type_ = next((each for each in TYPES if each == said), None)
    if type_ is None:
        raise Unavailable(f"{what}: an event of the watch is of type {said!r}; known are {', '.join(TYPES)}")
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("resourceVersion"), str):
        raise Unavailable(f"{what}: an event of the watch has no resourceVersion")
    obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind  # metadata alone comes under a name of its own
    return type_, obj


def _error(status: dict[str, Any], what: str) -> ClusterError:
    code = status.get("code")
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    if code == 410 or reason in ("Expired", "Gone"):
        return Gone(f"{what}: {message or reason} (410)", status=410, reason=reason)
    details = status.get("details") if isinstance(status.get("details"), dict) else {}
    return error_of(code if isinstance(code, int) else 500, reason, message, details, None, what=what)
