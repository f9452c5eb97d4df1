"""Cuts the connection to a database server that does not answer any more. `postgres` has one for each open ledger.

A server that is well gives up a statement by itself (`statement_timeout`). One that is stopped, or whose host hangs with its
network up, says nothing at all, and a client's read would wait for ever. So a thread looks at the clock, and shuts the socket
of a connection that has waited for too long: the read then ends as with any connection that breaks.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

LOOK_S = 0.5


class Deadline:
    """How long one question to the server may take."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._asked: tuple[float, int] | None = None
        """When, and on which socket."""
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "before_cursor_execute", self._before)
        sa.event.listen(engine, "after_cursor_execute", self._after)
        sa.event.listen(engine, "handle_error", self._failed)

    @contextlib.contextmanager
    def over(self, connection: sa.Connection) -> Iterator[None]:
        """For what is no statement: a commit."""
        self._ask(connection)
        try:
            yield
        finally:
            self._asked = None

    @contextlib.contextmanager
    def extended(self, limit_s: float) -> Iterator[None]:
        """For a while a question may take so long."""
        usual, self._limit_s = self._limit_s, limit_s
        try:
            yield
        finally:
            self._limit_s = usual

    def close(self) -> None:
        self._closed.set()

    def _ask(self, connection: sa.Connection) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="ledger-deadline", daemon=True)
            self._thread.start()
        driver: Any = connection.connection.driver_connection
        self._asked = (time.monotonic(), driver.fileno())

    def _before(self, connection: sa.Connection, *_: object) -> None:
        self._ask(connection)

    def _after(self, *_: object) -> None:
        self._asked = None

    def _failed(self, context: sa.engine.ExceptionContext) -> None:
        self._asked = None

    def _look(self) -> None:
        while not self._closed.wait(LOOK_S):
            asked = self._asked
            if asked is not None and time.monotonic() - asked[0] > self._limit_s:
                self._cut(asked)

    def _cut(self, asked: tuple[float, int]) -> None:
        """Shuts it; to close it is the driver's business, whose thread is woken by this."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(asked[1])) as same:
            if self._asked is asked:
                same.shutdown(socket.SHUT_RDWR)
                self._asked = None
