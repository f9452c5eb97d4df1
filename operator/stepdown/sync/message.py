"""A sync message as bytes, and what it is answered: the same over every transport. `sync.http` and `sync.server` call this.

200 with a `SyncAnswer`; 400 when the message is not acceptable (do not send it again), 503 when the ledger is not available
(do), both with `{"error": {"code", "message"}}`.
"""

from collections.abc import Callable

import msgspec

from stepdown.budget.serving import Pod
from stepdown.model.sync import SyncRefused, SyncRequest, SyncUnavailable
from stepdown.sync.service import SyncService, check_protocol

PATH = "/v1/sync"
MAX_BODY = 32 * 1024 * 1024
"""A proxy with thousands of routes reports all of its counters in its first message."""


class _Protocol(msgspec.Struct):
    """What every version of a message has."""

    protocol: int = 0


_DECODER = msgspec.json.Decoder(SyncRequest)
_PROTOCOL = msgspec.json.Decoder(_Protocol)
_ENCODER = msgspec.json.Encoder()


def _anybody(request: SyncRequest) -> None:
    """Where who may open the socket may say anything on it."""


async def answered(
    service: SyncService,
    body: bytes,
    *,
    admit: Callable[[SyncRequest], None] = _anybody,
    pod: Pod | None = None,
    leaving: bool = False,
) -> tuple[int, bytes]:
    """Status and body. `admit` sees the message before anything is done about it, and raises what it likes."""
    try:
        request = _decoded(body)
        admit(request)
        return 200, _ENCODER.encode(await service.sync(request, pod, leaving=leaving))
    except SyncRefused as refused:
        return 400, error("refused", str(refused))
    except SyncUnavailable as unavailable:
        return 503, error("ledger_unavailable", str(unavailable))


def misplaced(method: str, path: str) -> tuple[int, bytes] | None:
    """What is answered to anything but `POST /v1/sync`; None: it is that."""
    if path.partition("?")[0] != PATH:
        return 404, error("not_found", f"only {PATH} is here")
    if method != "POST":
        return 405, error("method_not_allowed", f"{PATH} takes POST")
    return None


def too_large() -> tuple[int, bytes]:
    return 413, error("too_large", f"a sync message has at most {MAX_BODY} bytes")


def error(code: str, message: str, **more: str) -> bytes:
    return _ENCODER.encode({"error": {"code": code, "message": message, **more}})


def _decoded(body: bytes) -> SyncRequest:
    """The protocol comes first: a message of another one may not decode, and then its version is the news."""
    try:
        protocol = _PROTOCOL.decode(body).protocol
    except msgspec.MsgspecError as failure:
        raise SyncRefused(f"not a sync message: {failure}") from failure
    check_protocol(protocol)
    try:
        return _DECODER.decode(body)
    except msgspec.MsgspecError as failure:
        raise SyncRefused(f"not a sync message of protocol {protocol}: {failure}") from failure
