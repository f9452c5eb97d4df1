"""Connections in memory: two transports that carry bytes to each other's protocol, in order, a little later.

What a SIGKILL leaves is `sever`: the dead end hears nothing more, the other one what the kernel would tell it.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.proof.loop import Process

_QUIET = os.eventfd(0, os.EFD_CLOEXEC)


class _Socket:
    """Nothing unexpected has come on it: an end is told at once of what has."""

    def fileno(self) -> int:
        return _QUIET


class End(asyncio.Transport):
    """One end. Its protocol is called in its own process's context."""

    peer: "End"
    protocol: Any

    def __init__(self, process: Process, delay_s: Callable[[], float], *, socket: bool = False) -> None:
        super().__init__()
        self.process = process
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[tuple[float, str, bytes]] = deque()
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = self._closing = self._over = False
        self._socket = _Socket() if socket else None
        self.wrote: Callable[[], None] | None = None

    def attach(self, protocol: Any) -> None:
        self.protocol = protocol
        self.process.run(protocol.connection_made, self)

    # asyncio.Transport

    def write(self, data: Any) -> None:
        if self._closing:
            return
        if self.wrote is not None:
            self.wrote()
        self.peer._push("data", bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._end("eof")

    def abort(self) -> None:
        self._end("reset")

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.peer._push("eof")

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._schedule()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket if name == "socket" else default

    # The wire

    def sever(self) -> None:
        """The process is gone; its kernel says so."""
        if not self._closing:
            self.peer._push("reset")
        self._closing = self._over = True
        self._inbox.clear()

    def _end(self, how: str) -> None:
        if self._closing:
            return
        self._closing = True
        self.peer._push(how)
        self._loop.call_soon(self._lost, None, context=self.process.context)

    def _push(self, kind: str, data: bytes = b"") -> None:
        if self._over:
            return
        self._last_s = max(self._loop.time() + self._delay_s(), self._last_s)
        self._inbox.append((self._last_s, kind, data))
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None and self._inbox and not self._paused:
            self._timer = self._loop.call_at(self._inbox[0][0], self._deliver, context=self.process.context)

    def _deliver(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._inbox and not self._paused and not self._over and self._inbox[0][0] <= now_s:
            _, kind, data = self._inbox.popleft()
            if kind == "data":
                if not self._closing:
                    self.protocol.data_received(data)
            elif kind == "eof":
                self.protocol.eof_received()
                self._end("eof")
            else:
                self._closing = True
                self._lost(ConnectionResetError("connection reset by peer"))
        self._schedule()

    def _lost(self, error: Exception | None) -> None:
        if self._over:
            return
        self._over = True
        self._inbox.clear()
        self.protocol.connection_lost(error)


def pair(here: Process, there: Process, delay_s: Callable[[], float], *, socket: bool = False) -> tuple[End, End]:
    """`socket`: the first end shows one, as the proxy wants to see of its upstream's."""
    one, other = End(here, delay_s, socket=socket), End(there, delay_s)
    one.peer, other.peer = other, one
    return one, other
