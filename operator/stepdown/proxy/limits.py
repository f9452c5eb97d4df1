"""Bounds of one process. `server` takes them with its config; all that touches a socket obeys them."""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what a client or the upstream can make this process do. Seconds and bytes."""

    headers_s: float = 10.0
    """From the first byte of a request to the end of its head."""
    body_idle_s: float = 30.0
    body_total_s: float = 300.0
    keep_alive_s: float = 75.0
    linger_s: float = 2.0
    """After a refusal that closes: how long the client's bytes are read and dropped, so that it sees the answer."""
    max_connections: int = 16_384
    max_pipelined: int = 16
    connect_s: float = 10.0
    idle_upstream_s: float = 30.0
    max_idle_upstream: int = 512
    max_answer_bytes: int = 32 * 1024 * 1024
    """Of a plain answer, decoded. It is held whole, since its cost stands in its head."""
    max_stream_bytes: int = 256 * 1024 * 1024
    max_error_bytes: int = 256 * 1024
    max_drain_bytes: int = 8 * 1024 * 1024
    drain_s: float = 60.0
    """How long an attempt that nobody waits for any more is read on for its usage; never beyond its hold's `until_s`."""
