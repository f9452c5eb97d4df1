"""What one turn of the event loop has to say, said at its end. `front` and `upstream` write through it.

A write to a socket leaves the interpreter for the kernel, evicts its caches and wakes the peer. Held until the handlers of the
turn have run, the writes follow each other: under load a fifth of the processor time of a request is saved, and alone a
request waits for nothing, since its turn ends at once. The order of a connection's writes stays.
Whoever closes a transport that may have been written to calls `send` first.
"""

import asyncio
from typing import Final

_LARGE_BYTES: Final = 32 * 1024
"""So much is not held: a turn can read megabytes from one socket, and only a write tells the reader that it is held up."""


class Outbox:
    """One event loop's writes of this turn."""

    __slots__ = ("_loop", "_writes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._writes: list[tuple[asyncio.Transport, bytes]] = []

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        if not self._writes:
            self._loop.call_soon(self.send)
        self._writes.append((transport, data))
        if len(data) > _LARGE_BYTES:
            self.send()

    def send(self) -> None:
        """Says it now. Doing it twice does nothing."""
        writes, self._writes = self._writes, []
        for transport, data in writes:
            if not transport.is_closing():  # the peer has gone meanwhile; whoever wrote hears of that by itself
                transport.write(data)
