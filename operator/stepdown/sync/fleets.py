"""The RoutingProxies that proxies may speak for, and those that went a moment ago. `sync.auth` asks it with each message.

When a RoutingProxy is deleted, or deleted and made anew, its pods still end what they have begun, and then report what it cost
and give back what they hold. If nobody heard them, that money would be lost to its budgets until the month is over.
"""

from collections.abc import Callable
from typing import NamedTuple

FAREWELL_S = 900.0
"""Longer than a pod takes to end."""


class LiveFleet(NamedTuple):
    """A RoutingProxy that is there."""

    uid: str
    lease_horizon_s: float
    """While the API server is away, a token that was good is good for so long."""


class Fleets:
    """By `namespace/name`."""

    def __init__(self, find: Callable[[str], LiveFleet | None], clock_s: Callable[[], float]) -> None:
        self._find, self._clock_s = find, clock_s
        self._last: dict[str, LiveFleet] = {}
        self._left: dict[str, float] = {}
        """By UID: until when its pods are heard."""

    def live(self, name: str) -> LiveFleet | None:
        now, last = self._find(name), self._last.get(name)
        if last is not None and (now is None or now.uid != last.uid):
            self._left = {uid: until_s for uid, until_s in self._left.items() if until_s > self._clock_s()}
            self._left[last.uid] = self._clock_s() + FAREWELL_S
            del self._last[name]
        if now is not None:
            self._last[name] = now
        return now

    def left(self, name: str, uid: str) -> bool:
        """Whether the one of this UID went a moment ago."""
        self.live(name)
        return self._left.get(uid, 0.0) > self._clock_s()
