"""Ends a process that lives but no longer sees: an operator that watches nothing looks as healthy as one with nothing to do.

Three things are looked at: that every kind has a watcher; that what a LIST shows has come by its watcher too, a minute later at
most; that the event loop turns. `run` starts it; whatever fails ends the process, and its next start lists everything afresh.
"""

import asyncio
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stepdown.sync import log

LATE_S = 60.0
"""How long a watcher may take to deliver what a LIST has shown."""
GRACE_S = 60.0
"""How long watchers may be missing: the first listing of many objects takes a while, and so does an API server that is away."""
LOOK_S = 5.0
STALL_S = 30.0
"""How long the event loop may not turn."""
STALLED = 70
"""The exit code of a process whose event loop has stopped."""


class Blind(Exception):
    """Something that should be watched is not."""


@dataclass(slots=True)
class Deliveries:
    """What LISTs have shown before the watchers did, until they do."""

    awaited: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    """By kind and key: the version, and since when (monotonic)."""

    def expect(self, kind: str, key: str, version: int, now_s: float) -> None:
        """A LIST shows it, and no watcher has yet. What is awaited already goes on being late."""
        self.awaited.setdefault((kind, key), (version, now_s))

    def delivered(self, kind: str, key: str, version: int) -> None:
        """A watcher did. A later version stands for all before it."""
        awaited = self.awaited.get((kind, key))
        if awaited is not None and version >= awaited[0]:
            del self.awaited[kind, key]

    def listed(self, kind: str, keys: set[str]) -> None:
        """Objects that are gone need no delivery."""
        for entry in [each for each in self.awaited if each[0] == kind and each[1] not in keys]:
            del self.awaited[entry]

    def late(self, now_s: float) -> tuple[str, str] | None:
        """Kind and key of what should have come by now."""
        return next((entry for entry, (_, since_s) in self.awaited.items() if now_s - since_s > LATE_S), None)


async def watch_over(
    alive: Callable[[], int], expected: int, deliveries: Deliveries, *, look_s: float = LOOK_S, grace_s: float = GRACE_S
) -> None:
    """Raises Blind, some day or never. `alive`: how many watchers there are."""
    missing_since_s: float | None = None
    while True:
        await asyncio.sleep(look_s)
        now_s = time.monotonic()
        count = alive()
        if count >= expected:
            missing_since_s = None
        elif missing_since_s is None:
            missing_since_s = now_s
        elif now_s - missing_since_s > grace_s:
            raise Blind(f"{count} of {expected} watchers are left, for {grace_s:.0f} s")
        if (entry := deliveries.late(now_s)) is not None:
            raise Blind(f"{entry[0]} {entry[1]} has changed, and its watcher has not told of it for {LATE_S:.0f} s")


class LoopWatch:
    """A thread that ends the process when the event loop does not turn for STALL_S: nothing in the loop could.

    It counts its own seconds, so that a process which was stopped as a whole is not taken for one that hangs.
    """

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stop, self._stall_s = threading.Event(), stall_s
        self._waited_s = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.wait(1.0):
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(self._turned)
            self._waited_s += 1
            if self._waited_s > self._stall_s:
                log.error(f"the event loop has not turned for {self._stall_s:.0f} s: the process ends", event="stalled")
                faulthandler.dump_traceback(all_threads=True)
                os._exit(STALLED)

    def _turned(self) -> None:
        self._waited_s = 0
