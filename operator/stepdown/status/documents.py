"""How a status document is put together: conditions that keep their time until they flip. The modules of each kind call this.

A document is what kubectl shows: plain JSON values, camelCase. Status is a fixpoint: from an unchanged world and the previous
document comes an equal one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from stepdown.budget.months import rfc3339
from stepdown.model import conditions
from stepdown.model.conditions import Condition, Status
from stepdown.plan.findings import Finding

Document = dict[str, Any]
MESSAGE_MAX = 4096
"""Characters of a condition's message (metav1.Condition has 32 Ki; the CRD says this)."""


def answered(type_: str, finding: Finding, message: str = "") -> Condition:
    """A plan's finding as a condition."""
    return Condition(type_, "True" if finding.holds else "False", finding.reason, message or finding.message)


def stalled(*findings: Finding) -> tuple[Condition, ...]:
    """The condition Stalled, where only a change of the object can mend what was found; else it is absent."""
    for finding in findings:
        if finding.stalled and not finding.holds:
            return (Condition(conditions.STALLED, "True", finding.reason, finding.message),)
    return ()


def condition(type_: str, holds: bool | None, reason: str, message: str) -> Condition:
    status: Status = "Unknown" if holds is None else "True" if holds else "False"
    return Condition(type_, status, reason, message)


def conditions_document(
    made: Iterable[Condition], generation: int, previous: Mapping[str, Any] | None, now_s: float
) -> list[Document]:
    """The conditions as the API has them; each keeps its lastTransitionTime unless its status flipped."""
    before = {each["type"]: each for each in (previous or {}).get("conditions", ())}
    documents = []
    for each in made:
        known = before.get(each.type)
        since = known["lastTransitionTime"] if known is not None and known["status"] == each.status else rfc3339(now_s)
        message = each.message if len(each.message) <= MESSAGE_MAX else each.message[: MESSAGE_MAX - 1] + "…"
        documents.append(
            {
                "type": each.type,
                "status": each.status,
                "observedGeneration": generation,
                "lastTransitionTime": since,
                "reason": each.reason,
                "message": message,
            }
        )
    return documents


def find(document: Mapping[str, Any] | None, type_: str) -> Mapping[str, Any] | None:
    """One condition of a status document."""
    return next((each for each in (document or {}).get("conditions", ()) if each["type"] == type_), None)


def since(now: Document, previous: Mapping[str, Any] | None, field: str, now_s: float) -> Document:
    """The part of a document with `since`: that of the previous one where all else of it is equal."""
    before = (previous or {}).get(field)
    if before is not None and {key: value for key, value in before.items() if key != "since"} == now:
        return {**now, "since": before["since"]} if "since" in before else now
    return {**now, "since": rfc3339(now_s)}


def ready(verdicts: Iterable[tuple[bool | None, str, str]]) -> Condition:
    """Ready from what it stands on, first come first told: (holds, reason, message) where it does not hold."""
    for holds, reason, message in verdicts:
        if not holds:
            return condition(conditions.READY, holds, reason, message)
    return condition(conditions.READY, True, conditions.READY_REASON, "The object does what it says.")
