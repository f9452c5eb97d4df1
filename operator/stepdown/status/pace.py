"""Which status documents to write now, and when to look again: the API server must not pay for every cent. `watch` asks after
each pass and does the writes.

What a person or a program acts on is written at once: conditions, the step, the model in force. What only moves, such as money,
is written rarely: a budget at most every ten seconds, a route at most every minute and only if it moved by a hundredth of its
strictest budget. That a config is on its way to the proxies is written only where it does not arrive: sync takes a second or
two. All of it goes under one rate, the oldest change first, of which a part is kept for what is urgent. Metrics and the ledger
are live; an hour in which nothing happens makes no write.

There is no clock here and no I/O: the same calls give the same answers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, islice
from typing import Any, NamedTuple

from stepdown.model import conditions
from stepdown.model.money import usd_to_nusd
from stepdown.plan.budgets import BudgetPlan
from stepdown.plan.fleets import CatalogPlan, FleetPlan
from stepdown.plan.plan import Plan
from stepdown.plan.routes import RoutePlan
from stepdown.plan.world import ObjectKey
from stepdown.status.documents import Document
from stepdown.status.events import over_limit
from stepdown.status.statuses import Statuses

RATE_PER_S = 50.0
"""Writes a second, over all objects: a cold start with 1,100 of them, each written twice, is through in a minute."""
BURST = 100
RESERVE = 50
"""Of the burst: only for what is urgent."""
ROUTE_S = 60.0
OTHER_S = 10.0
"""The shortest time between two writes of one object that are not urgent."""
ARRIVAL_S = 3.0
"""How long a config may take to all proxies before that is written. A route's shard changes with each route that is in it."""
PART = 100
"""A route's spend is worth a write when it moved by one part in so many of its strictest budget."""

_ACTED_ON = ("observedGeneration", "effective", "step", "period", "limitUSD", "outages")
"""Parts of a document, beside its conditions, that are written at once."""
_DUST = 1e-9
"""Less than any token: what floats lose."""


@dataclass(frozen=True, slots=True)
class Write:
    """One document to write to `/status`."""

    name: ObjectKey
    uid: str
    document: Document


@dataclass(frozen=True, slots=True)
class Due:
    writes: tuple[Write, ...]
    """Each is under way from now on, until `wrote` or `failed` says how it ended."""
    again_s: float | None
    """When there is something to write, if nothing else happens; None: never."""


@dataclass(slots=True)
class _Entry:
    """One object."""

    uid: str
    written: Mapping[str, Any] | None
    """What the API server has; None: nothing of ours, or nobody knows."""
    latest: Document
    written_s: float = float("-inf")
    since_s: float = 0.0
    """Since when there is something to write."""
    urgent: bool = False
    not_before_s: float = float("-inf")
    under_way: bool = False
    pending: bool = False
    version: int = 0
    """Of the judgement: what a queue says of an older one counts for nothing."""


class Pace:
    """What is to be written, and what was. One thread calls."""

    def __init__(self, rate_per_s: float = RATE_PER_S, burst: int = BURST, reserve: int = RESERVE) -> None:
        self._rate, self._burst, self._reserve = rate_per_s, float(burst), float(reserve)
        self._tokens, self._filled_s = float(burst), float("-inf")
        self._entries: dict[ObjectKey, _Entry] = {}
        self._later: list[tuple[float, int, ObjectKey]] = []
        self._urgent: list[tuple[bool, float, int, ObjectKey]] = []
        self._coarse: list[tuple[float, int, ObjectKey]] = []
        self._judged = 0
        self._made: Statuses | None = None

    def look(self, made: Statuses, plan: Plan, now_s: float, most: int = BURST) -> Due:
        """What to write now of the statuses of a pass, and when to ask again. Costs what is due, not what there is.

        `most`: how many writes can begin now. What waits here goes by its urgency, what waits behind them no longer does."""
        if made is not self._made:
            self._take(made, plan, now_s)
            self._made = made
        self._tokens = min(self._burst, self._tokens + max(0.0, now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        while self._later and self._later[0][0] <= now_s:
            _, version, name = heappop(self._later)
            self._queue(version, name)
        drawn = chain(self._drawn(self._urgent, 1.0), self._drawn(self._coarse, 1.0 + self._reserve))
        writes = list(islice(drawn, most))
        return Due(tuple(writes), self._again_s(now_s))

    def wrote(self, write: Write, plan: Plan, now_s: float) -> None:
        """The API server has the document."""
        self._ended(write, plan, now_s, write.document, 0.0)

    def failed(self, write: Write, plan: Plan, now_s: float, retry_s: float) -> None:
        """The API server may have it or not: what is the latest then is written after `retry_s`."""
        self._ended(write, plan, now_s, None, retry_s)

    def changed_by_others(self, name: ObjectKey, plan: Plan, now_s: float) -> None:
        """The API server no longer has what was written: somebody else wrote there."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.written = None
            self._judge(name, entry, plan, now_s)

    # -----------------------------------------------------------------------------------------------------------------

    def _take(self, made: Statuses, plan: Plan, now_s: float) -> None:
        """The documents of a new pass; those that are the very same as before cost nothing."""
        entries: dict[ObjectKey, _Entry] = {}
        plans: Mapping[str, Mapping[str, RoutePlan | BudgetPlan | FleetPlan | CatalogPlan]] = {
            "ModelRoute": plan.routes,
            "SpendBudget": plan.budgets,
            "RoutingProxy": plan.fleets,
            "ModelCatalog": plan.catalogs,
        }
        for name, document in made.documents.items():
            uid = plans[name[0]][name[1]].source.uid
            entry = self._entries.get(name)
            if entry is None or entry.uid != uid:
                # One that another of its name has replaced came with nothing: what `before` has is its predecessor's.
                came_with = made.before.get(name) if entry is None else None
                entry = _Entry(uid, came_with, document)
            elif entry.latest is document:
                entries[name] = entry
                continue
            entry.latest, entries[name] = document, entry
            self._judge(name, entry, plan, now_s)
        self._entries = entries

    def _ended(self, write: Write, plan: Plan, now_s: float, has: Document | None, retry_s: float) -> None:
        entry = self._entries.get(write.name)
        if entry is not None and entry.uid == write.uid:
            entry.written, entry.written_s, entry.not_before_s = has, now_s, now_s + retry_s
            entry.under_way = False
            self._judge(write.name, entry, plan, now_s)

    def _judge(self, name: ObjectKey, entry: _Entry, plan: Plan, now_s: float) -> None:
        """Whether the object's document is to be written, and how soon."""
        if entry.under_way:
            return
        now, before = _telling(entry.latest), _telling(entry.written)
        urgent = now != before
        self._judged += 1
        entry.version = self._judged
        if not urgent and not _worth(name, entry, plan):
            entry.pending = False
            return
        if not entry.pending or urgent > entry.urgent:
            entry.since_s = now_s
        entry.pending, entry.urgent = True, urgent
        arriving = urgent and now.arriving and now[1:] == before[1:]
        if urgent:
            due_s = max(entry.since_s + (ARRIVAL_S if arriving else 0.0), entry.not_before_s)
        else:
            rest_s = ROUTE_S if name[0] == "ModelRoute" else OTHER_S
            due_s = max(entry.since_s, entry.not_before_s, entry.written_s + rest_s)
        heappush(self._later, (due_s, entry.version, name))

    def _is_current(self, version: int, name: ObjectKey) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.version == version and entry.pending

    def _queue(self, version: int, name: ObjectKey) -> None:
        """What is due: what is urgent first, of that the few objects that stand for many, then the oldest change."""
        if self._is_current(version, name):
            entry = self._entries[name]
            if entry.urgent:
                heappush(self._urgent, (name[0] == "ModelRoute", entry.since_s, version, name))
            else:
                heappush(self._coarse, (entry.since_s, version, name))

    def _drawn(self, queue: "list[Any]", needed: float) -> Iterator[Write]:
        """What the tokens are enough for."""
        while _drop_stale(queue, self._is_current) and self._tokens + _DUST >= needed:
            name = heappop(queue)[-1]
            self._tokens -= 1.0
            entry = self._entries[name]
            entry.pending, entry.under_way = False, True
            yield Write(name, entry.uid, entry.latest)

    def _again_s(self, now_s: float) -> float | None:
        moments = [self._later[0][0]] if _drop_stale(self._later, self._is_current) else []
        for queue, needed in ((self._urgent, 1.0), (self._coarse, 1.0 + self._reserve)):
            if _drop_stale(queue, self._is_current):
                moments.append(now_s + max(0.0, needed - self._tokens) / self._rate)
        return min(moments, default=None)


def _drop_stale(queue: "list[Any]", is_current: Callable[[int, ObjectKey], bool]) -> bool:
    """Whether there is anything left in the queue when what is no longer so has gone from its head."""
    while queue and not is_current(*queue[0][-2:]):
        heappop(queue)
    return bool(queue)


class _Telling(NamedTuple):
    """What of a document people and programs act on."""

    programmed: tuple[Any, ...]
    answers: Mapping[str, Any]
    parts: tuple[Any, ...]

    @property
    def arriving(self) -> bool:
        return bool(self.programmed[:1]) and self.programmed[0] == ("False", conditions.PROPAGATING)


def _telling(document: Mapping[str, Any] | None) -> _Telling:
    if document is None:
        return _Telling((), {}, ())
    answers = {each["type"]: (each["status"], each["reason"]) for each in document.get("conditions", ())}
    programmed = answers.pop(conditions.PROGRAMMED, None)
    # Ready follows from Programmed, where that is what it lacks.
    ready = answers.pop(conditions.READY, None) if programmed is not None else None
    parts = (document.get(name) for name in _ACTED_ON)
    return _Telling((programmed, ready), answers, (*parts, over_limit(document)))


def _worth(name: ObjectKey, entry: _Entry, plan: Plan) -> bool:
    """Whether a document in which nothing telling changed is worth a write."""
    if entry.written is None:
        return True
    if name[0] == "ModelRoute":
        if _but(entry.written, "spend", "summary") != _but(entry.latest, "spend", "summary"):
            return True
        return _has_moved(entry.written.get("spend"), entry.latest.get("spend"), _strictest_nusd(plan, name[1]))
    # A forecast falls by the hour while nothing is spent: it comes with the next write.
    return _but(entry.written, "forecast") != _but(entry.latest, "forecast")


def _but(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The document without some of its parts, and without what says nothing of itself: the order of conditions, which is the
    API server's, and since when they hold, which may tell of a change that came and went between two writes."""
    answers = {each["type"]: {**each, "lastTransitionTime": ""} for each in document.get("conditions", ())}
    return {**{name: part for name, part in document.items() if name not in names}, "conditions": answers}


def _has_moved(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, limit_nusd: int | None) -> bool:
    if before is None or now is None or before["month"] != now["month"]:
        return before is not now
    then_nusd = usd_to_nusd(before["usd"])
    enough_nusd = (then_nusd if limit_nusd is None else limit_nusd) // PART
    return abs(usd_to_nusd(now["usd"]) - then_nusd) >= max(enough_nusd, 1)


def _strictest_nusd(plan: Plan, route: str) -> int | None:
    """The smallest limit of the route's budgets; None: it has none."""
    forces = plan.routes[route].forces
    return min((plan.budgets[each.budget].limit_nusd for each in forces if not each.refuses), default=None)
