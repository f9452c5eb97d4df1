"""What each proxy last said of itself: is it ready, which config it has, which keys it lacks, which models it cannot reach.
`sync.service` keeps the roll.

It is not stored: a keeper that has just started knows a proxy again with its next message, a second later.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from stepdown.model.config import SHARDS, Shard, digest
from stepdown.model.sync import SyncRequest
from stepdown.plan.world import ProxiesSeen

HEARD_S = 10.0
"""A proxy that syncs once a second and was not heard for so long is not ready."""

FORGOTTEN_S = 900.0

EMPTY_DIGESTS = tuple(digest(Shard(index=index)) for index in range(SHARDS))
"""What a proxy has of a shard that nobody has sent it."""

_MAX_KEYS = 64
_MAX_DOWN = 64


class _Said(NamedTuple):
    """One proxy's words, but for the time at which they were heard."""

    pod: str
    ready: bool
    digests: tuple[str, ...]
    keys: tuple[tuple[str, bool], ...]
    down: tuple[str, ...]


class _Verdict(NamedTuple):
    """What a plan makes of a fleet."""

    pods: int
    ready: int
    keys: dict[str, bool]
    down: dict[str, int]
    complete: tuple[bool, ...]
    """By shard: whether every ready proxy has the config that is published."""


class _Fleet:
    __slots__ = ("heard_s", "said", "seen")

    def __init__(self) -> None:
        self.said: dict[str, _Said] = {}
        self.heard_s: dict[str, float] = {}
        self.seen = ProxiesSeen(0)

    def recent(self, now_s: float) -> list[_Said]:
        return [said for instance, said in self.said.items() if now_s - self.heard_s[instance] < HEARD_S]

    def forget(self, instance: str) -> None:
        self.said.pop(instance, None)
        self.heard_s.pop(instance, None)


class Roll:
    """By fleet and instance. Times are the ledger's."""

    def __init__(self) -> None:
        self._fleets: dict[str, _Fleet] = {}

    def hear(self, request: SyncRequest, pod: str, current: Sequence[str], now_s: float) -> bool:
        """Notes a message. True: a plan would judge the fleet otherwise than before it; `current` are the published digests."""
        fleet = self._fleets.setdefault(request.fleet, _Fleet())
        instance = request.instance
        said = _said(request, pod)
        was = fleet.said.get(instance)
        if was == said and not request.closing and now_s - fleet.heard_s[instance] < HEARD_S:
            fleet.heard_s[instance] = now_s
            return False
        before = _judge(fleet.recent(now_s), current)
        if request.closing:
            fleet.forget(instance)
        else:
            fleet.said[instance], fleet.heard_s[instance] = said, now_s
        return _judge(fleet.recent(now_s), current) != before

    def proxies(self, now_s: float) -> dict[str, ProxiesSeen]:
        """By fleet. A fleet of which nothing has changed is the same object as before; one never heard of is not there."""
        return {name: self._seen(fleet, now_s) for name, fleet in self._fleets.items()}

    def count(self, fleet: str, now_s: float) -> int:
        """Proxies of a fleet that were heard lately, ready or not, the one that asks included: one that is leaving still
        sends."""
        found = self._fleets.get(fleet)
        return max(1, sum(now_s - heard_s < HEARD_S for heard_s in found.heard_s.values())) if found is not None else 1

    def _seen(self, fleet: _Fleet, now_s: float) -> ProxiesSeen:
        for instance in [each for each, heard_s in fleet.heard_s.items() if now_s - heard_s >= FORGOTTEN_S]:
            fleet.forget(instance)
        recent = fleet.recent(now_s)
        ready = [each for each in recent if each.ready]
        serving = {index: dict(Counter(each.digests[index] for each in ready)) for index in range(SHARDS)} if ready else {}
        seen = ProxiesSeen(len(ready), serving, _keys(recent), _pods(recent), _down(ready))
        if seen != fleet.seen:
            fleet.seen = seen
        return fleet.seen


def _said(request: SyncRequest, pod: str) -> _Said:
    """Protocol 1 does not say whether a proxy is ready: that it syncs is all that is known then, and was enough."""
    return _Said(
        pod or request.instance,
        request.ready or request.protocol < 2,
        tuple(request.digests.get(index) or EMPTY_DIGESTS[index] for index in range(SHARDS)),
        tuple(request.keys.items())[:_MAX_KEYS],
        request.down[:_MAX_DOWN],
    )


def _judge(recent: Sequence[_Said], current: Sequence[str]) -> _Verdict:
    ready = [each for each in recent if each.ready]
    complete = tuple(all(each.digests[index] == wanted for each in ready) for index, wanted in enumerate(current))
    return _Verdict(_pods(recent), len(ready), _keys(recent), _down(ready), complete)


def _pods(recent: Sequence[_Said]) -> int:
    return len({each.pod for each in recent})


def _down(ready: Sequence[_Said]) -> dict[str, int]:
    return dict(Counter(model for each in ready for model in each.down))


def _keys(recent: Sequence[_Said]) -> dict[str, bool]:
    """A key is there when nobody who speaks of it misses it."""
    keys: dict[str, bool] = {}
    for each in recent:
        for channel, there in each.keys:
            keys[channel] = there and keys.get(channel, True)
    return keys
