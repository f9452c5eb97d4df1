"""What the plan found wrong, at the place in the files where a person mends it. `stepdown validate` and `run` call this."""

import re
from collections.abc import Iterator, Mapping

from stepdown.local.documents import Document, Problem, line_of
from stepdown.model import conditions
from stepdown.plan.findings import Finding
from stepdown.plan.plan import Plan
from stepdown.plan.routes import RoutePlan

_FIELD = re.compile(r"spec((?:\.\w+|\[\d+\])+)")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")


def planned(plan: Plan, places: Mapping[tuple[str, str], Document]) -> Iterator[Problem]:
    """A problem for each object that is not in force as written; a note for what is missing without stopping it.

    Objects that could not even be read are not among them: what is wrong with those was said when they were read.
    """
    for kind, plans in (
        ("RoutingProxy", plan.fleets),
        ("ModelCatalog", plan.catalogs),
        ("SpendBudget", plan.budgets),
        ("ModelRoute", plan.routes),
    ):
        for key, each in plans.items():
            document = places.get((kind, key))
            if each.source.invalid is not None or document is None:
                continue
            found = list(_problems(kind, key, each.accepted, document))
            if (resolved := getattr(each, "resolved", None)) is not None and not found:
                found = list(_problems(kind, key, resolved, document))
            if isinstance(each, RoutePlan) and each.refuse and not found and not _blamed_elsewhere(each):
                found = [_at(document, f"{kind} {key}: {each.refuse}", note=False)]
            yield from found


def _problems(kind: str, key: str, finding: Finding, document: Document) -> Iterator[Problem]:
    if not finding.holds:
        yield _at(document, f"{kind} {key}: {finding.message}", note=finding.reason == conditions.SECRET_NOT_FOUND)
    elif finding.reason == conditions.TARGET_NOT_FOUND:
        yield _at(document, f"{kind} {key}: {finding.message}", note=True)


def _at(document: Document, message: str, *, note: bool) -> Problem:
    """At the line of the first field that the message names."""
    found = _FIELD.search(message)
    line = document.line
    if found:
        path = ("spec", *(name or int(index) for name, index in _STEP.findall(found[1])))
        line = line_of(document, path)
    return Problem(document.file, document.number, line, message, note=note)


def _blamed_elsewhere(route: RoutePlan) -> bool:
    """A route that a budget refuses is not what has to be mended."""
    return any(force.refuses for force in route.forces)
