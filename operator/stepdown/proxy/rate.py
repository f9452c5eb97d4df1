"""How many requests a channel of the upstream may get in a minute (`requestsPerMinute`). `exchange` asks before it sends.

The limit is the fleet's. A proxy cannot see what the others send, so each keeps to an equal part: the limit divided by the
proxies that the keeper hears (sync says how many), and at least one request. It is counted by second: no sixty seconds,
wherever they begin, hold more than that. A request beyond it is not sent, and that is no failure of the model: a model of
another channel may serve, else the client is told when to come again.

A proxy that comes has its part before the others' last minute is over, and one that has not heard from a keeper thinks itself
alone: then the fleet may send more than its limit for a while.
"""

from collections.abc import Sequence
from typing import Final

from stepdown.model.config import Channel

_SLOTS: Final = 61
"""The second that runs and the sixty before it: a minute that begins anywhere in a second lies within."""


class Window:
    """The requests of one channel in the last minute."""

    __slots__ = ("_counts", "_second", "count", "held_back", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.held_back = 0
        """Requests that were not sent for it."""
        self._counts = [0] * _SLOTS
        self._second = 0

    def wait_s(self, share: int, now_s: float) -> float:
        """How long until another request may be sent; 0: now."""
        self._forget(int(now_s))
        if self.count < share:
            return 0.0
        surplus = self.count - share
        for ahead in range(1, _SLOTS + 1):
            surplus -= self._counts[(self._second + ahead) % _SLOTS]
            if surplus < 0:
                return float(self._second + ahead) - now_s
        return float(_SLOTS)

    def add(self) -> None:
        """A request is sent, in the second that `wait_s` was last asked for."""
        self._counts[self._second % _SLOTS] += 1
        self.count += 1

    def _forget(self, second: int) -> None:
        for passed in range(self._second + 1, min(second, self._second + _SLOTS) + 1):
            self.count -= self._counts[passed % _SLOTS]
            self._counts[passed % _SLOTS] = 0
        self._second = max(second, self._second)


class Rates:
    """All channels that have a limit. Without any, a request pays for a look at an empty dict."""

    __slots__ = ("limited",)

    def __init__(self) -> None:
        self.limited: dict[str, Window] = {}

    def bound_by(self, channels: Sequence[Channel]) -> None:
        """Another config is in force. What was sent in the last minute still counts."""
        was, self.limited = self.limited, {}
        for channel in channels:
            limit = channel.requests_per_minute
            if limit is not None:
                window = self.limited[channel.name] = was.get(channel.name) or Window(limit)
                window.limit = limit

    def wait_s(self, channel: str, sharers: int, now_s: float) -> float:
        """How long until a request may go there; 0: now."""
        window = self.limited.get(channel)
        return 0.0 if window is None else window.wait_s(_share(window.limit, sharers), now_s)

    def take(self, channel: str, sharers: int, now_s: float) -> float:
        """As `wait_s`; where that is 0, a request is sent and counted."""
        window = self.limited.get(channel)
        if window is None:
            return 0.0
        wait_s = window.wait_s(_share(window.limit, sharers), now_s)
        if wait_s > 0:
            window.held_back += 1
        else:
            window.add()
        return wait_s

    def said(self, channel: str, sharers: int) -> str:
        """Why nothing is sent there, for the client."""
        limit = self.limited[channel].limit
        shared = f" of {limit}, which {sharers} proxies share" if sharers > 1 else ""
        return f"channel {channel!r} has had its {_share(limit, sharers)} requests of this minute{shared}"


def _share(limit: int, sharers: int) -> int:
    return max(1, limit // sharers)
