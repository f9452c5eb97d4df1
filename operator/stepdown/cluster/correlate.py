"""Which Events are worth a request: pure, the time is given. `events` asks before it writes.

The rules are those of Kubernetes' own components, so that nobody has to learn others: the same Event again only counts up; from
the tenth different message of one reason within ten minutes on, they share one Event; and about one object no more than 25
Events at once, then one each five minutes.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

BURST = 25
REFILL_S = 300.0
SIMILAR = 10
SIMILAR_S = 600.0
COMBINED = "(combined from similar events): "
REMEMBERED = 4096

V = TypeVar("V")


class Occurrence(NamedTuple):
    """Something that happened to an object."""

    about: str
    """The object: kind, namespace, name, UID."""
    type: str
    reason: str
    message: str


class Decision(NamedTuple):
    """What to write: a new Event, or a higher count in the one called `name`."""

    key: str
    """Which series it belongs to; for `written`."""
    message: str
    times: int
    first_s: float
    name: str
    """Empty: a new one."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_s: float


@dataclass(slots=True)
class _Similar:
    messages: set[str] = field(default_factory=set)
    last_s: float = 0.0


class _Series(NamedTuple):
    times: int
    first_s: float
    name: str


class _Recent(OrderedDict[str, V], Generic[V]):
    """The last so many entries; those that were not used for longest go first."""

    def keep(self, key: str, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > REMEMBERED:
            self.popitem(last=False)


class Correlator:
    """Remembers what happened lately."""

    def __init__(self) -> None:
        self._buckets: _Recent[_Bucket] = _Recent()
        self._similar: _Recent[_Similar] = _Recent()
        self._series: _Recent[_Series] = _Recent()

    def decide(self, what: Occurrence, now_s: float) -> Decision | None:
        """None: there have been too many about this object."""
        key, message = self._aggregated(what, now_s)
        series = self._series.get(key)
        if not self._allowed(what.about, now_s):
            if series is not None:  # it is not told, but counted
                self._series.keep(key, series._replace(times=series.times + 1))
            return None
        if series is None:
            return Decision(key, message, 1, now_s, "")
        return Decision(key, message, series.times + 1, series.first_s, series.name)

    def written(self, made: Decision, name: str) -> None:
        """It is in the cluster under this name."""
        self._series.keep(made.key, _Series(made.times, made.first_s, name))

    def lost(self, made: Decision) -> None:
        """The Event that was to be counted up is no more (they live for an hour): the next one is a new one."""
        self._series.pop(made.key, None)

    def _aggregated(self, what: Occurrence, now_s: float) -> tuple[str, str]:
        group = "\x00".join((what.about, what.type, what.reason))
        similar = self._similar.get(group)
        if similar is None or now_s - similar.last_s > SIMILAR_S:
            similar = _Similar()
        similar.messages.add(what.message)
        similar.last_s = now_s
        self._similar.keep(group, similar)
        if len(similar.messages) < SIMILAR:
            return f"{group}\x00{what.message}", what.message
        similar.messages.discard(what.message)  # the set stays as large as it must be, and no larger
        return group, COMBINED + what.message

    def _allowed(self, about: str, now_s: float) -> bool:
        bucket = self._buckets.get(about) or _Bucket(BURST, now_s)
        bucket.tokens = min(BURST, bucket.tokens + max(0.0, now_s - bucket.filled_s) / REFILL_S)
        bucket.filled_s = now_s
        self._buckets.keep(about, bucket)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
