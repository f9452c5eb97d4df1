"""Which Events wait a moment before they are told. `watch.shown` asks, with its own clock.

Objects that are applied together do not come together: a route is often seen before the RoutingProxy that it names. Its status
says so at once and is right again a moment later; an Event would stay in the list for an hour, and be read as a fault.
"""

from collections.abc import Iterable, Mapping

from stepdown.model import conditions
from stepdown.plan.world import ObjectKey
from stepdown.status.documents import Document, find
from stepdown.status.events import Event

HOLD_S = 5.0
"""Longer than `kubectl apply` takes over a folder, short beside the time in which somebody reads Events."""

_CONDITION = {conditions.EVENT_INVALID_SPEC: conditions.ACCEPTED, conditions.EVENT_REFS_NOT_RESOLVED: conditions.RESOLVED_REFS}
"""What may be wrong only because something else is not there yet, and the condition that says whether it still is."""


class Patience:
    """The Events that wait."""

    def __init__(self) -> None:
        self._held: dict[tuple[ObjectKey, str], tuple[float, Event]] = {}

    def told(self, events: Iterable[Event], now_s: float) -> list[Event]:
        """Those to tell at once. One that says something new of what waits already does not make it wait longer."""
        at_once = []
        for event in events:
            if event.reason not in _CONDITION:
                at_once.append(event)
                continue
            name = ((event.kind, event.key), event.reason)
            until_s, _ = self._held.get(name, (now_s + HOLD_S, event))
            self._held[name] = until_s, event
        return at_once

    def due(self, documents: Mapping[ObjectKey, Document], now_s: float) -> list[Event]:
        """Those that have waited, and are still true by the latest documents."""
        ripe = [(name, event) for name, (until_s, event) in self._held.items() if until_s <= now_s]
        for name, _ in ripe:
            del self._held[name]
        return [event for (name, _), event in ripe if _still(event, documents.get(name))]

    def next_s(self) -> float | None:
        """When to ask `due` again."""
        return min((until_s for until_s, _ in self._held.values()), default=None)


def _still(event: Event, document: Document | None) -> bool:
    now = find(document, _CONDITION[event.reason])
    return now is not None and (now["status"], now["message"]) == ("False", event.message)
