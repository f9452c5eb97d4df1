"""Tells proxies at once of another config for them. A keeper says what is published, `sync.server` holds the questions.

A thousand routes that change one after the other wake each proxy as often as it asks, not a thousand times: what it has by then
is compared with what is published by then.
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from stepdown.model.news import HOLD_S, Have
from stepdown.sync.roll import EMPTY_DIGESTS


class _Published(NamedTuple):
    fleet_digest: str
    digests: Mapping[int, str]


class Board:
    """What is published, and who waits for something else. On one event loop."""

    def __init__(self) -> None:
        self._published: dict[str, _Published] = {}
        self._next: dict[str, asyncio.Future[None]] = {}
        self._closed = False

    def publish(self, fleet: str, fleet_digest: str, digests: Mapping[int, str]) -> None:
        """Absent shards are empty."""
        self._published[fleet] = _Published(fleet_digest, dict(digests))
        self._wake(fleet)

    def close(self) -> None:
        """Answers every question that is open, and holds none any more."""
        self._closed = True
        for fleet in list(self._next):
            self._wake(fleet)

    async def differs(self, fleet: str, have: Have, hold_s: float = HOLD_S) -> bool:
        """Waits until the fleet's published config is another than this. False: it was not for so long."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + hold_s
        while not self._is_other(fleet, have):
            left_s = until_s - loop.time()
            if left_s <= 0 or self._closed:
                return False
            waited = self._next.get(fleet)
            if waited is None:
                waited = self._next[fleet] = loop.create_future()
            await asyncio.wait([waited], timeout=left_s)
        return True

    def _is_other(self, fleet: str, have: Have) -> bool:
        now = self._published.get(fleet)
        if now is None:
            return False
        return have.fleet_digest != now.fleet_digest or any(
            (have.digests.get(index) or empty) != (now.digests.get(index) or empty) for index, empty in enumerate(EMPTY_DIGESTS)
        )

    def _wake(self, fleet: str) -> None:
        waited = self._next.pop(fleet, None)
        if waited is not None and not waited.done():
            waited.set_result(None)
