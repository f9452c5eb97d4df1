"""Models that the upstream does not serve now, as proxies found out. `status.statuses` shows them, `status.events` tells them.

A proxy leaves a model alone that failed several times in a row, until it answers again (`proxy.breaker`). One proxy may have
bad luck; where half of them agree it is the upstream.
"""

from collections.abc import Container, Mapping
from typing import Any

from stepdown.budget.months import rfc3339
from stepdown.plan.world import ProxiesSeen
from stepdown.status.documents import Document

SHOWN = 32
"""Models; a whole upstream that is away has more, and a status is no list of all."""


def outages_document(
    seen: ProxiesSeen | None, known: Container[str], previous: Mapping[str, Any] | None, now_s: float, *, settled: bool
) -> list[Document]:
    """Each model with the moment from which it was out; those of the previous document while nobody can have said anything.

    `known`: models of the fleet's config. What proxies say beside them is nothing that a status should repeat.
    """
    before: Mapping[str, Document] = {each["model"]: each for each in (previous or {}).get("outages", ())}
    if seen is None or not seen.ready:
        return list(before.values()) if not settled else []
    out = sorted(model for model, count in seen.down.items() if 2 * count >= seen.ready and model in known)
    return [before.get(model) or {"model": model, "since": rfc3339(now_s)} for model in out[:SHOWN]]


def new_outages(document: Mapping[str, Any], previous: Mapping[str, Any] | None) -> list[str]:
    """The models that were reached before."""
    before = {each["model"] for each in (previous or {}).get("outages", ())}
    return [each["model"] for each in document.get("outages", ()) if each["model"] not in before]
